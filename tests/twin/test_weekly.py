"""Demand over weeks."""

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from support.counterparts import shared_data

from schemas.topology import Priority
from schemas.units import FloatArray
from twin.weekly import (
    BLOCK_S,
    Demand,
    TracedLoad,
    WeeklyLoad,
    fit_week,
    in_the_mix,
    read_arrivals,
    read_hourly,
    shipped_week,
)
from twin.workload import MIX, Arrivals

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


def of_high_priority(block: Arrivals, index: int) -> npt.NDArray[np.bool_]:
    """Which requests of a block are of high priority, once it is seen to be whole."""
    assert np.all(np.diff(block.at_s) >= 0)
    assert block.at_s[0] >= index * BLOCK_S
    assert block.at_s[-1] < (index + 1) * BLOCK_S
    high: npt.NDArray[np.bool_] = block.host % 2 == 0
    assert block.prompt[high].max() <= 4096
    assert block.prompt[~high].max() > 4096  # summaries
    return high


def test_requests_come_in_order_within_their_block_at_hosts_of_their_priority() -> None:
    for index, block in ((0, (asked := load()).block(0)), (1, asked.block(1))):
        high = of_high_priority(block, index)
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


def azure() -> tuple[FloatArray, FloatArray, FloatArray]:
    return read_arrivals([shared_data(f"llm_traces/azure2023_{name}.csv") for name in ("code", "conv")])


def traced(seed: int = 1, demand: Demand = DEMAND, hosts: list[Priority] = HOSTS) -> TracedLoad:
    return TracedLoad(hosts, *azure(), demand, shipped_week().shape, seed=seed)


def test_recorded_arrivals_are_tiled_over_the_week() -> None:
    at_s, *_ = azure()
    assert at_s.size == 8819 + 19366
    load = traced(demand=Demand(requests_per_s=0.2))
    hours = [sum(load.block(6 * hour + part).at_s.size for part in range(6)) for hour in range(24)]
    assert hours[17] / hours[5] == pytest.approx(2.1, rel=0.3)  # the day's shape
    assert hours[17] / HOUR / 40 == pytest.approx(0.2, rel=0.25)


def test_recorded_requests_come_in_order_at_hosts_of_their_priority() -> None:
    load = traced()
    for index in range(20):
        block = load.block(index)
        high = of_high_priority(block, index)
        assert high.mean() == pytest.approx(0.5, abs=0.07)


def test_recorded_arrivals_are_the_same_again_under_one_seed_and_others_under_another() -> None:
    first, again, other = traced(1).block(0), traced(1).block(0), traced(2).block(0)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert first.at_s.size != other.at_s.size or not np.array_equal(first.at_s, other.at_s)


