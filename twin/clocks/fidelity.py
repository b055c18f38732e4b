"""How true a clock axis is on workloads it was not fitted to, and whether it is ever unsafe.

An axis is unsafe where it says that less power is left at a clock than there is: a share of the breaker that
is worked out with it is then exceeded.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

from twin.clocks.axis import SYNTHETIC, ClockAxis
from twin.clocks.fit import FOLDS, SEED, SWEEPS, Sweep, fit, read_sweep, tell

_AT_LIMIT = 0.94  # mean power over the limit from which a board was at it nearly all the time
_BANDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class LimitErrors(msgspec.Struct, frozen=True, kw_only=True):
    """Errors at one limit on workloads left out of the axis' fit, told from their readings at every second
    limit and judged at those between: medians, and what one in ten exceeds, as shares."""

    limit_w: float
    judged: int
    seconds: float
    seconds_p90: float
    watts: float
    watts_p90: float


def leave_workloads_out(
    sweep: Sweep, *, axis: ClockAxis | None = None, seed: int = SEED
) -> list[LimitErrors]:
    """The errors at each limit; of a given `axis` instead of a fitted one, where one is given."""
    order = np.random.default_rng(seed).permutation(len(sweep.workloads))
    off_s, off_w = np.full_like(sweep.seconds, np.nan), np.full_like(sweep.watts, np.nan)
    limits = np.arange(sweep.limit_w.size)
    for fold in range(FOLDS):
        out = np.sort(order[fold::FOLDS])
        learned = fit(sweep.of(np.setdiff1d(order, out)), axis=axis)
        left = sweep.of(out)
        for first in (0, 1):  # every limit is left out once; the highest tells always
            shown = (limits % 2 == first) | (limits == limits[-1])
            told = tell(left, learned.axis, learned.static_w, np.broadcast_to(shown, left.seconds.shape))
            hidden = np.flatnonzero(~shown)
            off_s[np.ix_(out, hidden)] = (told.seconds / left.seconds - 1.0)[:, hidden]
            off_w[np.ix_(out, hidden)] = (told.watts / left.watts - 1.0)[:, hidden]
    return [
        LimitErrors(
            limit_w=float(limit),
            judged=int((~np.isnan(off_s[:, i])).sum()),
            seconds=float(np.nanmedian(np.abs(off_s[:, i]))),
            seconds_p90=float(np.nanpercentile(np.abs(off_s[:, i]), 90.0)),
            watts=float(np.nanmedian(np.abs(off_w[:, i]))),
            watts_p90=float(np.nanpercentile(np.abs(off_w[:, i]), 90.0)),
        )
        for i, limit in enumerate(sweep.limit_w[:-1])
    ]


class PowerLeft(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured to be left of the dynamic power at clocks at or below some share of the highest,
    against an axis: readings, medians, how many of them an axis puts too low, and the worst of these."""

    clock_from: float
    clock_to: float
    readings: int
    measured: float
    axis: float
    too_low: float
    worst: float


def power_left(sweep: Sweep, axis: ClockAxis = SYNTHETIC) -> list[PowerLeft]:
    """Whether an axis ever says that less power is left than there is, without any fit.

    Both figures that a sweep does not tell are taken such that the axis looks its best. The clock at a
    slowdown of r is at most 1/r of the highest. The power at rest is taken as the lowest mean power of any
    workload; at a lower one more of the measured power would be dynamic. Only readings at which the board sat
    at its limit count: there its mean power is that at work (to 6 %, which is what of `worst` may be the
    waits').
    """
    rest_w = float(np.nanmin(sweep.watts))
    run = ~np.isnan(sweep.seconds)
    top = sweep.limit_w.size - 1 - np.argmax(run[:, ::-1], axis=1)
    each = np.arange(len(top))
    ratio = sweep.seconds / sweep.seconds[each, top][:, None]
    full_w = sweep.watts[each, top][:, None]
    counts = (sweep.watts >= _AT_LIMIT * sweep.limit_w) & (ratio > 1.03) & (full_w > rest_w)
    clock = 1.0 / ratio[counts]
    measured = (sweep.watts - rest_w)[counts] / np.broadcast_to(full_w - rest_w, counts.shape)[counts]
    said = axis.power_left(clock)
    found = []
    for low, high in pairwise(_BANDS):
        inside = (clock >= low) & (clock < high)
        if inside.any():
            under = measured[inside] - said[inside]
            found.append(
                PowerLeft(
                    clock_from=low,
                    clock_to=high,
                    readings=int(inside.sum()),
                    measured=float(np.median(measured[inside])),
                    axis=float(np.median(said[inside])),
                    too_low=float((under > 0.0).mean()),
                    worst=float(under.max()),
                )
            )
    return found


class BoardReport(msgspec.Struct, frozen=True, kw_only=True):
    """A board's errors with its own axis and with the synthetic one, and what the latter says of safety."""

    board: str
    fitted: tuple[LimitErrors, ...]
    synthetic: tuple[LimitErrors, ...]
    left: tuple[PowerLeft, ...]


def report(data: Path, *, seed: int = SEED) -> Iterator[BoardReport]:
    """How true axes are on the sweeps below the folder `data`, board by board; a minute. Raises UnusableSweep
    for one that is missing or malformed."""
    for board, path in SWEEPS.items():
        sweep = read_sweep(data / path, board)
        yield BoardReport(
            board=board,
            fitted=tuple(leave_workloads_out(sweep, seed=seed)),
            synthetic=tuple(leave_workloads_out(sweep, axis=SYNTHETIC, seed=seed)),
            left=tuple(power_left(sweep)),
        )
