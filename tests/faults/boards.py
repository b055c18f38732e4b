"""The plant: GPU boards behind NVIDIA's library, under a load, which outlive every process that sets them.

Each host's boards are a file that the stand-in library of `support.nvml_shim` works on. What they do is
known here from outside, whatever a collector says of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from support.nvml_shim import ShimState, environment

from schemas.instants import SECOND, Instant
from schemas.topology import Row, Site
from twin.breaker import Breakers, TripCurve

_LOAD = (0.4, 0.85)  # of the boards' highest draw: from no cap at all to above the row's budget
_SWING_S = 40.0
_OTHER_RATIO = 0.95  # load of the row on its breaker before anything is looked at


class Seen(NamedTuple):
    """A host's boards at an instant: the highest clock of them, and what the whole server draws at most."""

    at: Instant
    host: str
    mhz: float
    power_w: float


class Boards:
    """The boards of every host of some rows, and the rows' breakers."""

    def __init__(self, site: Site, rows: Sequence[Row], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.seen: list[Seen] = []
        self.opened: set[str] = set()
        """Rows whose breaker would have opened, by the twin's thermal curve."""
        self._site, self._rows = site, rows
        hosts = [host for row in rows for host in row.hosts]
        self.states = {
            host.path: ShimState(folder / f"{place}.nvml", gpus=host.gpu_count, host=place)
            for place, host in enumerate(hosts)
        }
        self._chance = random.Random(1)
        self._breakers = Breakers(len(rows), TripCurve(), before=_OTHER_RATIO)
        self._at: Instant | None = None

    def environment(self, host: str) -> dict[str, str]:
        """What a process needs to find a host's boards."""
        return environment(self.states[host])

    def advance(self, now: Instant) -> None:
        """Load the boards as they are at `now`, and note what they do."""
        low, high = _LOAD
        level = low + (high - low) * (1 - math.cos(2 * math.pi * now / SECOND / _SWING_S)) / 2
        for path, state in self.states.items():
            for gpu in state.gpus:
                gpu.utilisation = 95
                jitter = self._chance.uniform(0.97, 1.03)  # no two boards, and no two readings, are the same
                gpu.demand_mw = round(gpu.limit_default_mw * level * jitter)
            mhz = max(gpu.expected_mhz() for gpu in state.gpus)
            boards_w = sum(gpu.expected_mw() for gpu in state.gpus) / 1000
            self.seen.append(Seen(now, path, mhz, boards_w + self._site.hosts[path].overhead_max_w))
        self._carry(now)

    def _carry(self, now: Instant) -> None:
        power = {seen.host: seen.power_w for seen in self.seen[-len(self.states) :]}
        ratio = [sum(power[host.path] for host in row.hosts) / row.budget_w for row in self._rows]
        if self._at is not None and self._breakers.step(np.array(ratio), (now - self._at) / SECOND):
            closed = zip(self._rows, self._breakers.closed, strict=True)
            self.opened |= {row.path for row, holds in closed if not holds}
        self._at = now

    def peak_ratio(self, since: Instant) -> float:
        """The highest power of a row from `since` on, as a share of its budget."""
        row_of = {host.path: row for row in self._rows for host in row.hosts}
        sums: dict[tuple[Instant, str], float] = {}
        for seen in self.seen:
            if seen.at >= since:
                row = row_of[seen.host]
                key = seen.at, row.path
                sums[key] = sums.get(key, 0.0) + seen.power_w / row.budget_w
        return max(sums.values(), default=0.0)
