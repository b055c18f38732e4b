"""Metrics of publishing: what Kafka has, what waits and where, and what it never will have."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.bus.publisher import PublisherState


class PublishMetrics(Collector):
    """A publisher's state as metrics, read when they are: register it with a registry."""

    def __init__(self, state: Callable[[], PublisherState]) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """The metrics just now."""
        connected = GaugeMetricFamily("windrow_publish_connected", "1 while Kafka takes what is said.")
        disk = GaugeMetricFamily("windrow_publish_spool_failing", "1 while the spool takes nothing.")
        queued = GaugeMetricFamily("windrow_publish_queued_messages", "Messages not yet under their topic.")
        sent = CounterMetricFamily("windrow_publish_sent_messages", "Messages Kafka has.", labels=["topic"])
        lost = CounterMetricFamily(
            "windrow_publish_lost_messages",
            "Messages that Kafka never will have.",
            labels=["topic", "reason"],
        )
        waiting = GaugeMetricFamily(
            "windrow_publish_waiting_messages", "Messages that Kafka may not have.", labels=["topic"]
        )
        spooled = GaugeMetricFamily(
            "windrow_publish_spooled_messages", "Messages that wait on disk.", labels=["topic"]
        )
        spooled_bytes = GaugeMetricFamily(
            "windrow_publish_spooled_bytes", "What waits on disk takes there.", labels=["topic"]
        )
        state = self._state()
        connected.add_metric([], state.connected)
        disk.add_metric([], bool(state.disk))
        queued.add_metric([], state.queued)
        for topic in state.topics:
            sent.add_metric([topic.topic], topic.sent)
            waiting.add_metric([topic.topic], topic.waiting)
            spooled.add_metric([topic.topic], topic.spooled)
            spooled_bytes.add_metric([topic.topic], topic.spooled_bytes)
            for reason, count in topic.lost.items():
                lost.add_metric([topic.topic, reason], count)
        yield from (connected, disk, queued, sent, lost, waiting, spooled, spooled_bytes)
