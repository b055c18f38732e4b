"""POLCA's evaluation, run again: which rows, under which policies, and what the runs come to together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from scipy.stats import chi2
from scipy.stats import t as student

from controllers.clock_table import ClockTable
from controllers.policy import DEFAULT_POLICY, Band, CappingPolicy, Latency
from runtime.experiments.cases import PRIORITIES, Case, Result
from runtime.experiments.row import BUSY_S, PROVISIONED, SKU
from twin.bulk import PathFaults

_WEEK_DAYS = 7.0


def _policy(**changes: object) -> CappingPolicy:
    return msgspec.structs.replace(DEFAULT_POLICY, **changes)


IN_BAND: Mapping[str, object] = {"path": "in_band"}
"""Caps reach a host through its driver within 1 s (the twin takes 50 ms), not in 40 s through its BMC."""

LADDER: Mapping[str, object] = {"variant": "proportional"}
"""Eight caps in place of three, climbed by as much as the power is over its threshold."""

NEARER: Mapping[str, object] = {"t1": Band(enter=0.86, leave=0.81), "t2": Band(enter=0.92, leave=0.87)}
"""Thresholds as far under the budget as the study's row of 40 servers rises within 2 s (`row-check`: 0.073),
as POLCA's T2 is as far under it as that row rises within the 40 s of its path (0.118)."""


def _clocks(low_t1: int, low_t2: int, high_t2: int) -> Mapping[str, object]:
    return {"clocks": {SKU: ClockTable(low_t1=low_t1, low_t2=low_t2, high_t2=high_t2, brake=288)}}


CLOCKS = _clocks(1305, 1185, 1335)
"""The lowest clocks at which the median of low priority is less than 5 % longer and that of high priority
less than 1 %, all of the time: what the sweep of clocks finds on this row, as the study did on its own."""

POLCA = "POLCA"
NO_CAP = "No-cap"
OURS = "Ours"

STUDIED: Mapping[str, CappingPolicy] = {
    POLCA: DEFAULT_POLICY,
    "POLCA with forecast": _policy(variant="polca_forecast"),
    "1-Thresh-Low-Pri": _policy(variant="one_threshold_low"),
    "1-Thresh-All": _policy(variant="one_threshold_all"),
    NO_CAP: _policy(variant="no_cap"),
}
"""What the headline compares, by the study's names; the forecast is ours."""

ABLATED: Mapping[str, CappingPolicy] = {
    POLCA: DEFAULT_POLICY,
    "POLCA in band": _policy(**IN_BAND),
    "POLCA, ladder": _policy(**LADDER),
    "POLCA, nearer": _policy(**NEARER),
    "POLCA, own clocks": _policy(**CLOCKS),
    "Ours, out of band": _policy(**LADDER, **NEARER, **CLOCKS),
    "Ours, three caps": _policy(**IN_BAND, **NEARER, **CLOCKS),
    "Ours, study's thresholds": _policy(**IN_BAND, **LADDER, **CLOCKS),
    "Ours, study's clocks": _policy(**IN_BAND, **LADDER, **NEARER),
    OURS: _policy(**IN_BAND, **LADDER, **NEARER, **CLOCKS),
}
"""What more servers than the study's are held by: each of our means alone, all together, and all without
each. The forecast caps earlier and so more, and is left to the sweep of servers."""

SWEPT: Mapping[str, CappingPolicy] = {
    **STUDIED,
    "POLCA, own clocks": ABLATED["POLCA, own clocks"],
    OURS: ABLATED[OURS],
}
"""What the sweeps of servers and of power compare."""

ADDED = (0, 10, 20, 30, 40, 45, 50)
HEADLINE_ADDED = 30
GOAL_ADDED = 40
BEYOND: Mapping[int, tuple[str, ...]] = {
    GOAL_ADDED: tuple(ABLATED),
    45: ("POLCA, own clocks", "Ours, study's clocks", OURS),
}
"""Servers added beyond the study, and what is tried there."""

