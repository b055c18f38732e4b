"""Learns a training job's figures from the recorded wall power of its nodes.

The job's timetable comes first, from all meters together: the exchanges show as troughs at even distances,
the pauses as larger distances. Each reading then has a place within its iteration, and the rest is read off
there: what nodes draw at work and how that spreads, and in between the shape of the exchange. That shape is
fitted by the spread of the readings at each place of the iteration (their quantiles), which a meter's window,
late nodes and the levels themselves all have a part in.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares
from scipy.signal import find_peaks
from scipy.stats import norm

from schemas.units import FloatArray
from twin.provenance import Provenance
from twin.training.nodes import (
    LEVEL_PROBABILITIES,
    Iteration,
    NodeSpread,
    Pause,
    TrainingCoefficients,
    TrainingJob,
    WallMeter,
    integral,
    level_at,
    phases,
)
from twin.training.recorded import UnusableRecording, WallPower, read_wall_power

JOB = "gpu_power/mlperf/train_v4.0_smc-ac-power_64xH100node_gpt3_0.csv"
"""The recording the figures come from, below the data folder."""

OTHER_JOB = "gpu_power/mlperf/train_v4.0_smc-ac-power_8xH100node_llama2_70b_lora_0.csv"
"""Another job on nodes of the same kind: their power at rest comes from it, and it is what they are judged
on."""

SEED = 20240517

_BIN_S = 0.25  # of the pooled course of all meters
_QUANTILES = (5.0, 25.0, 50.0, 75.0, 95.0)
_DRAWS = 256  # nodes and iterations that stand for all where the shape is fitted


class Timetable(NamedTuple):
    """When a recorded job exchanges. `troughs` are the moments of lowest power, `last` says which of them
    stand before a pause; `pause_s` is how much longer it is from those to the next."""

    troughs: FloatArray
    last: npt.NDArray[np.bool_]
    iteration_s: float
    pause_s: float
    every: int


class TrainingFit(msgspec.Struct, frozen=True, kw_only=True):
    """What was learned: the coefficients, and each meter's gain and the timetable, which are the
    recording's."""

    job: TrainingJob
    spread: NodeSpread
    meter: WallMeter
    gain: FloatArray
    timetable: Timetable


def fit(recording: WallPower, *, idle_w: float, seed: int = SEED) -> TrainingFit:
    """Learn a job from its recording. `idle_w` is a node's wall power while its GPUs wait, which a recording
    that begins with the work does not show. Raises UnusableRecording where no iterations can be seen."""
    rough = [watts / np.percentile(watts, 80.0) for watts in recording.watts]
    at, power = np.concatenate(recording.at_s), np.concatenate(rough)
    who = np.repeat(np.arange(len(rough)), [len(each) for each in rough])
    times = timetable(at, power, recording.name)
    place, number = places(at, times)
    # At work: as far from the exchange as leaves readings to compare.
    working = np.abs(place) > 0.3 * times.iteration_s
    level, noise = _levels(power, who, number, working, len(rough))
    own = np.nanmean(level, axis=1)
    busy = np.array([np.percentile(watts, 80.0) for watts in recording.watts]) * own
    busy_w = float(np.median(busy))
    relative = level / own[:, None]
    quantiles = np.nanquantile(relative, LEVEL_PROBABILITIES)
    centred = relative - np.nanmean(relative, axis=1, keepdims=True)
    memory = float(np.nanmean(centred[:, 1:] * centred[:, :-1]) / np.nanmean(centred**2))

    normal = power / own[who]
    pausing, entering = _around_pauses(at, times)
    spread = NodeSpread(
        idle_w=idle_w,
        gain_ratio=float(np.std(busy / busy_w, ddof=1)) if len(busy) > 1 else 0.0,
        level_ratio=tuple(quantiles.tolist()),
        memory_ratio=float(np.clip(memory, 0.0, 0.99)),
        exchange_ratio=0.0,
        straggle_s=0.0,
    )
    away = np.concatenate([np.abs(np.diff(a)) for a in recording.at_s])
    same = np.concatenate([np.diff(w) == 0.0 for w in recording.watts])
    period = float(np.median(away))
    regular = np.abs(away - period) < 0.25 * period
    meter = WallMeter(
        period_s=period,
        jitter_s=float(np.std(away[regular])),
        noise_ratio=noise,
        repeat_ratio=float(same.mean()),
        gap_ratio=float(np.mean(away > 1.5 * period)),
        gap_s=max(0.0, float(away.max()) - period),
        zero_ratio=recording.no_readings / (recording.no_readings + at.size),
    )
    shape, spread, meter = _shape(place, normal, ~np.isnan(place), times.iteration_s, spread, meter, seed)
    pauses: tuple[Pause, ...] = ()
    if times.every:
        evaluation = Pause(
            name="evaluation",
            every=times.every,
            seconds=times.pause_s,
            ratio=float(np.median(normal[pausing])),
            entry_ratio=float(np.percentile(normal[entering], 10.0)),
        )
        pauses = (evaluation,)
    job = TrainingJob(busy_w=busy_w, iteration=shape, pauses=pauses)
    return TrainingFit(job=job, spread=spread, meter=meter, gain=busy / busy_w, timetable=times)


