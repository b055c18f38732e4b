"""A row's whole loop: samples and outcomes in, decisions and commands out, on one partition.

    samples ─► rollup ─► forecast ─► detect ─┐
    outcomes, operators ─────────────────────┴► view ─► decide ─► arbitrate ─► guard ─► reconcile ─► commands

It is a keyed fold like the processors it is made of: the same events and beats give the same
messages in every host, however they were cut into batches. It reads no clock; time is the beat's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from controllers import capping
from controllers.arbitration import arbitrate
from controllers.guardrails import guard
from controllers.policy import CappingPolicy
from controllers.reconcile import reconcile, standing
from controllers.view import Standing, ViewState, fold, view
from schemas.commands import Command
from schemas.decisions import Decision
from schemas.emergencies import Emergency
from schemas.envelope import Event, Tick
from schemas.forecasts import ForecastScore, PeakForecast
from schemas.instants import Instant
from schemas.outcomes import Accepted, Renewed
from schemas.samples import FeedSample, GpuFrame, PowerRollup, RackSample, UpsSample
from schemas.topics import topic_of
from schemas.topology import Row
from streams.detect.overload import OverloadDetector, OverloadState
from streams.forecast.peaks import PeakForecaster, PeakState
from streams.rollup import Rollup, RollupState

_ROLLED_UP = (GpuFrame, RackSample)
"""What only the rollup reads, and by far the most of what comes."""

_OF_NO_HOST = (FeedSample, UpsSample, Accepted)
"""What changes nothing that is known of the hosts' controls."""

_OF_A_SETTLED_ROW = (*_OF_NO_HOST, Renewed)
"""The same where every host obeys: a renewal says that it goes on to."""


class Beat(msgspec.Struct, frozen=True):
    """What one beat of a row's loop took in and gave out, in order of cause."""

    tick: Tick
    inputs: tuple[Event, ...]
    rollup: PowerRollup
    forecasts: tuple[PeakForecast | ForecastScore, ...]
    emergencies: tuple[Emergency, ...]
    decision: Decision
    commands: tuple[Command, ...]

    @property
    def outputs(self) -> tuple[Event, ...]:
        """Everything the loop said, causes before effects."""
        return (self.rollup, *self.forecasts, *self.emergencies, self.decision, *self.commands)


class Forecaster(Protocol):
    """What the loop asks of a forecaster of peaks; it owns the shape of its state."""

    def initial(self) -> Any: ...

    def step(
        self, state: Any, events: Sequence[Event]
    ) -> tuple[Any, Sequence[PeakForecast | ForecastScore]]: ...


class RowState(msgspec.Struct):
    """All that a row's loop remembers; `pending` holds what has come since the last beat."""

    pending: list[Event]
    rollup: RollupState
    forecast: PeakState
    detect: OverloadState
    view: ViewState


def in_total_order(events: Sequence[Event]) -> list[Event]:
    """Events as a recording holds them: by event time, then causes before effects (the topic's
    rank), then subject and id, so that no two differ by the accident of their arrival."""
    return sorted(events, key=lambda event: (event.at, topic_of(event).rank, event.subject, event.id))


class RowLoop:
    """The loop of one row under one policy.

    `epoch` is the controller's number, higher at each start: it fences commands of an earlier one. A tick
    that names an epoch of its own is beaten under that one, so that a beat done again says what it said.
    """

    def __init__(
        self, row: Row, policy: CappingPolicy, *, epoch: int, forecaster: Forecaster | None = None
    ) -> None:
        """`forecaster` None: `PeakForecaster`. Only the policy `polca_forecast` reads what it says."""
        self.row = row
        self.policy = policy
        self.epoch = epoch
        self.source = f"controller/capping/{row.path}"
        self._rollup = Rollup(row)
        self._forecaster = forecaster or PeakForecaster(row.path, period_ms=policy.period_ms)
        self._detector = OverloadDetector(row)
        self._standing: tuple[ViewState, Standing] | None = None

    def key(self, event: Event) -> str:
        """Everything a row's loop reads is keyed by the row."""
        return self.row.path

    def initial(self) -> RowState:
        """A loop that knows nothing yet."""
        return RowState(
            pending=[],
            rollup=self._rollup.initial(),
            forecast=self._forecaster.initial(),
            detect=self._detector.initial(),
            view=ViewState(),
        )

    def step(self, state: RowState, events: Sequence[Event]) -> tuple[RowState, Sequence[Beat]]:
        """Take events in; each Tick among them closes a beat over all that came before it.

        Nothing but a Tick makes the loop speak, so the cut of batches cannot change what it says.
        """
        beats: list[Beat] = []
        for event in events:
            if type(event) is Tick:
                beats.append(self._beat(state, event))
            else:
                state.pending.append(event)
        return state, beats

    def _beat(self, state: RowState, tick: Tick) -> Beat:
        inputs = in_total_order(state.pending)
        state.pending = []
        state.rollup, rollups = self._rollup.step(state.rollup, [*inputs, tick])
        (rollup,) = rollups
        state.forecast, forecasts = self._forecaster.step(state.forecast, rollups)
        words = [event for event in inputs if type(event) not in _ROLLED_UP]
        state.detect, emergencies = self._detector.step(state.detect, [*words, *rollups])
        behind = state.view.last is not None and tick.at < state.view.last.at
        state.view = fold(state.view, [*words, rollup, *forecasts, *emergencies])
        still = self._still(state.view, words, behind=behind, now=tick.at)
        seen = view(state.view, self.row, tick.at, still)
        wish = arbitrate([capping.decide(seen, self.policy, tick.at, source=self.source)])
        decision = guard(wish, seen, self.policy, tick.at)
        epoch = tick.epoch or self.epoch
        commands = reconcile(decision, seen, self.policy, tick.at, epoch=epoch, source=self.source)
        state.view = fold(state.view, [decision, *commands])
        if commands or still is None:
            self._stand(state.view, still, decision, commands, tick.at)
        return Beat(
            tick, tuple(inputs), rollup, tuple(forecasts), tuple(emergencies), decision, tuple(commands)
        )

    def _still(
        self, state: ViewState, words: Sequence[Event], *, behind: bool, now: Instant
    ) -> Standing | None:
        """The row as the last look found it, where its hosts still stand so: nothing but renewals was heard
        of them, no lease is over, and the state and the clock are those of that look, gone on."""
        if self._standing is None:
            return None
        of, known = self._standing
        passing = _OF_A_SETTLED_ROW if known.settled else _OF_NO_HOST
        heard = any(not isinstance(word, passing) for word in words)
        if heard or behind or of is not state or now >= known.until:
            self._standing = None
            return None
        return known

    def _stand(
        self,
        state: ViewState,
        still: Standing | None,
        decision: Decision,
        commands: Sequence[Command],
        now: Instant,
    ) -> None:
        """See whether the row stands after this look, and keep what was said of it if it stood before. Where
        hosts have yet to obey, the guardrails must have seen what was commanded of them first."""
        found = standing(decision, view(state, self.row, now), self.policy, now)
        if found is not None and not found.settled and commands:
            found = None
        if found is not None and still is not None and found.desired is still.desired:
            found.memo = still.memo
        self._standing = None if found is None else (state, found)
