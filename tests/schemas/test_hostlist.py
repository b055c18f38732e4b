"""Hostlists: a short pattern names exactly what an operator means, or is refused with the reason."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.hostlist import expand, is_name


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("r01", ["r01"]),
        ("r[01-03]", ["r01", "r02", "r03"]),
        ("h[1-2,4]", ["h1", "h2", "h4"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("n[0-2]", ["n0", "n1", "n2"]),
        ("n[008-010]", ["n008", "n009", "n010"]),
        ("a1,b[2-3]", ["a1", "b2", "b3"]),
        ("r[1-2]h[1-2]", ["r1h1", "r1h2", "r2h1", "r2h2"]),
        ("[1-2]u", ["1u", "2u"]),
        ("row-b.rack_[7]", ["row-b.rack_7"]),
    ],
)
def test_a_pattern_stands_for_its_names_in_order(pattern: str, names: list[str]) -> None:
    assert list(expand(pattern)) == names


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("", "has an empty part"),
        ("r[01-", "has a bracket without its partner"),
        ("r01-13]", "has a bracket without its partner"),
        ("r[[1]]", "brackets inside brackets"),
        ("r]1[", "brackets inside brackets"),
        ("r[]", "has nothing between its brackets"),
        ("r[a-c]", "has 'a-c' between brackets, where numbers and ranges like 01-13 stand"),
        ("r[1-]", "has '1-' between brackets"),
        ("r[1--2]", "has '1--2' between brackets"),
        ("r[\u0661]", "between brackets"),
        ("r[13-01]", "has a range 13-01 that runs backwards"),
        ("r[01-3]", "has a range 01-3 whose ends differ in digits"),
        ("r[1-03]", "has a range 1-03 whose ends differ in digits"),
        ("r1,,r2", "has an empty part"),
        ("r1,", "has an empty part"),
        ("r1, r2", "gives the name ' r2'"),
        ("row b", "gives the name 'row b'"),
        ("r/1", "gives the name 'r/1'"),
        ("-r1", "gives the name '-r1'"),
        ("r[1,1]", "names r1 twice"),
        ("r[1-3],r2", "names r2 twice"),
        ("r[1-999999999]", "stands for more than 10000 names"),
        ("r[1-999]h[1-999]", "stands for more than 10000 names"),
    ],
)
def test_a_bad_pattern_is_refused_with_what_is_wrong(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        expand(pattern)


@given(first=st.integers(0, 999), count=st.integers(1, 50), width=st.integers(1, 4))
def test_a_range_has_every_number_once_with_its_zeros(first: int, count: int, width: int) -> None:
    last = first + count - 1
    width = max(width, len(str(last)))
    names = expand(f"h[{first:0{width}}-{last:0{width}}]")
    assert [int(name[1:]) for name in names] == list(range(first, last + 1))
    assert {len(name) for name in names} == {1 + width}


@given(text=st.text(max_size=12))
def test_any_text_is_names_or_refused(text: str) -> None:
    try:
        names = expand(text)
    except ValueError:
        return
    assert names
    assert all(is_name(name) for name in names)
