"""What is foretold of a row's power, how well it holds, and when the learned model may speak."""

from __future__ import annotations

import csv
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.counterparts import shared_data
from support.folds import fold
from support.rows import ROW, T0

from schemas.envelope import Event
from schemas.forecasts import ForecastScore, PeakForecast
from schemas.samples import PowerRollup
from schemas.units import FloatArray
from streams.forecast.fitted import PEAKS
from streams.forecast.learned import FEATURES, HISTORY, PeakModel, features
from streams.forecast.peaks import BASELINE, HORIZONS_S, QUANTILES, PeakForecaster
from streams.forecast.scoring import TrustRules
from streams.forecast.training import series_of

TICKS = (1, 5, 20)
TICK_MS = 2000


def rollups(powers_w: Sequence[float | None] | FloatArray, *, budget_w: float = 1e6) -> list[PowerRollup]:
    return [
        PowerRollup(
            at=T0 + i * TICK_MS,
            source="streams/rollup",
            subject=ROW,
            power_w=None if w is None or w != w else float(w),
            upper_w=2e6,
            budget_w=budget_w,
            coverage_ratio=1.0,
            known_at=None,
            basis="meter",
        )
        for i, w in enumerate(powers_w)
    ]


def told(
    events: Sequence[Event], model: PeakModel | None = PEAKS
) -> tuple[list[PeakForecast], list[ForecastScore]]:
    out, _ = fold(PeakForecaster(ROW, model), events)
    forecasts = [event for event in out if isinstance(event, PeakForecast)]
    return forecasts, [event for event in out if isinstance(event, ForecastScore)]


def outcomes(
    forecasts: list[PeakForecast], powers_w: FloatArray, skip: int = 0
) -> tuple[FloatArray, FloatArray]:
    """Forecasts and what came of them, (n, horizons, quantiles) and (n, horizons), by hand."""
    came, values = [], []
    for forecast in forecasts:
        i = (forecast.at - T0) // TICK_MS
        ahead = powers_w[i + 1 : i + 1 + TICKS[-1]]
        if i >= skip and len(ahead) == TICKS[-1] and np.isfinite(ahead).all():
            came.append([ahead[:n].max() for n in TICKS])
            values.append(forecast.values)
    return np.array(values), np.array(came)


def pinball(values: FloatArray, came: FloatArray) -> FloatArray:
    missed = came[:, :, None] - values
    q = np.array(QUANTILES)
    loss: FloatArray = np.maximum(q * missed, (q - 1) * missed).mean(axis=0)
    return loss


def wandering(n: int, seed: int, *, level_w: float = 100_000.0) -> FloatArray:
    """An inference row: a slow wander about a level, with the noise of many servers."""
    rng = np.random.default_rng(seed)
    wander = np.zeros(n)
    for i in range(1, n):
        wander[i] = 0.98 * wander[i - 1] + rng.normal(0, 0.01)
    return np.asarray(level_w * (1 + wander + rng.normal(0, 0.003, n)))


def repeating(n: int, seed: int) -> FloatArray:
    """A training row: iterations of 30 s with a dip at the end of each."""
    rng = np.random.default_rng(seed)
    dips = (np.arange(n) % 15) >= 11
    return np.asarray(np.where(dips, 60_000.0, 100_000.0) + rng.normal(0, 500, n))


# -- the baseline -----------------------------------------------------------------------------------


def test_quantiles_hold_what_they_promise_on_a_row_that_wanders() -> None:
    powers_w = wandering(3600, seed=2)
    values, came = outcomes(told(rollups(powers_w), None)[0], powers_w, skip=300)
    covered = (came[:, :, None] <= values).mean(axis=0)
    assert covered[:, 0] == pytest.approx([0.5] * 3, abs=0.06)
    assert covered[:, 1] == pytest.approx([0.9] * 3, abs=0.03)
    assert covered[:, 2] == pytest.approx([0.99] * 3, abs=0.01)


def test_while_history_is_short_the_published_rises_stand_in() -> None:
    first = told(rollups([100_000.0]), None)[0][0]
    assert first.value(2.0, 0.99) == pytest.approx(109_000.0)
    assert first.value(40.0, 0.99) == pytest.approx(111_800.0)
    assert first.value(40.0, 0.5) == pytest.approx(100_000.0)
    later = told(rollups([100_000.0] * 100), None)[0][-1]
    assert later.value(40.0, 0.99) == pytest.approx(111_800.0), "80 calm rises are not yet a history"
    calm = told(rollups([100_000.0] * 200), None)[0][-1]
    assert calm.value(40.0, 0.99) == 100_000.0


