"""What a serving GPU's run comes to: the figures that the twin and the real board are compared by."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.units import FloatArray
from twin.serving.fidelity import RAMPS, Measurement, figures


def measured(power_w: FloatArray, duration_s: float | None = None) -> Measurement:
    seconds = float(power_w.size) if duration_s is None else duration_s
    return Measurement(power_w, seconds, (0.3, 0.2), (0.03, 0.02))


def ramps(power_w: FloatArray) -> list[float | None]:
    found = figures(measured(power_w))
    return [getattr(found, name) for name in RAMPS]


def test_a_ramp_is_what_power_moves_by_within_the_seconds_of_its_name() -> None:
    steady = np.arange(200.0)
    assert ramps(100.0 + steady) == [2.0, 10.0, 40.0], "1 W a second: each control path has its own headroom"
    assert ramps(500.0 - steady) == [2.0, 10.0, 40.0], "power that falls away moves the row as well"


def test_a_staircase_rises_by_as_many_stairs_as_its_seconds_reach_over() -> None:
    stairs = 100.0 + 50.0 * np.floor(np.arange(400.0) / 8.0)  # 50 W every 8 s
    assert ramps(stairs) == [50.0, 100.0, 250.0]


def test_power_that_swings_within_seconds_and_comes_back_has_no_slow_ramp() -> None:
    swing = np.where(np.arange(400) % 10 < 5, 300.0, 600.0)  # comes back every 10 s
    assert ramps(swing) == [300.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("readings", "told"),
    [
        (2, [None, None, None]),
        (3, [2.0, None, None]),
        (11, [2.0, 10.0, None]),
        (40, [2.0, 10.0, None]),
        (41, [2.0, 10.0, 40.0]),
    ],
)
def test_a_run_says_nothing_of_ramps_that_are_longer_than_it_is(
    readings: int, told: list[float | None]
) -> None:
    assert ramps(np.arange(float(readings))) == told


def test_energy_is_for_as_long_as_the_run_took_and_not_for_as_many_readings_as_there_are() -> None:
    power_w = np.array([200.0, 400.0, 600.0, 400.0])
    run = figures(measured(power_w, duration_s=5.5))
    assert run.mean_w == 400.0
    assert run.energy_j == 2200.0, "the bill is for 5.5 s, of which readings a second apart show only four"
    assert run.duration_s == 5.5


def test_percentiles_are_those_of_the_readings() -> None:
    run = figures(measured(np.arange(101.0)))
    assert (run.p50_w, run.p95_w, run.p99_w) == (50.0, 95.0, 99.0)
