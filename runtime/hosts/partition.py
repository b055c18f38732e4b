"""One partition of the topics that rows read, and the rows that lie on it.

Messages come by topic, in the order of their offsets; each is the row's whose path is its key. What cannot
be read becomes a dead letter, what is of no row here is counted, and neither stops the partition. It is
pure: a shell fetches, and says what is to be done with what comes of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from runtime.hosts.row_log import INPUTS, TICKS, RowLog
from runtime.row_loop import Beat
from schemas import codec
from schemas.envelope import DeadLetter, Event
from schemas.topics import topic_of

TOPICS = (*INPUTS, TICKS)
"""What is read of a partition: all that a row's beats take in, and the ticks that close them."""

SOURCE = "runtime/control-worker"


class Record(Protocol):
    """What is read of a message that lay on the partition. `timestamp` is in milliseconds."""

    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def timestamp(self) -> int: ...


def read(record: Record, topic: str) -> Event:
    """The message that lay on a topic, or the dead letter that keeps it whole: it is none that we know, or
    belongs elsewhere."""
    payload = record.value or b""
    try:
        event = codec.decode(payload)
        if topic_of(event).name == topic:
            return event
        reason = f"a {type(event).__name__} does not belong on {topic}"
    except codec.Malformed as error:
        reason = str(error)
    subject = (record.key or b"").decode(errors="replace")
    return DeadLetter(
        at=record.timestamp, source=SOURCE, subject=subject, topic=topic, payload=payload, reason=reason
    )


class Done(NamedTuple):
    """A beat that could be done now, and the row's log that did it."""

    log: RowLog
    beat: Beat


class Unplaced:
    """Messages of no row of the partition that they lie on. `strangers`, by type, are of no row of the site
    at all; `misplaced`, by topic, of a row that lies elsewhere: their sender does not partition as Kafka's
    own clients do."""

    def __init__(self, rows: Iterable[str]) -> None:
        self.strangers: Counter[str] = Counter()
        self.misplaced: Counter[str] = Counter()
        self._rows = frozenset(row.encode() for row in rows)

    def count(self, event: Event, key: bytes, topic: str) -> None:
        """Such a message was read."""
        if key in self._rows:
            self.misplaced[topic] += 1
        else:
            self.strangers[type(event).__name__] += 1


class Partition:
    """The rows of one partition, and how far each topic was read.

    `begin` says where reading starts and where the log ended then. `ready` once it was read that far: only
    then may rows be beaten, for only then is no recorded beat missing. `unplaced` counts messages of no
    row here. `failed` holds, by row, why its loop can do no more beats: one row's fault is not the
    others'.
    """

    def __init__(self, number: int, rows: Mapping[str, RowLog], unplaced: Unplaced) -> None:
        self.number = number
        self.rows = dict(rows)
        self.unplaced = unplaced
        self.failed: dict[str, Exception] = {}
        self._by_key = {path.encode(): log for path, log in rows.items()}
        self._read: dict[str, int] = {}
        self._ended: dict[str, int] = {}
        self._covered: dict[str, Mapping[str, int]] = {path: {} for path in rows}

    def begin(self, topic: str, at: int, end: int) -> list[Done]:
        """Reading of a topic starts at this offset, and its log ended before that one. Call it for every
        topic before anything is taken; the beats that could be done all the same."""
        self._read[topic], self._ended[topic] = at, max(at, end)
        return self._passed(topic)

    def take(self, topic: str, records: Iterable[Record]) -> tuple[list[Done], list[DeadLetter]]:
        """Messages of a topic, in their order; the beats that could now be done, and what was unreadable."""
        done: list[Done] = []
        letters: list[DeadLetter] = []
        for record in records:
            self._read[topic] = record.offset + 1
            event = read(record, topic)
            if isinstance(event, DeadLetter):
                letters.append(event)
                continue
            log = self._by_key.get(record.key or b"")
            if log is None:
                self.unplaced.count(event, record.key or b"", topic)
                continue
            try:
                done += [Done(log, beat) for beat in log.take(topic, record.offset, event)]
            except Exception as error:  # a fault in a loop: it would be the same on every worker
                self._fail(log, error)
        return done + self._passed(topic), letters

    @property
    def behind(self) -> dict[str, int]:
        """By topic, how many messages are still to be read before rows may be beaten; a topic of which
        some row wants no more for now counts as read."""
        return {
            topic: end - self._read[topic]
            for topic, end in self._ended.items()
            if self._read[topic] < end and self.wants(topic)
        }

    @property
    def ready(self) -> bool:
        """Whether the log was read to where it ended when reading began."""
        return len(self._ended) == len(TOPICS) and not self.behind

    def lag(self, topic: str, end: int) -> int:
        """How many messages of a topic are still to be read when its log ends before `end`."""
        return max(0, end - self._read[topic])

    def wants(self, topic: str) -> bool:
        """Whether to fetch more of a topic: every row can take more of it."""
        return all(log.wants(topic) for log in self.rows.values())

    def keep(self, row: str, covers: Mapping[str, int]) -> None:
        """The broker has a snapshot of the row: by topic, nothing below these offsets is needed for it."""
        self._covered[row] = covers

    @property
    def covered(self) -> dict[str, int]:
        """By topic, the offset below which nothing is needed any more, where there is one."""
        if not self.rows:
            return dict(self._read)
        least: dict[str, int] = {}
        for topic in self._read:
            offsets = [self._covered[row].get(topic) for row in self.rows]
            if all(offset is not None for offset in offsets):
                least[topic] = min(offset for offset in offsets if offset is not None)
        return least

    def _passed(self, topic: str) -> list[Done]:
        done: list[Done] = []
        for log in list(self.rows.values()):
            try:
                done += [Done(log, beat) for beat in log.passed(topic, self._read[topic])]
            except Exception as error:
                self._fail(log, error)
        return done

    def _fail(self, log: RowLog, error: Exception) -> None:
        row = log.loop.row.path
        self.failed[row] = error
        self.rows.pop(row, None)
        self._by_key.pop(row.encode(), None)
