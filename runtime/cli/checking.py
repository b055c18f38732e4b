"""`windrow check`: what is wrong with files, before a host runs on them."""

from __future__ import annotations

import pathlib
import sys

from runtime.cli.printing import Json, emit, say, watts
from runtime.config import (
    ConfigError,
    HostConfig,
    Setup,
    load_host,
    load_setup,
    read_host_config,
)
from runtime.counting import counted


def check(
    site: pathlib.Path | None = None,
    /,
    *,
    policy: pathlib.Path | None = None,
    config: pathlib.Path | None = None,
    json: Json = False,
) -> int:
    """Check a site file, a policy and a host's configuration, touching no device. Exit status 2 when
    something is wrong, with every problem on a line of its own.

    Parameters
    ----------
    site
        The site file (TOML).
    policy
        A policy file; without one the built-in defaults are checked against the site.
    config
        A host's configuration file instead; it names its own site and policy.
    json
        Print the result as one line of JSON.
    """
    problems: list[str] = []
    setup: Setup | None = None
    host: HostConfig | None = None
    try:
        if config is not None and (site is not None or policy is not None):
            raise ConfigError("--config names the site and the policy itself: leave them out")
        if config is not None:
            host = read_host_config(config)
            setup = load_host(host)
        elif site is not None:
            setup = load_setup(site, policy)
        else:
            raise ConfigError("name a site file, or a host's configuration with --config")
    except ConfigError as error:
        problems = str(error).splitlines()
    if json:
        emit({"ok": not problems, "problems": problems})
    elif problems:
        print("\n".join(problems), file=sys.stderr)
    elif setup is not None:
        _describe(setup)
        if host is not None:
            _describe_adapters(host)
    return 2 if problems else 0


def _describe_adapters(host: HostConfig) -> None:
    for collector in host.collectors:
        say(f"reads {collector.host} by {collector.kind}, every {collector.period_ms} ms")
    for actuator in host.actuators:
        say(f"sets {actuator.host} by {actuator.kind}, {actuator.path.replace('_', ' ')}")


def _describe(setup: Setup) -> None:
    for row in setup.site.rows:
        shares = [setup.shares[host.path] for host in row.hosts]
        gpus = sum(host.gpu_count for host in row.hosts)
        low = sum(host.priority == "low" for host in row.hosts)
        ratio = row.rated_w / row.budget_w
        over = "oversubscribed" if ratio > 1.0 else "not oversubscribed"
        say(
            f"{row.path}: {counted(len(row.hosts), 'host')} ({low} of low priority), {counted(gpus, 'GPU')}; "
            f"nameplate {watts(row.rated_w)} on a budget of {watts(row.budget_w)}, {ratio:.2f}×, {over}"
        )
        limits = sorted({(share.limit_w, share.max_mhz) for share in shares})
        said = ", ".join(f"{limit:.0f} W per GPU and {mhz} MHz" for limit, mhz in limits)
        say(
            f"  safe share, once every lease has lapsed: {said}; the row is then at most "
            f"{watts(sum(share.host_w for share in shares))}"
        )
        say(f"  meters: {', '.join(row.meters) or 'none: power is summed from hosts'}")
    policy = setup.policy
    say(
        f"policy {policy.name}: {policy.variant}, T1 {policy.t1.enter:g}/{policy.t1.leave:g}, "
        f"T2 {policy.t2.enter:g}/{policy.t2.leave:g}, brake {policy.brake:g} of the budget; caps by "
        f"{policy.path.replace('_', ' ')}; leases of {policy.lease_ms / 1000:g} s"
    )
    for line in policy.switches_in_words():
        say(f"  {line}")
