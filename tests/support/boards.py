"""A few GPUs in memory, with the NVML calls that the actuator makes: for tests of what an agent does.

Two wirings. `own`: each path keeps settings of its own and the tightest is in force, as a driver, a BMC
and a brake line do. `shared`: all paths write the same settings and the last one counts, as where every
path is the host's driver. A write lands after its path's latency. Busy boards run as fast as they are
allowed and draw power with the square of the clock, up to their limit.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from schemas.commands import Path
from schemas.instants import SECOND, Span
from schemas.skus import SKUS
from schemas.topology import Host

NOT_FOUND = 6
NO_PERMISSION = 4
GPU_IS_LOST = 15

Wiring: TypeAlias = Literal["own", "shared"]
Setting: TypeAlias = Literal["lock", "unlock", "limit"]

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


class NVMLError(Exception):
    """As pynvml's: `value` is the return code."""

    def __init__(self, value: int) -> None:
        words = {4: "Insufficient Permissions", 6: "Not Found", 9: "Driver Not Loaded", 15: "GPU is lost"}
        super().__init__(words.get(value, f"NVML error {value}"))
        self.value = value


@dataclass
class Board:
    """One GPU: its settings by path, and what stands behind them."""

    lock_mhz: dict[Path, float]
    limit_w: dict[Path, float]
    busy: bool = True
    refusal: int = 0  # the code that every call on it raises
    denied: bool = False  # writes raise NO_PERMISSION
    deaf: bool = False  # takes writes and does nothing

    @property
    def clock(self) -> float:
        """The highest SM clock that it may run at."""
        return min(self.lock_mhz.values())

    @property
    def limit(self) -> float:
        """The power limit in force, W."""
        return min(self.limit_w.values())

    def run_free(self, mhz: float, limit_w: float) -> None:
        """What a driver reload leaves."""
        self.lock_mhz = dict.fromkeys(self.lock_mhz, mhz)
        self.limit_w = dict.fromkeys(self.limit_w, limit_w)


@dataclass(order=True)
class _Landing:
    at: Span
    number: int
    path: Path = field(compare=False)
    board: Board = field(compare=False)
    setting: Setting = field(compare=False)
    value: float = field(compare=False)


class Boards:
    """The GPUs of a host. `writes` is every setting accepted, as (path, gpu, setting, value). The next
    `lose` of them get lost on the way, of those by the path `lose_by` where that is set."""

    def __init__(
        self,
        host: Host,
        latencies: Mapping[Path, Span] = LATENCIES,
        *,
        limit_w: float = 0.0,
        wiring: Wiring = "own",
    ) -> None:
        sku = host.sku
        self.host = host
        self.latencies = dict(latencies)
        self.wiring = wiring
        self.now: Span = 0
        self.writes: list[tuple[Path, int, Setting, float]] = []
        self.lose = 0
        self.lose_by: Path | None = None
        registers: tuple[Path, ...] = host.paths if wiring == "own" else ("in_band",)
        self.gpus = [
            Board(
                dict.fromkeys(registers, float(sku.max_mhz)),
                dict.fromkeys(registers, limit_w or sku.limit_max_w),
            )
            for _ in range(host.gpu_count)
        ]
        self._landings: list[_Landing] = []

    def nvml(self, path: Path) -> Facade:
        """The host by one path."""
        return Facade(self, path)

    def write(self, path: Path, gpu: int, setting: Setting, value: float) -> None:
        """Accept a setting."""
        self.writes.append((path, gpu, setting, value))
        if self.lose and path == (self.lose_by or path):
            self.lose -= 1
            return
        register: Path = path if self.wiring == "own" else "in_band"
        at = self.now + self.latencies[path]
        landing = _Landing(at, len(self.writes), register, self.gpus[gpu], setting, value)
        heapq.heappush(self._landings, landing)
        self.advance(0)

    def advance(self, span: Span) -> None:
        """Let time pass: writes land."""
        self.now += span
        while self._landings and self._landings[0].at <= self.now:
            landing = heapq.heappop(self._landings)
            board = landing.board
            if board.deaf:
                continue
            if landing.setting == "limit":
                board.limit_w[landing.path] = landing.value
            else:
                board.lock_mhz[landing.path] = landing.value

    def reload_driver(self) -> None:
        """Locks and limits are forgotten."""
        for board in self.gpus:
            board.run_free(self.host.sku.max_mhz, self.host.sku.tdp_w)

    @property
    def clocks(self) -> tuple[float, ...]:
        """The highest SM clock that each GPU may run at."""
        return tuple(board.clock for board in self.gpus)

    @property
    def limits(self) -> tuple[float, ...]:
        """Each GPU's power limit, W."""
        return tuple(board.limit for board in self.gpus)

    def sm_mhz(self, board: Board) -> float:
        """The clock it runs at."""
        return board.clock if board.busy else self.host.sku.min_mhz

    def power_w(self, board: Board) -> float:
        """What it draws."""
        sku = self.host.sku
        wanted = sku.idle_w + (sku.tdp_w - sku.idle_w) * (self.sm_mhz(board) / sku.max_mhz) ** 2
        return min(board.limit, wanted if board.busy else sku.idle_w)


class Facade:
    """The NVML calls on `boards` by one path; handles are the indices."""

    NVMLError = NVMLError

    def __init__(self, boards: Boards, path: Path) -> None:
        self._boards = boards
        self._path: Path = path
        self._register: Path = path if boards.wiring == "own" else "in_band"
        self._uuids = boards.host.uuids or tuple(f"GPU-{index}" for index in range(boards.host.gpu_count))

    def nvmlInit(self) -> None:
        pass

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> int:
        self._board(index)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str, /) -> int:
        if uuid not in self._uuids:
            raise NVMLError(NOT_FOUND)
        return self.nvmlDeviceGetHandleByIndex(self._uuids.index(uuid))

    def nvmlDeviceGetUUID(self, handle: int, /) -> str:
        return self._uuids[handle]

    def nvmlDeviceGetPowerManagementLimit(self, handle: int, /) -> int:
        return round(1000 * self._board(handle).limit_w[self._register])

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: int, /) -> int:
        return round(1000 * self._boards.host.sku.tdp_w)

    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle: int, /) -> list[int]:
        sku = self._boards.host.sku
        return [round(1000 * sku.limit_min_w), round(1000 * sku.limit_max_w)]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int, /) -> int:
        return round(1000 * self._board(handle).limit)

    def nvmlDeviceGetPowerUsage(self, handle: int, /) -> int:
        return round(1000 * self._boards.power_w(self._board(handle)))

    def nvmlDeviceGetClockInfo(self, handle: int, clock: int, /) -> int:
        return int(self._boards.sm_mhz(self._board(handle)))

    def nvmlDeviceSetGpuLockedClocks(self, handle: int, min_mhz: int, max_mhz: int, /) -> None:
        self._set(handle, "lock", max_mhz)

    def nvmlDeviceResetGpuLockedClocks(self, handle: int, /) -> None:
        self._set(handle, "unlock", self._boards.host.sku.max_mhz)

    def nvmlDeviceSetPowerManagementLimit(self, handle: int, limit_mw: int, /) -> None:
        self._set(handle, "limit", limit_mw / 1000)

    def _board(self, handle: int) -> Board:
        board = self._boards.gpus[handle]
        if board.refusal:
            raise NVMLError(board.refusal)
        return board

    def _set(self, handle: int, setting: Setting, value: float) -> None:
        if self._board(handle).denied:
            raise NVMLError(NO_PERMISSION)
        self._boards.write(self._path, handle, setting, value)
