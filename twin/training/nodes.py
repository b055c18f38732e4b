"""Nodes that train one model together, and the meters on their cords.

A synchronous job makes its nodes one load: they work, wait for the slowest, exchange gradients and go on, all
within the same second, so their swings add up instead of cancelling. A node's wall power follows the job's
phases, as shares of its power while it works:

    work ──> drain ──> exchange ──> fill ──> work …        and at the end of every so many iterations a pause:
     1     the pipeline runs    gradients   runs full      evaluation, checkpoint, data
           empty

Nodes differ by a gain of their own, by how far each iteration's work loads them (which they remember from one
iteration to the next), and by when within an iteration they get to wait. One node held at a lower clock slows
them all: the others wait for it, as they do for a straggler.

Everything is an array over nodes, and a step's mean power is exact whatever the step's length. Figures of a
recorded job are in `coefficients/training.json`, which `twin.training.fit` makes.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.units import FloatArray
from twin.provenance import Provenance

LEVEL_PROBABILITIES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
"""Of the quantiles that `NodeSpread.level_ratio` lists."""

_LEVEL_Z = np.array([-2.32635, -1.64485, -1.28155, -0.67449, 0.0, 0.67449, 1.28155, 1.64485, 2.32635])
_RAMP_STAIRS = 8


class Iteration(msgspec.Struct, frozen=True, kw_only=True):
    """One iteration's phases in seconds at full clock, and their levels as shares of the power at work."""

    work_s: float
    drain_s: float
    exchange_s: float
    fill_s: float
    drain_ratio: float
    """While the pipeline runs empty, and while it fills again."""
    exchange_ratio: float

    @property
    def seconds(self) -> float:
        """From one iteration's begin to the next one's."""
        return self.work_s + self.drain_s + self.exchange_s + self.fill_s


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """What stands between two iterations, after every `every` of them: an evaluation, a checkpoint, a wait
    for data. `entry_ratio` is the level of the exchange just before it."""

    name: str
    every: int
    seconds: float
    ratio: float
    entry_ratio: float


class TrainingJob(msgspec.Struct, frozen=True, kw_only=True):
    """What is the job's own, on any nodes. `busy_w` is a node's wall power at work (of gain 1).

    It begins with `load_s` at rest and reaches its power within `ramp_s`. `clock_share` is the part of an
    iteration that stretches with the clock: at the share x of the highest it takes clock_share / x and the
    rest. What was done before a pause named "checkpoint" no failure takes away.
    """

    busy_w: float
    iteration: Iteration
    pauses: tuple[Pause, ...] = ()
    load_s: float = 0.0
    ramp_s: float = 3.0
    clock_share: float = 1.0


class NodeSpread(msgspec.Struct, frozen=True, kw_only=True):
    """How nodes of one kind differ from each other and from one iteration to the next.

    `idle_w` is a node's wall power while its GPUs wait. `gain_ratio` is the standard deviation of the nodes'
    gains. `level_ratio` are quantiles (at `LEVEL_PROBABILITIES`) of one iteration's power at work over the
    node's mean, `memory_ratio` their correlation from one iteration to the next. `exchange_ratio` is the
    same spread in the exchange (standard deviation, without memory). `straggle_s` is the standard deviation
    of when a node begins and ends to wait.
    """

    idle_w: float
    gain_ratio: float
    level_ratio: tuple[float, ...]
    memory_ratio: float
    exchange_ratio: float
    straggle_s: float


class WallMeter(msgspec.Struct, frozen=True, kw_only=True):
    """A meter on a node's cord: every `period_s` (give or take `jitter_s`) the mean of the last `window_s`,
    with noise. `repeat_ratio` of its readings show the one before; `gap_ratio` of them are followed by
    silence of up to `gap_s`; `zero_ratio` of them say 0, which is no reading."""

    period_s: float = 2.0
    jitter_s: float = 0.02
    window_s: float = 1.0
    noise_ratio: float = 0.0
    repeat_ratio: float = 0.0
    gap_ratio: float = 0.0
    gap_s: float = 20.0
    zero_ratio: float = 0.0


