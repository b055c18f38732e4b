"""Our topics and everybody else's clients: kcat and librdkafka read, write and partition as we do."""

import itertools
import json
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jsonschema
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from kafka import KafkaConsumer, KafkaProducer
from support.cached import Unavailable
from support.catalogue_files import Release, released
from support.counterparts import missing
from support.kcat import kcat
from support.messages import plain, specimens
from support.sites import DEMO, site_from

from runtime.bus.keys import Keys, partition_of
from runtime.bus.line import Line
from runtime.bus.reader import Reader
from runtime.bus.settings import KafkaConfig
from runtime.bus.spool import Record
from schemas.codec import decode, encode
from schemas.envelope import Event
from schemas.topics import TYPES, topic_of

pytestmark = pytest.mark.counterpart

PARTITIONS = 5
SITE = site_from(DEMO)
KEYS = tuple(f"ams1/row-{name}".encode() for name in ("a", "b", "c-17", "déjà-vu", "x" * 61))
OTHERS = ("kafka-python", "confluent-kafka", "kcat")


class Lying(NamedTuple):
    """A message as it lies in a topic."""

    partition: int
    key: bytes
    value: bytes


def make_topic(kafka: KafkaConfig, name: str) -> str:
    """An empty topic of PARTITIONS, by its name on the broker."""
    topic = kafka.topic(name)
    admin = AdminClient({"bootstrap.servers": ",".join(kafka.servers)})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(20)
    return topic


def run_kcat(*arguments: str, said: bytes = b"") -> bytes:
    try:
        return kcat(*arguments, said=said)
    except Unavailable as error:
        missing(str(error))


def write_with(client: str, kafka: KafkaConfig, topic: str, messages: Iterable[tuple[bytes, bytes]]) -> None:
    """Write (key, value)s with somebody else's client, told to partition as Java's does."""
    if client == "kafka-python":
        with KafkaProducer(**kafka.for_kafka_python()) as producer:
            for key, value in messages:
                producer.send(topic, value, key)
    elif client == "confluent-kafka":
        settings = {"bootstrap.servers": ",".join(kafka.servers), "partitioner": "murmur2_random"}
        other = Producer(settings)
        for key, value in messages:
            other.produce(topic, value, key)
        assert other.flush(20) == 0
    else:
        options = ["-b", ",".join(kafka.servers), "-t", topic, "-X", "topic.partitioner=murmur2_random"]
        lines = b"".join(key + b"\t" + value + b"\n" for key, value in messages)
        run_kcat("-P", "-K", "\\t", *options, said=lines)


def read_with(client: str, kafka: KafkaConfig, topic: str, count: int) -> list[Lying]:
    """The topic from its beginning, `count` messages, as somebody else's client sees them."""
    if client == "kafka-python":
        found = KafkaConsumer(
            topic, **kafka.for_kafka_python(), auto_offset_reset="earliest", consumer_timeout_ms=10_000
        )
        try:
            taken = itertools.islice(found, count)
            return [Lying(got.partition, got.key, got.value) for got in taken]
        finally:
            found.close()
    if client == "confluent-kafka":
        consumer = Consumer({"bootstrap.servers": ",".join(kafka.servers), "group.id": "unused"})
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
        lines = [
            Lying(got.partition() or 0, got.key() or b"", got.value() or b"")
            for got in consumer.consume(count, timeout=20)
        ]
        consumer.close()
        return lines
    form = ["-f", "%p\\t%k\\t%s\\n"]
    said = run_kcat("-C", "-e", "-q", "-o", "beginning", "-b", ",".join(kafka.servers), "-t", topic, *form)
    split = (line.split(b"\t", 2) for line in said.splitlines())
    return [Lying(int(partition), key, value) for partition, key, value in split]


