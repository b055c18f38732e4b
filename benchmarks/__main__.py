"""`python -m benchmarks [GROUP …] [--json]`: the figures that matter, as one table, or for programs.

Groups are `core`, what one process computes, `weeks`, simulated time, and `bus`, the whole over a real Kafka;
a module's name is a group of its own. What a user would otherwise write runs beside it on the same messages,
and stands as a ratio. Time is CPU time where nothing else is said: a machine that does other things besides
makes it longer, though, and its load is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType

from rich.console import Console
from rich.table import Table
from support.cached import Unavailable

from benchmarks import (
    latency,
    memory,
    publishing,
    reaction,
    replaying,
    rows,
    snapshots,
    steady,
    throughput,
    weeks,
)
from benchmarks.figure import Figure
from benchmarks.site import brokers

GROUPS = {
    "core": (replaying, latency, memory, rows, snapshots),
    "weeks": (weeks,),
    "bus": (throughput, reaction, steady, publishing),
}
MODULES = {module.__name__.rpartition(".")[2]: (module,) for group in GROUPS.values() for module in group}


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="The figures that matter.")
    named = [*GROUPS, *MODULES]
    parser.add_argument(
        "groups", nargs="*", metavar="GROUP", help=f"of {', '.join(named)}; all when left out"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    asked = parser.parse_args()
    if strangers := [name for name in asked.groups if name not in named]:
        parser.error(f"no such group: {', '.join(strangers)}")
    chosen = dict.fromkeys(module for name in asked.groups or GROUPS for module in (GROUPS | MODULES)[name])
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        if any(module in GROUPS["bus"] for module in chosen):
            with contextlib.suppress(Unavailable):  # each figure that lacks it says so
                stack.enter_context(brokers())
        figures = list(_measured(chosen))
    if asked.json:
        print(json.dumps([figure._asdict() for figure in figures]))
        return 0
    table = Table("figure", "measured", "goal", "beside", box=None, padding=(0, 2, 0, 0))
    for figure in figures:
        table.add_row(figure.name, figure.measured, figure.goal, figure.beside)
    Console().print(table)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load before {load:.1f}"
    Console().print(f"[dim]{machine}, Python {platform.python_version()}, {platform.system()}[/]")
    return 0


def _measured(modules: Iterable[ModuleType]) -> Iterator[Figure]:
    quiet = Console(stderr=True)
    for module in modules:
        quiet.print(f"measuring {module.__name__} …")
        try:
            yield from module.measure()
        except Unavailable as error:
            yield Figure(module.__name__, "not to be had", "", str(error))


if __name__ == "__main__":
    sys.exit(main())
