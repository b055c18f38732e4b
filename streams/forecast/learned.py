"""A linear quantile model of a row's coming peak: what it looks at, and its coefficients as data.

The features are differences of the row's own recent powers, so they are watts and nothing else: a
row of twice the size has twice the features and twice the forecast, and the coefficients, pure
numbers, hold for any row. Levels that differ between rows (how far a peak usually rises) are added
where the model is used, from the row's own recent residuals.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from schemas.instants import Span

HISTORY = 150
"""Consecutive powers that the features need: 5 min at 2 s."""

FEATURES = (
    "rise in 1 tick",
    "above mean of 5",
    "above mean of 20",
    "above mean of 150",
    "below highest of 5",
    "below highest of 20",
    "below highest of 150",
    "above lowest of 20",
    "above lowest of 150",
    "mean move over 20",
    "mean move over 150",
)


class PeakModel(msgspec.Struct, frozen=True, kw_only=True):
    """A fitted model. `coefficients[i][j]` are for `horizons_s[i]` and `quantiles[j]`, in the order of
    FEATURES; `period_ms` is the tick that they were fitted at. `fitted_on` and `fitted_at` say of
    what and when they come, `scores` how they fared on what they had not seen, in words."""

    name: str
    period_ms: Span
    horizons_s: tuple[float, ...]
    quantiles: tuple[float, ...]
    coefficients: tuple[tuple[tuple[float, ...], ...], ...]
    fitted_on: str
    fitted_at: str
    scores: str


def features(powers_w: Sequence[float]) -> list[float]:
    """FEATURES of the last HISTORY powers, oldest first, evenly spaced; watts."""
    now_w = powers_w[-1]
    last5, last20 = powers_w[-5:], powers_w[-20:]
    course_w = np.array(powers_w)
    moves_w = np.abs(course_w[1:] - course_w[:-1])
    return [
        now_w - powers_w[-2],
        now_w - sum(last5) / 5,
        now_w - sum(last20) / 20,
        now_w - sum(powers_w) / len(powers_w),
        max(last5) - now_w,
        max(last20) - now_w,
        max(powers_w) - now_w,
        now_w - min(last20),
        now_w - min(powers_w),
        float(moves_w[-19:].sum()) / 19,
        float(moves_w.sum()) / len(moves_w),
    ]
