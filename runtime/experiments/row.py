"""The study's row: 40 servers as provisioned and more beside them, what comes to it, and whether it is right.

POLCA's row has 40 DGX-A100 servers on a budget of their 6.5 kW nameplates, and its published facts are
few: it peaks at 0.79 of its budget, and rises by at most 0.118 of it within 40 s; that it rises by at most
0.09 within 2 s is recalled. `row_check` runs the row without any control and holds it to them.
"""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from controllers.policy import DEFAULT_POLICY, CappingPolicy
from runtime.config import Setup
from schemas.shares import safe_shares
from schemas.site_file import read_site
from schemas.units import FloatArray
from twin.breaker import TripCurve
from twin.bulk import STEP_MS, BulkRow, PathFaults
from twin.weekly import BLOCK_S, WEEK_S, Demand, Load, TracedLoad, WeeklyLoad, read_arrivals, shipped_week

SKU = "A100-SXM4-80GB"
PROVISIONED = 40
SERVER_W = 6500.0

PEAK_RATIO = 0.79
"""Peak of the uncontrolled row over its budget (published)."""

STUDIED_WEEKS = 6.0
"""How long the study looked at its row (published)."""

RISE_2S_RATIO = 0.09
"""Highest rise within 2 s over the budget (recalled, weak)."""

RISE_40S_RATIO = 0.118
"""Highest rise within 40 s over the budget (published)."""

WARM_UP_S = BLOCK_S
"""A run begins with an idle row, and counts from here on."""

BUSY_S = (2 * 24 + 13) * 3600
BUSY_HOURS_S = 6 * 3600
"""About the week's busiest hours: six from Wednesday 13:00 on."""

CALIBRATION_SEEDS = (1, 2)
"""Seeds of the weeks that the demand was set on; experiments use others."""

STUDY_DEMAND = Demand(
    requests_per_s=0.19,
    day_ratio=0.04,
    wander_ratio=0.04,
    wander_s=900.0,
    bursts_a_day=6.0,
    burst_ratio=0.1,
    burst_most_ratio=0.4,
    rise_s=60.0,
    hold_s=120.0,
    volleys_a_day=24.0,
    volley_ratio=0.8,
)
"""What comes to the study's row, set so that `row_check` finds the published peak and spikes over six weeks
of each calibration seed. A row that asks less and peaks as high would have to rise faster than the study's:
its servers would stand idle at night, and each that wakes is a step of its own."""

_TICKS_40S = 40_000 // STEP_MS


def row_site(servers: int, provisioned: int = PROVISIONED) -> str:
    """The site file of the study's row with so many servers on the budget of those provisioned, half of each
    priority. Raises ValueError for an odd number or less than two."""
    if servers < 2 or servers % 2:
        raise ValueError(f"{servers} servers: the row has as many of high as of low priority, 2 or more")
    whole, rest = divmod(servers, 4)
    width, budget_w = max(2, len(str(whole + 1))), round(provisioned * SERVER_W)
    racks = [(f"r[{1:0{width}d}-{whole:0{width}d}]", 2)] * (whole > 0)
    racks += [(f"r{whole + 1:0{width}d}", 1)] * (rest > 0)
    board = f'sku = "{SKU}"\ngpus = 8\npaths = ["out_of_band", "brake", "in_band"]\n'
    power = (
        f'[site]\nname = "study"\n[[ups]]\nname = "ups-1"\nlimit_w = {10 * budget_w}\n'
        f'[[pdus]]\nname = "pdu-1"\nups = "ups-1"\nlimit_w = {10 * budget_w}\n'
        f'[[feeds]]\nname = "feed-a"\npdu = "pdu-1"\nlimit_w = {budget_w}\n'
        f'[[rows]]\nname = "row-a"\nbudget_w = {budget_w}\nmeters = ["feed-a"]\n'
    )
    return power + "".join(
        f'[[racks]]\nrow = "row-a"\nnames = "{names}"\nfeeds = ["feed-a"]\n'
        f'[[racks.hosts]]\nnames = "h[01-{half:02d}]"\npriority = "high"\n{board}'
        f'[[racks.hosts]]\nnames = "h[{half + 1:02d}-{2 * half:02d}]"\npriority = "low"\n{board}'
        for names, half in racks
    )


def row_setup(
    servers: int, policy: CappingPolicy = DEFAULT_POLICY, *, provisioned: int = PROVISIONED
) -> Setup:
    """The study's row with so many servers on the budget of those provisioned, under a policy."""
    return msgspec.structs.replace(_setup(servers, provisioned), policy=policy)


