"""A trouble's life: it begins above one level and ends below another, and between them is silence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.detect.hysteresis import Band, Hysteresis

BAND = Band(
    raise_above=1.0, escalate_above=1.05, clear_below=0.97, persist_ms=5_000, hold_ms=10_000, gap_ms=5_000
)


def phases(values: Sequence[float | None], *, step_ms: int = 2_000) -> list[str | None]:
    level = Hysteresis()
    return [level.step(i * step_ms, value, BAND) for i, value in enumerate(values)]


def test_it_is_raised_above_the_level_not_at_it() -> None:
    assert phases([1.0, 1.0001]) == [None, "raised"]


def test_it_escalates_at_once_when_it_gets_worse() -> None:
    assert phases([1.01, 1.06, 1.07]) == ["raised", "escalated", None]


def test_it_escalates_when_it_persists_but_not_when_it_dips() -> None:
    assert phases([1.01, 1.01, 1.01, 1.01]) == ["raised", None, None, "escalated"]
    assert phases([1.01, 1.01, 0.99, 1.01, 1.01, 1.01]) == ["raised", None, None, None, None, None]


def test_it_is_cleared_after_the_hold_below_the_lower_level() -> None:
    assert phases([1.01] + [0.96] * 6) == ["raised", None, None, None, None, None, "cleared"]


def test_a_value_in_the_band_breaks_the_hold() -> None:
    assert "cleared" not in phases([1.01] + [0.96, 0.96, 0.96, 0.96, 0.98] * 20)


def test_what_is_unknown_breaks_the_hold_and_clears_nothing() -> None:
    assert "cleared" not in phases([1.01, *[0.5, 0.5, 0.5, 0.5, None] * 20])
    assert "cleared" not in phases([1.01] + [0.5, 0.5, 0.5, 0.5, float("nan")] * 20)


def test_values_too_far_apart_do_not_vouch_for_the_time_between() -> None:
    assert "cleared" not in phases([1.01] + [0.5] * 20, step_ms=6_000)


def test_levels_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="clear must not be above raise"):
        Band(raise_above=1.0, escalate_above=1.1, clear_below=1.01, persist_ms=1, hold_ms=1, gap_ms=1)


@given(st.lists(st.floats(0.97, 1.05), max_size=200))
def test_a_value_that_swings_within_the_band_makes_no_noise(values: list[float]) -> None:
    said = [phase for phase in phases(values) if phase is not None]
    assert said in ([], ["raised"], ["raised", "escalated"])


@given(st.lists(st.one_of(st.none(), st.floats(0.8, 1.2)), max_size=300))
def test_every_life_is_raised_then_perhaps_escalated_then_cleared(values: list[float | None]) -> None:
    said = [phase for phase in phases(values) if phase is not None]
    follows = {"raised": {"escalated", "cleared"}, "escalated": {"cleared"}, "cleared": {"raised"}}
    assert said[:1] in ([], ["raised"])
    assert all(later in follows[earlier] for earlier, later in pairwise(said))
