"""GPU samples a second on one core, from the same log on the same broker: Windrow on Faust, whole; a bare
consumer loop, which is the limit; a Quix Streams application doing the sum and the threshold alone."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

from support.cached import Unavailable, kept

from benchmarks.figure import Figure
from benchmarks.frames import fill, fleet
from benchmarks.site import CONTROL, Process, brokers, topics
from runtime.bus.settings import KafkaConfig
from runtime.config import Setup

SECONDS = 60
GOAL = 500_000.0
QUIX = "3.28.1"
CONTENDERS = pathlib.Path(__file__).with_name("contenders")


class Took(NamedTuple):
    """Seconds from the first message to the last: on the wall, and of all the process' threads on cores."""

    wall_s: float
    cpu_s: float


def measure() -> list[Figure]:
    """1 Hz frames, then 10 Hz frames: one fleet's minute of each."""
    figures: list[Figure] = []
    with brokers() as servers:
        for hz in (1, 10):
            with topics(servers) as kafka:
                figures += _compared(kafka, hz)
    return figures


def _compared(kafka: KafkaConfig, hz: int) -> Iterator[Figure]:
    setup, ours = fleet(), pathlib.Path(sys.executable)
    frames = fill(kafka, setup, hz, SECONDS)
    samples = frames * 8 * hz
    limit = _contender(ours, "bare", kafka, setup, frames)
    took = _worker(kafka, setup)
    yield _figure(f"windrow control, {hz} Hz frames, all stages", took, samples, limit, hz)
    yield _figure("  a bare consumer loop, 3 fields: the limit", limit, samples, limit)
    whole = _contender(ours, "bare", kafka, setup, frames, "whole")
    yield _figure("  the same, decoding whole frames", whole, samples, limit)
    try:
        quix = _contender(_quix(), "quix", kafka, setup, frames)
    except Unavailable as error:
        yield Figure(f"  Quix Streams {QUIX}", "not to be had", "", str(error))
    else:
        yield _figure(f"  Quix Streams {QUIX}, the same 3 fields", quix, samples, limit)


def _figure(name: str, took: Took, samples: int, limit: Took, hz: int = 0) -> Figure:
    speed = samples / took.cpu_s
    goal = f"≥ {GOAL:,.0f}, ≥ 0.5 of the limit" if hz == 10 else ""
    wall = f"{samples / took.wall_s:,.0f} /s on the wall"
    return Figure(
        name,
        f"{speed:,.0f} samples/s a core",
        goal,
        f"{limit.cpu_s / took.cpu_s:.2f} of the limit; {wall}",
        speed,
    )


def _worker(kafka: KafkaConfig, setup: Setup) -> Took:
    """A worker that does the whole log again: until every row is beaten live."""
    with tempfile.TemporaryDirectory() as folder:
        worker = Process(pathlib.Path(folder), setup, kafka, "control", CONTROL)
        try:
            worker.until_said("partitions, rows:")
            began, cpu_s = time.perf_counter(), worker.cpu_s
            worker.until_said("is beaten here under epoch", len(setup.site.rows), within_s=300)
            return Took(time.perf_counter() - began, worker.cpu_s - cpu_s)
        finally:
            worker.stop()


def _contender(
    python: pathlib.Path, name: str, kafka: KafkaConfig, setup: Setup, frames: int, *more: str
) -> Took:
    command = [str(python), str(CONTENDERS / f"{name}.py"), ",".join(kafka.servers)]
    command += [kafka.topic("windrow.gpus"), str(frames), str(setup.site.rows[0].budget_w), *more]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if ran.returncode:
        raise Unavailable(f"{name} failed: {ran.stderr[-500:]}")
    said = json.loads(ran.stdout)
    return Took(said["wall_s"], said["cpu_s"])


def _quix() -> pathlib.Path:
    """A Python with Quix Streams, which asks for an older client than ours. Raises Unavailable."""

    def make(folder: pathlib.Path) -> None:
        install = ["-m", "pip", "install", "--quiet", f"quixstreams=={QUIX}", "msgspec"]
        for command in ([sys.executable, "-m", "venv", str(folder)], [str(folder / "bin/python"), *install]):
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise Unavailable((ran.stderr.strip() or ran.stdout.strip()).splitlines()[-1])

    return kept(f"quixstreams-{QUIX}", make) / "bin/python"
