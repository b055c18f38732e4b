"""What of a beat goes into the ledger: everything that was done, and what it rested on.

A decision that changes nothing is not acted on and leaves no record; one that changes the mode,
refuses, or sends a command is written with the readings it cites, so that the walk from a command
back to the samples never leaves the ledger.
"""

from __future__ import annotations

from runtime.row_loop import Beat
from schemas.decisions import Decision
from schemas.emergencies import Emergency
from schemas.envelope import DeadLetter, Event
from schemas.forecasts import ForecastScore
from schemas.operators import Pin, ReleaseAll, ResetBlastRadius, Resume, Unpin
from schemas.outcomes import Outcome

_ALWAYS = (Outcome, Pin, Unpin, ResetBlastRadius, ReleaseAll, Resume, DeadLetter, Emergency)


def speaks(decision: Decision, before: Decision | None) -> bool:
    """Whether a decision says something that the one before it did not."""
    if before is None:
        return True
    return (
        (decision.mode, decision.refusal) != (before.mode, before.refusal)
        or decision.overruled != before.overruled
        or decision.desired != before.desired
    )


def worth_keeping(beat: Beat, before: Decision | None) -> tuple[Event, ...]:
    """The messages of a beat for the ledger, causes before effects.

    `before` is the row's decision at the previous beat, None at the first.
    """
    kept: list[Event] = [event for event in beat.inputs if isinstance(event, _ALWAYS)]
    if beat.commands or beat.emergencies or speaks(beat.decision, before):
        cited = set(beat.rollup.cause)
        for event in (*beat.forecasts, *beat.emergencies, beat.decision):
            cited.update(event.cause)
        kept.extend(event for event in beat.inputs if event.id in cited and not isinstance(event, _ALWAYS))
        kept.append(beat.rollup)
        kept.extend(f for f in beat.forecasts if f.id in cited and not isinstance(f, ForecastScore))
        kept.extend(beat.emergencies)
        kept.append(beat.decision)
        kept.extend(beat.commands)
    return tuple(kept)
