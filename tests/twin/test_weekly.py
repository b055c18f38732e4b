"""Demand over weeks."""

from pathlib import Path

import numpy as np
import pytest
from support.counterparts import shared_data

from schemas.topology import Priority
from twin.weekly import (
    BLOCK_S,
    Demand,
    TracedLoad,
    WeeklyLoad,
    fit_week,
    read_arrivals,
    read_hourly,
    shipped_week,
)

HOSTS: list[Priority] = ["high", "low"] * 20
DEMAND = Demand(
    requests_per_s=0.2,
    wander_ratio=0.05,
    bursts_a_day=20.0,
    burst_ratio=0.2,
    volleys_a_day=50.0,
    volley_ratio=0.5,
)
HOUR = 3600


def load(seed: int = 1, demand: Demand = DEMAND, hosts: list[Priority] = HOSTS) -> WeeklyLoad:
    return WeeklyLoad(hosts, demand, shipped_week().shape, seed=seed)


def test_what_ships_was_fitted_to_the_published_week() -> None:
    path = shared_data("llm_traces/rate_template_168h.csv")
    shape, error = fit_week(read_hourly(path))
    shipped = shipped_week()
    assert error == pytest.approx(shipped.mean_error_ratio, abs=1e-3)
    middle_s = np.arange(0.5, 168.0) * HOUR
    assert shape.ratio(middle_s) == pytest.approx(shipped.shape.ratio(middle_s), abs=0.005)


def test_a_week_has_quiet_nights_and_weekends_and_begins_anew() -> None:
    shape = shipped_week().shape
    hours = shape.ratio(np.arange(0.5, 336.0) * HOUR)
    assert hours[:168] == pytest.approx(hours[168:])
    assert hours[17] > 1.8 * hours[5]  # Monday afternoon, Monday before dawn
    assert hours[17] > 2 * hours[5 * 24 + 17]  # and Saturday afternoon
    assert 0.8 < hours.max() <= 1.1


def test_a_known_shape_is_found_again() -> None:
    shape = shipped_week().shape
    hourly = 90.0 * shape.ratio(np.arange(0.5, 168.0) * HOUR)
    found, error = fit_week(hourly)
    assert error < 1e-3
    assert found.peak_h == pytest.approx(shape.peak_h, abs=0.01)


def test_the_same_seed_asks_the_same_and_another_does_not() -> None:
    first, again, other = load(1).block(0), load(1).block(0), load(2).block(0)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert first.at_s.size != other.at_s.size or not np.array_equal(first.at_s, other.at_s)


def test_requests_come_in_order_within_their_block_at_hosts_of_their_priority() -> None:
    for index, block in ((0, (asked := load()).block(0)), (1, asked.block(1))):
        assert np.all(np.diff(block.at_s) >= 0)
        assert block.at_s[0] >= index * BLOCK_S
        assert block.at_s[-1] < (index + 1) * BLOCK_S
        high = block.host % 2 == 0
        assert block.prompt[high].max() <= 4096
        assert block.prompt[~high].max() > 4096  # summaries
        assert block.output[~high].min() >= 128


def test_rows_of_any_size_live_through_the_same_weeks_each_server_with_its_own_load() -> None:
    small, large = load(), load(hosts=["high", "low"] * 30)
    assert small.ratio(0) == pytest.approx(large.ratio(0))
    asked, more = (sum(each.block(index).at_s.size for index in range(1, 30)) for each in (small, large))
    assert more / asked == pytest.approx(1.5, rel=0.05)


def test_a_volley_meets_many_servers_at_one_instant() -> None:
    quiet = Demand(requests_per_s=0.01, volleys_a_day=1440.0, volley_ratio=0.5)
    block = load(demand=quiet).block(0)
    _, counts = np.unique(block.at_s, return_counts=True)
    assert 4 < counts.max() <= 20
    together = block.host[block.at_s == np.unique(block.at_s)[np.argmax(counts)]]
    assert np.unique(together).size == together.size  # no server twice


def test_recorded_arrivals_are_tiled_over_the_week() -> None:
    paths = [shared_data(f"llm_traces/azure2023_{name}.csv") for name in ("code", "conv")]
    at_s, prompt, output = read_arrivals(paths)
    assert at_s.size == 8819 + 19366
    traced = TracedLoad(40, at_s, prompt, output, Demand(requests_per_s=0.2), shipped_week().shape, seed=1)
    hours = [sum(traced.block(6 * hour + part).at_s.size for part in range(6)) for hour in range(24)]
    assert hours[17] / hours[5] == pytest.approx(2.1, rel=0.3)  # the day's shape
    assert hours[17] / HOUR / 40 == pytest.approx(0.2, rel=0.25)
    block = traced.block(6 * 24)
    assert np.all(np.diff(block.at_s) >= 0)
    assert set(block.prompt.tolist()) <= set(np.maximum(1.0, prompt).tolist())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "has no column ContextTokens, GeneratedTokens, TIMESTAMP"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no requests"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "yesterday"),
    ],
)
def test_a_file_that_holds_no_arrivals_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "arrivals.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_arrivals([path])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n", "has no columns hour_of_week and …_rps"),
        ("hour_of_week,a_rps\n0,1\n1,2\n", "has 2 hours"),
        ("hour_of_week,a_rps\n0,many\n", "line 2: could not convert"),
    ],
)
def test_a_file_that_holds_no_week_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "week.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_hourly(path)
