"""Emergencies of power: when they begin, what they say, and what it takes to end them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.folds import fold
from support.rows import FEEDS, ROW, T0, feed, make_row

from schemas.emergencies import Emergency
from schemas.envelope import Event
from schemas.samples import PowerRollup, UpsSample
from streams.detect.overload import OverloadDetector

BUDGET_W = 100_000.0
DETECTOR = OverloadDetector(make_row(2, budget_w=BUDGET_W))
UPS = "ams1/ups-1"


def rollup(at: int, power_w: float | None, *, coverage: float = 1.0) -> PowerRollup:
    return PowerRollup(
        at=at,
        source="streams/rollup",
        subject=ROW,
        power_w=power_w,
        upper_w=200_000.0,
        budget_w=BUDGET_W,
        coverage_ratio=coverage if power_w is not None else 0.5,
        known_at=at if power_w is not None else None,
        basis="meter" if power_w is not None else "unknown",
    )


def ups(at: int, *, subject: str = UPS, **said: Any) -> UpsSample:
    return UpsSample(at=at, source="collector/ups", subject=subject, power_w=None, **said)


def emergencies(events: list[Event]) -> list[Emergency]:
    out, _ = fold(DETECTOR, events)
    return [event for event in out if isinstance(event, Emergency)]


def at_shares(*shares: float | None) -> list[Event]:
    return [rollup(T0 + i * 2000, None if s is None else s * BUDGET_W) for i, s in enumerate(shares)]


def told(events: list[Event]) -> list[tuple[str, str, int]]:
    return [(said.kind, said.phase, (said.at - T0) // 1000) for said in emergencies(events)]


def test_an_overload_is_one_episode_from_raised_to_cleared() -> None:
    shares = [0.9, 1.02, 1.02, 1.02, 1.02] + [0.95] * 6 + [1.06]
    events = at_shares(*shares)
    said = emergencies(events)
    assert [(e.phase, (e.at - T0) // 2000) for e in said] == [
        ("raised", 1), ("escalated", 4), ("cleared", 10), ("raised", 11)
    ]  # fmt: skip
    assert len({e.episode for e in said[:3]}) == 1
    assert said[0].episode == said[0].id != said[3].episode
    assert [e.cause for e in said] == [(events[i].id,) for i in (1, 4, 10, 11)]
    assert (said[0].value, said[0].limit) == (102_000.0, BUDGET_W)
    drawn = f"{ROW} draws 102.0 kW of 100.0 kW: above its budget"
    assert [e.because for e in said[:2]] == [drawn, f"{drawn} for 5 s"]
    assert said[2].because.endswith("below 97% of its budget for 10 s")


def test_an_overload_is_not_ended_by_not_knowing() -> None:
    said = told(at_shares(1.02, *[None] * 30))
    assert ("overload", "cleared") not in {(kind, phase) for kind, phase, _ in said}


def test_power_unknown_for_longer_than_the_budget_is_a_loss_and_for_twice_as_long_a_worse_one() -> None:
    said = told(at_shares(0.5, *[None] * 8, *[0.5] * 4))
    assert said == [
        ("telemetry_loss", "raised", 6),
        ("telemetry_loss", "escalated", 12),
        ("telemetry_loss", "cleared", 22),
    ]


def test_a_row_that_was_never_known_is_a_loss_too() -> None:
    assert told(at_shares(*[None] * 4)) == [("telemetry_loss", "raised", 6)]


def test_one_known_reading_does_not_end_a_loss() -> None:
    assert told(at_shares(*[None] * 5, 0.5, 0.5, None, 0.5, 0.5, None)) == [("telemetry_loss", "raised", 6)]


def test_two_unknown_readings_are_no_loss() -> None:
    assert told(at_shares(0.5, None, None, 0.5)) == []


def test_a_ups_on_battery_is_said_on_the_sample_itself_whatever_the_row_draws() -> None:
    sample = ups(T0 + 123, on_battery=True, load_ratio=0.7)
    (said,) = emergencies([rollup(T0, 0.2 * BUDGET_W), sample])
    assert (said.kind, said.phase, said.at, said.cause) == ("failover", "raised", T0 + 123, (sample.id,))
    assert (said.value, said.limit) == (0.7, 1.0)
    assert said.because == "ams1/ups-1 is on battery"
    assert said.subject == ROW


def test_of_two_meters_on_a_ups_that_disagree_the_one_with_trouble_counts() -> None:
    well, failing = ups(T0, on_battery=False), ups(T0, on_battery=True)
    for events in ([well, failing], [failing, well], [failing, failing, well]):
        assert told(list(events)) == [("failover", "raised", 0)]


def test_an_unhealthy_or_overloaded_ups_is_a_failover_too() -> None:
    assert emergencies([ups(T0, healthy=False)])[0].because == "ams1/ups-1 is unhealthy"
    assert emergencies([ups(T0, load_ratio=1.33)])[0].because == "ams1/ups-1 is above its rating"


def test_a_ups_must_be_well_for_a_hold_before_its_failover_ends() -> None:
    back: list[Event] = [ups(T0 + 2000 * i, on_battery=False) for i in range(1, 8)]
    assert told([ups(T0, on_battery=True), *back]) == [("failover", "raised", 0), ("failover", "cleared", 12)]
    flickers = [ups(T0 + 2000 * i, on_battery=i % 3 == 0) for i in range(60)]
    assert told(list(flickers)) == [("failover", "raised", 0)]


def test_a_ups_that_does_not_say_ends_nothing() -> None:
    silent: list[Event] = [ups(T0 + 2000 * i, healthy=True) for i in range(1, 60)]
    assert told([ups(T0, on_battery=True), *silent]) == [("failover", "raised", 0)]
    unsaid: list[Event] = [ups(T0 + 2000 * i, on_battery=False) for i in range(1, 60)]
    assert told([ups(T0, healthy=False), *unsaid]) == [("failover", "raised", 0)]


def test_a_ups_heard_before_and_after_a_silence_was_not_well_throughout() -> None:
    events: list[Event] = [
        ups(T0, on_battery=True),
        ups(T0 + 2000, on_battery=False),
        ups(T0 + 60_000, on_battery=False),
    ]
    assert told(events) == [("failover", "raised", 0)]


def test_two_upses_fail_in_two_episodes() -> None:
    said = emergencies([ups(T0, on_battery=True), ups(T0, subject="ams1/ups-2", on_battery=True)])
    assert len({e.episode for e in said}) == 2


def test_a_ups_that_does_not_feed_the_row_is_not_its_emergency() -> None:
    assert emergencies([ups(T0, subject="ams1/ups-9", on_battery=True)]) == []


def test_a_row_that_names_no_feeds_listens_to_its_site() -> None:
    row = make_row(2)
    bare = type(row)(
        path=row.path,
        budget_w=row.budget_w,
        racks=tuple(type(r)(path=r.path, row=r.row, hosts=r.hosts, feeds=()) for r in row.racks),
        meters=(),
    )
    detector = OverloadDetector(bare)
    assert len(fold(detector, [ups(T0, subject="ams1/ups-9", on_battery=True)])[0]) == 1
    assert fold(detector, [ups(T0, subject="fra2/ups-9", on_battery=True)])[0] == []


def test_repeated_messages_say_nothing_new() -> None:
    events = at_shares(1.02, 1.03, 0.9)
    assert told([events[0], *events[:2], events[1], events[2]]) == told(events)
    assert told([ups(T0 + 1, on_battery=True), ups(T0, on_battery=False), ups(T0 + 1, on_battery=True)]) == [
        ("failover", "raised", 0)
    ]


def test_an_overload_is_heard_though_the_clock_was_set_back() -> None:
    back = T0 - 3_600_000
    events = [*at_shares(0.5, 0.5), rollup(back, 1.02 * BUDGET_W), rollup(back + 2000, 1.06 * BUDGET_W)]
    assert [(e.kind, e.phase, e.at) for e in emergencies(list(events))] == [
        ("overload", "raised", back),
        ("overload", "escalated", back + 2000),
    ]


@pytest.mark.parametrize("ahead_s", [5, 30, 55, 3600, 10**9])
def test_a_ups_on_battery_is_heard_at_once_after_a_sample_dated_ahead(ahead_s: int) -> None:
    ahead, failing = ups(T0 + ahead_s * 1000, on_battery=False), ups(T0 + 2000, on_battery=True)
    (said,) = emergencies([rollup(T0, 0.5 * BUDGET_W), ahead, failing])
    assert (said.kind, said.phase, said.at, said.cause) == ("failover", "raised", T0 + 2000, (failing.id,))


def test_what_a_ups_says_from_the_future_is_dated_now() -> None:
    (said,) = emergencies([rollup(T0, 0.5 * BUDGET_W), ups(T0 + 3_600_000, on_battery=True)])
    assert T0 <= said.at <= T0 + 5000


def test_a_failover_ends_though_one_of_its_samples_was_dated_ahead() -> None:
    events: list[Event] = []
    for i in range(12):
        ahead_ms = 3_600_000 if i == 0 else 0
        events += [ups(T0 + i * 2000 + ahead_ms, on_battery=i == 0), rollup(T0 + i * 2000, 0.5 * BUDGET_W)]
    events.insert(0, rollup(T0 - 2000, 0.5 * BUDGET_W))
    assert [phase for _, phase, _ in told(events)] == ["raised", "cleared"]


def test_word_from_before_the_trouble_that_all_is_well_ends_nothing() -> None:
    late: list[Event] = [ups(T0 - 30_000 + 2000 * i, on_battery=False) for i in range(14)]
    assert told([ups(T0, on_battery=True), *late]) == [("failover", "raised", 0)]


def test_a_feed_whose_breaker_opens_is_a_loss_of_supply_until_it_is_closed() -> None:
    a, b = FEEDS
    said = emergencies([
        feed(a, T0, 9_000.0, breaker_closed=True),
        feed(a, T0 + 60_000, 9_000.0, breaker_closed=True),  # one sample dated ahead
        feed(a, T0 + 2000, 0.0, breaker_closed=False),
        feed(a, T0 + 4000, 0.0, breaker_closed=False),
        feed(b, T0 + 4000, 18_000.0, breaker_closed=True),
        feed(a, T0 + 6000, None),
        feed("ams1/ups-9/pdu-1/feed-z", T0 + 6000, 0.0, breaker_closed=False),
        feed(a, T0 + 62_000, 9_000.0, breaker_closed=True),
    ])  # fmt: skip
    assert [(e.kind, e.phase, e.at - T0) for e in said] == [
        ("supply_loss", "raised", 2000),
        ("supply_loss", "cleared", 62_000),
    ]
    assert said[0].because == f"{a} says that its breaker is open"
    assert said[0].source.endswith(a)
    assert (said[0].episode, said[0].subject) == (said[1].episode, ROW)


shares = st.lists(st.one_of(st.none(), st.floats(0.5, 1.2)), max_size=60)


@given(shares, st.lists(st.sampled_from([True, False, None]), max_size=60), st.data())
def test_where_the_stream_is_cut_changes_nothing(
    row: list[float | None], battery: list[bool | None], data: st.DataObject
) -> None:
    events = at_shares(*row) + [ups(T0 + 2000 * i + 700, on_battery=b) for i, b in enumerate(battery)]
    events.sort(key=lambda event: event.at)
    cuts = data.draw(st.lists(st.integers(0, len(events))))
    assert fold(DETECTOR, events, cuts) == fold(DETECTOR, events)


@given(shares)
def test_no_emergency_ends_on_a_reading_that_is_not_known(row: list[float | None]) -> None:
    known = {event.id for event, share in zip(at_shares(*row), row, strict=True) if share is not None}
    for said in emergencies(at_shares(*row)):
        if said.phase == "cleared":
            assert set(said.cause) <= known


@given(st.lists(st.floats(0.97, 1.0), min_size=1, max_size=100))
def test_power_that_swings_between_the_levels_is_said_once(row: list[float]) -> None:
    assert [phase for _, phase, _ in told(at_shares(1.01, *row))] == ["raised"]
