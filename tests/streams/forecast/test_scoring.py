"""A model is believed after it was clearly better for a while, and not a moment longer than it is good."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from streams.forecast.scoring import Scores, Trust, TrustRules

Q = np.array([0.5, 0.9, 0.99])
RULES = TrustRules(window=100, enough=20, recover=20)


def run(*stretches: tuple[int, float, float]) -> list[bool]:
    """Whether the model is believed after each moment. A stretch is (moments, the baseline's distance
    above what came, the model's)."""
    scores, trust, out = Scores(RULES.window, 2, 1, 3), Trust(), []
    for moments, base_w, model_w in stretches:
        for _ in range(moments):
            forecasts_w = np.array([[[base_w] * 3], [[model_w] * 3]])
            scores.judge(forecasts_w, np.zeros(1), Q)
            trust.step(scores, RULES)
            out.append(not trust.why_not)
    return out


def test_it_must_be_better_for_a_while() -> None:
    believed = run((60, 10.0, 5.0))
    assert believed.index(True) == RULES.enough + RULES.recover - 2


def test_a_little_better_is_not_enough() -> None:
    assert not any(run((300, 10.0, 9.5)))


def test_a_model_that_covers_too_little_is_not_believed_however_close_it_is() -> None:
    assert not any(run((300, 10.0, -0.01)))


def test_it_stands_aside_when_it_gets_worse_and_comes_back_when_it_recovers() -> None:
    believed = run((100, 10.0, 5.0), (200, 10.0, 20.0), (400, 10.0, 5.0))
    assert believed[99]
    assert not believed[250]
    assert believed[-1]
    turns = sum(a != b for a, b in pairwise(believed))
    assert turns == 3, "in, out, in: no flicker"


def test_a_model_that_hovers_about_the_baseline_does_not_flicker() -> None:
    scores, trust, rng = Scores(RULES.window, 2, 1, 3), Trust(), np.random.default_rng(0)
    turns, before = 0, trust.why_not == ""
    for _ in range(5000):
        forecasts_w = 10.0 + rng.normal(0, 1, (2, 1, 3))
        scores.judge(forecasts_w, np.zeros(1), Q)
        trust.step(scores, RULES)
        turns, before = turns + (before != (trust.why_not == "")), trust.why_not == ""
    assert turns == 0


def test_the_window_forgets() -> None:
    scores = Scores(10, 1, 1, 3)
    for w in [100.0] * 10 + [1.0] * 10:
        scores.judge(np.full((1, 1, 3), w), np.zeros(1), Q)
    assert scores.pinball_w(0)[0].tolist() == [0.5, 0.09999999999999998, 0.010000000000000009]
    assert scores.samples == 10
