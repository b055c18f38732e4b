"""Questions to the ledger: why a command, who held a target, what was alarmed.

Each answer is data (msgspec Structs); the command line prints it for people or as JSON.
"""

from __future__ import annotations

import msgspec

from runtime.ledger.book import Book
from runtime.ledger.holding import Holding, who
from schemas.commands import Command
from schemas.decisions import Decision
from schemas.emergencies import Emergency
from schemas.envelope import Event
from schemas.forecasts import PeakForecast
from schemas.instants import MINUTE, Instant, to_text
from schemas.operators import Pin, ReleaseAll, ResetBlastRadius, Resume, Unpin
from schemas.outcomes import Outcome, Verified
from schemas.samples import PowerRollup

__all__ = ["Alert", "Holding", "UnknownCommand", "Walk", "alerts", "who", "why"]


class UnknownCommand(LookupError):
    """The id that was asked for is that of no command; the text says whose it is."""


class Walk(msgspec.Struct, frozen=True):
    """The way from samples to effect of one command.

    `samples` and `outside` tell the readings the rollup rests on: those in the ledger, and how many
    more it names. `outcomes` are in order; `effect_w` is what was measured at read-back. `siblings`
    counts the other commands of the same decision. `row_after` is the first rollup in the ledger at
    or after the read-back.
    """

    command: Command
    decision: Decision
    forecasts: tuple[PeakForecast, ...]
    emergencies: tuple[Emergency, ...]
    pins: tuple[Pin, ...]
    rollup: PowerRollup | None
    samples: tuple[Event, ...]
    outside: int
    outcomes: tuple[Outcome, ...]
    siblings: int
    effect_w: float | None
    row_after: PowerRollup | None


def why(ledger: Book, identity: str) -> Walk:
    """The walk of the command `identity`, or of the command that the outcome `identity` is of; the
    first characters of the id will do.

    Raises UnknownId, AmbiguousId, or UnknownCommand where the id is of something else.
    """
    command = ledger.find(identity)
    if isinstance(command, Outcome):
        outcome, command = command, ledger.get(command.command) or command
        if isinstance(command, Outcome):
            raise UnknownCommand(
                f"{outcome.id} is a {type(outcome).__name__} of {outcome.subject}, "
                "and its command is not in this ledger"
            )
    if not isinstance(command, Command):
        raise UnknownCommand(_not_a_command(ledger, command))
    decision = next((event for event in _known(ledger, command.cause) if isinstance(event, Decision)), None)
    if decision is None:
        raise UnknownCommand(f"the decision behind command {command.id} is not in this ledger")
    grounds = _known(ledger, decision.cause)
    rollup = next((event for event in grounds if isinstance(event, PowerRollup)), None)
    samples = _known(ledger, rollup.cause) if rollup else ()
    outcomes = _outcomes_of(ledger, command)
    verified = next((outcome for outcome in outcomes if isinstance(outcome, Verified)), None)
    return Walk(
        command=command,
        decision=decision,
        forecasts=tuple(event for event in grounds if isinstance(event, PeakForecast)),
        emergencies=tuple(event for event in grounds if isinstance(event, Emergency)),
        pins=tuple(event for event in grounds if isinstance(event, Pin)),
        rollup=rollup,
        samples=samples,
        outside=len(rollup.cause) - len(samples) if rollup else 0,
        outcomes=outcomes,
        siblings=len(_commands_of(ledger, decision)) - 1,
        effect_w=verified.effect_w if verified else None,
        row_after=_rollup_from(ledger, decision.subject, verified.at) if verified else None,
    )


def _known(ledger: Book, identities: tuple[str, ...]) -> tuple[Event, ...]:
    found = ledger.many(identities)
    return tuple(found[identity] for identity in identities if identity in found)


def _outcomes_of(ledger: Book, command: Command) -> tuple[Outcome, ...]:
    # A host's clock may be behind the controller's.
    said = ledger.of_type(Outcome.__subclasses__(), subject=command.target, since=command.at - MINUTE)
    return tuple(event for event in said if isinstance(event, Outcome) and event.command == command.id)


def _commands_of(ledger: Book, decision: Decision) -> list[Command]:
    """The commands that a decision led to: all of its own instant."""
    asked = ledger.of_type(Command.__subclasses__(), since=decision.at, until=decision.at)
    return [event for event in asked if isinstance(event, Command) and decision.id in event.cause]


def _rollup_from(ledger: Book, row: str, since: Instant) -> PowerRollup | None:
    for event in ledger.of_type([PowerRollup], since=since, subject=row):
        assert isinstance(event, PowerRollup)
        return event
    return None


def _not_a_command(ledger: Book, event: Event) -> str:
    told = f"{event.id} is a {type(event).__name__} of {event.subject}, not a command"
    if isinstance(event, Pin | ReleaseAll | ResetBlastRadius):
        return (
            f"{told}: {event.by} said so at {to_text(event.at)}, because: {event.reason or 'no reason given'}"
        )
    if isinstance(event, Unpin | Resume):
        return f"{told}: {event.by} said so at {to_text(event.at)}"
    commands = [command.id for command in _commands_of(ledger, event)] if isinstance(event, Decision) else []
    if not commands:
        return told
    more = f" and {len(commands) - 3} more" if len(commands) > 3 else ""
    return f"{told}; its commands are {', '.join(commands[:3])}{more}"


class Alert(msgspec.Struct, frozen=True):
    """One emergency from raised to its latest phase. `worst` is the value farthest from its limit
    while it was open."""

    episode: str
    subject: str
    kind: str
    raised_at: Instant
    phase: str
    at: Instant
    worst: float | None
    limit: float | None
    because: str


def alerts(ledger: Book, since: Instant = 0) -> tuple[Alert, ...]:
    """Emergencies that are open, or had a phase at or after `since`, by the time they were raised."""
    episodes: dict[str, list[Emergency]] = {}
    for event in ledger.of_type([Emergency]):
        assert isinstance(event, Emergency)
        episodes.setdefault(event.episode, []).append(event)
    found = [
        Alert(
            episode=episode,
            subject=phases[-1].subject,
            kind=phases[-1].kind,
            raised_at=phases[0].at,
            phase=phases[-1].phase,
            at=phases[-1].at,
            worst=_worst(phases),
            limit=phases[0].limit,
            because=phases[0].because,
        )
        for episode, phases in episodes.items()
        if phases[-1].at >= since or phases[-1].phase != "cleared"
    ]
    return tuple(sorted(found, key=lambda alert: (alert.raised_at, alert.episode)))


def _worst(phases: list[Emergency]) -> float | None:
    values = [phase.value for phase in phases if phase.value is not None and phase.phase != "cleared"]
    too_little = phases[0].kind in ("telemetry_loss", "supply_loss")  # the others are too much
    return (min if too_little else max)(values, default=None)
