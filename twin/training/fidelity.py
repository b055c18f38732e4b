"""How true the training nodes are: what meters read of simulated ones against what they read of real ones.

A simulated job is a recording like a real one, so both are summed up by the same figures, per meter and for
all meters together. What is judged was left out of the fit: some of the nodes, or the second half of the
time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import msgspec
import numpy as np

from schemas.units import FloatArray
from twin.training.fit import JOB, OTHER_JOB, SEED, TrainingFit, fit, idle_power
from twin.training.nodes import NodeSpread, TrainingJob, TrainingNodes, WallMeter, WallMeters, level_at
from twin.training.recorded import WallPower, read_wall_power

RAMPS_S = (2.0, 10.0, 40.0)
FOLDS = 4
STEP_S = 0.1
_GRID_S = 2.0
_STARTED_S = 20.0
_REST_S = 20.0
_AT_WORK = 0.93  # of a node's own level: readings below it are pauses, or on their way to one

Judged: TypeAlias = Literal["nodes left out", "time left out"]


class Figures(NamedTuple):
    """What a course of power comes to. Ramps are the rises within `RAMPS_S` that one moment in a hundred
    exceeds, and the highest."""

    mean_w: float
    energy_j: float
    p50_w: float
    p95_w: float
    p99_w: float
    ramp_w: tuple[float, ...]
    highest_ramp_w: tuple[float, ...]


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """Simulated less real, as shares of the real figure; ramps as shares of the real P99 power."""

    what: Judged
    of: str
    """A meter's host, or "sum of 9"."""
    together: bool
    """Whether it is the sum of all meters that were left out."""
    mean: float
    energy: float
    p50: float
    p95: float
    p99: float
    ramp: tuple[float, ...]
    highest_ramp: tuple[float, ...]


def simulate(
    job: TrainingJob,
    spread: NodeSpread,
    meter: WallMeter,
    *,
    nodes: int,
    seconds: float,
    seed: int,
    gain: FloatArray | None = None,
) -> WallPower:
    """What meters read of a simulated job."""
    plant, eyes = (np.random.default_rng(each) for each in np.random.SeedSequence(seed).spawn(2))
    row = TrainingNodes(job, spread, nodes, plant, gain=gain)
    meters = WallMeters(meter, nodes, STEP_S, eyes)
    seen: list[tuple[FloatArray, FloatArray, FloatArray]] = []
    for step in range(1, round(seconds / STEP_S) + 1):
        due = np.flatnonzero(meters.step(row.step(STEP_S)))
        if due.size:
            seen.append((np.full(due.size, step * STEP_S), due.astype(np.float64), meters.shown_w[due]))
    at, who, watts = (np.concatenate(column) for column in zip(*seen, strict=True))
    keep = watts > 0.0
    by_node = [keep & (who == node) for node in range(nodes)]
    return WallPower(
        name="simulated",
        sha256="",
        hosts=tuple((f"node_{node + 1}",) for node in range(nodes)),
        at_s=tuple(at[part] for part in by_node),
        watts=tuple(watts[part] for part in by_node),
        no_readings=int((~keep).sum()),
    )


def course(recording: WallPower, meters: list[int]) -> FloatArray:
    """The summed power of some meters, every 2 s while all of them read, in watts."""
    begin = max(float(recording.at_s[m][0]) for m in meters)
    end = min(float(recording.at_s[m][-1]) for m in meters)
    grid = np.arange(begin, end, _GRID_S)
    total: FloatArray = np.sum(
        [np.interp(grid, recording.at_s[m], recording.watts[m]) for m in meters], axis=0
    )
    return total


def figures(power: FloatArray) -> Figures:
    """The figures of a course with a point every 2 s."""
    ramps = []
    for reach_s in RAMPS_S:
        windows = np.lib.stride_tricks.sliding_window_view(power, round(reach_s / _GRID_S) + 1)
        ramps.append(windows.max(axis=1) - windows[:, 0])
    p50, p95, p99 = np.percentile(power, (50.0, 95.0, 99.0)).tolist()
    return Figures(
        mean_w=float(power.mean()),
        energy_j=float(np.trapezoid(power, dx=_GRID_S)),
        p50_w=p50,
        p95_w=p95,
        p99_w=p99,
        ramp_w=tuple(float(np.percentile(ramp, 99.0)) for ramp in ramps),
        highest_ramp_w=tuple(float(ramp.max()) for ramp in ramps),
    )


