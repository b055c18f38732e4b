"""Weeks of simulated time: the study's row under the real controller, and what a server-hour costs."""

from __future__ import annotations

import multiprocessing
import pathlib
import time
from typing import NamedTuple

from benchmarks.figure import Figure
from runtime.experiments.row import WARM_UP_S, row_setup, study_row
from runtime.experiments.weeks import Weeks
from twin.bulk import STEP_MS
from twin.weekly import WEEK_S

SERVERS = 52
WEEKS = 6
DAY_S = 86_400
SEED = 11
LARGE = (40, 400, 4000)
OVERSUBSCRIBED = 1.3


class Run(NamedTuple):
    """CPU seconds, and the process's memory in bytes after the first hour, at the end and at most."""

    cpu_s: float
    early: int
    late: int
    most: int


def measure() -> list[Figure]:
    """Each in a fresh process of one thread."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        whole = pool.apply(_weeks, (SERVERS, WEEKS * WEEK_S))
        told = pool.apply(_weeks, (SERVERS, DAY_S, True))
        costs = [pool.apply(_weeks, (servers, 4 * 3600)).cpu_s / (servers * 4) * 1e3 for servers in LARGE]
    looks = WEEKS * WEEK_S * 1000 // STEP_MS
    with_forecasts_s = told.cpu_s * WEEKS * WEEK_S / DAY_S
    return [
        Figure(
            f"{WEEKS} weeks of a {SERVERS}-server row at 2 s",
            f"{whole.cpu_s / 60:.1f} min",
            "≤ 10 min",
            f"{whole.cpu_s / looks * 1e6:.0f} µs a look, plant, controller and agents",
            whole.cpu_s,
        ),
        Figure(
            "the same with forecasts, which POLCA does not read",
            f"{with_forecasts_s / 60:.1f} min",
            "≤ 10 min",
            "from one day",
            with_forecasts_s,
        ),
        Figure(
            "memory of that run, after an hour and after six weeks",
            f"{whole.early / 1e6:.0f} and {whole.late / 1e6:.0f} MB",
            "flat",
            f"at most {whole.most / 1e6:.0f} MB",
            (whole.late - whole.early) / 1e6,
        ),
        Figure(
            "cost per simulated server-hour, " + " / ".join(f"{servers:,}" for servers in LARGE) + " servers",
            " / ".join(f"{cost:.2f}" for cost in costs) + " ms",
            "",
            f"one row of them all; {LARGE[-1]:,} cost {costs[-1] / costs[0]:.2f}× as much each as 40",
            costs[-1],
        ),
    ]


def _weeks(servers: int, seconds: int, forecast: bool = False) -> Run:
    setup = row_setup(servers, provisioned=round(servers / OVERSUBSCRIBED))
    weeks = Weeks(setup, study_row(setup, SEED), forecast=forecast)
    weeks.run(WARM_UP_S * 1000 // STEP_MS)
    began = time.process_time()
    hour = 3_600_000 // STEP_MS
    weeks.run(hour)
    early = _status("VmRSS")
    weeks.run(seconds * 1000 // STEP_MS - hour)
    return Run(time.process_time() - began, early, _status("VmRSS"), _status("VmHWM"))


def _status(field: str) -> int:
    """A field of the process's status in bytes (Linux)."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0
