"""A row's emergencies of power: too much of it, a UPS that fails over, a feed cut off, and not knowing.

overload        the row draws more than its budget
failover        a UPS that feeds the row is on battery or unhealthy, or carries more than its rating
                (another's share fell on it): the deadline until it gives up is ~10 s, so it is
                raised on the sample itself, whatever the row draws
supply_loss     a feed of the row says that its breaker is open: what it carried falls on the others
telemetry_loss  the row's power has been unknown for longer than the staleness budget

Each has a life of its own under one episode id. What is unknown clears nothing. A sample that tells of
trouble counts whatever its time says: only that all is well must be newer than what came before.
Rollups count in the order in which they come, since the clock that dates them may be set.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from schemas.emergencies import Emergency, EmergencyKind, Phase
from schemas.envelope import Event
from schemas.instants import SECOND, Instant, Span
from schemas.samples import FeedSample, PowerRollup, UpsSample
from schemas.topology import Row
from schemas.units import Reading
from streams.detect.hysteresis import Band, Hysteresis
from streams.quality import NEVER, InOrder


class OverloadLimits(msgspec.Struct, frozen=True, kw_only=True):
    """When trouble is said, as shares of the row's budget and in milliseconds.

    `raise_above`: POLCA brakes above 1.00 (secondary). The rest is our choice: `escalate_above`, and
    `persist_ms`, half of the ~10 s UPS failover deadline (secondary), since the slowest brake needs
    the other half (5 s, published); `clear_below` and `clear_ms`, one such deadline below the budget
    with room for the noise of a reading. `failover_clear_ms`: how long a UPS must be well again.
    `unknown_ms`: staleness budget of the row's power, escalated at twice that (safe mode is due by
    then); `known_rollups` known ones in a row end it. `gap_ms`: two and a half periods of 2 s.
    """

    raise_above: float = 1.0
    escalate_above: float = 1.05
    clear_below: float = 0.97
    persist_ms: Span = 5 * SECOND
    clear_ms: Span = 10 * SECOND
    failover_clear_ms: Span = 10 * SECOND
    unknown_ms: Span = 5 * SECOND
    known_rollups: int = 3
    gap_ms: Span = 5 * SECOND


class UpsTrouble:
    """One UPS: its episode, what was wrong during it, and since when all of that is right again."""

    __slots__ = ("episode", "heard", "well_since", "wrong")

    def __init__(self) -> None:
        self.heard = InOrder()
        self.episode = ""
        self.wrong: set[str] = set()
        self.well_since: Instant | None = None


class FeedTrouble:
    """One feed: its episode, and how far it was heard."""

    __slots__ = ("episode", "heard")

    def __init__(self) -> None:
        self.heard = InOrder()
        self.episode = ""


class OverloadState:
    """The troubles of one row and what they wait for."""

    __slots__ = (
        "feeds",
        "known_at",
        "known_run",
        "loss",
        "loss_phase",
        "overload",
        "overload_level",
        "rolled_at",
        "upses",
    )

    def __init__(self) -> None:
        self.rolled_at: Instant = NEVER
        self.overload = ""  # episodes: empty when there is none
        self.overload_level = Hysteresis()
        self.loss = ""
        self.loss_phase: Phase = "cleared"
        self.known_at: Instant | None = None  # or when listening began
        self.known_run = 0
        self.upses: dict[str, UpsTrouble] = {}
        self.feeds: dict[str, FeedTrouble] = {}


class OverloadDetector:
    """PowerRollup, UpsSample and FeedSample in, Emergency out; others pass unread.

    The subject of every emergency is the row; which UPS or feed failed stands in `because` and
    `source`. A row whose racks and meters name feeds listens to the UPSes above them, another to any
    UPS of its site.
    """

    def __init__(self, row: Row, limits: OverloadLimits | None = None) -> None:
        self._row = row
        self._limits = limits = limits or OverloadLimits()
        self._band = Band(
            raise_above=limits.raise_above,
            escalate_above=limits.escalate_above,
            clear_below=limits.clear_below,
            persist_ms=limits.persist_ms,
            hold_ms=limits.clear_ms,
            gap_ms=limits.gap_ms,
        )
        self._feeds = {feed for rack in row.racks for feed in rack.feeds} | set(row.meters)
        self._upses = {"/".join(path.split("/")[:2]) for path in self._feeds}

    def key(self, event: Event) -> str:
        """The row."""
        return self._row.path

    def initial(self) -> OverloadState:
        """All quiet, nothing heard."""
        return OverloadState()

    def step(self, state: OverloadState, events: Sequence[Event]) -> tuple[OverloadState, list[Emergency]]:
        """Take the events in; what they raise, escalate and clear."""
        out: list[Emergency] = []
        for event in events:
            if type(event) is PowerRollup:
                if event.subject == self._row.path and event.at != state.rolled_at:
                    state.rolled_at = event.at
                    self._take_rollup(state, event, out)
            elif type(event) is UpsSample and self._listens_to(event.subject):
                self._take_ups(state, event, out)
            elif type(event) is FeedSample and event.subject in self._feeds:
                self._take_feed(state, event, out)
        return state, out

    def _dated(self, state: OverloadState, event: Event) -> Instant:
        """When a sample was taken: hardly after the next rollup, whatever its own clock says."""
        if state.rolled_at == NEVER:
            return event.at
        return min(event.at, state.rolled_at + self._limits.gap_ms)

    # -- overload ---------------------------------------------------------------------------------

    def _take_rollup(self, state: OverloadState, rollup: PowerRollup, out: list[Emergency]) -> None:
        power_w, budget_w = rollup.power_w, rollup.budget_w
        used = None if power_w is None else power_w / budget_w
        phase = state.overload_level.step(rollup.at, used, self._band)
        if phase is not None and power_w is not None:
            limits = self._limits
            if phase == "raised":
                words = "above its budget"
            elif phase == "cleared":
                words = f"below {limits.clear_below:.0%} of its budget for {limits.clear_ms / SECOND:g} s"
            elif power_w > limits.escalate_above * budget_w:
                words = f"above {limits.escalate_above:.0%} of its budget"
            else:
                words = f"above its budget for {limits.persist_ms / SECOND:g} s"
            because = f"{self._row.path} draws {power_w / 1000:.1f} kW of {budget_w / 1000:.1f} kW: {words}"
            said = self._say(rollup, "overload", phase, because, state.overload, power_w, budget_w)
            state.overload = "" if phase == "cleared" else said.episode
            out.append(said)
        self._take_knowledge(state, rollup, out)

    # -- telemetry loss ---------------------------------------------------------------------------

    def _take_knowledge(self, state: OverloadState, rollup: PowerRollup, out: list[Emergency]) -> None:
        limits = self._limits
        coverage = rollup.coverage_ratio
        phase: Phase
        if rollup.power_w is not None:
            state.known_at, state.known_run = rollup.at, state.known_run + 1
            if state.loss_phase == "cleared" or state.known_run < limits.known_rollups:
                return
            phase, because = "cleared", f"power known again for {state.known_run} readings"
        else:
            state.known_run = 0
            if (
                state.known_at is None or rollup.at < state.known_at
            ):  # listening began, or the clock was set back
                state.known_at = rollup.at
            unknown_ms = rollup.at - state.known_at
            if state.loss_phase == "cleared" and unknown_ms > limits.unknown_ms:
                phase = "raised"
            elif state.loss_phase == "raised" and unknown_ms > 2 * limits.unknown_ms:
                phase = "escalated"
            else:
                return
            because = f"power unknown for {unknown_ms / SECOND:g} s, {coverage:.0%} of nameplate is read"
        because = f"{self._row.path}: {because}"
        said = self._say(rollup, "telemetry_loss", phase, because, state.loss, coverage, None)
        state.loss, state.loss_phase = ("" if phase == "cleared" else said.episode), phase
        out.append(said)

    # -- failover ---------------------------------------------------------------------------------

    def _listens_to(self, ups: str) -> bool:
        if self._upses:
            return ups in self._upses
        return ups.split("/")[0] == self._row.path.split("/")[0]

    def _take_ups(self, state: OverloadState, sample: UpsSample, out: list[Emergency]) -> None:
        ups = state.upses.get(sample.subject)
        if ups is None:
            ups = state.upses[sample.subject] = UpsTrouble()
        before, at = ups.heard.at, self._dated(state, sample)
        limits, load = self._limits, sample.load_ratio
        wrong = {words for words, holds in _wrong(sample).items() if holds}
        news = ups.heard.take(at)
        if wrong:
            ups.well_since = None
            ups.wrong |= wrong
            if not ups.episode:
                because = f"{sample.subject} is {' and '.join(sorted(wrong))}"
                said = self._say(sample, "failover", "raised", because, "", load, 1.0, at)
                ups.episode = said.episode
                out.append(said)
        elif ups.episode and news:
            # Well is what it says of each thing that was wrong, not what it leaves out.
            right = _wrong(sample)
            if any(right[words] is None for words in ups.wrong):
                ups.well_since = None
                return
            if ups.well_since is None or not 0 <= at - before <= limits.failover_clear_ms:
                ups.well_since = at
            if at - ups.well_since >= limits.failover_clear_ms:
                held_s = limits.failover_clear_ms / SECOND
                because = f"{sample.subject} is no longer {' or '.join(sorted(ups.wrong))}, for {held_s:g} s"
                out.append(self._say(sample, "failover", "cleared", because, ups.episode, load, 1.0, at))
                ups.episode, ups.wrong, ups.well_since = "", set(), None

    # -- supply loss ------------------------------------------------------------------------------

    def _take_feed(self, state: OverloadState, sample: FeedSample, out: list[Emergency]) -> None:
        if sample.breaker_closed is None:
            return
        feed = state.feeds.get(sample.subject)
        if feed is None:
            feed = state.feeds[sample.subject] = FeedTrouble()
        at = self._dated(state, sample)
        news = feed.heard.take(at)
        phase: Phase
        if not sample.breaker_closed and not feed.episode:
            phase, because = "raised", f"{sample.subject} says that its breaker is open"
        elif sample.breaker_closed and feed.episode and news:
            phase, because = "cleared", f"{sample.subject} says that its breaker is closed again"
        else:
            return
        said = self._say(sample, "supply_loss", phase, because, feed.episode, sample.power_w, None, at)
        feed.episode = "" if phase == "cleared" else said.episode
        out.append(said)

    def _say(
        self,
        event: Event,
        kind: EmergencyKind,
        phase: Phase,
        because: str,
        episode: str,
        value: Reading,
        limit: Reading,
        at: Instant | None = None,
    ) -> Emergency:
        place = event.subject  # the row, or the UPS or feed in trouble
        return Emergency(
            at=event.at if at is None else at,
            source=f"streams/detect/overload/{place}",
            subject=self._row.path,
            cause=(event.id,),
            kind=kind,
            phase=phase,
            because=because,
            episode=episode,
            value=value,
            limit=limit,
        )


def _wrong(sample: UpsSample) -> dict[str, bool | None]:
    """What can be wrong with a UPS, and whether it is; None where the sample does not say."""
    return {
        "on battery": sample.on_battery,
        "unhealthy": None if sample.healthy is None else not sample.healthy,
        "above its rating": None if sample.load_ratio is None else sample.load_ratio > 1.0,
    }
