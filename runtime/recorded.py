"""One message of a recording, with where it stood on a bus."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from schemas.envelope import Event

Place: TypeAlias = tuple[int, int]
"""Partition and offset of a message on its topic."""


class Recorded(NamedTuple):
    """A message, the row whose beat it is part of, and where it stood on a bus: None where it came from
    none, or where that is not known."""

    event: Event
    row: str
    place: Place | None = None