def timetable(at: FloatArray, power: FloatArray, name: str) -> Timetable:
    """The iterations that the readings of all meters show, `power` as a share of each meter's own at work."""
    edges = np.arange(at.min(), at.max() + _BIN_S, _BIN_S)
    inside = np.digitize(at, edges) - 1
    count = np.bincount(inside, minlength=edges.size)
    seen = count > 0
    centre = edges + _BIN_S / 2.0
    course = np.interp(centre, centre[seen], np.bincount(inside, power, edges.size)[seen] / count[seen])
    course = np.convolve(course, np.full(5, 0.2), mode="same")
    high, low = np.percentile(course, 80.0), np.percentile(course, 2.0)
    troughs, _ = find_peaks(
        -course, height=-(high + low) / 2.0, prominence=0.3 * (high - low), distance=round(2.0 / _BIN_S)
    )
    moments = centre[troughs]
    if moments.size < 10:
        raise UnusableRecording(f"{name}: shows {moments.size} iterations; at least 10 are needed")
    apart = np.diff(moments)
    middle = float(np.median(apart))
    near = apart < 1.5 * middle
    if np.mean(np.abs(apart[near] - middle) < 0.2 * middle) < 0.8:
        raise UnusableRecording(f"{name}: its dips come at no even distance, so they are not iterations")
    # One distance for all, and an offset for each run of them between two pauses.
    run = np.concatenate(([0], np.cumsum(~near)))
    index = np.arange(moments.size, dtype=np.float64)
    inner = index - _group_mean(index, run)
    iteration_s = float((inner * (moments - _group_mean(moments, run))).sum() / (inner**2).sum())
    even = _group_mean(moments, run) + inner * iteration_s
    last = np.concatenate((~near, [False]))
    whole = np.bincount(run)[1:-1]
    every = int(np.median(whole)) if whole.size else 0
    pause = float(np.median(np.diff(even)[~near])) - iteration_s if every else 0.0
    return Timetable(even, last, iteration_s, pause, every)


def places(at: FloatArray, times: Timetable) -> tuple[FloatArray, FloatArray]:
    """Each reading's seconds from the trough of its iteration, NaN in or next to a pause, and the iteration's
    number (of the work that the trough ends)."""
    half = times.iteration_s / 2.0
    nearest = np.clip(np.searchsorted(times.troughs, at), 1, times.troughs.size - 1)
    nearest -= (at - times.troughs[nearest - 1]) < (times.troughs[nearest] - at)
    away = at - times.troughs[nearest]
    first = np.concatenate(([True], times.last[:-1]))
    # Before a pause the exchange is another one, and after it the work begins late.
    known = (np.abs(away) <= half) & ~(times.last[nearest] & (away > -half * 0.5))
    known &= ~(first[nearest] & (away < -half * 0.5))
    number = nearest + (away > 0.0)
    return np.where(known, away, np.nan), number.astype(np.float64)


