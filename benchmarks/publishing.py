"""What publishing costs: a frame on its way to Kafka, beside it and back on the spool.

The figures with a broker need one: its address in WINDROW_TEST_KAFKA.
"""

from __future__ import annotations

import gzip
import os
import pathlib
import random
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Callable

from benchmarks.figure import Figure
from runtime.bus.clients import connect
from runtime.bus.provision import ensure
from runtime.bus.publisher import Publisher
from runtime.bus.settings import KafkaConfig
from runtime.bus.spool import Record, Spool
from runtime.clock import SystemClock
from schemas import codec
from schemas.envelope import Event
from schemas.samples import GpuFrame
from schemas.topics import BY_NAME
from schemas.units import Grid

_COUNT = 5_000
_AT_ONCE = 100
_TOPIC = "windrow.gpus"


class _Keys:
    def message_keys(self, event: Event) -> tuple[bytes, ...]:
        return (event.subject.encode(),)


def frames(count: int) -> list[GpuFrame]:
    """A second of a host's eight boards each: ten samples of busy ones, in the units that NVML has."""
    draw = random.Random(1)

    def grid(low: float, high: float, digits: int) -> Grid:
        return tuple(tuple(round(draw.uniform(low, high), digits) for _ in range(8)) for _ in range(10))

    return [
        GpuFrame(
            at=1_772_366_400_000 + 1000 * number,
            source="collector/gpu-nvml/ams1/row-b/r07/h03",
            subject=f"ams1/row-{number % 20}",
            gpus=tuple(f"GPU-{board:08x}-1111-2222-3333-444455556666" for board in range(8)),
            offsets_ms=tuple(range(-900, 1, 100)),
            power_w=grid(300, 700, 3),
            power_average_w=grid(450, 550, 3),
            sm_mhz=grid(1400, 1980, 0),
            utilisation_ratio=grid(0.8, 1.0, 2),
            memory_mhz=(2619,) * 8,
            core_c=grid(50, 70, 0)[0],
            memory_c=grid(60, 80, 0)[0],
            energy_j=grid(1e6, 9e6, 3)[0],
            limit_w=(700.0,) * 8,
            event_reasons=(0,) * 8,
            faults=("",) * 8,
        )
        for number in range(count)
    ]


def measure() -> list[Figure]:
    """The disk's part, what compressing gives and, where there is a broker, the way to it."""
    said = frames(_COUNT)
    values = [codec.encode(frame) for frame in said]
    figures = [*_disk(values), *_compression(values)]
    servers = os.environ.get("WINDROW_TEST_KAFKA")
    return figures + (_kafka(said, tuple(servers.split(","))) if servers else [])


def _disk(values: list[bytes]) -> list[Figure]:
    """Write each and let go of it, as the spool does and as a table of SQLite would."""
    records = [Record(number, b"ams1/row-b", value) for number, value in enumerate(values)]
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(pathlib.Path(folder) / "spool")

        def segments(at_once: int) -> None:
            for first in range(0, _COUNT, at_once):
                spool.append(first, records[first : first + at_once])
            for number in range(_COUNT):
                spool.read(number)
            spool.forget(_COUNT)

        table = sqlite3.connect(pathlib.Path(folder) / "spool.sqlite", isolation_level=None)
        table.execute("PRAGMA journal_mode=WAL")
        table.execute("PRAGMA synchronous=OFF")
        table.execute("CREATE TABLE spool (number INTEGER PRIMARY KEY, at INTEGER, key BLOB, value BLOB)")

        def rows(at_once: int) -> None:
            for first in range(0, _COUNT, at_once):
                table.execute("BEGIN")
                numbered = enumerate(records[first : first + at_once], first)
                table.executemany("INSERT INTO spool VALUES (?, ?, ?, ?)", [(n, *r) for n, r in numbered])
                table.execute("COMMIT")
            for first in range(0, _COUNT, _AT_ONCE):
                table.execute("SELECT * FROM spool WHERE number >= ? LIMIT ?", (first, _AT_ONCE)).fetchall()
                table.execute("DELETE FROM spool WHERE number < ?", (first + _AT_ONCE,))

        each = {(way, at_once): _us(way, at_once) for way in (segments, rows) for at_once in (1, _AT_ONCE)}
        spool.close()
        table.close()
    return [
        Figure(
            f"a frame of {len(values[0]) / 1e3:.1f} kB to the spool and back, one at a time",
            f"{each[segments, 1]:.0f} µs",
            "",
            f"SQLite: {each[rows, 1]:.0f} µs",
            each[segments, 1],
        ),
        Figure(
            f"  {_AT_ONCE} at a time",
            f"{each[segments, _AT_ONCE]:.0f} µs",
            "",
            f"SQLite: {each[rows, _AT_ONCE]:.0f} µs",
            each[segments, _AT_ONCE],
        ),
    ]


def _us(work: Callable[[int], None], at_once: int) -> float:
    began = time.perf_counter()
    work(at_once)
    return (time.perf_counter() - began) / _COUNT * 1e6


def _compression(values: list[bytes]) -> list[Figure]:
    some = values[:500]
    began = time.perf_counter()
    alone = sum(len(gzip.compress(value)) for value in some) / sum(map(len, some))
    us = (time.perf_counter() - began) / len(some) * 1e6
    together = len(zlib.compress(b"".join(some[:10]))) / sum(map(len, some[:10]))
    beside = f"{us:.0f} µs of CPU a frame; ten frames together to {together:.0%}"
    return [Figure("a frame compressed by gzip", f"to {alone:.0%}", "", beside, alone)]


def _kafka(said: list[GpuFrame], servers: tuple[str, ...]) -> list[Figure]:
    prefix = f"bench-publishing-{os.getpid()}-"
    kafka = KafkaConfig(servers=servers, prefix=prefix)
    ensure(kafka, [BY_NAME[_TOPIC]._replace(partitions=4)])
    with tempfile.TemporaryDirectory() as folder:
        spool = pathlib.Path(folder)

        def opened(to: KafkaConfig) -> Publisher:
            return Publisher(to, _Keys(), spool=spool, clock=SystemClock(), client="bench")

        publisher = opened(kafka)
        _until(lambda: publisher.state().connected)
        began = time.perf_counter()
        publisher.send(said)
        sent_us = (time.perf_counter() - began) / len(said) * 1e6
        _until(lambda: not publisher.state().waiting)
        direct = len(said) / (time.perf_counter() - began)
        publisher.close(5.0)

        away = opened(KafkaConfig(servers=("127.0.0.1:1",)))
        away.send(said)
        _until(lambda: away.state().spooled == len(said))
        away.close(0.0)

        back = opened(kafka)
        _until(lambda: back.state().connected and back.state().sent > 0)
        began, first = time.perf_counter(), back.state().sent
        _until(lambda: not back.state().waiting)
        replayed = (len(said) - first) / (time.perf_counter() - began)
        back.close(5.0)
    admin = connect("KafkaAdminClient", kafka, 10.0).client
    admin.delete_topics([kafka.topic(_TOPIC)])
    admin.close()
    return [
        Figure("`send` takes the sender", f"{sent_us:.1f} µs a frame", "≤ 10 µs", "", sent_us),
        Figure("  said until acknowledged", f"{direct:,.0f} frames/s", "", "a host says 1", direct),
        Figure("  from disk until acknowledged", f"{replayed:,.0f} frames/s", "", "", replayed),
    ]


def _until(truth: Callable[[], bool]) -> None:
    while not truth():
        time.sleep(0.001)
