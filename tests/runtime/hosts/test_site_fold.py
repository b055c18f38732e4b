"""A site's power where its rows' summaries are read: summed once a period, by whoever reads them."""

from __future__ import annotations

from typing import NamedTuple

from support.two_rows import TWO_ROWS

from runtime.hosts.site_fold import LOOK_BACK, SUMMARIES, SiteFold
from schemas import codec
from schemas.envelope import Event, Tick
from schemas.instants import SECOND, Instant
from schemas.samples import RowSummary, SitePower
from schemas.site_file import read_site

SITE = read_site(TWO_ROWS, "two-rows")
PERIOD = 2 * SECOND
NOW: Instant = 1_700_000_000_000
"""On the grid of the period."""


class Record(NamedTuple):
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int = NOW


def record(offset: int, event: Event) -> Record:
    return Record(offset, SITE.name.encode(), codec.encode(event))


def summary(row: str, power_w: float, at: Instant) -> RowSummary:
    return RowSummary(
        at=at,
        source=f"streams/site/{row}",
        subject=row,
        power_w=power_w,
        upper_w=power_w + 100.0,
        coverage_ratio=1.0,
        mode="U",
        shortfall_w=0.0,
        refusal="",
        hottest_c=None,
    )


def owned() -> SiteFold:
    fold = SiteFold(SITE, PERIOD)
    fold.begin()
    return fold


def said(fold: SiteFold, now: Instant) -> SitePower:
    power = fold.tick(now)
    assert power is not None
    return power


def test_a_site_is_summed_once_a_period_from_the_latest_beat_of_each_row() -> None:
    """Rows beat at moments of their own: one just before the period turns, one long before."""
    fold, (early, late) = owned(), (row.path for row in SITE.rows)
    fold.take([record(0, summary(early, 4_000.0, NOW - 1_900)), record(1, summary(late, 5_000.0, NOW - 1))])
    power = said(fold, NOW + 3)
    assert (power.power_w, power.at, power.silent) == (9_000.0, NOW, ())
    fold.take([record(2, summary(early, 6_000.0, NOW + 100))])
    assert fold.tick(NOW + 110) is None
    assert said(fold, NOW + PERIOD).power_w == 11_000.0


def test_a_row_of_which_nothing_comes_is_silent_and_the_site_unknown() -> None:
    fold, (one, other) = owned(), (row.path for row in SITE.rows)
    fold.take([record(0, summary(one, 4_000.0, NOW))])
    power = said(fold, NOW)
    assert (power.power_w, power.known_w, power.silent) == (None, 4_000.0, (other,))
    assert said(fold, NOW + LOOK_BACK + PERIOD).silent == (one, other)


def test_only_whoever_reads_the_sites_partition_says_its_power_and_knows_nothing_of_before() -> None:
    fold = SiteFold(SITE, PERIOD)
    words = [record(n, summary(row.path, 4_000.0, NOW)) for n, row in enumerate(SITE.rows)]
    fold.take(words)
    assert fold.tick(NOW) is None
    fold.begin()
    assert said(fold, NOW).power_w is None, "what came before was another's to hear"
    fold.take(words)
    assert said(fold, NOW + PERIOD).power_w == 8_000.0
    fold.lose()
    assert fold.tick(NOW + 2 * PERIOD) is None


def test_what_is_no_summary_is_kept_whole_and_the_rest_counts() -> None:
    fold = owned()
    stray = codec.encode(Tick(at=NOW, source="x", subject=SITE.name))
    words = [record(n, summary(row.path, 4_000.0, NOW)) for n, row in enumerate(SITE.rows)]
    letters = fold.take([Record(7, None, b"{"), *words, Record(8, b"k", stray), Record(9, None, None)])
    assert [letter.payload for letter in letters] == [b"{", stray, b""]
    assert {letter.topic for letter in letters} == {SUMMARIES}
    assert said(fold, NOW).power_w == 8_000.0
