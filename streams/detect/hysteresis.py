"""One trouble's life: raised when a value passes a level, cleared below a lower one, held.

    quiet ──value > raise_above──> raised ──> quiet   value < clear_below, without a break, for hold_ms
                                     │ value > escalate_above, or > raise_above for persist_ms
                                     └──> escalated ──> quiet   likewise

Between the two levels nothing is said, so a value that swings there makes no noise. What is unknown
says nothing either: it raises nothing, clears nothing, and breaks both waits.
"""

from __future__ import annotations

import msgspec

from schemas.emergencies import Phase
from schemas.instants import Instant, Span
from schemas.units import Reading


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """The levels and the waits of one trouble; `gap_ms` is how far apart two values may be and still
    vouch for the time between them."""

    raise_above: float
    escalate_above: float
    clear_below: float
    persist_ms: Span
    hold_ms: Span
    gap_ms: Span

    def __post_init__(self) -> None:
        if not self.clear_below <= self.raise_above <= self.escalate_above:
            raise ValueError(
                f"levels {self.clear_below}, {self.raise_above}, {self.escalate_above}: "
                "clear must not be above raise, nor raise above escalate"
            )


class Hysteresis:
    """Where one trouble stands. Values come in the order of their time."""

    __slots__ = ("_above_since", "_at", "_below_since", "phase")

    def __init__(self) -> None:
        self.phase: Phase = "cleared"
        self._at: Instant | None = None
        self._above_since: Instant | None = None
        self._below_since: Instant | None = None

    def step(self, at: Instant, value: Reading, band: Band) -> Phase | None:
        """The phase that `value` at `at` moves it to, None when it stays."""
        if value is None or value != value:
            self._at = self._above_since = self._below_since = None
            return None
        if self._at is not None and not 0 <= at - self._at <= band.gap_ms:
            self._above_since = self._below_since = None
        self._at = at
        above, below = value > band.raise_above, value < band.clear_below
        self._above_since = (at if self._above_since is None else self._above_since) if above else None
        self._below_since = (at if self._below_since is None else self._below_since) if below else None
        if self.phase == "cleared":
            return self._move("raised") if above else None
        if self._below_since is not None and at - self._below_since >= band.hold_ms:
            return self._move("cleared")
        if self.phase == "raised" and (
            value > band.escalate_above
            or (self._above_since is not None and at - self._above_since >= band.persist_ms)
        ):
            return self._move("escalated")
        return None

    def _move(self, phase: Phase) -> Phase:
        self.phase = phase
        return phase