def test_a_rise_greater_than_the_published_one_counts_at_once() -> None:
    powers_w = [100_000.0] * 20 + [130_000.0] * 5 + [100_000.0] * 20
    assert told(rollups(powers_w), None)[0][-1].value(40.0, 0.99) == pytest.approx(130_000.0)


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=80))
@settings(max_examples=30)
def test_a_longer_look_or_a_higher_quantile_never_foretells_less(powers_w: list[float]) -> None:
    for forecast in told(rollups(powers_w))[0]:
        values = np.array(forecast.values)
        assert (np.diff(values, axis=0) >= 0).all()
        assert (np.diff(values, axis=1) >= 0).all()
        assert (values >= 0).all()


# -- what is not known ------------------------------------------------------------------------------


def test_nothing_is_foretold_from_an_unknown_level() -> None:
    powers_w: list[float | None] = [*[100_000.0] * 30, None, None, *[100_000.0] * 3]
    known = {T0 + i * TICK_MS for i, w in enumerate(powers_w) if w is not None}
    assert {forecast.at for forecast in told(rollups(powers_w))[0]} == known


@given(st.lists(st.one_of(st.none(), st.floats(9e4, 1.1e5)), max_size=120))
@settings(max_examples=40)
def test_no_outcome_spans_a_gap(powers_w: list[float | None]) -> None:
    forecaster = PeakForecaster(ROW, None)
    state, _ = forecaster.step(forecaster.initial(), rollups(powers_w))
    watts = np.array([np.nan if w is None else w for w in powers_w])
    whole = [i for i in range(len(watts) - TICKS[-1]) if np.isfinite(watts[i : i + TICKS[-1] + 1]).all()]
    assert [len(rises) for rises in state.rises_w] == [len(whole)] * 3


@pytest.mark.parametrize("late_ms", [4000, 3_600_000, -30_000, -3_600_000])
def test_a_missed_tick_or_a_clock_that_was_set_ends_the_run_and_no_more(late_ms: int) -> None:
    events = rollups([100_000.0] * 40)
    moved = [
        msgspec.structs.replace(e, at=e.at + late_ms, id="") if i >= 30 else e for i, e in enumerate(events)
    ]
    forecaster = PeakForecaster(ROW, None)
    state, _ = forecaster.step(forecaster.initial(), moved)
    assert len(state.powers_w) == 10


def test_repeated_rollups_change_nothing() -> None:
    events = rollups(wandering(60, seed=3))
    noisy = [again for event in events for again in (event, event)]
    assert fold(PeakForecaster(ROW), noisy) == fold(PeakForecaster(ROW), events)


# -- the learned model ------------------------------------------------------------------------------


def test_the_features_of_a_row_twice_the_size_are_twice_as_large() -> None:
    powers_w = wandering(HISTORY, seed=5)
    assert features((2 * powers_w).tolist()) == pytest.approx([2 * f for f in features(powers_w.tolist())])
    assert len(features(powers_w.tolist())) == len(FEATURES)


def test_on_a_row_that_repeats_itself_the_model_earns_its_place_and_keeps_it() -> None:
    powers_w = repeating(1200, seed=6)
    forecasts, scores = told(rollups(powers_w))
    assert forecasts[0].model == BASELINE
    assert forecasts[0].fallback == f"only 1 of {HISTORY} readings since the last gap"
    assert forecasts[-1].model == PEAKS.name
    assert forecasts[-1].fallback == ""
    spoke = next(i for i, forecast in enumerate(forecasts) if not forecast.fallback)
    assert all(not forecast.fallback for forecast in forecasts[spoke:])
    base, _ = told(rollups(powers_w), None)
    ours, theirs = (pinball(*outcomes(f, powers_w, skip=spoke)) for f in (forecasts, base))
    assert (ours / theirs).mean() < 0.85
    assert (ours[1:] < 0.7 * theirs[1:]).all(), "how high the next iteration peaks is no secret"
    assert [score.trusted for score in scores[-2:]] == [True, True]


def test_a_model_that_stops_being_right_stands_aside_with_the_reason() -> None:
    rng = np.random.default_rng(8)
    steps = np.repeat(rng.uniform(60e3, 100e3, 90), 20) + rng.normal(0, 300, 1800)  # no peak returns
    powers_w = np.concatenate([repeating(1000, seed=7), steps])
    forecasts, scores = told(rollups(powers_w))
    assert forecasts[999].fallback == ""
    assert forecasts[-1].model == BASELINE
    assert forecasts[-1].fallback.startswith("loss 1.0")
    assert [score.trusted for score in scores[-2:]] == [True, False], "the baseline is always trusted"


