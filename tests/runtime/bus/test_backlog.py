"""Whatever happens to the line, the disk and the process: in order, and nothing lost that is not counted."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from runtime.bus import spool as spool_module
from runtime.bus.backlog import Backlog
from runtime.bus.spool import Record, Spool

KEEP_MS = 1_000


def backlog(*, memory: int = 2_000, disk: int = 2_000) -> Backlog:
    return Backlog(keep_ms=KEEP_MS, memory_bytes=memory, disk_bytes=disk)


def said(number: int, at: int = 0) -> Record:
    return Record(at, b"row", str(number).encode())


def test_what_is_unacknowledged_when_a_line_ends_goes_out_again_before_anything_newer(
    tmp_path: pathlib.Path,
) -> None:
    waiting = backlog()
    for number in range(6):
        waiting.put(said(number), 0.0)
    taken = waiting.take(4, 0)
    waiting.done(taken[1][0])
    waiting.attach(Spool(tmp_path))
    waiting.spill(1.0)
    waiting.put(said(6), 1.0)
    waiting.rewind()
    assert [int(record.value) for _, record in waiting.take(10, 0)] == [0, 2, 3, 4, 5, 6]
    waiting.close()


def test_old_telemetry_is_dropped_before_it_is_sent_and_counted(tmp_path: pathlib.Path) -> None:
    waiting = backlog()
    waiting.attach(Spool(tmp_path))
    waiting.put(said(0, at=0), 0.0)
    waiting.spill(1.0)
    waiting.put(said(1, at=10), 1.0)
    waiting.put(said(2, at=500), 1.0)
    waiting.trim(KEEP_MS + 100)
    assert waiting.lost == {"stale": 2}
    assert [int(record.value) for _, record in waiting.take(10, KEEP_MS + 100)] == [2]
    waiting.close()


def test_with_no_disk_memory_is_a_ring_and_what_falls_out_is_counted() -> None:
    waiting = backlog(memory=1_000)
    for number in range(100):
        waiting.put(said(number), 0.0)
        waiting.trim(0)
    left = [int(record.value) for _, record in waiting.take(100, 0)]
    assert left == list(range(100 - len(left), 100))
    assert 5 < len(left) < 12
    assert waiting.lost == {"overflow": 100 - len(left)}


def test_a_disk_that_takes_nothing_is_told_of_and_not_asked_again_for_each_record_that_falls_out(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def full(handle: int, content: bytes) -> int:
        nonlocal asked
        asked += 1
        raise OSError(28, "No space left on device")

    waiting = backlog(memory=1_000)
    waiting.attach(Spool(tmp_path))
    for number in range(500):
        waiting.put(said(number), 0.0)
    monkeypatch.setattr(os, "write", full)
    waiting.trim(0)
    monkeypatch.undo()
    assert waiting.trouble.endswith("No space left on device")
    assert waiting.lost["overflow"] + waiting.waiting == 500
    assert waiting.lost["overflow"] > 450
    assert asked <= 2, "it takes milliseconds, in which power goes unread"
    waiting.spill(1.0)
    assert not waiting.trouble, "there is room again"
    assert waiting.spooled == waiting.waiting > 0
    waiting.close()


def test_beyond_the_disks_bound_the_oldest_goes_first(
    tmp_path: pathlib.Path,
) -> None:
    waiting = backlog(disk=1_000)
    waiting.attach(Spool(tmp_path, segment_bytes=200))
    for number in range(100):
        waiting.put(said(number), 0.0)
        waiting.spill(1.0)
    assert waiting.spooled_bytes <= 1_000
    left = [int(record.value) for _, record in waiting.take(100, 0)]
    assert left == list(range(100 - len(left), 100))
    assert waiting.lost == {"overflow": 100 - len(left)}
    waiting.close()


class Life(RuleBasedStateMachine):
    """A backlog through lines that end, a disk that fills up, a process that is killed and time that passes.

    `arrived` is what Kafka has, in its order; a number may come again, and never for the first time behind
    a higher one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.arrived: list[int] = []
        self.count = 0
        self.mono = 0.0
        self.now = 0
        self.full = False
        self.flying: list[tuple[int, Record]] = []
        self.sent = 0
        self.lost = 0

    @initialize(folder=st.just(None))
    def begin(self, folder: None) -> None:
        self.folder = pathlib.Path(os.environ["WINDROW_SPOOL_TEST"]) / str(id(self))
        self.open()

    def open(self) -> None:
        self.waiting = backlog()
        with self.disk():
            self.spool = Spool(self.folder, segment_bytes=150)
        self.waiting.attach(self.spool)

    @contextlib.contextmanager
    def disk(self) -> Iterator[None]:
        """A disk that may be full."""
        write = os.write

        def refused(handle: int, content: bytes) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return write(handle, content)

        spool_module.os.write = refused  # type: ignore[attr-defined]
        try:
            yield
        finally:
            spool_module.os.write = write  # type: ignore[attr-defined]

    @rule(count=st.integers(1, 5))
    def say(self, count: int) -> None:
        for _ in range(count):
            self.waiting.put(Record(self.now, b"row", str(self.count).encode()), self.mono)
            self.count += 1
        with self.disk():
            self.waiting.trim(self.now)

    @rule(most=st.integers(1, 8))
    def send(self, most: int) -> None:
        taken = self.waiting.take(most, self.now)
        assert [number for number, _ in taken] == sorted(number for number, _ in taken)
        self.flying += taken

    @rule(most=st.integers(1, 8), acknowledged=st.booleans())
    def arrive(self, most: int, acknowledged: bool) -> None:
        """The oldest in flight arrive; their acknowledgement may be lost with the line."""
        for number, record in self.flying[:most]:
            self.arrived.append(int(record.value))
            if acknowledged:
                self.waiting.done(number)
        del self.flying[:most]
        if not acknowledged:
            self.line_ends()

    @rule()
    def line_ends(self) -> None:
        self.flying.clear()
        self.waiting.rewind()

    @rule()
    def refused(self) -> None:
        if self.flying:
            self.waiting.refuse(self.flying.pop(0)[0])

    @rule()
    def spill(self) -> None:
        with self.disk():
            self.waiting.spill(self.mono)

    @rule(full=st.booleans())
    def fill_up(self, full: bool) -> None:
        self.full = full

    @rule(seconds=st.floats(0.1, 1.5))
    def pass_time(self, seconds: float) -> None:
        self.mono += seconds
        self.now += round(seconds * 1000)
        with self.disk():
            self.waiting.trim(self.now)

    @rule(in_order=st.booleans())
    def restart(self, in_order: bool) -> None:
        """End in order, with everything on disk or counted; or by a kill, which takes what is in memory."""
        self.flying.clear()
        if in_order:
            with self.disk():
                self.waiting.spill(float("inf"))
            self.waiting.close()
            gone = 0
        else:
            gone = self.waiting.waiting - self.waiting.spooled
            self.waiting.rewind()
            self.spool.close()
        self.sent += self.waiting.sent
        self.lost += sum(self.waiting.lost.values()) + gone
        unsettled = self.waiting.waiting - gone
        self.open()
        assert self.waiting.waiting >= unsettled
        self.sent -= self.waiting.waiting - unsettled  # acknowledged, and in a segment with others

    @invariant()
    def in_order(self) -> None:
        firsts = list(dict.fromkeys(self.arrived))
        assert firsts == sorted(firsts)

    @invariant()
    def nothing_is_lost_uncounted(self) -> None:
        if not hasattr(self, "waiting"):
            return
        open_fate = sum(number < self.waiting._first for number in self.waiting.in_flight)
        sent = self.sent + self.waiting.sent
        lost = self.lost + sum(self.waiting.lost.values())
        assert sent + lost + self.waiting.waiting + open_fate == self.count

    def teardown(self) -> None:
        if hasattr(self, "waiting"):
            self.waiting.close()


@pytest.fixture(autouse=True)
def _folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDROW_SPOOL_TEST", str(tmp_path))


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40)
