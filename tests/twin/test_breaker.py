"""How long an overload is carried, by breakers and by a UPS on battery."""

import math

import numpy as np
import pytest

from twin.breaker import Breakers, TripCurve, UpsDeadline

CURVE = TripCurve()
DT_S = 0.5


def opens_after(ratio: float, before: float = 0.0, limit_s: float = 7200.0) -> float:
    breakers = Breakers(1, CURVE, before=before)
    load = np.array([ratio])
    for step in range(round(limit_s / DT_S)):
        if breakers.step(load, DT_S):
            return (step + 1) * DT_S
    return math.inf


def test_the_continuous_rating_is_carried_for_ever() -> None:
    assert opens_after(1.0, before=1.0) == math.inf
    assert CURVE.trips_after_s(1.0) == math.inf


def test_five_percent_too_much_opens_it_within_minutes_and_not_within_one() -> None:
    assert 60 < opens_after(1.05, before=0.95) < 600


def test_twice_the_rating_opens_it_within_seconds_when_warm() -> None:
    assert 2 < opens_after(2.0, before=0.95) < 30


def test_a_short_circuit_opens_it_at_once() -> None:
    assert opens_after(CURVE.instant_ratio) == DT_S


def test_more_overload_opens_it_sooner() -> None:
    times = [opens_after(ratio, before=0.9) for ratio in (1.02, 1.05, 1.1, 1.3, 2.0, 4.0)]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == len(times)


@pytest.mark.parametrize("before", [0.0, 0.8, 0.95])
@pytest.mark.parametrize("ratio", [1.03, 1.1, 1.6, 3.0])
def test_steps_follow_the_closed_form(ratio: float, before: float) -> None:
    assert opens_after(ratio, before) == pytest.approx(CURVE.trips_after_s(ratio, before), abs=2 * DT_S)


def test_it_remembers_an_overload_through_a_short_pause() -> None:
    """Half the time to trip, a pause of 20 s, and the second half comes early."""
    whole = opens_after(1.2, before=0.9)
    breakers = Breakers(1, CURVE, before=0.9)
    for _ in range(round(whole / 2 / DT_S)):
        assert not breakers.step(np.array([1.2]), DT_S)
    for _ in range(round(20 / DT_S)):
        breakers.step(np.array([0.9]), DT_S)
    again = next(k for k in range(10_000) if breakers.step(np.array([1.2]), DT_S)) * DT_S
    assert again < 0.85 * whole


def test_breakers_open_alone_and_stay_open() -> None:
    breakers = Breakers(2, CURVE, before=0.9)
    while not breakers.step(np.array([1.5, 0.9]), DT_S):
        pass
    assert breakers.closed.tolist() == [False, True]
    for _ in range(10_000):
        breakers.step(np.array([0.0, 0.9]), DT_S)
    assert breakers.closed.tolist() == [False, True]


def test_a_ups_on_battery_carries_too_much_for_ten_seconds() -> None:
    ups = UpsDeadline()
    ups.fail(75_000.0)
    steps = 0
    while not ups.step(75_001.0, DT_S):
        steps += 1
    assert (steps + 1) * DT_S == 10.0


def test_a_ups_on_battery_carries_its_capacity_and_mains_forgives() -> None:
    ups = UpsDeadline()
    ups.fail(75_000.0)
    assert not any(ups.step(75_000.0, DT_S) for _ in range(1000))
    assert not any(ups.step(80_000.0, DT_S) for _ in range(19))
    ups.restore()
    ups.fail(75_000.0)
    assert not any(ups.step(80_000.0, DT_S) for _ in range(19))
