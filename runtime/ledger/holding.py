"""Who held a target at an instant: commands and outcomes of the past, read like the host's agent lives.

A host has one setting at a time: that of one command, or without one its safe share. A read-back puts a
command in force; its lease, a newer command or a person ends it. Only what the ledger holds is told:
where the host has not said what became of a lease, neither does the answer.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from runtime.ledger.book import Book
from runtime.ledger.standing import pins
from schemas.commands import Brake, Command, LimitPower, LockClocks
from schemas.envelope import Event
from schemas.instants import Instant, to_text
from schemas.operators import Pin
from schemas.outcomes import (
    Accepted,
    Failed,
    Lapsed,
    Outcome,
    Refused,
    Released,
    Renewed,
    Superseded,
    Verified,
)
from schemas.topology import covers

State: TypeAlias = Literal[
    "in force",  # read back, and its lease is alive or holds beyond its end
    "expired",  # the lease ran out, and the host has not said what became of it
    "lapsed",  # the lease ran out, and the host read its fail direction back
    "released",  # given back
    "failed",  # not seen in force: what is, is not known
    "accepted",  # written, not yet read back
    "asked",  # sent, no answer yet
    "refused",  # the host would not, and nothing else was in force
    "superseded",  # something newer took its place, of which nothing is known yet
]

_STATES: dict[type[Outcome], State] = {
    Accepted: "accepted",
    Failed: "failed",
    Refused: "refused",
    Superseded: "superseded",
    Lapsed: "lapsed",
    Released: "released",
}
_COMMANDS: tuple[type[Event], ...] = (LockClocks, LimitPower, Brake)
_LIFE: tuple[type[Event], ...] = (*_COMMANDS, Verified, Renewed, *_STATES)


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What held one target at an instant.

    `state` is of `command`, and has held since `since`; `detail` says the rest in words. `command`
    is the one whose lease counts, `first` the one that brought about a setting in force, where leases
    were renewed since: ask `why` of that. `outcome` is the last word on `command`. `pending` was asked
    later and is not in force yet. `pins` are those that covered the target, of whatever effect.
    """

    target: str
    state: State
    since: Instant
    command: Command | None = None
    first: Command | None = None
    outcome: Outcome | None = None
    pending: Command | None = None
    pins: tuple[Pin, ...] = ()
    detail: str = ""


def who(ledger: Book, target: str, at: Instant) -> tuple[Holding, ...]:
    """What held each target at, below or above the path `target` at the instant `at`.

    A target that was never commanded, and never said that it fell back, is not among the answers.
    """
    target = target.rstrip("/")
    parts = target.split("/")
    above = ["/".join(parts[:n]) for n in range(1, len(parts))]
    standing = pins(ledger, at)
    holdings = []
    for subject in (*above, *ledger.subjects([*_COMMANDS, Lapsed], target)):
        life = _recent_life(ledger, subject, at)
        if life:
            covering = tuple(pin for pin in standing if covers(pin.subject, subject))
            holding = _holding(ledger, subject, life, at)
            holdings.append(msgspec.structs.replace(holding, pins=covering))
    return tuple(holdings)


def _recent_life(ledger: Book, target: str, at: Instant) -> list[Event]:
    """Commands and outcomes of a target up to `at`, oldest first, from the last read-back on.

    A read-back settles what is in force, so nothing older matters. All of its millisecond are taken:
    the order inside one is not that of cause and effect.
    """
    life: list[Event] = []
    settled: Instant | None = None
    for event in ledger.of_type(_LIFE, subject=target, until=at, newest_first=True):
        if settled is not None and event.at < settled:
            break
        life.append(event)
        if settled is None and isinstance(event, Verified | Renewed):
            settled = event.at
    life.reverse()
    return life


