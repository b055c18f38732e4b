"""Configuration of a host: which site, which policy, which adapters. Read once, refused in words.

    site = "sites/ams1.toml"            # paths are relative to this file
    policy = "policies/polca.toml"      # left out: the built-in defaults
    state_dir = "/var/lib/windrow"      # ledger, host state, inbox, recordings

    [health]
    listen = "127.0.0.1:9464"

    [[collectors]]
    kind = "gpu_nvml"
    host = "ams1/row-b/r07/h03"
    period_ms = 1000

    [[actuators]]
    kind = "gpu_nvml"                   # or "dry_run"
    host = "ams1/row-b/r07/h03"
    path = "in_band"
"""

from __future__ import annotations

import difflib
import pathlib
import tomllib
from typing import Any

import msgspec

from controllers.policy import DEFAULT_POLICY, CappingPolicy, read_policy
from runtime.registry import ACTUATORS, COLLECTORS
from schemas.commands import Path
from schemas.shares import SafeShare, Unsafe, safe_shares
from schemas.site_file import read_site
from schemas.topology import Site


class ConfigError(ValueError):
    """The configuration cannot be used; each line of the text names a file, a key and what is allowed."""


class CollectorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One collector: an adapter of the registry, the host it reads, how often."""

    kind: str
    host: str
    period_ms: int = 1_000


class ActuatorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One actuator: an adapter of the registry, the host it sets, by which path."""

    kind: str
    host: str
    path: Path = "in_band"


class HealthConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where metrics and health are served; an empty `listen` serves none."""

    listen: str = "127.0.0.1:9464"


class HostConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A host's configuration file as it was written."""

    site: str
    state_dir: str
    policy: str = ""
    health: HealthConfig = HealthConfig()
    collectors: tuple[CollectorConfig, ...] = ()
    actuators: tuple[ActuatorConfig, ...] = ()


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration read and checked: everything a host is wired from."""

    site: Site
    site_text: str
    policy: CappingPolicy
    policy_text: str
    shares: dict[str, SafeShare]

    def unsuited(self) -> list[str]:
        """Why the policy cannot run the site's rows, in words; empty when it can."""
        return [f"{row.path}: {problem}" for row in self.site.rows for problem in self.policy.unfit_for(row)]

    @property
    def oversubscribed(self) -> frozenset[str]:
        """The hosts of rows whose nameplate is above their budget."""
        return frozenset(h.path for row in self.site.rows if row.rated_w > row.budget_w for h in row.hosts)


