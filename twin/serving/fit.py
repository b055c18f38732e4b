"""Fits a serving board's coefficients to recorded runs.

Where all requests of a run are there from the start, what the engine does step by step does not depend on how
long a step takes. So each run is worked through once with any pace, its steps are counted, and everything
else is linear least squares:

1. KV capacity per model, from runs whose cache never filled: tokens held over the recorded share in use.
2. Pace, from each run's duration, mean time to first token and mean time per output token; first one law over
   all models (from their shapes), then each model by itself, drawn towards the law with a weight of
   `_LAW_SHARE` where its own runs say little.
3. Watts, from each run's mean power over its board's gain.

A run at a locked clock is taken to full clock by the synthetic axis of `twin.serving.board`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from scipy.optimize import lsq_linear, nnls

from schemas.units import FloatArray
from twin.serving.board import (
    FEATURES,
    ModelFit,
    PaceLaw,
    ServingFit,
    engine_limits,
    power_left,
    rates,
    slower,
    work,
)
from twin.serving.engine import BLOCK, Course, Pace, serve
from twin.serving.llm import Llm
from twin.serving.recorded import RecordedRun, RunsError

_ANY = Pace(
    prefill_s=0.01,
    prompt_token_s=3e-5,
    decode_s=0.01,
    answer_s=1e-4,
    context_token_s=2e-7,
    chunk_token_s=1e-5,
)
"""The pace that a course is worked through with before any is known."""

_TIME_ERROR = 0.01  # how well a linear pace is expected to hit a run's times (our choice)
_LAW_SHARE = 0.5  # how far a model's coefficient may well lie from the law's, as a share of it (our choice)
_LAW_BOUNDS = (0.3, 4.0)  # and how far at the most, as multiples of it (our choice)
_SHAPE_POINTS = 65
_FULL = 0.9  # of the answers allowed: from here a run's batch counts as full
_SLOW_REQUEST_S = 3.0  # requests that take longer, one at a time, are told apart by counters read each second
_IDLE_EXPONENTS = np.linspace(0.0, 1.2, 13)
_FEWEST = len(FEATURES) + 2


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded run and what the engine did in it."""

    run: RecordedRun
    course: Course
    clock_ratio: float
    output: FloatArray


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """The board that was recorded on, as its maker states it."""

    sku: str
    limit_w: float
    max_mhz: float
    memory_bytes: float


H100_64GB = Board(sku="H100-SXM5-64GB", limit_w=700.0, max_mhz=1980.0, memory_bytes=64e9)
"""The board of the shared runs: their cache sizes fit 64 GB, their clocks end at 1,980 MHz."""


def fit(runs: Sequence[RecordedRun], board: Board, *, seed: int) -> ServingFit:
    """The coefficients that describe these runs. Raises RunsError where they are too few to say."""
    closed = [run for run in runs if run.at_once]
    if len(closed) < _FEWEST:
        raise RunsError(
            f"{len(closed)} runs have all requests from the start (request_rate inf): a fit needs {_FEWEST}"
        )
    shapes = length_shapes(closed)
    llms = {run.llm.name: run.llm for run in closed}

    def measured(capacity: Mapping[str, int]) -> list[Measured]:
        return [_measure(run, capacity[run.llm.name], shapes, board, seed) for run in closed]

    most = {
        name: int((board.memory_bytes - llm.weight_bytes) / llm.cache_bytes) for name, llm in llms.items()
    }
    capacity = kv_capacity(measured(most), most)
    found = measured(capacity)
    law = fit_law(found)
    paces = {
        name: fit_pace([m for m in found if m.run.llm.name == name], law.pace(llm))
        for name, llm in llms.items()
    }
    watts = fit_watts(found, paces)
    held = [capacity[name] * llm.cache_bytes + llm.weight_bytes for name, llm in llms.items()]
    celsius, celsius_per_w = fit_temperature(closed)
    return ServingFit(
        sku=board.sku,
        limit_w=board.limit_w,
        max_mhz=board.max_mhz,
        memory_bytes=float(np.median(held)),
        idle_w=watts.idle_w,
        idle_exponent=watts.idle_exponent,
        noise_ratio=_noise(closed),
        celsius=celsius,
        celsius_per_w=celsius_per_w,
        base_w=watts.base_w,
        weights_w_per_tb_s=watts.weights,
        cache_w_per_tb_s=watts.cache,
        prompt_w_per_tflop_s=watts.prompts,
        answer_w_per_tflop_s=float(np.median(list(watts.answers.values()))),
        law=law,
        models={
            name: ModelFit(
                pace=paces[name], kv_tokens=capacity[name], answer_w_per_tflop_s=watts.answers[name]
            )
            for name in llms
        },
        prompt_shape=shapes[0],
        output_shape=shapes[1],
    )


