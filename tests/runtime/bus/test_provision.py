"""The site's topics are made from the one table, and what differs is told and never changed."""

from __future__ import annotations

import threading

import msgspec
import pytest

from runtime.bus.clients import connect
from runtime.bus.provision import Difference, Report, compare, ensure, settings_of
from runtime.bus.settings import BusError, KafkaConfig
from schemas.topics import BY_NAME, DAY, TOPICS

pytestmark = pytest.mark.counterpart

GPUS = BY_NAME["windrow.gpus"]._replace(partitions=3)
SNAPSHOTS = BY_NAME["windrow.snapshots"]._replace(partitions=2)
FEW = (GPUS, SNAPSHOTS)


def test_what_is_missing_is_told_and_then_made(kafka: KafkaConfig) -> None:
    names = tuple(kafka.topic(topic.name) for topic in FEW)
    assert compare(kafka, FEW) == Report(missing=names)
    assert not compare(kafka, FEW).ok
    assert ensure(kafka, FEW) == Report(created=names)
    assert ensure(kafka, FEW) == compare(kafka, FEW) == Report(sound=names)
    assert compare(kafka, FEW).ok


def test_every_topic_of_the_table_can_be_made(kafka: KafkaConfig) -> None:
    small = [topic._replace(partitions=1) for topic in TOPICS]
    assert len(ensure(kafka, small).created) == len(TOPICS)
    assert compare(kafka, small).ok


def test_only_what_is_missing_is_made(kafka: KafkaConfig) -> None:
    ensure(kafka, [GPUS])
    report = ensure(kafka, FEW)
    assert report.sound == (kafka.topic(GPUS.name),)
    assert report.created == (kafka.topic(SNAPSHOTS.name),)


def test_a_topic_with_other_settings_is_told_and_left_as_it_is(kafka: KafkaConfig) -> None:
    name = kafka.topic(GPUS.name)
    ensure(kafka, [GPUS])
    other = GPUS._replace(partitions=4, retention_ms=8 * DAY)
    told = (
        Difference(name, "partitions", "3", "4"),
        Difference(name, "retention.ms", str(2 * DAY), str(8 * DAY)),
        Difference(name, "segment.ms", str(DAY // 4), str(DAY)),
    )
    assert ensure(kafka, [other]) == Report(differing=told)
    assert str(told[0]) == f"{name}: partitions is 3 and should be 4"
    assert compare(kafka, [GPUS]).ok


def test_a_topic_that_somebody_made_by_hand_is_told_of(kafka: KafkaConfig) -> None:
    name = kafka.topic(SNAPSHOTS.name)
    admin = connect("KafkaAdminClient", kafka, 10.0).client
    admin.create_topics({name: {"num_partitions": 2, "replication_factor": 1}}, wait_for_metadata=True)
    admin.close()
    report = ensure(kafka, [SNAPSHOTS])
    assert (report.sound, report.created) == ((), ())
    assert Difference(name, "cleanup.policy", "delete", "compact") in report.differing


def test_two_may_make_the_topics_at_once(kafka: KafkaConfig) -> None:
    reports: list[Report] = []
    both = [threading.Thread(target=lambda: reports.append(ensure(kafka, FEW))) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    first, second = reports
    assert first.ok
    assert second.ok
    assert sorted(first.created + second.created) == sorted(kafka.topic(topic.name) for topic in FEW)


def test_more_copies_than_brokers_are_refused_in_words(kafka: KafkaConfig) -> None:
    with pytest.raises(BusError, match=r"windrow\.gpus: Kafka does not make it: .*replication factor of 9"):
        ensure(msgspec.structs.replace(kafka, replication=9), [GPUS])


def test_without_a_broker_it_is_said_why() -> None:
    with pytest.raises(BusError, match=r"^Kafka at 127\.0\.0\.1:1 is not there \(connection refused\)$"):
        connect("KafkaAdminClient", KafkaConfig(servers=("127.0.0.1:1",)), 0.2)


@pytest.mark.parametrize(("replication", "in_sync"), [(1, "1"), (2, "1"), (3, "2")])
def test_one_copy_may_be_away_where_there_are_several(replication: int, in_sync: str) -> None:
    kafka = KafkaConfig(servers=("k1:9092",), replication=replication)
    assert {settings_of(topic, kafka)["min.insync.replicas"] for topic in TOPICS} == {in_sync}


def test_a_snapshot_is_kept_for_ever_and_what_it_replaces_is_not() -> None:
    kafka = KafkaConfig(servers=("k1:9092",))
    assert settings_of(SNAPSHOTS, kafka)["cleanup.policy"] == "compact"
    assert {t.name for t in TOPICS if settings_of(t, kafka)["cleanup.policy"] == "compact"} == {
        SNAPSHOTS.name
    }
