"""What a worker on the bus tells of itself, beside the rows' metrics: lag, recovery, snapshots, failures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_RECOVERY_S = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
_BYTES = tuple(float(1 << power) for power in range(12, 24))


class BusMetrics:
    """The metrics of one worker, in the registry of its rows' metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, said: str, *labels: str) -> Counter:
            return Counter(f"windrow_bus_{name}", said, labels, registry=registry)

        self._registry = registry
        self._owned = Gauge(
            "windrow_row_owned", "1 while this worker beats the row.", ("row",), registry=registry
        )
        self._epoch = Gauge(
            "windrow_row_epoch", "The epoch under which the row is beaten.", ("row",), registry=registry
        )
        self._silent = Gauge(
            "windrow_site_row_silent",
            "1 for a row that has said nothing for too long, or never; told by who sums the site.",
            ("row",),
            registry=registry,
        )
        self._read = counter("messages_read_total", "Messages read, by topic.", "topic")
        self._redone = counter("beats_redone_total", "Beats of the log done again or after another.", "row")
        self._lost = counter("epochs_lost_total", "Times that another claimed a row of ours.", "row")
        self._failed = counter("send_failures_total", "Messages the brokers did not take.", "topic")
        self._recovery_s = Histogram(
            "windrow_bus_recovery_seconds",
            "From a row's assignment to its first beat here.",
            registry=registry,
            buckets=_RECOVERY_S,
        )
        self._snapshot_bytes = Histogram(
            "windrow_bus_snapshot_bytes", "Size of rows' snapshots.", registry=registry, buckets=_BYTES
        )

    def read(self, topic: str, messages: int) -> None:
        """Messages were read."""
        self._read.labels(topic).inc(messages)

    def redone(self, row: str) -> None:
        """A beat was done that is not this worker's own."""
        self._redone.labels(row).inc()

    def owned(self, row: str, epoch: int, seconds: float) -> None:
        """The row is this worker's, so long after it was assigned."""
        self._owned.labels(row).set(1)
        self.claimed(row, epoch)
        self._recovery_s.observe(seconds)

    def claimed(self, row: str, epoch: int) -> None:
        """The row is beaten under this epoch."""
        self._epoch.labels(row).set(epoch)

    def dropped(self, row: str) -> None:
        """The row is this worker's no more."""
        self._owned.labels(row).set(0)

    def lost(self, row: str) -> None:
        """Another has claimed the row."""
        self._owned.labels(row).set(0)
        self._lost.labels(row).inc()

    def summed(self, rows: Iterable[str], silent: Collection[str]) -> None:
        """The site was summed here: its rows, and those that are silent."""
        for row in rows:
            self._silent.labels(row).set(row in silent)

    def sums_no_more(self) -> None:
        """The site is summed elsewhere from now on."""
        self._silent.clear()

    def kept(self, size: int) -> None:
        """The brokers have a snapshot of so many bytes."""
        self._snapshot_bytes.observe(size)

    def send_failed(self, topic: str) -> None:
        """A message that the brokers did not take."""
        self._failed.labels(topic).inc()

    def watch(
        self, lag: Callable[[], Mapping[str, int]], strays: Callable[[], Mapping[str, tuple[int, int]]]
    ) -> None:
        """Read, when metrics are: by topic the messages still to be read; by row the ticks that were passed
        over, and the words in ticks that could not be read."""
        self._registry.register(_Logs(lag, strays))


class _Logs(Collector):
    def __init__(
        self, lag: Callable[[], Mapping[str, int]], strays: Callable[[], Mapping[str, tuple[int, int]]]
    ) -> None:
        self._lag = lag
        self._strays = strays

    def collect(self) -> Iterator[Metric]:
        lag = GaugeMetricFamily("windrow_bus_lag_messages", "Messages still to be read.", labels=["topic"])
        for topic, messages in self._lag().items():
            lag.add_metric([topic], messages)
        passed_over = CounterMetricFamily(
            "windrow_bus_passed_over_ticks", "Ticks of who does not own the row.", labels=["row"]
        )
        unread = CounterMetricFamily(
            "windrow_bus_unread_words", "Words in ticks that could not be read.", labels=["row"]
        )
        for row, (ticks, words) in self._strays().items():
            passed_over.add_metric([row], ticks)
            unread.add_metric([row], words)
        yield from (lag, passed_over, unread)
