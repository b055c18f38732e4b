"""How power and speed of a board follow its clock, and a power limit through the clock.

With x the clock as a share of the highest, a board that is at work draws

    static_w + (demand_w − static_w) (a x + (1 − a) x^b)

and takes k / x + 1 − k times as long, k being the part of the work that waits for the clock. A power limit
acts by the clock: the board runs at the highest at which its draw is within the limit.

Figures of boards are in `coefficients/clocks.json`, which `twin.clocks.fit` makes from sweeps of the
power limit. A clock was not recorded there: it is known from the slowdown alone, with k at most 1, so it may
have been lower than the fit says, and never higher. `SYNTHETIC` is the axis of `Sku.power_fraction`.
"""

from __future__ import annotations

import msgspec
import numpy as np

from schemas.units import FloatArray
from twin.provenance import Provenance

_GRID = np.linspace(0.02, 1.0, 491)


class ClockAxis(msgspec.Struct, frozen=True, kw_only=True):
    """The share of a board's dynamic power that is left at a clock: `linear` x + (1 - `linear`) x^`power`."""

    linear: float
    power: float

    def power_left(self, clock_ratio: FloatArray) -> FloatArray:
        """The share of the dynamic power left at these clocks, 0 to 1."""
        x = np.clip(clock_ratio, 0.0, 1.0)
        left: FloatArray = self.linear * x + (1.0 - self.linear) * x**self.power
        return left

    def clock_ratio(self, power_left: FloatArray) -> FloatArray:
        """The highest clock at which no more than this share of the dynamic power is left (to a
        thousandth)."""
        return np.interp(power_left, self.power_left(_GRID), _GRID)


SYNTHETIC = ClockAxis(linear=0.35, power=2.5)
"""The axis that controllers work out safe shares with."""


def slowdown(clock_ratio: FloatArray, clock_share: FloatArray | float) -> FloatArray:
    """How much longer work takes of which `clock_share` waits for the clock."""
    return clock_share / clock_ratio + 1.0 - clock_share


class BoardAxis(msgspec.Struct, frozen=True, kw_only=True):
    """A board's axis, learned from a sweep. `static_w` is what it draws at work however low the clock;
    `clock_share` are the quartiles of k over the workloads that the sweep slowed down."""

    axis: ClockAxis
    static_w: float
    clock_share: tuple[float, float, float]
    workloads: int
    slowed: int


class ClockCoefficients(msgspec.Struct, frozen=True, kw_only=True):
    """The axes of the boards that were swept, by the name their recordings use."""

    boards: dict[str, BoardAxis]
    provenance: Provenance