def test_a_model_that_is_wrong_is_never_published() -> None:
    absurd = msgspec.structs.replace(PEAKS, name="absurd", coefficients=(((50.0,) * len(FEATURES),) * 3,) * 3)
    powers_w = wandering(1500, seed=9)
    forecasts, _ = told(rollups(powers_w), absurd)
    assert {forecast.model for forecast in forecasts} == {BASELINE}
    base, _ = told(rollups(powers_w), None)
    assert [f.values for f in forecasts] == [f.values for f in base]


def test_a_model_fitted_for_other_ticks_stands_aside() -> None:
    out, _ = fold(PeakForecaster(ROW, period_ms=1000), rollups([100_000.0]))
    assert isinstance(out[0], PeakForecast)
    assert out[0].model == BASELINE
    assert out[0].fallback.startswith(f"{PEAKS.name} was fitted for ticks of 2000 ms")


# -- scores -----------------------------------------------------------------------------------------


def test_a_score_is_what_counting_by_hand_gives() -> None:
    powers_w = wandering(800, seed=10)
    forecasts, scores = told(rollups(powers_w), None)
    last = scores[-1]
    known = powers_w[: (last.at - T0) // TICK_MS + 1]
    values, came = outcomes(forecasts, known)
    window = TrustRules().window
    values, came = values[-window:], came[-window:]
    assert last.samples == len(came)
    assert last.pinball_w == pytest.approx(pinball(values, came).mean(axis=1).tolist(), abs=0.01)
    assert np.array(last.coverage_ratio) == pytest.approx(
        (came[:, :, None] <= values).mean(axis=0), abs=2 / last.samples
    )


def test_a_crossing_that_was_seen_coming_has_a_lead_and_a_jump_has_none() -> None:
    ramp = np.concatenate([np.full(200, 90_000.0), np.linspace(90_000, 104_000, 140), np.full(60, 104_000.0)])
    jump = np.concatenate([np.full(300, 90_000.0), np.full(60, 110_000.0)])
    foretold = told(rollups(ramp, budget_w=100_000.0), None)[1][-1].lead_s
    assert foretold is not None
    assert 4.0 <= foretold <= 40.0
    assert told(rollups(jump, budget_w=100_000.0), None)[1][-1].lead_s == 0.0
    assert told(rollups(jump, budget_w=200_000.0), None)[1][-1].lead_s is None


# -- recorded power ---------------------------------------------------------------------------------


def recorded_row() -> list[PowerRollup]:
    """The second half of 64 nodes of 8 H100 in training, as a row at 2 s; what it was not fitted on."""
    file = shared_data("gpu_power/mlperf/train_v4.0_smc-ac-power_64xH100node_gpt3_0.csv")
    with file.open() as lines:
        rows = [(int(at), float(watts)) for at, _, watts in list(csv.reader(lines))[1:]]
    ticks = np.array([(at - rows[0][0] + 1000) // 2018 for at, _ in rows])  # its own period
    nodes = np.bincount(ticks)
    watts = np.bincount(ticks, [watts for _, watts in rows]) * 64 / np.maximum(nodes, 1)
    series = np.where(nodes >= 52, watts, np.nan)
    return rollups(series[len(series) // 2 :])


def test_on_recorded_training_power_the_forecast_is_calibrated_and_beats_the_baseline() -> None:
    events = recorded_row()
    powers_w = series_of(events)
    forecasts, _ = told(events)
    base, _ = told(events, None)
    values, came = outcomes(forecasts, powers_w, skip=HISTORY)
    covered = (came[:, :, None] <= values).mean(axis=0)
    assert (covered[:, 2] >= 0.97).all()
    assert covered[:, 1] == pytest.approx([0.9] * 3, abs=0.04)
    assert forecasts[-1].model == PEAKS.name
    spoken = [f for f in forecasts if not f.fallback]
    beside = [f for f in base if f.at >= spoken[0].at]
    ours, theirs = (pinball(*outcomes(f, powers_w)) for f in (spoken, beside))
    assert (ours / theirs).mean() < 0.7


# -- properties -------------------------------------------------------------------------------------


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 420), max_size=10),
    st.sets(st.integers(0, 419), max_size=3),
)
@settings(max_examples=15)
def test_where_the_stream_is_cut_changes_nothing(seed: int, cuts: list[int], unknown: set[int]) -> None:
    powers_w = repeating(420, seed)
    powers_w[list(unknown)] = np.nan
    events = rollups(powers_w)
    assert fold(PeakForecaster(ROW), events, cuts) == fold(PeakForecaster(ROW), events)


def test_horizons_and_quantiles_are_those_that_were_asked_for() -> None:
    assert (HORIZONS_S, QUANTILES) == ((2.0, 10.0, 40.0), (0.5, 0.9, 0.99))
    assert (PEAKS.horizons_s, PEAKS.quantiles) == (HORIZONS_S, QUANTILES)
