"""Reading topics by assignment: whoever reads says which partitions, from where, and remembers how far.

No consumer group: nothing is rebalanced between a row and who reads it, and two may read the same.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

from runtime.bus.clients import Connection, connect
from runtime.bus.settings import BusError, KafkaConfig
from schemas.instants import Instant

_LOG = logging.getLogger(__name__)

Start: TypeAlias = Literal["earliest", "latest"] | Instant | Mapping[tuple[str, int], int]
"""Where reading begins: with the oldest message kept, after the newest there is once Kafka is reached, with
the first that came to Kafka at an instant or later, or at an offset for each (topic, partition); one that
the mapping lacks begins with the oldest."""

_CONNECT_S = 3.0
_ASK_S = 5.0
_AGAIN_S = 0.5
_REQUEST_MS = 10_000  # then a broker that hangs counts as away; Kafka's own 30 s is long for a row's power


class Received(NamedTuple):
    """One message as it lies on Kafka. `topic` is without the prefix; `key` and `value` are empty where it
    has none; `timestamp_ms` is when it came to Kafka."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    timestamp_ms: Instant


class Reader:
    """Reads partitions of topics, in order within each. Nothing is raised for a broker that is away: it is
    tried again from where reading stood, and `away` says what is wrong.

    For one thread, but for `away`, which any may read. What a topic's retention deleted before it was read
    is skipped and counted in `skipped`. Messages that Kafka itself lost (no copy of them is left) may make
    it read some again.

    `partitions` names those of each topic; None is all that the topic has. `among` says how many a topic is
    to have where they were reckoned from keys: on a topic with another number the keys lie elsewhere, and
    nothing is read.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        partitions: Mapping[str, Sequence[int] | None],
        *,
        start: Start,
        among: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._kafka = kafka
        self._wanted = {kafka.topic(topic): numbers for topic, numbers in partitions.items()}
        self._among = {kafka.topic(topic): count for topic, count in among.items()}
        self._start = start
        self._next: dict[tuple[str, int], int] = {}  # by Kafka's names, where reading goes on
        self._overtaken: dict[tuple[str, int], int] = {}  # what was to be read next, and is deleted
        self._connection: Connection | None = None
        self._found = queue.SimpleQueue[Connection]()
        self._seeking: threading.Thread | None = None
        self._closed = threading.Event()
        self._closing = threading.Lock()
        self.skipped = 0
        """Messages that were deleted before they were read."""
        self.away = "Kafka was not asked yet"
        """Why nothing can be read just now, in words; empty while a broker is connected."""

    def poll(self, timeout_s: float, most: int = 500) -> list[Received]:
        """What has come, `most` messages at most. Waits for the first for `timeout_s`, and as long again
        where Kafka has to be reached first."""
        connection = self._connected(timeout_s)
        if connection is None:
            return []
        try:
            records = connection.client.poll(timeout_ms=round(timeout_s * 1000), max_records=most)
        except Exception as error:
            self._cope(connection, error)
            return []
        if not records and not connection.reached():
            self._part(connection, f"the connection to Kafka at {', '.join(self._kafka.servers)} is lost")
        for place, found in records.items():
            self._count_skipped(place, found[0].offset)
            self._next[place] = found[-1].offset + 1
        return [
            Received(
                record.topic[len(self._kafka.prefix) :],
                record.partition,
                record.offset,
                record.key or b"",
                record.value or b"",
                record.timestamp,
            )
            for record in itertools.chain.from_iterable(records.values())
        ]

    def ends(self) -> dict[tuple[str, int], int]:
        """The offset that each partition's next message will have; empty while Kafka cannot be asked."""
        connection = self._connected(_ASK_S)
        if connection is None:
            return {}
        try:
            ends = connection.client.end_offsets(connection.client.assignment(), timeout_ms=_ASK_S * 1000)
        except Exception as error:
            self._cope(connection, error)
            return {}
        return {(tp.topic[len(self._kafka.prefix) :], tp.partition): end for tp, end in ends.items()}

    def position(self, topic: str, partition: int) -> int | None:
        """The offset that is read next; None while it is not known yet. It reaches the partition's end even
        where the last offsets hold no message."""
        place, at = (self._kafka.topic(topic), partition), None
        if self._connection is not None:
            from kafka import TopicPartition
            from kafka.errors import KafkaError

            with contextlib.suppress(KafkaError):
                at = self._connection.client.position(TopicPartition(*place), timeout_ms=0)
        return self._next.get(place) if at is None else int(at)

    def close(self) -> None:
        """Let go, at once."""
        with self._closing:
            self._closed.set()
            if self._connection is not None:
                self._connection.client.close()
            while not self._found.empty():
                self._found.get().client.close()
        self._connection = None
        self.away = "this reader is closed"

    # ---- reaching Kafka ----

    def _connected(self, timeout_s: float) -> Connection | None:
        if self._connection is None and not self._closed.is_set():
            if self._seeking is None:
                self._seeking = threading.Thread(target=self._seek, name="kafka-reader", daemon=True)
                self._seeking.start()
            try:
                self._connection = self._found.get(timeout=timeout_s)
            except queue.Empty:
                return None
            self._seeking = None
            self.away = ""
        return self._connection

    def _seek(self) -> None:
        """Try until Kafka is reached; on a thread of its own, because the library's clients block."""
        while not self._closed.is_set():
            try:
                connection = self._opened()
            except BusError as error:
                if not self._closed.is_set():
                    self.away = str(error)
                self._closed.wait(_AGAIN_S)
                continue
            with self._closing:
                if self._closed.is_set():
                    connection.client.close()
                else:
                    self._found.put(connection)
                return

    def _opened(self) -> Connection:
        """A consumer that stands where reading goes on. Raises BusError."""
        connection = connect(
            "KafkaConsumer",
            self._kafka,
            _CONNECT_S,
            auto_offset_reset="none",  # a gap is for us to count
            enable_auto_commit=False,
            metrics_enabled=False,
            request_timeout_ms=_REQUEST_MS,
        )
        from kafka.errors import KafkaError

        client = connection.client
        try:
            places = self._places(client)
            client.assign(places)
            starts = self._starts(client, [place for place in places if place not in self._next])
            self._next.update(starts)
            for place in places:
                client.seek(place, self._next[place])
        except (BusError, KafkaError) as error:
            client.close()
            if isinstance(error, BusError):
                raise
            raise BusError(f"Kafka at {', '.join(self._kafka.servers)}: {error}") from None
        return connection

    def _places(self, client: Any) -> list[Any]:
        """The partitions to read. Raises BusError where Kafka has no such topic, or none of that number."""
        from kafka import TopicPartition

        known = client.topics()  # of all: to ask for one by its name may make it
        places = list[Any]()
        for topic, numbers in self._wanted.items():
            has = client.partitions_for_topic(topic) if topic in known else None
            if not has:
                raise BusError(f"Kafka has no topic {topic}: windrow topics --create makes it")
            if len(has) != (count := self._among.get(topic, len(has))):
                raise BusError(
                    f"{topic} has {len(has)} partitions and should have {count}: what is for here lies "
                    "elsewhere on it; see windrow topics"
                )
            if lacking := sorted(set(numbers or ()) - has):
                raise BusError(
                    f"{topic} has {len(has)} partitions, and none of number {lacking[0]}: see windrow topics"
                )
            places += [
                TopicPartition(topic, number) for number in sorted(has if numbers is None else numbers)
            ]
        return places

    def _starts(self, client: Any, places: list[Any]) -> dict[Any, int]:
        """Where reading begins."""
        start, ask = self._start, {"timeout_ms": _ASK_S * 1000}
        if not places:
            return {}
        if start == "latest":
            return dict(client.end_offsets(places, **ask))
        if start == "earliest":
            return dict(client.beginning_offsets(places, **ask))
        if isinstance(start, Mapping):
            given = {(self._kafka.topic(topic), number): offset for (topic, number), offset in start.items()}
            others = [place for place in places if place not in given]
            oldest = client.beginning_offsets(others, **ask) if others else {}
            return {place: given[place] if place in given else oldest[place] for place in places}
        ends = client.end_offsets(places, **ask)
        found = client.offsets_for_times(dict.fromkeys(places, max(0, int(start))), **ask)
        return {place: ends[place] if found[place] is None else found[place].offset for place in places}

    # ---- when something is wrong ----

    def _cope(self, connection: Connection, error: Exception) -> None:
        from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError

        if isinstance(error, OffsetOutOfRangeError):
            for place, offset in error.args[0].items():
                self._overtaken[place] = offset
                connection.client.seek_to_beginning(place)
            return
        if isinstance(error, LogTruncationError):
            for place, common in error.divergent_offsets.items():
                _LOG.error("%s, partition %d: Kafka lost messages that were read; reading on", *place)
                if common is None:
                    connection.client.seek_to_beginning(place)
                else:
                    connection.client.seek(place, common.offset)
            return
        if not isinstance(error, KafkaError):
            _LOG.exception("reading from Kafka failed; it is tried again")
        self._part(connection, f"Kafka at {', '.join(self._kafka.servers)}: {error}")

    def _part(self, connection: Connection, why: str) -> None:
        """Drop a connection that is of no use; reading goes on where it stood."""
        self.away = why
        self._connection = None
        connection.client.close()

    def _count_skipped(self, place: tuple[str, int], first: int) -> None:
        """Reading was overtaken by deletion, and goes on with `first`."""
        if (due := self._overtaken.pop(place, None)) is not None and first > due:
            self.skipped += first - due
            _LOG.warning(
                "%s, partition %d: %d messages were deleted before they were read", *place, first - due
            )