def read_by_us(kafka: KafkaConfig, topics: Iterable[str], count: int) -> Iterator[Lying]:
    """What our own reader finds in these of our topics, from their beginning."""
    reader = Reader(kafka, dict.fromkeys(topics), start="earliest")
    try:
        give_up = time.monotonic() + 20
        while count > 0 and time.monotonic() < give_up:
            for got in reader.poll(0.5, count):
                count -= 1
                assert got.key is not None
                assert got.value is not None
                yield Lying(got.partition, got.key, got.value)
    finally:
        reader.close()
    assert count == 0


EVENTS = [event for kind in TYPES for event in specimens(kind)]
SAID = [(Keys(SITE).message_keys(event)[0], encode(event)) for event in EVENTS]


@pytest.mark.parametrize("client", OTHERS)
def test_every_client_puts_a_key_on_the_partition_that_we_work_out(client: str, kafka: KafkaConfig) -> None:
    topic = make_topic(kafka, "windrow.gpus")
    write_with(client, kafka, topic, [(key, b"{}") for key in KEYS])
    found = {line.key: line.partition for line in read_with("confluent-kafka", kafka, topic, len(KEYS))}
    assert found == {key: partition_of(key, PARTITIONS) for key in KEYS}


@pytest.mark.parametrize("client", OTHERS)
def test_every_client_reads_every_message_as_we_said_it(client: str, kafka: KafkaConfig) -> None:
    topic = make_topic(kafka, "windrow.gpus")
    told: list[str] = []
    line = Line.opened(kafka, "interop", lambda _, refused: told.append(refused))
    for key, value in SAID:  # compressed, as collectors and agents send it
        line.send(topic, Record(round(time.time() * 1000), key, value), None)
    give_up = time.monotonic() + 20
    while len(told) < len(SAID) and time.monotonic() < give_up:
        time.sleep(0.01)
    line.end("all is said")
    assert line.gone(5)
    assert told == [""] * len(SAID)
    found = read_with(client, kafka, topic, len(SAID))
    assert sorted(found) == sorted(Lying(partition_of(key, PARTITIONS), key, value) for key, value in SAID)


@pytest.mark.parametrize("client", OTHERS)
def test_we_read_every_message_as_another_client_said_it(client: str, kafka: KafkaConfig) -> None:
    topic = make_topic(kafka, "windrow.gpus")
    write_with(client, kafka, topic, SAID)
    found = [decode(line.value) for line in read_by_us(kafka, ["windrow.gpus"], len(SAID))]
    assert sorted(found, key=encode) == sorted(EVENTS, key=encode)


@pytest.mark.parametrize("release", released(), ids=lambda release: release.version)
def test_old_and_new_versions_talk_over_one_broker(release: Release, kafka: KafkaConfig) -> None:
    """A roll-out: for a while some processes are of the release and some are of today."""
    homes: dict[str, str] = {
        kind: topic["name"]
        for topic in json.loads(release.catalogue["topics.json"])
        for kind in topic["types"]
    }
    names = sorted(set(homes.values()))
    before = [(homes[json.loads(line)["type"]], line) for line in release.messages]
    today = [(topic_of(event).name, later(event)) for event in EVENTS if type(event).__name__ in homes]
    for name in names:
        topic = make_topic(kafka, name)
        write_with(
            "confluent-kafka", kafka, topic, [(KEYS[0], line) for home, line in before if home == name]
        )
        write_with("kafka-python", kafka, topic, [(KEYS[1], line) for home, line in today if home == name])

    lines = [line.value for line in read_by_us(kafka, names, len(before) + len(today))]
    assert sorted(decode(line).id for line in lines) == sorted(
        json.loads(line)["id"] for _, line in before + today
    )
    for line in lines:  # and a reader of the release takes all of them, our own with a field it does not know
        kind = json.loads(line)["type"]
        jsonschema.Draft202012Validator(json.loads(release.catalogue[f"{kind}.json"])).validate(
            json.loads(line)
        )


def later(event: Event) -> bytes:
    """A message as a version after this one may write it."""
    return json.dumps(plain(event) | {"a_field_of_a_later_version": [1, None]}).encode()
