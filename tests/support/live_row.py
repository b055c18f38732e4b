"""A row of the twin in real time on a bus: its collectors publish, and its agents do what they are told."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import closing

from confluent_kafka import Producer

from runtime.bus.keys import Keys, partition_of
from runtime.bus.reader import Reader, Received
from runtime.bus.settings import KafkaConfig
from runtime.clock import SystemClock
from runtime.config import Setup
from runtime.hosts.row_log import INPUTS, TICKS
from runtime.wiring import Unkept, on_twin, plant_of
from schemas import codec
from schemas.commands import Command, LockClocks
from schemas.envelope import Event
from schemas.instants import SECOND
from schemas.topics import BY_NAME, BY_TYPE, topic_of
from twin.row import DEMO

_COMMANDS = BY_TYPE[LockClocks].name


class LiveRow:
    """The first row of a site, running from here on. Use as a context manager.

    `from_minute` is how far into the demonstration's evening it begins.
    """

    def __init__(self, kafka: KafkaConfig, setup: Setup, *, from_minute: float = 33.0) -> None:
        self._kafka = kafka
        self._setup = setup
        self._clock = SystemClock()
        self._plant = plant_of(setup, seed=4, start=self._clock.now(), load=DEMO.later(from_minute * 60.0))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-row", daemon=True)
        self.producer = Producer(
            {"bootstrap.servers": ",".join(kafka.servers), "linger.ms": 2, "log_level": 0}
        )

    def __enter__(self) -> LiveRow:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.producer.flush(10)

    def say(self, events: Iterable[Event]) -> None:
        """Publish messages, once for each row that they concern."""
        keys = Keys(self._setup.site)
        for event in events:
            for key in keys.message_keys(event):
                self.put(topic_of(event).name, key, codec.encode(event))

    def put(self, topic: str, key: bytes, value: bytes) -> None:
        """Publish bytes on the partition of their key."""
        number = partition_of(key, BY_NAME[topic].partitions)
        self.producer.produce(self._kafka.topic(topic), value, key=key, partition=number)
        self.producer.poll(0)

    def _run(self) -> None:
        rig = on_twin(self._plant, self._setup, ledger=Unkept(), frame_ms=SECOND)
        row = self._plant.row.path.encode()
        number = partition_of(row, BY_NAME[_COMMANDS].partitions)
        with closing(Reader(self._kafka, {_COMMANDS: [number]}, start="latest")) as reader:
            self.say(rig.host.agents.start(self._clock.now()))
            while not self._stop.is_set():
                told = [codec.decode(each.value) for each in reader.poll(0.1)]
                now = self._clock.now()
                self._plant.advance(now)
                self.say(rig.host.samples.gather(now))
                commands = [event for event in told if isinstance(event, Command)]
                self.say(rig.host.agents.step(commands, now))


def log_of(kafka: KafkaConfig, row: str) -> list[Received]:
    """All that a row's beats are made of, as it lies on the bus: inputs, then ticks, each topic in order."""
    found: list[Received] = []
    for topic in (*INPUTS, TICKS):
        found += messages_of(kafka, topic, row)
    return found


def messages_of(kafka: KafkaConfig, topic: str, key: str) -> list[Received]:
    """Everything that lies under a key on a topic, in order."""
    number = partition_of(key.encode(), BY_NAME[topic].partitions)
    found: list[Received] = []
    with closing(Reader(kafka, {topic: [number]}, start="earliest")) as reader:
        end = reader.ends()[topic, number]
        while (reader.position(topic, number) or 0) < end:
            found += reader.poll(0.5)
    return [received for received in found if received.key == key.encode()]
