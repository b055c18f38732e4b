"""One run of an experiment: its whole setup as data, what it came to, and how many are run and kept.

A run is known by a digest of its whole setup: what it asks, the row with its boards, how fast those serve
and what they draw (which a new calibration changes), their clocks, the forecaster where the policy reads one,
the mix of requests and the week's shape. What is finished lies in a folder as a small JSON by that name, so
that an interrupted experiment goes on where it was, and a changed one runs anew what has changed. Code that
makes something else of the same setup raises `MEANING`; a test holds short runs to their results.
"""

from __future__ import annotations

import functools
import hashlib
import math
import pathlib
from collections.abc import Callable, Iterable

import msgspec

from controllers.policy import CappingPolicy
from runtime import whole_file
from runtime.clock import SystemClock
from runtime.config import Setup
from runtime.experiments.row import STUDY_DEMAND, WARM_UP_S, row_load, row_setup, study_row
from runtime.experiments.weeks import Said, Weeks
from runtime.workers import spread
from schemas.topology import Priority
from streams.forecast.fitted import PEAKS
from twin.breaker import TripCurve
from twin.bulk import STEP_MS, PathFaults, Totals
from twin.serving.curves import curves_of
from twin.weekly import shipped_week
from twin.workload import MIX

PRIORITIES: tuple[Priority, ...] = ("high", "low")
_DAY_S = 86_400
MEANING = 2
"""Raised by hand where plant, control or agents come to do otherwise under the same setup."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One run: `days` of `servers` from `begin_s` after Monday 00:00 on, under `policy`; None: with neither
    control nor breaker, which is what latencies are compared to. `power_ratio` multiplies what GPUs draw."""

    servers: int
    policy: CappingPolicy | None
    days: float
    seed: int
    begin_s: int = 0
    power_ratio: float = 1.0
    faults: PathFaults = PathFaults()
    arrivals: tuple[str, ...] = ()

    @property
    def uncapped(self) -> Case:
        """The run that this one is compared to: the same requests at the same servers."""
        return msgspec.structs.replace(self, policy=None, faults=PathFaults())

    @property
    def key(self) -> str:
        """What this run is known by: 24 hexadecimal characters."""
        policy = self.policy and msgspec.structs.replace(self.policy, name="")
        whole = msgspec.structs.replace(self, policy=policy, arrivals=())
        files = tuple(_content(path) for path in self.arrivals)
        row = row_setup(self.servers).site.rows[0]
        boards = {host.sku.name: host.sku for host in row.hosts}
        plant = [(row, curves_of(sku), policy and policy.clocks_of(sku)) for sku in boards.values()]
        told = PEAKS if self.policy is not None and self.policy.variant == "polca_forecast" else None
        setup = (MEANING, whole, files, STUDY_DEMAND, MIX, shipped_week().shape, plant, told)
        return hashlib.sha256(msgspec.json.encode(setup, order="deterministic")).hexdigest()[:24]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to. Shares are of the row's budget; `latency_s` has median and P99 by priority;
    `tokens` and `capped_host_s` are by priority too. `took_s` is how long the run took, seconds."""

    case: Case
    seconds: float
    peak_ratio: float
    mean_ratio: float
    over_budget_s: float
    trips: int
    energy_j: float
    latency_s: dict[str, tuple[float, float]]
    done: dict[str, int]
    tokens: dict[str, float]
    capped_host_s: dict[str, float]
    said: Said
    lost_writes: int = 0
    took_s: float = 0.0


@functools.cache
def _content(path: str) -> str:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def run_case(case: Case, told: Callable[[float], None] = lambda days: None) -> Result:
    """Run it; `told` hears the simulated days done since it was last told."""
    clock = SystemClock()
    began = clock.monotonic()
    setup = row_setup(case.servers, case.policy or CappingPolicy(variant="off"))
    arrivals = tuple(pathlib.Path(path) for path in case.arrivals)
    plant = study_row(
        setup,
        case.seed,
        load=row_load(setup, case.seed, begin_s=case.begin_s, arrivals=arrivals),
        faults=case.faults,
        power_ratio=case.power_ratio,
        curve=None if case.policy else TripCurve(pickup_ratio=math.inf, instant_ratio=math.inf),
    )
    steps, warm = round(case.days * _DAY_S * 1000 / STEP_MS), WARM_UP_S * 1000 // STEP_MS
    said = Said()
    if case.policy is None:
        plant.course_w()
        plant.forget()
        taken = 0
        while taken < steps:
            taken += (some := len(plant.course_w(steps - taken)))
            told(some * STEP_MS / 1000 / _DAY_S)
    else:
        weeks = Weeks(setup, plant, forecast=case.policy.variant == "polca_forecast")
        weeks.run(warm)
        weeks.forget()
        hour = 3_600_000 // STEP_MS
        for first in range(0, steps, hour):
            some = min(hour, steps - first)
            weeks.run(some)
            told(some * STEP_MS / 1000 / _DAY_S)
        said = weeks.said
    return _result(case, setup, plant.settle(), said, plant.lost_writes, clock.monotonic() - began)


def _result(case: Case, setup: Setup, totals: Totals, said: Said, lost: int, took_s: float) -> Result:
    budget_w = setup.site.rows[0].budget_w
    place = {"low": 0, "high": 1}
    return Result(
        case=case,
        seconds=totals.seconds,
        peak_ratio=totals.peak_w / budget_w,
        mean_ratio=totals.energy_j / totals.seconds / budget_w,
        over_budget_s=totals.over_budget_s,
        trips=totals.trips,
        energy_j=totals.energy_j,
        latency_s={p: (totals.quantile_s(p, 0.5), totals.quantile_s(p, 0.99)) for p in PRIORITIES},
        done={p: int(totals.done[place[p]]) for p in PRIORITIES},
        tokens={p: float(totals.tokens[place[p]]) for p in PRIORITIES},
        capped_host_s={p: float(totals.capped_host_s[place[p]]) for p in PRIORITIES},
        said=said,
        lost_writes=lost,
        took_s=round(took_s, 1),
    )


class Results:
    """Finished runs in a folder, one file each. Raises OSError where it cannot be had."""

    def __init__(self, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def get(self, case: Case) -> Result | None:
        """A finished run; None where it is not, its file is not whole, or is another run's."""
        file = self._folder / f"{case.key}.json"
        try:
            found = msgspec.json.decode(file.read_bytes(), type=Result)
        except (OSError, msgspec.DecodeError):
            return None
        return found if msgspec.structs.replace(found.case, arrivals=case.arrivals).key == case.key else None

    def put(self, result: Result) -> None:
        """Keep a finished run."""
        content = msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"
        whole_file.put(self._folder / f"{result.case.key}.json", content)


def run_all(
    cases: Iterable[Case],
    results: Results,
    *,
    jobs: int,
    told: Callable[[float], None] = lambda days: None,
) -> dict[str, Result]:
    """Every case's result by its key: kept ones as they are, the others run on `jobs` processes. `told` hears
    simulated days as they are done. When it is broken off, what is finished is kept."""
    wanted = {case.key: case for case in cases}
    found: dict[str, Result] = {}
    for key, case in wanted.items():
        kept = results.get(case)
        if kept is not None:
            found[key] = kept
            told(case.days)
    left = sorted((key for key in wanted if key not in found), key=lambda key: -_weight(wanted[key]))
    works = [functools.partial(run_case, wanted[key]) for key in left]
    if works:
        new = spread(works, workers=jobs, told=told, done=results.put)
        found.update(zip(left, new, strict=True))
    return found


def _weight(case: Case) -> float:
    """About how long it runs: the longest first, so that none is left to run alone."""
    quick = 0.3 if case.policy is None else 3.0 if case.policy.variant.startswith("one") else 1.0
    return case.days * quick
