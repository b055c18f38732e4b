"""What questions ask of a ledger, wherever its records are kept: in a host's file, or in InfluxDB.

The same records give the same answers from either; a test asks both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, Self

from schemas.envelope import Event
from schemas.instants import Instant


class LedgerUnreadable(Exception):
    """The ledger is none, is damaged, or cannot be read from here; the text is the operator's."""


class UnknownId(LookupError):
    """No record goes by the id that was asked for."""


class AmbiguousId(LookupError):
    """Several records have an id that begins so; the text names some."""


class Book(Protocol):
    """A ledger to ask. Questions raise LedgerUnreadable."""

    def get(self, identity: str) -> Event | None:
        """The message with this id, None when it is not here."""

    def many(self, identities: Sequence[str]) -> Mapping[str, Event]:
        """The messages with these ids, by id, without those that are not here."""

    def find(self, prefix: str) -> Event:
        """The message whose id this is or begins with. Raises UnknownId or AmbiguousId."""

    def of_type(
        self,
        kinds: Iterable[type[Event]],
        *,
        since: Instant = 0,
        until: Instant | None = None,
        subject: str = "",
        newest_first: bool = False,
    ) -> Iterator[Event]:
        """Messages of these types from `since` up to and with `until`, by event time and then by place
        in the ledger; of all subjects or of one. Read as they are asked for: to stop early is cheap."""

    def subjects(self, kinds: Iterable[type[Event]], below: str) -> list[str]:
        """The subjects at or below a path that messages of these types speak of, sorted."""

    def close(self) -> None:
        """Let go of it; safe to repeat."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


ENOUGH = 4
"""Ids to be looked up for a prefix: what it takes to name three and say that there are more."""


def the_one(prefix: str, identities: Sequence[str], event_of: Callable[[str], Event]) -> Event:
    """The message that `prefix` means, of the first `ENOUGH` ids that begin so, sorted.

    Raises UnknownId or AmbiguousId.
    """
    if not identities:
        raise UnknownId(f"no record has an id that begins with {prefix!r}")
    if len(identities) == 1 or identities[0] == prefix:
        return event_of(identities[0])
    events = [event_of(identity) for identity in identities[:3]]
    said = ", ".join(f"{event.id} ({type(event).__name__} {event.subject})" for event in events)
    raise AmbiguousId(f"{prefix!r} is ambiguous: {said}{' and more' if len(identities) > 3 else ''}")
