"""Questions to the ledger: why a command, who held a target, what was alarmed.

Each answer is data (msgspec Structs); the command line prints it for people or as JSON.
"""

from __future__ import annotations

import msgspec

from runtime.ledger.store import Ledger
from schemas.commands import Brake, Command, LimitPower, LockClocks
from schemas.decisions import Decision
from schemas.emergencies import Emergency
from schemas.envelope import Event
from schemas.forecasts import PeakForecast
from schemas.instants import Instant
from schemas.operators import Pin
from schemas.outcomes import Lapsed, Outcome, Released, Renewed, Verified
from schemas.samples import PowerRollup

_COMMANDS = (LockClocks, LimitPower, Brake)


class UnknownCommand(LookupError):
    """No record, or more than one, goes by the id that was asked for."""


class Walk(msgspec.Struct, frozen=True):
    """The way from samples to effect of one command.

    `samples` and `outside` tell the readings the rollup rests on: those in the ledger, and how many
    more it names. `outcomes` are in order; `effect_w` is what was measured at read-back.
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


def why(ledger: Ledger, identity: str) -> Walk:
    """The walk of the command `identity` (a prefix will do). Raises UnknownCommand."""
    command = ledger.get(identity)
    if command is None:
        raise UnknownCommand(f"no single record begins with id {identity!r}")
    if isinstance(command, Outcome):
        return why(ledger, command.command)
    if not isinstance(command, Command):
        raise UnknownCommand(f"{identity} is a {type(command).__name__}, not a command")
    causes = [event for event in map(ledger.get, command.cause) if event is not None]
    decision = next((event for event in causes if isinstance(event, Decision)), None)
    if decision is None:
        raise UnknownCommand(f"the decision behind {identity} is not in the ledger")
    grounds = [event for event in map(ledger.get, decision.cause) if event is not None]
    rollup = next((event for event in grounds if isinstance(event, PowerRollup)), None)
    readings = [ledger.get(cause) for cause in (rollup.cause if rollup else ())]
    effects = ledger.effects(command.id)
    outcomes = tuple(event for event in effects if isinstance(event, Outcome))
    verified = next((outcome for outcome in outcomes if isinstance(outcome, Verified)), None)
    after = None
    if verified is not None:
        rollups = ledger.of_type([PowerRollup], since=verified.at, subject=decision.subject)
        after = next((event for event in rollups if isinstance(event, PowerRollup)), None)
    return Walk(
        command=command,
        decision=decision,
        forecasts=tuple(event for event in grounds if isinstance(event, PeakForecast)),
        emergencies=tuple(event for event in grounds if isinstance(event, Emergency)),
        pins=tuple(event for event in grounds if isinstance(event, Pin)),
        rollup=rollup,
        samples=tuple(event for event in readings if event is not None),
        outside=sum(event is None for event in readings),
        outcomes=outcomes,
        siblings=sum(isinstance(event, Command) for event in ledger.effects(decision.id)) - 1,
        effect_w=verified.effect_w if verified else None,
        row_after=after,
    )


class Holding(msgspec.Struct, frozen=True):
    """Who held one host at an instant: the command in force, what had become of it, and since when.

    `command` is None where nothing had been commanded, or the lease had lapsed or been released:
    then `state` says what holds instead.
    """

    target: str
    state: str
    command: Command | None = None
    outcome: Outcome | None = None


def who(ledger: Ledger, target: str, at: Instant) -> tuple[Holding, ...]:
    """What held each commanded host at or below `target` at the instant `at`, by host."""
    by_host: dict[str, dict[str, tuple[Command, Outcome | None]]] = {}
    for event in ledger.of_type(_COMMANDS, until=at, subject=target):
        assert isinstance(event, Command)
        by_host.setdefault(event.target, {})[event.id] = (event, None)
    ended: dict[str, Outcome] = {}
    for event in ledger.of_type(Outcome.__subclasses__(), until=at, subject=target):
        assert isinstance(event, Outcome)
        commands = by_host.get(event.subject, {})
        if event.command in commands:
            commands[event.command] = (commands[event.command][0], event)
        ended[event.subject] = event
    return tuple(_holding(host, commands, ended.get(host), at) for host, commands in sorted(by_host.items()))


def _holding(host: str, commands: dict[str, tuple[Command, Outcome | None]], last: Outcome | None, at: Instant) -> Holding:
    if isinstance(last, Lapsed | Released):
        return Holding(host, f"{type(last).__name__.lower()}: {last.detail}", outcome=last)
    held = [(c, o) for c, o in commands.values() if isinstance(o, Verified | Renewed)]
    if not held:
        command, outcome = list(commands.values())[-1]
        state = type(outcome).__name__.lower() if outcome else "asked, no answer yet"
        return Holding(host, state, command, outcome)
    command, outcome = held[-1]
    if at >= command.lease.expires_at and command.lease.on_expiry != "hold":
        return Holding(host, f"lease ran out: {command.lease.on_expiry}", command, outcome)
    return Holding(host, "in force", command, outcome)


class Alert(msgspec.Struct, frozen=True):
    """One emergency from raised to its latest phase."""

    episode: str
    subject: str
    kind: str
    raised_at: Instant
    phase: str
    at: Instant
    worst: float | None
    limit: float | None
    because: str


def alerts(ledger: Ledger, since: Instant = 0) -> tuple[Alert, ...]:
    """Emergencies with a phase at or after `since`, by the time they were raised."""
    episodes: dict[str, list[Emergency]] = {}
    for event in ledger.of_type([Emergency]):
        assert isinstance(event, Emergency)
        episodes.setdefault(event.episode, []).append(event)
    found = []
    for episode, phases in episodes.items():
        last = phases[-1]
        if last.at < since and last.phase == "cleared":
            continue
        values = [phase.value for phase in phases if phase.value is not None]
        found.append(
            Alert(
                episode=episode,
                subject=last.subject,
                kind=last.kind,
                raised_at=phases[0].at,
                phase=last.phase,
                at=last.at,
                worst=max(values) if values else None,
                limit=phases[0].limit,
                because=phases[0].because,
            )
        )
    return tuple(sorted(found, key=lambda alert: (alert.raised_at, alert.episode)))


__all__ = ["Alert", "Holding", "UnknownCommand", "Walk", "alerts", "who", "why"]
