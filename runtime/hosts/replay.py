"""The replay host: a recording through the same loops, as fast as it can, never an actuator.

Replay is open-loop: the power that was recorded does not answer to commands that were not given
then. A recording of our own holds its beats and the outcomes that came back, and replays to the
same messages. Where there are none (an import, or another policy than the recorded one) beats are
set on the policy's grid and each command is *assumed* to be verified after its path's latency; what
another policy would have done is read under that assumption.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from controllers.policy import CappingPolicy
from runtime.control_loop import ControlLoop
from runtime.row_loop import Beat
from schemas.commands import Brake, Command, LimitPower, LockClocks
from schemas.decisions import Decision
from schemas.emergencies import Emergency
from schemas.envelope import Event, Tick
from schemas.instants import Instant
from schemas.outcomes import Outcome, Verified
from schemas.topics import BY_TYPE

_TICK_RANK = BY_TYPE[Tick].rank
_ASSUMED = "replay/assumed-plant"


def is_input(event: Event) -> bool:
    """Whether an event of a recording is one the loops take in; the rest is what they said."""
    if isinstance(event, Emergency | Decision):  # the host's own alarms, and what a restart remembers
        return event.source.startswith("runtime/")
    return BY_TYPE[type(event)].rank < _TICK_RANK


def as_recorded(events: Iterable[Event], loop: ControlLoop) -> Iterator[tuple[Beat, tuple[Event, ...]]]:
    """Replay a recording of our own: its beats, its outcomes. Yields each beat with what was said then."""
    inputs: list[Event] = []
    said: list[Event] = []
    beat: Beat | None = None
    for event in events:
        if isinstance(event, Tick):
            if beat is not None:
                yield beat, tuple(said)
                said = []
            beat = loop.replay(event, inputs)
            inputs = []
        elif is_input(event):
            inputs.append(event)
        else:
            said.append(event)
    if beat is not None:
        yield beat, tuple(said)


def on_the_grid(events: Iterable[Event], loop: ControlLoop, policy: CappingPolicy) -> Iterator[Beat]:
    """Replay samples under a policy: beats on the policy's grid, outcomes assumed.

    Recorded ticks, outcomes and anything a loop said are passed over. Beats go on through gaps of
    the recording, so that silence is seen as silence. Events must come in order of event time; one
    that does not is taken at the next beat, as a host would.
    """
    assumed: list[tuple[Instant, str, Outcome]] = []
    following: Instant | None = None

    def beats(at: Instant) -> Iterator[Beat]:
        while assumed and assumed[0][0] <= at:
            loop.offer([heapq.heappop(assumed)[2]])
        for row in loop.due(at):
            beat = loop.beat(row, at)
            for command in beat.commands:
                outcome = _assume(command, policy)
                heapq.heappush(assumed, (outcome.at, outcome.id, outcome))
            yield beat

    for event in events:
        if isinstance(event, Outcome | Tick) or not is_input(event):
            continue
        if following is None:
            following = loop.next_beat(event.at)
        while event.at > following:
            yield from beats(following)
            following = loop.next_beat(following + 1)
        loop.offer([event])
        if loop.dirty:
            following = event.at
    if following is not None:
        yield from beats(following)


def _assume(command: Command, policy: CappingPolicy) -> Outcome:
    """The read-back that a plant in order would give to a command, after its path's latency."""
    assert isinstance(command, LockClocks | LimitPower | Brake)
    observed = command.limit_w if isinstance(command, LimitPower) else float(command.max_mhz)
    return Verified(
        at=command.at + policy.latency_ms.of(command.path),
        source=_ASSUMED,
        subject=command.target,
        cause=(command.id,),
        command=command.id,
        epoch=command.lease.epoch,
        observed=observed,
        detail="assumed in force after the path's latency",
    )
