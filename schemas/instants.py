"""Instants: event time as whole milliseconds since the Unix epoch, UTC.

An integer keeps arithmetic exact and the order of a recording total; milliseconds are finer than
any sensor this pipeline reads (the fastest GPU power field updates every 100 ms, and its window is
25 ms). Clocks are read in one module of the runtime only; everything else is handed ``now``.
"""

from __future__ import annotations

import datetime as dt
from typing import TypeAlias

Instant: TypeAlias = int
"""Milliseconds since 1970-01-01T00:00:00Z."""

Span: TypeAlias = int
"""A length of time in milliseconds."""

SECOND: Span = 1_000
MINUTE: Span = 60 * SECOND
HOUR: Span = 60 * MINUTE


def to_text(at: Instant) -> str:
    """ISO 8601 in UTC with milliseconds: ``2026-03-01T12:00:00.250Z``."""
    moment = dt.datetime.fromtimestamp(at / 1000, tz=dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at % 1000:03d}Z"


def from_text(text: str) -> Instant:
    """The instant that ISO 8601 text names; a time without a zone is taken as UTC.

    Raises ValueError in words when the text is no time.
    """
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time; write it like 2026-03-01T12:00:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return round((moment - epoch) / dt.timedelta(milliseconds=1))