class TrainingCoefficients(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded job, its nodes and its meters."""

    job: TrainingJob
    spread: NodeSpread
    meter: WallMeter
    provenance: Provenance


def _all_power(clock_ratio: FloatArray) -> FloatArray:
    return clock_ratio


class TrainingNodes:
    """The nodes of one job. Set `clock_ratio` (nodes,) to hold nodes at a share of their highest clock.

    `power_left` says how much of the dynamic power is left at a clock (see `twin.clocks.axis`); without one
    it falls with the clock itself.
    """

    def __init__(
        self,
        job: TrainingJob,
        spread: NodeSpread,
        nodes: int,
        rng: np.random.Generator,
        *,
        gain: FloatArray | None = None,
        power_left: Callable[[FloatArray], FloatArray] = _all_power,
    ) -> None:
        """`gain` are the nodes' own where they are known; else they are drawn."""
        if nodes < 1:
            raise ValueError(f"a job needs at least one node, not {nodes}")
        if job.iteration.seconds <= 0.0 or any(pause.every < 1 for pause in job.pauses):
            raise ValueError("an iteration takes time, and a pause comes after at least one of them")
        self.job, self.spread, self.nodes = job, spread, nodes
        self._rng, self._power_left = rng, power_left
        self.gain = 1.0 + spread.gain_ratio * rng.standard_normal(nodes) if gain is None else gain
        self.clock_ratio = np.ones(nodes)
        self.iterations = 0
        """Done since the job began, those lost in failures not counted."""
        self.wall_w = np.full(nodes, spread.idle_w)
        self._kept = 0
        self._memory = rng.standard_normal(nodes)
        self._idle = spread.idle_w / job.busy_w
        self._due: list[Pause] = []
        self._under_way = ""
        self._position = 0.0
        self._starting(job.load_s)

    def step(self, dt_s: float) -> FloatArray:
        """The nodes' mean wall power over the next `dt_s`, in watts; shape (nodes,)."""
        clock = np.clip(self.clock_ratio, 1e-3, 1.0)
        share = self.job.clock_share
        pace = 1.0 / (share / clock + 1.0 - share)
        slowest = float(pace.min())
        worked = np.zeros(self.nodes)  # in seconds of the job's own time, times level
        left = dt_s * slowest
        while left > 1e-12:
            end = min(self._seconds, self._position + left)
            worked += integral(self._bounds, self._level, self._position, end)
            left -= end - self._position
            self._position = end
            if self._position >= self._seconds - 1e-9:
                self._next()
        level = worked / (dt_s * slowest)
        # A node that could go faster waits for the slowest for the rest of the time.
        busy = slowest / pace
        level = busy * level + (1.0 - busy) * np.minimum(level, self.job.iteration.exchange_ratio)
        idle_w, full_w = self.spread.idle_w, level * self.job.busy_w
        self.wall_w = self.gain * (idle_w + np.maximum(0.0, full_w - idle_w) * self._power_left(clock))
        return self.wall_w

    def stall(self, seconds: float, ratio: float | None = None) -> None:
        """The nodes wait, for data say, from now on for so long: at `ratio` of their power at work, or at
        that of an exchange. What was going on goes on afterwards."""
        level = self.job.iteration.exchange_ratio if ratio is None else ratio
        ahead = np.maximum(self._bounds - self._position, 0.0)
        self._lay(
            np.concatenate([np.full((1, self.nodes), seconds), np.diff(ahead, axis=0)]),
            np.concatenate([np.full((1, self.nodes), level), self._level]),
        )

    def fail(self, restart_s: float) -> None:
        """A node fails: all of them rest for `restart_s`, then the job begins again at its last checkpoint
        (at its beginning where it makes none), and reaches its power as at the start."""
        self.iterations = self._kept
        self._due, self._under_way = [], ""
        self._starting(restart_s)

    # ---- what comes next ----

    def _starting(self, rest_s: float) -> None:
        stairs = (np.arange(_RAMP_STAIRS) + 0.5) / _RAMP_STAIRS
        seconds = [rest_s, *[self.job.ramp_s / _RAMP_STAIRS] * _RAMP_STAIRS]
        levels = [self._idle, *(self._idle + (1.0 - self._idle) * stairs).tolist()]
        self._lay(self._for_all(seconds), self._for_all(levels))

    def _next(self) -> None:
        if self._under_way == "iteration":
            self.iterations += 1
        elif self._under_way == "checkpoint":
            self._kept = self.iterations
        if self._due:
            pause = self._due.pop(0)
            self._under_way = pause.name
            self._lay(self._for_all([pause.seconds]), self._for_all([pause.ratio]))
        else:
            self._iterate()

    def _iterate(self) -> None:
        spread, shape = self.spread, self.job.iteration
        self._under_way = "iteration"
        self._due = [pause for pause in self.job.pauses if (self.iterations + 1) % pause.every == 0]
        rng, kept = self._rng, spread.memory_ratio
        self._memory = kept * self._memory + np.sqrt(1.0 - kept**2) * rng.standard_normal(self.nodes)
        work = level_at(self._memory, spread)
        entry = min((pause.entry_ratio for pause in self._due), default=shape.exchange_ratio)
        exchange = entry * (1.0 + spread.exchange_ratio * rng.standard_normal(self.nodes))
        self._lay(*phases(shape, spread.straggle_s * rng.standard_normal((2, self.nodes)), work, exchange))

    def _for_all(self, values: list[float]) -> FloatArray:
        return np.repeat(np.array(values)[:, None], self.nodes, axis=1)

    def _lay(self, seconds: FloatArray, level: FloatArray) -> None:
        """What comes now: segments of so long at such levels, both (segments, nodes)."""
        self._bounds = np.concatenate([np.zeros((1, self.nodes)), np.cumsum(seconds, axis=0)])
        self._level = level
        self._seconds = float(self._bounds[-1, 0])
        self._position = 0.0


def level_at(memory: FloatArray, spread: NodeSpread) -> FloatArray:
    """The level at work of standard normal draws: their place in the quantiles of `spread`."""
    return np.interp(memory, _LEVEL_Z, spread.level_ratio)


def phases(
    shape: Iteration, straggle_s: FloatArray, work: FloatArray, exchange: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """One iteration's seconds and levels, (4, nodes). `straggle_s` (2, nodes) is by how much a node begins
    and ends its wait late; all nodes are through at the same moment."""
    early, late = straggle_s
    begin = np.maximum(shape.work_s + early, 0.0)
    wait = np.maximum(shape.work_s + shape.drain_s + early, begin)
    over = np.maximum(shape.work_s + shape.drain_s + shape.exchange_s + late, wait)
    end = np.full_like(begin, shape.seconds)
    bounds = np.minimum(np.stack([np.zeros_like(begin), begin, wait, over, end]), shape.seconds)
    drain = np.full_like(work, shape.drain_ratio)
    return np.diff(bounds, axis=0), np.stack([work, drain, exchange, drain])


def integral(
    bounds: FloatArray, level: FloatArray, begin: FloatArray | float, end: FloatArray | float
) -> FloatArray:
    """The integral from `begin` to `end` of what is `level[i]` from `bounds[i]` to `bounds[i + 1]`; the
    first axis is that of the segments."""
    inside = np.minimum(bounds[1:], end) - np.maximum(bounds[:-1], begin)
    total: FloatArray = (level * np.maximum(inside, 0.0)).sum(axis=0)
    return total


class WallMeters:
    """A meter for each of some nodes, which do not read at the same moment."""

    def __init__(self, meter: WallMeter, nodes: int, dt_s: float, rng: np.random.Generator) -> None:
        """`dt_s` is the length of the plant's steps, the finest a meter can see."""
        self.meter, self._dt, self._rng = meter, dt_s, rng
        self._recent = np.full((max(1, round(meter.window_s / dt_s)), nodes), np.nan)
        self._steps = 0
        self._due = rng.uniform(0.0, meter.period_s, nodes)
        self.shown_w = np.full(nodes, np.nan)
        """What each meter said last; NaN before its first reading."""

    def step(self, wall_w: FloatArray) -> npt.NDArray[np.bool_]:
        """Take in a step's mean power; which meters have a new reading, shape (nodes,)."""
        meter, rng = self.meter, self._rng
        self._recent[self._steps % len(self._recent)] = wall_w
        self._steps += 1
        due = self._due <= self._steps * self._dt
        count = int(due.sum())
        if not count:
            return due
        seen = self._recent[: self._steps, due] if self._steps < len(self._recent) else self._recent[:, due]
        value = seen.mean(axis=0) * (1.0 + meter.noise_ratio * rng.standard_normal(count))
        chance = rng.random((3, count))
        before = self.shown_w[due]
        value = np.where((chance[0] < meter.repeat_ratio) & ~np.isnan(before), before, value)
        self.shown_w[due] = np.where(chance[1] < meter.zero_ratio, 0.0, value)
        pause = meter.period_s + meter.jitter_s * rng.standard_normal(count)
        silent = np.where(chance[2] < meter.gap_ratio, rng.uniform(0.0, meter.gap_s, count), 0.0)
        self._due[due] += np.maximum(self._dt, pause + silent)
        return due
