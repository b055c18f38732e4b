"""Learns boards' clock axes from sweeps of the power limit: limit -> time per epoch and mean power.

Each workload has figures of its own: the seconds of its epoch, the watts it asks for while the board works,
the part u of the time that the board works at all (it waits for data in the rest, at its static power), and
the part k of the work that waits for the clock. The axis and the static power are the board's.

The recordings state no clock, so it is known up to a scale: half of the clock with k = 1 takes as long as a
third with k = 1/2. What ties it down is that k is at most 1, and that a tenth of the workloads that were
slowed down at all are taken to follow the clock fully. Were they not, their clocks would have been lower than
is said here, and more power would be left at every clock: the axis is, if wrong at all, wrong to the unsafe
side.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from schemas.units import FloatArray
from twin.clocks.axis import BoardAxis, ClockAxis, ClockCoefficients
from twin.provenance import Provenance

SWEEPS = {board: f"gpu_power/zeus/summary_power_{board}.csv" for board in ("a40", "v100", "p100", "rtx6000")}
"""The sweeps by board, below the data folder."""

SEED = 0
FOLDS = 4

_KEY = ("dataset", "network", "batch_size", "optimizer")
_COLUMNS = (*_KEY, "power_limit", "time_per_epoch", "average_power")
_FEWEST_LIMITS = 5
_SCALE = 0.03  # of errors that count fully; larger ones count less
_WORKING = np.array([1.0, 0.97, 0.94, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2])  # u that are tried
_ASKING = np.array([1.0, 1.03, 1.06, 1.1, 1.15, 1.2, 1.3, 1.4])  # watts asked over those seen at the top
_SLOWED = 1.2  # slowdown from which a workload tells of the clock


class UnusableSweep(ValueError):
    """A sweep that nothing can be learned from. Its text is for the operator."""


class Sweep(NamedTuple):
    """A board's sweep: limits (limits,), epoch seconds and mean watts (workloads, limits), NaN where the
    workload was not run at that limit."""

    board: str
    sha256: str
    workloads: tuple[str, ...]
    limit_w: FloatArray
    seconds: FloatArray
    watts: FloatArray

    def of(self, workloads: npt.NDArray[np.int64]) -> Sweep:
        """The sweep of these workloads only."""
        names = tuple(self.workloads[w] for w in workloads.tolist())
        return self._replace(workloads=names, seconds=self.seconds[workloads], watts=self.watts[workloads])


class Told(NamedTuple):
    """What the model says of a sweep's workloads: seconds and watts at each limit, the clocks there, k; and
    the mean cost of its errors."""

    seconds: FloatArray
    watts: FloatArray
    clock_ratio: FloatArray
    clock_share: FloatArray
    cost: float


def read_sweep(path: Path, board: str) -> Sweep:
    """Read a sweep; workloads at fewer than five limits are left out. Raises UnusableSweep, with file and
    line, for one that is missing or malformed."""
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise UnusableSweep(f"{path}: cannot be read: {problem.strerror}") from problem
    rows = csv.DictReader(content.decode("utf-8", "replace").splitlines())
    if missing := [name for name in _COLUMNS if name not in (rows.fieldnames or ())]:
        raise UnusableSweep(f"{path}: has no column {', '.join(missing)}")
    cells: dict[str, dict[float, tuple[float, float]]] = {}
    for line, row in enumerate(rows, start=2):
        try:
            limit, seconds, watts = (float(row[name]) for name in _COLUMNS[4:])
        except (TypeError, ValueError) as problem:
            raise UnusableSweep(f"{path}:{line}: limit, time and power must be numbers") from problem
        if not all(np.isfinite(value) and value > 0.0 for value in (limit, seconds, watts)):
            raise UnusableSweep(f"{path}:{line}: limit, time and power must be above zero")
        cells.setdefault("/".join(str(row[name]) for name in _KEY), {})[limit] = (seconds, watts)
    kept = {name: cell for name, cell in cells.items() if len(cell) >= _FEWEST_LIMITS}
    if len(kept) < 2 * FOLDS:
        raise UnusableSweep(
            f"{path}: {len(kept)} workloads at {_FEWEST_LIMITS} limits or more; {2 * FOLDS} are needed"
        )
    limits = sorted({limit for cell in kept.values() for limit in cell})
    nothing = (np.nan, np.nan)
    table = np.array([[cell.get(limit, nothing) for limit in limits] for cell in kept.values()])
    return Sweep(
        board,
        hashlib.sha256(content).hexdigest(),
        tuple(kept),
        np.array(limits),
        table[:, :, 0],
        table[:, :, 1],
    )


def tell(sweep: Sweep, axis: ClockAxis, static_w: float, shown: npt.NDArray[np.bool_] | None = None) -> Told:
    """What a board of this axis does with the sweep's workloads, their own figures learned from the readings
    that are `shown` (workloads, limits); from all where it is None."""
    run = ~np.isnan(sweep.seconds)
    use = run if shown is None else run & shown
    seconds, watts = np.where(use, sweep.seconds, 1.0), np.where(use, sweep.watts, 1.0)
    top = sweep.limit_w.size - 1 - np.argmax(use[:, ::-1], axis=1)
    seen_w = watts[np.arange(len(top)), top]

    # Tried all at once: (working, asking, workloads, limits).
    u = _WORKING[:, None, None, None]
    asked_w = np.maximum(seen_w[:, None] - static_w, 2.0) / u * _ASKING[:, None, None]
    allowed = (sweep.limit_w - static_w) / asked_w
    clock = np.where(allowed >= 1.0, 1.0, axis.clock_ratio(np.clip(allowed, 0.0, 1.0)))
    later = 1.0 / clock - 1.0

    # Seconds are c + d (1/x - 1), with d = c u k: least squares of the relative errors.
    weight = np.where(use, seconds**-2.0, 0.0)
    s0, s1, s2 = weight.sum(-1), (weight * later).sum(-1), (weight * later**2).sum(-1)
    y0, y1 = (weight * seconds).sum(-1), (weight * seconds * later).sum(-1)
    spread = s0 * s2 - s1**2
    tells = spread > 1e-12 * s0**2
    d = np.where(tells, (s0 * y1 - s1 * y0) / np.where(tells, spread, 1.0), 0.0)
    k = np.clip(d / np.maximum((y0 - d * s1) / s0, 1e-12) / _WORKING[:, None, None], 0.0, 1.0)[..., None]
    stretch = 1.0 + u * k * later
    epoch = (weight * seconds * stretch).sum(-1) / (weight * stretch**2).sum(-1)
    busy = u * (1.0 + k * later)
    told_s = epoch[..., None] * stretch
    told_w = static_w + busy * asked_w * axis.power_left(clock) / stretch

    off = _cost(np.log(told_s / seconds)) + _cost(told_w / watts - 1.0)
    cost = np.where(use, off, 0.0).sum(-1)
    best = cost.reshape(-1, cost.shape[-1]).argmin(axis=0)
    each = np.arange(len(top))

    def chosen(values: FloatArray) -> FloatArray:
        wide = np.broadcast_to(values, (*cost.shape, values.shape[-1]))
        picked: FloatArray = wide.reshape(-1, cost.shape[-1], values.shape[-1])[best, each]
        return picked

    return Told(
        chosen(told_s),
        chosen(told_w),
        chosen(clock),
        chosen(k)[:, 0],
        float(cost.reshape(-1, cost.shape[-1])[best, each].sum() / use.sum()),
    )


def _cost(error: FloatArray) -> FloatArray:
    return 2.0 * (np.sqrt(1.0 + (error / _SCALE) ** 2) - 1.0)


def slowed(sweep: Sweep) -> npt.NDArray[np.bool_]:
    """Which workloads some limit slowed down by a fifth or more."""
    run = ~np.isnan(sweep.seconds)
    top = sweep.limit_w.size - 1 - np.argmax(run[:, ::-1], axis=1)
    ratio = sweep.seconds / sweep.seconds[np.arange(len(top)), top][:, None]
    return np.asarray(np.nanmax(ratio, axis=1) >= _SLOWED)


def fit(sweep: Sweep, *, axis: ClockAxis | None = None) -> BoardAxis:
    """Learn a board's axis and static power from its sweep; the static power alone where an `axis` is
    given."""
    follows = slowed(sweep)
    lowest = float(np.nanmin(sweep.watts))
    highest = min(lowest + 15.0, 0.9 * float(sweep.limit_w[0]))

    def board(values: FloatArray) -> tuple[ClockAxis, float]:
        static_w = float(np.clip(values[0], 1.0, highest))
        if axis is not None:
            return axis, static_w
        linear, power = float(np.clip(values[1], 0.0, 1.0)), float(np.clip(values[2], 1.0, 12.0))
        return ClockAxis(linear=linear, power=power), static_w

    def cost(values: FloatArray) -> float:
        told = tell(sweep, *board(values))
        loose = 0.0
        if follows.any():
            loose = max(0.0, 1.0 - float(np.percentile(told.clock_share[follows], 90.0)))
        return told.cost + 10.0 * loose**2

    starts = [
        np.array([static, linear, power])[: 1 if axis is not None else 3]
        for static in (0.4 * lowest, 0.9 * lowest)
        for linear in (0.3, 0.7)
        for power in (2.5, 6.0)
    ]
    begin = min(starts, key=cost)
    simplex = np.vstack([begin, begin + np.diag(np.array([10.0, -0.2, 1.5])[: begin.size])])
    found = minimize(
        cost,
        begin,
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "maxfev": 200, "xatol": 1e-3, "fatol": 1e-5},
    )
    learned, static_w = board(found.x)
    shares = tell(sweep, learned, static_w).clock_share[follows]
    low, middle, high = np.percentile(shares, (25.0, 50.0, 75.0)).tolist() if follows.any() else [np.nan] * 3
    return BoardAxis(
        axis=learned,
        static_w=static_w,
        clock_share=(low, middle, high),
        workloads=len(sweep.workloads),
        slowed=int(follows.sum()),
    )


def calibrate(data: Path) -> ClockCoefficients:
    """The coefficients, from the sweeps below the folder `data`. Raises UnusableSweep for one that is
    missing or malformed."""
    sweeps = {board: read_sweep(data / path, board) for board, path in SWEEPS.items()}
    return ClockCoefficients(
        boards={board: fit(sweep) for board, sweep in sweeps.items() if slowed(sweep).sum() >= FOLDS},
        provenance=Provenance(
            files={SWEEPS[board]: sweep.sha256 for board, sweep in sweeps.items()},
            licence="Apache-2.0",
            source="ml-energy/zeus",
            command="windrow calibrate clocks",
            seed=SEED,
        ),
    )
