"""Configuration of a host: which site, which policy, which adapters. Read once, refused in words.

    site = "sites/ams1.toml"            # paths are relative to this file
    policy = "policies/polca.toml"      # left out: the built-in defaults
    state_dir = "/var/lib/windrow"      # ledger, hosts' state, inbox

    [health]
    listen = "127.0.0.1:9464"           # metrics and health; "" serves none

    [[collectors]]                      # what is read here; one for each source
    kind = "gpu_nvml"
    host = "ams1/row-b/r07/h03"
    period_ms = 1000                    # how often what was read is said: a frame; at once when it jumps
    sample_ms = 100                     # how often it is read; left out: once in each period

    [[actuators]]                       # what is set here; one for each host and path
    kind = "gpu_nvml"                   # or "dry_run", which holds no device
    host = "ams1/row-b/r07/h03"
    path = "in_band"

    [kafka]                             # where the parts of a site are processes of their own
    servers = ["kafka-1:9092"]          # and how they are reached: runtime/bus/settings.py

    [influx]                            # the time series of the archive
    url = "https://influx:8086"         # and what it asks for: runtime/bus/settings.py

Each command needs some of it, and says which. A machine that is the only host of its site needs no
such file: `single_host` makes it from the site.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import get_args

import msgspec

from controllers.policy import DEFAULT_POLICY, CappingPolicy, read_policy
from runtime.bus.settings import InfluxConfig, KafkaConfig, read_influx, read_kafka
from runtime.registry import ACTUATORS, COLLECTORS, lacking
from schemas.commands import Path
from schemas.instants import MINUTE, SECOND, Span
from schemas.shares import SafeShare, Unsafe, safe_shares
from schemas.site_file import read_site
from schemas.toml_tables import NotToml, Table, not_among, read_toml
from schemas.topology import Site

LISTEN = "127.0.0.1:9464"
"""Where metrics and health are served unless the configuration says otherwise."""

_ADDRESS = re.compile(r".+:([0-9]{1,5})")
_QUICKEST: Span = 20  # a board's own power reading is made about as often (recalled)
_MOST_SAMPLES = 100  # in a frame, which must stay well below the 1 MiB that Kafka takes
_FASTEST: Span = 100
_SLOWEST: Span = MINUTE


class ConfigError(ValueError):
    """The configuration cannot be used; each line of the text names a file, a key and what is allowed."""


class CollectorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One collector: an adapter of the registry, the host it reads, how often that is said (`period_ms`)
    and how often it is read meanwhile (`sample_ms`; None: once)."""

    kind: str
    host: str
    period_ms: Span = SECOND
    sample_ms: Span | None = None


class ActuatorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One actuator: an adapter of the registry, the host it sets, by which path."""

    kind: str
    host: str
    path: Path = "in_band"


class HostConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A host's configuration as it was written. `name` is the file's, for the problems' first words;
    `listen` is empty where neither metrics nor health are served."""

    name: str
    site: pathlib.Path
    policy: pathlib.Path | None
    state_dir: pathlib.Path
    listen: str = LISTEN
    collectors: tuple[CollectorConfig, ...] = ()
    actuators: tuple[ActuatorConfig, ...] = ()
    kafka: KafkaConfig | None = None
    influx: InfluxConfig | None = None

    def sources(self) -> tuple[CollectorConfig, ...]:
        """What is read here. Raises ConfigError where the file names nothing."""
        if not self.collectors:
            meaning = "write [[collectors]], once for each of the sources read here"
            raise ConfigError(f"{self.name}: collectors is missing: {meaning}")
        return self.collectors

    def bus(self) -> KafkaConfig:
        """The brokers of the site. Raises ConfigError where the file names none."""
        if self.kafka is None:
            meaning = "write [kafka] with servers, the site's brokers"
            raise ConfigError(f"{self.name}: kafka is missing: {meaning}")
        return self.kafka

    def series(self) -> InfluxConfig:
        """The time-series database of the site. Raises ConfigError where the file names none."""
        if self.influx is None:
            meaning = "write [influx] with url, org and bucket, the site's time series"
            raise ConfigError(f"{self.name}: influx is missing: {meaning}")
        return self.influx

    def dry(self) -> HostConfig:
        """The same without a device that could be set."""
        dry = tuple(msgspec.structs.replace(actuator, kind="dry_run") for actuator in self.actuators)
        return msgspec.structs.replace(self, actuators=dry)


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """A site and a policy, read and found fit for each other, with the texts they were read from:
    everything that a row's loop and its safe shares are made of."""

    site: Site
    site_text: str
    policy: CappingPolicy
    policy_text: str
    shares: dict[str, SafeShare]

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


