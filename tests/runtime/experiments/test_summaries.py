"""What the runs of a point come to together: every column of the published tables, worked out by hand.

Three seeds, each with an uncapped run of its own. Every figure's values by seed lie at equal distances d, so
that their standard deviation is d, and half of their 95 % interval 4.3027 d / √3 = 2.4841 d (Student's t, two
degrees of freedom). The third run is twice as long as the others: two weeks in all.
"""

import msgspec
import pytest

from controllers.policy import DEFAULT_POLICY
from runtime.experiments.cases import Case, Result
from runtime.experiments.polca import Figure, Point, Summary, summarise
from runtime.experiments.weeks import Said

HALF_WEEK_S = 302_400.0
OF_T = 2.4841

CASES = tuple(
    Case(servers=20, policy=DEFAULT_POLICY, days=days, seed=seed)
    for seed, days in ((11, 3.5), (12, 3.5), (13, 7.0))
)
POINT = Point(sweep="a sweep", setting="a setting", policy="a policy", cases=CASES)

RUNS = (
    Result(
        case=CASES[0],
        seconds=HALF_WEEK_S,
        peak_ratio=0.98,
        mean_ratio=0.80,
        over_budget_s=2.0,
        trips=1,
        energy_j=92e6,
        latency_s={"high": (20.2, 62.4), "low": (11.0, 36.0)},
        done={"high": 31, "low": 41},
        tokens={"high": 990.0, "low": 480.0},
        capped_host_s={"high": 302_400.0, "low": 1_512_000.0},
        said=Said(
            brakes=1,
            modes_s={"U": 200_000.0, "T1": 70_000.0, "T2a": 25_400.0, "T2b": 7_000.0},
            commands={"LockClocks": 90, "Brake": 10},
            outcomes={"Applied": 97},
            emergencies={"over budget": 51},
        ),
        lost_writes=61,
        took_s=71.0,
    ),
    Result(
        case=CASES[1],
        seconds=HALF_WEEK_S,
        peak_ratio=1.04,
        mean_ratio=0.82,
        over_budget_s=0.0,
        trips=0,
        energy_j=182e6,
        latency_s={"high": (25.5, 53.0), "low": (13.8, 46.8)},
        done={"high": 32, "low": 42},
        tokens={"high": 1960.0, "low": 651.0},
        capped_host_s={"high": 362_880.0, "low": 1_814_400.0},
        said=Said(
            brakes=0,
            modes_s={"U": 210_000.0, "T1": 60_000.0, "T2a": 24_385.0, "T2b": 8_000.0, "B": 15.0},
            commands={"LockClocks": 150},
            outcomes={"Applied": 148},
            emergencies={"over budget": 52},
        ),
        lost_writes=62,
        took_s=72.0,
    ),
    Result(
        case=CASES[2],
        seconds=2 * HALF_WEEK_S,
        peak_ratio=1.01,
        mean_ratio=0.84,
        over_budget_s=7.0,
        trips=2,
        energy_j=360e6,
        latency_s={"high": (41.2, 86.4), "low": (19.2, 61.6)},
        done={"high": 33, "low": 43},
        tokens={"high": 3880.0, "low": 810.0},
        capped_host_s={"high": 846_720.0, "low": 4_233_600.0},
        said=Said(
            brakes=4,
            modes_s={"U": 440_000.0, "T1": 100_000.0, "T2a": 45_740.0, "T2b": 19_000.0, "B": 60.0},
            commands={"LockClocks": 380, "Brake": 20},
            outcomes={"Applied": 395},
            emergencies={"over budget": 53},
        ),
        lost_writes=63,
        took_s=73.0,
    ),
)


def uncapped(
    case: Case, energy_j: float, tokens: tuple[float, float], *latency_s: tuple[float, float]
) -> Result:
    """What a run is compared to. Only energy, tokens and latency of it are asked for: whatever else is read
    from it shows as a figure far from any expected."""
    return Result(
        case=case.uncapped,
        seconds=1_000.0,
        peak_ratio=9.0,
        mean_ratio=9.5,
        over_budget_s=900.0,
        trips=90,
        energy_j=energy_j,
        latency_s={"high": latency_s[0], "low": latency_s[1]},
        done={"high": 91, "low": 92},
        tokens={"high": tokens[0], "low": tokens[1]},
        capped_host_s={"high": 9e9, "low": 8e9},
        said=Said(brakes=93, modes_s={"B": 9_000.0}, commands={"LockClocks": 99_000}),
    )