@functools.cache
def _setup(servers: int, provisioned: int) -> Setup:
    text = row_site(servers, provisioned)
    site = read_site(text, "study")
    return Setup(site=site, site_text=text, policy=DEFAULT_POLICY, policy_text="", shares=safe_shares(site))


def row_load(
    setup: Setup,
    seed: int,
    *,
    begin_s: float = 0.0,
    demand: Demand = STUDY_DEMAND,
    arrivals: Sequence[pathlib.Path] = (),
) -> Load:
    """What comes to the row from `begin_s` after Monday 00:00 on: requests of the study's mix, at random or,
    with files of recorded arrivals, when and in the order of length that those have them, so many that the
    row peaks as high. Each server brings its own. Raises ValueError in words for a file that holds no
    arrivals."""
    priorities, shape = [host.priority for host in setup.site.rows[0].hosts], shipped_week().shape
    if arrivals:
        files = tuple(arrivals)
        asked = msgspec.structs.replace(demand, requests_per_s=recorded_rate(files))
        return TracedLoad(priorities, *_recorded(files), asked, shape, seed=seed, begin_s=begin_s)
    return WeeklyLoad(priorities, demand, shape, seed=seed, begin_s=begin_s)


_recorded = functools.cache(read_arrivals)


@functools.cache
def recorded_rate(files: tuple[pathlib.Path, ...]) -> float:
    """How many recorded requests a second, per server at the week's highest hour, make the row as provisioned
    peak as high in the week's busiest hours as the study's own demand does. Raises ValueError in words."""
    setup, shape = row_setup(PROVISIONED), shipped_week().shape
    priorities, recorded = [host.priority for host in setup.site.rows[0].hosts], _recorded(files)

    def peak_w(loads: Callable[[int], Load]) -> float:
        """Of the seeds that the demand was set on, the mean."""
        peaks_w = []
        for seed in CALIBRATION_SEEDS:
            row = study_row(setup, seed, load=loads(seed))
            row.course_w()
            row.forget()
            for _ in range(BUSY_HOURS_S // BLOCK_S - 1):
                row.course_w()
            peaks_w.append(row.settle().peak_w)
        return sum(peaks_w) / len(peaks_w)

    def recorded_w(rate: float) -> float:
        demand = msgspec.structs.replace(STUDY_DEMAND, requests_per_s=rate)
        return peak_w(
            lambda seed: TracedLoad(priorities, *recorded, demand, shape, seed=seed, begin_s=BUSY_S)
        )

    wanted_w = peak_w(lambda seed: row_load(setup, seed, begin_s=BUSY_S))
    low, high = STUDY_DEMAND.requests_per_s / 8, STUDY_DEMAND.requests_per_s
    while recorded_w(high) < wanted_w:
        low, high = high, 2.0 * high
        if high > _MOST_PER_S:
            raise ValueError(
                f"{', '.join(map(str, files))}: {_MOST_PER_S:g} such requests a second at each server, over "
                f"{float(np.ptp(recorded[0])) / 86_400:.1f} days, do not bring the row to "
                f"{wanted_w / setup.site.rows[0].budget_w:.2f} of its budget: they lie too far apart"
            )
    for _ in range(8):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if recorded_w(middle) < wanted_w else (low, middle)
    return high


_MOST_PER_S = 20.0  # a hundred times the study's own; more would be no serving load


def study_row(
    setup: Setup,
    seed: int,
    *,
    load: Load | None = None,
    faults: PathFaults | None = None,
    power_ratio: float = 1.0,
    curve: TripCurve | None = None,
) -> BulkRow:
    """The setup's first row, simulated; `load` None: the study's demand."""
    row = setup.site.rows[0]
    return BulkRow(
        row.hosts,
        row.budget_w,
        load or row_load(setup, seed),
        seed=seed,
        faults=faults,
        power_ratio=power_ratio,
        curve=curve,
    )


class Spikes:
    """Level and rises of a row's power, taken in as it comes; memory does not grow."""

    _BINS = 4000  # of 0.0005 of the budget

    def __init__(self, budget_w: float) -> None:
        self._budget_w = budget_w
        self._counts = np.zeros(self._BINS, dtype=np.int64)
        self._last: FloatArray = np.zeros(0)
        self._sum = 0.0
        self.steps = 0
        self.peak_ratio = 0.0
        self.rise_2s_ratio = 0.0
        self.rise_40s_ratio = 0.0

    def take(self, power_w: Sequence[float]) -> None:
        """The power of the next steps."""
        new = np.asarray(power_w) / self._budget_w
        self._counts += np.bincount(
            np.minimum(new / 0.0005, self._BINS - 1).astype(int), minlength=self._BINS
        )
        self._sum += float(new.sum())
        self.steps += new.size
        self.peak_ratio = max(self.peak_ratio, float(new.max()))
        run = np.concatenate((self._last, new))
        if run.size > 1:
            self.rise_2s_ratio = max(self.rise_2s_ratio, float(np.diff(run).max()))
        highest = run[1:].copy()
        for ahead in range(1, _TICKS_40S + 1):
            later = run[ahead:]
            highest[: later.size] = np.maximum(highest[: later.size], later)
        if highest.size:
            self.rise_40s_ratio = max(self.rise_40s_ratio, float((highest - run[:-1]).max()))
        self._last = run[-_TICKS_40S:]

    @property
    def mean_ratio(self) -> float:
        """Mean power over the budget."""
        return self._sum / max(1, self.steps)

    def quantile_ratio(self, quantile: float) -> float:
        """A quantile of power over the budget, within 0.0005."""
        below = np.cumsum(self._counts)
        return float(np.searchsorted(below, quantile * below[-1]) + 1) * 0.0005


class RowCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What the uncontrolled row came to: shares of its budget, and latencies."""

    servers: int
    weeks: float
    seed: int
    peak_ratio: float
    mean_ratio: float
    p01_ratio: float
    p50_ratio: float
    p99_ratio: float
    rise_2s_ratio: float
    rise_40s_ratio: float
    requests_per_s: float
    latency_s: dict[str, tuple[float, float]]
    """By priority: median and P99."""

    def misses(self) -> list[str]:
        """Where it is not the study's row, in words: its peak by more than 0.015, its rises by more than a
        quarter (each is the largest of some million, and differs as much from one seed to the next)."""
        found = []
        if abs(self.peak_ratio - PEAK_RATIO) > 0.015:
            found.append(f"peaks at {self.peak_ratio:.3f} of its budget, not at {PEAK_RATIO:.2f}")
        for name, ratio, wanted in (
            ("2 s", self.rise_2s_ratio, RISE_2S_RATIO),
            ("40 s", self.rise_40s_ratio, RISE_40S_RATIO),
        ):
            if abs(ratio - wanted) > 0.25 * wanted:
                found.append(f"rises by {ratio:.3f} of its budget within {name}, not by {wanted:.3f}")
        return found


def row_check(
    weeks: float,
    seed: int,
    *,
    servers: int = PROVISIONED,
    demand: Demand = STUDY_DEMAND,
    arrivals: Sequence[pathlib.Path] = (),
    told: Callable[[float], None] = lambda done: None,
) -> RowCheck:
    """Run the row without any control and see what it comes to. `told` hears the share done."""
    setup = row_setup(servers)
    row = study_row(setup, seed, load=row_load(setup, seed, demand=demand, arrivals=arrivals))
    spikes = Spikes(row.budget_w)
    warm, steps = WARM_UP_S * 1000 // STEP_MS, round(weeks * WEEK_S * 1000 / STEP_MS)
    taken = len(row.course_w())
    assert taken == warm  # a block
    row.forget()
    while spikes.steps < steps:
        spikes.take(row.course_w(steps - spikes.steps))
        told(spikes.steps / steps)
    totals = row.settle()
    return RowCheck(
        servers=servers,
        weeks=weeks,
        seed=seed,
        peak_ratio=round(spikes.peak_ratio, 4),
        mean_ratio=round(spikes.mean_ratio, 4),
        p01_ratio=spikes.quantile_ratio(0.01),
        p50_ratio=spikes.quantile_ratio(0.5),
        p99_ratio=spikes.quantile_ratio(0.99),
        rise_2s_ratio=round(spikes.rise_2s_ratio, 4),
        rise_40s_ratio=round(spikes.rise_40s_ratio, 4),
        requests_per_s=round(float(totals.arrived.sum()) / totals.seconds, 3),
        latency_s={
            priority: (
                round(totals.quantile_s(priority, 0.5), 2),
                round(totals.quantile_s(priority, 0.99), 2),
            )
            for priority in ("low", "high")
        },
    )
