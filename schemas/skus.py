"""GPU SKUs: the facts of a board that every part of the pipeline needs. Hardware only, no policy.

Sources: A100 clock range and base clock from the POLCA study (arXiv 2308.12908, secondary reading);
idle watts and server ratings from the public splitwise-sim constants; board power limits from the
vendors' product pages. The supported clock list of a real board is read from the board; `step_mhz`
is the spacing that NVML lists on these parts and stands in where no board can be asked. The slowdown
temperature is what nvidia-smi prints for these boards (H100: driver 590; A100: recalled; H200: taken as
the H100's).
"""

from __future__ import annotations

import math

import msgspec

SLOWDOWN_C = 85.0
"""Of a board that does not state one: where the TAPAS study (secondary reading) sees throttling begin."""


class Sku(msgspec.Struct, frozen=True, kw_only=True):
    """One board type.

    `tdp_w` is the default and `limit_min_w`..`limit_max_w` the settable power limit. `idle_w` is the
    board at rest. `server_overhead_idle_w` and `server_overhead_max_w` are what an 8-GPU server of
    this type draws besides its GPUs, at rest and at full load. At `slowdown_c` the board brakes itself.
    """

    name: str
    max_mhz: int
    min_mhz: int
    step_mhz: int
    tdp_w: float
    limit_min_w: float
    limit_max_w: float
    idle_w: float
    server_overhead_idle_w: float
    server_overhead_max_w: float
    slowdown_c: float = SLOWDOWN_C

    def round_down(self, mhz: float) -> int:
        """The highest supported clock at or below `mhz`, never below the lowest one."""
        steps = max(0, int(mhz - self.min_mhz) // self.step_mhz)
        return min(self.max_mhz, self.min_mhz + steps * self.step_mhz)

    def power_fraction(self, mhz: float) -> float:
        """Share of the dynamic power (above idle) left at `mhz`: 0.35 x + 0.65 x^2.5, x = f/fmax.

        A synthetic axis (our derivation, no published per-phase curve exists); a site that has
        swept its own boards should trust the sweep.
        """
        x = min(1.0, max(0.0, mhz / self.max_mhz))
        return 0.35 * x + 0.65 * math.pow(x, 2.5)

    def clock_for_power(self, watts: float) -> int:
        """The highest supported clock whose modelled full-load power is at or below `watts`."""
        dynamic_w = self.tdp_w - self.idle_w
        clock = self.max_mhz
        while clock > self.min_mhz and self.idle_w + dynamic_w * self.power_fraction(clock) > watts:
            clock = self.round_down(clock - self.step_mhz)
        return clock


_BUILT_IN = (
    Sku(
        name="A100-SXM4-80GB",
        max_mhz=1410,
        min_mhz=210,
        step_mhz=15,
        tdp_w=400.0,
        limit_min_w=100.0,
        limit_max_w=400.0,
        idle_w=63.0,
        server_overhead_idle_w=996.0,  # 1500 W idle server less 8 x 63 W
        server_overhead_max_w=3300.0,  # 6500 W rated server less 8 x 400 W
        slowdown_c=89.0,
    ),
    Sku(
        name="H100-SXM5-80GB",
        max_mhz=1980,
        min_mhz=345,
        step_mhz=15,
        tdp_w=700.0,
        limit_min_w=200.0,
        limit_max_w=700.0,
        idle_w=75.0,
        server_overhead_idle_w=2200.0,  # 2800 W idle server less 8 x 75 W
        server_overhead_max_w=4600.0,  # 10200 W rated server less 8 x 700 W
        slowdown_c=89.0,
    ),
    Sku(
        name="H200-SXM5-141GB",
        max_mhz=1980,
        min_mhz=345,
        step_mhz=15,
        tdp_w=700.0,
        limit_min_w=200.0,
        limit_max_w=700.0,
        idle_w=75.0,
        server_overhead_idle_w=2200.0,
        server_overhead_max_w=4600.0,
        slowdown_c=89.0,
    ),
)

SKUS: dict[str, Sku] = {sku.name: sku for sku in _BUILT_IN}
"""Boards known without being told; a site file may add its own."""
