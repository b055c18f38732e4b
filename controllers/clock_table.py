"""Clock tables: the clocks POLCA's steps stand for, per board type.

The published steps are A100 clocks. Another board starts from the same fractions of its highest
clock, which is a start and no more: equal fractions do not give equal power cuts, so a site has to
allow them by name, and should sweep its own boards (lowest clock with a median latency loss below
1 % for `high_t2` and below 5 % for `low_t2`) and state the result in its policy file.

========  ============  ==============  =================================
step      A100 (MHz)    share of max    source of the A100 value
========  ============  ==============  =================================
low_t1    1275          0.904           POLCA, published
high_t2   1305          0.926           POLCA, published
low_t2    1110          0.787           POLCA, published
brake     288           0.204           POLCA, secondary reading
========  ============  ==============  =================================

The shares are our derivation (published clock over 1410 MHz).
"""

from __future__ import annotations

from functools import cache

import msgspec

from schemas.skus import Sku
from schemas.topology import Priority


class ClockTable(msgspec.Struct, frozen=True, kw_only=True):
    """The ceilings of one board type, MHz, as stated: not yet rounded to what the board supports."""

    low_t1: int
    high_t2: int
    low_t2: int
    brake: int


class Uncalibrated(ValueError):
    """No clock table may be used for a board type; the text is for the operator."""


PUBLISHED: dict[str, ClockTable] = {
    "A100-SXM4-80GB": ClockTable(low_t1=1275, high_t2=1305, low_t2=1110, brake=288),
}
"""The tables that need no calibration: the boards the study ran on."""

FRACTIONS = {"low_t1": 0.904, "high_t2": 0.926, "low_t2": 0.787, "brake": 0.204}
"""Share of the highest clock per step (derived from the A100's)."""


class Clocks(msgspec.Struct, frozen=True, kw_only=True):
    """A clock table settled on one board: every entry is a clock the board supports."""

    max: int
    low_t1: int
    high_t2: int
    low_t2: int
    brake: int

    def rungs(self, priority: Priority) -> tuple[int, ...]:
        """The ceilings a host of this priority climbs back through, strictest first."""
        if priority == "low":
            return (self.brake, self.low_t2, self.low_t1, self.max)
        return (self.brake, self.high_t2, self.max)


def from_fractions(sku: Sku) -> ClockTable:
    """The starting table of a board nobody has swept, before rounding."""
    return ClockTable(**{step: int(share * sku.max_mhz) for step, share in FRACTIONS.items()})


@cache
def settle(table: ClockTable, sku: Sku) -> Clocks:
    """The table on this board: each entry rounded *down* to a supported clock. Raises Uncalibrated
    where the order that the steps rely on is lost: brake < low_t2 < low_t1 < max, low_t2 < high_t2 < max."""
    clocks = Clocks(
        max=sku.max_mhz,
        low_t1=sku.round_down(table.low_t1),
        high_t2=sku.round_down(table.high_t2),
        low_t2=sku.round_down(table.low_t2),
        brake=sku.round_down(table.brake),
    )
    low = clocks.brake < clocks.low_t2 < clocks.low_t1 < clocks.max
    if not (low and clocks.low_t2 < clocks.high_t2 < clocks.max):
        raise Uncalibrated(
            f"clocks of {sku.name}: brake {clocks.brake} < low_t2 {clocks.low_t2} < low_t1 {clocks.low_t1} "
            f"< max {clocks.max} and low_t2 < high_t2 {clocks.high_t2} < max must hold "
            f"(MHz, rounded down to the {sku.step_mhz} MHz steps that the board supports)"
        )
    return clocks
