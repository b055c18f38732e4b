"""A site's beats off its bus, done again from what its rows' partitions hold, for a recorder to keep.

Each row goes on from its newest snapshot, or from where its log says that it begins anew. Its beats are those
of the ticks in the log: the inputs that the tick names, the tick, and what the same loop says of them. What
was *said* then is held against that, decision by decision, so that a recording made with another policy or
version than the row's worker has is found out.

A row's beats are in their order; rows stand beside each other in the order in which they were read.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from hashlib import blake2b
from itertools import groupby
from typing import NamedTuple

import msgspec

from runtime.bus.keys import partition_of
from runtime.bus.reader import Reader, Received
from runtime.bus.settings import KafkaConfig
from runtime.clock import Clock
from runtime.config import ConfigError, Setup
from runtime.hosts.partition import TOPICS, Done, Partition, Unplaced
from runtime.hosts.recall import newest_snapshots
from runtime.hosts.row_log import TICKS, RowLog
from runtime.hosts.snapshot import mark_of
from runtime.recorded import Place
from runtime.recorder import header_of
from runtime.row_loop import Beat, RowLoop
from schemas import codec
from schemas.decisions import Decision
from schemas.instants import MINUTE, Instant, Span, to_text
from schemas.topics import BY_NAME, BY_TYPE

_DECISIONS = BY_TYPE[Decision].name
_WAIT_S = 0.4
_GLANCE_S = 0.1
_PATIENCE_S = 10.0  # for a tick's inputs to be read, and for a broker to come back, before it is told
_UNMATCHED_AT_MOST = 4_096  # decisions of a row that wait to be held against each other (our choice)
_SKEW_MS: Span = 5 * MINUTE  # by which a broker's clock and a row's may differ (our choice)


class _Message(NamedTuple):
    offset: int
    key: bytes
    value: bytes
    timestamp: int


class _Named(msgspec.Struct):
    """The id of a message, without the rest of it."""

    id: str = ""


_named = msgspec.json.Decoder(_Named)


class Witness:
    """Holds decisions that were done again against those that were said then.

    `agreed` and `differing` count them, `first` is the first that differs, in words. One that was never
    said (its worker died first), or is not read yet, counts for neither.
    """

    def __init__(self) -> None:
        self.agreed = 0
        self.differing = 0
        self.first = ""
        self._redone: dict[str, dict[Instant, bytes]] = defaultdict(dict)
        self._said: dict[str, dict[Instant, bytes]] = defaultdict(dict)

    @property
    def asks(self) -> bool:
        """Whether a decision waits for what was said."""
        return any(self._redone.values())

    def redone(self, row: str, decision: Decision) -> None:
        """A beat was done again."""
        self._match(row, decision.at, codec.encode(decision), self._redone[row], self._said[row])

    def said(self, row: str, payload: bytes) -> None:
        """A decision stands on the row's partition."""
        try:
            at = codec.decode(payload).at
        except codec.Malformed:
            return
        self._match(row, at, payload, self._said[row], self._redone[row])

    def _match(
        self, row: str, at: Instant, payload: bytes, ours: dict[Instant, bytes], theirs: dict[Instant, bytes]
    ) -> None:
        digest = blake2b(payload, digest_size=16).digest()
        if at not in theirs:
            ours[at] = digest
            if len(ours) > _UNMATCHED_AT_MOST:
                del ours[next(iter(ours))]
            return
        other = theirs[at]
        ours.clear()  # both come in order: what did not match before never will
        for earlier in list(theirs):
            del theirs[earlier]
            if earlier == at:
                break
        if other == digest:
            self.agreed += 1
        else:
            self.differing += 1
            self.first = self.first or f"{row} at {to_text(at)}"


