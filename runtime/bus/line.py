"""A line to Kafka: kafka-python's idempotent producer, so held that what is sent keeps its order.

What its library does otherwise, and what is done about it here:

- Its constructor waits for a broker: `Line.opened` belongs on a thread of its own.
- After an error that is no passing one it goes on with the next batch, so that a record sent again
  afterwards would come behind newer ones. So the line ends at the first such error, at once, on the
  library's own thread; who sends takes the unacknowledged ones to the next line.
- After a record that the brokers refuse it sends nothing any more, of no topic, and fails whatever it is
  given with that record's error, as if all of it had been refused. So the line ends there too.
- `close` waits for what was sent, and gives up without closing. So a line that is dropped is ended by
  its sender, and is gone before another one is opened: an old one that comes to life would send twice.
- It has no bound on what it buffers: who sends has one.

Acks from all replicas in sync; gzip more than halves a frame of ten samples and costs 0.1 ms of CPU for
each (measured: `benchmarks/publishing.py`), which for one frame a second is nothing, and the brokers keep
it for days in three copies; zstd and lz4 need a package more, on every reader too. No linger: frames of a
host come one at a time.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

from runtime.bus.clients import connect
from runtime.bus.settings import BusError, KafkaConfig
from runtime.bus.spool import Record

OPENING_S = 5.0
"""How long a broker may take to answer the first time (our choice)."""

_ASKING_S = 0.25  # for a topic's partitions: one answer of the broker
_REQUEST_MS = 10_000
_FOREVER_MS = 2**31 - 1  # no record expires on its own, and so none is overtaken
_REFUSALS = (
    "MessageSizeTooLargeError",
    "RecordListTooLargeError",
    "InvalidRecordError",
    "InvalidTimestampError",
)


def usable(kafka: KafkaConfig) -> None:
    """See that Kafka could be reached as configured, if it were there. Raises BusError in words."""
    if importlib.util.find_spec("kafka") is None:
        raise BusError("Kafka is not installed here (kafka): pip install -e '.[kafka]' in Windrow's clone")
    kafka.for_kafka_python()


class Closed(Exception):
    """The line has ended; what it was given and did not acknowledge is for the next one."""


class NotReady(Exception):
    """A topic cannot be sent to just now; the text says why."""


class Line:
    """One connection to Kafka, from its opening to its end. For one thread.

    `told` is called for each record with what it was given as, and with why Kafka refused it for good
    (empty: it has it). It is called on the library's thread.
    """

    def __init__(self, producer: Any, told: Callable[[Any, str], None]) -> None:
        self._producer = producer
        self._told = told
        self.ended = ""
        """Why it takes no more, in words; empty while it does."""
        self.failed: Any = None
        """What the record was given as that ended it, if one did."""

    @classmethod
    def opened(cls, kafka: KafkaConfig, client: str, told: Callable[[Any, str], None]) -> Line:
        """Reach a broker. Waits for `OPENING_S` at most; raises BusError in words."""
        producer = connect(
            "KafkaProducer",
            kafka,
            OPENING_S,
            client_id=client,
            enable_idempotence=True,
            compression_type="gzip",
            max_block_ms=round(_ASKING_S * 1000),
            request_timeout_ms=_REQUEST_MS,
            delivery_timeout_ms=_FOREVER_MS,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        ).client
        return cls(producer, told)

    def ready(self, topic: str) -> None:
        """See that a topic can be sent to; quick once it could. Raises NotReady, Closed."""
        try:
            self._producer.partitions_for(topic)
        except Exception as error:
            if self.ended:
                raise Closed(self.ended) from None
            missing = type(error).__name__ in ("KafkaTimeoutError", "UnknownTopicOrPartitionError")
            why = "does not answer, or has no such topic" if missing else _words(error)
            raise NotReady(f"Kafka, asked for {topic}: {why}") from None

    def send(self, topic: str, record: Record, mark: object) -> None:
        """Hand one record over; `told` hears what became of it, unless the line ends before. Raises
        Closed."""
        try:
            future = self._producer.send(topic, record.value, key=record.key, timestamp_ms=record.at)
        except Exception as error:
            if type(error).__name__ in _REFUSALS:
                self._told(mark, _words(error))
                return
            self.end(_words(error))
            raise Closed(self.ended) from None
        future.add_callback(functools.partial(self._acknowledged, mark))
        future.add_errback(functools.partial(self._failed, mark))

    def _acknowledged(self, mark: object, _: object) -> None:
        self._told(mark, "")

    def _failed(self, mark: object, error: Exception) -> None:
        if self.ended:
            return  # what fails with the first is for the next line
        if type(error).__name__ in _REFUSALS:
            self._told(mark, _words(error))
        else:
            self.failed = mark
        self.end(_words(error))

    def end(self, why: str) -> None:
        """Take no more and send nothing more, from this moment. Any thread; the first reason stays."""
        if not self.ended:
            self.ended = why
            self._producer._sender.force_close()

    def gone(self, timeout_s: float) -> bool:
        """Whether an ended line is gone; waits for it for so long."""
        sender = self._producer._sender
        sender.join(timeout_s)
        if sender.is_alive():
            return False
        self._producer.close(timeout=0)
        return True


def _words(error: Exception) -> str:
    """An error of the library without what it repeats."""
    name = type(error).__name__
    text = " ".join(str(error).split())
    return text if text.startswith(name) else f"{name}: {text}" if text else name
