"""What operators do besides asking: check a configuration, pin, unpin, reset, release."""

from __future__ import annotations

import getpass
import pathlib
import sys
from typing import Annotated

from cyclopts import Parameter

from runtime.cli.printing import Json, console, emit, span, watts
from runtime.clock import SystemClock
from runtime.config import ConfigError, Setup, check_adapters, load_setup, read_host_config
from runtime.inbox import Inbox
from schemas.envelope import Event
from schemas.instants import MINUTE, to_text
from schemas.operators import Pin, ReleaseAll, ResetBlastRadius, Resume, Unpin
from schemas.topology import Site

StateDir = Annotated[pathlib.Path, Parameter(name="--state-dir")]
By = Annotated[str, Parameter(name="--by")]

_SOURCE = "operator"


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
        A host's configuration file; it names its own site and policy.
    json
        Print the result as one line of JSON.
    """
    problems: list[str] = []
    setup: Setup | None = None
    try:
        if config is not None:
            host = read_host_config(config)
            setup = load_setup(pathlib.Path(host.site), pathlib.Path(host.policy) if host.policy else None)
            problems += check_adapters(host, setup.site, str(config))
        elif site is not None:
            setup = load_setup(site, policy)
        else:
            raise ConfigError("name a site file, or a host's configuration with --config")
        problems += setup.unsuited()
    except ConfigError as error:
        problems += str(error).splitlines()
    if json:
        emit({"ok": not problems, "problems": problems})
    elif problems:
        print("\n".join(problems), file=sys.stderr)
    elif setup is not None:
        _say(setup)
    return 2 if problems else 0


def _say(setup: Setup) -> None:
    for row in setup.site.rows:
        shares = [setup.shares[host.path] for host in row.hosts]
        gpus = sum(host.gpu_count for host in row.hosts)
        low = sum(host.priority == "low" for host in row.hosts)
        console.print(
            f"[bold]{row.path}[/]: {len(row.hosts)} hosts ({low} low priority), {gpus} GPUs, "
            f"nameplate {watts(row.rated_w)} on a budget of {watts(row.budget_w)} ({row.rated_w / row.budget_w:.2f}×)"
        )
        limits = sorted({(share.limit_w, share.max_mhz) for share in shares})
        said = ", ".join(f"{limit:.0f} W per GPU and {mhz} MHz" for limit, mhz in limits)
        console.print(
            f"  safe share when every lease has lapsed: {said}; the row is then at most "
            f"{watts(sum(share.host_w for share in shares))}"
        )
        console.print(f"  meters: {', '.join(row.meters) or 'none: power is summed from hosts'}")
    console.print(f"[bold]policy[/]: {setup.policy.variant}")
    for line in setup.policy.switches_in_words():
        console.print(f"  {line}")


def _known(site: Site, subject: str) -> None:
    """Raises ConfigError unless the site has hosts at or below the path."""
    if not site.covered(subject):
        raise ConfigError(f"site {site.name} has no host at or below {subject!r}")


def _hand_in(state_dir: pathlib.Path, message: Event) -> None:
    Inbox(state_dir).put(message)


def pin(
    subject: str,
    /,
    *,
    max_mhz: int,
    minutes: float,
    reason: str,
    state_dir: StateDir,
    by: By = "",
) -> int:
    """Hold the clock ceiling of a host, rack or row for a while. It is never fought, and it expires.

    Parameters
    ----------
    subject
        The path of the host, rack or row.
    max_mhz
        The ceiling for SM clocks.
    minutes
        For how long.
    reason
        Why; it stands in the ledger.
    state_dir
        The state directory of the running host.
    by
        Who says so; the login name when left out.
    """
    if minutes <= 0 or max_mhz <= 0:
        raise ConfigError("--minutes and --max-mhz must be above zero")
    now = SystemClock().now()
    until = now + int(minutes * MINUTE)
    _hand_in(
        state_dir,
        Pin(at=now, source=_SOURCE, subject=subject, max_mhz=max_mhz, by=by or getpass.getuser(), reason=reason, expires_at=until),
    )
    console.print(f"asked to hold {subject} at or below {max_mhz} MHz for {span(minutes * 60)}, until {to_text(until)}")
    return 0


def unpin(subject: str, /, *, state_dir: StateDir, by: By = "") -> int:
    """Take the pins of a host, rack or row back before they expire.

    Parameters
    ----------
    subject
        The path that was pinned.
    state_dir
        The state directory of the running host.
    by
        Who says so; the login name when left out.
    """
    now = SystemClock().now()
    _hand_in(state_dir, Unpin(at=now, source=_SOURCE, subject=subject, by=by or getpass.getuser()))
    console.print(f"asked to take the pins of {subject} back")
    return 0


def reset_blast_radius(row: str, /, *, reason: str, state_dir: StateDir, by: By = "") -> int:
    """Close the blast-radius breaker of a row again, after looking at what tripped it.

    Parameters
    ----------
    row
        The row's path.
    reason
        What was found; it stands in the ledger.
    state_dir
        The state directory of the running host.
    by
        Who says so; the login name when left out.
    """
    now = SystemClock().now()
    who = by or getpass.getuser()
    _hand_in(state_dir, ResetBlastRadius(at=now, source=_SOURCE, subject=row, by=who, reason=reason))
    console.print(f"asked to close the blast-radius breaker of {row}")
    return 0
