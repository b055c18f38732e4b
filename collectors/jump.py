"""When a reading cannot wait for its tick: the boards' power or a temperature has moved by too much."""

from __future__ import annotations

from schemas.samples import GpuFrame
from schemas.units import Reading, Row

POWER_RATIO = 0.15
"""Of the boards' nameplate: their summed power has jumped when it has moved by more (our choice)."""

CORE_C = 5.0
"""A board's temperature has jumped when it has moved by more, in degrees: a share of degrees Celsius
would mean nothing (our choice)."""


def jumped(published: GpuFrame, sample: GpuFrame, rated_w: float) -> bool:
    """Whether a host's newest sample must not wait, going by the last sample of what was published.

    `rated_w` is the nameplate of all its boards. A board that is unknown in either has not moved: that it
    fell silent or spoke again is seen soon enough.
    """
    if published.gpus != sample.gpus:
        return True
    moved_w = sum(_moves(_newest(published), _newest(sample)))
    return abs(moved_w) > POWER_RATIO * rated_w or any(
        abs(moved) > CORE_C for moved in _moves(published.core_c, sample.core_c)
    )


def _newest(frame: GpuFrame) -> Row:
    grid = frame.best_power_w
    return grid[-1] if grid else ()


def _moves(before: tuple[Reading, ...], now: tuple[Reading, ...]) -> list[float]:
    """By how much each reading moved that is known in both."""
    pairs = zip(before, now, strict=False)
    return [new - old for old, new in pairs if old is not None and new is not None]
