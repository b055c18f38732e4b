"""What a collector is: something that reads one part of the plant and says what it read.

A collector reads and never sets. A device that does not answer yields *unknown* (None) and a fault
in words for that device, never a zero, and never an exception that stops the devices beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from schemas.envelope import Event
from schemas.instants import Instant, Span


class CollectorError(Exception):
    """The source as a whole cannot be read (no driver, no file); the text is for the operator."""


class Collector(Protocol):
    """One source of samples, polled by its host.

    `name` is stable and stands in the `source` of its messages. `period_ms` is how often it wants to
    be polled. `poll` returns what was read at `now`, possibly nothing; it must be cheap to call
    again after a failure, and raises CollectorError only when the whole source is away.
    """

    @property
    def name(self) -> str: ...

    @property
    def period_ms(self) -> Span: ...

    def poll(self, now: Instant) -> Sequence[Event]: ...

    def close(self) -> None: ...
