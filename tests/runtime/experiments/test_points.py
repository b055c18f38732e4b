"""What an experiment is made of: that a row of a table is what its name says, and is compared to its like."""

import functools
import re
from collections.abc import Callable
from typing import TypeAlias

import msgspec
import pytest

from controllers.policy import DEFAULT_POLICY, CappingPolicy
from runtime.experiments.cases import Case
from runtime.experiments.polca import Point, Scale, cases_of, plan
from runtime.experiments.row import PROVISIONED, SKU
from twin.bulk import PathFaults

SEEDS = (7, 8)
RECORDED = ("code.csv", "conv.csv")


@functools.cache
def points() -> tuple[Point, ...]:
    """Of a small experiment with everything in it."""
    return tuple(plan(Scale(headline_seeds=SEEDS, other_seeds=1, sweep_seeds=SEEDS, sweep_days=0.25)))


def swept(name: str) -> list[Point]:
    """A sweep's points, and those of it elsewhere: with other servers."""
    found = [point for point in points() if point.sweep.startswith(name)]
    assert len(found) > 1, f"nothing is swept in {name}"
    return found


def policy_of(case: Case) -> CappingPolicy:
    assert case.policy is not None
    return case.policy


Varied: TypeAlias = tuple[Callable[[Case], tuple[float, ...]], Callable[[Case], Case]]
"""What a sweep varies, in the numbers that its settings are named by; and a run without that change."""


def under(case: Case, **changes: object) -> Case:
    return msgspec.structs.replace(case, policy=msgspec.structs.replace(policy_of(case), **changes))


def per_cent(ratio: float) -> float:
    return round(100 * ratio, 6)


SWEEPS: dict[str, Varied] = {
    "clocks": (
        lambda case: (policy_of(case).clocks[SKU].low_t2, policy_of(case).clocks[SKU].high_t2),
        lambda case: under(case, clocks={}),
    ),
    "added servers": (
        lambda case: (per_cent(case.servers / PROVISIONED - 1),),
        lambda case: msgspec.structs.replace(case, servers=PROVISIONED),
    ),
    "workload power": (
        lambda case: (per_cent(case.power_ratio - 1),),
        lambda case: msgspec.structs.replace(case, power_ratio=1.0),
    ),
    "thresholds": (
        lambda case: (per_cent(policy_of(case).t1.enter), per_cent(policy_of(case).t2.enter)),
        lambda case: under(case, t1=DEFAULT_POLICY.t1, t2=DEFAULT_POLICY.t2),
    ),
    "out-of-band latency": (
        lambda case: (case.faults.latency_s,),
        lambda case: msgspec.structs.replace(
            under(
                case,
                latency_ms=DEFAULT_POLICY.latency_ms,
                lease_ms=DEFAULT_POLICY.lease_ms,
                renew_ms=DEFAULT_POLICY.renew_ms,
            ),
            faults=PathFaults(),
        ),
    ),
    "lost commands": (
        lambda case: (per_cent(case.faults.loss_ratio),),
        lambda case: msgspec.structs.replace(case, faults=PathFaults()),
    ),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_setting_is_named_by_what_its_runs_have(name: str) -> None:
    """A sweep whose runs are all plain POLCA's would show that nothing matters."""
    value, _ = SWEEPS[name]
    for point in swept(name):
        named = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", point.setting)}
        for case in point.cases:
            assert named.issuperset(value(case)), f"{point.sweep}, {point.setting}: {value(case)}"


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_varies_what_it_names_and_nothing_else(name: str) -> None:
    """Two changes at once, and nobody knows which of them a figure is due to."""
    _, restored = SWEEPS[name]
    first: dict[tuple[str, str, int, int], Case] = {}
    for point in swept(name):
        for case in point.cases:
            same = restored(case)
            like = first.setdefault((point.sweep, point.policy, same.servers, case.seed), same)
            assert same == like, f"{point.sweep}, {point.setting}"


def test_a_path_late_by_up_to_so_much_is_not_late_by_as_much_each_time() -> None:
    found = {point.setting.startswith("up to"): set[str]() for point in swept("out-of-band latency")}
    for point in swept("out-of-band latency"):
        found[point.setting.startswith("up to")] |= {case.faults.spread for case in point.cases}
    assert found == {False: {"constant"}, True: {"uniform"}}


def test_the_controller_gives_a_slow_path_its_time() -> None:
    """One that takes each cap for lost before it can land, or lets its lease end by then, would be shown to
    fail by its own setting and not by the path."""
    for point in swept("out-of-band latency"):
        for case in point.cases:
            policy = policy_of(case)
            assert policy.latency_ms.out_of_band == 1000 * case.faults.latency_s
            assert policy.lease_ms > policy.answer_ms("out_of_band")


def test_the_clocks_of_a_sweep_are_held_all_of_the_time() -> None:
    """Even at night the row draws more than a tenth of its budget: both thresholds are always passed."""
    for point in swept("clocks"):
        for case in point.cases:
            assert policy_of(case).t1.enter < policy_of(case).t2.enter < 0.1


def test_no_two_runs_of_a_sweep_are_the_same() -> None:
    """Rows of a table with the same figures would pass for a finding."""
    for sweep in {point.sweep for point in points()}:
        keys = [case.key for point in points() if point.sweep == sweep for case in point.cases]
        assert len(set(keys)) == len(keys), sweep


def test_a_point_runs_under_each_seed_of_its_scale() -> None:
    """An interval over one seed taken twice would be none."""
    for point in points():
        seeds = tuple(case.seed for case in point.cases)
        whole = point.sweep != "beyond the study"
        assert seeds == SEEDS or (not whole and seeds == SEEDS[:1]), f"{point.sweep}, {point.policy}"


@pytest.mark.parametrize("field", ["servers", "days", "seed", "begin_s", "power_ratio", "arrivals"])
def test_a_run_is_compared_to_the_same_row_and_requests_without_control(field: str) -> None:
    """Otherwise a change of latency or energy would be that of a seed, of hours or of servers."""
    for point in plan(Scale(headline_seeds=SEEDS, sweep_seeds=SEEDS), RECORDED):
        for case in point.cases:
            reference = case.uncapped
            assert getattr(reference, field) == getattr(case, field), f"{point.sweep}, {point.setting}"


def test_the_reference_of_a_run_has_no_control_and_no_path_that_could_fail() -> None:
    """All that a point's runs are compared to is one run for each row, time and seed, whatever its path."""
    for case in cases_of(points()):
        assert (case.uncapped.policy, case.uncapped.faults) == (None, PathFaults())


def test_recorded_arrivals_come_to_every_run() -> None:
    """A table half at random and half recorded would compare two loads."""
    for point in plan(Scale(headline_seeds=SEEDS, sweep_seeds=SEEDS), RECORDED):
        assert {case.arrivals for case in point.cases} == {RECORDED}, f"{point.sweep}, {point.setting}"


def test_every_run_is_planned_with_the_one_that_it_is_compared_to() -> None:
    planned = {case.key for case in cases_of(points())}
    for point in points():
        for case in point.cases:
            assert {case.key, case.uncapped.key} <= planned, f"{point.sweep}, {point.setting}"
