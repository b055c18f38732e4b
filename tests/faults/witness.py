"""What was said on the bus, read by a client that is not ours and from nobody's state."""

import bisect
import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from runtime.bus.settings import KafkaConfig
from runtime.clock import SystemClock
from schemas.codec import Malformed, decode
from schemas.envelope import Event
from schemas.instants import Instant
from schemas.topics import TOPICS

WATCHED = tuple(topic.name for topic in TOPICS if topic.types)
"""The topics of messages. The ledger repeats them, and a snapshot is none."""

LEDGER = "windrow.ledger"


class Said(NamedTuple):
    """A message as it lies in the log. `kept_at` is when the broker took it, by the broker's clock: what
    others could know from then on. `event.at` is what the message says of itself."""

    topic: str
    partition: int
    offset: int
    key: bytes
    kept_at: Instant
    event: Event


class Witness:
    """Reads WATCHED from the beginning, and keeps it in `said` in the order of each partition.

    `recorded` is by id when the broker first took a message's record for the ledger. `unreadable` counts
    values that are no message of ours.
    """

    def __init__(self, kafka: KafkaConfig) -> None:
        self.said: list[Said] = []
        self.recorded: dict[str, Instant] = {}
        self.unreadable = 0
        self._read_at: list[Instant] = []
        self._now = SystemClock().now
        self._names = {kafka.topic(name): name for name in (*WATCHED, LEDGER)}
        self._places: list[TopicPartition] = []
        self._client: dict[str, str | int | float | bool] = {
            "bootstrap.servers": ",".join(kafka.servers),
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
        }
        self._consumer = Consumer(
            {
                **self._client,
                "group.id": kafka.topic("witness"),  # asked for, and not used: the partitions are assigned
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                # Hundreds of partitions are looked at four times a second, not at each message.
                "fetch.min.bytes": 1 << 20,
                "fetch.wait.max.ms": 250,
            }
        )

    def look(self, seconds: float) -> None:
        """Read for so long. A broker that is away is waited for, no longer than that."""
        until = time.monotonic() + seconds
        if not self._places:
            self._assign()
        while (left := until - time.monotonic()) > 0:
            for message in self._consumer.consume(1_000, timeout=min(left, 0.2)):
                if message.error() is None:
                    self._keep(message)

    def since(self, at: Instant) -> list[Said]:
        """What the broker took from `at` on."""
        first = bisect.bisect_left(self._read_at, at)  # nothing is read before it was taken
        return [each for each in self.said[first:] if each.kept_at >= at]

    def until(self, holds: Callable[[], bool], within_s: float) -> bool:
        """Read until `holds`; whether it did in time."""
        give_up = time.monotonic() + within_s
        while not holds():
            if time.monotonic() > give_up:
                return False
            self.look(0.2)
        return True

    def catch_up(self, within_s: float = 20.0) -> bool:
        """Read up to where each partition ends now; whether that was reached in time."""
        self.look(0.0)
        newest: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        asked = dict.fromkeys(self._places, newest)
        admin = AdminClient(self._client)
        told = admin.list_offsets(asked).items()
        ends = {(place.topic, place.partition): end.result(within_s).offset for place, end in told}

        def there() -> bool:
            at = self._consumer.position(self._places)
            return all(
                place.offset >= ends[place.topic, place.partition] for place in at if place.offset >= 0
            )

        return self.until(there, within_s)

    def await_groups(self, within_s: float = 60.0) -> bool:
        """Wait until the brokers coordinate groups: on a new cluster that takes seconds. Whether they do."""

        def coordinated() -> bool:
            try:
                self._consumer.committed(self._places[:1], timeout=5)
            except KafkaException:
                return False
            return bool(self._places)

        return self.until(coordinated, within_s)

    def close(self) -> None:
        """Let go of the broker."""
        self._consumer.close()

    def _assign(self) -> None:
        """Take up every partition, once all the topics are there."""
        with contextlib.suppress(KafkaException):
            there = self._consumer.list_topics(timeout=5).topics
            if self._names.keys() <= there.keys():
                names = sorted(self._names)
                self._places = [TopicPartition(t, p, 0) for t in names for p in there[t].partitions]
                self._consumer.assign(self._places)

    def _keep(self, message: Any) -> None:
        try:
            event = decode(message.value() or b"")
        except Malformed:
            self.unreadable += 1
            return
        at = message.timestamp()[1]
        place = self._names[message.topic()], message.partition(), message.offset()
        if place[0] == LEDGER:
            self.recorded.setdefault(event.id, at)
            return
        self._read_at.append(self._now())
        self.said.append(Said(*place, message.key() or b"", at, event))
