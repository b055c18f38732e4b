"""What is said of a site's power, and what is not."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from support.folds import fold
from support.rows import T0, make_row

from schemas.decisions import Decision
from schemas.envelope import Event, Tick
from schemas.instants import HOUR, SECOND
from schemas.samples import PowerRollup, RowSummary, SitePower
from schemas.topology import Site
from streams.site_power import SILENT_MS, SiteView, summarise

ROWS = ("ams1/row-a", "ams1/row-b", "ams1/row-c")
SITE = Site(
    name="ams1",
    rows=tuple(
        msgspec.structs.replace(make_row(hosts, budget_w=20_000.0 * hosts), path=path)
        for hosts, path in zip((2, 4, 2), ROWS, strict=True)
    ),
    power=(),
)
RATED_W = [row.rated_w for row in SITE.rows]
VIEW = SiteView(SITE)


def said(at: int, row: str = ROWS[0], power_w: float | None = 10_000.0, mode: str = "U") -> RowSummary:
    rollup = PowerRollup(
        at=at,
        source="streams/rollup",
        subject=row,
        power_w=power_w,
        upper_w=15_000.0,
        budget_w=40_000.0,
        coverage_ratio=1.0 if power_w is not None else 0.5,
        known_at=at,
        basis="sum",
        hottest_c=60.0,
    )
    decision = Decision(
        at=at,
        source=f"controller/capping/{row}",
        subject=row,
        policy="polca",
        mode=mode,
        since=at,
        desired=(),
        because="as it is",
        shortfall_w=5.0,
        refusal="" if power_w is not None else "too little is known",
    )
    return summarise(rollup, decision)


def tick(at: int) -> Tick:
    return Tick(at=at, source="runtime", subject="ams1")


def seen(*events: Event) -> list[SitePower]:
    out, _ = fold(VIEW, events)
    return [event for event in out if isinstance(event, SitePower)]


def everyone(at: int) -> list[RowSummary]:
    return [said(at, row) for row in ROWS]


def test_a_site_is_the_sum_of_its_rows() -> None:
    (power,) = seen(*everyone(T0), said(T0 + 1, ROWS[1], 12_000.0, "T1"), tick(T0 + 2))
    assert (power.power_w, power.known_w, power.upper_w) == (32_000.0, 32_000.0, 45_000.0)
    assert (power.budget_w, power.coverage_ratio, power.rows_total) == (160_000.0, 1.0, 3)
    assert (power.modes, power.silent, power.refusing) == ({"T1": 1, "U": 2}, (), 0)
    assert (power.shortfall_w, power.hottest_c, power.subject) == (15.0, 60.0, "ams1")


def test_a_silent_row_is_unknown_and_no_number_stands_in_for_it() -> None:
    late = T0 + SILENT_MS + 1
    before, after = seen(
        *everyone(T0), tick(T0 + SILENT_MS), said(late, ROWS[0]), said(late, ROWS[2]), tick(late)
    )
    assert before.silent == ()
    assert after.silent == (ROWS[1],)
    assert (after.power_w, after.known_w) == (None, 20_000.0)
    assert after.upper_w == 2 * 15_000.0 + RATED_W[1], "a silent row may draw its nameplate"
    assert after.coverage_ratio == (RATED_W[0] + RATED_W[2]) / sum(RATED_W)
    assert after.modes == {"U": 2}


def test_a_row_never_heard_of_is_silent_from_the_first_tick() -> None:
    (power,) = seen(tick(T0))
    assert power.silent == ROWS
    assert (power.power_w, power.known_w, power.coverage_ratio) == (None, 0.0, 0.0)
    assert (power.upper_w, power.hottest_c) == (sum(RATED_W), None)


def test_a_row_that_does_not_know_its_power_leaves_the_site_without_a_sum() -> None:
    (power,) = seen(*everyone(T0), said(T0 + 1, ROWS[1], None), tick(T0 + 2))
    assert (power.power_w, power.known_w, power.silent) == (None, 20_000.0, ())
    assert power.upper_w == 45_000.0, "the row knows its own bound"
    assert power.coverage_ratio == (RATED_W[0] + 0.5 * RATED_W[1] + RATED_W[2]) / sum(RATED_W)
    assert power.refusing == 1


def test_late_and_repeated_words_change_nothing() -> None:
    events = [*everyone(T0 + 10)]
    again = [*events, said(T0, ROWS[0], 1.0), *events, tick(T0 + 10)]
    assert seen(*again) == seen(*events, tick(T0 + 10))


def test_a_row_whose_clock_runs_ahead_is_not_known_for_longer() -> None:
    ahead = [said(T0 + HOUR, ROWS[0]), *(said(T0, row) for row in ROWS[1:])]
    ticks = [tick(T0), tick(T0 + SILENT_MS), tick(T0 + SILENT_MS + SECOND)]
    assert [power.silent for power in seen(*ahead, *ticks)] == [(), (), ROWS]


def test_a_row_is_heard_after_its_clock_was_set_back() -> None:
    back = T0 - HOUR
    again = [said(back + at, ROWS[0], 9_000.0) for at in range(0, 6_000, 2_000)]
    (power,) = seen(*everyone(T0), *again, tick(back + 4_000))
    assert power.known_w == 29_000.0


def test_words_of_rows_that_the_site_does_not_have_are_counted() -> None:
    first, second = seen(*everyone(T0), said(T0, "ams1/row-z"), tick(T0), tick(T0 + 1))
    assert (first.strangers, second.strangers) == (1, 0)
    assert first.power_w == 30_000.0


def test_what_others_say_passes_unread() -> None:
    beside = [Tick(at=T0, source="runtime", subject=ROWS[0]), said(T0, ROWS[0])]
    assert seen(*beside) == []


_words = st.builds(
    said,
    st.integers(T0, T0 + 30_000),
    st.sampled_from([*ROWS, "ams1/row-z"]),
    st.sampled_from([None, 1_000.0, 30_000.0]),
    st.sampled_from(["U", "T1", "B"]),
)


@given(
    st.lists(_words | st.builds(tick, st.integers(T0, T0 + 30_000)), max_size=40),
    st.lists(st.integers(0, 40), max_size=6),
)
def test_where_the_words_of_rows_are_cut_changes_nothing(events: Sequence[Event], cuts: list[int]) -> None:
    inside = [min(cut, len(events)) for cut in cuts]
    assert fold(VIEW, events, inside) == fold(VIEW, events)


@given(st.lists(_words | st.builds(tick, st.integers(T0, T0 + 30_000)), max_size=40))
def test_a_site_draws_at_least_what_is_known_and_never_less_than_its_rows_say(events: list[Event]) -> None:
    for power in seen(*events):
        assert (power.power_w is None) == (bool(power.silent) or power.coverage_ratio < 1.0)
        assert power.power_w in (None, power.known_w)
        assert sum(power.modes.values()) + len(power.silent) == power.rows_total