def _measure(
    run: RecordedRun,
    kv_tokens: int,
    shapes: tuple[tuple[float, ...], tuple[float, ...]],
    board: Board,
    seed: int,
) -> Measured:
    requests = run.request_list(np.array(shapes[0]), np.array(shapes[1]), seed)
    limits = engine_limits(run.llm, kv_tokens, run.max_answers, chunked=run.chunked)
    try:
        course = serve(requests, limits, _ANY)
    except ValueError as error:
        raise RunsError(f"{run.name}: {error}") from error
    ratio = min(1.0, run.clock_mhz / board.max_mhz)
    return Measured(run=run, course=course, clock_ratio=ratio, output=requests.output)


# ---- what was asked ----


def length_shapes(runs: Sequence[RecordedRun]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Quantiles of prompt and output lengths over their means, from runs that served one request at a
    time: there the counters, read each second, tell requests apart. Flat where there is no such run."""
    flat = (1.0,) * _SHAPE_POINTS
    shapes = []
    for run in runs:
        if run.max_answers == 1 and run.result.duration / run.result.completed > _SLOW_REQUEST_S:
            begins = np.flatnonzero(np.diff(run.prompt_tokens) > 0) + 1
            prompt = np.diff(run.prompt_tokens)[begins[:-1] - 1]
            output = np.diff(run.output_tokens[begins])
            shapes.append([_quantiles(prompt), _quantiles(output)])
    if not shapes:
        return flat, flat
    prompt, output = np.mean(np.array(shapes), axis=0)
    return tuple(prompt.tolist()), tuple(output.tolist())


def _quantiles(lengths: FloatArray) -> FloatArray:
    shape: FloatArray = np.quantile(lengths, np.linspace(0.0, 1.0, _SHAPE_POINTS)) / lengths.mean()
    return np.round(shape, 4)


# ---- memory ----


def kv_capacity(found: Sequence[Measured], otherwise: Mapping[str, int]) -> dict[str, int]:
    """Tokens of KV cache per model: what the engine held over the share that was recorded in use, as the
    median of the model's runs that filled their batch and not their cache."""
    said: dict[str, list[float]] = {}
    for measured in found:
        run, course = measured.run, measured.course
        busy = course.batch >= _FULL * run.max_answers
        recorded = run.running >= _FULL * run.max_answers
        if course.preemptions or not busy.any() or not recorded.any() or run.cache_ratio.max() > 0.95:
            continue
        held = (course.context_tokens + course.batch * BLOCK / 2)[busy]
        mean_held = float(np.average(held, weights=course.steps[busy]))
        said.setdefault(run.llm.name, []).append(mean_held / float(run.cache_ratio[recorded].mean()))
    return {name: int(np.median(said[name])) if name in said else most for name, most in otherwise.items()}


# ---- seconds ----


def time_rows(measured: Measured) -> tuple[FloatArray, FloatArray]:
    """A run's three times as linear equations in the pace's coefficients: rows (3, 6) and seconds (3,) of
    duration, mean time to first token and mean time per output token."""
    course, result = measured.course, measured.run.result
    prompts, answers = slower(measured.clock_ratio)
    done = np.cumsum(work(course) * np.array((prompts, prompts, answers, answers, answers, prompts)), axis=0)
    several = measured.output > 1
    between = (done[course.last] - done[course.first])[several] / (measured.output[several, None] - 1)
    rows = np.stack((done[-1], done[course.first].mean(axis=0), between.mean(axis=0)))
    return rows, np.array((result.duration, result.mean_ttft_ms / 1000.0, result.mean_tpot_ms / 1000.0))


def fit_law(found: Sequence[Measured]) -> PaceLaw:
    """One law for all models, by non-negative least squares of relative errors."""
    rows, ones = [], []
    for measured in found:
        coefficients, seconds = time_rows(measured)
        rows.append(coefficients @ _by_shape(measured.run.llm) / seconds[:, None])
        ones.append(np.ones(3))
    solved, _ = nnls(np.concatenate(rows), np.concatenate(ones))
    return PaceLaw(**dict(zip(PaceLaw.__struct_fields__, solved.tolist(), strict=True)))


def _by_shape(llm: Llm) -> FloatArray:
    """How a pace's coefficients follow from a law's, for a model; (6, 6)."""
    ones = np.eye(len(PaceLaw.__struct_fields__))
    columns = [
        msgspec.structs.astuple(
            PaceLaw(**dict(zip(PaceLaw.__struct_fields__, unit.tolist(), strict=True))).pace(llm)
        )
        for unit in ones
    ]
    return np.array(columns).T


def fit_pace(found: Sequence[Measured], law: Pace) -> Pace:
    """One model's pace from its own runs, drawn towards the law where they leave it open."""
    rows, aims = [], []
    for measured in found:
        coefficients, seconds = time_rows(measured)
        rows.append(coefficients / seconds[:, None] / _TIME_ERROR)
        aims.append(np.full(3, 1.0 / _TIME_ERROR))
    prior = np.maximum(msgspec.structs.astuple(law), 1e-9)
    rows.append(np.diag(1.0 / (_LAW_SHARE * prior)))
    aims.append(np.full(prior.size, 1.0 / _LAW_SHARE))
    # In units of the law's coefficients, which differ by five orders of magnitude.
    solved = lsq_linear(np.concatenate(rows) * prior, np.concatenate(aims), bounds=_LAW_BOUNDS).x
    return Pace(**dict(zip(FEATURES, (solved * prior).tolist(), strict=True)))


# ---- watts and degrees ----


class _Watts(msgspec.Struct, frozen=True, kw_only=True):
    idle_w: float
    idle_exponent: float
    base_w: float
    weights: float
    cache: float
    prompts: float
    answers: dict[str, float]


def fit_watts(found: Sequence[Measured], paces: Mapping[str, Pace]) -> _Watts:
    """Watts per unit of work from the runs' mean powers, and how far a board's idle power tells its gain."""
    names = list(paces)
    rested = [m.run.idle_w for m in found if m.run.idle_w is not None and m.clock_ratio == 1.0]
    idle_w = float(np.median(rested)) if rested else 0.0
    rows, powers, gains, fractions = [], [], [], []
    for measured in found:
        run, course = measured.run, measured.course
        seconds = work(course) @ np.array(msgspec.structs.astuple(paces[run.llm.name]))
        mean = np.average(rates(course, run.llm, seconds), axis=0, weights=seconds)
        answers = np.zeros(len(names))
        answers[names.index(run.llm.name)] = mean[4]
        rows.append(np.concatenate((mean[:4], answers)))
        powers.append(run.mean_w)
        gains.append(1.0 if run.idle_w is None or not idle_w else run.idle_w / idle_w)
        fractions.append(power_left(measured.clock_ratio))
    table, power, fraction = np.array(rows), np.array(powers), np.array(fractions)
    best: tuple[float, float, FloatArray] | None = None
    for exponent in _IDLE_EXPONENTS:
        # A locked board's rest is low because of the lock: it says nothing of the board's gain.
        gain = np.where(fraction == 1.0, np.power(gains, exponent), 1.0)
        full = idle_w + (power / gain - idle_w) / fraction
        solved, residual = nnls(table / full[:, None], np.ones(full.size))
        if best is None or residual < best[0]:
            best = (residual, float(exponent), solved)
    assert best is not None
    _, exponent, solved = best
    return _Watts(
        idle_w=idle_w,
        idle_exponent=exponent,
        base_w=float(solved[0]),
        weights=float(solved[1]),
        cache=float(solved[2]),
        prompts=float(solved[3]),
        answers=dict(zip(names, solved[4:].tolist(), strict=True)),
    )


def fit_temperature(runs: Sequence[RecordedRun]) -> tuple[float, float]:
    """°C at no power, and per watt, through the runs' means."""
    slope, celsius = np.polyfit([run.mean_w for run in runs], [run.temperature_c.mean() for run in runs], 1)
    return float(celsius), float(slope)


def _noise(runs: Sequence[RecordedRun]) -> float:
    """What a second's reading strays by, from runs of few answers, whose load is even."""
    steady = sorted(runs, key=lambda run: run.max_answers)[: max(1, len(runs) // 5)]
    strays = [np.median(np.abs(run.power_w - np.median(run.power_w))) * 1.4826 / run.mean_w for run in steady]
    return float(np.median(strays))
