"""What a bus remembers of rows whose host starts: their newest snapshots, and what outlives a row's memory.

A row with a snapshot goes on from there. One without, or with one that this code cannot read, begins anew:
it is told people's words that still hold, the trouble that stood and its last decision, as a host with a
ledger on its disk is told at its start (`runtime.ledger.standing`), and the epoch of its last command.

All of it blocks, and raises BusError where the brokers do not answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from typing import Any, NamedTuple

from runtime.bus.keys import partition_of
from runtime.bus.reader import Reader, Received, Start
from runtime.bus.settings import BusError, KafkaConfig
from runtime.hosts.snapshot import SnapshotRefused, mark_of
from runtime.ledger.standing import last_decisions, last_troubles, standing
from schemas import codec
from schemas.commands import Command, LockClocks
from schemas.decisions import Decision
from schemas.emergencies import Emergency
from schemas.envelope import Event, Tick
from schemas.instants import MINUTE, Instant, Span
from schemas.operators import Pin
from schemas.samples import UpsSample
from schemas.topics import BY_NAME, BY_TYPE

SNAPSHOTS = "windrow.snapshots"

_TAIL = 256  # messages of a partition that are looked at first; then 16 times as many, until they do …
_TAIL_MOST = 1 << 16  # … or so many: a row that has said nothing for so long, has nothing to say
_BATCH = 500  # messages
_WAIT_S = 0.5
_ASKED = 6  # times, 5 s each, before the brokers count as away
_WAITS = 60  # without a message, before the brokers count as away
_EVIDENCE: Span = 10 * MINUTE  # how long before a failover was raised its UPS may have said so


class Words(NamedTuple):
    """What a row that begins anew is told, the highest epoch it was beaten or commanded under, and by topic
    where the inputs of the last beat ended, so far as the log still has one."""

    told: tuple[Event, ...]
    epoch: int
    upto: Mapping[str, int]


def newest_snapshots(kafka: KafkaConfig, rows: Collection[str]) -> dict[str, bytes]:
    """Each row's newest snapshot, for the rows that have one: that of the highest epoch, then of the latest
    beat; a host that has lost its row may have written last."""
    newest: dict[str, tuple[tuple[int, Instant], bytes]] = {}
    for received in _until_each(kafka, SNAPSHOTS, rows):
        row, payload = received.key.decode(errors="replace"), received.value
        try:
            mark = mark_of(payload)
            order = (mark.epoch, mark.at)
        except SnapshotRefused as refused:
            order = (refused.epoch, -1)
        if payload and row in rows and (row not in newest or order >= newest[row][0]):
            newest[row] = order, payload
    return {row: payload for row, (_, payload) in newest.items()}


def words_of(kafka: KafkaConfig, rows: Collection[str], now: Instant) -> dict[str, Words]:
    """What to tell each row that begins anew."""
    heard = {row: _Heard() for row in rows}
    last = {row: _Heard() for row in rows}

    def sort_out(received: Iterable[Received], into: Mapping[str, _Heard]) -> None:
        for each in received:
            row = each.key.decode(errors="replace")
            if row in into:
                into[row].take(each)

    for kind in (Pin, Emergency):
        sort_out(_all(kafka, BY_TYPE[kind].name, rows, "earliest"), heard)
    sort_out(_until_each(kafka, BY_TYPE[Decision].name, rows), heard)
    raised = [
        event.at
        for said in heard.values()
        for event in said.of_type([Emergency])
        if isinstance(event, Emergency) and event.kind == "failover"
    ]
    if raised:
        since = Instant(min(raised) - _EVIDENCE)
        sort_out(_all(kafka, BY_TYPE[UpsSample].name, rows, since), heard)
    for spoken in (Tick, LockClocks):
        sort_out(_until_each(kafka, BY_TYPE[spoken].name, rows), last)
    return {row: _words(row, heard[row], last[row], now) for row in rows}


def _words(row: str, heard: _Heard, last: _Heard, now: Instant) -> Words:
    ticks = [event for event in last.events if isinstance(event, Tick)]
    epochs = [tick.epoch for tick in ticks]
    epochs += [event.lease.epoch for event in last.events if isinstance(event, Command)]
    newest = max(ticks, key=lambda tick: (tick.epoch, tick.at), default=None)
    book: Any = heard  # the part of a Book that is asked here
    told = (*standing(book, now), *last_troubles(book, now), *last_decisions(book, [row], now))
    return Words(told, max(epochs, default=0), newest.upto if newest else {})


class _Heard:
    """Messages of one row, asked as a ledger is."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def take(self, received: Received) -> None:
        """A message off the bus; one that cannot be read was buried by who read it first."""
        with suppress(codec.Malformed):
            self.events.append(codec.decode(received.value))

    def get(self, identity: str) -> Event | None:
        """The message with this id."""
        return next((event for event in self.events if event.id == identity), None)

    def of_type(
        self, kinds: Iterable[type[Event]], *, until: Instant | None = None, newest_first: bool = False
    ) -> Iterator[Event]:
        """Messages of these types by event time."""
        wanted = tuple(kinds)
        found = [e for e in self.events if isinstance(e, wanted) and (until is None or e.at <= until)]
        return iter(sorted(found, key=lambda event: event.at, reverse=newest_first))


def _numbers(topic: str, rows: Collection[str]) -> list[int]:
    return sorted({partition_of(row.encode(), BY_NAME[topic].partitions) for row in rows})


def _all(kafka: KafkaConfig, topic: str, rows: Collection[str], start: Start) -> list[Received]:
    """What lies on the rows' partitions of a topic, since a time of the brokers or from the beginning."""
    numbers = _numbers(topic, rows)
    with closing(Reader(kafka, {topic: numbers}, start=start)) as reader:
        return _to_the_end(reader, topic, numbers)


def _until_each(kafka: KafkaConfig, topic: str, rows: Collection[str]) -> list[Received]:
    """The last messages of the rows' partitions on a topic: so far back that each row has one, or as far as
    is worth looking."""
    keys = {row.encode() for row in rows}
    numbers = _numbers(topic, rows)
    tail = _TAIL
    while True:
        with closing(Reader(kafka, {topic: numbers}, start="latest")) as reader:
            ends = _ends(reader, topic)
        starts = {place: max(0, end - tail) for place, end in ends.items()}
        with closing(Reader(kafka, {topic: numbers}, start=starts)) as reader:
            found = _to_the_end(reader, topic, numbers)
        if keys <= {received.key for received in found} or not any(starts.values()) or tail >= _TAIL_MOST:
            return found
        tail *= 16


def _ends(reader: Reader, topic: str) -> dict[tuple[str, int], int]:
    for _ in range(_ASKED):
        if ends := reader.ends():
            return ends
    raise BusError(f"{topic} cannot be read: {reader.away}")


def _to_the_end(reader: Reader, topic: str, numbers: Collection[int]) -> list[Received]:
    """What lies between where a reader stands and where the log ends now."""
    ends = _ends(reader, topic)
    found: list[Received] = []
    waits = 0
    while any((reader.position(topic, number) or 0) < ends[topic, number] for number in numbers):
        some = reader.poll(_WAIT_S, _BATCH)
        found += some
        waits = 0 if some else waits + 1
        if waits > _WAITS:
            raise BusError(f"{topic} cannot be read: {reader.away or 'the brokers send nothing'}")
    return found
