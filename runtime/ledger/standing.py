"""What people have said and still holds: pins not expired or taken back, releases not resumed.

A host that starts anew offers these to its rows again, for a person's word outlives a process.
"""

from __future__ import annotations

from runtime.ledger.store import Ledger
from schemas.envelope import Event
from schemas.instants import Instant
from schemas.operators import Pin, ReleaseAll, Resume, Unpin


def covers(subject: str, path: str) -> bool:
    """Whether a location path is `subject` or lies below it."""
    return path == subject or path.startswith(subject + "/")


def pins(ledger: Ledger, at: Instant) -> tuple[Pin, ...]:
    """The pins in force at `at`: the newest of each subject, unless it expired or was taken back."""
    held: dict[str, Pin] = {}
    for event in ledger.of_type([Pin, Unpin], until=at):
        if isinstance(event, Pin):
            held[event.subject] = event
        else:
            held.pop(event.subject, None)
    return tuple(pin for pin in held.values() if at < pin.expires_at)


def standing(ledger: Ledger, at: Instant) -> tuple[Event, ...]:
    """Everything people have said that holds at `at`, in the order it was said.

    Of releases and resumes the newest word on each subject stands, and a resume too is told: it may
    take a part out of a wider release.
    """
    words: dict[str, Event] = {
        event.subject: event for event in ledger.of_type([ReleaseAll, Resume], until=at)
    }
    told = (*pins(ledger, at), *words.values())
    return tuple(sorted(told, key=lambda event: event.at))
