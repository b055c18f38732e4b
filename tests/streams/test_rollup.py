"""What is said of a row's power, and what is not."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.folds import fold
from support.rows import ROW, T0, feed, frame, make_row, wall

from schemas.envelope import Event, Tick
from schemas.instants import SECOND
from schemas.samples import GpuFrame, PowerRollup
from schemas.topology import Host, Row
from streams.quality import QualityRules
from streams.rollup import CAUSES_AT_MOST, Rollup

METER = "ams1/ups-1/pdu-1/feed-a"
OTHER_METER = "ams1/ups-2/pdu-2/feed-b"


def tick(at: int) -> Tick:
    return Tick(at=at, source="loop", subject=ROW)


def rollups(row: Row, events: list[Event]) -> list[PowerRollup]:
    out, _ = fold(Rollup(row), events)
    return [event for event in out if isinstance(event, PowerRollup)]


def everyone(row: Row, at: int, power_w: float = 200.0) -> list[Event]:
    return [frame(host, at, [power_w] * host.gpu_count) for host in row.hosts]


def steady(row: Row, seconds: int, power_w: float = 200.0) -> list[Event]:
    """A frame a second from every host, with the noise of a real board, and a tick every two."""
    noise = random.Random(1)
    events: list[Event] = []
    for s in range(1, seconds + 1):
        for host in row.hosts:
            watts = [power_w + noise.uniform(-1, 1) for _ in range(host.gpu_count)]
            events.append(frame(host, T0 + s * SECOND, watts))
        if s % 2 == 0:
            events.append(tick(T0 + s * SECOND))
    return events


# -- the sum ----------------------------------------------------------------------------------------


def test_without_meters_a_row_is_the_sum_of_its_modelled_servers() -> None:
    row = make_row(4)
    (rolled,) = rollups(row, [*everyone(row, T0), tick(T0)])
    assert rolled.basis == "sum"
    assert rolled.power_w == pytest.approx(sum(host.wall_w(8 * 200.0) for host in row.hosts))
    assert rolled.summed_w == rolled.power_w
    assert (rolled.coverage_ratio, rolled.estimated_w, rolled.verdicts) == (1.0, 0.0, {})
    assert (rolled.hosts_known, rolled.hosts_total, rolled.known_at) == (4, 4, T0)
    assert rolled.rack_w == pytest.approx([2 * row.hosts[0].wall_w(1600.0)] * 2)
    assert rolled.hottest_c == 50.0


def test_a_servers_own_wall_power_is_preferred_to_the_model() -> None:
    row = make_row(2)
    (rolled,) = rollups(row, [*everyone(row, T0), wall(row.racks[0], T0, [3000.0, 3100.0]), tick(T0)])
    assert rolled.power_w == 6100.0
    assert rolled.upper_w == 6100.0


def test_the_power_of_a_tick_is_the_mean_of_its_samples() -> None:
    row = make_row(1)
    host = row.hosts[0]
    events = [frame(host, T0 + 500, [100.0] * 8), frame(host, T0 + 1500, [300.0] * 8), tick(T0 + 2000)]
    assert rollups(row, events)[0].power_w == pytest.approx(host.wall_w(1600.0))


def test_a_backlog_does_not_dilute_what_is_read_now() -> None:
    row = make_row(1)
    backlog: list[Event] = [frame(row.hosts[0], T0 + s * SECOND, [100.0] * 8) for s in range(60)]
    events = [*backlog, frame(row.hosts[0], T0 + 60_000, [350.0] * 8), tick(T0 + 60_000)]
    rolled = rollups(row, events)[0]
    assert rolled.power_w == pytest.approx(row.hosts[0].wall_w(8 * 225.0))  # the last two seconds


def test_the_two_power_fields_are_never_mixed_in_a_mean() -> None:
    row = make_row(1)
    host = row.hosts[0]
    averaged = frame(host, T0, [100.0] * 8, averaged=True)
    events = [averaged, frame(host, T0 + 1000, [300.0] * 8), tick(T0 + 1000)]
    assert rollups(row, events)[0].power_w == pytest.approx(host.wall_w(2400.0))


def test_of_few_instants_the_averaged_field_says_more() -> None:
    row = make_row(1)
    host = row.hosts[0]

    def both(instants: int, averages: tuple[float | None, ...]) -> float | None:
        said = msgspec.structs.replace(
            frame(host, T0, [380.0] * 8),
            power_w=((380.0,) * 8,) * instants,
            power_average_w=(averages,) * instants,
            id="",
        )
        return rollups(row, [said, tick(T0)])[0].power_w

    assert both(1, (200.0,) * 8) == pytest.approx(host.wall_w(1600.0))
    assert both(4, (200.0,) * 8) == pytest.approx(host.wall_w(8 * 380.0)), "four instants span the tick"
    assert both(1, (None,) + (200.0,) * 7) == pytest.approx(host.wall_w(8 * 380.0)), "never one of each"


def test_how_a_hosts_samples_are_cut_into_frames_changes_nothing() -> None:
    row = make_row(1)
    host = row.hosts[0]
    powers = [200.0] * 12 + [600.0] * 8  # twenty samples in the two seconds before the tick; then it jumps

    def cut_after(*cuts: int) -> PowerRollup:
        events: list[Event] = []
        for first, last in itertools.pairwise((0, *cuts, 20)):
            at = T0 - 100 * (20 - last)
            samples = tuple((watts,) * 8 for watts in powers[first:last])
            events.append(
                msgspec.structs.replace(
                    frame(host, at, [0.0] * 8),
                    offsets_ms=tuple(range(-100 * (last - first - 1), 1, 100)),
                    power_w=samples,
                    power_average_w=((123.0,) * 8,) * len(samples),
                    id="",
                )
            )
        return rollups(row, [*events, tick(T0)])[0]

    expected = pytest.approx(host.wall_w(8 * 360.0))
    assert cut_after(10).power_w == expected, "a frame each second"
    assert cut_after(10, 13).power_w == expected, "one of three samples at once, and the tick's with the rest"
    assert cut_after(10, 13, 14, 15).power_w == expected
    assert cut_after().power_w == expected, "one frame of two seconds"


def test_of_a_long_frame_only_the_samples_within_the_mean_count() -> None:
    row = make_row(1)
    host = row.hosts[0]
    said = msgspec.structs.replace(
        frame(host, T0, [0.0] * 8),
        offsets_ms=tuple(range(-5_900, 1, 100)),
        power_w=((600.0,) * 8,) * 40 + ((200.0,) * 8,) * 20,
        id="",
    )
    assert rollups(row, [said, tick(T0)])[0].power_w == pytest.approx(host.wall_w(1600.0))


def test_a_second_source_of_a_host_is_withheld_until_the_first_is_stale() -> None:
    row = make_row(1)
    host, events = row.hosts[0], list[Event]()
    for s in range(0, 30, 2):
        at = T0 + s * SECOND
        other = msgspec.structs.replace(frame(host, at - 500, [380.0 - s] * 8), source="other", id="")
        events += [frame(host, at, [200.0 + s] * 8)] if s < 10 else []
        events += [other, tick(at)]
    said = rollups(row, events)
    first_w = [host.wall_w(8 * (200.0 + s)) for s in range(0, 10, 2)]
    assert [rolled.power_w for rolled in said[:5]] == pytest.approx(first_w)
    assert [rolled.verdicts.get("rival", 0) for rolled in said] == [1] * 8 + [0] * 7
    last = said[-1]
    assert last.power_w == pytest.approx(host.wall_w(8 * (380.0 - 28)))
    assert last.verdicts == {}


def test_a_host_with_more_boards_than_it_is_said_to_have_is_not_wholly_known() -> None:
    row = make_row(1, gpus=2)
    host = row.hosts[0]
    named = ("A", "B", "C", "D")
    seen = frame(host, T0, [300.0] * 4, gpus=named)
    back = frame(host, T0 + 2000, [300.0] * 2, gpus=named[:2])
    more, as_said = rollups(row, [seen, tick(T0), back, tick(T0 + 2000)])
    assert (more.basis, more.coverage_ratio, more.hosts_known, more.verdicts) == (
        "unknown",
        0.5,
        0,
        {"unplaced": 2},
    )
    assert more.upper_w >= 4 * 300.0
    assert (as_said.basis, as_said.coverage_ratio, as_said.hosts_known) == ("sum", 1.0, 1)


def test_the_cause_names_the_readings_used_and_no_more_than_is_useful() -> None:
    row = make_row(CAUSES_AT_MOST + 6)
    frames = everyone(row, T0)
    assert rollups(row, [*frames, tick(T0)])[0].cause == tuple(f.id for f in frames[:CAUSES_AT_MOST])


def test_a_meters_rollup_rests_on_the_meters() -> None:
    row = make_row(4, meters=(METER, OTHER_METER))
    meters = [feed(METER, T0 - 500, 5_000.0), feed(OTHER_METER, T0, 5_500.0)]
    (rolled,) = rollups(row, [*everyone(row, T0), *meters, tick(T0)])
    assert (rolled.basis, rolled.power_w, rolled.metered_w) == ("meter", 10_500.0, 10_500.0)
    assert rolled.cause == tuple(meter.id for meter in meters)
    assert rolled.known_at == T0 - 500
    assert rolled.coverage_ratio == 1.0


def test_one_stale_meter_of_two_is_no_sum_of_the_row() -> None:
    row = make_row(4, meters=(METER, OTHER_METER))
    now = T0 + 12 * SECOND
    events: list[Event] = [feed(METER, T0, 5_000.0), *steady(row, 10), feed(OTHER_METER, now, 5_000.0)]
    rolled = rollups(row, [*events, *everyone(row, now), tick(now)])[-1]
    assert (rolled.basis, rolled.metered_w) == ("sum", None)
    assert rolled.verdicts == {"stale": 1}


def test_meters_alone_make_a_row_known() -> None:
    row = make_row(4, meters=(METER,))
    (rolled,) = rollups(row, [feed(METER, T0, 9_000.0), tick(T0)])
    assert (rolled.basis, rolled.power_w, rolled.upper_w) == ("meter", 9_000.0, 9_000.0)
    assert (rolled.hosts_known, rolled.rack_w) == (0, (None, None))
    assert rolled.verdicts == {"silent": 4}


# -- lies -------------------------------------------------------------------------------------------


def test_a_meter_below_what_the_gpus_alone_draw_is_not_believed() -> None:
    row = make_row(4, meters=(METER,))
    (rolled,) = rollups(row, [*everyone(row, T0, 300.0), feed(METER, T0, 5_000.0), tick(T0)])
    assert rolled.basis == "sum", "9.6 kW of GPU power cannot pass a meter that reads 5 kW"
    assert rolled.power_w == pytest.approx(4 * row.hosts[0].wall_w(2400.0))
    assert rolled.metered_w is None
    assert rolled.verdicts == {"contradicted": 1}


def test_a_contradicted_meter_leaves_the_row_unknown_when_too_few_hosts_are_known() -> None:
    row = make_row(4, meters=(METER,))
    (rolled,) = rollups(row, [*everyone(row, T0, 390.0)[:3], feed(METER, T0, 1_000.0), tick(T0)])
    assert (rolled.basis, rolled.power_w) == ("unknown", None)


def test_a_wall_reading_below_the_hosts_own_gpus_is_not_believed() -> None:
    row = make_row(2)
    events = [*everyone(row, T0, 300.0), wall(row.racks[0], T0, [900.0, 4000.0]), tick(T0)]
    (rolled,) = rollups(row, events)
    assert rolled.power_w == pytest.approx(row.hosts[0].wall_w(2400.0) + 4000.0)
    assert rolled.verdicts == {"contradicted": 1}


@pytest.mark.parametrize(
    ("reading", "verdict"),
    [
        (0.0, "impossible"),  # zero-filled: a powered board draws something
        (-1.0, "impossible"),
        (math.inf, "impossible"),
        (601.0, "impossible"),  # above 1.5 times 400 W
        (math.nan, "lost"),
        (None, "lost"),
    ],
)
def test_a_reading_that_no_board_can_have_is_unknown(reading: float | None, verdict: str) -> None:
    row = make_row(1)
    (rolled,) = rollups(row, [frame(row.hosts[0], T0, [reading] + [200.0] * 7), tick(T0)])
    assert rolled.verdicts == {verdict: 1}
    assert rolled.coverage_ratio == pytest.approx(7 / 8)
    assert rolled.estimated_w == pytest.approx(200.0), "the missing board counts as the mean of the others"


@pytest.mark.parametrize("reading", [0.0, -5.0, math.inf, math.nan, None])
def test_a_meter_that_says_nothing_possible_is_not_used(reading: float | None) -> None:
    row = make_row(4, meters=(METER,))
    (rolled,) = rollups(row, [*everyone(row, T0), feed(METER, T0, reading), tick(T0)])
    assert rolled.basis == "sum"
    assert sum(rolled.verdicts.values()) == 1


def test_zero_watts_behind_an_open_breaker_is_a_reading() -> None:
    row = make_row(4, meters=(METER, OTHER_METER))
    meters = [feed(METER, T0, 0.0, breaker_closed=False), feed(OTHER_METER, T0, 9_000.0)]
    (rolled,) = rollups(row, [*meters, tick(T0)])
    assert (rolled.basis, rolled.power_w, rolled.verdicts["opened"]) == ("meter", 9_000.0, 1)


def test_a_faulty_board_is_lost_though_it_shows_a_number() -> None:
    row = make_row(1)
    faults = ("", "", "fell off the bus", "", "", "", "", "")
    (rolled,) = rollups(row, [frame(row.hosts[0], T0, [200.0] * 8, faults=faults), tick(T0)])
    assert rolled.verdicts == {"lost": 1}


def test_a_board_that_repeats_its_power_while_its_load_moves_is_stuck() -> None:
    row = make_row(1)
    host, noise, events = row.hosts[0], random.Random(2), list[Event]()
    for s in range(60):
        watts = [321.125] + [200 + noise.uniform(-5, 5) for _ in range(7)]
        events += [frame(host, T0 + s * SECOND, watts, utilisation=0.9 if s % 20 < 10 else 0.1)]
        events += [tick(T0 + s * SECOND)] if s % 2 else []
    stuck = [rolled.verdicts.get("stuck", 0) for rolled in rollups(row, events)]
    rules = QualityRules()
    assert stuck[-1] == 1
    assert stuck.index(1) * 2 * SECOND == pytest.approx(rules.still_ms, abs=6 * SECOND)


def test_a_board_at_rest_may_repeat_its_power_for_ever() -> None:
    row = make_row(1)
    host, noise, events = row.hosts[0], random.Random(2), list[Event]()
    for s in range(300):
        watts = [63.0] + [200 + noise.uniform(-90, 90) for _ in range(7)]
        idle = frame(host, T0 + s * SECOND, watts, utilisation=0.0, mhz=210.0)
        events += [idle, tick(T0 + s * SECOND)]
    assert all(rolled.verdicts == {} for rolled in rollups(row, events))


def test_a_loaded_board_that_repeats_its_power_beside_boards_that_move_is_stuck() -> None:
    row = make_row(1)
    host, events = row.hosts[0], list[Event]()
    for s in range(60):
        watts = [321.0] + [300.0 + 90 * math.sin(s / 5)] * 7
        events += [frame(host, T0 + s * SECOND, watts), tick(T0 + s * SECOND)]
    assert rollups(row, events)[-1].verdicts == {"stuck": 1}


def test_a_meter_that_repeats_itself_while_the_row_moves_is_stuck() -> None:
    row = make_row(4, meters=(METER,))
    events: list[Event] = []
    for s in range(60):
        at = T0 + s * SECOND
        events += [*everyone(row, at, 200 + 100 * math.sin(s / 5)), feed(METER, at, 20_000.0), tick(at)]
    rolled = rollups(row, events)[-1]
    assert (rolled.basis, rolled.verdicts) == ("sum", {"stuck": 1})


def test_one_of_two_meters_that_repeats_itself_takes_both_out_of_the_sum() -> None:
    other = f"{METER}-b"
    row = make_row(4, meters=(METER, other))
    events: list[Event] = []
    for s in range(60):
        at = T0 + s * SECOND
        moving_w = 10_000.0 + 50 * math.sin(s / 5)
        events += [*everyone(row, at, 200 + 100 * math.sin(s / 5)), feed(METER, at, 10_000.0)]
        events += [feed(other, at, moving_w), tick(at)]
    rolled = rollups(row, events)[-1]
    assert (rolled.basis, rolled.metered_w, rolled.verdicts) == ("sum", None, {"stuck": 1})


def with_meter(row: Row, share_of_sum: Sequence[float | None]) -> list[PowerRollup]:
    """What is said while the meter reads these shares of the sum of hosts, a tick each; None: no frames."""
    summed_w, events = 4 * row.hosts[0].wall_w(8 * 300.0), list[Event]()
    for i, share in enumerate(share_of_sum):
        at = T0 + i * 2 * SECOND
        frames = [] if share is None else everyone(row, at, 300.0 + i * 1e-4)
        events += [*frames, feed(METER, at, summed_w * (share or 0.8) + i * 1e-3), tick(at)]
    return rollups(row, events)


def test_a_meter_that_reads_a_fifth_low_is_not_believed_beside_hosts_that_know_better() -> None:
    row = make_row(4, meters=(METER,))
    summed_w = 4 * row.hosts[0].wall_w(8 * 300.0)
    said = with_meter(row, [1.0, *[0.8] * 5])
    assert [rolled.basis for rolled in said] == ["meter"] * 3 + ["sum"] * 3, "the third tick in a row"
    assert all(rolled.power_w == pytest.approx(summed_w, rel=1e-4) for rolled in said[3:])
    assert all(rolled.upper_w >= summed_w for rolled in said), "from the first tick on"
    assert [rolled.verdicts.get("contradicted", 0) for rolled in said] == [0, 0, 0, 1, 1, 1]


def test_a_meter_within_what_the_model_of_a_server_may_err_is_believed() -> None:
    row = make_row(4, meters=(METER,))
    shares = [0.89, 1.3, *[0.89] * 10, 0.8, 0.8, 1.0, 0.8, 0.8, 1.0]
    assert {rolled.basis for rolled in with_meter(row, shares)} == {"meter"}


def test_a_contradicted_meter_is_believed_again_once_it_has_agreed_for_as_long() -> None:
    row = make_row(4, meters=(METER,))
    said = with_meter(row, [*[0.8] * 4, 1.0, 1.0, 0.8, 1.0, 1.0, 1.0])
    assert [rolled.basis for rolled in said] == ["meter"] * 2 + ["sum"] * 7 + ["meter"]


def test_a_contradicted_meter_does_not_return_because_the_hosts_fall_silent() -> None:
    row = make_row(4, meters=(METER,))
    assert [r.basis for r in with_meter(row, [*[0.8] * 4, *[None] * 5])][-2:] == ["unknown"] * 2


# -- what is not known ------------------------------------------------------------------------------


def test_with_more_than_a_fifth_missing_no_number_stands_in() -> None:
    row = make_row(10)
    events = everyone(row, T0)
    (known,) = rollups(row, [*events[:8], tick(T0)])
    (unknown,) = rollups(row, [*events[:7], tick(T0)])
    assert known.basis == "sum"
    assert known.power_w == pytest.approx(10 * row.hosts[0].wall_w(1600.0)), "two hosts like the other eight"
    assert known.estimated_w == pytest.approx(2 * row.hosts[0].wall_w(1600.0))
    assert (unknown.basis, unknown.power_w, unknown.summed_w, unknown.known_at) == (
        "unknown",
        None,
        None,
        None,
    )
    most_w = 7 * (1600.0 + 3300.0) + 3 * row.hosts[0].rated_w
    assert unknown.upper_w == pytest.approx(most_w), "what is missing counts at its nameplate"


def test_a_missing_host_is_estimated_like_the_hosts_of_its_priority() -> None:
    row = make_row(12)  # even hosts serve high priority, odd ones low
    events = [frame(host, T0, [380.0 if i % 2 == 0 else 90.0] * 8) for i, host in enumerate(row.hosts)]
    (rolled,) = rollups(row, [*events[1:], tick(T0)])
    assert rolled.estimated_w == pytest.approx(row.hosts[0].wall_w(8 * 380.0))


def test_readings_go_stale_and_the_row_with_them() -> None:
    row = make_row(2)
    last = T0 + 10 * SECOND
    budget = QualityRules().gpu_stale_ms
    fresh, stale = rollups(row, [*steady(row, 10), tick(last + budget), tick(last + budget + 1)])[-2:]
    assert (fresh.basis, fresh.known_at) == ("sum", last)
    assert (stale.basis, stale.power_w, stale.verdicts) == ("unknown", None, {"stale": 16})
    assert stale.upper_w == row.rated_w


def test_a_row_never_heard_of_is_unknown_and_may_draw_its_nameplate() -> None:
    row = make_row(3)
    (rolled,) = rollups(row, [tick(T0)])
    assert (rolled.power_w, rolled.coverage_ratio, rolled.upper_w) == (None, 0.0, row.rated_w)
    assert rolled.verdicts == {"silent": 3}
    assert rolled.hottest_c is None


def test_a_frame_whose_rows_have_the_wrong_length_is_lost_not_shifted() -> None:
    row = make_row(1)
    broken = frame(row.hosts[0], T0, [200.0] * 7, gpus=tuple(f"GPU-{i}" for i in range(8)))
    (rolled,) = rollups(row, [broken, tick(T0)])
    assert (rolled.power_w, rolled.verdicts) == (None, {"lost": 8})


def test_boards_keep_their_place_when_one_falls_out_of_the_frame() -> None:
    row = make_row(1, gpus=4)
    host = row.hosts[0]
    names = ("A", "B", "C", "D")
    events: list[Event] = [frame(host, T0, [100.0, 200.0, 300.0, 350.0], gpus=names), tick(T0)]
    events += [frame(host, T0 + 1000, [100.0, 300.0, 350.0], gpus=("A", "C", "D")), tick(T0 + 1000)]
    events += [frame(host, T0 + 7000, [100.0, 300.0, 350.0], gpus=("A", "C", "D")), tick(T0 + 7000)]
    first, second, third = rollups(row, events)
    assert first.power_w == second.power_w, "B's last reading is still fresh"
    assert second.verdicts == {"lost": 1}
    assert third.coverage_ratio == 0.75


def test_a_board_too_many_is_counted_and_a_swapped_one_takes_the_free_place() -> None:
    row = make_row(1, gpus=2)
    host = row.hosts[0]
    events: list[Event] = [frame(host, T0, [100.0, 200.0], gpus=("A", "B")), tick(T0)]
    events += [frame(host, T0 + 1000, [100.0, 200.0, 300.0], gpus=("A", "B", "C")), tick(T0 + 1000)]
    events += [frame(host, T0 + 2000, [100.0, 300.0], gpus=("A", "C")), tick(T0 + 2000)]
    verdicts = [rolled.verdicts for rolled in rollups(row, events)]
    assert verdicts == [{}, {"unplaced": 1}, {}]


# -- clocks -----------------------------------------------------------------------------------------


def test_a_clock_that_runs_ahead_counts_as_read_at_the_tick() -> None:
    row = make_row(1)
    (rolled,) = rollups(row, [frame(row.hosts[0], T0 + 60_000, [200.0] * 8), tick(T0)])
    assert (rolled.known_at, rolled.verdicts) == (T0, {"future": 1})


def test_repeated_and_late_frames_change_nothing_but_their_count() -> None:
    row = make_row(2)
    events = steady(row, 20)
    again = [*events[:-1], *events[:4], *events[5:9], events[-1]]
    plain, noisy = rollups(row, events), rollups(row, again)
    assert noisy[:-1] == plain[:-1]
    assert noisy[-1].power_w == plain[-1].power_w
    assert noisy[-1].verdicts == {"late": 8}, "eight frames"


def test_a_host_whose_clock_is_set_back_for_good_is_known_again_within_ten_seconds() -> None:
    row = make_row(1)
    events: list[Event] = steady(row, 20)
    for s in range(21, 41):  # the host's clock now says an hour less
        events.append(frame(row.hosts[0], T0 + s * SECOND - 3_600_000, [250.0 + s / 10] * 8))
        events += [tick(T0 + s * SECOND)] if s % 2 == 0 else []
    after = rollups(row, events)[10:]
    known = [rolled.power_w is not None for rolled in after]
    assert known[-1]
    lost_from, back_at = known.index(False), len(known) - known[::-1].index(False)
    assert (back_at - lost_from) * 2 * SECOND <= 10 * SECOND
    assert sum(rolled.verdicts.get("set_back", 0) for rolled in after) == 1


def test_a_backlog_delivered_again_is_no_clock_set_back() -> None:
    row = make_row(1)
    history = [frame(row.hosts[0], T0 + s * SECOND, [390.0] * 8) for s in range(60)]
    events: list[Event] = [*history, tick(T0 + 59_000)]
    for i, s in enumerate(range(61, 81, 2)):  # the host is silent; a broker repeats its past
        events += [*history[6 * i : 6 * i + 6], tick(T0 + s * SECOND)]
    after = rollups(row, events)[1:]
    assert [rolled.power_w for rolled in after[3:]] == [None] * (len(after) - 3)
    assert not any("set_back" in rolled.verdicts for rolled in after)


def test_one_frame_from_the_far_future_does_not_silence_its_host() -> None:
    row = make_row(1)
    events = steady(row, 20)
    events.insert(5, frame(row.hosts[0], T0 + 10**10, [200.0] * 8))
    unknown = [rolled.at for rolled in rollups(row, events) if rolled.power_w is None]
    assert unknown == [T0 + 10 * SECOND, T0 + 12 * SECOND], "late at the pace of time for 6 s is believed"


def test_every_tick_of_the_row_is_answered_once_and_no_other() -> None:
    row = make_row(1)
    other = Tick(at=T0 + 1, source="loop", subject="ams1/row-b")
    events = [*everyone(row, T0), tick(T0), tick(T0), other, tick(T0 - 1), tick(T0 - 3_600_000)]
    assert [rolled.at - T0 for rolled in rollups(row, events)] == [0, 0, -1, -3_600_000]


def test_when_the_loops_own_clock_is_set_back_readings_of_the_future_are_unknown() -> None:
    row = make_row(1)
    back = T0 - 3_600_000
    after = rollups(row, [*steady(row, 10), *(tick(back + s * 2 * SECOND) for s in range(8))])[5:]
    assert [rolled.power_w for rolled in after] == [None] * 8


@pytest.mark.parametrize("step_ms", [-3_600_000, -30_000, -3_000, 3_600_000])
def test_when_all_clocks_of_a_row_are_set_it_is_known_again_within_two_ticks(step_ms: int) -> None:
    row = make_row(2, meters=(METER,))
    events: list[Event] = []
    for s in range(1, 61):
        at = T0 + s * SECOND + (step_ms if s > 20 else 0)
        events += [*everyone(row, at, 200 + s / 10), wall(row.racks[0], at, [3000.0 + s, 3001.0 + s])]
        events += [feed(METER, at, 6000.0 + s)] + ([tick(at)] if s % 2 == 0 else [])
    after = rollups(row, events)[10:]
    assert [rolled.basis for rolled in after[2:]] == ["meter"] * 18
    assert all(rolled.at - 1 <= (rolled.known_at or 0) <= rolled.at for rolled in after[2:])
    assert [rolled.verdicts for rolled in after[2:]] == [{}] * 18
    assert after[-1].hosts_known == 2


def test_hosts_whose_clocks_are_right_are_heard_after_the_loops_own_clock_is_set_back() -> None:
    row = make_row(1)
    events: list[Event] = steady(row, 20)
    for s in range(21, 41):
        events.append(frame(row.hosts[0], T0 + s * SECOND, [250.0 + s / 10] * 8))
        events += [tick(T0 + s * SECOND - 3_600_000)] if s % 2 == 0 else []
    after = rollups(row, events)[10:]
    assert [rolled.basis for rolled in after] == ["sum"] * 10


# -- properties -------------------------------------------------------------------------------------

readings = st.one_of(
    st.none(), st.just(0.0), st.just(math.nan), st.floats(-10, 700, allow_nan=False), st.floats(60, 400)
)


@st.composite
def plants(draw: st.DrawFn) -> tuple[Row, list[Event]]:
    """A small row and a stream of whatever its devices may say, in any order of time."""
    row = make_row(3, gpus=2, meters=(METER,) if draw(st.booleans()) else ())
    events: list[Event] = []
    for step in range(draw(st.integers(1, 12))):
        now = T0 + step * 2000
        for host in row.hosts:
            for _ in range(draw(st.integers(0, 2))):
                at = now + draw(st.sampled_from([-7000, -1500, -500, 0, 300, 5000]))
                events.append(
                    frame(
                        host,
                        at,
                        draw(st.lists(readings, min_size=2, max_size=2)),
                        averaged=draw(st.booleans()),
                    )
                )
        if draw(st.booleans()):
            events.append(wall(row.racks[0], now, [draw(readings), draw(st.floats(500, 5000))]))
        if draw(st.booleans()):
            events.append(feed(METER, now, draw(st.one_of(readings, st.floats(1000, 9000)))))
        if draw(st.booleans()) and events:
            events.append(events[draw(st.integers(0, len(events) - 1))])
        events.append(tick(now))
    return row, events


@given(plants(), st.data())
def test_where_the_stream_is_cut_changes_nothing(plant: tuple[Row, list[Event]], data: st.DataObject) -> None:
    row, events = plant
    cuts = data.draw(st.lists(st.integers(0, len(events))))
    assert fold(Rollup(row), events, cuts) == fold(Rollup(row), events)


@given(plants())
def test_nothing_unknown_becomes_a_number(plant: tuple[Row, list[Event]]) -> None:
    row, events = plant
    for rolled in rollups(row, events):
        assert (rolled.power_w is None) == (rolled.basis == "unknown")
        assert (rolled.known_at is None) == (rolled.basis == "unknown")
        for watts in (rolled.power_w, rolled.metered_w, rolled.summed_w, *rolled.rack_w):
            assert watts is None or (math.isfinite(watts) and watts > 0)
        if rolled.power_w is not None:
            assert rolled.upper_w >= rolled.power_w - rolled.estimated_w - 1e-3 * (1 + row.rated_w)
        if rolled.basis == "sum":
            assert rolled.coverage_ratio >= 0.8 - 1e-6


@given(plants())
def test_coverage_and_the_upper_bound_are_what_a_count_by_hand_gives(plant: tuple[Row, list[Event]]) -> None:
    """Against a plain reading of the rules, one host and one board at a time, first tick only."""
    row, events = plant
    first = next(i for i, event in enumerate(events) if isinstance(event, Tick))
    now, heard = events[first].at, events[:first]
    share_w = upper_w = 0.0
    for host in row.hosts:
        boards = _by_hand(host, [e for e in heard if isinstance(e, GpuFrame) and e.subject == host.path], now)
        gpus_w, n = sum(w for w in boards if w), sum(w is not None for w in boards)
        walls = [e for e in heard if not isinstance(e, GpuFrame) and host.path in getattr(e, "hosts", ())]
        wall_w = walls[0].power_w[walls[0].hosts.index(host.path)] if walls else None  # type: ignore[attr-defined]
        if wall_w is None or not (0.001 <= wall_w <= 1.5 * host.rated_w) or wall_w < 0.95 * gpus_w:
            wall_w = None
        share_w += host.rated_w * (1.0 if wall_w is not None else n / 2)
        if wall_w is not None:
            upper_w += wall_w
        elif n == 0:
            upper_w += host.rated_w
        else:
            most_w = min(host.rated_w, gpus_w + (2 - n) * host.sku.tdp_w + host.overhead_max_w)
            upper_w += max(most_w, host.wall_w(gpus_w * 2 / n))
    rolled = rollups(row, events[: first + 1])[0]
    if rolled.basis != "meter":
        assert rolled.coverage_ratio == pytest.approx(share_w / row.rated_w, abs=1e-5)
        assert rolled.upper_w == pytest.approx(upper_w, abs=0.01)


def _by_hand(host: Host, frames: list[GpuFrame], now: int) -> list[float | None]:
    """Each board's trusted power at the first tick, by the rules in words."""
    taken: list[GpuFrame] = []
    for f in frames:
        if taken and f.at <= max(t.at for t in taken):
            continue
        if taken and bool(taken[-1].power_w) != bool(f.power_w):
            kept: list[GpuFrame] = []
        else:
            kept = [t for t in taken if t.at > f.at - 2000]
        taken = [*kept, f]
    if not taken or min(taken[-1].at, now) < now - 5000:
        return [None] * host.gpu_count
    boards: list[float | None] = []
    for g in range(host.gpu_count):
        seen = [
            w for f in taken if (w := f.best_power_w[0][g]) is not None and 0.001 <= w <= 1.5 * host.sku.tdp_w
        ]
        boards.append(sum(seen) / len(seen) if seen else None)
    return boards


def test_a_row_that_only_its_meters_tell_of_is_summed_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hosts are worked out once; then some of them speak after all, and fall silent again."""
    row = make_row(4, meters=(METER,))
    chance = random.Random(2)
    events: list[Event] = []
    for s in range(2, 400, 2):
        at = T0 + s * SECOND
        if s % 90:
            events.append(feed(METER, at, chance.choice((5000.0, 5001.0, None, 0.0))))
        if 200 < s < 230:
            events.extend(everyone(row, at)[:2])
        events.append(tick(at - (20 * SECOND if s == 300 else 0)))
    kept = rollups(row, events)
    monkeypatch.setattr(Rollup, "_silent_hosts", lambda self, state: None)
    assert kept == rollups(row, events)
    assert kept[-1].verdicts["stale"] or kept[0].verdicts["silent"]
