"""The only module that reads a clock. Everything else is handed `now`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from schemas.instants import Instant


class Clock(Protocol):
    """Where `now` comes from, and how to wait for later."""

    def now(self) -> Instant:
        """Event time now, milliseconds since the epoch. May step when the machine's clock is set."""

    def monotonic(self) -> float:
        """Seconds that never step: for deadlines and for timing work."""

    def sleep_until(self, at: Instant) -> None:
        """Return at or after `at`."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> Instant:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep_until(self, at: Instant) -> None:
        # In slices, so that a clock set forward or back is noticed within half a second.
        while (left := at - self.now()) > 0:
            time.sleep(min(left / 1000, 0.5))


class SimulatedClock:
    """Time that passes when told to: waiting advances the plant through `advance(until)`."""

    def __init__(self, start: Instant, advance: Callable[[Instant], None] | None = None) -> None:
        self._now = start
        self._advance = advance

    def now(self) -> Instant:
        return self._now

    def monotonic(self) -> float:
        return self._now / 1000

    def sleep_until(self, at: Instant) -> None:
        if at > self._now:
            if self._advance is not None:
                self._advance(at)
            self._now = at