def _group_mean(values: FloatArray, group: npt.NDArray[np.int64]) -> FloatArray:
    mean: FloatArray = (np.bincount(group, values) / np.bincount(group))[group]
    return mean


def _levels(
    power: FloatArray,
    who: npt.NDArray[np.int64],
    number: FloatArray,
    working: npt.NDArray[np.bool_],
    nodes: int,
) -> tuple[FloatArray, float]:
    """Mean power at work by node and iteration, NaN where fewer than two readings say it; and what single
    readings stray from it by (standard deviation)."""
    iterations = int(number.max()) + 1
    cell = (who * iterations + number.astype(np.int64))[working]
    values = power[working]
    count = np.bincount(cell, minlength=nodes * iterations)
    total = np.bincount(cell, values, nodes * iterations)
    mean = np.where(count >= 2, total / np.maximum(count, 1), np.nan)
    off = values - mean[cell]
    known = ~np.isnan(off)
    freedom = np.sqrt(1.0 - 1.0 / count[cell][known])
    noise = float(np.median(np.abs(off[known]) / freedom) / norm.ppf(0.75))
    return mean.reshape(nodes, iterations), noise


def _around_pauses(at: FloatArray, times: Timetable) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which readings lie well inside a pause, and which in the exchange before one."""
    begins = times.troughs[times.last]
    if not begins.size:
        nothing = np.zeros(at.size, dtype=bool)
        return nothing, nothing
    since = at - begins[np.clip(np.searchsorted(begins, at + 1.0) - 1, 0, None)]
    return (since > 0.25 * times.pause_s) & (since < 0.8 * times.pause_s), np.abs(since) < 0.75


class _Targets(NamedTuple):
    centre: FloatArray
    quantiles: FloatArray


def _shape(
    place: FloatArray,
    power: FloatArray,
    known: npt.NDArray[np.bool_],
    iteration_s: float,
    spread: NodeSpread,
    meter: WallMeter,
    seed: int,
) -> tuple[Iteration, NodeSpread, WallMeter]:
    """The exchange's shape, how late nodes are, and the meter's window."""
    reach = iteration_s * 0.45
    centre = np.arange(-reach, reach, _BIN_S) + _BIN_S / 2.0
    inside = [known & (np.abs(place - at) < _BIN_S / 2.0) for at in centre]
    filled = [part.sum() >= 10 for part in inside]
    wanted = np.array(
        [np.percentile(power[p], _QUANTILES) for p, ok in zip(inside, filled, strict=True) if ok]
    )
    target = _Targets(centre[filled], wanted)
    draws = norm.ppf(_even_draws(_DRAWS, 6, seed))
    bottom = float(np.percentile(wanted[:, 2], 2.0))

    def residuals(values: FloatArray) -> FloatArray:
        shape, nodes, seen = _unpack(values, iteration_s, spread, meter)
        expected = _expected(target.centre + values[8], shape, nodes, seen, draws)
        return ((expected - target.quantiles) / 0.01).ravel()

    begin = np.array([0.1, 0.95, 0.13, bottom, 0.02, 0.1, 0.3, 0.5, 0.0])
    begin[[0, 2, 5]] *= iteration_s
    low = np.array([0.0, 0.3, 0.05, 0.02, 0.0, 0.0, 0.0, 0.05, -1.0])
    high = np.array([0.3 * iteration_s, 1.0, 0.6 * iteration_s, 1.0, 0.2, 0.3 * iteration_s, 1.5, 2.2, 1.0])
    found = least_squares(
        residuals,
        np.clip(begin, low + 1e-6, high - 1e-6),
        bounds=(low, high),
        loss="soft_l1",
        diff_step=np.full(begin.size, 2e-2),
    )
    return _unpack(found.x, iteration_s, spread, meter)


def _even_draws(count: int, columns: int, seed: int) -> FloatArray:
    """Shares between 0 and 1, evenly spread in every column and shuffled against each other."""
    rng = np.random.default_rng(seed)
    even = (np.arange(count) + 0.5) / count
    return np.stack([rng.permutation(even) for _ in range(columns)])


def _unpack(
    values: FloatArray, iteration_s: float, spread: NodeSpread, meter: WallMeter
) -> tuple[Iteration, NodeSpread, WallMeter]:
    drain_s, shoulder, exchange_s, exchange, uneven, fill_s, straggle_s, window_s = values[:8].tolist()
    shape = Iteration(
        work_s=iteration_s - drain_s - exchange_s - fill_s,
        drain_s=drain_s,
        exchange_s=exchange_s,
        fill_s=fill_s,
        drain_ratio=shoulder,
        exchange_ratio=exchange,
    )
    replace = msgspec.structs.replace
    nodes = replace(spread, exchange_ratio=uneven, straggle_s=straggle_s)
    return shape, nodes, replace(meter, window_s=window_s)


def _expected(
    place: FloatArray, shape: Iteration, nodes: NodeSpread, meter: WallMeter, draws: FloatArray
) -> FloatArray:
    """Quantiles of what meters read so many seconds after the middle of the exchange; (places, quantiles)."""
    kept = nodes.memory_ratio
    following = kept * draws[0] + np.sqrt(1.0 - kept**2) * draws[1]
    exchange = shape.exchange_ratio * (1.0 + nodes.exchange_ratio * draws[2])
    seconds, level = phases(shape, nodes.straggle_s * draws[3:5], level_at(draws[0], nodes), exchange)
    bounds = np.concatenate([np.zeros((1, _DRAWS)), np.cumsum(seconds, axis=0)])
    bounds = np.concatenate([bounds, bounds[-1:] + shape.seconds])
    level = np.concatenate([level, level_at(following, nodes)[None]])
    middle = shape.work_s + shape.drain_s + shape.exchange_s / 2.0
    window = meter.window_s
    read = np.stack([integral(bounds, level, middle + at - window, middle + at) / window for at in place])
    read *= 1.0 + meter.noise_ratio * draws[5]
    quantiles: FloatArray = np.percentile(read, _QUANTILES, axis=1).T
    return quantiles


def idle_power(recording: WallPower) -> float:
    """A node's wall power while its GPUs wait, from a job that rests for a while: the median over the meters
    of the power that a reading in fifty falls below. Raises UnusableRecording where it never rests."""
    low = float(np.median([np.percentile(watts, 2.0) for watts in recording.watts]))
    high = float(np.median([np.percentile(watts, 80.0) for watts in recording.watts]))
    if low > 0.6 * high:
        raise UnusableRecording(f"{recording.name}: its nodes never rest (lowest {low:.0f} of {high:.0f} W)")
    return low


def calibrate(data: Path, *, seed: int = SEED) -> TrainingCoefficients:
    """The coefficients, from the recordings below the folder `data`. Raises UnusableRecording for one that
    is missing or malformed."""
    job, other = read_wall_power(data / JOB), read_wall_power(data / OTHER_JOB)
    learned = fit(job, idle_w=idle_power(other), seed=seed)
    return TrainingCoefficients(
        job=learned.job,
        spread=learned.spread,
        meter=learned.meter,
        provenance=Provenance(
            files={JOB: job.sha256, OTHER_JOB: other.sha256},
            licence="Apache-2.0",
            source="mlcommons/training_results_v4.0",
            command="windrow calibrate training",
            seed=seed,
        ),
    )
