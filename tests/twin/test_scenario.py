"""Scenario files: every mistake in the operator's words, and parts found on the row that plays."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from schemas.instants import MINUTE, SECOND
from schemas.topology import Site
from twin.demand import Drawn, drawn, highest, load_of
from twin.row import TwinRow
from twin.scenario import (
    Demand,
    InletRises,
    MetersFail,
    Scenario,
    ScenarioError,
    UpsFailover,
    read_scenario,
    shipped,
)
from twin.trouble import Trouble, Unplayable, unplayable
from twin.workload import Burst, LoadProfile

SOUND = """
[scenario]
title = "what it is for"
minutes = 10
[demand]
course = [[0, 0.6], [5, 0.8]]
wander_ratio = 0.0
"""
BURST = "[[demand.bursts]]\nat_min = 1\nrise_s = 20\nhold_s = 30\nheight_ratio = 0.4"
STEADY = LoadProfile(requests_per_s=0.3, points=((0.0, 1.0),))


def test_the_scenario_that_the_page_shows_can_be_played() -> None:
    page = pathlib.Path(__file__).parents[2] / "docs" / "scenarios.md"
    (shown,) = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    scenario = read_scenario(shown, page.name)
    back_min = scenario.bounds.back_min
    assert back_min is not None
    assert scenario.seconds - scenario.over_s >= 60.0 * (back_min + 2.0), "to be seen to stay so"


def fault(kind: str, *lines: str) -> str:
    return "\n".join(("[[faults]]", f'kind = "{kind}"', "at_min = 2", "minutes = 3", *lines)) + "\n"


def read(*parts: str) -> Scenario:
    return read_scenario("\n".join((SOUND, *parts)), "mine.toml")


def problems(*parts: str, head: str = SOUND) -> list[str]:
    with pytest.raises(ScenarioError) as caught:
        read_scenario("\n".join((head, *parts)), "mine.toml")
    return list(caught.value.problems)


# ---- reading ----


def test_it_says_in_seconds_what_the_file_says_in_minutes() -> None:
    found = read(
        BURST,
        fault("ups_failover"),
        '[[faults]]\nkind = "meters"\nat_min = 4\nhow = "lying"\nfactor = 0.7\nshare = 0.5',
        "[judge]\nover_budget_s = 0\nbrakes = 2\nhot_s = 5",
    )
    assert (found.name, found.seconds) == ("mine", 600.0)
    assert found.demand == Demand(
        course=((0.0, 0.6), (300.0, 0.8)),
        bursts=(Burst(at_s=60.0, rise_s=20.0, hold_s=30.0, height_ratio=0.4),),
    )
    ups, meters = found.faults
    assert isinstance(ups, UpsFailover)
    assert (ups.at_s, ups.ends_s, ups.ups, ups.capacity_ratio) == (120.0, 300.0, "first", 0.75)
    assert isinstance(meters, MetersFail)
    assert meters.ends_s == 600.0, "without minutes it lasts to the end"
    assert found.over_s == 600.0
    assert (found.bounds.over_budget_s, found.bounds.brakes, found.bounds.back_min) == (0.0, 2, None)
    assert found.bounds.hot_s == 5.0


def test_an_inlet_that_says_no_ramp_warms_up_in_a_minute_or_in_half_of_its_time() -> None:
    for minutes, ramp_s in ((3, 60.0), (1.5, 45.0)):
        (inlet,) = read(fault("inlet", "rise_c = 9").replace("minutes = 3", f"minutes = {minutes}")).faults
        assert isinstance(inlet, InletRises)
        assert inlet.ramp_s == ramp_s


def test_the_trouble_is_over_when_the_last_burst_has_fallen() -> None:
    late = BURST.replace("at_min = 1", "at_min = 5")
    assert read(late, fault("inlet", "rise_c = 5")).over_s == 370.0
    assert read().over_s == 0.0


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (
            fault("path_down", 'path = "in_band"', "share = 1.4"),
            "faults[0].share = 1.4: must be above 0 and at most 1 (share of the hosts)",
        ),
        (fault("path_down", 'path = "in_bend"'), 'faults[0].path = "in_bend": did you mean in_band?'),
        (fault("path_lossy", 'path = "brake"'), "faults[0].loss_ratio is missing"),
        (fault("meters", 'how = "lost"'), 'faults[0].how = "lost": there is silent, stuck, zero, lying'),
        (fault("gpus", 'how = "lying"'), "faults[0].factor is missing"),
        (fault("meters", 'how = "stuck"', "factor = 2"), 'goes with how = "lying" alone'),
        (fault("ups_failover", "share = 0.5"), "faults[0].share = 0.5: no such key here"),
        (fault("inlet", "rise_c = 90"), "faults[0].rise_c = 90: must be at most 60 (°C)"),
        (fault("inlet", "rise_c = 9", "ramp_s = 100"), "ramp_s = 100: must be at most half of the 180 s"),
        (fault("heat"), 'faults[0].kind = "heat": '),
        (
            '[[faults]]\nkind = "ups_failover"\nat_min = 10',
            "faults[0].at_min = 10: must be before the scenario's end at minute 10",
        ),
        (
            '[[faults]]\nkind = "ups_failover"\nat_min = 9\nminutes = 2',
            "faults[0].minutes = 2: must end by minute 10, with the scenario",
        ),
        (
            fault("ups_failover") + '[[faults]]\nkind = "ups_failover"\nat_min = 4\nminutes = 2',
            "faults[1]: must not overlap faults[0]",
        ),
        ("[judge]\nbrakes = 0.5", "judge.brakes = 0.5: must be a whole number"),
        ("[judge]\nback = 5", "judge.back = 5: no such key here; did you mean back_min?"),
        (fault("inlet", "rise_c = 9").replace("minutes = 3", "minutes = 9"), "[0].minutes = 9: must end by"),
        (
            BURST.replace("hold_s = 30", "hold_s = 510"),
            "demand.bursts[0].hold_s = 510: must have fallen again by minute 10, the scenario's end",
        ),
        (
            fault("ups_failover") + "[judge]\nback_min = 6",
            "judge.back_min = 6: must be at most 5, the minutes from the last trouble to the scenario's end",
        ),
        (BURST.replace("rise_s = 20", "rise_s = 0"), "demand.bursts[0].rise_s = 0: must be above zero"),
        ("[fault]", "fault = {}: no such key here; did you mean faults?"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_key_its_value_and_what_is_allowed(part: str, said: str) -> None:
    (problem,) = problems(part)
    assert problem.startswith("mine.toml: ")
    assert said in problem


@pytest.mark.parametrize(
    ("course", "said"),
    [
        ("[]", "must be a list of [minute, share of the budget]"),
        ("[[0, 0.5], [0, 0.6]]", "the minutes rising"),
        ("[[0, 5]]", "course[0] = [0, 5]: must be of a share above 0 and at most 3 of the budget"),
        ("[[-1, 0.5]]", "course[0] = [-1, 0.5]: must be of a minute from 0 on"),
        ("[[0, 0.5], 1]", "course[1] = 1: must be [minute, share of the budget]"),
        ("[[0, nan]]", "course[0] = "),
        ("[[0, 0.5], [11, 0.6]]", "course[1] = [11, 0.6]: must be of a minute up to 10, the scenario's end"),
    ],
)
def test_a_course_of_demand_is_minutes_and_shares(course: str, said: str) -> None:
    head = SOUND.replace("[[0, 0.6], [5, 0.8]]", course)
    (problem,) = problems(head=head)
    assert said in problem


def test_all_mistakes_are_said_at_once() -> None:
    said = problems(fault("meters", 'how = "mute"', "share = 2"), fault("gpus"), "[judge]\nbrakes = -1")
    assert [line.split(" = ")[0].split(" is missing")[0] for line in said] == [
        "mine.toml: faults[0].how",
        "mine.toml: faults[0].share",
        "mine.toml: faults[1].how",
        "mine.toml: judge.brakes",
    ]
    assert problems(head="") == [
        "mine.toml: scenario is missing: write [scenario] with title and minutes",
        "mine.toml: demand is missing: write [demand] with course, what the row would draw over time",
    ]
    (broken,) = problems(head="[scenario")
    assert "is not TOML" in broken


def test_what_ships_reads_and_says_what_it_is_for() -> None:
    assert {
        "flash-crowd", "half-meters-stuck", "heat", "lost-commands", "lying-meter", "oob-down",
        "sensor-silence", "ups-failover",
    } <= set(shipped())  # fmt: skip
    for name, path in shipped().items():
        found = read_scenario(path.read_text(encoding="utf-8"), path.name)
        assert found.name == name
        assert found.title
        assert found.over_s < found.seconds, f"{name} ends before its trouble is over"


# ---- finding parts ----


def test_a_row_that_has_not_what_breaks_is_refused_in_words(make_site: Callable[..., Site]) -> None:
    site = make_site(2)
    found = read(
        fault("ups_failover", 'ups = "ups-9"'),
        fault("path_down", 'path = "brake"'),
        fault("meters", 'how = "zero"'),
    )
    assert unplayable(found, site, site.rows[0]) == [
        'mine.toml: faults[0]: ups = "ups-9": lab/row-a hangs from ups-1'
    ]
    bare = msgspec.structs.replace(
        site.rows[0],
        meters=(),
        racks=tuple(
            msgspec.structs.replace(
                rack,
                feeds=(),
                hosts=tuple(msgspec.structs.replace(host, paths=("in_band",)) for host in rack.hosts),
            )
            for rack in site.rows[0].racks
        ),
    )
    poor = msgspec.structs.replace(site, rows=(bare,))
    assert unplayable(found, poor, bare) == [
        "mine.toml: faults[0]: lab/row-a hangs from no UPS in the site file, so none can fail over",
        "mine.toml: faults[1]: no host of lab/row-a has the path brake",
        "mine.toml: faults[2]: lab/row-a has no meters of its own in the site file",
    ]
    with pytest.raises(Unplayable, match="hangs from no UPS"):
        Trouble(found, TwinRow(poor, "lab/row-a", seed=1, load=STEADY), 1, 0)


def test_shares_are_drawn_by_the_seed_and_rounded_up(make_site: Callable[..., Site]) -> None:
    found = read(
        fault("gpus", 'how = "lost"', "share = 0.3"), fault("meters", 'how = "silent"', "share = 0.1")
    )

    def lost(seed: int) -> set[int]:
        row = TwinRow(make_site(4), "lab/row-a", seed=1, load=STEADY)
        trouble = Trouble(found, row, seed, 0)
        assert [spell.words for spell in trouble.spells] == ["10 of 32 GPUs lost", "1 of 2 meters silent"]
        trouble.advance(3 * MINUTE)
        return set(row.readings.refusals)

    assert len(lost(1)) == 10
    assert lost(1) == lost(1)
    assert lost(1) != lost(2)


def test_everything_breaks_on_its_moment_and_is_mended_on_its_own(make_site: Callable[..., Site]) -> None:
    row = TwinRow(make_site(4), "lab/row-a", seed=1, load=STEADY)
    found = read(
        fault("ups_failover"),
        fault("meters", 'how = "silent"'),
        fault("gpus", 'how = "hung"', "share = 0.1"),
        fault("inlet", "rise_c = 10", "ramp_s = 60"),
        fault("path_down", 'path = "out_of_band"'),
    )
    trouble = Trouble(found, row, 1, 0)

    def broken() -> tuple[bool | None, bool, int, float, bool]:
        meter = row.meters[row.row.meters[0]]
        nvml = row.nvml(row.hosts[0].path, "out_of_band")
        nvml.nvmlInit()
        try:
            meter.read()
            silent = False
        except TimeoutError:
            silent = True
        try:
            nvml.nvmlDeviceGetHandleByIndex(0)
            down = False
        except nvml.NVMLError:
            down = True
        return (
            row.upses["lab/ups-1"].read().on_battery,
            silent,
            len(row.readings.refusals),
            float(row.servers.inlet_rise_c.max()),
            down,
        )

    well = (False, False, 0, 0.0, False)
    trouble.advance(2 * MINUTE - SECOND)
    assert broken() == well
    trouble.advance(2 * MINUTE)
    assert broken() == (True, True, 4, 0.0, True)
    trouble.advance(2 * MINUTE + 30 * SECOND)
    assert broken()[3] == pytest.approx(5.0)
    trouble.advance(4 * MINUTE)
    assert broken() == (True, True, 4, 10.0, True)
    trouble.advance(5 * MINUTE - 20 * SECOND)
    assert 0.0 < broken()[3] < 10.0
    trouble.advance(5 * MINUTE)
    assert broken() == well


def test_one_spell_may_follow_another_at_once(make_site: Callable[..., Site]) -> None:
    row = TwinRow(make_site(2), "lab/row-a", seed=1, load=STEADY)
    second = '[[faults]]\nkind = "meters"\nat_min = 5\nminutes = 1\nhow = "zero"'
    trouble = Trouble(read(fault("meters", 'how = "silent"'), second), row, 1, 0)
    trouble.advance(5 * MINUTE + SECOND)
    assert row.meters[row.row.meters[0]].read().power_w == 0.0


# ---- demand ----


def test_a_row_draws_what_the_scenario_asks_for(make_site: Callable[..., Site]) -> None:
    site = make_site(12, budget_w=12 * 5_000.0)
    draws = drawn(site, "lab/row-a")
    assert np.all(np.diff(draws.rates) > 0)
    assert np.all(np.diff(draws.ratios) > 0)
    demand = Demand(course=((0.0, 0.7),))
    plant = TwinRow(site, "lab/row-a", seed=3, load=load_of(demand, draws, 900.0))
    plant.advance(15 * MINUTE)
    done = plant.statistics()
    assert done.energy_j / done.seconds / site.rows[0].budget_w == pytest.approx(0.7, abs=0.06)


def test_no_row_is_asked_for_more_than_it_can_serve() -> None:
    draws = Drawn(np.array([0.0, 0.1, 0.4]), np.array([0.3, 0.8, 1.1]))
    demand = Demand(
        course=((0.0, 0.55),), bursts=(Burst(at_s=100.0, rise_s=50.0, hold_s=100.0, height_ratio=1.0),)
    )
    load = load_of(demand, draws, 400.0)
    assert load.ratio(np.array([0.0, 120.0, 200.0, 390.0])) == pytest.approx(
        [0.05, 0.25, 0.4, 0.05], abs=0.01
    )
    assert highest(demand, 400.0) == pytest.approx(1.55)
    assert draws.most == 1.1