BEYOND_SWEEP = "beyond the study"

CLOCKS_MHZ = ((1110, 1305), (1140, 1320), (1170, 1335), (1185, 1335), (1200, 1350))
"""Of low and of high priority, published first: what each costs, held all of the time."""

THRESHOLDS = ((0.75, 0.85), (0.80, 0.89), (0.85, 0.95))
LATENCIES_S: tuple[tuple[float, str], ...] = (
    (10.0, "constant"),
    (20.0, "constant"),
    (40.0, "constant"),
    (40.0, "uniform"),
    (80.0, "constant"),
)
LOSSES = (0.0, 0.05, 0.1, 0.2)
SLOW: Mapping[str, int] = {POLCA: HEADLINE_ADDED, "Ours, out of band": GOAL_ADDED}
"""Which policies bear a slower and a lossy path out of band, at how many servers added."""

POWER = (1.0, 1.05)


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How much is run: `headline_days` for each of `headline_seeds` by the study's policies and, at
    `GOAL_ADDED`, by ours; where `beyond`, other policies beyond the study for the first `other_seeds` of
    them; and `sweep_days` for each of `sweep_seeds`, none for no sweep. Whole weeks begin on Monday, the rest
    `begin_s` after it."""

    headline_seeds: tuple[int, ...]
    headline_days: float = _WEEK_DAYS
    other_seeds: int = 2
    beyond: bool = True
    sweep_seeds: tuple[int, ...] = ()
    sweep_days: float = 0.25
    begin_s: int = BUSY_S


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One place of a table: a policy at one setting, and its runs."""

    sweep: str
    setting: str
    policy: str
    cases: tuple[Case, ...]


def servers_at(added: int) -> int:
    """Servers in the row with so many per cent added, an even number."""
    return 2 * round(PROVISIONED * (1 + added / 100) / 2)


def plan(scale: Scale, arrivals: tuple[str, ...] = ()) -> list[Point]:
    """What is to be run, sweep by sweep."""
    points = [*_headline(scale), *_beyond(scale), *_sweeps(scale)]
    return [
        msgspec.structs.replace(
            point, cases=tuple(msgspec.structs.replace(case, arrivals=arrivals) for case in point.cases)
        )
        for point in points
    ]


def _headline(scale: Scale) -> Iterator[Point]:
    begin_s = 0 if scale.headline_days >= _WEEK_DAYS else scale.begin_s
    week = Case(
        servers=servers_at(HEADLINE_ADDED), policy=None, days=scale.headline_days, seed=0, begin_s=begin_s
    )
    for name, policy in STUDIED.items():
        base = msgspec.structs.replace(week, policy=policy)
        yield _point("headline", f"+{HEADLINE_ADDED} %", name, base, scale.headline_seeds)


def _beyond(scale: Scale) -> Iterator[Point]:
    for added, names in BEYOND.items() if scale.beyond else ():
        for name in names:
            most = name == OURS and added == GOAL_ADDED
            seeds = scale.headline_seeds[: None if most else scale.other_seeds]
            week = Case(servers=servers_at(added), policy=ABLATED[name], days=scale.headline_days, seed=0)
            yield _point(BEYOND_SWEEP, f"+{added} %", name, week, seeds)


