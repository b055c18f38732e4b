"""How close the twin of a serving GPU comes to recorded runs.

A run is predicted from what was asked of it and from its settings: the requests' count, mean lengths and
arrival, the model, how many answers at once, the locked clock, and what the board drew at rest. Nothing that
it measured under load goes in. Runs that the stored fit was made from are predicted by the fold that left
them out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from schemas.units import FloatArray
from twin.serving.board import ServingFit
from twin.serving.calibration import Calibration
from twin.serving.engine import Course, serve
from twin.serving.recorded import RecordedRun, RunsError
from twin.serving.sensor import average

RAMP_S = (2, 10, 40)
"""Over how many seconds rises and falls are looked at."""

_RAMP_QUANTILE = 0.99


class Measurement(NamedTuple):
    """A run's power, a reading a second, and its latencies as mean and median; recorded or predicted."""

    power_w: FloatArray
    duration_s: float
    ttft_s: tuple[float, float]
    tpot_s: tuple[float, float]


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to. A ramp is the 99th percentile of the change within so many seconds, up or down;
    None where the run is too short to tell."""

    mean_w: float
    energy_j: float
    p50_w: float
    p95_w: float
    p99_w: float
    ramp_2s_w: float | None
    ramp_10s_w: float | None
    ramp_40s_w: float | None
    duration_s: float
    ttft_mean_s: float
    ttft_median_s: float
    tpot_mean_s: float
    tpot_median_s: float


QUANTITIES = Figures.__struct_fields__
RAMPS = ("ramp_2s_w", "ramp_10s_w", "ramp_40s_w")


class RunFidelity(msgspec.Struct, frozen=True, kw_only=True):
    """One run: recorded against predicted. `fitted`: the coefficients were fitted to this run among others,
    so that those of a fit without it predicted it. `errors` are relative to the recorded value; a ramp's is a
    share of the board's power limit, since an even run has none."""

    name: str
    model: str
    max_answers: int
    chunked: bool
    clock_mhz: float
    idle_w: float | None
    fitted: bool
    recorded: Figures
    predicted: Figures
    errors: dict[str, float | None]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All runs, and the median and 90th percentile of each error's size over them. `signed` has the medians
    of the errors themselves, which tell too low from too high; `medians_crowded` those of the runs with
    `CROWDED` answers at once and more, which a row's peaks are made of; `medians_unknown_board` the medians,
    had nobody read the boards' power at rest. `sku` is the board that is predicted, `problems` a line for
    each thing that could not be judged, `remarks` one for each sign that a run is not of what was fitted."""

    sku: str
    runs: tuple[RunFidelity, ...]
    medians: dict[str, float]
    p90: dict[str, float]
    signed: dict[str, float]
    medians_crowded: dict[str, float]
    medians_unknown_board: dict[str, float]
    goals: dict[str, float]
    problems: tuple[str, ...]
    remarks: tuple[str, ...]


CROWDED = 128
"""Answers at once from which on an engine's bookkeeping shows (docs/calibration.md)."""

GOALS = {"energy_j": 0.02, "p99_w": 0.03, "ttft_mean_s": 0.05, "tpot_mean_s": 0.05}
"""The errors to stay within, as medians over runs left out of the fit."""


def compare(run: RecordedRun, calibration: Calibration, *, seed: int) -> tuple[RunFidelity, RunFidelity]:
    """A run's fidelity, with its board's rest known and not known. Raises RunsError for a run that the board
    cannot have served."""
    served = Served.of(run, calibration.fit_for(run), seed=seed)
    fitted = calibration.fold_of(run) is not None
    known, unknown = served.power(run.idle_w), served.power(None)
    return _fidelity(served, known, fitted=fitted), _fidelity(served, unknown, fitted=fitted)


def report(
    pairs: Sequence[tuple[RunFidelity, RunFidelity]], calibration: Calibration, problems: Sequence[str] = ()
) -> Report:
    """The report over what `compare` gave."""
    known = tuple(pair[0] for pair in pairs)
    return Report(
        sku=calibration.fit.sku,
        runs=known,
        medians=_over(known, 0.5),
        p90=_over(known, 0.9),
        signed=_over(known, 0.5, size=float),
        medians_crowded=_over([run for run in known if run.max_answers >= CROWDED], 0.5),
        medians_unknown_board=_over([pair[1] for pair in pairs], 0.5),
        goals=GOALS,
        problems=tuple(problems),
        remarks=tuple(_remarks(known, calibration.fit)),
    )


def _remarks(runs: Sequence[RunFidelity], fit: ServingFit) -> Iterator[str]:
    """What speaks against the runs' board and model being among those fitted. What a run of the fit itself
    rested at under locked clocks does not."""
    strangers = [run for run in runs if run.model not in fit.models]
    if strangers:
        models = ", ".join(sorted({run.model for run in strangers}))
        yield (
            f"{_of(strangers, runs)} of models that were not fitted to ({models}): they are predicted from "
            "their shapes alone, which is further off"
        )
    clocked = [run for run in runs if run.clock_mhz > fit.max_mhz]
    if clocked:
        most = max(clocked, key=lambda run: run.clock_mhz)
        yield (
            f"{_of(clocked, runs)} at clocks up to {most.clock_mhz:,.0f} MHz ({most.name}), above those of "
            f"the board fitted ({fit.sku}, {fit.max_mhz:,.0f} MHz): this may be another board"
        )
    told = [run for run in runs if not (run.fitted and run.clock_mhz < fit.max_mhz)]
    rests = {run.name: run.idle_w for run in told if run.idle_w is not None}
    strange = {name: idle_w for name, idle_w in rests.items() if not fit.rests_alike(idle_w)}
    if strange:
        name, idle_w = max(strange.items(), key=lambda rest: abs(rest[1] - fit.idle_w))
        yield (
            f"{_of(strange, runs)} with a power at rest ({idle_w:.0f} W, {name}) too far from that of the "
            f"board fitted ({fit.sku}, {fit.idle_w:.0f} W) to be used: this may be another board, or it "
            "rested in another state (clocks locked, no model in memory)"
        )


