"""What a controller is: a pure look at a view that states what should be in force.

    decide(view, policy, now) -> Decision

`Requirements` say how fresh and how complete the view must be; below that the controller refuses in
a sentence, and the fail direction applies. The decision is a message of its own (`schemas.decisions`).
"""

from __future__ import annotations

import msgspec

from schemas.instants import Span


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """The least a view must offer: power known no longer ago than `freshness_ms`, and readings for
    at least `coverage_ratio` of the row's nameplate."""

    freshness_ms: Span
    coverage_ratio: float


class Refusal(Exception):
    """The view does not meet the requirements; the text is the sentence for the operator."""