def _sweeps(scale: Scale) -> Sequence[Point]:
    points: list[Point] = []
    if not scale.sweep_seeds:
        return points

    def sweep(name: str, setting: str, policy: str, added: int = HEADLINE_ADDED, **changes: Any) -> None:
        base = Case(
            servers=servers_at(added),
            policy=changes.pop("under", None) or SWEPT[policy],
            days=scale.sweep_days,
            seed=0,
            begin_s=scale.begin_s,
        )
        points.append(
            _point(name, setting, policy, msgspec.structs.replace(base, **changes), scale.sweep_seeds)
        )

    for low, high in CLOCKS_MHZ:
        capped = _policy(
            t1=Band(enter=0.02, leave=0.01),
            t2=Band(enter=0.03, leave=0.02),
            **_clocks((low + 1410) // 2, low, high),
        )
        sweep("clocks", f"{low} and {high} MHz", "always capped", under=capped)
    for added in ADDED:
        for name in SWEPT:
            sweep("added servers", f"+{added} %", name, added)
    for ratio in POWER:
        for name in SWEPT:
            sweep("workload power", f"+{ratio - 1:.0%}".replace("%", " %"), name, power_ratio=ratio)
    for t1, t2 in THRESHOLDS:
        bands = _policy(
            t1=Band(enter=t1, leave=round(t1 - 0.05, 2)), t2=Band(enter=t2, leave=round(t2 - 0.05, 2))
        )
        sweep("thresholds", f"{t1:.0%} and {t2:.0%}".replace("%", " %"), POLCA, under=bands)
    for name, added in SLOW.items():
        for latency_s, spread in LATENCIES_S:
            slow_ms = round(latency_s * 1000)
            lease_ms = max(DEFAULT_POLICY.lease_ms, 2 * slow_ms + 20_000)
            policy = msgspec.structs.replace(
                ABLATED[name],
                latency_ms=Latency(out_of_band=slow_ms),
                lease_ms=lease_ms,
                renew_ms=lease_ms // 2,
            )
            faults = PathFaults(latency_s=latency_s, spread="uniform" if spread == "uniform" else "constant")
            setting = f"{latency_s:.0f} s" if spread == "constant" else f"up to {latency_s:.0f} s"
            sweep("out-of-band latency", setting, name, added, under=policy, faults=faults)
        for loss in LOSSES:
            faults = PathFaults(loss_ratio=loss)
            setting = f"{loss:.0%}".replace("%", " %")
            sweep("lost commands", setting, name, added, under=ABLATED[name], faults=faults)
    return points


def _point(sweep: str, setting: str, policy: str, base: Case, seeds: Sequence[int]) -> Point:
    cases = tuple(msgspec.structs.replace(base, seed=seed) for seed in seeds)
    return Point(sweep=sweep, setting=setting, policy=policy, cases=cases)


def cases_of(points: Sequence[Point]) -> list[Case]:
    """Every run of a plan, with the uncapped ones that they are compared to."""
    return [each for point in points for case in point.cases for each in (case, case.uncapped)]


Verdict: TypeAlias = Literal["met", "missed", "undecided"]


class Figure(msgspec.Struct, frozen=True):
    """A mean over seeds and half the width of its 95 % confidence interval (Student's t); None for one."""

    mean: float
    half: float | None

    def below(self, bound: float) -> Verdict:
        """Whether it lies below a bound. Undecided: the bound lies within the interval. One run has no
        interval, and decides by itself."""
        half = self.half or 0.0
        if self.mean - half >= bound:
            return "missed"
        return "met" if self.mean + half < bound else "undecided"

    def text(self, form: str) -> str:
        """Both in one cell."""
        mean = format(self.mean, form)
        if self.half is None:
            return mean
        return f"{mean} ± {format(self.half, form.lstrip('+'))}"


class Rate(msgspec.Struct, frozen=True):
    """Events a week with the 95 % limits of a Poisson count (Garwood), as if they came independently."""

    mean: float
    low: float
    high: float

    def text(self, form: str) -> str:
        """All three in one cell."""
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"


OBJECTIVES = (
    ("high_p50", 0.01, "published"),
    ("high_p99", 0.05, "recalled"),
    ("low_p50", 0.05, "recalled"),
    ("low_p99", 0.5, "recalled"),
)
"""The study's bounds on what latency may grow by, and how each is known; besides them no brake."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a point came to. `seeds` has that of each run, with a space between. `brakes`, `over_budget_s` and
    `trips` are of all its runs, as `peak_ratio` is the highest; what is named so is per week of simulated
    time; latency, throughput and energy are changes against the uncapped runs of the same requests."""

    sweep: str
    setting: str
    policy: str
    servers: int
    runs: int
    seeds: str
    days: float
    brakes: int
    brakes_a_week: Rate
    braked_s_a_week: Figure
    over_budget_s: float
    trips: int
    peak_ratio: float
    mean_ratio: Figure
    high_p50: Figure
    high_p99: Figure
    low_p50: Figure
    low_p99: Figure
    high_tokens: Figure
    low_tokens: Figure
    energy: Figure
    high_capped: Figure
    low_capped: Figure
    commands_a_week: Figure

    @property
    def objectives(self) -> Verdict:
        """Whether it keeps the study's objectives: no brake, and latencies within bounds (the first of them
        published, the others recalled)."""
        found = {getattr(self, name).below(bound) for name, bound, _ in OBJECTIVES}
        if self.brakes or "missed" in found:
            return "missed"
        return "undecided" if "undecided" in found else "met"


def summarise(point: Point, results: Mapping[str, Result]) -> Summary:
    """The runs of a point together."""
    runs = [(results[case.key], results[case.uncapped.key]) for case in point.cases]

    def over_seeds(value: Callable[[Result, Result], float]) -> Figure:
        return figure([value(run, free) for run, free in runs])

    def a_week(value: Callable[[Result], float]) -> Figure:
        return over_seeds(lambda run, free: value(run) * _WEEK_DAYS * 86_400 / run.seconds)

    def latency(priority: str, which: int) -> Figure:
        return over_seeds(
            lambda run, free: run.latency_s[priority][which] / free.latency_s[priority][which] - 1
        )

    def tokens(priority: str) -> Figure:
        return over_seeds(lambda run, free: run.tokens[priority] / free.tokens[priority] - 1)

    def capped(priority: str) -> Figure:
        hosts = point.cases[0].servers / len(PRIORITIES)
        return over_seeds(lambda run, free: run.capped_host_s[priority] / (hosts * run.seconds))

    brakes = sum(run.said.brakes for run, _ in runs)
    return Summary(
        sweep=point.sweep,
        setting=point.setting,
        policy=point.policy,
        servers=point.cases[0].servers,
        runs=len(runs),
        seeds=" ".join(str(case.seed) for case in point.cases),
        days=sum(case.days for case in point.cases),
        brakes=brakes,
        brakes_a_week=rate(brakes, sum(run.seconds for run, _ in runs) / (_WEEK_DAYS * 86_400)),
        braked_s_a_week=a_week(lambda run: run.said.modes_s.get("B", 0.0)),
        over_budget_s=sum(run.over_budget_s for run, _ in runs),
        trips=sum(run.trips for run, _ in runs),
        peak_ratio=max(run.peak_ratio for run, _ in runs),
        mean_ratio=over_seeds(lambda run, free: run.mean_ratio),
        high_p50=latency("high", 0),
        high_p99=latency("high", 1),
        low_p50=latency("low", 0),
        low_p99=latency("low", 1),
        high_tokens=tokens("high"),
        low_tokens=tokens("low"),
        energy=over_seeds(lambda run, free: run.energy_j / free.energy_j - 1),
        high_capped=capped("high"),
        low_capped=capped("low"),
        commands_a_week=a_week(lambda run: sum(run.said.commands.values())),
    )


def rate(count: int, weeks: float) -> Rate:
    """How often something comes that came `count` times in so many weeks."""
    low = float(chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
    high = float(chi2.ppf(0.975, 2 * count + 2)) / 2
    return Rate(count / weeks, low / weeks, high / weeks)


def figure(values: Sequence[float]) -> Figure:
    """A mean with its confidence over seeds."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Figure(mean, None)
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Figure(mean, float(student.ppf(0.975, len(values) - 1)) * spread)
