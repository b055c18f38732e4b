"""POLCA's evaluation, run again: which rows, under which policies, and what the runs come to together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from scipy.stats import t as student

from controllers.policy import DEFAULT_POLICY, Band, CappingPolicy, Latency
from runtime.experiments.cases import PRIORITIES, Case, Result
from runtime.experiments.row import BUSY_S, PROVISIONED
from twin.bulk import PathFaults

_WEEK_DAYS = 7.0


def _policy(**changes: object) -> CappingPolicy:
    return msgspec.structs.replace(DEFAULT_POLICY, **changes)


POLCA = "POLCA"
NO_CAP = "No-cap"
POLICIES: Mapping[str, CappingPolicy] = {
    POLCA: DEFAULT_POLICY,
    "POLCA with forecast": _policy(variant="polca_forecast"),
    "POLCA in band": _policy(path="in_band"),
    "Proportional": _policy(variant="proportional"),
    "Proportional in band": _policy(variant="proportional", path="in_band"),
    "1-Thresh-Low-Pri": _policy(variant="one_threshold_low"),
    "1-Thresh-All": _policy(variant="one_threshold_all"),
    NO_CAP: _policy(variant="no_cap"),
}
"""By the study's names; all but POLCA and the last three are ours."""

STUDIED = (POLCA, "POLCA with forecast", "1-Thresh-Low-Pri", "1-Thresh-All", NO_CAP)
"""What the headline compares."""

ADDED = (0, 10, 20, 30, 40, 45, 50)
HEADLINE_ADDED = 30
BEYOND = (40, 45)
OURS = (POLCA, "POLCA with forecast", "POLCA in band", "Proportional", "Proportional in band")
"""What more servers than the study's are tried with: POLCA, and by what else the row could be held."""

