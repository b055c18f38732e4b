"""The loop closed over a model of the row, and then its clock is set, it is restarted, or it goes blind."""

from __future__ import annotations

import msgspec
import pytest
from support.capped_row import T0, Plant, capped_row, failover, restarted

from controllers.policy import DEFAULT_POLICY, CappingPolicy
from schemas.commands import Command, LockClocks
from schemas.instants import SECOND

ROW52 = capped_row(26, 26)
IN_BAND = CappingPolicy(path="in_band")
WARM_S = 300
"""Long enough for every host to have its headroom and for the row to have been watched for a dwell since."""
DWELL_S = DEFAULT_POLICY.guardrails.dwell_ms // SECOND
STEPS_S = (-3600, -30, -3, 3600)


def warm(demand: float, policy: CappingPolicy = IN_BAND, *, seconds: int = 200) -> Plant:
    """A row that ran free at 0.7 and has then met this demand for a while."""
    plant = Plant(ROW52, policy, lambda t: 0.7)
    plant.run(WARM_S)
    plant.demand = lambda t: demand
    plant.run(seconds)
    return plant


def mode(plant: Plant) -> str:
    return plant.loop.decisions[-1].mode


def highest(plant: Plant, seconds: int) -> dict[str, int]:
    """Each server's highest clock over the next seconds."""
    seen: dict[str, int] = {}
    for _ in range(0, seconds, 2):
        plant.run(2)
        for path, server in plant.servers.items():
            seen[path] = max(seen.get(path, 0), server.mhz)
    return seen


def clocks(plant: Plant) -> dict[str, int]:
    return {path: server.mhz for path, server in plant.servers.items()}


# ---- the clock is set ----


@pytest.mark.parametrize("step_s", STEPS_S)
def test_a_row_that_is_overloaded_as_its_clock_is_set_brakes_in_time(step_s: int) -> None:
    plant = warm(0.7)
    plant.set_by = step_s * SECOND
    plant.demand = lambda t: 1.05
    plant.run(9)
    assert mode(plant) == "B"
    assert plant.clocks == {"low": {285}, "high": {285}}
    assert not any(decision.refusal for decision in plant.loop.decisions[-4:])


@pytest.mark.parametrize("step_s", STEPS_S)
def test_setting_the_clock_lets_no_host_up_early(step_s: int) -> None:
    rails = msgspec.structs.replace(DEFAULT_POLICY.guardrails, blast_ratio=1.0)
    plant = warm(1.02, CappingPolicy(path="in_band", guardrails=rails))
    assert mode(plant) == "T2b"
    plant.demand = lambda t: 0.6  # calm enough to ease, were it not for the dwell
    plant.run(4)
    assert mode(plant) == "T1"
    before = clocks(plant)
    assert set(before.values()) == {1275, 1410}
    plant.set_by = step_s * SECOND
    after = highest(plant, DWELL_S - 4)
    assert all(after[path] <= before[path] for path in after), "the dwell goes on or begins anew"


@pytest.mark.parametrize("step_s", STEPS_S)
def test_a_row_comes_back_from_its_caps_after_its_clock_was_set(step_s: int) -> None:
    plant = warm(1.02)
    plant.set_by = step_s * SECOND
    plant.demand = lambda t: 0.6
    plant.run(15 * 60)
    assert mode(plant) == "U"
    assert plant.clocks == {"low": {1410}, "high": {1410}}, "within minutes and not after the step's hour"


@pytest.mark.parametrize("step_s", STEPS_S)
def test_a_row_that_goes_blind_as_its_clock_is_set_reaches_its_strictest_caps(step_s: int) -> None:
    plant = warm(0.7)
    plant.set_by, plant.sees = step_s * SECOND, lambda t, p: None
    plant.run(26)
    assert mode(plant) == "T2b"
    assert plant.loop.decisions[-1].because.startswith("ALARM, no power reading for")
    assert plant.clocks == {"low": {1110}, "high": {1305}} or step_s > 0
    plant.run(90)
    assert all(server.in_force is None for server in plant.servers.values())


def test_calm_is_watched_and_not_read_off_a_clock_that_was_set_forward() -> None:
    plant = warm(1.2, seconds=20)
    plant.demand = lambda t: 0.5
    plant.run(10)
    assert "calm for" in plant.loop.decisions[-1].because
    plant.set_by = 3600 * SECOND
    plant.run(38)
    assert mode(plant) == "B"


def test_a_failover_that_ends_after_the_clock_was_set_back_is_over() -> None:
    plant = warm(0.5, seconds=20)
    plant.run(2, lambda t: [failover(plant.now)])
    assert mode(plant) == "B"
    plant.set_by = -3600 * SECOND
    plant.run(20)
    plant.run(2, lambda t: [failover(plant.now + plant.set_by, "cleared")])
    plant.run(44)
    assert mode(plant) == "T2b"


# ---- another controller ----


def test_a_restart_under_caps_loosens_nothing_in_the_first_dwell() -> None:
    plant = warm(1.02)
    assert mode(plant) == "T2b"
    before = clocks(plant)
    assert set(before.values()) == {1110, 1305}
    plant.demand = lambda t: 0.5
    restarted(plant)
    after = highest(plant, DWELL_S)
    assert all(after[path] <= before[path] for path in after)
    assert mode(plant) == "T2b"


def test_after_a_restart_a_braked_row_is_calm_for_as_long_as_it_was_watched() -> None:
    plant = warm(1.2, seconds=20)
    plant.demand = lambda t: 0.5
    plant.run(16)
    assert mode(plant) == "B"
    before = clocks(plant)
    restarted(plant)
    after = highest(plant, 40)
    assert mode(plant) == "B"
    assert after == before
    plant.run(4)
    assert mode(plant) == "T2b"
    assert highest(plant, DWELL_S - 46) == before, "and the brakes hold for the rest of the dwell"


def test_a_restart_into_a_failover_brakes_without_any_reading() -> None:
    plant = warm(0.7)
    restarted(plant)
    plant.sees = lambda t, p: None
    plant.run(2, lambda t: [failover(plant.now)])
    assert mode(plant) == "B"


# ---- held hosts say nothing about the row ----


@pytest.mark.parametrize("blind_s", [60, 120])
def test_a_row_does_not_ease_while_its_hosts_are_still_coming_back(blind_s: int) -> None:
    plant = warm(1.04)
    assert mode(plant) == "T2b"
    start = (plant.now - T0, plant.now - T0 + blind_s * SECOND)
    plant.sees = lambda t, p: None if start[0] <= t < start[1] else p
    plant.run(600)
    entered = {decision.mode for decision in plant.loop.decisions[-280:]}
    assert entered == {"T2b"}, "power was low because hosts were held down"
    assert max(plant.p) <= 1.04
    waits = [d.because for d in plant.loop.decisions[-280:] if "easing waits" in d.because]
    assert any("still braked or at their safe shares" in text for text in waits) or blind_s == 60


def test_one_dead_host_does_not_keep_high_priority_from_being_capped() -> None:
    dead = ROW52.hosts[-1].path

    def lost(command: Command) -> bool:
        return command.subject == dead and isinstance(command, LockClocks)

    plant = Plant(ROW52, DEFAULT_POLICY, lambda t: 0.7, lost=lost)
    plant.run(WARM_S)
    plant.sees = lambda t, p: 0.93
    begun = len(plant.loop.decisions)
    plant.run(120)
    modes = [decision.mode for decision in plant.loop.decisions[begun:]]
    assert (modes.index("T2b") - modes.index("T2a")) * 2 <= 46, "one latency of the path, and no retry"
