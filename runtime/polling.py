"""Polling: collectors asked when they are due, inline or each on a thread of its own.

Inline is for simulated time and for sources that cannot hang. On a real machine a driver call may
never return: a thread per collector keeps one hung device from silencing the rest, and what it does
not say grows stale, which the streams see.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence

import msgspec

from collectors.base import Collector, CollectorError
from runtime.clock import Clock
from runtime.config import HostConfig
from runtime.registry import collector
from schemas.envelope import Event
from schemas.instants import SECOND, Instant
from schemas.topology import Site

_LOG = logging.getLogger(__name__)


class SourceState(msgspec.Struct, frozen=True):
    """How one collector fares: `answered_at` is its last poll that worked (None: never), `asking_since`
    that of a poll under way (None: none is), `away` why the last one failed, empty when it did not.
    `failures` counts failed polls, `dropped` messages that nobody gathered in time."""

    name: str
    answered_at: Instant | None
    asking_since: Instant | None
    away: str
    failures: int
    dropped: int = 0


class _Due:
    """One collector, when it is due next on the grid of its period, and how it fares."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.at: Instant = 0
        self.polled_at: Instant | None = None
        self.answered_at: Instant | None = None
        self.asking_since: Instant | None = None
        self.away = ""
        self.failures = 0

    def is_due(self, now: Instant) -> bool:
        """Its period has passed, or the clock was set back behind the last poll."""
        return now >= self.at or (self.polled_at is not None and now < self.polled_at)

    def poll(self, now: Instant) -> Sequence[Event]:
        """What the collector read. Whatever it raises is said, counted and ends here."""
        period = self.collector.period_ms
        self.at = now - now % period + period
        self.polled_at = self.asking_since = now
        try:
            events = self.collector.poll(now)
        except CollectorError as error:
            self._failed(str(error))
            return ()
        except Exception as error:  # a fault in one adapter must not silence the rest
            self._failed(f"{type(error).__name__}: {error}", fault=error)
            return ()
        finally:
            self.asking_since = None
        self.answered_at = now
        if self.away:
            self.away = ""
            _LOG.warning("%s answers again", self.collector.name)
        return events

    def _failed(self, why: str, fault: Exception | None = None) -> None:
        self.failures += 1
        if why != self.away:  # said once, not at every poll
            self.away = why
            _LOG.error("%s: %s", self.collector.name, why, exc_info=fault)

    def close(self) -> None:
        try:
            self.collector.close()
        except Exception:
            _LOG.exception("%s: could not be closed", self.collector.name)

    def state(self, dropped: int = 0) -> SourceState:
        return SourceState(
            self.collector.name, self.answered_at, self.asking_since, self.away, self.failures, dropped
        )


class InlineSamples:
    """Collectors polled in turn by the caller."""

    def __init__(self, collectors: Sequence[Collector]) -> None:
        self._due = [_Due(collector) for collector in collectors]

    def gather(self, now: Instant) -> list[Event]:
        """Poll what is due at `now`."""
        events: list[Event] = []
        for due in self._due:
            if due.is_due(now):
                events.extend(due.poll(now))
        return events

    def next_poll(self, now: Instant) -> Instant:
        """When the next collector is due."""
        return min((due.at for due in self._due), default=now + SECOND)

    def states(self) -> tuple[SourceState, ...]:
        """How each collector fares."""
        return tuple(due.state() for due in self._due)

    def close(self) -> None:
        """Close every collector."""
        for due in self._due:
            due.close()


class _Watch:
    """One collector's thread and what it has read since anybody gathered."""

    def __init__(self, collector: Collector, clock: Clock, stop: threading.Event, latest: int) -> None:
        self.due = _Due(collector)
        self.dropped = 0
        self._clock = clock
        self._stop = stop
        self._events: deque[Event] = deque(maxlen=latest)
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, name=f"poll {collector.name}", daemon=True)

    def _run(self) -> None:
        due = self.due
        while not self._stop.is_set():
            self._put(due.poll(self._clock.now()))
            # Never longer than a period, however the clock was set meanwhile.
            left = min(due.at - self._clock.now(), due.collector.period_ms)
            self._stop.wait(max(0, left) / 1000)
        due.close()

    def _put(self, events: Sequence[Event]) -> None:
        with self._lock:
            room = self._events.maxlen or 0
            self.dropped += max(0, len(self._events) + len(events) - room)
            self._events.extend(events)

    def take(self) -> list[Event]:
        with self._lock:
            taken = list(self._events)
            self._events.clear()
        return taken


class ThreadedSamples:
    """Collectors polled by a daemon thread each; `gather` takes what has come and never waits.

    Each collector keeps its `LATEST` messages while nobody gathers: beyond them the oldest are dropped
    and counted, for stale telemetry is worth little and memory is not endless.
    """

    LATEST = 1_000
    CLOSING_S = 1.0

    def __init__(self, collectors: Sequence[Collector], clock: Clock) -> None:
        self._clock = clock
        self._stop = threading.Event()
        self._watches = [_Watch(collector, clock, self._stop, self.LATEST) for collector in collectors]
        for watch in self._watches:
            watch.thread.start()

    def gather(self, now: Instant) -> list[Event]:
        """What has come since the last call."""
        return [event for watch in self._watches for event in watch.take()]

    def next_poll(self, now: Instant) -> Instant:
        """Look again soon: a sample may arrive at any time."""
        return now + 10

    def states(self) -> tuple[SourceState, ...]:
        """How each collector fares."""
        return tuple(watch.due.state(watch.dropped) for watch in self._watches)

    def close(self) -> None:
        """Stop the threads; those that hang in a driver are left behind, as daemons, after a second."""
        self._stop.set()
        until = self._clock.monotonic() + self.CLOSING_S
        for watch in self._watches:
            watch.thread.join(timeout=max(0.0, until - self._clock.monotonic()))


def sampled(config: HostConfig, site: Site, clock: Clock) -> ThreadedSamples:
    """The collectors that a configuration names, polled from here on. Raises CollectorError where the
    library of one is not installed, ConfigError where there are none."""
    collectors = [
        collector(entry.kind, site.hosts[entry.host], period_ms=entry.period_ms, sample_ms=entry.sample_ms)
        for entry in config.sources()
    ]
    return ThreadedSamples(collectors, clock)
