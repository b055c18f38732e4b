"""What a power sensor shows, and what escapes it."""

from __future__ import annotations

import numpy as np
import pytest

from twin.serving.sensor import average, board_gains, instant


def test_even_power_is_shown_as_it_is() -> None:
    at = np.arange(1.0, 9.0)
    assert instant(np.array([10.0]), np.array([400.0]), at) == pytest.approx(np.full(8, 400.0))
    assert average(np.array([10.0]), np.array([400.0]), at) == pytest.approx(np.full(8, 400.0))


def test_a_spike_of_50_ms_can_be_missed() -> None:
    def shown(begins_s: float) -> float:
        end = np.array([begins_s, begins_s + 0.05, 10.0])
        return float(instant(end, np.array([300.0, 900.0, 300.0]), np.arange(0.1, 9.0, 0.1)).max())

    assert shown(5.02) == pytest.approx(300.0), "it was over before the 25 ms that are looked at began"
    assert shown(5.06) == pytest.approx(900.0)


def test_the_averaged_field_lags_a_step_by_up_to_a_second() -> None:
    end, watts = np.array([5.0, 20.0]), np.array([100.0, 500.0])
    half, after = average(end, watts, np.array([5.5, 6.1]))
    assert 250.0 < half < 350.0
    assert after == pytest.approx(500.0)


def test_a_boards_gain_is_its_own_and_within_the_published_spread() -> None:
    gains = board_gains(4000, np.random.default_rng(1))
    assert gains.min() >= 0.95
    assert gains.max() <= 1.05
    assert gains.std() > 0.02
