"""What became of a row over a stretch of time: its modes, its power, what was held and what went wrong.

The ledger holds the beats at which something was said: each of them is a `Moment`. What lies between is a
`Curve`, from the time series where there is one; from the ledger it has only the moments' own readings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

import msgspec

from runtime.ledger.audit import Alert, alerts
from runtime.ledger.book import Book
from schemas.commands import Command
from schemas.decisions import Decision
from schemas.instants import Instant, Span
from schemas.outcomes import Outcome
from schemas.samples import PowerRollup
from schemas.topology import covers
from schemas.units import Reading


class Ceiling(msgspec.Struct, frozen=True, order=True):
    """So many hosts were to be held at or below `max_mhz`; `brake`: by the power brake."""

    max_mhz: int
    brake: bool
    hosts: int


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A decision that said something new, and what the row was known to draw.

    `wanted` is what it wanted held, by ceiling; `commands` counts by type what it sent. The readings are
    those of the rollup that it rests on, unknown where the ledger lacks it.
    """

    at: Instant
    decision: str
    policy: str
    mode: str
    because: str
    refusal: str = ""
    power_w: Reading = None
    budget_w: Reading = None
    coverage_ratio: Reading = None
    wanted: tuple[Ceiling, ...] = ()
    commands: dict[str, int] = {}


class History(msgspec.Struct, frozen=True, kw_only=True):
    """A row from `since` up to and with `until`. `before` is the last moment before, whose mode held at
    the beginning. `troubles` are emergencies that stood at some time of it; `outcomes` counts what became
    of commands in it, by type."""

    row: str
    since: Instant
    until: Instant
    before: Moment | None
    moments: tuple[Moment, ...]
    troubles: tuple[Alert, ...]
    outcomes: dict[str, int]

    def mode_at(self, at: Instant) -> str:
        """The mode that held at an instant, empty where it is not known."""
        told = [moment for moment in (self.before, *self.moments) if moment is not None and moment.at <= at]
        return told[-1].mode if told else ""


class CurvePoint(msgspec.Struct, frozen=True):
    """The row from `at` on, for one step: mean and highest power of the readings there were, and the lowest
    coverage. A step without a known reading has no power; one without any reading has no point."""

    at: Instant
    power_w: Reading
    peak_w: Reading
    coverage_ratio: Reading


class Curve(msgspec.Struct, frozen=True):
    """A row's power in steps on the grid of event time."""

    source: Literal["series", "ledger"]
    step_ms: Span
    points: tuple[CurvePoint, ...]


def history(book: Book, row: str, since: Instant, until: Instant) -> History:
    """What the ledger holds of a row in a stretch of time."""
    earlier = book.of_type([Decision], subject=row, until=since - 1, newest_first=True) if since else iter(())
    before = next((event for event in earlier if isinstance(event, Decision)), None)
    decisions = [
        event
        for event in book.of_type([Decision], subject=row, since=since, until=until)
        if isinstance(event, Decision)
    ]
    sent: dict[str, Counter[str]] = {}
    for command in book.of_type(Command.__subclasses__(), since=since, until=until):
        if covers(row, command.subject) and command.cause:
            sent.setdefault(command.cause[0], Counter())[type(command).__name__] += 1
    known = {rollup.id: rollup for rollup in _rollups(book, row, since, until)}
    if before is not None:
        known |= {i: e for i, e in book.many(before.cause).items() if isinstance(e, PowerRollup)}
    became = Counter(
        type(event).__name__
        for event in book.of_type(Outcome.__subclasses__(), since=since, until=until)
        if covers(row, event.subject)
    )
    return History(
        row=row,
        since=since,
        until=until,
        before=_moment(before, known, Counter()) if before is not None else None,
        moments=tuple(_moment(each, known, sent.get(each.id, Counter())) for each in decisions),
        troubles=tuple(
            alert for alert in alerts(book, since) if alert.subject == row and alert.raised_at <= until
        ),
        outcomes=dict(sorted(became.items())),
    )


def curve(book: Book, row: str, since: Instant, until: Instant, step_ms: Span) -> Curve:
    """The row's power as far as the ledger holds it."""
    steps: dict[Instant, list[PowerRollup]] = {}
    for rollup in _rollups(book, row, since, until):
        steps.setdefault(rollup.at - rollup.at % step_ms, []).append(rollup)
    points = []
    for at, rollups in sorted(steps.items()):
        powers = [rollup.power_w for rollup in rollups if rollup.power_w is not None]
        points.append(
            CurvePoint(
                at,
                sum(powers) / len(powers) if powers else None,
                max(powers, default=None),
                min(rollup.coverage_ratio for rollup in rollups),
            )
        )
    return Curve("ledger", step_ms, tuple(points))


def _rollups(book: Book, row: str, since: Instant, until: Instant) -> Iterable[PowerRollup]:
    found = book.of_type([PowerRollup], subject=row, since=since, until=until)
    return (event for event in found if isinstance(event, PowerRollup))


def _moment(decision: Decision, known: dict[str, PowerRollup], commands: Counter[str]) -> Moment:
    rollup = next((known[cause] for cause in decision.cause if cause in known), None)
    wanted = Counter((setting.max_mhz, setting.brake) for setting in decision.desired)
    return Moment(
        at=decision.at,
        decision=decision.id,
        policy=decision.policy,
        mode=decision.mode,
        because=decision.because,
        refusal=decision.refusal,
        power_w=rollup.power_w if rollup is not None else None,
        budget_w=rollup.budget_w if rollup is not None else None,
        coverage_ratio=rollup.coverage_ratio if rollup is not None else None,
        wanted=tuple(sorted(Ceiling(mhz, brake, hosts) for (mhz, brake), hosts in wanted.items())),
        commands=dict(sorted(commands.items())),
    )
