"""What a stretch of the bus came to: commands lost or wrong, and how long something was silent.

Judged from the messages alone, as an outsider reads them, and from the boards themselves: no process under
test is asked how it did.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from faults.boards import Seen
from faults.witness import Said

from runtime.judging import not_as_asked, obeyed_backwards, out_of_lease
from schemas.commands import Brake, Command, LockClocks
from schemas.decisions import Decision
from schemas.envelope import Event, Tick
from schemas.instants import SECOND, Instant, Span
from schemas.outcomes import Lapsed, Outcome, Released, Renewed, Verified
from schemas.samples import FeedSample
from schemas.shares import SafeShare
from schemas.topology import Site

ANSWER_MS: Span = 5 * SECOND
"""How long a command may be without an outcome: the agent's longest look at a device in band, 3 s, and the
way there and back (our choice)."""


class Fate(NamedTuple):
    """What became of the commands on the bus.

    `lost` were neither answered nor overtaken by an answered newer one for their host: a wish that nobody
    knows the end of. `asked_again` were overtaken: they did not arrive, and the loop asked anew. `wrong` says
    in words what was done that must not be.
    """

    commands: int
    answered: int
    asked_again: int
    lost: tuple[str, ...]
    wrong: tuple[str, ...]


def fate(
    said: Sequence[Said],
    recorded: Mapping[str, Instant],
    seen: Iterable[Seen],
    shares: Mapping[str, SafeShare],
    end: Instant,
) -> Fate:
    """What became of every command issued up to ANSWER_MS before `end`; later ones may be on their way, and
    allow what was seen. `recorded` is by id when the ledger had a message."""
    commands = {each.event.id: each.event for each in said if isinstance(each.event, Command)}
    due = [each for each in commands.values() if each.lease.issued_at <= end - ANSWER_MS]
    outcomes = [each.event for each in said if isinstance(each.event, Outcome)]
    answered = {outcome.command for outcome in outcomes}
    last_answered: dict[str, tuple[int, Instant]] = {}
    for command in commands.values():
        if command.id in answered:
            last_answered[command.subject] = max(last_answered.get(command.subject, (0, 0)), _age(command))
    unanswered = [command for command in due if command.id not in answered]
    lost = [each for each in unanswered if _age(each) > last_answered.get(each.subject, (0, 0))]
    return Fate(
        commands=len(due),
        answered=len(due) - len(unanswered),
        asked_again=len(unanswered) - len(lost),
        lost=tuple(f"{type(each).__name__} {each.id} for {each.subject}" for each in lost),
        wrong=(
            *(found.words for found in obeyed_backwards(outcomes)),
            *(found.words for found in not_as_asked(outcomes, commands)),
            *_two_owners(said),
            *_unrecorded(said, recorded),
            *(found.words for found in out_of_lease(outcomes, seen, commands, shares)),
        ),
    )


def _age(command: Command) -> tuple[int, Instant]:
    return command.lease.epoch, command.lease.issued_at


def _two_owners(said: Iterable[Said]) -> Iterable[str]:
    """Two controllers beat a row under one epoch: who lost the claim went on."""
    owner: dict[tuple[str, int], str] = {}
    strays: dict[tuple[str, int], int] = defaultdict(int)
    for each in said:
        if isinstance(each.event, Tick):
            at = each.event.subject, each.event.epoch
            if owner.setdefault(at, each.event.source) != each.event.source:
                strays[at] += 1
    for (row, epoch), ticks in strays.items():
        if ticks > 1:  # one is the claim that came second
            yield f"{row} has {ticks} ticks of epoch {epoch} besides its owner's"


def _unrecorded(said: Iterable[Said], recorded: Mapping[str, Instant]) -> Iterable[str]:
    """A command that loosens went out before the ledger had it: nobody could prove who wanted it."""
    told: dict[str, int] = {}  # by host, what the last command asked for
    for each in sorted(said, key=lambda each: each.kept_at):
        command = each.event
        if not isinstance(command, LockClocks | Brake):
            continue
        before = told.get(command.subject)
        told[command.subject] = command.max_mhz
        late = recorded.get(command.id, each.kept_at + 1) > each.kept_at
        if late and before is not None and command.max_mhz > before:
            yield f"{command.subject} was told {command.max_mhz} MHz before the ledger had it"


def silence(times: Iterable[Instant], since: Instant, until: Instant) -> Span:
    """The longest time without one of `times` in any gap that reaches past `since`, up to `until`: from the
    last sign of life before a fault to the first after it."""
    longest, last = 0, None
    for at in sorted(times):
        if at > until:
            break
        if last is not None and at > since:
            longest = max(longest, at - last)
        last = at
    return until - since if last is None else max(longest, until - last)


def beats(said: Iterable[Said], row: str) -> list[Instant]:
    """When each decision on a row could be read."""
    return [each.kept_at for each in said if isinstance(each.event, Decision) and each.event.subject == row]


def signs(said: Iterable[Said], host: str) -> list[Instant]:
    """When a host's agent said that it had seen its device obey, by the agent's own clock."""
    return [each.event.at for each in said if is_sign(each.event) and each.event.subject == host]


def is_sign(event: Event) -> bool:
    """Whether it says that a device was seen to obey."""
    return isinstance(event, Verified | Renewed | Lapsed | Released)


class Metered(NamedTuple):
    """How rows fared by their own meters: the highest reading as a share of the row's budget, and the feeds
    whose breaker was open."""

    peak_ratio: float
    opened: frozenset[str]


def metered(said: Iterable[Said], site: Site) -> Metered:
    """The course of the rows that have meters."""
    row_of = {meter: row for row in site.rows for meter in row.meters}
    reading: dict[str, float] = {}
    peak, opened = 0.0, set()
    for each in said:
        sample = each.event
        if isinstance(sample, FeedSample) and sample.subject in row_of:
            row = row_of[sample.subject]
            reading[sample.subject] = sample.power_w or 0.0
            peak = max(peak, sum(reading.get(meter, 0.0) for meter in row.meters) / row.budget_w)
            if sample.breaker_closed is False:
                opened.add(sample.subject)
    return Metered(peak, frozenset(opened))
