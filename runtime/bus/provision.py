"""The site's topics on its brokers: made from the one table, and compared with it.

What is missing is made. What is there and differs is told and never changed: more partitions would part
a row from its past, and a shorter retention deletes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from runtime.bus.clients import connect
from runtime.bus.settings import BusError, KafkaConfig
from schemas.instants import MINUTE, Span
from schemas.topics import DAY, TOPICS, Topic

_PATIENCE_S = 10.0
_READY_S = 60.0  # each partition is a folder, and a busy broker's disk is slow
_UNKNOWN_TOPIC, _ALREADY_THERE = 3, 36  # error codes of Kafka's protocol
_SEGMENT: Span = 7 * DAY  # Kafka's own default, and the most that we let it be
_SNAPSHOT_SEGMENT: Span = 5 * MINUTE
_SNAPSHOT_BYTES = 8 << 20
"""The largest snapshot of a row, bytes. Kafka takes 1 MiB unless told, which thousands of GPUs exceed."""


class Difference(msgspec.Struct, frozen=True):
    """A setting of a topic that is not what the table says."""

    topic: str
    setting: str
    has: str
    should_be: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.setting} is {self.has} and should be {self.should_be}"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How the topics stand, by their names on the brokers: `sound` as they should be, `created` just now
    (and so sound too), `missing`, and what differs of the others."""

    sound: tuple[str, ...] = ()
    created: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    differing: tuple[Difference, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every topic is there and as it should be."""
        return not self.missing and not self.differing


def settings_of(topic: Topic, kafka: KafkaConfig) -> dict[str, str]:
    """A topic's own settings, by Kafka's names for them."""
    settings = {
        # One copy may be away without a message being refused; with a single one, none may.
        "min.insync.replicas": str(max(1, kafka.replication - 1)),
        # The broker's time: a collector whose clock is wrong must not have its messages deleted or refused.
        "message.timestamp.type": "LogAppendTime",
    }
    if topic.compact:
        # Who reads it reads it whole and is waited for, so it is compacted often. What was written last is
        # not compacted until its segment is closed.
        return settings | {
            "cleanup.policy": "compact",
            "segment.ms": str(_SNAPSHOT_SEGMENT),
            "segment.bytes": str(4 * _SNAPSHOT_BYTES),
            "max.compaction.lag.ms": str(2 * _SNAPSHOT_SEGMENT),
            "min.cleanable.dirty.ratio": "0.1",
            "max.message.bytes": str(_SNAPSHOT_BYTES),
        }
    return settings | {
        "cleanup.policy": "delete",
        "retention.ms": str(topic.retention_ms),
        # Whole segments are deleted: an eighth keeps what is held near what is meant.
        "segment.ms": str(min(_SEGMENT, topic.retention_ms // 8)),
    }


def compare(kafka: KafkaConfig, topics: Sequence[Topic] = TOPICS) -> Report:
    """How the topics stand; nothing is made. Raises BusError where no broker answers or one refuses."""
    with _admin(kafka) as admin:
        return _compared(admin, kafka, topics)


def ensure(kafka: KafkaConfig, topics: Sequence[Topic] = TOPICS) -> Report:
    """Make the topics that are missing; how all of them stand then. Two may do it at once.

    Raises BusError where no broker answers or one refuses.
    """
    with _admin(kafka) as admin:
        before = _compared(admin, kafka, topics)
        missing = [topic for topic in topics if kafka.topic(topic.name) in before.missing]
        if not missing:
            return before
        created = _created(admin, kafka, missing)
        after = _compared(admin, kafka, topics)
    sound = tuple(name for name in after.sound if name not in created)
    return msgspec.structs.replace(after, sound=sound, created=created)


@contextlib.contextmanager
def _admin(kafka: KafkaConfig) -> Iterator[Any]:
    """A client that may ask and make. What Kafka refuses comes as BusError."""
    timeout_ms = round(_PATIENCE_S * 1000)
    admin = connect("KafkaAdminClient", kafka, _PATIENCE_S, request_timeout_ms=timeout_ms).client
    from kafka.errors import KafkaError

    try:
        yield admin
    except KafkaError as error:
        raise BusError(f"Kafka at {', '.join(kafka.servers)}: {error}") from error
    finally:
        admin.close()


def _created(admin: Any, kafka: KafkaConfig, topics: Sequence[Topic]) -> tuple[str, ...]:
    """Make topics, and wait until they can be used; the names of those that nobody else made first."""
    wanted = {
        kafka.topic(topic.name): {
            "num_partitions": topic.partitions,
            "replication_factor": kafka.replication,
            "configs": settings_of(topic, kafka),
        }
        for topic in topics
    }
    created, refused = list[str](), list[str]()
    for answer in admin.create_topics(wanted, raise_errors=False)["topics"]:
        if not answer["error_code"]:
            created.append(answer["name"])
        elif answer["error_code"] != _ALREADY_THERE:
            refused.append(f"{answer['name']}: Kafka does not make it: {_said(answer)}")
    if refused:
        raise BusError("\n".join(refused))
    admin.wait_for_topics(list(wanted), timeout_ms=round(_READY_S * 1000))
    return tuple(created)


def _compared(admin: Any, kafka: KafkaConfig, topics: Sequence[Topic]) -> Report:
    from kafka.admin import ConfigResource, ConfigResourceType

    names = [kafka.topic(topic.name) for topic in topics]
    answers = {each["name"]: each for each in admin.describe_topics(names)}
    missing = tuple(name for name in names if answers[name]["error_code"] == _UNKNOWN_TOPIC)
    if refused := [each for each in answers.values() if each["error_code"] and each["name"] not in missing]:
        raise BusError(
            "\n".join(f"{each['name']}: Kafka does not tell of it: {_said(each)}" for each in refused)
        )
    there = [name for name in names if name not in missing]
    asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in there]
    told = admin.describe_configs(asked, config_filter="all")["topic"] if asked else {}
    sound, differing = list[str](), list[Difference]()
    for topic, name in zip(topics, names, strict=True):
        if name in missing:
            continue
        partitions = answers[name]["partitions"]
        has = {setting: each["value"] for setting, each in told[name].items()} | {
            "partitions": str(len(partitions)),
            "replication": str(min(len(each["replica_nodes"]) for each in partitions)),
        }
        differences = list(_differences(name, has, _meant(topic, kafka)))
        differing += differences
        sound += [] if differences else [name]
    return Report(sound=tuple(sound), missing=missing, differing=tuple(differing))


def _meant(topic: Topic, kafka: KafkaConfig) -> dict[str, str]:
    counts = {"partitions": str(topic.partitions), "replication": str(kafka.replication)}
    return counts | settings_of(topic, kafka)


def _differences(name: str, has: Mapping[str, str], meant: Mapping[str, str]) -> Iterator[Difference]:
    for setting, value in meant.items():
        if has.get(setting) != value:
            yield Difference(name, setting, has.get(setting, "not told to us"), value)


def _said(answer: Mapping[str, Any]) -> str:
    from kafka.errors import for_code

    return str(answer.get("error_message") or for_code(answer["error_code"]).description)
