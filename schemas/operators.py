"""What people say to the pipeline: pins, and resets that only a person may give."""

from __future__ import annotations

from schemas.envelope import Event
from schemas.instants import HOUR, Instant, Span

LONGEST_PIN: Span = 30 * 24 * HOUR
"""A pin is for a while; what should stay belongs in the policy (our choice)."""


class Pin(Event, frozen=True, kw_only=True, tag=True):
    """A person holds the clock ceiling of `subject` (a host, a rack or a row) until `expires_at`.
    A pin is never fought; it expires. A pin above what safety allows is overruled, and says so."""

    max_mhz: int
    by: str
    reason: str
    expires_at: Instant


class Unpin(Event, frozen=True, kw_only=True, tag=True):
    """Take the pins of `subject` back before they expire."""

    by: str


class ResetBlastRadius(Event, frozen=True, kw_only=True, tag=True):
    """A person has looked: the blast-radius breaker of the row `subject` may close again."""

    by: str
    reason: str


class ReleaseAll(Event, frozen=True, kw_only=True, tag=True):
    """Give back every setting of the row or host `subject` to what was found, and stop commanding
    it until `Resume`. In an oversubscribed row what is given back falls to the safe share."""

    by: str
    reason: str


class Resume(Event, frozen=True, kw_only=True, tag=True):
    """Command `subject` again after a `ReleaseAll`."""

    by: str