ADDRESS = f'host:port, such as "{LISTEN}", or "" to serve nothing'


def is_address(listen: str) -> bool:
    """Whether health can be told to listen there: ``host:port``, or nothing."""
    match = _ADDRESS.fullmatch(listen)
    return not listen or (match is not None and int(match[1]) < 1 << 16)


def load_site(path: pathlib.Path) -> Site:
    """The site that a file describes. Raises ConfigError with every problem found."""
    try:
        return read_site(read_text(path, "the site file"), str(path))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load_policy(path: pathlib.Path) -> CappingPolicy:
    """The policy that a file states. Raises ConfigError with every problem found."""
    try:
        return read_policy(read_text(path, "the policy file"), str(path))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load_setup(site: pathlib.Path, policy: pathlib.Path | None, *, decides: bool = True) -> Setup:
    """Read a site file and a policy file (None: the built-in defaults), and see that the site can be made
    safe at all and, where it `decides` here, that the policy can run it.

    Raises ConfigError with every problem found, one a line.
    """
    problems: list[str] = []
    found, shares, rules = None, dict[str, SafeShare](), DEFAULT_POLICY
    try:
        found = load_site(site)
        shares = safe_shares(found)
    except Unsafe as error:
        problems += [f"{site}: {line}" for line in str(error).splitlines()]
    except ConfigError as error:
        problems += str(error).splitlines()
    try:
        rules = load_policy(policy) if policy else DEFAULT_POLICY
    except ConfigError as error:
        problems += str(error).splitlines()
    else:
        rows = found.rows if found is not None and decides else ()
        problems += dict.fromkeys(problem for row in rows for problem in rules.unfit_for(row))
    if found is None or problems:
        raise ConfigError("\n".join(problems))
    return Setup(
        site=found,
        site_text=read_text(site, "the site file"),
        policy=rules,
        policy_text=read_text(policy, "the policy file") if policy else "",
        shares=shares,
    )


def load_host(config: HostConfig, *, decides: bool = True) -> Setup:
    """What a host's configuration names, read and checked against it; `decides`: whether a controller runs
    on it. Raises ConfigError with every problem found, one a line."""
    setup = load_setup(config.site, config.policy, decides=decides)
    problems = list(_misplaced(config, setup.site))
    if problems:
        raise ConfigError("\n".join(problems))
    return setup


def single_host(site: pathlib.Path, policy: pathlib.Path | None, state_dir: pathlib.Path) -> HostConfig:
    """The configuration of a machine that is the only host of its site: its GPUs read once a second and
    set by every path that the site file gives it. Raises ConfigError in words."""
    hosts = list(load_site(site).hosts.values())
    if len(hosts) != 1:
        raise ConfigError(f"{site}: has {len(hosts)} hosts: say with --config which of them this machine is")
    path = hosts[0].path
    return HostConfig(
        name=str(site),
        site=site,
        policy=policy,
        state_dir=state_dir,
        collectors=(CollectorConfig(kind="gpu_nvml", host=path),),
        actuators=tuple(ActuatorConfig(kind="gpu_nvml", host=path, path=way) for way in hosts[0].paths),
    )


