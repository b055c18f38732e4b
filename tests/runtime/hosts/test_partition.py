"""A partition of the bus: what cannot be read or is nobody's stops nothing; one row's fault is its own."""

from __future__ import annotations

from typing import NamedTuple

from support.two_rows import TWO_ROWS

from controllers.policy import DEFAULT_POLICY
from runtime.hosts.partition import TOPICS, Partition, Unplaced
from runtime.hosts.row_log import TICKS, RowLog
from runtime.row_loop import RowLoop
from schemas import codec
from schemas.decisions import Decision
from schemas.envelope import Event, Tick
from schemas.samples import FeedSample, GpuFrame
from schemas.site_file import read_site

SITE = read_site(TWO_ROWS, "two-rows")
ROWS = [row.path for row in SITE.rows]
GPUS, POWER = "windrow.gpus", "windrow.power"


class Record(NamedTuple):
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int = 1_000


def record(offset: int, row: str, event: Event) -> Record:
    return Record(offset, row.encode(), codec.encode(event))


def frame(row: str, at: int = 1_000) -> GpuFrame:
    host = SITE.row(row).hosts[0].path
    return GpuFrame(at=at, source="collector", subject=host, gpus=("GPU-0",), power_w=((300.0,),))


def tick(row: str, at: int, *, upto: dict[str, int], anew: bool = False) -> Tick:
    return Tick(at=at, source="runtime/control-loop/gone", subject=row, epoch=1, upto=upto, anew=anew)


def partition(rows: list[str] = ROWS, ends: dict[str, int] | None = None) -> Partition:
    logs = {row: RowLog(RowLoop(SITE.row(row), DEFAULT_POLICY, epoch=0), worker="w") for row in rows}
    made = Partition(3, logs, Unplaced(ROWS))
    for topic in TOPICS:
        made.begin(topic, 0, (ends or {}).get(topic, 0))
    return made


def test_what_cannot_be_read_is_buried_whole_and_stops_nothing() -> None:
    row = ROWS[0]
    poison = [b"", b"{", b'{"type":"GpuFrame"}', b"\xff\xfe", b"[" * 100_000, b'{"type":"Nobody","at":1}']
    records = [Record(at, row.encode(), value) for at, value in enumerate(poison)]
    records.append(Record(len(poison), None, None))
    records.append(record(len(records), row, frame(row)))
    read = partition()
    done, letters = read.take(GPUS, records)
    assert done == []
    assert [letter.payload for letter in letters] == [*poison, b""]
    assert all(letter.topic == GPUS and letter.reason for letter in letters)
    assert len({letter.id for letter in letters}) == len(letters)
    claim = record(0, row, tick(row, 2_000, upto={GPUS: len(records)}, anew=True))
    (beaten,), _ = read.take(TICKS, [claim])
    assert [type(event) for event in beaten.beat.inputs] == [GpuFrame]


def test_a_message_on_another_topic_than_its_own_is_buried() -> None:
    row = ROWS[0]
    forged = Decision(
        at=1, source="runtime/x", subject=row, because="so", policy="p", mode="U", since=1, desired=()
    )
    _, letters = partition().take(GPUS, [record(0, row, forged), record(1, row, tick(row, 1, upto={}))])
    assert [letter.reason for letter in letters] == [
        "a Decision does not belong on windrow.gpus",
        "a Tick does not belong on windrow.gpus",
    ]


def test_what_is_nobodys_here_is_counted_and_told_apart() -> None:
    read = partition(ROWS[:1])
    read.take(GPUS, [record(0, "ams9/row-x", frame(ROWS[0])), record(1, ROWS[1], frame(ROWS[1]))])
    assert read.unplaced.strangers == {"GpuFrame": 1}
    assert read.unplaced.misplaced == {GPUS: 1}


def test_rows_are_ready_when_the_log_was_read_to_where_it_ended() -> None:
    row = ROWS[0]
    read = partition(ends={GPUS: 2, TICKS: 1})
    assert read.behind == {GPUS: 2, TICKS: 1}
    read.take(GPUS, [record(0, row, frame(row)), record(1, row, frame(row, 2_000))])
    assert read.behind == {TICKS: 1}
    assert not read.ready
    read.take(TICKS, [record(0, row, tick(row, 2_000, upto={}))])
    assert read.behind == {}
    assert partition().ready


def test_one_rows_fault_is_not_the_others() -> None:
    bad, good = ROWS
    read = partition()

    def breaks(*_: object) -> None:
        raise ZeroDivisionError("in the loop")

    read.rows[bad].loop.step = breaks  # type: ignore[method-assign, assignment]
    claims = [record(at, row, tick(row, 2_000, upto={}, anew=True)) for at, row in enumerate(ROWS)]
    done, letters = read.take(TICKS, claims)
    assert [beaten.beat.tick.subject for beaten in done] == [good]
    assert list(read.failed) == [bad]
    assert letters == []
    later = [record(at + 2, row, tick(row, 4_000, upto={})) for at, row in enumerate(ROWS)]
    done, _ = read.take(TICKS, later)
    assert [beaten.beat.tick.subject for beaten in done] == [good]
    assert not read.unplaced.strangers


def test_nothing_is_covered_before_every_row_of_the_partition_is_kept() -> None:
    first, second = ROWS
    read = partition()
    read.take(
        POWER,
        [record(0, first, FeedSample(at=1, source="c", subject=SITE.row(first).meters[0], power_w=1.0))],
    )
    assert read.covered == {}
    read.keep(first, dict.fromkeys(TOPICS, 9))
    assert read.covered == {}
    read.keep(second, dict.fromkeys(TOPICS, 4))
    assert read.covered == dict.fromkeys(TOPICS, 4)


def test_a_partition_without_rows_is_covered_as_far_as_it_was_read() -> None:
    read = partition([])
    read.take(GPUS, [record(0, "ams9/row-x", frame(ROWS[0]))])
    assert read.ready
    assert read.covered[GPUS] == 1