def errors(what: Judged, of: str, together: bool, simulated: Figures, real: Figures) -> Errors:
    """How far one is from the other."""

    def off(mine: tuple[float, ...], theirs: tuple[float, ...]) -> tuple[float, ...]:
        return tuple((a - b) / real.p99_w for a, b in zip(mine, theirs, strict=True))

    return Errors(
        what=what,
        of=of,
        together=together,
        mean=simulated.mean_w / real.mean_w - 1.0,
        energy=simulated.energy_j / real.energy_j - 1.0,
        p50=simulated.p50_w / real.p50_w - 1.0,
        p95=simulated.p95_w / real.p95_w - 1.0,
        p99=simulated.p99_w / real.p99_w - 1.0,
        ramp=off(simulated.ramp_w, real.ramp_w),
        highest_ramp=off(simulated.highest_ramp_w, real.highest_ramp_w),
    )


def leave_nodes_out(recording: WallPower, idle_w: float, seed: int = SEED) -> Iterator[tuple[Errors, ...]]:
    """Fit by fit, the errors on nodes that it did not see, of which nothing is known but that they run the
    job. Hosts that share a meter are left out together."""
    order = np.random.default_rng(seed).permutation(len(recording.hosts))
    for fold in range(FOLDS):
        out = sorted(order[fold::FOLDS].tolist())
        learned = fit(
            recording.of(sorted(set(range(len(recording.hosts))) - set(out))), idle_w=idle_w, seed=seed
        )
        yield _judge("nodes left out", learned, recording.of(out), None, seed + fold)


def leave_time_out(recording: WallPower, idle_w: float, seed: int = SEED) -> tuple[Errors, ...]:
    """The errors on the second half of the time, by a fit on the first; each node's gain is known from
    there."""
    middle = recording.seconds / 2.0
    learned = fit(recording.between(0.0, middle), idle_w=idle_w, seed=seed)
    later = recording.between(middle, np.inf)
    return _judge("time left out", learned, later, learned.gain, seed)


def _judge(
    what: Judged, learned: TrainingFit, real: WallPower, gain: FloatArray | None, seed: int
) -> tuple[Errors, ...]:
    # A recording that begins with the job does so somewhere in its start: from there on only.
    begins = min(float(at[0]) for at in real.at_s) + _STARTED_S
    real = real.between(begins, np.inf)
    nodes = list(range(len(real.hosts)))
    simulated = simulate(
        msgspec.structs.replace(learned.job, load_s=0.0, ramp_s=0.0),
        learned.spread,
        learned.meter,
        nodes=len(nodes),
        seconds=real.seconds - begins,
        seed=seed,
        gain=gain,
    )
    mine = [figures(course(simulated, [node])) for node in nodes]
    if gain is None:  # nothing tells one node from another: each is expected to be the typical one
        mine = [_median(mine)] * len(nodes)
    single = (
        errors(what, real.hosts[node][0], False, mine[node], figures(course(real, [node]))) for node in nodes
    )
    summed = figures(course(simulated, nodes)), figures(course(real, nodes))
    return *single, errors(what, f"sum of {len(nodes)}", True, *summed)


def _median(those: list[Figures]) -> Figures:
    mean, energy, p50, p95, p99 = np.median([each[:5] for each in those], axis=0).tolist()
    ramp, highest = np.median([each[5:] for each in those], axis=0).tolist()
    return Figures(mean, energy, p50, p95, p99, tuple(ramp), tuple(highest))


class OtherJob(msgspec.Struct, frozen=True, kw_only=True):
    """What of the nodes' figures holds on another job: as learned, and as found there. Levels are quantiles
    of the readings at work over a meter's own median; the rise is from rest, in 4 s, as a share of all."""

    gain_ratio: tuple[float, float]
    level_p05: tuple[float, float]
    level_p95: tuple[float, float]
    level_p99: tuple[float, float]
    repeat_ratio: tuple[float, float]
    period_s: tuple[float, float]
    busy_w: tuple[float, float]
    rise: tuple[float, float]


