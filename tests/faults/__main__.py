"""`make faults`: every fault at its full length, each on a site of its own; writes docs/faults.md anew.

With names, only those faults are tried and printed, and nothing is written.
"""

import os
import platform
import sys
import tempfile
from pathlib import Path

import msgspec
from faults.faults import FAULTS
from faults.rig import running
from faults.table import table
from faults.trial import Result, tried
from support.counterparts import PROJECT

RESULTS = PROJECT / "docs" / "faults.json"
PAGE = PROJECT / "docs" / "faults.md"
CALM_S = 40.0  # before the fault, to know what is usual
LOAD_S = 60.0  # after the recovery: two leases


def main(names: list[str]) -> int:
    results: list[Result] = []
    for fault in FAULTS:
        if names and fault.name not in names:
            continue
        with (
            tempfile.TemporaryDirectory(prefix="windrow-fault-") as folder,
            running(Path(folder), nodes=fault.nodes) as rig,
        ):
            rig.look(CALM_S)
            results.append(tried(rig, fault, fault.full_s, load_s=LOAD_S))
        print(msgspec.json.encode(results[-1]).decode(), flush=True)
    if not names:
        RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
        machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        PAGE.write_text(table(results, machine), encoding="utf-8")
    return 0 if all(result.sound for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
