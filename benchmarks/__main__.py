"""`python -m benchmarks`: the figures that matter, as one table; `--json` for programs.

Each is measured in a process that does nothing else, on one core. What a user would otherwise write
runs beside it on the same messages, and stands as a ratio.
"""

from __future__ import annotations

import json
import platform
import sys

from rich.console import Console
from rich.table import Table

from benchmarks import latency, memory, publishing, replaying, rows, snapshots
from benchmarks.figure import Figure


def main() -> int:
    """Measure, print."""
    figures: list[Figure] = []
    quiet = Console(stderr=True)
    for module in (replaying, latency, memory, rows, snapshots, publishing):
        quiet.print(f"measuring {module.__name__} …")
        figures += module.measure()
    if "--json" in sys.argv[1:]:
        print(json.dumps([figure._asdict() for figure in figures]))
        return 0
    table = Table("figure", "measured", "goal", "beside", box=None, padding=(0, 2, 0, 0))
    for figure in figures:
        table.add_row(figure.name, figure.measured, figure.goal, figure.beside)
    Console().print(table)
    Console().print(f"[dim]{platform.machine()}, Python {platform.python_version()}, {platform.system()}[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
