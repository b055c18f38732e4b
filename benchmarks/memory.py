"""Memory of a row's state: what a process grows by while a row runs in it for an hour."""

from __future__ import annotations

import multiprocessing
import pathlib

from benchmarks.figure import Figure
from benchmarks.plant import START, setup_for
from runtime.wiring import Unkept, on_twin, plant_of
from schemas.instants import HOUR, MINUTE


def measure() -> list[Figure]:
    """In a fresh process, so that nothing else is counted; the simulated plant is in it."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        before, after, peak = pool.apply(_run)
    grown = (after - before) / 1e6
    return [
        Figure(
            "memory of a 40-server row after an hour",
            f"{grown:.0f} MB",
            "≤ 200 MB",
            f"the process: {before / 1e6:.0f} MB before, {after / 1e6:.0f} after, {peak / 1e6:.0f} at most",
            grown,
        )
    ]


def _run() -> tuple[int, int, int]:
    setup = setup_for(40)
    plant = plant_of(setup, seed=1, start=START)
    rig = on_twin(plant, setup, ledger=Unkept())
    before = _status("VmRSS")
    for minute in range(HOUR // MINUTE):
        rig.host.run(until=START + (minute + 1) * MINUTE)
    return before, _status("VmRSS"), _status("VmHWM")


def _status(field: str) -> int:
    """A field of the process's status in bytes (Linux)."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0
