"""`windrow archive`: the site's record and its time series, kept."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import threading

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest

from runtime.archive import (
    LEDGER_TOPIC,
    SERIES_TOPICS,
    Archive,
    ArchiveMetrics,
    Index,
    Part,
    Progress,
    Series,
)
from runtime.bus.reader import Reader
from runtime.cli.printing import say
from runtime.cli.stopping import until_stopped
from runtime.clock import Clock, SystemClock
from runtime.config import HostConfig, load_site, read_host_config
from runtime.health import Health, HealthServer, served
from runtime.ledger.store import Ledger
from runtime.sinks.influx import InfluxSink
from runtime.sinks.lines import Lines
from runtime.state_dir import StateDir
from schemas.topology import Site

_TURN_S = 30.0
"""A part that has not turned for so long hangs: on its disk, or in InfluxDB."""


def archive(*, config: pathlib.Path) -> int:
    """Keep what is said on the bus: the ledger in a file, everything in InfluxDB.

    Without [influx] in the configuration only the ledger is kept. Several archives may run, each with a
    state directory of its own.

    Parameters
    ----------
    config
        A configuration with the site, its brokers, [kafka], and its time series, [influx].
    """
    chosen = read_host_config(config)
    chosen.bus()
    site = load_site(chosen.site)
    state = StateDir.made(chosen.state_dir)
    clock = SystemClock()
    with until_stopped() as stop, state.locked(), contextlib.ExitStack() as stack:
        kept = _archive(chosen, site, state, clock, stop)
        health = _health(kept, clock)
        if chosen.listen:
            stack.enter_context(_served(chosen.listen, kept, health))
        stack.enter_context(kept)
        series = f"; its time series to {chosen.influx.url}" if chosen.influx is not None else ""
        say(
            f"keeping the ledger of {site.name} in {state.ledger}{series}; "
            f"health and metrics on {chosen.listen or 'nothing'}"
        )
        kept.watch()
    return 0


def _archive(config: HostConfig, site: Site, state: StateDir, clock: Clock, stop: threading.Event) -> Archive:
    """The parts that the configuration asks for. Raises BusError and LedgerUnwritable."""
    kafka = config.bus()
    parts: list[Part] = []
    if config.influx is not None:
        progress = Progress(state.path / "influx.json", config.influx, clock)
        sink = InfluxSink(config.influx, aside=state.path / "influx-refused.lp", clock=clock, stop=stop)
        reader = Reader(kafka, dict.fromkeys(SERIES_TOPICS), start=progress.start)
        series = Series(sink, Lines(site), progress, site)
        parts.append(Part("series", reader, series, stop=stop, clock=clock))
    ledger = Ledger(state.ledger)
    reader = Reader(kafka, {LEDGER_TOPIC: None}, start={(LEDGER_TOPIC, 0): ledger.taken()})
    parts.insert(0, Part("index", reader, Index(ledger, site), stop=stop, clock=clock))
    topics = SERIES_TOPICS if config.influx is not None else (LEDGER_TOPIC,)
    return Archive(parts, Reader(kafka, dict.fromkeys(topics), start="latest"), stop)


def _health(kept: Archive, clock: Clock) -> Health:
    """Alive while the index turns. A part that waits for InfluxDB does not, and a restart mends nothing."""
    health = Health(clock)
    for part in kept.parts:
        health.expect(part.name, within_s=_TURN_S, vital=part.name == "index")
        part.turned = functools.partial(health.seen, part.name)
    health.ask(lambda: "; ".join(kept.troubles()))
    return health


def _served(listen: str, kept: Archive, health: Health) -> HealthServer:
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    registry.register(ArchiveMetrics(kept))
    return served(listen, health, lambda: generate_latest(registry))