def _of(some: Collection[object], runs: Sequence[RunFidelity]) -> str:
    return f"{len(some)} of {len(runs)} run{'s' * (len(runs) != 1)}"


def _over(
    runs: Sequence[RunFidelity], quantile: float, size: Callable[[float], float] = abs
) -> dict[str, float]:
    out = {}
    for name in QUANTITIES:
        sizes = [size(error) for run in runs if (error := run.errors[name]) is not None]
        if sizes:
            out[name] = float(np.quantile(sizes, quantile))
    return out


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What the twin makes of a run's requests and settings."""

    run: RecordedRun
    fit: ServingFit
    course: Course
    clock_ratio: float
    ttft_s: FloatArray
    tpot_s: FloatArray
    seed: int

    @classmethod
    def of(cls, run: RecordedRun, fit: ServingFit, *, seed: int) -> Served:
        """The run, served by the engine that the fit describes. Raises RunsError where that cannot be."""
        ratio = min(1.0, run.clock_mhz / fit.max_mhz)
        requests = run.request_list(np.array(fit.prompt_shape), np.array(fit.output_shape), seed)
        limits = fit.limits(run.llm, run.max_answers, chunked=run.chunked)
        try:
            course = serve(requests, limits, fit.at_clock(fit.model(run.llm).pace, ratio))
        except ValueError as error:
            raise RunsError(f"{run.name}.csv: one {fit.sku} cannot serve {run.llm.name}: {error}") from error
        first, last = course.end_s[course.first], course.end_s[course.last]
        several = requests.output > 1
        return cls(
            run=run,
            fit=fit,
            course=course,
            clock_ratio=ratio,
            ttft_s=first - requests.at_s,
            tpot_s=(last - first)[several] / (requests.output[several] - 1.0),
            seed=seed,
        )

    def power(self, idle_w: float | None) -> Measurement:
        """What would have been measured on a board that draws so much at rest; None: nobody looked."""
        end = self.course.end_s
        watts = self.fit.watts(self.course, self.run.llm, clock_ratio=self.clock_ratio, idle_w=idle_w)
        readings = average(end, watts, np.arange(2.0, max(3.0, end[-1])))
        rng = np.random.default_rng([self.seed, int(self.run.digest[:8], 16)])
        return Measurement(
            readings * (1.0 + self.fit.noise_ratio * rng.standard_normal(readings.size)),
            float(end[-1]),
            _mean_and_median(self.ttft_s),
            _mean_and_median(self.tpot_s),
        )


def _mean_and_median(seconds: FloatArray) -> tuple[float, float]:
    """Zero where no answer had a second token, as load generators put it."""
    return (float(seconds.mean()), float(np.median(seconds))) if seconds.size else (0.0, 0.0)


def recorded(run: RecordedRun) -> Measurement:
    """The same of what was measured."""
    result = run.result
    return Measurement(
        run.power_w,
        result.duration,
        (result.mean_ttft_ms / 1000.0, result.median_ttft_ms / 1000.0),
        (result.mean_tpot_ms / 1000.0, result.median_tpot_ms / 1000.0),
    )


def figures(measured: Measurement) -> Figures:
    """What a measurement comes to."""
    power = measured.power_w
    p50, p95, p99 = np.quantile(power, (0.5, 0.95, 0.99)).tolist()
    ramps = dict(zip(RAMPS, (_ramp(power, lag) for lag in RAMP_S), strict=True))
    return Figures(
        mean_w=float(power.mean()),
        energy_j=float(power.mean()) * measured.duration_s,
        p50_w=p50,
        p95_w=p95,
        p99_w=p99,
        duration_s=measured.duration_s,
        ttft_mean_s=measured.ttft_s[0],
        ttft_median_s=measured.ttft_s[1],
        tpot_mean_s=measured.tpot_s[0],
        tpot_median_s=measured.tpot_s[1],
        **ramps,
    )


def _ramp(power: FloatArray, lag: int) -> float | None:
    if power.size <= lag:
        return None
    return float(np.quantile(np.abs(power[lag:] - power[:-lag]), _RAMP_QUANTILE))


def _fidelity(served: Served, predicted: Measurement, *, fitted: bool) -> RunFidelity:
    run, limit_w = served.run, served.fit.limit_w
    was, said = figures(recorded(run)), figures(predicted)
    errors: dict[str, float | None] = {}
    for name in QUANTITIES:
        true, guess = getattr(was, name), getattr(said, name)
        if true is None or guess is None or not true:
            errors[name] = None
        else:
            errors[name] = (guess - true) / (limit_w if name in RAMPS else true)
    return RunFidelity(
        name=run.name,
        model=run.llm.name,
        max_answers=run.max_answers,
        chunked=run.chunked,
        clock_mhz=run.clock_mhz,
        idle_w=run.idle_w,
        fitted=fitted,
        recorded=was,
        predicted=said,
        errors=errors,
    )
