"""A row over weeks is under the same control as any other, however much is left out to be quick."""

from collections.abc import Sequence

import msgspec
import pytest

from controllers.policy import DEFAULT_POLICY, CappingPolicy, Latency, Variant
from runtime.experiments.row import row_setup, study_row
from runtime.experiments.weeks import BEGIN, Weeks
from runtime.row_loop import Beat
from runtime.wiring import deadlines_of
from schemas import codec
from schemas.outcomes import Outcome
from twin.bulk import STEP_MS, BulkRow, PathFaults

HOT = 1.06
"""Power of this much more keeps a small piece of a day busy with caps."""


def said(
    policy: CappingPolicy, *, patient: bool = True, forecast: bool = True, faults: PathFaults | None = None
) -> tuple[list[list[bytes]], BulkRow]:
    """What was said at each look of two hours of 60 servers, forecasts apart, and the plant afterwards."""
    lines: list[list[bytes]] = []

    def keep(beat: Beat, outcomes: Sequence[Outcome]) -> None:
        lines.append([codec.encode(event) for event in (beat.decision, *beat.commands, *outcomes)])

    setup = row_setup(60, policy)
    plant = study_row(setup, 3, faults=faults, power_ratio=HOT)
    weeks = Weeks(setup, plant, patient=patient, forecast=forecast, observe=keep)
    weeks.run(3600)
    plant.settle()
    return lines, plant


@pytest.mark.parametrize(
    ("path", "faults"),
    [
        ("out_of_band", PathFaults()),
        ("out_of_band", PathFaults(spread="uniform", loss_ratio=0.1)),
        ("in_band", PathFaults()),
    ],
)
def test_an_agent_left_alone_says_what_one_says_that_looks_all_the_time(
    path: str, faults: PathFaults
) -> None:
    policy = msgspec.structs.replace(DEFAULT_POLICY, path=path)
    patient, plant = said(policy, faults=faults, forecast=False)
    restless, other = said(policy, patient=False, faults=faults, forecast=False)
    assert patient == restless
    assert plant.totals.energy_j == other.totals.energy_j
    assert sum(len(line) for line in patient) > 2 * len(patient)
    assert plant.lost_writes == other.lost_writes
    assert (plant.lost_writes > 0) == (faults.loss_ratio > 0)


def test_a_policy_that_reads_no_forecast_runs_the_same_without_one() -> None:
    with_it, plant = said(DEFAULT_POLICY)
    without, other = said(DEFAULT_POLICY, forecast=False)
    assert with_it == without
    assert plant.totals.energy_j == other.totals.energy_j


@pytest.mark.parametrize("variant", ["polca", "no_cap"])
def test_leases_end_at_the_safe_share_where_nobody_renews(variant: Variant) -> None:
    setup = row_setup(60, msgspec.structs.replace(DEFAULT_POLICY, variant=variant))
    plant = study_row(setup, 1)
    weeks = Weeks(setup, plant)
    weeks.run(600)
    shares = [setup.shares[host.path].max_mhz for host in plant.hosts]
    assert max(plant.ceiling_mhz(host) for host in range(60)) > max(shares)
    for step in range(600, 700):  # the controller is gone
        plant.power_w(step)
        weeks.agents.step((), BEGIN + (step + 1) * STEP_MS)
    assert [plant.ceiling_mhz(host) for host in range(60)] == shares


def test_a_slow_path_has_the_time_that_its_policy_gives_it() -> None:
    policy = msgspec.structs.replace(DEFAULT_POLICY, latency_ms=Latency(out_of_band=80_000), lease_ms=180_000)
    assert deadlines_of(policy)["out_of_band"] == 100_000
    lines, plant = said(policy, faults=PathFaults(latency_s=80.0), forecast=False)
    assert plant.totals.capped_host_s.sum() > 0
    assert not any(b'"Failed"' in word for line in lines for word in line)
