"""What of a beat goes into the ledger: everything that was done, and what it rested on.

A decision that changes nothing is not acted on and leaves no record; one that changes the mode,
refuses, or sends a command is written with the readings it cites, so that the walk from a command
back to the samples never leaves the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from schemas.decisions import Decision
from schemas.emergencies import Emergency
from schemas.envelope import DeadLetter, Event
from schemas.forecasts import ForecastScore
from schemas.operators import Pin, ReleaseAll, ResetBlastRadius, Resume, Unpin
from schemas.outcomes import Outcome

if TYPE_CHECKING:  # a beat is only read here: no need to load the whole loop with it
    from runtime.row_loop import Beat

_ALWAYS = (Outcome, Pin, Unpin, ResetBlastRadius, ReleaseAll, Resume, DeadLetter, Emergency)


def told_to_us(events: Iterable[Event]) -> tuple[Event, ...]:
    """Of these the ones that are always kept: what agents and people said, and what could not be read."""
    return tuple(event for event in events if isinstance(event, _ALWAYS))


def speaks(decision: Decision, before: Decision | None) -> bool:
    """Whether a decision says something that the one before it did not."""
    if before is None:
        return True
    return (
        (decision.mode, decision.refusal) != (before.mode, before.refusal)
        or decision.overruled != before.overruled
        or decision.desired != before.desired
    )


def worth_keeping(
    beat: Beat, before: Decision | None, earlier: Mapping[str, Event] | None = None
) -> tuple[Event, ...]:
    """The messages of a beat for the ledger, causes before effects.

    `before` is the row's decision at the previous beat, None at the first. `earlier` are messages of
    beats before this one that the ledger does not have, by id: those that are cited come first.
    """
    kept: list[Event] = list(told_to_us(beat.inputs))
    if beat.commands or beat.emergencies or speaks(beat.decision, before):
        cited = set(beat.rollup.cause)
        for event in (*beat.forecasts, *beat.emergencies, beat.decision):
            cited.update(event.cause)
        if earlier:
            kept[:0] = [event for identity, event in earlier.items() if identity in cited]
        kept.extend(event for event in beat.inputs if event.id in cited and not isinstance(event, _ALWAYS))
        kept.append(beat.rollup)
        kept.extend(f for f in beat.forecasts if f.id in cited and not isinstance(f, ForecastScore))
        kept.extend(beat.emergencies)
        kept.append(beat.decision)
        kept.extend(beat.commands)
    return tuple(kept)


class Selection:
    """`worth_keeping` over the beats of all rows, with the memory it needs.

    A beat that cannot wait (a UPS fails) comes right after another and rests on samples that came
    before that one: those are remembered, as long as they are the newest that a row's sum rests on.
    """

    def __init__(self) -> None:
        self._before: dict[str, Decision] = {}
        self._unkept: dict[str, dict[str, Event]] = {}

    def of(self, beat: Beat) -> tuple[Event, ...]:
        """The messages of the row's next beat for the ledger."""
        row = beat.tick.subject
        earlier = self._unkept.get(row, {})
        kept = worth_keeping(beat, self._before.get(row), earlier)
        self._before[row] = beat.decision
        known = earlier | {event.id: event for event in beat.inputs}
        for event in kept:
            known.pop(event.id, None)
        self._unkept[row] = {identity: known[identity] for identity in beat.rollup.cause if identity in known}
        return kept
