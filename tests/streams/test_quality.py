"""The judges, one at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.rows import T0

from schemas.instants import HOUR, SECOND
from streams.quality import NEVER, InOrder, QualityRules, Repeats, SourceClocks, Stillness, plausible

RULES = QualityRules()


def test_no_powered_device_reads_zero_less_or_nothing_finite() -> None:
    readings = np.array([0.0, -0.0, -1.0, np.nan, np.inf, -np.inf, 600.1, 600.0, 0.1])
    assert plausible(readings, 600.0).tolist() == [False] * 7 + [True, True]


def test_messages_are_taken_in_order_until_the_clock_is_set_back() -> None:
    order = InOrder()
    assert [order.take(T0 + at) for at in (10, 12, 12, 11, 13)] == [True, True, False, False, True]
    back = T0 - HOUR
    assert [order.take(back + at) for at in (3, 5, 4, 7, 8, 9)] == [False, False, False, False, True, True]
    assert order.at == back + 9


def test_late_messages_between_good_ones_never_set_a_clock_back() -> None:
    order = InOrder()
    for at in range(0, 100_000, 10_000):
        assert order.take(T0 + at)
        assert not order.take(T0 + at - HOUR)


@given(st.lists(st.integers(0, 59), min_size=1, max_size=40))
def test_what_a_broker_delivers_again_is_never_news(again: list[int]) -> None:
    order = InOrder()
    for s in range(60):
        order.take(T0 + s * SECOND)
    assert not any(order.take(T0 + s * SECOND) for s in again)


def clock_run(step_ms: int) -> int:
    """How many clocks are believed when a source falls an hour back and goes on at `step_ms` a second."""
    clocks = SourceClocks(1)
    clocks.accept(0, T0)
    taken = 0
    for s in range(1, 20):
        clocks.accept(0, T0 - HOUR + s * step_ms)
        if s % 2 == 0:
            taken += clocks.settle(T0 + s * SECOND, RULES)
    return taken


def test_a_clock_set_back_is_told_by_its_pace() -> None:
    assert clock_run(1000) == 1
    assert clock_run(0) == 0, "the same late message over and over"
    assert clock_run(6000) == 0, "a backlog, six times as fast as time"


def test_after_a_clock_is_set_back_readings_keep_their_age_and_after_it_is_right_again_too() -> None:
    clocks = SourceClocks(1)
    clocks.accept(0, T0)
    now = T0
    for s in range(1, 12):
        now = T0 + s * SECOND
        clocks.accept(0, now - HOUR)
        clocks.settle(now, RULES)
    assert clocks.read_at(0, now, RULES) == (now, False)
    assert clocks.read_at(0, now + 4 * SECOND, RULES) == (now, False), "four seconds of silence age it"
    clocks.accept(0, now + 5 * SECOND)  # the host's clock is put right
    assert clocks.read_at(0, now + 5 * SECOND, RULES) == (now + 5 * SECOND, False)


def test_a_source_never_heard_of_was_never_read() -> None:
    assert SourceClocks(2).read_at(1, T0, RULES) == (NEVER, False)


def still_after(ticks: int, *, power: list[float], witness: list[float]) -> bool:
    still, every = Stillness((1,), 1), slice(None)
    at = np.array([T0])
    for i in range(ticks):
        at = np.array([T0 + i * 2 * SECOND])
        watts = np.array([power[i % len(power)]])
        going = still.extend(every, at, np.array([2]), watts, watts)
        moved = np.array([witness[i % len(witness)]])
        still.testify(every, going, moved, moved)
    return bool(still.stuck(at, 0.2, RULES)[0])


def test_only_a_repeated_value_with_a_witness_that_moved_is_stuck() -> None:
    assert still_after(20, power=[100.0], witness=[0.1, 0.9])
    assert not still_after(20, power=[100.0], witness=[0.5])
    assert not still_after(20, power=[100.0], witness=[np.nan]), "no witness, no verdict"
    assert not still_after(20, power=[100.0, 100.001], witness=[0.1, 0.9])
    assert not still_after(10, power=[100.0], witness=[0.1, 0.9]), "not yet for twenty seconds"


def test_a_new_value_forgets_what_the_witness_did_before() -> None:
    still, every = Stillness((1,), 1), slice(None)
    for i in range(40):
        at, watts = np.array([T0 + i * 2 * SECOND]), np.array([100.0 if i < 20 else 200.0])
        going = still.extend(every, at, np.array([2]), watts, watts)
        moved = np.array([0.9 if i == 10 else 0.1])
        still.testify(every, going, moved, moved)
        stuck = bool(still.stuck(at, 0.2, RULES)[0])
        assert stuck == (10 <= i < 20)


def test_one_device_told_in_plain_numbers_repeats_itself_as_an_array_of_it_does() -> None:
    rng = np.random.default_rng(5)
    one, many, every = Repeats(), Stillness((1,), 1), slice(None)
    move, found = 9.0, []
    for step in range(4000):
        at = T0 + step * 2 * SECOND
        value, beside = (
            float(rng.random() < 0.03),
            rng.choice([np.nan, 10.0, 11.0, 20.0], p=[0.4, 0.3, 0.28, 0.02]),
        )
        one.extend(at, value, None if np.isnan(beside) else float(beside))
        read = np.array([value])
        going = many.extend(every, np.array([at]), np.ones(1, np.int64), read, read)
        many.testify(every, going, np.array([beside]), np.array([beside]))
        if step == 2000:
            one.rewind(-HOUR)
            many.rewind(-HOUR)
            at -= HOUR
        found.append(one.stuck(at, move, RULES))
        assert found[-1] == bool(many.stuck(np.array([at]), move, RULES)[0]), step
    assert 40 < sum(found) < 3960, "both verdicts came"