FREE = (
    uncapped(CASES[0], 100e6, (1000.0, 500.0), (20.0, 60.0), (10.0, 30.0)),
    uncapped(CASES[1], 200e6, (2000.0, 700.0), (25.0, 50.0), (12.0, 36.0)),
    uncapped(CASES[2], 400e6, (4000.0, 900.0), (40.0, 80.0), (16.0, 44.0)),
)
RESULTS = {each.case.key: each for each in (*RUNS, *FREE)}


def alone(place: int) -> Summary:
    """Of one seed."""
    return summarise(msgspec.structs.replace(POINT, cases=CASES[place : place + 1]), RESULTS)


PLAIN: dict[str, object] = {
    "sweep": "a sweep",
    "setting": "a setting",
    "policy": "a policy",
    "servers": 20,
    "runs": 3,
    "seeds": "11 12 13",
    "days": 14.0,  # 3.5 + 3.5 + 7
    "brakes": 5,  # 1 + 0 + 4
    "over_budget_s": 9.0,  # 2 + 0 + 7
    "trips": 3,  # 1 + 0 + 2
    "peak_ratio": 1.04,  # the second seed's
}

FIGURES: dict[str, tuple[float, float, float]] = {
    # by seed
    "braked_s_a_week": (0.0, 30.0, 60.0),  # 0 and 15 s in half a week, 60 s in a whole one
    "mean_ratio": (0.80, 0.82, 0.84),
    "high_p50": (0.01, 0.02, 0.03),  # 20.2/20, 25.5/25, 41.2/40
    "high_p99": (0.04, 0.06, 0.08),  # 62.4/60, 53/50, 86.4/80
    "low_p50": (0.10, 0.15, 0.20),  # 11/10, 13.8/12, 19.2/16
    "low_p99": (0.20, 0.30, 0.40),  # 36/30, 46.8/36, 61.6/44
    "high_tokens": (-0.01, -0.02, -0.03),  # 990/1000, 1960/2000, 3880/4000
    "low_tokens": (-0.04, -0.07, -0.10),  # 480/500, 651/700, 810/900
    "energy": (-0.08, -0.09, -0.10),  # 92/100, 182/200, 360/400
    "high_capped": (0.10, 0.12, 0.14),  # of 10 hosts × 302,400 s twice, and × 604,800 s
    "low_capped": (0.50, 0.60, 0.70),
    "commands_a_week": (200.0, 300.0, 400.0),  # 100 and 150 in half a week, 400 in a whole one
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_points_events_are_those_of_all_its_runs_and_its_peak_the_highest(name: str) -> None:
    """A brake, a second over the budget or a trip under any seed is the policy's; no calm seed hides it."""
    assert getattr(summarise(POINT, RESULTS), name) == PLAIN[name]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_the_mean_of_its_seeds_with_its_interval(name: str) -> None:
    """Each seed beside the uncapped run of its own requests, by priority and percentile as named."""
    first, middle, last = FIGURES[name]
    found: Figure = getattr(summarise(POINT, RESULTS), name)
    assert found.mean == pytest.approx(middle)
    assert found.half == pytest.approx(OF_T * (abs(last - first) / 2), rel=1e-4)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("place", range(3))
def test_one_seed_has_its_own_figure_and_no_interval(name: str, place: int) -> None:
    found: Figure = getattr(alone(place), name)
    assert found.mean == pytest.approx(FIGURES[name][place])
    assert found.half is None


def test_brakes_a_week_are_all_brakes_over_all_weeks_with_the_limits_of_their_number() -> None:
    """Five in two weeks; tables of Poisson limits give 1.623 to 11.668 for five. The mean of the seeds' own
    rates, 2, would have a seed run for half as long count as much."""
    found = summarise(POINT, RESULTS).brakes_a_week
    assert found.mean == 2.5
    assert [found.low, found.high] == pytest.approx([1.623 / 2, 11.668 / 2], rel=1e-3)


def test_no_brake_under_a_seed_is_no_brake_in_its_own_time_alone() -> None:
    """3.689 is the upper limit for none; the second seed ran half a week."""
    found = alone(1).brakes_a_week
    assert (found.mean, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(3.689 / 0.5, rel=1e-3)


def test_every_column_of_a_summary_is_worked_out_here() -> None:
    """A column that nobody worked out by hand could be any other's."""
    assert {field.name for field in msgspec.structs.fields(Summary)} == {*PLAIN, *FIGURES, "brakes_a_week"}


def test_a_summary_needs_every_run_and_its_reference() -> None:
    """A table made of half of its runs would not say so."""
    for missing in RESULTS:
        with pytest.raises(KeyError):
            summarise(POINT, {key: each for key, each in RESULTS.items() if key != missing})
