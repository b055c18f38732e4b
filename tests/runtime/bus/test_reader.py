"""Partitions are read in order and from where they were left, whatever becomes of the broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from support.kafka_broker import Node

from runtime.bus.clients import connect
from runtime.bus.provision import ensure
from runtime.bus.reader import Reader, Received
from runtime.bus.settings import KafkaConfig
from schemas.topics import BY_NAME

POWER, TICKS = "windrow.power", "windrow.ticks"
FEW = [BY_NAME[POWER]._replace(partitions=2), BY_NAME[TICKS]._replace(partitions=1)]

Send = Callable[..., None]


@pytest.fixture
def send(kafka: KafkaConfig) -> Iterator[Send]:
    """Puts numbered messages on a partition, on topics that are there."""
    ensure(kafka, FEW)
    producer = connect("KafkaProducer", kafka, 10.0).client

    def put(*numbers: int, topic: str = POWER, partition: int = 0) -> None:
        for number in numbers:
            producer.send(kafka.topic(topic), key=b"row", value=b"%d" % number, partition=partition)
        producer.flush(10)

    yield put
    producer.close()


def read(reader: Reader, wanted: int, patience_s: float = 15.0) -> list[Received]:
    """So many messages, or those that came in time."""
    found: list[Received] = []
    until = time.monotonic() + patience_s
    while len(found) < wanted and time.monotonic() < until:
        found += reader.poll(0.2)
    return found


def until_away(reader: Reader, why: str, patience_s: float = 15.0) -> None:
    """Read nothing until it is said why."""
    until = time.monotonic() + patience_s
    while reader.away != why and time.monotonic() < until:
        assert reader.poll(0.1) == []
    assert reader.away == why


def numbers(messages: list[Received]) -> list[int]:
    return [int(message.value) for message in messages]


# ---- from where ----


@pytest.mark.counterpart
def test_what_lies_there_is_read_with_where_it_lies(kafka: KafkaConfig, send: Send) -> None:
    send(1, 2)
    send(3, partition=1)
    send(4, topic=TICKS)
    reader = Reader(kafka, {POWER: None, TICKS: [0]}, start="earliest")
    found = read(reader, 4)
    assert {(m.topic, m.partition, m.offset, m.key, m.value) for m in found} == {
        (POWER, 0, 0, b"row", b"1"),
        (POWER, 0, 1, b"row", b"2"),
        (POWER, 1, 0, b"row", b"3"),
        (TICKS, 0, 0, b"row", b"4"),
    }
    assert all(abs(m.timestamp_ms / 1000 - time.time()) < 60 for m in found)
    assert reader.ends() == {(POWER, 0): 2, (POWER, 1): 1, (TICKS, 0): 1}
    assert [reader.position(*place) for place in reader.ends()] == list(reader.ends().values())
    assert reader.away == ""
    reader.close()


@pytest.mark.counterpart
def test_only_the_partitions_asked_for_are_read(kafka: KafkaConfig, send: Send) -> None:
    send(1)
    send(2, partition=1)
    reader = Reader(kafka, {POWER: [1]}, start="earliest")
    assert numbers(read(reader, 1)) == [2]
    assert reader.poll(0.2) == []
    assert reader.position(POWER, 0) is None
    reader.close()


@pytest.mark.counterpart
def test_the_latest_start_is_after_what_is_there(kafka: KafkaConfig, send: Send) -> None:
    send(1, 2)
    reader = Reader(kafka, {POWER: [0]}, start="latest")
    assert reader.ends() == {(POWER, 0): 2}
    send(3)
    assert numbers(read(reader, 1)) == [3]
    reader.close()


@pytest.mark.counterpart
def test_reading_starts_at_an_instant(kafka: KafkaConfig, send: Send) -> None:
    send(1)
    time.sleep(0.02)
    between = time.time_ns() // 1_000_000
    time.sleep(0.02)
    send(2)
    reader = Reader(kafka, {POWER: None}, start=between)
    assert reader.ends() == {(POWER, 0): 2, (POWER, 1): 0}
    send(3, partition=1)  # nothing was there: what comes is after the instant
    assert sorted(numbers(read(reader, 2))) == [2, 3]
    reader.close()


@pytest.mark.counterpart
def test_reading_starts_at_the_offsets_given_and_else_with_the_oldest(kafka: KafkaConfig, send: Send) -> None:
    send(1, 2, 3)
    send(4, 5, partition=1)
    reader = Reader(kafka, {POWER: None}, start={(POWER, 0): 2})
    assert sorted(numbers(read(reader, 3))) == [3, 4, 5]
    reader.close()


@pytest.mark.counterpart
def test_no_more_is_handed_out_than_asked_for(kafka: KafkaConfig, send: Send) -> None:
    send(*range(10))
    reader = Reader(kafka, {POWER: [0]}, start="earliest")
    assert reader.ends() == {(POWER, 0): 10}
    taken = [reader.poll(5.0, most=4) for _ in range(3)]
    assert [len(some) for some in taken] == [4, 4, 2]
    assert numbers([message for some in taken for message in some]) == list(range(10))
    reader.close()


# ---- what retention deleted ----


@pytest.mark.counterpart
def test_what_was_deleted_before_it_was_read_is_skipped_and_counted(kafka: KafkaConfig, send: Send) -> None:
    send(*range(10))
    reader = Reader(kafka, {POWER: [0]}, start={(POWER, 0): 2})
    assert reader.ends() == {(POWER, 0): 10}
    delete_before(kafka, 7)
    assert numbers(read(reader, 3)) == [7, 8, 9]
    assert reader.skipped == 5
    assert reader.position(POWER, 0) == 10
    reader.close()


@pytest.mark.counterpart
def test_an_offset_beyond_the_end_reads_all_there_is_and_skips_nothing(
    kafka: KafkaConfig, send: Send
) -> None:
    send(1, 2)  # as after the topic was made anew
    reader = Reader(kafka, {POWER: [0]}, start={(POWER, 0): 500})
    assert numbers(read(reader, 2)) == [1, 2]
    assert reader.skipped == 0
    reader.close()


def delete_before(kafka: KafkaConfig, offset: int) -> None:
    """Delete the messages of partition 0 before an offset, as retention does."""
    from kafka import TopicPartition

    admin = connect("KafkaAdminClient", kafka, 10.0).client
    admin.delete_records({TopicPartition(kafka.topic(POWER), 0): offset})
    admin.close()


# ---- a broker that is away ----


def test_without_a_broker_nothing_is_read_nothing_is_raised_and_it_is_said_why() -> None:
    reader = Reader(KafkaConfig(servers=("127.0.0.1:1",)), {POWER: [0]}, start="earliest")
    assert reader.away == "Kafka was not asked yet"
    began = time.monotonic()
    assert reader.poll(0.2) == []
    assert time.monotonic() - began < 1.0
    until_away(reader, "Kafka at 127.0.0.1:1 is not there (connection refused)")
    assert reader.position(POWER, 0) is None
    began = time.monotonic()
    reader.close()
    assert time.monotonic() - began < 0.5
    assert reader.poll(0.1) == []


@pytest.mark.counterpart
def test_a_topic_that_is_not_there_is_waited_for_and_not_made(kafka: KafkaConfig) -> None:
    reader = Reader(kafka, {POWER: [0]}, start="earliest")
    until_away(reader, f"Kafka has no topic {kafka.topic(POWER)}: windrow topics --create makes it")
    report = ensure(kafka, FEW)
    assert kafka.topic(POWER) in report.created
    assert reader.ends() == {(POWER, 0): 0}
    assert reader.away == ""
    reader.close()


@pytest.mark.counterpart
def test_a_partition_that_is_not_there_is_told_of(kafka: KafkaConfig) -> None:
    ensure(kafka, FEW)
    reader = Reader(kafka, {POWER: [0, 17]}, start="earliest")
    until_away(reader, f"{kafka.topic(POWER)} has 2 partitions, and none of number 17: see windrow topics")
    reader.close()


@pytest.mark.counterpart
def test_reading_goes_on_where_it_stood_when_a_killed_broker_is_back(broker: Node) -> None:
    kafka = KafkaConfig(servers=(broker.address,))
    ensure(kafka, FEW)
    reader = Reader(kafka, {POWER: [0]}, start="earliest")
    put(kafka, 1, 2)
    assert numbers(read(reader, 2)) == [1, 2]
    broker.kill()
    until = time.monotonic() + 10.0
    while not reader.away and time.monotonic() < until:
        assert reader.poll(0.1) == []
    assert reader.away
    assert reader.ends() == {}
    assert reader.position(POWER, 0) == 2
    broker.start()
    put(kafka, 3)
    assert numbers(read(reader, 1)) == [3]
    assert reader.away == ""
    assert reader.skipped == 0
    reader.close()


def put(kafka: KafkaConfig, *numbers: int) -> None:
    producer = connect("KafkaProducer", kafka, 10.0).client
    for number in numbers:
        producer.send(kafka.topic(POWER), key=b"row", value=b"%d" % number, partition=0)
    producer.flush(10)
    producer.close()


@pytest.mark.counterpart
def test_a_closed_reader_leaves_no_thread_behind(kafka: KafkaConfig, send: Send) -> None:
    send(1)
    before = threading.active_count()
    reader = Reader(kafka, {POWER: [0]}, start="earliest")
    assert numbers(read(reader, 1)) == [1]
    began = time.monotonic()
    reader.close()
    assert time.monotonic() - began < 0.5
    assert threading.active_count() == before
    assert reader.poll(0.1) == []
    assert reader.ends() == {}
    reader.close()
