"""From a sample to a verified command in the embedded host: the computing, the ledger's disk included.

A turn beats the row, writes the ledger to disk and hands the commands over; the agents write, and then
read back. Two things are left out. Polling: beside a real row each host reads its own GPUs, here one
process stands in for forty of them in turn. And the device's own latency: simulated time, not ours.
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
from runtime.polling import InlineSamples
from runtime.row_loop import Beat
from runtime.wiring import on_twin, plant_of
from schemas.instants import SECOND
from schemas.outcomes import Renewed, Verified
from twin.workload import LoadProfile

SECONDS = 1_200
DEVICE_MS = 100  # past the twin's in-band latency


def measure() -> list[Figure]:
    """40 servers in band, a load that swings through the caps, a durable ledger."""
    setup = setup_for(40)
    rails = msgspec.structs.replace(setup.policy.guardrails, dwell_ms=10 * SECOND)
    policy = msgspec.structs.replace(setup.policy, path="in_band", guardrails=rails)
    setup = msgspec.structs.replace(setup, policy=policy)
    points = tuple((float(at), 1.0 if at // 60 % 2 else 0.01) for at in range(0, SECONDS, 20))
    plant = plant_of(setup, seed=1, start=START, load=LoadProfile(requests_per_s=0.3, points=points))
    with tempfile.TemporaryDirectory() as folder, Ledger(pathlib.Path(folder) / "ledger.sqlite") as ledger:
        beats: list[Beat] = []
        host = on_twin(plant, setup, ledger=ledger, observe=[beats.append]).host
        host.loop.offer(host.agents.start(host.clock.now()))
        collectors, host.samples = host.samples, InlineSamples([])
        took: list[float] = []
        commands = 0
        while (now := host.clock.now()) < START + SECONDS * SECOND:
            host.loop.offer(collectors.gather(now))
            beats.clear()
            began = time.perf_counter()
            host.turn(now)
            spent = time.perf_counter() - began
            host.clock.sleep_until(now + DEVICE_MS)
            began = time.perf_counter()
            host.loop.offer(host.agents.step((), host.clock.now()))
            spent += time.perf_counter() - began
            if sent := sum(len(beat.commands) for beat in beats):
                took.append(spent * 1000)
                commands += sent
            host.clock.sleep_until(host.loop.next_beat(host.clock.now() + 1))
        verified = sum(1 for _ in ledger.of_type([Verified, Renewed]))
    p50, p99 = np.percentile(took, [50, 99])
    return [
        Figure(
            "sample → verified command, embedded host",
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms",
            "p99 ≤ 20 ms",
            f"{len(took)} turns, {commands} commands, {verified} verified or renewed; ledger synced",
            float(p99),
        )
    ]
