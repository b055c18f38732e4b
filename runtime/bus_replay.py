"""A recording onto a bus: each beat's inputs under its row's key, then its tick, as the row's owner would.

A worker that reads the row's partition does the recorded beats again, and says what was said then. What a
tick says of offsets (`upto`) is written anew for where its inputs now stand. A tick that was recorded off no
bus gets what it needs on one: the recording's epoch, and for a row's first that the row begins anew. All the
rest stays as it was recorded, byte for byte. Messages carry the time they were published at, not that of
their event: a broker would throw old ones away.

Nobody must be steered by a replay: it goes only into topics with a prefix, and only while none of them has
ever held a message.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from controllers.policy import CappingPolicy
from runtime.bus.clients import connect
from runtime.bus.keys import partition_of
from runtime.bus.provision import ensure
from runtime.bus.settings import BusError, KafkaConfig
from runtime.clock import Clock
from runtime.config import ConfigError
from runtime.hosts.recall import SNAPSHOTS
from runtime.hosts.replay import is_input
from runtime.hosts.row_log import INPUTS, TICKS
from runtime.hosts.snapshot import SnapshotRefused, freeze, thaw
from runtime.row_loop import RowLoop
from schemas import codec
from schemas.envelope import Event, Tick
from schemas.instants import Instant
from schemas.recordings import RecordingHeader, snapshots_of
from schemas.topics import BY_NAME, TOPICS, Topic, topic_of
from schemas.topology import Site

_BATCH = 256  # beats between two waits for the broker (our choice)
_LARGEST = 16 << 20  # bytes of a request: a snapshot has some hundred thousand (our choice)
_ANSWER_S = 30.0  # how long a broker may take over a batch (our choice)


class Staged(NamedTuple):
    """A recorded beat as it goes onto a bus: the inputs that topics bring, the tick with the others in its
    `besides`, and what was said."""

    inputs: tuple[Event, ...]
    tick: Tick
    outputs: tuple[Event, ...]

    @property
    def row(self) -> str:
        """Whose beat it is."""
        return self.tick.subject


class Published(msgspec.Struct, frozen=True):
    """What a replay put onto a bus, and of which rows."""

    beats: int
    messages: int
    rows: tuple[str, ...]


def staged(events: Iterable[Event], epoch: int) -> Iterator[Staged]:
    """The beats of a recording made under an epoch, in their order. Inputs after the last tick belong to no
    beat and are left out."""
    begun: set[str] = set()
    for inputs, tick, outputs in _beats(events):
        if not tick.epoch:
            tick = msgspec.structs.replace(tick, epoch=epoch, anew=tick.subject not in begun, id="")
        begun.add(tick.subject)
        yield _staged(inputs, tick, outputs)


def _beats(events: Iterable[Event]) -> Iterator[tuple[list[Event], Tick, list[Event]]]:
    inputs: list[Event] = []
    outputs: list[Event] = []
    tick: Tick | None = None
    upcoming: list[Event] = []
    for event in events:
        if isinstance(event, Tick):
            if tick is not None:
                yield inputs, tick, outputs
            tick, inputs, upcoming, outputs = event, upcoming, [], []
        elif is_input(event):
            upcoming.append(event)
        else:
            outputs.append(event)
    if tick is not None:
        yield inputs, tick, outputs


def _staged(inputs: Sequence[Event], tick: Tick, outputs: Sequence[Event]) -> Staged:
    told = Counter(tick.besides)
    brought: list[Event] = []
    besides = list(tick.besides)
    for event in inputs:
        by_topic = topic_of(event).name in INPUTS
        if by_topic and not told:
            brought.append(event)
            continue
        text = codec.encode(event).decode()
        if told[text]:
            told -= Counter([text])
        elif by_topic:
            brought.append(event)
        else:
            besides.append(text)
    return Staged(tuple(brought), msgspec.structs.replace(tick, besides=tuple(besides)), tuple(outputs))


def restaged(header: RecordingHeader, site: Site, policy: CappingPolicy) -> dict[str, bytes]:
    """By row, the states that a recording's rows go on from, as snapshots at the beginning of empty topics.
    Raises ConfigError where this version cannot read one."""
    found = {}
    for row, payload in snapshots_of(header).items():
        loop = RowLoop(site.row(row), policy, epoch=header.epoch)
        try:
            state, mark = thaw(payload, loop)
        except SnapshotRefused as refused:
            raise ConfigError(f"{row} cannot go on from where its recording begins: {refused}") from refused
        found[row] = freeze(
            state, loop, msgspec.structs.replace(mark, upto=dict.fromkeys((*INPUTS, TICKS), 0))
        )
    return found


def publish(
    kafka: KafkaConfig,
    events: Iterable[Event],
    *,
    epoch: int,
    clock: Clock,
    speed: float | None = None,
    outputs: bool = False,
    snapshots: Mapping[str, bytes] | None = None,
    seen: Callable[[Tick], None] = lambda tick: None,
) -> Published:
    """Publish the beats of a recording made under `epoch`, at `speed` times the pace of their ticks (None:
    as fast as the broker takes them), with what was said then too where `outputs` says so. `snapshots` are
    of rows that go on from one (`restaged`). Topics that are missing are made. `seen` is told of each tick
    once the broker has it.

    Raises BusError, in words, where the topics are not fit for a replay or no broker answers.
    """
    if not kafka.prefix:
        raise BusError(
            "a replay goes only into topics with a prefix of their own, so that it steers no site: "
            'say [kafka] prefix = "replay-" in its configuration'
        )
    report = ensure(kafka)
    if parted := [str(each) for each in report.differing if each.setting == "partitions"]:
        raise BusError("\n".join(parted))
    _refuse_used(kafka)
    with _Stage(kafka) as stage:
        stage.begin(snapshots or {})
        for batch in _paced(staged(events, epoch), clock, speed):
            stage.put(batch, outputs=outputs)
            for beat in batch:
                seen(beat.tick)
    return Published(stage.beats, stage.messages, tuple(stage.upto))


def _refuse_used(kafka: KafkaConfig) -> None:
    from kafka import TopicPartition

    consumer = connect("KafkaConsumer", kafka, _ANSWER_S).client
    try:
        places = [
            TopicPartition(kafka.topic(topic.name), n) for topic in TOPICS for n in range(topic.partitions)
        ]
        used = sorted({place.topic for place, end in consumer.end_offsets(places).items() if end})
    finally:
        consumer.close()
    if used:
        raise BusError(
            f"a replay goes only into topics that never held a message, and {', '.join(used)} did: "
            "choose another prefix, or delete these topics"
        )


def _paced(beats: Iterable[Staged], clock: Clock, speed: float | None) -> Iterator[list[Staged]]:
    """Beats by the batch: what is due at once, and never more than the broker should be asked of at once."""
    batch: list[Staged] = []
    began: tuple[Instant, Instant] | None = None
    for beat in beats:
        if speed is not None:
            began = began or (clock.now(), beat.tick.at)
            due = began[0] + round((beat.tick.at - began[1]) / speed)
            if due > clock.now():
                if batch:
                    yield batch
                    batch = []
                clock.sleep_until(due)
        batch.append(beat)
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class _Stage:
    """The topics that a replay fills. Use as a context manager."""

    def __init__(self, kafka: KafkaConfig) -> None:
        self.upto: dict[str, dict[str, int]] = {}
        """By row and topic: where the inputs of the row's last beat end."""
        self.beats = 0
        self.messages = 0
        self._kafka = kafka
        self._producer = connect(
            "KafkaProducer", kafka, _ANSWER_S, linger_ms=5, max_request_size=_LARGEST
        ).client

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.close(timeout=_ANSWER_S)

    def begin(self, snapshots: Mapping[str, bytes]) -> None:
        """Publish what rows go on from."""
        with self._told():
            _settle([self._send(BY_NAME[SNAPSHOTS], row, payload) for row, payload in snapshots.items()])

    def put(self, batch: Sequence[Staged], *, outputs: bool) -> None:
        """Publish some beats: all their inputs, then their ticks, which say where the inputs stand.

        Inputs of later beats may stand before an earlier tick: a beat takes what its offsets say.
        """
        with self._told():
            brought = [[(topic_of(e).name, self._say(beat.row, e)) for e in beat.inputs] for beat in batch]
            _settle([place for each in brought for _, place in each])
            said = []
            for beat, inputs in zip(batch, brought, strict=True):
                upto = self.upto.setdefault(beat.row, dict.fromkeys(INPUTS, 0))
                upto |= {topic: place.value.offset + 1 for topic, place in inputs}
                tick = msgspec.structs.replace(beat.tick, upto=dict(upto))
                said += [self._say(beat.row, event) for event in (tick, *(beat.outputs if outputs else ()))]
            _settle(said)
            self.beats += len(batch)

    def _say(self, row: str, event: Event) -> Any:
        return self._send(topic_of(event), row, codec.encode(event))

    def _send(self, topic: Topic, row: str, payload: bytes) -> Any:
        """Under the row's key, on the row's partition; where it will stand."""
        key = row.encode()
        self.messages += 1
        return self._producer.send(
            self._kafka.topic(topic.name), payload, key=key, partition=partition_of(key, topic.partitions)
        )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        from kafka.errors import KafkaError

        try:
            yield
        except KafkaError as error:
            raise BusError(f"the replay ends after {self.beats} beats: the broker failed: {error}") from error


def _settle(places: Iterable[Any]) -> None:
    """Wait until the broker has every message. Raises KafkaError."""
    for place in places:
        place.get(timeout=_ANSWER_S)
