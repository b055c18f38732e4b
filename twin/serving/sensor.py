"""What a board's power sensor shows of what it draws.

Only a quarter of the time is looked at: on A100 and H100 a reading is the mean of 25 ms, anew each 100 ms
(published), times a gain that stays the board's own (±5 %, secondary source). The averaged field lags by
about a second on Ampere and later (secondary source). A peak shorter than a reading is lower than it was, or
missed.
"""

from __future__ import annotations

import numpy as np

from schemas.units import FloatArray

INSTANT_WINDOW_S = 0.025
INSTANT_PERIOD_S = 0.1
AVERAGE_WINDOW_S = 1.0
GAIN_SPREAD = 0.05


def instant(end_s: FloatArray, watts: FloatArray, at_s: FloatArray) -> FloatArray:
    """The instantaneous field at these moments, of power that was `watts` in segments that ended at `end_s`,
    the first one from 0: the mean of the 25 ms before the last emission. A window that reaches beyond either
    end is the mean of the part inside."""
    ends = np.concatenate(((0.0,), end_s))
    energy = np.concatenate(((0.0,), np.cumsum(watts * np.diff(ends))))
    emitted = np.floor(at_s / INSTANT_PERIOD_S + 1e-6) * INSTANT_PERIOD_S  # 5.1 s is emission 51
    first = np.clip(emitted - INSTANT_WINDOW_S, 0.0, ends[-1] - INSTANT_WINDOW_S)
    last = np.clip(emitted, INSTANT_WINDOW_S, ends[-1])
    means: FloatArray = (np.interp(last, ends, energy) - np.interp(first, ends, energy)) / (last - first)
    return means


def average(end_s: FloatArray, watts: FloatArray, at_s: FloatArray) -> FloatArray:
    """The averaged field at these moments: the mean of the emissions of the second before."""
    back = np.arange(round(AVERAGE_WINDOW_S / INSTANT_PERIOD_S)) * INSTANT_PERIOD_S
    means: FloatArray = (
        instant(end_s, watts, (at_s[:, None] - back).ravel()).reshape(at_s.size, back.size).mean(axis=1)
    )
    return means


def board_gains(boards: int | tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    """A gain for each board of an array of this shape; uniform over the published spread (that it is uniform
    is our choice)."""
    return rng.uniform(1.0 - GAIN_SPREAD, 1.0 + GAIN_SPREAD, boards)
