"""Fitting: what it learns from, that it is the same each time, and that it learns something."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.units import FloatArray
from streams.forecast.learned import FEATURES, HISTORY
from streams.forecast.training import examples, fit


def iterations(n: int, seed: int) -> FloatArray:
    rng = np.random.default_rng(seed)
    return np.asarray(np.where(np.arange(n) % 15 >= 11, 60e3, 100e3) + rng.normal(0, 500, n))


def test_no_example_spans_a_gap() -> None:
    powers_w = iterations(400, 1)
    powers_w[200] = np.nan
    seen, came = examples(powers_w)
    assert seen.shape == (2 * 200 - 2 * HISTORY + 2 - 1 - 2 * 20, len(FEATURES))
    assert np.isfinite(seen).all()
    assert np.isfinite(came).all()


def test_a_rise_is_the_highest_power_ahead_less_the_level() -> None:
    powers_w = iterations(HISTORY + 30, 2)
    now = HISTORY - 1
    _, came = examples(powers_w)
    assert came[0].tolist() == [powers_w[now + 1 : now + 1 + n].max() - powers_w[now] for n in (1, 5, 20)]


def test_the_same_series_give_the_same_coefficients_and_they_are_about_peaks_that_return() -> None:
    series = [iterations(500, 3), 0.01 * iterations(500, 4)]
    first, second = (fit(series, name="m", fitted_on="made up", fitted_at="today") for _ in range(2))
    assert first == second
    assert (first.name, first.fitted_on, first.fitted_at) == ("m", "made up", "today")
    seen, came = examples(iterations(500, 5))
    foretold = seen @ np.array(first.coefficients[2][0])
    assert np.abs(foretold - came[:, 2]).mean() < 0.1 * np.abs(came[:, 2] - np.median(came[:, 2])).mean()


def test_there_is_nothing_to_learn_from_a_short_or_a_flat_series() -> None:
    with pytest.raises(ValueError, match="no series has 150 known powers"):
        fit([np.full(1000, 5.0), iterations(100, 1)], name="m", fitted_on="", fitted_at="")
