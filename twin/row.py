"""A row of inference servers, simulated: the plant that closes actuators to collectors.

`TwinRow` moves in fixed steps, whatever `advance` is called with, so the plant's course depends on the
seed and on what was written when, and on nothing else. What a sensor shows depends on the seed and the
moment it is read at. It offers the vendors' seams: NVML per host and path, and meters on the power tree.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.commands import Path
from schemas.instants import MINUTE, SECOND, Instant, Span
from schemas.topology import Host, PowerNode, Priority, Rack, Site
from schemas.units import FloatArray
from twin.breaker import Breakers, TripCurve, UpsDeadline
from twin.nvml import (
    GPU_IS_LOST,
    REASON_HW_POWER_BRAKE,
    REASON_IDLE,
    REASON_SW_POWER_CAP,
    TIMEOUT,
    Readings,
    Setting,
    TwinNvml,
    unanswered,
)
from twin.server import Requests, Servers
from twin.serving.sensor import board_gains
from twin.workload import MINUTE_S, Arrivals, Burst, Load, LoadProfile, PoissonLoad

OobLatency: TypeAlias = Literal["constant_40", "uniform_to_40"]
GpuFault: TypeAlias = Literal["lost", "hung", "stuck", "zero", "lying"]
MeterFault: TypeAlias = Literal["silent", "stuck", "zero", "lying"]

WARM_UP_MS: Span = 3 * MINUTE
METER_WINDOW_S = 2.0  # a meter shows the mean of so long (the study's telemetry period, recalled)
UPS_FAILOVER_RATIO = 0.75  # of the row's budget that is left on battery (secondary source on TAPAS)
_SENSOR_NOISE = 0.003  # our choice; the boards' gain of +-5 % is published
_MEMORY_OVER_CORE_C = 6.0
_MEMORY_MHZ = 1593

STUDY_HOUR = LoadProfile(
    requests_per_s=0.28,
    points=(
        (0.0, 0.03),
        (300.0, 0.04),
        (900.0, 0.15),
        (1500.0, 0.3),
        (1800.0, 0.32),
        (2100.0, 0.33),
        (2700.0, 0.33),
        (3000.0, 0.25),
        (3300.0, 0.08),
        (3600.0, 0.03),
    ),
    bursts=(
        Burst(at_s=1200.0, rise_s=30.0, hold_s=60.0, height_ratio=0.2),
        Burst(at_s=2160.0, rise_s=100.0, hold_s=250.0, height_ratio=0.62),
    ),
    wander_ratio=0.02,
)

"""An evening hour set so that 40 DGX-A100 servers peak at the published 0.79 of their 260 kW, and rise by
0.08 to 0.13 of it in 40 s (published: 0.118). With 52 servers it touches the budget (0.79 x 1.30 = 1.027)
for half a minute, which opens no breaker: physics is more patient than a threshold."""

DEMO = msgspec.structs.replace(STUDY_HOUR, requests_per_s=0.45)
"""The same hour on a bad evening, for the demonstration: enough more requests that the surge draws some
8 % more power (the study's robustness run, recalled, has 5 %). Uncontrolled, 52 servers are then above the
budget for almost six minutes, at 1.06 in the mean, and the row's breaker opens after some 41 minutes."""


class MeterReading(msgspec.Struct, frozen=True):
    """What a meter says at once. `on_battery` is None where the node is no UPS."""

    power_w: float
    breaker_closed: bool
    on_battery: bool | None


class TwinMeter:
    """The meter of one node of the power tree."""

    def __init__(self, row: TwinRow, node: PowerNode, place: int) -> None:
        self._row, self._node, self._place = row, node, place
        self._fault: MeterFault | None = None
        self._frozen_w = 0.0
        self._factor = 1.0

    def read(self) -> MeterReading:
        """Power over the last two seconds, and the breaker. Raises TimeoutError where it is silent."""
        if self._fault == "silent":
            raise TimeoutError("it does not answer")
        power, closed, on_battery = self._row.measure(self._place)
        if self._fault == "stuck":
            power = self._frozen_w
        elif self._fault == "zero":
            power = 0.0
        elif self._fault == "lying":
            power *= self._factor
        return MeterReading(power, closed, on_battery if self._node.kind == "ups" else None)

    def fail(self, fault: MeterFault, factor: float = 0.8) -> None:
        """From now on it is silent, repeats itself, reads zero, or reads `factor` times the power."""
        self._frozen_w = self._row.measure(self._place)[0]
        self._fault, self._factor = fault, factor

    def mend(self) -> None:
        """It reads true again."""
        self._fault = None


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to. `over_budget_s` counts steps whose power was above the row's budget;
    `peak_w` is the highest mean of two seconds. Latencies are from arrival to last token."""

    seconds: float
    energy_j: float
    peak_w: float
    over_budget_s: float
    tripped_at: Instant | None
    trip_cause: str
    requests: dict[Priority, Requests]
    latency_p50_s: dict[Priority, float]
    latency_p99_s: dict[Priority, float]


class History(msgspec.Struct, frozen=True, kw_only=True):
    """The course of a run at one resolution; arrays of shape (points,). Power is the mean and the
    highest two-second mean since the point before, clocks the mean ceiling of a priority's GPUs."""

    at_s: npt.NDArray[np.float32]
    power_w: npt.NDArray[np.float32]
    peak_w: npt.NDArray[np.float32]
    low_mhz: npt.NDArray[np.float32]
    high_mhz: npt.NDArray[np.float32]
    hottest_c: npt.NDArray[np.float32]


class _Write(msgspec.Struct, order=True):
    """A setting on its way. Ordered by when it lands, then by when it was asked for."""

    due: Instant
    number: int
    path: Path
    gpu: int
    setting: Setting
    low: float
    high: float


class TwinRow:
    """One row of a site.

    `advance` moves it, `nvml`, `meters` and `upses` are its interfaces, the properties below tell the
    truth that no sensor sees. A breaker or UPS that gives way makes what it feeds dark for good: the
    hosts draw nothing, their GPUs are lost and their requests too.

    Each path keeps settings of its own, and the tightest is in force: a lock in band does not lift the
    BMC's, nor either the brake.
    """

    def __init__(
        self,
        site: Site,
        row_path: str,
        *,
        seed: int,
        start: Instant = 0,
        load: LoadProfile | Load | None = None,
        oob_latency: OobLatency = "constant_40",
        oob_loss_ratio: float = 0.0,
        curve: TripCurve | None = None,
        step_ms: Span = 500,
        resolution_ms: Span = 2 * SECOND,
    ) -> None:
        """`load` None: the demonstration's profile. `oob_latency` and `oob_loss_ratio` are how late an
        out-of-band write lands and how often it never does, without a word."""
        self.site, self.row = site, site.row(row_path)
        self.hosts: tuple[Host, ...] = self.row.hosts
        self._index = {host.path: place for place, host in enumerate(self.hosts)}
        self._start = self._now = start
        self._stepped = start - WARM_UP_MS
        self._step_ms, self._resolution_ms = step_ms, resolution_ms
        self._dt = step_ms / 1000
        asks, boards, writes, sensors = np.random.SeedSequence(seed).spawn(4)
        board_rng = np.random.default_rng(boards)
        self._write_rng = np.random.default_rng(writes)
        self._sensor_seed = int(sensors.generate_state(1)[0])
        self.servers = Servers(self.hosts, self._dt, board_rng)
        shape = self.servers.present.shape
        self._gpus = shape[1]
        self._gain = board_gains(shape, board_rng)
        if load is None or isinstance(load, LoadProfile):
            load = PoissonLoad(self.hosts, load or DEMO, np.random.default_rng(asks))
        self._load = load
        self._minute, self._taken = -WARM_UP_MS // (MINUTE_S * SECOND) - 1, 0
        self._new = Arrivals(np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0))
        self._marks: FloatArray = np.zeros(0)
        self._asked = np.zeros(len(self.hosts))

        self._oob_latency, self._oob_loss = oob_latency, oob_loss_ratio
        self.lost_writes = 0
        self._pending: list[_Write] = []
        self._written = 0
        self._locks = {path: self.servers.lock_mhz.copy() for path in get_args(Path)}
        self._limits = {path: self.servers.limit_w.copy() for path in get_args(Path)}

        self._nodes = _nodes_above(site, self.row.racks)
        self._places = {node.path: place for place, node in enumerate(self._nodes)}
        curve = curve or TripCurve()
        self._breakers = Breakers(1 + len(self._nodes), curve, before=0.6)  # the row's own is the first
        self._rating_w = np.array([self.row.budget_w, *(node.limit_w for node in self._nodes)])
        self._ups = UpsDeadline()
        self._on_battery: frozenset[int] = frozenset()
        self._carried = self._carry()
        window = max(1, round(METER_WINDOW_S / self._dt))
        self._window = np.zeros((window, 1 + len(self._nodes)))
        self.trip_cause, self.tripped_at = "", None  # type: str, Instant | None
        self.opened: dict[str, Instant] = {}
        """The breakers that have opened, by the path of the row or power node, and when."""

        self._steps = 0
        self._energy_j = self._peak_w = self._over_budget_s = 0.0
        self._columns = [array("f") for _ in History.__struct_fields__]
        self._since_w = self._since_peak_w = 0.0
        self._last_gpu_w = self.servers.gpu_w
        self._warm_up()

        self._faults: dict[int, GpuFault] = {}
        self._lie: dict[int, float] = {}
        self._path_loss: dict[tuple[Path, int], float] = {}
        self._frozen_mw: dict[int, int] = {}
        self._uuids = [_uuids(host) for host in self.hosts]
        self._facades: dict[tuple[str, Path], TwinNvml] = {}
        self.readings = Readings()
        self._constants()
        self._show_limits()
        self._show()
        nodes = zip(self._nodes, range(1, 1 + len(self._nodes)), strict=True)
        meters = {node.path: TwinMeter(self, node, place) for node, place in nodes}
        kinds = {node.path: node.kind for node in self._nodes}
        self.meters: Mapping[str, TwinMeter] = {p: m for p, m in meters.items() if kinds[p] != "ups"}
        """Meters of the feeds and PDUs above the row's racks, by path."""
        self.upses: Mapping[str, TwinMeter] = {p: m for p, m in meters.items() if kinds[p] == "ups"}
        """Meters of the UPSes above the row's racks, by path."""

    # ---- time ----

    def _warm_up(self) -> None:
        """Reach `start` with requests in flight and boards warm, and count from there."""
        while self._stepped < self._start:
            self._stepped += self._step_ms
            self._step()
        self._steps = 0
        self._energy_j = self._peak_w = self._over_budget_s = self._since_w = self._since_peak_w = 0.0
        self._columns = [array("f") for _ in History.__struct_fields__]
        self.servers.forget_latencies()

    @property
    def now(self) -> Instant:
        """The moment the plant was last advanced to."""
        return self._now

    def advance(self, until: Instant) -> None:
        """Move the plant to `until`: every whole step that ends by then, and every write due by then.
        Raises ValueError for a moment already past."""
        if until < self._now:
            raise ValueError(f"the plant is at {self._now} and cannot go back to {until}")
        while self._stepped + self._step_ms <= until:
            self._land(self._stepped)
            self._stepped += self._step_ms
            self._step()
        self._land(until)
        if until > self._now:
            self._now = until
            self._show()

    def _step(self) -> None:
        servers, dt = self.servers, self._dt
        end_s = (self._stepped - self._start) / 1000
        self._last_gpu_w = servers.gpu_w
        servers.step(end_s, *self._arrivals(end_s))
        self._steps += 1
        loads = self._carried @ servers.wall_w
        self._window[self._steps % len(self._window)] = loads
        self._metered = self._window.sum(axis=0) / len(self._window)
        power = float(loads[0])
        self._energy_j += power * dt
        self._peak_w = max(self._peak_w, float(self._metered[0]))
        if power > self.row.budget_w:
            self._over_budget_s += dt
        if self._breakers.step(loads / self._rating_w, dt):
            self._opened()
        if self._ups.on_battery and not self.tripped and self._ups.step(power, dt):
            self._dark(np.ones(len(self.hosts), dtype=bool), "ups deadline")
        self._record(end_s, power)

    def _arrivals(self, end_s: float) -> tuple[Arrivals, FloatArray]:
        """What arrives in the step that ends at `end_s`."""
        minute = math.ceil(end_s / MINUTE_S) - 1
        while self._minute < minute:
            self._minute += 1
            self._new, self._taken = self._load.minute(self._minute), 0
            self._marks = self.servers.places(self._asked, self._new)
        part = slice(self._taken, int(np.searchsorted(self._new.at_s, end_s)))
        self._taken = part.stop
        return self._new.part(part), self._marks[part]

    # ---- settings ----

    def nvml(self, host_path: str, path: Path) -> TwinNvml:
        """The host's GPUs by one of its paths. KeyError in words where there is none."""
        host = self.hosts[self._place(host_path)]
        if path not in host.paths:
            raise KeyError(f"{host_path} offers no path {path!r}; it offers {', '.join(host.paths)}")
        key = (host_path, path)
        if key not in self._facades:
            place = self._index[host_path]
            self._facades[key] = TwinNvml(self, host, path, place * self._gpus, self._uuids[place])
        return self._facades[key]

    def write(self, path: Path, gpu: int, setting: Setting, low: float, high: float) -> None:
        """Accept a setting for a GPU (its place in the row); it lands after the path's latency:
        in_band 50 ms, brake 5 s (published), out_of_band up to 40 s (published), or never."""
        loss, lossy = 1.0, self._path_loss.get((path, gpu // self._gpus), 0.0)
        if path == "out_of_band":
            chance, loss = self._write_rng.random(2)
            late = 40 * SECOND if self._oob_latency == "constant_40" else round(chance * 40 * SECOND)
            lossy = max(lossy, self._oob_loss)
        else:
            late = 5 * SECOND if path == "brake" else 50
            loss = self._write_rng.random() if lossy else loss
        if loss < lossy:
            self.lost_writes += 1
            return
        self._written += 1
        heapq.heappush(self._pending, _Write(self._now + late, self._written, path, gpu, setting, low, high))

    def fail_path(self, host_path: str, path: Path, loss_ratio: float = 0.0) -> None:
        """From now on every call by this path of a host times out or, with a `loss_ratio`, that share of
        what is written by it never lands, without a word."""
        facade = self.nvml(host_path, path)
        if loss_ratio:
            self._path_loss[path, self._place(host_path)] = loss_ratio
        else:
            facade.show(unanswered(len(self.hosts) * self._gpus))

    def mend_path(self, host_path: str, path: Path) -> None:
        """The path answers again, and loses no more than its row's do."""
        self.nvml(host_path, path).show(self.readings)
        self._path_loss.pop((path, self._place(host_path)), None)

    @property
    def held(self) -> npt.NDArray[np.bool_]:
        """Which hosts have a clock or a power limit below their boards' highest in force, or are dark;
        shape (hosts,)."""
        servers = self.servers
        tight = (servers.lock_mhz < servers.max_mhz) | (servers.limit_w < servers.tdp_w)
        held: npt.NDArray[np.bool_] = (tight & servers.present).any(axis=1) | ~servers.alive
        return held

    def _land(self, until: Instant) -> None:
        """Put in force what is due."""
        servers, landed = self.servers, False
        while self._pending and self._pending[0].due <= until:
            write = heapq.heappop(self._pending)
            landed = True
            at = divmod(write.gpu, self._gpus)
            highest, lowest = servers.max_mhz[at[0], 0], servers.min_mhz[at[0], 0]
            if write.setting == "limit":
                self._limits[write.path][at] = write.high
            else:
                free = write.setting == "unlock"
                self._locks[write.path][at] = highest if free else write.high
                servers.floor_mhz[at] = lowest if free else max(lowest, write.low)
        if landed:
            servers.lock_mhz = np.minimum.reduce(list(self._locks.values()))
            servers.limit_w = np.minimum.reduce(list(self._limits.values()))
            servers.retune()
            self._show_limits()

    def _show_limits(self) -> None:
        self.readings.limit_mw = _whole(self.servers.limit_w * 1000)
        self.readings.asked_mw = {path: _whole(limit * 1000) for path, limit in self._limits.items()}

    # ---- power ----

    def fail_ups(self, capacity_ratio: float = UPS_FAILOVER_RATIO, ups: str = "") -> None:
        """Mains is lost: on battery the row may draw this share of its budget, and more for 10 s. `ups`
        is the path of the one that says so; empty: all of them do. KeyError for one that is not there."""
        self._on_battery = frozenset(self._places[path] for path in ((ups,) if ups else self.upses))
        self._ups.fail(capacity_ratio * self.row.budget_w)

    def restore_ups(self) -> None:
        """Mains is back."""
        self._on_battery = frozenset()
        self._ups.restore()

    @property
    def over_on_battery_s(self) -> float:
        """The longest that the row drew more than was left, over the failures so far."""
        return self._ups.longest_s

    @property
    def ups_deadline_s(self) -> float:
        """How long a UPS on battery bears more than is left."""
        return self._ups.deadline_s

    @property
    def power_w(self) -> float:
        """The row's true power over the last step."""
        return float(self.servers.wall_w.sum())

    @property
    def tripped(self) -> bool:
        """Whether the whole row is dark."""
        return not self.servers.alive.any()

    def measure(self, place: int) -> tuple[float, bool, bool]:
        """Metered watts of a power node, whether its breaker is closed, and whether it is on battery."""
        closed = bool(self._breakers.closed[place])
        return float(self._metered[place]), closed, place - 1 in self._on_battery

    def _carry(self) -> FloatArray:
        """What share of each host's power each breaker carries; (1 + nodes, hosts). A rack's feeds that
        are alive share it equally; the row's own breaker carries it all."""
        closed = self._breakers.closed
        carried = np.zeros((1 + len(self._nodes), len(self.hosts)))
        carried[0] = 1.0

        def above(path: str) -> list[int]:
            chain = []
            while path:
                chain.append(1 + self._places[path])
                path = self.site.nodes[path].parent
            return chain

        for rack in self.row.racks:
            chains = [above(feed) for feed in rack.feeds]
            live = [chain for chain in chains if closed[chain].all()]
            hosts = [self._index[host.path] for host in rack.hosts]
            for chain in live:
                carried[np.ix_(chain, hosts)] += 1.0 / len(live)
            if chains and not live:
                carried[0, hosts] = 0.0
        return carried

    def _opened(self) -> None:
        """A breaker has opened: what is left carries the rest, or the hosts go dark."""
        names = (self.row.path, *self._places)
        for place in np.flatnonzero(~self._breakers.closed).tolist():
            self.opened.setdefault(names[place], self._stepped)
        self._carried = self._carry()
        if not self._breakers.closed[0]:
            self._dark(np.ones(len(self.hosts), dtype=bool), "row breaker")
        else:
            self._dark(self._carried[0] == 0.0, "breakers above the racks")

    def _dark(self, hosts: npt.NDArray[np.bool_], cause: str) -> None:
        if not hosts.any():
            return
        self.servers.alive &= ~hosts
        self.servers.darken()
        if self.tripped and self.tripped_at is None:
            self.tripped_at, self.trip_cause = self._stepped, cause

    # ---- sensors ----

    def fail_gpu(self, host_path: str, index: int, fault: GpuFault, factor: float = 0.8) -> None:
        """From now on the GPU is lost, does not return from calls, repeats its power, reads 0, or reads
        `factor` times its power."""
        at = self._place(host_path) * self._gpus + index
        self._lie[at] = factor
        self._frozen_mw[at] = self.readings.power_mw[at] or 0
        self._faults[at] = fault
        self._show()

    def mend_gpu(self, host_path: str, index: int) -> None:
        """The GPU answers truly again."""
        self._faults.pop(self._place(host_path) * self._gpus + index, None)
        self._show()

    def _place(self, host_path: str) -> int:
        if host_path not in self._index:
            raise KeyError(f"{self.row.path} has no host {host_path!r}")
        return self._index[host_path]

    def _constants(self) -> None:
        """Columns that never change."""
        count = len(self.hosts) * self._gpus
        self.readings.memory_mhz = [_MEMORY_MHZ] * count
        for name, field in (("limit_min_mw", "limit_min_w"), ("limit_max_mw", "limit_max_w")):
            values = [round(getattr(host.sku, field) * 1000) for host in self.hosts]
            setattr(self.readings, name, np.repeat(values, self._gpus).tolist())
        default = [round(host.sku.tdp_w * 1000) for host in self.hosts]
        self.readings.limit_default_mw = np.repeat(default, self._gpus).tolist()

    def _show(self) -> None:
        """Take every sensor's reading at this moment.

        The instantaneous power is the mean of the last 25 ms (published: a window of 25 ms in each
        100): one phase of the engine's, whichever it was in. All GPUs of a server are in one phase.
        """
        servers, readings = self.servers, self.readings
        rng = np.random.Generator(np.random.PCG64([self._sensor_seed, self._now]))
        moment = rng.random((len(self.hosts), 1))
        noise = self._gain * (1.0 + _SENSOR_NOISE * rng.standard_normal(self._gain.shape))
        prefill, decode = servers.prefilling[:, None], servers.decoding[:, None]
        idle = np.where(servers.alive[:, None], servers.idle_w, 0.0)
        instant = np.where(
            moment < prefill, servers.prefill_w, np.where(moment < prefill + decode, servers.decode_w, idle)
        )
        average = 0.5 * (servers.gpu_w + self._last_gpu_w)
        readings.power_mw = _whole(instant * noise * 1000)
        readings.average_mw = _whole(average * noise * 1000)
        readings.energy_mj = _whole(servers.energy_j * self._gain * 1000)
        readings.core_c = _whole(servers.core_c)
        readings.memory_c = _whole(servers.core_c + _MEMORY_OVER_CORE_C)
        readings.sm_mhz = _whole(servers.sm_mhz)
        busy = np.broadcast_to(prefill + decode, self._gain.shape)
        readings.utilisation = _whole(100 * busy)
        milder = np.minimum(self._locks["in_band"], self._locks["out_of_band"])
        readings.reasons = _whole(
            np.where(busy == 0.0, REASON_IDLE, 0)
            + np.where(servers.limited, REASON_SW_POWER_CAP, 0)
            + np.where(self._locks["brake"] < milder, REASON_HW_POWER_BRAKE, 0)
        )
        readings.refusals = {}
        for place in np.flatnonzero(~servers.alive).tolist():
            for gpu in range(self._gpus):
                self._silence(place * self._gpus + gpu, GPU_IS_LOST)
        for gpu, fault in self._faults.items():
            if fault == "lost":
                self._silence(gpu, GPU_IS_LOST)
            elif fault == "hung":
                self._silence(gpu, TIMEOUT)
            elif fault == "stuck" and gpu not in readings.refusals:
                readings.power_mw[gpu] = readings.average_mw[gpu] = self._frozen_mw[gpu]
            elif fault == "lying" and gpu not in readings.refusals:
                for column in (readings.power_mw, readings.average_mw):
                    column[gpu] = round((column[gpu] or 0) * self._lie[gpu])
            elif fault == "zero" and gpu not in readings.refusals:
                for name in _MEASURED:
                    getattr(readings, name)[gpu] = 0

    def _silence(self, gpu: int, code: int) -> None:
        self.readings.refusals[gpu] = code
        for name in _MEASURED:
            getattr(self.readings, name)[gpu] = None

    # ---- what it came to ----

    def _record(self, end_s: float, power: float) -> None:
        self._since_w += power
        self._since_peak_w = max(self._since_peak_w, float(self._metered[0]))
        every = self._resolution_ms // self._step_ms
        if self._steps % every:
            return
        clock = self.servers.clock_ratio.mean(axis=1) * self.servers.max_mhz[:, 0]
        means = [clock[self._of(p)].mean() if self._of(p).any() else math.nan for p in get_args(Priority)]
        point = (
            end_s,
            self._since_w / every,
            self._since_peak_w,
            *means,
            self.servers.core_c.max(),
        )
        for column, value in zip(self._columns, point, strict=True):
            column.append(value)
        self._since_w = self._since_peak_w = 0.0

    def _of(self, priority: Priority) -> npt.NDArray[np.bool_]:
        return np.array([host.priority == priority for host in self.hosts])

    def history(self) -> History:
        """The course so far, a point every `resolution_ms`."""
        return History(
            **{
                name: np.array(column, dtype=np.float32)
                for name, column in zip(History.__struct_fields__, self._columns, strict=True)
            }
        )

    def statistics(self) -> Statistics:
        """What the run has come to so far."""
        priorities: tuple[Priority, ...] = get_args(Priority)
        return Statistics(
            seconds=self._steps * self._dt,
            energy_j=self._energy_j,
            peak_w=self._peak_w,
            over_budget_s=self._over_budget_s,
            tripped_at=self.tripped_at,
            trip_cause=self.trip_cause,
            requests={p: self.servers.requests(p) for p in priorities},
            latency_p50_s={p: self.servers.latency_s(p, 0.5) for p in priorities},
            latency_p99_s={p: self.servers.latency_s(p, 0.99) for p in priorities},
        )


_MEASURED = (
    "power_mw",
    "average_mw",
    "energy_mj",
    "core_c",
    "memory_c",
    "sm_mhz",
    "memory_mhz",
    "utilisation",
    "reasons",
)


def _whole(values: npt.NDArray[np.number]) -> list[int | None]:
    """An array over (hosts, gpus) as a list of whole numbers over the row's GPUs."""
    whole: list[int | None] = values.astype(np.int64).ravel().tolist()  # type: ignore[assignment]
    return whole


def _uuids(host: Host) -> tuple[str, ...]:
    """The GPUs' UUIDs: those the site file states, else some derived from their paths."""
    if host.uuids:
        return host.uuids
    digests = (hashlib.sha256(host.gpu_path(index).encode()).hexdigest() for index in range(host.gpu_count))
    return tuple(f"GPU-{d[:8]}-{d[8:12]}-{d[12:16]}-{d[16:20]}-{d[20:32]}" for d in digests)


def _nodes_above(site: Site, racks: Sequence[Rack]) -> tuple[PowerNode, ...]:
    """The power nodes that the racks hang from, in the site's order."""
    above = set()
    for rack in racks:
        for path in rack.feeds:
            while path:
                above.add(path)
                path = site.nodes[path].parent
    return tuple(node for node in site.power if node.path in above)