class _Story(msgspec.Struct):
    """What a target's life comes to: the read-back of what is in force, or what ended it; the last
    word on each command; and the commands that were taken from force or never came to it."""

    held: Outcome | None = None
    ended: Outcome | None = None
    words: dict[str, Outcome] = {}
    over: set[str] = set()

    def tell(self, outcome: Outcome, lasting: bool) -> None:
        """Take one outcome in; `lasting` says that its command outlives its lease."""
        command = outcome.command
        if not isinstance(outcome, Accepted) or command not in self.words:
            self.words[command] = outcome
        of_held = self.held is not None and self.held.command == command
        match outcome:
            case Verified() | Renewed() if command not in self.over:
                self.held, self.ended = outcome, None
            case Superseded() | Released() | Lapsed() if not (lasting and _only_the_lease(outcome)):
                self.over.add(command)
                # What ends another command ends nothing here: a brake's release follows the read-back
                # of the lock that released it.
                if of_held or self.held is None or not command:
                    self.held, self.ended = None, outcome
            case Failed() if of_held:
                self.held, self.ended = None, outcome


def _only_the_lease(outcome: Outcome) -> bool:
    """Whether a lapse ended the lease alone. One that tells of the safe share took the host there."""
    return isinstance(outcome, Lapsed) and "safe share" not in outcome.detail


def _holding(ledger: Book, target: str, life: list[Event], at: Instant) -> Holding:
    commands = {event.id: event for event in life if isinstance(event, Command)}
    story = _Story()
    for event in life:
        if isinstance(event, Outcome):
            if event.command not in commands and isinstance(earlier := ledger.get(event.command), Command):
                commands[event.command] = earlier
            command = commands.get(event.command)
            story.tell(event, command is not None and command.lease.on_expiry == "hold")
    by_age = sorted(commands.values(), key=lambda command: command.at)
    if story.held is not None:
        return _in_force(ledger, target, story, story.held, by_age, at)

    willing = [command for command in by_age if not isinstance(story.words.get(command.id), Refused)]
    newest = next(reversed(willing or by_age), None)
    word = story.words.get(newest.id) if newest is not None else None
    if story.ended is not None and not isinstance(word, Accepted | Failed):
        return Holding(
            target=target,
            state=_STATES[type(story.ended)],
            since=story.ended.at,
            command=commands.get(story.ended.command),
            outcome=story.ended,
            pending=newest if word is None else None,
            detail=story.ended.detail,
        )
    if newest is None:  # the host spoke, and of no command that is here
        said = next(reversed(story.words.values()))
        return Holding(
            target=target, state=_STATES[type(said)], since=said.at, outcome=said, detail=said.detail
        )
    if _ran_out(newest, at) and isinstance(word, Accepted | Failed | None):
        return _expired(target, newest, word)
    return Holding(
        target=target,
        state=_STATES[type(word)] if word is not None else "asked",
        since=word.at if word is not None else newest.at,
        command=newest,
        outcome=word,
        detail=word.detail if word is not None else "no answer yet",
    )


def _in_force(
    ledger: Book, target: str, story: _Story, held: Outcome, by_age: list[Command], at: Instant
) -> Holding:
    command = next((command for command in by_age if command.id == held.command), None)
    if command is None:
        detail = f"by command {held.command}, which is not in this ledger"
        return Holding(target=target, state="in force", since=held.at, outcome=held, detail=detail)
    if _ran_out(command, at):
        return _expired(target, command, story.words[command.id])
    readback = held
    if isinstance(held, Renewed):
        earlier = ledger.of_type([Verified], subject=target, until=held.at, newest_first=True)
        readback = next((event for event in earlier if isinstance(event, Verified)), held)
    first = ledger.get(readback.command)
    unsettled = [
        c for c in by_age if c.at > command.at and isinstance(story.words.get(c.id), Accepted | None)
    ]
    ended = f"its lease ended at {to_text(command.lease.expires_at)}; held until a newer command"
    return Holding(
        target=target,
        state="in force",
        since=readback.at,
        command=command,
        first=first if isinstance(first, Command) else None,
        outcome=story.words[command.id],
        pending=unsettled[-1] if unsettled else None,
        detail=ended if at >= command.lease.expires_at else "",
    )


def _ran_out(command: Command, at: Instant) -> bool:
    return at >= command.lease.expires_at and command.lease.on_expiry != "hold"


def _expired(target: str, command: Command, word: Outcome | None) -> Holding:
    ended = command.lease.expires_at
    return Holding(
        target=target,
        state="expired",
        since=ended,
        command=command,
        outcome=word,
        detail=f"the lease ended at {to_text(ended)}: on its own timer the host goes to "
        f"{command.lease.on_expiry.replace('_', ' ')}, and it has not said that it did",
    )