def read_text(path: pathlib.Path, what: str) -> str:
    """The text of a file. Raises ConfigError in words."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {what} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: {what} is not UTF-8 text: {error}") from error


def load_setup(site: pathlib.Path, policy: pathlib.Path | None) -> Setup:
    """Read a site file and a policy file, and see that the site can be made safe at all.

    Raises ConfigError with every problem found, one a line.
    """
    site_text = read_text(site, "the site file")
    policy_text = read_text(policy, "the policy file") if policy else ""
    problems: list[str] = []
    found: Site | None = None
    rules = DEFAULT_POLICY
    shares: dict[str, SafeShare] = {}
    try:
        found = read_site(site_text, str(site))
        shares = safe_shares(found)
    except Unsafe as error:
        problems.append(f"{site}: {error}")
    except ValueError as error:
        problems.append(str(error))
    try:
        rules = read_policy(policy_text, str(policy)) if policy else DEFAULT_POLICY
    except ValueError as error:
        problems.append(str(error))
    if found is None or problems:
        raise ConfigError("\n".join(problems))
    return Setup(site=found, site_text=site_text, policy=rules, policy_text=policy_text, shares=shares)


def default_config(
    site: pathlib.Path | None, policy: pathlib.Path | None, state_dir: pathlib.Path, *, dry_run: bool = False
) -> HostConfig:
    """The configuration of a machine that is the only host of its site. Raises ConfigError in words."""
    if site is None:
        raise ConfigError("name a site file, or a host's configuration with --config")
    hosts = list(load_setup(site, policy).site.hosts.values())
    if len(hosts) != 1:
        raise ConfigError(f"{site}: has {len(hosts)} hosts: say with --config which of them this machine is")
    path = hosts[0].path
    return HostConfig(
        site=str(site),
        policy=str(policy) if policy else "",
        state_dir=str(state_dir),
        collectors=(CollectorConfig(kind="gpu_nvml", host=path),),
        actuators=tuple(
            ActuatorConfig(kind="dry_run" if dry_run else "gpu_nvml", host=path, path=way) for way in hosts[0].paths
        ),
    )


def read_host_config(path: pathlib.Path, *, dry_run: bool = False) -> HostConfig:
    """Read a host's configuration file; relative paths in it become relative to its folder. In a dry
    run every actuator is one that holds no device.

    Raises ConfigError with every problem found, one a line.
    """
    try:
        raw = tomllib.loads(read_text(path, "the configuration"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    problems = [f"{path}: {problem}" for problem in _unknown_keys(raw)]
    try:
        config = msgspec.convert(raw, HostConfig)
    except msgspec.ValidationError as error:
        raise ConfigError("\n".join(problems or [f"{path}: {error}"])) from error
    for table, entries, kinds in (("collectors", config.collectors, COLLECTORS), ("actuators", config.actuators, ACTUATORS)):
        for index, entry in enumerate(entries):
            if entry.kind not in kinds:
                problems.append(
                    f'{path}: {table}[{index}].kind = "{entry.kind}": there is {", ".join(sorted(kinds))}'
                )
    problems += [
        f"{path}: collectors[{index}].period_ms = {entry.period_ms}: must be from 100 to 60000 (milliseconds)"
        for index, entry in enumerate(config.collectors)
        if not 100 <= entry.period_ms <= 60_000
    ]
    if problems:
        raise ConfigError("\n".join(problems))

    def beside(name: str) -> str:
        return str(path.parent / name) if name else ""

    if dry_run:
        dry = tuple(msgspec.structs.replace(actuator, kind="dry_run") for actuator in config.actuators)
        config = msgspec.structs.replace(config, actuators=dry)
    return msgspec.structs.replace(
        config, site=beside(config.site), policy=beside(config.policy), state_dir=beside(config.state_dir)
    )


def check_adapters(config: HostConfig, site: Site, name: str) -> list[str]:
    """What is wrong between the adapters named and the site they are for, in words; empty when nothing."""
    problems = []
    for table, entries in (("collectors", config.collectors), ("actuators", config.actuators)):
        for index, entry in enumerate(entries):
            if entry.host not in site.hosts:
                near = difflib.get_close_matches(entry.host, site.hosts, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; site {site.name} has {len(site.hosts)} hosts"
                problems.append(f'{name}: {table}[{index}].host = "{entry.host}": no such host{hint}')
    for index, actuator in enumerate(config.actuators):
        host = site.hosts.get(actuator.host)
        if host and actuator.path not in host.paths:
            problems.append(
                f'{name}: actuators[{index}].path = "{actuator.path}": the site file gives {host.path} '
                f"the paths {', '.join(host.paths)}"
            )
    return problems


def _unknown_keys(raw: dict[str, Any]) -> list[str]:
    """Keys that no table has, with the nearest one that it has."""
    problems = []

    def look(table: Any, kind: type[msgspec.Struct], at: str) -> None:
        if not isinstance(table, dict):
            return
        names = [field.encode_name for field in msgspec.structs.fields(kind)]
        for key in table:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(names)}"
                problems.append(f"{at}{key}: no such key; {hint}")

    look(raw, HostConfig, "")
    look(raw.get("health"), HealthConfig, "health.")
    for table, kind in (("collectors", CollectorConfig), ("actuators", ActuatorConfig)):
        entries = raw.get(table)
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            look(entry, kind, f"{table}[{index}].")
    return problems


__all__ = [
    "ActuatorConfig",
    "CollectorConfig",
    "ConfigError",
    "HostConfig",
    "Setup",
    "check_adapters",
    "load_setup",
    "read_host_config",
    "read_text",
]
