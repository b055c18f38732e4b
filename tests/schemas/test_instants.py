"""Instants: whole milliseconds, written as ISO 8601 in UTC and read back exactly."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.instants import HOUR, MINUTE, SECOND, from_text, to_text

YEAR_2200 = 7_258_118_400_000


@given(at=st.integers(-YEAR_2200, YEAR_2200))
def test_an_instant_reads_back_from_its_text_to_the_millisecond(at: int) -> None:
    assert from_text(to_text(at)) == at


@given(one=st.integers(0, YEAR_2200), other=st.integers(0, YEAR_2200))
def test_texts_sort_as_the_instants_do(one: int, other: int) -> None:
    assert (to_text(one) < to_text(other)) == (one < other)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1970-01-01T00:00:00.000Z", 0),
        ("2026-03-01T12:00:00.250Z", 1_772_366_400_250),
        ("2026-03-01T13:00:00.250+01:00", 1_772_366_400_250),
        ("2026-03-01 12:00:00", 1_772_366_400_000),
        ("2026-03-01", 1_772_323_200_000),
        ("2026-03-01T12:00:00.2504Z", 1_772_366_400_250),
    ],
)
def test_times_are_read_in_any_zone_and_without_one_as_utc(text: str, at: int) -> None:
    assert from_text(text) == at


def test_an_instant_is_written_in_utc_with_milliseconds() -> None:
    assert to_text(1_772_366_400_250) == "2026-03-01T12:00:00.250Z"
    moment = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
    assert to_text(int(moment.timestamp()) * SECOND) == "2026-03-01T12:00:00.000Z"


@pytest.mark.parametrize("text", ["", "noon", "2026-13-01", "1772366400"])
def test_text_that_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a time; write it like 2026-03-01T12:00:00Z"):
        from_text(text)


def test_spans_are_in_milliseconds() -> None:
    assert (SECOND, MINUTE, HOUR) == (1_000, 60_000, 3_600_000)
