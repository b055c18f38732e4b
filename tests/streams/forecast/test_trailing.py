"""The quantiles of the last values are those of sorting them anew."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.forecast.trailing import Trailing


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(1, 20), st.floats(0.01, 0.999))
def test_it_agrees_with_sorting(values: list[float], size: int, q: float) -> None:
    trailing = Trailing(size)
    for value in values:
        trailing.push(value)
    kept = sorted(values[-size:])
    assert len(trailing) == len(kept)
    assert trailing.quantile(q) == kept[min(len(kept), math.ceil((len(kept) + 1) * q)) - 1]


def test_of_nothing_there_is_no_quantile() -> None:
    with pytest.raises(IndexError):
        Trailing(5).quantile(0.5)
