"""A simulated site in real time: its rows live on the twin, its collectors publish, its agents listen.

Everything but the plant is what runs beside a real one: collectors, publisher, orders, agents, reflexes. So
whoever controls the site over Kafka cannot tell, and what the meters say can be held against what the twin
knows to be true.

One thread does it all, a part of the site at a time: each part, some dozens of hosts of one row or its
meters, is polled at a moment of its own within the period, so that a thousand hosts are no burst. A row's
plant is moved on when one of its parts is polled, and between while an agent waits to see what it wrote.

A power node that feeds several rows is simulated in each of them by the load of that row alone; its meter
reads their sum, and it is on battery as soon as one of them says so.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as MetricSource

from actuators.lifecycle import HostAgent
from collectors.base import Collector
from collectors.feed_meter import FeedCollector
from runtime.agents import InlineAgents
from runtime.bus.publisher import Publisher
from runtime.bus.reader import Reader, Received
from runtime.clock import Clock
from runtime.config import Setup
from runtime.orders import Orders, Release
from runtime.polling import InlineSamples
from runtime.reflexes import InlineReflexes
from runtime.wiring import METERS_MS, agents_on_twin, collectors_on_twin
from schemas.commands import Command
from schemas.instants import SECOND, Instant, Span
from schemas.samples import GpuFrame
from twin.row import MeterReading, TwinMeter, TwinRow

_LOG = logging.getLogger(__name__)

FRAME_MS: Span = SECOND
"""How often each host's GPUs are read."""

PART = 64
"""Hosts that are polled together (our choice): some milliseconds of work."""

GLANCE_MS: Span = 25
"""How soon a row is moved on again at the earliest where an agent waits for a read-back (our choice): half
of the 50 ms that a write in band takes there."""

_TELL_MS: Span = 10 * SECOND
_MOST = 1_000


class SharedMeter:
    """The meter of a power node, over the rows that it feeds."""

    def __init__(self, parts: Sequence[TwinMeter]) -> None:
        self._parts = parts

    def read(self) -> MeterReading:
        """As one part's: the powers' sum, closed where all are, on battery where one is."""
        readings = [part.read() for part in self._parts]
        on_battery = [reading.on_battery for reading in readings if reading.on_battery is not None]
        return MeterReading(
            sum(reading.power_w for reading in readings),
            all(reading.breaker_closed for reading in readings),
            any(on_battery) if on_battery else None,
        )


class SimulatedRow:
    """One row: its plant, the agents of its hosts and their reflexes."""

    def __init__(self, plant: TwinRow, setup: Setup) -> None:
        self.plant = plant
        self.agents: dict[str, HostAgent] = agents_on_twin(plant, setup, reflex=True)
        self.inline = InlineAgents(self.agents, setup.oversubscribed)
        self.reflexes = InlineReflexes(self.agents, setup.shares)

    @property
    def glance_ms(self) -> Span | None:
        """How soon an agent looks at what it wrote; None where none has yet to."""
        return min((agent.wait_ms for agent in self.agents.values() if agent.pending), default=None)