THRESHOLDS = ((0.75, 0.85), (0.80, 0.89), (0.85, 0.95))
LATENCIES_S: tuple[tuple[float, str], ...] = (
    (10.0, "constant"),
    (20.0, "constant"),
    (40.0, "constant"),
    (40.0, "uniform"),
    (80.0, "constant"),
)
LOSSES = (0.0, 0.05, 0.1, 0.2)
POWER = (1.0, 1.05)


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How much is run: `headline_days` for each of `headline_seeds`, by policies other than POLCA and No-cap
    for the first `other_seeds` of them; beyond the study for the first `beyond_seeds`; and `sweep_days` for
    each of `sweep_seeds`. Whole weeks begin on Monday, the rest `begin_s` after it."""

    headline_seeds: tuple[int, ...]
    headline_days: float = _WEEK_DAYS
    other_seeds: int = 2
    beyond_seeds: int = 1
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
    points = [
        _point(
            "headline",
            f"+{HEADLINE_ADDED} %",
            name,
            [
                Case(
                    servers=servers_at(HEADLINE_ADDED),
                    policy=POLICIES[name],
                    days=scale.headline_days,
                    seed=seed,
                    begin_s=0 if scale.headline_days >= _WEEK_DAYS else scale.begin_s,
                    arrivals=arrivals,
                )
                for seed in scale.headline_seeds[: None if name in (POLCA, NO_CAP) else scale.other_seeds]
            ],
        )
        for name in STUDIED
    ]
    if not scale.sweep_seeds:
        return points

    def sweep(name: str, setting: str, policy: str, added: int = HEADLINE_ADDED, **changes: Any) -> None:
        base = Case(
            servers=servers_at(added),
            policy=changes.pop("under", POLICIES[policy]),
            days=scale.sweep_days,
            seed=0,
            begin_s=scale.begin_s,
            arrivals=arrivals,
        )
        base = msgspec.structs.replace(base, **changes)
        cases = [msgspec.structs.replace(base, seed=seed) for seed in scale.sweep_seeds]
        points.append(_point(name, setting, policy, cases))

    for added in BEYOND:
        for name in OURS:
            week = Case(servers=servers_at(added), policy=POLICIES[name], days=scale.headline_days, seed=0)
            cases = [
                msgspec.structs.replace(week, seed=seed, arrivals=arrivals)
                for seed in scale.headline_seeds[: scale.beyond_seeds]
            ]
            points.append(_point("beyond the study", f"+{added} %", name, cases))
    for added in ADDED:
        for name in POLICIES:
            sweep("added servers", f"+{added} %", name, added)
    for ratio in POWER:
        for name in POLICIES:
            sweep("workload power", f"+{ratio - 1:.0%}".replace("%", " %"), name, power_ratio=ratio)
    for t1, t2 in THRESHOLDS:
        bands = _policy(
            t1=Band(enter=t1, leave=round(t1 - 0.05, 2)), t2=Band(enter=t2, leave=round(t2 - 0.05, 2))
        )
        sweep("thresholds", f"{t1:.0%} and {t2:.0%}".replace("%", " %"), POLCA, under=bands)
    for latency_s, spread in LATENCIES_S:
        slow_ms = round(latency_s * 1000)
        lease_ms = max(DEFAULT_POLICY.lease_ms, 2 * slow_ms + 20_000)
        policy = _policy(latency_ms=Latency(out_of_band=slow_ms), lease_ms=lease_ms, renew_ms=lease_ms // 2)
        faults = PathFaults(latency_s=latency_s, spread="uniform" if spread == "uniform" else "constant")
        setting = f"{latency_s:.0f} s" if spread == "constant" else f"up to {latency_s:.0f} s"
        sweep("out-of-band latency", setting, POLCA, under=policy, faults=faults)
    for loss in LOSSES:
        faults = PathFaults(loss_ratio=loss)
        sweep("lost commands", f"{loss:.0%}".replace("%", " %"), POLCA, faults=faults)
    return points


def _point(sweep: str, setting: str, policy: str, cases: Sequence[Case]) -> Point:
    return Point(sweep=sweep, setting=setting, policy=policy, cases=tuple(cases))


def cases_of(points: Sequence[Point]) -> list[Case]:
    """Every run of a plan, with the uncapped ones that they are compared to."""
    return [each for point in points for case in point.cases for each in (case, case.uncapped)]


class Figure(msgspec.Struct, frozen=True):
    """A mean over seeds and half the width of its 95 % confidence interval (Student's t); None for one."""

    mean: float
    half: float | None

    def text(self, form: str) -> str:
        """Both in one cell."""
        mean = format(self.mean, form)
        if self.half is None:
            return mean
        return f"{mean} ± {format(self.half, form.lstrip('+'))}"


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a point came to. Counts and seconds are per week of simulated time; latency and throughput are
    changes against the uncapped run of the same requests; `peak_ratio` is the highest of all runs."""

    sweep: str
    setting: str
    policy: str
    servers: int
    runs: int
    days: float
    brakes: int
    brakes_a_week: Figure
    braked_s_a_week: Figure
    over_budget_s_a_week: Figure
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
    def meets(self) -> bool:
        """Whether it keeps the study's objectives: no brake, and latencies within bounds (the first of them
        published, the others recalled)."""
        return (
            self.brakes == 0
            and self.high_p50.mean < 0.01
            and self.high_p99.mean < 0.05
            and self.low_p50.mean < 0.05
            and self.low_p99.mean < 0.5
        )


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

    return Summary(
        sweep=point.sweep,
        setting=point.setting,
        policy=point.policy,
        servers=point.cases[0].servers,
        runs=len(runs),
        days=sum(case.days for case in point.cases),
        brakes=sum(run.said.brakes for run, _ in runs),
        brakes_a_week=a_week(lambda run: run.said.brakes),
        braked_s_a_week=a_week(lambda run: run.said.modes_s.get("B", 0.0)),
        over_budget_s_a_week=a_week(lambda run: run.over_budget_s),
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


def figure(values: Sequence[float]) -> Figure:
    """A mean with its confidence over seeds."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Figure(mean, None)
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Figure(mean, float(student.ppf(0.975, len(values) - 1)) * spread)
