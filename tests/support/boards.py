"""A few GPUs in memory, behind the twin's NVML façade: for tests of what an agent does with a host.

The registers are those of the twin: one clock lock that the host's driver and the BMC both write, the
brake line beside it, one power limit. A write lands after its path's latency. Busy boards run as fast as
they are allowed and draw power with the square of the clock, up to their limit.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.commands import Path
from schemas.instants import SECOND, Span
from schemas.skus import SKUS, Sku
from schemas.topology import Host
from twin.nvml import NVMLError, Readings, Setting, TwinNvml

NO_PERMISSION = 4
GPU_IS_LOST = 15

LATENCIES: Mapping[Path, Span] = {"in_band": 0, "out_of_band": 40 * SECOND, "brake": 5 * SECOND}


def make_host(
    gpus: int = 2,
    *,
    paths: tuple[Path, ...] = ("in_band",),
    uuids: tuple[str, ...] = (),
    sku: str = "A100-SXM4-80GB",
) -> Host:
    """One server of a row."""
    board = SKUS[sku]
    return Host(
        path="ams1/row-a/r01/h01",
        rack="ams1/row-a/r01",
        row="ams1/row-a",
        sku=board,
        gpu_count=gpus,
        priority="low",
        rated_w=gpus * board.tdp_w + board.server_overhead_max_w,
        overhead_idle_w=board.server_overhead_idle_w,
        overhead_max_w=board.server_overhead_max_w,
        paths=paths,
        uuids=uuids,
    )


@dataclass
class Board:
    """One GPU's registers, and what stands behind them."""

    lock_mhz: float
    brake_mhz: float
    limit_w: float
    busy: bool = True
    refusal: int = 0  # the code that every call on it raises
    deaf: bool = False  # takes writes and does nothing


@dataclass(order=True)
class _Landing:
    at: Span
    number: int
    path: Path = field(compare=False)
    gpu: int = field(compare=False)
    setting: Setting = field(compare=False)
    high: float = field(compare=False)


class Boards:
    """The plant behind the façades; `writes` is every setting accepted, in order, as
    (path, gpu, setting, value)."""

    def __init__(
        self, host: Host, latencies: Mapping[Path, Span] = LATENCIES, *, limit_w: float = 0.0
    ) -> None:
        sku = host.sku
        self.host = host
        self.latencies = dict(latencies)
        self.now: Span = 0
        self.gpus = [
            Board(sku.max_mhz, sku.max_mhz, limit_w or sku.limit_max_w) for _ in range(host.gpu_count)
        ]
        self.writes: list[tuple[Path, int, Setting, float]] = []
        self.denied = False
        self.readings = Readings()
        self._landings: list[_Landing] = []
        self._show()

    def nvml(self, path: Path) -> TwinNvml:
        """The host by one path."""
        uuids = self.host.uuids or tuple(f"GPU-{index}" for index in range(self.host.gpu_count))
        return TwinNvml(self, self.host, path, 0, uuids)

    def write(self, path: Path, gpu: int, setting: Setting, low: float, high: float) -> None:
        if self.denied:
            raise NVMLError(NO_PERMISSION)
        self.writes.append((path, gpu, setting, high))
        heapq.heappush(
            self._landings,
            _Landing(self.now + self.latencies[path], len(self.writes), path, gpu, setting, high),
        )
        self.advance(0)

    def advance(self, span: Span) -> None:
        """Let time pass: writes land."""
        self.now += span
        while self._landings and self._landings[0].at <= self.now:
            landing = heapq.heappop(self._landings)
            board = self.gpus[landing.gpu]
            if board.deaf:
                continue
            if landing.setting == "limit":
                board.limit_w = landing.high
                continue
            clock = landing.high if landing.setting == "lock" else float(self.host.sku.max_mhz)
            if landing.path == "brake":
                board.brake_mhz = clock
            else:
                board.lock_mhz = clock
        self._show()

    def reload_driver(self) -> None:
        """Locks and limits are forgotten."""
        for board in self.gpus:
            board.lock_mhz, board.limit_w = self.host.sku.max_mhz, self.host.sku.tdp_w
        self._show()

    def fault(self, gpu: int, code: int) -> None:
        """Every call on a GPU raises `code`; 0 ends it."""
        self.gpus[gpu].refusal = code
        self._show()

    @property
    def clocks(self) -> tuple[float, ...]:
        """The highest SM clock that each GPU may run at."""
        return tuple(min(board.lock_mhz, board.brake_mhz) for board in self.gpus)

    @property
    def limits(self) -> tuple[float, ...]:
        """Each GPU's power limit, W."""
        return tuple(board.limit_w for board in self.gpus)

    def _show(self) -> None:
        sku = self.host.sku
        readings = self.readings
        silent = [board.refusal != 0 for board in self.gpus]
        clocks = [
            None if gone else int(clock if board.busy else sku.min_mhz)
            for board, clock, gone in zip(self.gpus, self.clocks, silent, strict=True)
        ]
        readings.sm_mhz = [*clocks]
        readings.power_mw = [
            None if gone else round(1000 * self._power_w(sku, board, clock))
            for board, clock, gone in zip(self.gpus, clocks, silent, strict=True)
        ]
        readings.average_mw = [*readings.power_mw]
        readings.limit_mw = [
            None if gone else round(1000 * board.limit_w)
            for board, gone in zip(self.gpus, silent, strict=True)
        ]
        readings.refusals = {i: board.refusal for i, board in enumerate(self.gpus) if board.refusal}

    @staticmethod
    def _power_w(sku: Sku, board: Board, clock: int | None) -> float:
        busy = sku.idle_w + (sku.tdp_w - sku.idle_w) * ((clock or 0) / sku.max_mhz) ** 2
        return min(board.limit_w, busy if board.busy else sku.idle_w)
