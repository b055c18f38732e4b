"""Breakers and the UPS's patience: how long an overload may last before the row goes dark.

Both are what control is for, so both keep honest time. The curve of a breaker is the thermal-overload
law of IEC 60255-149 (an I²t bimetal with memory); its parameters are our choice, on the quick side of
moulded-case breakers. The deadline of a UPS is the ~10 s that secondary sources on POLCA and TAPAS
give.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from schemas.units import FloatArray


class TripCurve(msgspec.Struct, frozen=True, kw_only=True):
    """A thermal-magnetic breaker, loads as a ratio of its continuous rating.

    Heat follows the square of the load with `time_constant_s`; the breaker opens when heat passes
    the square of `pickup_ratio`, or at once at `instant_ratio`. All three are our choice: from the
    heat of a load of 0.95, a load of 1.03 opens it in 5.7 min, 1.05 in 3.9 min, 2.0 in 11 s.
    """

    pickup_ratio: float = 1.005
    time_constant_s: float = 300.0
    instant_ratio: float = 5.0

    def trips_after_s(self, ratio: float, before: float = 0.0) -> float:
        """Seconds a constant load of `ratio` is carried after a long load of `before`; inf: for ever."""
        if ratio >= self.instant_ratio:
            return 0.0
        if ratio <= self.pickup_ratio:
            return math.inf
        heat = ratio**2
        return max(0.0, self.time_constant_s * math.log((heat - before**2) / (heat - self.pickup_ratio**2)))


class Breakers:
    """Breakers side by side, one per load; closed at first, at the heat of `before`.

    A breaker that has opened stays open.
    """

    def __init__(self, count: int, curve: TripCurve, *, before: float = 0.0) -> None:
        self.curve = curve
        self.heat: FloatArray = np.full(count, before**2)
        self.closed = np.ones(count, dtype=bool)

    def step(self, ratio: FloatArray, dt_s: float) -> bool:
        """Carry these loads (shape (breakers,), as a ratio of the rating) for `dt_s`. True when one
        opened."""
        self.heat += (np.square(ratio) - self.heat) * -math.expm1(-dt_s / self.curve.time_constant_s)
        opens = (self.heat >= self.curve.pickup_ratio**2) | (ratio >= self.curve.instant_ratio)
        opens &= self.closed
        if not opens.any():
            return False
        self.closed &= ~opens
        return True


class UpsDeadline:
    """A UPS on battery: it carries `capacity_w`, and more than that for `deadline_s` at most.

    Seconds above capacity add up while it is on battery and are forgotten when mains returns;
    `longest_s` is the most that any failure came to.
    """

    def __init__(self, deadline_s: float = 10.0) -> None:
        self.deadline_s = deadline_s
        self.on_battery = False
        self.capacity_w = math.inf
        self.over_s = self.longest_s = 0.0

    def fail(self, capacity_w: float) -> None:
        """Mains is lost."""
        self.on_battery, self.capacity_w = True, capacity_w

    def restore(self) -> None:
        """Mains is back."""
        self.on_battery, self.capacity_w, self.over_s = False, math.inf, 0.0

    def step(self, power_w: float, dt_s: float) -> bool:
        """Carry this power for `dt_s`. True when patience has run out and the UPS drops the load."""
        if power_w > self.capacity_w:
            self.over_s += dt_s
            self.longest_s = max(self.longest_s, self.over_s)
        return self.over_s >= self.deadline_s
