"""Faust's Kafka transport, handing over at once what was fetched of a partition.

Faust makes a task, two locks and two queue passes of every message, some 5,000 a second on one core, where
to decode frames of eight GPUs takes a tenth of that time. Here a message of Faust's *is* a fetch: what one
request brought of one partition, however many records that is. Its consumer, group, assignor, channels,
agents and producer stay what they are, and ten times as many frames come through.

Nothing is acknowledged because it was read. A row is covered when a snapshot of it is kept, long after its
messages went by: so the topics are not acknowledged by Faust (``acks=False``), what is covered is committed
by `FetchConsumer.cover`, and reading begins where `Reader.place` says and not at what was committed.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import faust
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from runtime.hosts.partition import Record

_LOG = logging.getLogger(__name__)
_THEIRS = logging.getLogger("faust.transport")

FETCH_WAIT_MS = 50
"""How long a broker keeps a fetch that finds nothing. While one waits, what comes on partitions that it does
not name stays unseen, and Faust's own 1,500 ms are most of a row's period."""


class Fetch(NamedTuple):
    """What one request brought of one partition, in the order of its offsets; at least one record."""

    topic: str
    partition: int
    records: list[Record]


class FetchSchema(faust.Schema[Any, Any]):
    """The schema of topics whose messages are fetches: their reader decodes."""

    def loads_key(self, app: Any, message: Any, **_: Any) -> Any:
        """A fetch has no key of its own."""
        return None

    def loads_value(self, app: Any, message: Any, **_: Any) -> Any:
        """The fetch."""
        return message.value


class Reader(Protocol):
    """Who reads the fetches, and so knows where reading begins."""

    def lose(self, revoked: set[TP]) -> None:
        """This is taken away. Called at once, before anything waits for it."""

    async def place(self, assigned: set[TP], consumer: FetchConsumer) -> Mapping[TP, int]:
        """This is assigned, and nothing of it is read before this returns: by partition, the offset to
        read from. What it does not name is read from what was committed."""


class _ImpatientThread(driver.AIOKafkaConsumerThread):
    logger = _THEIRS

    def _create_worker_consumer(self, transport: driver.Transport) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # read when it starts; Faust has no setting for it
        return consumer


class FetchConsumer(driver.Consumer):
    """Faust's consumer, a message of which is a fetch."""

    logger = _THEIRS
    transport: FetchTransport

    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return _ImpatientThread(self, loop=self.loop, beacon=self.beacon)

    async def at_time(self, tps: Iterable[TP], at_ms: int) -> dict[TP, int]:
        """By partition, the offset of its first message at or after a time; one without such is left out."""
        thread = self._thread
        found = await thread.call_thread(
            thread._ensure_consumer().offsets_for_times, dict.fromkeys(tps, at_ms)
        )
        return {TP(*tp): answer.offset for tp, answer in found.items() if answer is not None}

    def committed(self, tp: TP, default: int) -> int:
        """What was committed of a partition."""
        return self._committed_offset.get(tp) or default

    def end(self, tp: TP) -> int | None:
        """The offset that a partition's log ended before when it was last fetched; None where that is not
        known, as while partitions change hands."""
        try:
            end: int | None = self.highwater(tp)
        except (AssertionError, KafkaError):  # the group's thread may just have given it away
            return None
        return end

    async def cover(self, offsets: Mapping[TP, int]) -> bool:
        """Commit: nothing below these offsets is needed any more. False where the brokers would not; what
        is not assigned here any more is left out."""
        assigned = self.assignment()
        fresh = {tp: at for tp, at in offsets.items() if tp in assigned and at > self.committed(tp, 0)}
        if fresh:
            thread = self._thread
            try:
                commit = {driver.ensure_aiokafka_TP(tp): at for tp, at in fresh.items()}
                await thread.call_thread(thread._ensure_consumer().commit, commit)
            except KafkaError as error:
                _LOG.warning("offsets are not committed: %s", error)
                return False
            self._committed_offset.update(fresh)
        return True

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        self.transport.reader.lose(revoked)
        await super().on_partitions_revoked(revoked)

    async def perform_seek(self) -> None:
        """Read from where the reader says. Faust calls it when an assignment is settled."""
        await super().perform_seek()
        places = await self.transport.reader.place(self.assignment(), self)
        if places:
            await self.seek_wait(places)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """As Faust's, a fetch at a time. What comes while partitions change hands is let go: reading
        begins anew after that."""
        fetched, active = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        for tp, records in (fetched or {}).items():
            if self.should_stop or not self.flow_active or self.app.consumer_generation_id != generation:
                return
            if active is None or tp in active or tp in self._buffered_partitions:
                yield tp, self._to_message(tp, records)

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        last = record[-1]
        fetch: Any = Fetch(tp.topic, tp.partition, record)
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000,
            last.timestamp_type,
            [],
            None,
            fetch,
            None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Nothing: Faust judges by its own acknowledgements, of which there are none. The watchdog looks."""


class OrderedProducer(driver.Producer):
    """Faust's producer, which never swaps or doubles messages when it sends again."""

    logger = _THEIRS

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"enable_idempotence": True}


class FetchTransport(driver.Transport):
    """Faust's Kafka transport with these two, for one reader."""

    Consumer = FetchConsumer
    Producer = OrderedProducer

    def __init__(self, reader: Reader, app: faust.App) -> None:
        super().__init__(app.conf.broker_consumer, app)
        self.reader = reader


def fetching(app: faust.App, reader: Reader) -> None:
    """Have the app read by fetches; call it before anything asks the app for a topic."""
    app.transport = app.producer_transport = FetchTransport(reader, app)