class SimulatedSite:
    """The rows of a site that are simulated. `run` is for one thread; the rest may be read on any."""

    def __init__(
        self, plants: Sequence[TwinRow], setup: Setup, *, reader: Reader, publisher: Publisher, clock: Clock
    ) -> None:
        self.rows = [SimulatedRow(plant, setup) for plant in plants]
        self.reader = reader
        self.orders = Orders(host for plant in plants for host in plant.hosts)
        self.behind_ms: Span = 0
        """How late the last part was polled: more than a second is more than this machine carries."""
        self.frames = 0
        self.turned: Callable[[], None] = lambda: None
        """Called at each turn: a sign of life."""
        self._publisher = publisher
        self._clock = clock
        self._by_host = {path: row for row in self.rows for path in row.agents}
        self._began = clock.monotonic()
        self._starts = {id(row): row.plant.now for row in self.rows}
        self._glances: dict[int, tuple[Instant, SimulatedRow]] = {}
        self._due: list[tuple[Span, int, SimulatedRow, InlineSamples, Span]] = []
        self._tell_at: Span = _TELL_MS
        parts = list(self._parts())
        for number, (row, collectors, period) in enumerate(parts):
            heapq.heappush(
                self._due, (number * period // len(parts), number, row, InlineSamples(collectors), period)
            )

    def _parts(self) -> Iterator[tuple[SimulatedRow, list[Collector], Span]]:
        """What is polled together: of which row, and how often."""
        meters: dict[str, list[TwinMeter]] = {}
        for row in self.rows:
            for path, meter in {**row.plant.meters, **row.plant.upses}.items():
                meters.setdefault(path, []).append(meter)
        told: set[str] = set()
        for row in self.rows:
            hosts: list[Collector] = list(collectors_on_twin(row.plant, FRAME_MS))
            for first in range(0, len(hosts), PART):
                yield row, hosts[first : first + PART], FRAME_MS
            read = [path for path in (*row.plant.row.meters, *row.plant.upses) if path not in told]
            told.update(read)
            upses = [path for path in read if path in row.plant.upses]
            shared = {path: SharedMeter(meters[path]) for path in read}
            yield row, [FeedCollector(shared, upses=upses, period_ms=METERS_MS)], METERS_MS

    # ---- time ----

    def run(self, stop: Callable[[], bool]) -> None:
        """Live until `stop` says so."""
        for row in self.rows:
            self._publisher.send(row.inline.start(self._clock.now()))
            self._watch(row)
        while not stop():
            self.turn()
            self.turned()

    def turn(self) -> None:
        """Wait for what is next, an order or a part that is due, and do it."""
        elapsed = self._elapsed()
        next_ms = min([self._due[0][0], *(at for at, _ in self._glances.values())])
        received = self.reader.poll(max(0, next_ms - elapsed) / 1000, _MOST)
        now = self._clock.now()
        if received:
            self._obey(received, now)
        elapsed = self._elapsed()
        for at, row in list(self._glances.values()):
            if at <= elapsed:
                self._move(row, elapsed)
                self._publisher.send(row.inline.step((), now))
                self._watch(row)
        if self._due[0][0] <= elapsed:
            self._poll(elapsed, now)
        if elapsed >= self._tell_at:
            self._tell_at = elapsed + _TELL_MS
            self._tell()

    def _poll(self, elapsed: Span, now: Instant) -> None:
        """Poll the part that has been due for longest."""
        at, number, row, samples, period = heapq.heappop(self._due)
        self.behind_ms = elapsed - at
        # One that comes too late is left out: the next is due at its own moment again.
        following = at + period * max(1, -(-(elapsed - at) // period))
        heapq.heappush(self._due, (following, number, row, samples, period))
        self._move(row, elapsed)
        events = samples.gather(now)
        self.frames += sum(isinstance(event, GpuFrame) for event in events)
        self._publisher.send(events)
        self._publisher.send(row.reflexes.feel(events, now))
        self._publisher.send(row.inline.step((), now))
        self._watch(row)

    def _move(self, row: SimulatedRow, elapsed: Span) -> None:
        row.plant.advance(max(row.plant.now, self._starts[id(row)] + elapsed))

    def _watch(self, row: SimulatedRow) -> None:
        """See that a row is moved on soon while an agent of it waits."""
        glance_ms = row.glance_ms
        if glance_ms is None:
            self._glances.pop(id(row), None)
        else:
            self._glances[id(row)] = (self._elapsed() + max(GLANCE_MS, glance_ms), row)

    def _elapsed(self) -> Span:
        return round((self._clock.monotonic() - self._began) * 1000)

    # ---- orders ----

    def _obey(self, received: Sequence[Received], now: Instant) -> None:
        orders, said = self.orders.take(received, now)
        self._publisher.send(said)
        waiting: dict[int, list[Command]] = {}
        for order in orders:
            if isinstance(order, Release):
                self._hand(waiting, now)
                waiting = {}
                for host in sorted(order.hosts):
                    row = self._by_host[host]
                    self._publisher.send(row.inline.release(host, now))
                    self._watch(row)
            else:
                waiting.setdefault(id(self._by_host[order.subject]), []).append(order)
        self._hand(waiting, now)

    def _hand(self, waiting: Mapping[int, Sequence[Command]], now: Instant) -> None:
        for row in self.rows:
            if commands := waiting.get(id(row)):
                self._move(row, self._elapsed())
                self._publisher.send(row.inline.step(commands, now))
                self._watch(row)

    # ---- what it tells ----

    def _tell(self) -> None:
        for row in self.rows:
            plant = row.plant
            _LOG.info(
                "%s: %.1f of %.1f kW, %s, hottest GPU %.0f °C",
                plant.row.path,
                plant.power_w / 1000,
                plant.row.budget_w / 1000,
                f"dark since its {plant.trip_cause} opened" if plant.tripped else "its breaker closed",
                plant.servers.core_c.max(),
            )
        if self.behind_ms > SECOND:
            _LOG.warning("%.1f s behind: this machine carries fewer hosts", self.behind_ms / SECOND)


class TwinMetrics(MetricSource):
    """The truth about a simulated site, read when metrics are."""

    def __init__(self, site: SimulatedSite) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._site = site
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """The metrics just now."""

        def gauge(name: str, said: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"windrow_twin_{name}", said, labels=["row"])

        power = gauge("row_power_watts", "The row's true power.")
        budget = gauge("row_budget_watts", "What the row may draw for ever.")
        tripped = gauge("row_tripped", "1 once the whole row is dark.")
        hottest = gauge("row_hottest_celsius", "The row's hottest GPU.")
        held = gauge("row_reflex_held_hosts", "Hosts that their own reflex holds.")
        over = CounterMetricFamily(
            "windrow_twin_row_over_budget_seconds", "Time above the row's budget.", labels=["row"]
        )
        for row in self._site.rows:
            plant, label = row.plant, [row.plant.row.path]
            power.add_metric(label, plant.power_w)
            budget.add_metric(label, plant.row.budget_w)
            tripped.add_metric(label, plant.tripped)
            hottest.add_metric(label, float(plant.servers.core_c.max()))
            held.add_metric(label, sum(reflex.held is not None for reflex in row.reflexes.by_host.values()))
            over.add_metric(label, plant.statistics().over_budget_s)
        behind = GaugeMetricFamily("windrow_twin_behind_seconds", "How late the last part was polled.")
        behind.add_metric([], self._site.behind_ms / SECOND)
        frames = CounterMetricFamily("windrow_twin_frames", "Frames that were read.")
        frames.add_metric([], self._site.frames)
        yield from (power, budget, tripped, hottest, held, over, behind, frames)
