"""From a sample to a verified command through Kafka, with as many hosts as a site has: where the knee is.

    meters ─► publisher ─► Kafka ─► windrow control ─► Kafka ─► orders, agents ─► read-back: Verified
              this process          a process                   a process (`benchmarks.hosts`)

All hosts say a frame a second and all meters speak every two, as they would. Then a row's meter reads above
its budget, now of this row and now of that; then the UPS of them all is on battery. Each time every host
concerned is braked. What is counted runs from when the sample was read to when the host says that its brake
was read back, on the one clock of one machine, which also carries the broker.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.collectors import Collectors
from benchmarks.figure import Figure
from benchmarks.plant import setup_for
from benchmarks.site import brokers, site, topics
from runtime.bus.reader import Reader, Received
from runtime.bus.settings import KafkaConfig
from runtime.clock import SystemClock
from runtime.config import Setup
from schemas import codec
from schemas.commands import Brake
from schemas.envelope import Event
from schemas.instants import SECOND, Instant, Span
from schemas.outcomes import Verified

SITES = ((10, 1), (20, 5), (40, 25))
"""Hosts to a row, and rows."""

SETTLE_MS: Span = 20 * SECOND
ROWS_MS: Span = 40 * SECOND
AGAIN_MS: Span = 10 * SECOND  # until a braked row runs again
UPSES = 3
UPS_MS: Span = 20 * SECOND

_POLICY = """
path = "in_band"
[switches]
brake_calm_ms = 1000
[guardrails]
dwell_ms = 1000
blast_ratio = 1.0
blast_window_ms = 1000
"""
_LATE_MS: Span = 10 * SECOND


class Trigger(NamedTuple):
    """A sample that has hosts braked: when it was read, of which rows."""

    at: Instant
    rows: frozenset[str]


class Reached(NamedTuple):
    """Milliseconds from a sample to what became of it for one host: decided, the command on the bus, the
    read-back said, that on the bus."""

    decided: float
    commanded: float
    verified: float
    told: float


def measure() -> list[Figure]:
    """One site after the other on one broker."""
    figures: list[Figure] = []
    with brokers() as servers:
        for hosts, rows in SITES:
            with topics(servers) as kafka:
                figures += _site(setup_for(hosts, rows, _POLICY), kafka, hosts * rows)
    return figures


def _site(setup: Setup, kafka: KafkaConfig, hosts: int) -> list[Figure]:
    with site(setup, kafka) as control:
        clock = SystemClock()
        collectors = Collectors(setup, kafka, clock)
        began = clock.monotonic(), control.cpu_s
        rows, whole = _course(setup, collectors, clock)
        cores = (control.cpu_s - began[1]) / (clock.monotonic() - began[0])
        collectors.close()
    row = len(setup.site.rows[0].hosts)
    name = f"sample → verified over Kafka, {hosts:,} hosts, a row of {row}"
    return [
        _figure(name, _reached(kafka, rows), f"control on {cores:.2f} cores"),
        _figure("  all of them at once", _reached(kafka, whole), ""),
    ]


def _course(setup: Setup, collectors: Collectors, clock: SystemClock) -> tuple[list[Trigger], list[Trigger]]:
    """The samples of single rows' meters, and those of the UPS."""
    rows, paths = setup.site.rows, frozenset(row.path for row in setup.site.rows)
    collectors.until(clock.now() + SETTLE_MS)
    single, every = list[Trigger](), max(AGAIN_MS // len(rows), 400)
    for turn in range(ROWS_MS // every):
        row = rows[turn % len(rows)]
        single.append(Trigger(collectors.above_budget(row), frozenset({row.path})))
        collectors.until(single[-1].at + every)
    collectors.until(clock.now() + AGAIN_MS)
    shared = list[Trigger]()
    for _ in range(UPSES):
        shared.append(Trigger(collectors.on_battery(), paths))
        collectors.until(shared[-1].at + UPS_MS)
    return single, shared


def _figure(name: str, reached: list[Reached], load: str) -> Figure:
    goal = "p99 ≤ 250 ms"
    if not reached:
        return Figure(name, "nothing was verified", goal, load, float("inf"))
    p50, p99 = np.percentile([each.verified for each in reached], [50, 99])
    decided, commanded, _, told = np.percentile(reached, 50, axis=0)
    words = f"p50 decided {decided:.0f}, commanded {commanded:.0f}, told {told:.0f} ms; {len(reached)} brakes"
    return Figure(
        name, f"p50 {p50:.0f} ms, p99 {p99:.0f} ms", goal, "; ".join(filter(None, (words, load))), float(p99)
    )


def _reached(kafka: KafkaConfig, triggers: list[Trigger]) -> list[Reached]:
    """Of each host that a sample had braked, how long it took."""
    brakes: dict[str, tuple[Received, Brake]] = {}
    reached = []
    for received, event in _all(kafka, "windrow.commands"):
        if isinstance(event, Brake):
            brakes[event.id] = received, event
    for received, event in _all(kafka, "windrow.outcomes"):
        if not isinstance(event, Verified) or event.command not in brakes:
            continue
        commanded, brake = brakes[event.command]
        row = commanded.key.decode()
        since = [t.at for t in triggers if row in t.rows and 0 <= brake.at - t.at < _LATE_MS]
        if since:
            at = max(since)
            spans = brake.at - at, commanded.timestamp_ms - at, event.at - at, received.timestamp_ms - at
            reached.append(Reached(*map(float, spans)))
    return reached


def _all(kafka: KafkaConfig, topic: str) -> Iterator[tuple[Received, Event]]:
    with contextlib.closing(Reader(kafka, {topic: None}, start="earliest")) as reader:
        ends = reader.ends() or reader.ends()
        while any((reader.position(*place) or 0) < end for place, end in ends.items()):
            for received in reader.poll(0.5, 1_000):
                yield received, codec.decode(received.value)
