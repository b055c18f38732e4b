"""Polling: collectors asked when they are due, inline or each on a thread of its own.

Inline is for simulated time and for sources that cannot hang. On a real machine a driver call may
never return: a thread per collector keeps one hung device from silencing the rest, and what it does
not say grows stale, which the streams see.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence

from collectors.base import Collector, CollectorError
from runtime.clock import Clock
from schemas.envelope import Event
from schemas.instants import Instant

_LOG = logging.getLogger(__name__)


class _Due:
    """One collector and when it is due next, on the grid of its period."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.at: Instant = 0
        self.away = ""

    def poll(self, now: Instant) -> Sequence[Event]:
        period = self.collector.period_ms
        self.at = now - now % period + period
        try:
            events = self.collector.poll(now)
        except CollectorError as error:
            if str(error) != self.away:  # said once, not at every poll
                self.away = str(error)
                _LOG.error("%s: %s", self.collector.name, error)
            return ()
        if self.away:
            self.away = ""
            _LOG.warning("%s answers again", self.collector.name)
        return events


class InlineSamples:
    """Collectors polled in turn by the caller."""

    def __init__(self, collectors: Sequence[Collector]) -> None:
        self._due = [_Due(collector) for collector in collectors]

    def gather(self, now: Instant) -> list[Event]:
        """Poll what is due at `now`."""
        events: list[Event] = []
        for due in self._due:
            if now >= due.at:
                events.extend(due.poll(now))
        return events

    def next_poll(self, now: Instant) -> Instant:
        """When the next collector is due."""
        return min((due.at for due in self._due), default=now + 1_000)

    def close(self) -> None:
        """Close every collector."""
        for due in self._due:
            due.collector.close()


class ThreadedSamples:
    """Collectors polled by a daemon thread each; `gather` takes what has come and never waits.

    `latest` bounds how much may queue while nobody gathers: beyond it the oldest is dropped and
    counted in `dropped`, for stale telemetry is worth little and memory is not endless.
    """

    LATEST = 10_000

    def __init__(self, collectors: Sequence[Collector], clock: Clock) -> None:
        self._clock = clock
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stop = threading.Event()
        self.arrived = threading.Event()
        self.dropped = 0
        self._threads = [
            threading.Thread(target=self._watch, args=(_Due(collector),), name=collector.name, daemon=True)
            for collector in collectors
        ]
        for thread in self._threads:
            thread.start()

    def _watch(self, due: _Due) -> None:
        while not self._stop.is_set():
            for event in due.poll(self._clock.now()):
                self._events.put(event)
            self.arrived.set()
            self._stop.wait(max(0.0, (due.at - self._clock.now()) / 1000))
        due.collector.close()

    def gather(self, now: Instant) -> list[Event]:
        """What has come since the last call."""
        self.arrived.clear()
        events: list[Event] = []
        while not self._events.empty():
            events.append(self._events.get())
        if len(events) > self.LATEST:
            self.dropped += len(events) - self.LATEST
            del events[: len(events) - self.LATEST]
        return events

    def next_poll(self, now: Instant) -> Instant:
        """Look again soon: a sample may arrive at any time."""
        return now + 10

    def close(self) -> None:
        """Stop the threads; one that hangs in its driver is left behind, as a daemon."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=1.0)
