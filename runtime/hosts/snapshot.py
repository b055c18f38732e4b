"""A row's state as bytes and back, without running anybody's code.

Skeleton; see `RowLog` for who calls it.
"""

from __future__ import annotations

import msgspec

from runtime.row_loop import RowLoop, RowState
from schemas.instants import Instant


class SnapshotRefused(ValueError):
    """The bytes are no snapshot that this row can go on from; the text says why."""


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Where in its log a row stands after a beat: by topic the offset that was taken in up to, the epoch
    and source of the beat's tick, and its time."""

    upto: dict[str, int] = {}
    epoch: int = 0
    owner: str = ""
    at: Instant = -1


def freeze(state: RowState, loop: RowLoop, mark: Mark) -> bytes:
    """The state after a beat, with where in its log the row stands."""
    raise NotImplementedError


def thaw(payload: bytes, loop: RowLoop) -> tuple[RowState, Mark]:
    """The state and the mark in a snapshot. Raises SnapshotRefused in words."""
    raise NotImplementedError


def mark_of(payload: bytes) -> Mark:
    """Only the mark, to tell the newest of several (`at` within the highest `epoch`): a host that has lost
    its row and does not know yet may write an older snapshot last. Raises SnapshotRefused in words."""
    raise NotImplementedError
