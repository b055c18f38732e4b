"""One line of the table."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """A figure: what was measured, the goal set for it, and what stands beside it for comparison."""

    name: str
    measured: str
    goal: str = ""
    beside: str = ""
    value: float = 0.0
