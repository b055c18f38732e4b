"""Judging readings before anything is summed: what is withheld, and the word for why.

========== ==================================================================================
verdict     a reading is withheld because
========== ==================================================================================
lost        the device reported a fault, or no value
impossible  it is not finite, below zero, exactly zero from a powered device (zero-filled), or
            above 1.5 times the device's rating
stuck       it repeats to the last bit while something that must move it moves (`Stillness`)
stale       it is older than its budget
late        its source has already said something newer (messages; `SourceClocks`)
repeated    the message has been seen before
========== ==================================================================================

and one that is kept: ``future``, a message dated ahead of the tick by more than the tolerance,
which counts as read at the tick.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.instants import MINUTE, Instant, Span
from schemas.units import FloatArray, Reading

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Pick: TypeAlias = slice | IntArray
"""Which devices of the first axis: all of them, or these."""

NEVER: Instant = -(1 << 62)
"""Earlier than any event: a source not heard of yet."""


LEAST_W = 0.001
"""Below a milliwatt, the finest that any power sensor here resolves, a reading is a zero."""

FEW_SAMPLES = 4
"""Fewer samples of a tick say little of a board that alternates between prompts and tokens (our choice)."""


class QualityRules(msgspec.Struct, frozen=True, kw_only=True):
    """When a reading is withheld. All figures are our choice unless a source is named.

    `gpu_stale_ms`: five missed publish ticks at 1 Hz, half of the ~10 s UPS failover deadline
    (secondary). `wall_stale_ms`: two of the slowest interval of out-of-band server power, 1-5 s
    (recalled). `meter_stale_ms`: two and a half of the row meter's 2 s readings (recalled).
    `mean_ms` is the span that GPU samples are averaged over, that of one row reading.
    `ceiling_ratio` is of a board's TDP or of a nameplate: short excursions above TDP are real, half
    as much again is not. `future_ms` is how far ahead of the tick a clock may run unremarked.
    `still_samples` and `still_ms` must both pass before an unchanging value is stuck, and its
    witness must have moved by `util_move_ratio`, `clock_move_mhz`, or `power_move_ratio` of the
    rating: a real idle board read in whole watts repeated itself 15 times at 1 Hz with its
    utilisation and clock at rest (measured: one H100 in recorded vLLM runs).
    `loaded_ratio` of idle power is where a board counts as at work. `set_back_ms` is how long a source
    must be only late, at the pace of the clock, to be taken at its new word.
    `contradiction_ratio`: a meter below this share of what is measured inside the row lies; a GPU's
    power sensor has a fixed gain error of up to 5 % (secondary). `meter_doubt_ratio`: nor is a meter
    believed below this share of the sum of hosts, which models what is not GPU: 5 % of gain error and
    an eighth of error in the modelled half of a server make 12 %. `meter_doubt_ticks` in a row must
    say so, and as many the contrary: meter and hosts are not read at one instant.
    `coverage_ratio`: below it a row is unknown; more than 20 % missing makes a domain invalid
    (recalled, from Meta's Dynamo).
    """

    gpu_stale_ms: Span = 5_000
    wall_stale_ms: Span = 10_000
    meter_stale_ms: Span = 5_000
    mean_ms: Span = 2_000
    ceiling_ratio: float = 1.5
    future_ms: Span = 1_000
    still_samples: int = 20
    still_ms: Span = 20_000
    util_move_ratio: float = 0.2
    clock_move_mhz: float = 100.0
    power_move_ratio: float = 0.1
    loaded_ratio: float = 2.0
    set_back_ms: Span = 6_000
    contradiction_ratio: float = 0.95
    meter_doubt_ratio: float = 0.88
    meter_doubt_ticks: int = 3
    coverage_ratio: float = 0.8


def plausible(power_w: FloatArray, ceiling_w: FloatArray | float) -> BoolArray:
    """Which powers a powered device can have: from LEAST_W to `ceiling_w` (broadcast).

    NaN and infinities are not plausible.
    """
    held: BoolArray = (power_w >= LEAST_W) & (power_w <= ceiling_w)
    return held


class InOrder:
    """One source whose messages are taken in the order of their time.

    A repeated or late message is not taken. Three late ones in a row, each newer than the one before
    and all more than a minute late, mean that the source's clock was set back: from there on it is
    taken at its word. A broker that delivers again goes back to its last commit, seconds ago; after a
    clock was set back by less than a minute the source is heard again when it has caught up.
    """

    __slots__ = ("_late", "_run", "at")

    def __init__(self) -> None:
        self.at: Instant = NEVER
        self._late: Instant = NEVER
        self._run = 0

    def take(self, at: Instant) -> bool:
        """Whether the message at `at` is news."""
        if at <= self.at:
            if at >= self.at - MINUTE:
                self._run = 0
                return False
            self._run = self._run + 1 if at > self._late else 1
            self._late = at
            if self._run < 3:
                return False
        self.at, self._late, self._run = at, NEVER, 0
        return True


class SourceClocks:
    """How far n sources have come, each by its own clock, and what that is by the tick's.

    `accept` takes messages in the order of the source's own time. A source that is only ever late,
    for `set_back_ms` of ticks and at about the pace of the ticks, has had its clock set back (or had
    sent one message from the future): `settle` then takes it at its new word and remembers the
    shift. The pace tells it from a backlog delivered again, which comes in a burst.
    """

    __slots__ = ("_late", "_shift", "seen")

    def __init__(self, n: int) -> None:
        self.seen: list[Instant] = [NEVER] * n
        self._shift: list[Span] = [0] * n
        # Sources in a run of late messages: the run's first, the tick it is timed from, its latest.
        self._late: dict[int, tuple[Instant, Instant, Instant]] = {}

    def accept(self, source: int, at: Instant) -> str:
        """Empty when the message at `at` is news, else the verdict on it."""
        seen = self.seen[source]
        if at > seen:
            self.seen[source] = at
            if self._late:
                self._late.pop(source, None)
            return ""
        if at == seen:
            return "repeated"
        first, tick, last = self._late.get(source, (at, NEVER, NEVER))
        if at > last:
            self._late[source] = (first, tick, at)
        return "late"

    def read_at(self, source: int, now: Instant, rules: QualityRules) -> tuple[Instant, bool]:
        """When the source was last read, at most `now`, and whether its own word was the future."""
        at = self.seen[source] + self._shift[source]
        if at <= now:
            return at, False
        if at <= now + rules.future_ms:
            return now, False
        if self._shift[source]:  # its clock has been put right again
            self._shift[source] = 0
            return self.read_at(source, now, rules)
        return now, True

    def settle(self, now: Instant, rules: QualityRules) -> int:
        """At a tick: take the clocks that were set back at their word; how many."""
        taken = 0
        for source, (first, since, last) in list(self._late.items()):
            if since == NEVER:
                self._late[source] = (last, now, last)
            elif (elapsed := now - since) >= rules.set_back_ms:
                if abs((last - first) - elapsed) <= elapsed // 2:
                    lag = now - last
                    self.seen[source] = last
                    self._shift[source] = lag if lag > rules.future_ms else 0
                    del self._late[source]
                    taken += 1
                else:
                    self._late[source] = (last, now, last)
        return taken

    def forget(self, source: int) -> None:
        """Another device speaks in this one's place, by a clock of its own."""
        self.seen[source], self._shift[source] = NEVER, 0
        self._late.pop(source, None)

    def rewind(self, now: Instant, rules: QualityRules) -> None:
        """The ticks' clock was set back to `now`: what a source said that is yet to come no longer
        makes its next word a late one."""
        self._late.clear()
        for source, seen in enumerate(self.seen):
            if seen + self._shift[source] > now + rules.future_ms:
                self.seen[source], self._shift[source] = NEVER, 0


class Stillness:
    """Which devices repeat one value to the last bit while a witness says that it must move.

    A constant reading alone proves nothing: a real board at rest may repeat itself for as long as
    it rests. Each device has witnesses (its utilisation, its clock, the power beside it); the
    widest swing of each over the run of equal values is kept, unknown witnesses swing nothing.
    Arrays have the devices' shape, witnesses one axis in front of it.
    """

    __slots__ = ("_sworn", "count", "held", "high", "low", "since")

    def __init__(self, shape: tuple[int, ...], witnesses: int) -> None:
        self.held: FloatArray = np.full(shape, np.nan)
        self.count: IntArray = np.zeros(shape, np.int64)
        self.since: IntArray = np.full(shape, NEVER, np.int64)
        self.low: FloatArray = np.full((witnesses, *shape), np.nan)
        self.high: FloatArray = np.full((witnesses, *shape), np.nan)
        self._sworn: IntArray = np.full(shape, NEVER, np.int64)  # the run that the witnesses speak of

    def extend(
        self, pick: Pick, at: IntArray, samples: IntArray, low: FloatArray, high: FloatArray
    ) -> BoolArray:
        """Take a tick's readings of the picked devices: when, how many, the lowest and the highest.

        Returns which of them go on with their run; hand their witnesses to `testify`. A device
        without a reading keeps its run.
        """
        flat: BoolArray = low == high  # never so where there is no reading
        going: BoolArray = flat & (low == self.held[pick])
        starts = (samples > 0) & ~going
        self.count[pick] = np.where(starts, samples, self.count[pick] + samples)
        self.since[pick] = np.where(starts, at, self.since[pick])
        self.held[pick] = np.where(starts, np.where(flat, low, np.nan), self.held[pick])
        return going

    def testify(self, pick: Pick, going: BoolArray, low: FloatArray, high: FloatArray) -> None:
        """Widen the witnesses' swing where the run goes on."""
        since, sworn = self.since[pick], self._sworn[pick]
        known = sworn == since
        old_low, old_high = self.low[:, pick], self.high[:, pick]
        self.low[:, pick] = np.where(going, np.where(known, np.fmin(old_low, low), low), old_low)
        self.high[:, pick] = np.where(going, np.where(known, np.fmax(old_high, high), high), old_high)
        self._sworn[pick] = np.where(going, since, sworn)

    def rewind(self, step: Span) -> None:
        """The ticks' clock was moved by `step`: the runs go on."""
        for since in (self.since, self._sworn):
            since[since != NEVER] += step

    def stuck(self, at: IntArray, moves: FloatArray | float, rules: QualityRules) -> BoolArray:
        """Devices last read at `at` with a run long enough, in samples and in time, over which a
        witness swung by `moves` (broadcast against the witnesses) or more."""
        long: BoolArray = (self.count >= rules.still_samples) & (at - self.since >= rules.still_ms)
        if np.count_nonzero(long):
            long &= (self._sworn == self.since) & np.any(self.high - self.low >= moves, axis=0)
        return long


class Repeats:
    """`Stillness` of one device that has one witness, in plain numbers: a row has a meter or a few, for
    which arrays cost ten times what they save."""

    __slots__ = ("_sworn", "count", "held", "high", "low", "since")

    def __init__(self) -> None:
        self.held = math.nan
        self.count = 0
        self.since: Instant = NEVER
        self.low = self.high = math.nan
        self._sworn = False  # whether the witness has spoken of this run, if only to say nothing

    def extend(self, at: Instant, value: float, beside: Reading) -> None:
        """Take a reading, and what the witness read beside it."""
        if value != self.held:
            self.held, self.since, self.count, self._sworn = value, at, 1, False
            return
        self.count += 1
        if not self._sworn:
            self.low = self.high = math.nan
            self._sworn = True
        if beside is not None and beside == beside:  # NaN tells nothing either
            self.low, self.high = min(beside, self.low), max(beside, self.high)

    def rewind(self, step: Span) -> None:
        """The ticks' clock was moved by `step`: the run goes on."""
        if self.since != NEVER:
            self.since += step

    def stuck(self, at: Instant, move: float, rules: QualityRules) -> bool:
        """Whether the run, last read at `at`, is long enough and the witness swung by `move` over it."""
        if self.count < rules.still_samples or at - self.since < rules.still_ms:
            return False
        return self._sworn and self.high - self.low >= move
