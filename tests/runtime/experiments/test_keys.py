"""A finished run is kept under the digest of all that decides it: a change to any of that is another run.

A digest that leaves something out serves yesterday's results for today's experiment, without a word.
"""

from typing import Any

import msgspec
import pytest

from controllers.clock_table import ClockTable
from controllers.policy import DEFAULT_POLICY, Band, CappingPolicy, ForecastUse, Guardrails, Latency, Switches
from runtime.config import Setup
from runtime.experiments import cases
from runtime.experiments.cases import Case
from runtime.experiments.row import STUDY_DEMAND, row_setup
from twin.bulk import PathFaults
from twin.weekly import Demand, FittedWeek, WeekShape, shipped_week
from twin.workload import MIX, RequestKind

CASE = Case(servers=8, policy=DEFAULT_POLICY, days=1.0, seed=1)


def names(struct: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(struct)}


def changed(struct: Any, name: str) -> Any:
    """With one number of it a little higher."""
    return msgspec.structs.replace(struct, **{name: getattr(struct, name) * 1.01 + 0.001})


@pytest.mark.parametrize("name", sorted(names(Demand)))
def test_runs_under_another_demand_are_other_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {CASE.key, CASE.uncapped.key}
    monkeypatch.setattr(cases, "STUDY_DEMAND", changed(STUDY_DEMAND, name))
    assert before.isdisjoint({CASE.key, CASE.uncapped.key})


@pytest.mark.parametrize("name", sorted(names(WeekShape)))
def test_runs_of_another_week_are_other_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {CASE.key, CASE.uncapped.key}
    refitted = msgspec.structs.replace(shipped_week(), shape=changed(shipped_week().shape, name))

    def another() -> FittedWeek:
        return refitted

    monkeypatch.setattr(cases, "shipped_week", another)
    assert before.isdisjoint({CASE.key, CASE.uncapped.key})


MIX_CHANGES: dict[str, object] = {
    "name": "another",
    "priority": "neither",
    "share_ratio": 0.26,
    "prompt_tokens": (1, 2),
    "output_tokens": (1, 2),
}


@pytest.mark.parametrize("place", range(len(MIX)))
@pytest.mark.parametrize("name", sorted(names(RequestKind)))
def test_runs_of_another_mix_are_other_runs(name: str, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {CASE.key, CASE.uncapped.key}
    other = msgspec.structs.replace(MIX[place], **{name: MIX_CHANGES[name]})
    monkeypatch.setattr(cases, "MIX", (*MIX[:place], other, *MIX[place + 1 :]))
    assert before.isdisjoint({CASE.key, CASE.uncapped.key})


def test_runs_on_another_budget_are_other_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case says how many servers, not of how many the row's budget is."""
    before = {CASE.key, CASE.uncapped.key}

    def smaller(servers: int, policy: CappingPolicy = DEFAULT_POLICY) -> Setup:
        return row_setup(servers, policy, provisioned=38)

    monkeypatch.setattr(cases, "row_setup", smaller)
    assert before.isdisjoint({CASE.key, CASE.uncapped.key})


def test_runs_of_code_that_means_something_else_are_other_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {CASE.key, CASE.uncapped.key}
    monkeypatch.setattr(cases, "MEANING", cases.MEANING + 1)
    assert before.isdisjoint({CASE.key, CASE.uncapped.key})


CASE_CHANGES: dict[str, object] = {
    "servers": 10,
    "policy": None,
    "days": 2.0,
    "seed": 2,
    "begin_s": 600,
    "power_ratio": 1.01,
    "faults": PathFaults(loss_ratio=0.01),
    "arrivals": ("trace.csv",),
}


@pytest.mark.parametrize("name", sorted(names(Case)))
def test_every_field_of_a_run_is_part_of_what_it_is_known_by(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "_content", lambda path: f"content of {path}")
    assert msgspec.structs.replace(CASE, **{name: CASE_CHANGES[name]}).key != CASE.key


FAULT_CHANGES: dict[str, object] = {"latency_s": 39.0, "spread": "uniform", "loss_ratio": 0.01}


@pytest.mark.parametrize("name", sorted(names(PathFaults)))
def test_runs_on_another_path_are_other_runs(name: str) -> None:
    faults = msgspec.structs.replace(PathFaults(), **{name: FAULT_CHANGES[name]})
    assert msgspec.structs.replace(CASE, faults=faults).key != CASE.key


POLICY_CHANGES: dict[str, object] = {
    "variant": "no_cap",
    "path": "in_band",
    "period_ms": 1_000,
    "lease_ms": 91_000,
    "renew_ms": 44_000,
    "verify_margin_ms": 6_000,
    "retries": 3,
    "retry_slow_ms": 299_000,
    "coverage_ratio": 0.7,
    "landed_ratio": 0.8,
    "brake": 0.99,
    "allow_fraction_defaults": True,
    "allow_slow_brake": True,
    "t1": Band(enter=0.80, leave=0.74),
    "t2": Band(enter=0.90, leave=0.84),
    "latency_ms": Latency(out_of_band=41_000),
    "switches": Switches(uncap_rule="both_below_T2"),
    "guardrails": Guardrails(dwell_ms=61_000),
    "forecast": ForecastUse(quantile=0.9),
    "clocks": {"another board": ClockTable(low_t1=1200, high_t2=1300, low_t2=1100, brake=300)},
}


@pytest.mark.parametrize("name", sorted(names(CappingPolicy) - {"name"}))
def test_runs_under_another_policy_are_other_runs(name: str) -> None:
    """All of it but the file that it was read in, which decides nothing."""
    policy = msgspec.structs.replace(DEFAULT_POLICY, **{name: POLICY_CHANGES[name]})
    assert msgspec.structs.replace(CASE, policy=policy).key != CASE.key