def read_host_config(path: pathlib.Path) -> HostConfig:
    """Read a host's configuration file; relative paths in it become relative to its folder.

    Raises ConfigError with every problem found, one a line.
    """
    try:
        root = read_toml(read_text(path, "the configuration"), str(path))
    except NotToml as error:
        raise ConfigError(str(error)) from error
    policy = root.text("policy", "the policy file", "")
    config = HostConfig(
        name=str(path),
        site=path.parent / root.text("site", "the site file"),
        policy=path.parent / policy if policy else None,
        state_dir=path.parent / root.text("state_dir", "where the ledger and the hosts' state live"),
        listen=_listen(root),
        collectors=tuple(
            _collector(table) for table in root.tables("collectors", "the sources read here", needed=False)
        ),
        actuators=tuple(
            _actuator(table) for table in root.tables("actuators", "the settings made here", needed=False)
        ),
        kafka=read_kafka(root, path.parent),
        influx=read_influx(root),
    )
    root.close()
    if root.problems:
        raise ConfigError("\n".join(root.problems))
    return config


def _listen(root: Table) -> str:
    health = root.table("health")
    if health is None:
        return LISTEN
    listen = "" if health.raw.get("listen") == "" else health.text("listen", "host:port", LISTEN)
    if not is_address(listen):
        health.wrong("listen", f"must be {ADDRESS}")
    health.has("listen")
    health.close()
    return listen


def _collector(table: Table) -> CollectorConfig:
    kind = table.choice("kind", COLLECTORS, "the adapter")
    host = table.text("host", "the host's path in the site file")
    period = table.whole("period_ms", "milliseconds", SECOND)
    if period and not _FASTEST <= period <= _SLOWEST:
        table.wrong("period_ms", f"must be from {_FASTEST} to {_SLOWEST} (milliseconds)")
    sample = None
    if table.has("sample_ms"):
        sample = table.whole("sample_ms", "milliseconds")
        least = max(_QUICKEST, period // _MOST_SAMPLES)
        if sample and not least <= sample <= period:
            table.wrong("sample_ms", f"must be from {least} to period_ms (milliseconds)")
    table.close()
    return CollectorConfig(kind=kind, host=host, period_ms=period, sample_ms=sample)


def _actuator(table: Table) -> ActuatorConfig:
    kind = table.choice("kind", ACTUATORS, "the adapter")
    host = table.text("host", "the host's path in the site file")
    path = table.choice("path", get_args(Path), "the command path", "in_band")
    table.close()
    return ActuatorConfig(kind=kind, host=host, path=msgspec.convert(path or "in_band", Path))


def _misplaced(config: HostConfig, site: Site) -> Iterator[str]:
    """What is wrong between the adapters named and the site they are for, in words."""
    tables: tuple[tuple[str, Sequence[CollectorConfig | ActuatorConfig]], ...] = (
        ("collectors", config.collectors),
        ("actuators", config.actuators),
    )
    for table, entries in tables:
        for index, entry in enumerate(entries):
            if needs := lacking(entry.kind):
                yield f'{config.name}: {table}[{index}].kind = "{entry.kind}": {needs}'
            if entry.host not in site.hosts:
                near = f"no such host in {config.site}; {not_among(entry.host, site.hosts)}"
                yield f'{config.name}: {table}[{index}].host = "{entry.host}": {near}'
    first: dict[tuple[str, Path], int] = {}
    for index, entry in enumerate(config.actuators):
        where = f"{config.name}: actuators[{index}]"
        host = site.hosts.get(entry.host)
        if host is not None and entry.path not in host.paths:
            offered = ", ".join(host.paths)
            yield f'{where}.path = "{entry.path}": the site file gives {host.path} the paths {offered}'
        earlier = first.setdefault((entry.host, entry.path), index)
        if earlier != index:
            yield f"{where}: sets {entry.host} by {entry.path}, and so does actuators[{earlier}]"
