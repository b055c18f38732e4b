"""The quantiles of what was seen lately."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from functools import lru_cache


class Trailing:
    """The last `size` values, kept in order of time and of size, so that a quantile is one look.

    Values are whole or fractional numbers, never NaN.
    """

    __slots__ = ("_order", "_seen", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen: deque[float] = deque()
        self._order: list[float] = []

    def __len__(self) -> int:
        return len(self._order)

    def push(self, value: float) -> None:
        """Take a value in and let the oldest go when there are too many."""
        if len(self._order) == self._size:
            del self._order[bisect_left(self._order, self._seen.popleft())]
        self._seen.append(value)
        insort(self._order, value)

    def quantile(self, q: float) -> float:
        """The smallest value that the next one, if it is like these, stays at or below with a chance
        of at least `q`: the ceil((n + 1) q)-th smallest (split conformal prediction), the largest
        where n is too few for that. IndexError when nothing was seen."""
        order = self._order
        return order[_place(len(order), q)]

    def quantiles(self, qs: Sequence[float]) -> list[float]:
        """`quantile` of each of these."""
        order = self._order
        n = len(order)
        return [order[_place(n, q)] for q in qs]


@lru_cache(maxsize=1 << 16)
def _place(n: int, q: float) -> int:
    """Which of n values in order is the quantile."""
    return min(n, math.ceil((n + 1) * q)) - 1