def on_another_job(learned: TrainingFit, other: WallPower, seed: int = SEED) -> OtherJob:
    """Hold the figures of `learned` against a job that rests, works and rests, and which they never saw.
    Raises UnusableRecording where it never rests."""
    idle_w = idle_power(other)
    busy = np.array([np.percentile(watts, 60.0) for watts in other.watts])
    at_work = np.concatenate(
        [watts[watts > _AT_WORK * level] / level for watts, level in zip(other.watts, busy, strict=True)]
    )
    at_work /= np.median(at_work)
    rng = np.random.default_rng(seed)
    levels = level_at(rng.standard_normal(10_000), learned.spread)
    levels = levels * (1.0 + learned.meter.noise_ratio * rng.standard_normal(levels.size))
    levels /= np.median(levels)
    away = np.concatenate([np.diff(at) for at in other.at_s])
    same = np.concatenate([np.diff(watts) == 0.0 for watts in other.watts])
    job = msgspec.structs.replace(learned.job, busy_w=float(np.median(busy)), pauses=(), load_s=_REST_S)
    spread = msgspec.structs.replace(learned.spread, idle_w=idle_w)
    started = simulate(job, spread, learned.meter, nodes=len(busy), seconds=4.0 * _REST_S, seed=seed)
    return OtherJob(
        gain_ratio=(learned.spread.gain_ratio, float(np.std(busy / busy.mean(), ddof=1))),
        level_p05=_pair(levels, at_work, 5.0),
        level_p95=_pair(levels, at_work, 95.0),
        level_p99=_pair(levels, at_work, 99.0),
        repeat_ratio=(learned.meter.repeat_ratio, float(same.mean())),
        period_s=(learned.meter.period_s, float(np.median(away))),
        busy_w=(learned.job.busy_w, float(np.median(busy))),
        rise=(_rise(started, idle_w), _rise(other, idle_w)),
    )


def _pair(mine: FloatArray, theirs: FloatArray, percentile: float) -> tuple[float, float]:
    return float(np.percentile(mine, percentile)), float(np.percentile(theirs, percentile))


def _rise(recording: WallPower, idle_w: float) -> float:
    """The steepest rise of all meters' power within 4 s, over what they draw at work above rest."""
    power = course(recording, list(range(len(recording.hosts))))
    rest_w = idle_w * len(recording.hosts)
    return float((power[2:] - power[:-2]).max() / (np.percentile(power, 60.0) - rest_w))


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The errors of every meter and sum that was left out, and what holds on another job."""

    errors: tuple[Errors, ...]
    other_job: OtherJob


def report(data: Path, *, seed: int = SEED, judged: Callable[[], None] = lambda: None) -> Report:
    """How true the training nodes are to the recordings below the folder `data`; half a minute, in which
    `judged` is called after each of the 1 + `FOLDS` fits. Raises UnusableRecording for one that is missing
    or malformed."""
    job, other = read_wall_power(data / JOB), read_wall_power(data / OTHER_JOB)
    idle_w = idle_power(other)
    errors = list(leave_time_out(job, idle_w, seed))
    judged()
    for fold in leave_nodes_out(job, idle_w, seed):
        errors.extend(fold)
        judged()
    return Report(
        errors=tuple(errors),
        other_job=on_another_job(fit(job, idle_w=idle_w, seed=seed), other, seed),
    )


class Line(NamedTuple):
    """One figure's errors: over the meters the median and the worst without their sign, and of the sums
    the one furthest off."""

    what: Judged
    figure: str
    median: float
    worst: float
    worst_sum: float


def lines(found: Report) -> list[Line]:
    """A report's errors, a line per figure."""
    told = []
    for what in get_args(Judged):
        judged = [each for each in found.errors if each.what == what]
        sums = [each for each in judged if each.together]
        single = [each for each in judged if not each.together]
        for figure, value in _FIGURES.items():
            meters = [abs(value(each)) for each in single]
            worst_sum = max((value(each) for each in sums), key=abs)
            told.append(Line(what, figure, float(np.median(meters)), max(meters), worst_sum))
    return told


_FIGURES: dict[str, Callable[[Errors], float]] = {
    "mean": lambda each: each.mean,
    "energy": lambda each: each.energy,
    "P50": lambda each: each.p50,
    "P95": lambda each: each.p95,
    "P99": lambda each: each.p99,
    "ramp 2 s": lambda each: each.ramp[0],
    "ramp 10 s": lambda each: each.ramp[1],
    "ramp 40 s": lambda each: each.ramp[2],
    "highest ramp 2 s": lambda each: each.highest_ramp[0],
    "highest ramp 10 s": lambda each: each.highest_ramp[1],
    "highest ramp 40 s": lambda each: each.highest_ramp[2],
}
