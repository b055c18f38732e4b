"""When a row is beaten: on the grid of its policy's period, and at once when something cannot wait."""

from __future__ import annotations

import zlib

from controllers.policy import CappingPolicy
from schemas.envelope import Event
from schemas.instants import Instant, Span
from schemas.samples import FeedSample, UpsSample
from schemas.topology import Row


def phase_of(row: str, period: Span) -> Span:
    """A row's own place in a period. Where one process does something for each of many rows, all of them at
    once would wait for each other, and what cannot wait behind them."""
    return zlib.crc32(row.encode()) % period


class Metronome:
    """One row's beats. It keeps no state that a beat's result depends on: two hosts with the same ticks say
    the same, whenever their metronomes would have had them beat.

    `dirty` says that the row has heard what cannot wait: a UPS on battery or unhealthy, its meter above
    its budget or with an open breaker. `phase_ms` shifts the grid (see `phase_of`).
    """

    def __init__(self, row: Row, policy: CappingPolicy, phase_ms: Span = 0) -> None:
        self.dirty = False
        self._period = policy.period_ms
        self._phase = phase_ms
        self._budget_w = row.budget_w
        self._meters = frozenset(row.meters)
        self._next: Instant = 0
        self._last: Instant = -1

    def hear(self, event: Event) -> None:
        """The row was told something."""
        self.dirty = self.dirty or self._cannot_wait(event)

    def due(self, now: Instant) -> bool:
        """Whether to beat now: the period has passed, or the row is dirty. Never twice in one millisecond;
        a clock that was set back does not silence a row."""
        set_back = now < self._last - self._period
        return now >= self._next or set_back or (self.dirty and now > self._last)

    def next_beat(self, now: Instant) -> Instant:
        """When the row is due next; now, while it is dirty."""
        return now if self.dirty else max(now, self._next)

    def beaten(self, at: Instant) -> None:
        """The row had its beat."""
        into = (at - self._phase) % self._period
        self._next = at - into + self._period  # on the grid, so that beats do not drift
        self._last = at
        self.dirty = False

    def _cannot_wait(self, event: Event) -> bool:
        if isinstance(event, UpsSample):
            return event.on_battery is True or event.healthy is False
        if isinstance(event, FeedSample) and event.subject in self._meters:
            return event.breaker_closed is False or (event.power_w or 0.0) > self._budget_w
        return False
