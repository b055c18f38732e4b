"""A message is found where every Kafka client looks for it: under its rows, on their partition."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2 as murmur2_of_kafka_python
from support.two_rows import TWO_ROWS

from runtime.bus.keys import Keys, murmur2, partition_of
from runtime.bus.settings import KafkaConfig
from schemas.envelope import DeadLetter, Event, Tick
from schemas.operators import Unpin
from schemas.samples import FeedSample, UpsSample, WeatherSample
from schemas.site_file import read_site

KEYS = Keys(read_site(TWO_ROWS, "ams1.toml"))


def unpin(subject: str) -> Event:
    return Unpin(at=1, source="operator", subject=subject, by="ada")


@given(st.binary(max_size=64))
def test_the_hash_is_that_of_the_java_client_as_others_have_it(key: bytes) -> None:
    assert murmur2(key) == murmur2_of_kafka_python(key)


@pytest.mark.parametrize(
    ("key", "hashed"),
    [  # from Kafka's own UtilsTest.testMurmur2, signed there
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_the_hash_is_the_one_that_kafka_tests_for(key: bytes, hashed: int) -> None:
    assert murmur2(key) == hashed & 0xFFFFFFFF


@pytest.mark.counterpart
def test_what_another_client_sends_lies_where_we_look(kafka: KafkaConfig) -> None:
    topic, keys = kafka.topic("windrow.keys"), [f"ams1/row-{n}".encode() for n in range(40)]
    servers: dict[str, Any] = {"bootstrap.servers": ",".join(kafka.servers)}
    admin = AdminClient(servers)
    admin.create_topics([NewTopic(topic, 7, 1)])[topic].result(10)
    producer = Producer({**servers, "partitioner": "murmur2_random"})
    for key in keys:
        producer.produce(topic, key=key, value=b"")
    assert producer.flush(10) == 0
    reader = Consumer({**servers, "group.id": kafka.topic("keys"), "auto.offset.reset": "earliest"})
    reader.subscribe([topic])
    lies = {m.key(): m.partition() for m in reader.consume(len(keys), timeout=20)}
    reader.close()
    assert lies == {key: partition_of(key, 7) for key in keys}
    assert len(set(lies.values())) > 3


@pytest.mark.parametrize(
    ("subject", "rows"),
    [
        ("ams1/row-a/r-row-a/h01", [b"ams1/row-a"]),
        ("ams1/row-b", [b"ams1/row-b"]),
        ("ams1/ups-1/pdu-1/feed-row-b", [b"ams1/row-b"]),
        ("ams1", [b"ams1/row-a", b"ams1/row-b"]),
    ],
)
def test_a_message_goes_under_every_row_that_it_concerns(subject: str, rows: list[bytes]) -> None:
    assert list(KEYS.message_keys(unpin(subject))) == rows
    assert [row.encode() for row in KEYS.rows(unpin(subject))] == rows


def test_a_ups_speaks_to_every_row_it_feeds() -> None:
    ups = UpsSample(at=1, source="collector/meter", subject="ams1/ups-1", power_w=1.0)
    assert KEYS.message_keys(ups) == (b"ams1/row-a", b"ams1/row-b")


def test_a_stranger_goes_under_the_site_and_to_no_row() -> None:
    stranger = FeedSample(at=1, source="collector/meter", subject="ams1/ups-9/pdu-1/feed-x", power_w=1.0)
    assert KEYS.rows(stranger) == ()
    assert KEYS.message_keys(stranger) == (b"ams1",)


def test_what_is_of_the_site_goes_under_it() -> None:
    weather = WeatherSample(at=1, source="collector/weather", subject="ams1", outdoor_c=21.0)
    assert KEYS.message_keys(weather) == (b"ams1",)


def test_a_dead_letter_is_kept_once() -> None:
    def letter(subject: str) -> Event:
        return DeadLetter(at=1, source="x", subject=subject, topic="windrow.gpus", payload=b"?", reason="no")

    assert KEYS.message_keys(letter("ams1")) == (b"ams1",)
    assert KEYS.message_keys(letter("ams1/row-a")) == (b"ams1/row-a",)


def test_a_rows_own_messages_go_under_the_row() -> None:
    assert KEYS.message_keys(Tick(at=1, source="x", subject="ams1/row-b")) == (b"ams1/row-b",)
