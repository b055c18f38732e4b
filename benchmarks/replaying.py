"""Replay of a 40-server row at 1 Hz, against the loop an SRE would write in an afternoon."""

from __future__ import annotations

import json
import time

from benchmarks.figure import Figure
from benchmarks.plant import recorded
from runtime.control_loop import ControlLoop
from runtime.hosts.replay import as_recorded
from schemas import codec

SECONDS = 300
ROUNDS = 3


def measure() -> list[Figure]:
    """Decoding included; the best of three rounds of each, in turns."""
    setup, lines = recorded(40, SECONDS)
    ours, theirs, beats = list[float](), list[float](), 0
    for _ in range(ROUNDS):
        began = time.perf_counter()
        loop = ControlLoop(setup.site, setup.policy, epoch=1)
        beats = sum(1 for _ in as_recorded(map(codec.decode, lines), loop))
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        _script(lines, 200_000.0)
        theirs.append(time.perf_counter() - began)
    speed = SECONDS / min(ours)
    script = SECONDS / min(theirs)
    frames = sum(b'"GpuFrame"' in line[:30] for line in lines)
    return [
        Figure(
            "replay of a 40-server row, 1 Hz frames",
            f"{speed:,.0f}× real time",
            "≥ 1,000×",
            f"a json + sum script: {script:,.0f}×; ours takes {min(ours) / min(theirs):.1f}× its time",
            speed,
        ),
        Figure(
            "  per frame of 8 GPUs, all stages",
            f"{min(ours) / frames * 1e6:.1f} µs",
            "",
            f"{beats} beats, {frames} frames",
        ),
    ]


def _script(lines: list[bytes], budget_w: float) -> int:
    """The stand-in: parse, keep the last power of each host, sum it, compare at each tick."""
    last: dict[str, float] = {}
    alarms = 0
    for line in lines:
        event = json.loads(line)
        if event["type"] == "GpuFrame":
            columns = event.get("power_w") or event["power_average_w"]
            last[event["subject"]] = sum(value or 0.0 for value in columns[-1])
        elif event["type"] == "Tick":
            alarms += sum(last.values()) > 0.8 * budget_w
    return alarms
