"""From a sample to a verified command in the embedded host: the wall time of the turn that does it.

A turn polls every collector, beats the row, writes the ledger to disk and hands the commands over;
the agent writes and reads back within the same turn where the path has no latency of its own.
"""

from __future__ import annotations

import pathlib
import tempfile
import time

import msgspec
import numpy as np

from benchmarks.figure import Figure
from benchmarks.plant import START, setup_for
from runtime.ledger.store import Ledger
from runtime.row_loop import Beat
from runtime.wiring import on_twin
from schemas.instants import SECOND
from schemas.outcomes import Verified
from twin.row import TwinRow
from twin.workload import LoadProfile

SECONDS = 1_200


def measure() -> list[Figure]:
    """40 servers in band, a load that swings through the caps, a durable ledger."""
    setup = setup_for(40)
    rails = msgspec.structs.replace(setup.policy.guardrails, dwell_ms=10 * SECOND)
    policy = msgspec.structs.replace(setup.policy, path="in_band", guardrails=rails)
    setup = msgspec.structs.replace(setup, policy=policy)
    points = tuple((float(at), 1.0 if at // 60 % 2 else 0.01) for at in range(0, SECONDS, 20))
    plant = TwinRow(
        setup.site, "bench1/row-1", seed=1, start=START, load=LoadProfile(requests_per_s=0.3, points=points)
    )
    sent: list[int] = []

    def count(beat: Beat) -> None:
        sent.append(len(beat.commands))

    with tempfile.TemporaryDirectory() as folder, Ledger(pathlib.Path(folder) / "ledger.sqlite") as ledger:
        rig = on_twin(plant, setup, ledger=ledger, observe=[count])
        took: list[float] = []
        commands: list[int] = []
        host = rig.host
        host.loop.offer(host.agents.start(host.clock.now()))
        while host.clock.now() < START + SECONDS * SECOND:
            sent.clear()
            began = time.perf_counter()
            host.turn(host.clock.now())
            spent = time.perf_counter() - began
            if sum(sent):
                took.append(spent * 1000)
                commands.append(sum(sent))
            host.clock.sleep_until(host.loop.next_beat(host.clock.now() + 1))
        verified = sum(1 for _ in ledger.of_type([Verified]))
    p50, p99 = np.percentile(took, [50, 99])
    return [
        Figure(
            "sample → verified command, embedded host",
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms",
            "p99 ≤ 20 ms",
            f"{len(took)} turns with {sum(commands)} commands, {verified} verified; ledger on disk, collectors polled inline",
            float(p99),
        )
    ]