class BusRecorder:
    """Follows every row of a site, from what its newest snapshot covers.

    `header` is the recording's. `beats` counts by row. Making one reads the snapshots; it raises BusError
    where no broker answers, and ConfigError where a row's worker has another site file, policy or version.
    """

    def __init__(self, kafka: KafkaConfig, setup: Setup, clock: Clock) -> None:
        self._kafka = kafka
        self._clock = clock
        logs = {
            row.path: RowLog(RowLoop(row, setup.policy, epoch=1), worker="windrow record")
            for row in setup.site.rows
        }
        snapshots = newest_snapshots(kafka, logs)
        self._next = _starts(logs, snapshots)
        marks = [mark_of(payload) for payload in snapshots.values()]
        self._since = min((mark.at for mark in marks), default=clock.now())
        self.header = header_of(
            setup,
            max((mark.epoch for mark in marks), default=1),
            self._since,
            "windrow record --kafka",
            snapshots,
        )
        self.beats = dict.fromkeys(logs, 0)
        self.witness = Witness()
        self.away = ""
        """Why nothing has been read for a while, in words."""
        self._partitions = {
            number: Partition(number, {path: logs[path] for path in paths}, Unplaced(logs))
            for number, paths in _by_partition(logs).items()
        }
        for number, partition in self._partitions.items():
            for topic in TOPICS:
                start = self._next.get((topic, number), 0)
                partition.begin(topic, start, start)
        self._places: dict[tuple[str, str], deque[tuple[int, str]]] = defaultdict(deque)
        self._waiting: dict[str, tuple[str, float]] = {}
        self._dead = 0
        self._skipped = 0

    def run(
        self,
        keep: Callable[[Beat, Mapping[str, Place]], None],
        *,
        until: Instant | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Hand each beat to `keep` as it can be done, with where its messages stand, by their ids; until a
        time or until told to stop."""
        numbers = sorted(self._partitions)
        said = Reader(self._kafka, {_DECISIONS: numbers}, start=Instant(self._since - _SKEW_MS))
        reader, reading = None, dict[str, list[int]]()
        reached_at = self._clock.monotonic()
        with closing(said):
            try:
                while not stop() and (until is None or self._clock.now() < until):
                    wanted = self._wanted()
                    if reader is None or wanted != reading:
                        if reader is not None:
                            reader.close()
                        reader, reading = Reader(self._kafka, wanted, start=dict(self._next)), wanted
                    for done in self._read(reader, reading):
                        row = done.beat.tick.subject
                        self.beats[row] += 1
                        self.witness.redone(row, done.beat.decision)
                        keep(done.beat, self._placed(done.beat))
                    for each in said.poll(_GLANCE_S) if self.witness.asks else ():
                        self.witness.said(each.key.decode(errors="replace"), each.value)
                    now = self._clock.monotonic()
                    reached_at = reached_at if reader.away else now
                    self.away = reader.away if now - reached_at > _PATIENCE_S else ""
                    self._watch(now)
            finally:
                if reader is not None:
                    reader.close()

    @property
    def troubles(self) -> tuple[str, ...]:
        """What stands in the way of a whole recording, in words."""
        found = []
        if self._skipped:
            found.append(f"{self._skipped} messages were deleted for their age before they were read")
        if self._dead:
            found.append(f"{self._dead} messages could not be read, and steered nothing")
        for partition in self._partitions.values():
            for row, error in partition.failed.items():
                found.append(f"{row}: its loop failed and it is not recorded from there on: {error!r}")
            for row, log in partition.rows.items():
                waits, since = self._waiting.get(row, ("", 0.0))
                if waits and self._clock.monotonic() - since > _PATIENCE_S:
                    found.append(f"{row}: {waits}")
                elif log.cold:
                    found.append(f"{row}: has no snapshot, and no beat from which it begins anew")
        if self.witness.differing:
            found.append(
                f"{self.witness.differing} decisions were said otherwise than this site file, policy and "
                f"version say them, first {self.witness.first}: record with what the row's worker has"
            )
        return tuple(found)

    def _watch(self, now: float) -> None:
        """Remember since when rows wait for what."""
        for partition in self._partitions.values():
            for row, log in partition.rows.items():
                if log.waits != self._waiting.get(row, ("", now))[0]:
                    self._waiting[row] = (log.waits, now)

    def _wanted(self) -> dict[str, list[int]]:
        """The partitions to read of each topic: not those of which a row holds much that no tick asks for."""
        wanted = {
            topic: [number for number, partition in self._partitions.items() if partition.wants(topic)]
            for topic in TOPICS
        }
        return {topic: numbers for topic, numbers in wanted.items() if numbers}

    def _read(self, reader: Reader, reading: Mapping[str, list[int]]) -> Iterator[Done]:
        received = reader.poll(_WAIT_S)
        for (topic, number), some in groupby(received, key=lambda each: (each.topic, each.partition)):
            yield from self._take(topic, number, list(some))
        for number, partition in self._partitions.items():
            if any(log.waits for log in partition.rows.values()):
                for topic in TOPICS:
                    # What a tick waits for may be deleted: then nothing comes, and reading stands behind it.
                    at = reader.position(topic, number) if number in reading.get(topic, ()) else None
                    if at is not None and at > self._next.get((topic, number), 0):
                        self._reach(topic, number, at)
                        self._next[topic, number] = at
                        yield from partition.begin(topic, at, at)

    def _take(self, topic: str, number: int, received: list[Received]) -> Iterable[Done]:
        self._reach(topic, number, received[0].offset)
        self._next[topic, number] = received[-1].offset + 1
        for each in received:
            row = each.key.decode(errors="replace")
            if row in self.beats:
                try:
                    self._places[row, topic].append((each.offset, _named.decode(each.value).id))
                except msgspec.DecodeError:
                    continue  # counted with the dead letters
        messages = [_Message(each.offset, each.key, each.value, each.timestamp_ms) for each in received]
        done, letters = self._partitions[number].take(topic, messages)
        self._dead += len(letters)
        return done

    def _reach(self, topic: str, number: int, offset: int) -> None:
        """Reading goes on at an offset; count what was to come before it."""
        self._skipped += offset - self._next.get((topic, number), offset)

    def _placed(self, beat: Beat) -> dict[str, Place]:
        """Where a beat's messages stand."""
        row, tick = beat.tick.subject, beat.tick
        number = partition_of(row.encode(), BY_NAME[TICKS].partitions)
        found: dict[str, Place] = {}
        for topic, upto in tick.upto.items():
            places = self._places[row, topic]
            while places and places[0][0] < upto:
                offset, name = places.popleft()
                found[name] = (number, offset)
        ticks = self._places[row, TICKS]
        while ticks and tick.id not in found:
            offset, name = ticks.popleft()
            found[name] = (number, offset)
        return found


def _by_partition(rows: Iterable[str]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        found[partition_of(row.encode(), BY_NAME[TICKS].partitions)].append(row)
    return found


def _starts(logs: Mapping[str, RowLog], snapshots: Mapping[str, bytes]) -> dict[tuple[str, int], int]:
    """Where reading begins, on each partition where every row there has a snapshot; the others begin with
    the oldest message."""
    covered = {path: log.restore(snapshots.get(path)) for path, log in logs.items()}
    if refused := [f"{path}: {log.refusal}" for path, log in logs.items() if log.refusal]:
        raise ConfigError(
            "\n".join([*refused, "record with the site file, policy and version of its worker"])
        )
    starts = {}
    for number, rows in _by_partition(logs).items():
        for topic in TOPICS:
            offsets = [covered[row].get(topic) for row in rows]
            known = [offset for offset in offsets if offset is not None]
            if len(known) == len(offsets):
                starts[topic, number] = min(known)
    return starts
