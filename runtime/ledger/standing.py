"""What outlives a process: people's words that still hold, and each row's last decision.

A host that starts anew offers these to its rows. Without the words a pin would be forgotten; without
the decision a braked row would be taken for one that nothing ever happened to.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from runtime.ledger.book import Book
from schemas.decisions import Decision
from schemas.emergencies import Emergency
from schemas.envelope import Event
from schemas.instants import Instant
from schemas.operators import Pin, ReleaseAll, Resume, Unpin
from schemas.samples import UpsSample


def pins(ledger: Book, at: Instant) -> tuple[Pin, ...]:
    """The pins in force at `at`: the newest of each subject, unless it expired or was taken back."""
    held: dict[str, Pin] = {}
    for event in ledger.of_type([Pin, Unpin], until=at):
        if isinstance(event, Pin):
            held[event.subject] = event
        else:
            held.pop(event.subject, None)
    return tuple(pin for pin in held.values() if at < pin.expires_at)


def standing(ledger: Book, at: Instant) -> tuple[Event, ...]:
    """Everything people have said that holds at `at`, in the order it was said.

    Of releases and resumes the newest word on each subject stands, and a resume too is told: it may
    take a part out of a wider release.
    """
    words: dict[str, Event] = {
        event.subject: event for event in ledger.of_type([ReleaseAll, Resume], until=at)
    }
    told = (*pins(ledger, at), *words.values())
    return tuple(sorted(told, key=lambda event: event.at))


def last_troubles(ledger: Book, at: Instant) -> tuple[UpsSample, ...]:
    """The samples behind UPS failovers that nobody has seen end: told again, so that the row is held
    until its UPSes themselves say that they are well."""
    open_: dict[str, Emergency] = {}
    for event in ledger.of_type([Emergency], until=at):
        assert isinstance(event, Emergency)
        if event.kind == "failover" and event.phase != "cleared":
            open_.setdefault(event.episode, event)
        else:
            open_.pop(event.episode, None)
    samples = (ledger.get(cause) for emergency in open_.values() for cause in emergency.cause)
    return tuple(
        msgspec.structs.replace(sample, id="", at=at, cause=(sample.id,))
        for sample in samples
        if isinstance(sample, UpsSample)
    )


def last_decisions(ledger: Book, rows: Collection[str], at: Instant) -> tuple[Decision, ...]:
    """Each row's last decision, said again at `at` as something that a new controller is told: its mode
    and since when, and an open blast-radius breaker. What it knew of power and of calm is left behind."""
    found: dict[str, Decision] = {}
    for event in ledger.of_type([Decision], until=at, newest_first=True):
        assert isinstance(event, Decision)
        if event.subject in rows:
            found.setdefault(event.subject, event)
        if len(found) == len(rows):
            break
    return tuple(
        msgspec.structs.replace(
            decision,
            id="",
            at=at,
            source="runtime/restart",
            cause=(decision.id,),
            refusal="",
            notes={key: value for key, value in decision.notes.items() if key == "blast_open_at"},
        )
        for decision in found.values()
    )
