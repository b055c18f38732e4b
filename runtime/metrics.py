"""Metrics for an SRE, in a registry of their own: what the rows do, and how the pipeline fares.

`observe` folds beats; what is no part of a beat is told by its owner. An unknown reading is NaN in
its gauge, which no comparison in an alert holds for: alert on coverage and ages beside values. Series
are made from the site at the start, so that what has not happened yet is 0 and not absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.polling import SourceState
from runtime.row_metrics import RowMetrics, RowSeries
from schemas.envelope import DeadLetter
from schemas.topology import Site

if TYPE_CHECKING:
    from runtime.row_loop import Beat

_DEAD = {  # words of a reason → its class: the reasons themselves are endless
    "malformed": "malformed",
    "truncated": "malformed",
    "trailing": "malformed",
    "utf-8": "malformed",
    "required field": "missing_field",
    "invalid value": "unknown_type",
    "expected": "wrong_type",
}

_FAST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SLOW_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0)


class Metrics:
    """The metrics of one host. `observe` is cheap: it writes a fixed few dozen series a beat.

    `observe` and what is told belong to the host's thread; `exposition` may be asked for on any. `rows`
    names the rows that are this host's from the start; None: every row of the site.
    """

    def __init__(self, site: Site, rows: Iterable[str] | None = None) -> None:
        # Else each counter brings a second series, its time of birth.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()

        def counter(name: str, said: str, *labels: str) -> Counter:
            return Counter(f"windrow_{name}", said, labels, registry=self.registry)

        def histogram(name: str, said: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"windrow_{name}", said, registry=self.registry, buckets=buckets)

        self._config = Info("windrow_config", "What runs, as labels.", registry=self.registry)
        self._dead = counter("dead_letters_total", "Messages that could not be read.", "topic", "reason")
        self._beat_s = histogram(
            "beat_seconds", "From samples gathered to commands in the ledger, in turns with a beat.", _FAST_S
        )
        self._append_s = histogram("ledger_append_seconds", "Time that an append took.", _FAST_S)
        self._append_failures = counter(
            "ledger_append_failures_total", "Appends that the ledger did not take."
        )
        self._waiting = Gauge(
            "windrow_ledger_waiting_records", "Records that wait for the ledger.", registry=self.registry
        )
        self._verified_event_s = histogram(
            "command_verified_event_seconds",
            "Event time from the oldest reading that a command rests on to its read-back.",
            _SLOW_S,
        )
        self._verified_wall_s = histogram(
            "command_verified_seconds",
            "Time from gathering the samples that a command rests on to hearing of its read-back.",
            (*_FAST_S, *(bucket for bucket in _SLOW_S if bucket > _FAST_S[-1])),
        )
        self._series = RowSeries(self.registry)
        self._site = site
        self._rows: dict[str, RowMetrics] = {}
        for path in (row.path for row in site.rows) if rows is None else rows:
            self.take_up(path)

    def take_up(self, row: str) -> None:
        """The row is this host's from now on."""
        self._rows[row] = RowMetrics(self._series, self._site.row(row), self._verified_event_s)

    def forget(self, row: str) -> None:
        """The row is another host's: what was seen of it here ends."""
        if self._rows.pop(row, None) is not None:
            self._series.forget(row)

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)

    def observe(self, beat: Beat) -> None:
        """Fold one beat of a row."""
        self._rows[beat.tick.subject].fold(beat)

    def configured(self, **facts: str) -> None:
        """What runs (site, policy, version, epoch …), as labels of `windrow_config_info`."""
        self._config.info(facts)

    def beat_took(self, seconds: float) -> None:
        """A turn with a beat, from samples gathered to commands in the ledger."""
        self._beat_s.observe(seconds)

    def appended(self, seconds: float, waiting: int) -> None:
        """An append to the ledger; `waiting` records were not taken, 0 when it went well."""
        self._append_s.observe(seconds)
        self._waiting.set(waiting)
        if waiting:
            self._append_failures.inc()

    def verified(self, seconds: float) -> None:
        """A command was heard to be read back, this long after its samples were gathered."""
        self._verified_wall_s.observe(seconds)

    def buried(self, letters: Iterable[DeadLetter]) -> None:
        """Messages that could not be read."""
        for letter in letters:
            reason = letter.reason.lower()
            known = (kind for words, kind in _DEAD.items() if words in reason)
            self._dead.labels(letter.topic, next(known, "other")).inc()

    def watch(self, sources: Callable[[], Iterable[SourceState]], strangers: Mapping[str, int]) -> None:
        """Read the collectors' states, and the counts of events of unknown subjects, when metrics are."""
        self.registry.register(SourceMetrics(sources))
        self.registry.register(_Strangers(strangers))


class SourceMetrics(Collector):
    """How the collectors of a process fare, read when metrics are: register it with a registry."""

    def __init__(self, sources: Callable[[], Iterable[SourceState]]) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """The metrics just now."""
        failures = CounterMetricFamily(
            "windrow_collector_failures", "Polls that failed.", labels=["collector"]
        )
        dropped = CounterMetricFamily(
            "windrow_collector_dropped_messages",
            "Messages that nobody gathered in time.",
            labels=["collector"],
        )
        away = GaugeMetricFamily(
            "windrow_collector_away", "1 while a collector's last poll failed.", labels=["collector"]
        )
        answered = GaugeMetricFamily(
            "windrow_collector_answer_timestamp_seconds",
            "Event time of a collector's last poll that worked; 0: never.",
            labels=["collector"],
        )
        for state in self._sources():
            failures.add_metric([state.name], state.failures)
            dropped.add_metric([state.name], state.dropped)
            away.add_metric([state.name], bool(state.away))
            answered.add_metric([state.name], (state.answered_at or 0) / 1000)
        yield from (failures, dropped, away, answered)


class _Strangers(Collector):
    def __init__(self, strangers: Mapping[str, int]) -> None:
        self._strangers = strangers

    def collect(self) -> Iterator[Metric]:
        strangers = CounterMetricFamily(
            "windrow_strangers", "Events whose subject is on no row of the site.", labels=["type"]
        )
        for kind, count in dict(self._strangers).items():
            strangers.add_metric([kind], count)
        yield strangers