def test_servers_do_not_play_a_recordings_crowd_in_step() -> None:
    """Nine tenths of these requests come in one of ten minutes: each server's share of them, in another."""
    rng = np.random.default_rng(1)
    at_s = np.sort(np.concatenate((rng.random(9000) * 60.0, 60.0 + rng.random(1000) * 540.0)))
    prompt, output = rng.integers(100, 4000, (2, at_s.size)).astype(np.float64)
    demand = Demand(requests_per_s=1.0)
    flat = msgspec.structs.replace(
        shipped_week().shape, weekday_level=1.0, weekday_swing=0.0, weekend_level=1.0, weekend_swing=0.0
    )
    load = TracedLoad(HOSTS, at_s, prompt, output, demand, flat, seed=1)
    block = load.block(1)
    minute = ((block.at_s - BLOCK_S) // 60.0).astype(int)
    row = np.bincount(minute, minlength=10)
    assert row.max() < 3 * row.mean(), "in step, nine times the mean came in one minute"
    of_one = np.bincount(minute[block.host == 0], minlength=10)
    assert np.sort(of_one)[-2:].sum() > 0.8 * of_one.sum(), "a server keeps the recording's own crowd"


def test_no_crowd_of_recorded_requests_stands_at_the_borders_of_blocks() -> None:
    load = traced(demand=Demand(requests_per_s=2.0))
    second = np.concatenate([load.block(index).at_s % BLOCK_S for index in range(40)]).astype(int)
    counts = np.bincount(second, minlength=BLOCK_S)
    spread = 5.0 * np.sqrt(counts.mean())
    assert counts[1:599].mean() - spread < counts[[0, 599]].min()
    assert counts[[0, 599]].max() < counts[1:599].mean() + spread


def test_recorded_volleys_meet_as_many_servers_as_the_random_loads() -> None:
    quiet = Demand(requests_per_s=0.01, volleys_a_day=1440.0, volley_ratio=0.5)
    largest = [
        max(np.unique(each.block(index).at_s, return_counts=True)[1].max() for index in range(20))
        for each in (load(demand=quiet), traced(demand=quiet))
    ]
    assert largest[0] == largest[1] > 4


def test_recorded_requests_take_the_mixs_shares_and_lengths_by_their_order() -> None:
    rng = np.random.default_rng(1)
    prompt, output = rng.integers(1, 900, (2, 8000)).astype(np.float64)
    kind, asked, answered = in_the_mix(prompt, output, MIX, rng)
    assert np.bincount(kind) / kind.size == pytest.approx([each.share_ratio for each in MIX], abs=0.02)
    for place, each in enumerate(MIX):
        here = kind == place
        for tokens, recorded, (low, high) in (
            (asked, prompt, each.prompt_tokens),
            (answered, output, each.output_tokens),
        ):
            assert low <= tokens[here].min() <= low + 0.01 * (high - low)
            assert high - 0.01 * (high - low) <= tokens[here].max() <= high
            assert np.all(np.diff(tokens[here][np.argsort(recorded[here])])[::50] > -0.01 * (high - low))
    assert prompt[kind == 0].min() >= prompt[kind == 2].max(), "the longest prompts are the summaries"
    assert prompt[kind == 1].max() <= prompt[kind == 3].min(), "the shortest are the searches"


def test_a_recording_too_small_for_both_priorities_is_refused() -> None:
    one = np.array([1.0])
    with pytest.raises(ValueError, match="1 recorded arrivals: too few to give each priority its own"):
        TracedLoad(HOSTS, one, one, one, DEMAND, shipped_week().shape, seed=1)


def test_a_moment_with_a_zone_is_read_as_that_moment(tmp_path: Path) -> None:
    path = tmp_path / "arrivals.csv"
    path.write_text(f"{HEADER}2024-05-10 02:00:01.5+02:00,1,2\n2024-05-10 00:00:00.0000000,3,4\n")
    at_s, prompt, output = read_arrivals([path])
    assert at_s.tolist() == [1.5, 0.0]
    assert (prompt.tolist(), output.tolist()) == ([1.0, 3.0], [2.0, 4.0])


HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
AT = "2023-11-16 18:17:03.9799600"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "a,b\n1,2\n",
            "has no column ContextTokens, GeneratedTokens, TIMESTAMP; its form .* Azure LLM traces",
        ),
        ("", "is empty: has no column ContextTokens"),
        (HEADER, "has no requests"),
        (f"{HEADER}yesterday,1,2\n", "line 2: TIMESTAMP 'yesterday': must be a date and a time"),
        (f"{HEADER}NaT,1,2\n", "line 2: TIMESTAMP 'NaT': must be"),
        (f"{HEADER}{AT},1,2\n{AT},nan,2\n", "line 3: ContextTokens 'nan': must be a number of tokens from 0"),
        (f"{HEADER}{AT},inf,2\n", "line 2: ContextTokens 'inf': must be"),
        (f"{HEADER}{AT},1,-5\n", "line 2: GeneratedTokens '-5': must be"),
        (f"{HEADER}{AT},1e300,5\n", "line 2: ContextTokens '1e300': must be a number of .* to 10,000,000"),
        (f"{HEADER}{AT},many,5\n", "line 2: ContextTokens 'many': must be"),
        (f"{HEADER}{AT},1\n", "line 2: GeneratedTokens is missing"),
        (f"{HEADER}{AT},1,\n", "line 2: GeneratedTokens is missing"),
        (f"{HEADER}{AT},1,2\n{AT},{'1' * 200_000},2\n", "line 3: field larger than field limit"),
        (b"\x89PNG\r\n\xff\xfe", "is no text in UTF-8"),
        (f"{HEADER}{AT},1,2\n".encode() + b"\xff,1,2\n", "is no text in UTF-8"),
    ],
)
def test_a_file_that_holds_no_arrivals_is_refused_in_words(
    tmp_path: Path, text: str | bytes, words: str
) -> None:
    path = tmp_path / "arrivals.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"arrivals\.csv: {words}"):
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
