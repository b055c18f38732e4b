"""A recording on a real bus: whoever reads its row's partition does the recorded beats again."""

from __future__ import annotations

import msgspec
import pytest
from support.rigs import START, rig_of, row_text, setup_of

from collectors.recording import Recording, read_recording
from runtime.bus.clients import connect
from runtime.bus.keys import partition_of
from runtime.bus.settings import BusError, KafkaConfig
from runtime.bus_replay import publish
from runtime.clock import SystemClock
from runtime.config import Setup
from runtime.control_loop import ControlLoop
from runtime.hosts.replay import as_recorded
from runtime.hosts.row_log import INPUTS, TICKS, RowLog
from runtime.recorder import Recorder, header_of
from runtime.row_loop import Beat, RowLoop
from schemas.codec import decode, encode
from schemas.envelope import Tick
from schemas.instants import SECOND
from schemas.topics import BY_NAME

pytestmark = pytest.mark.counterpart

SETUP = setup_of(row_text(2, budget_w=9_000.0))
ROW = SETUP.site.rows[0].path


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    path = tmp_path_factory.mktemp("recorded") / "minute.parquet"
    with Recorder(path, header_of(SETUP, 1, START, "a test")) as recorder:
        rig_of(SETUP, observe=[recorder.write]).host.run(until=START + 60 * SECOND)
    return read_recording(path)


def redone(kafka: KafkaConfig, setup: Setup) -> tuple[RowLog, list[Beat]]:
    """What a host that follows the row's partition beats."""
    from kafka import TopicPartition

    row = setup.site.rows[0]
    log = RowLog(RowLoop(row, setup.policy, epoch=1), worker="a test")
    log.restore(None)
    consumer = connect("KafkaConsumer", kafka, 10.0, auto_offset_reset="earliest").client
    beats = []
    try:
        places = {
            TopicPartition(
                kafka.topic(topic), partition_of(row.path.encode(), BY_NAME[topic].partitions)
            ): topic
            for topic in (*INPUTS, TICKS)
        }
        consumer.assign(list(places))
        ends = consumer.end_offsets(list(places))
        while any(consumer.position(place) < end for place, end in ends.items()):
            for place, messages in consumer.poll(500).items():
                for message in messages:
                    assert message.key == row.path.encode()
                    beats += log.take(places[place], message.offset, decode(message.value))
    finally:
        consumer.close()
    return log, beats


def test_a_host_that_reads_a_replay_says_what_was_recorded(kafka: KafkaConfig, recording: Recording) -> None:
    ticks: list[Tick] = []
    published = publish(kafka, recording.events, epoch=1, clock=SystemClock(), seen=ticks.append)
    loop = ControlLoop(SETUP.site, SETUP.policy, epoch=1)
    recorded = list(as_recorded(recording.events, loop))
    log, beats = redone(kafka, SETUP)
    assert (log.waits, log.ignored, log.unread) == ("", 0, 0)
    assert (log.epoch, published.beats, published.rows) == (1, len(recorded), (ROW,))
    assert [tick.at for tick in ticks] == [beat.tick.at for beat, _ in recorded]
    assert sum(len(beat.commands) for beat in beats) > 0
    for beat, (_, said) in zip(beats, recorded, strict=True):
        assert [encode(event) for event in beat.outputs] == [encode(event) for event in said]
    with pytest.raises(BusError, match=r"into topics that never held a message, and .*windrow\.gpus.* did"):
        publish(kafka, recording.events, epoch=1, clock=SystemClock())


def test_a_replay_keeps_the_pace_that_was_asked_for(kafka: KafkaConfig, recording: Recording) -> None:
    """Twenty times as fast: each tick comes to the bus when a twentieth of its time has passed."""
    from kafka import TopicPartition

    publish(kafka, recording.events, epoch=1, clock=SystemClock(), speed=20.0)
    place = TopicPartition(kafka.topic(TICKS), partition_of(ROW.encode(), BY_NAME[TICKS].partitions))
    consumer = connect("KafkaConsumer", kafka, 10.0, auto_offset_reset="earliest").client
    came: list[tuple[int, int]] = []  # event time, and when the broker had it
    try:
        consumer.assign([place])
        (end,) = consumer.end_offsets([place]).values()
        while len(came) < end:
            for messages in consumer.poll(500).values():
                came += [(decode(message.value).at, message.timestamp) for message in messages]
    finally:
        consumer.close()
    late = sorted(stamp - at / 20 for at, stamp in came)
    assert came[-1][0] - came[0][0] >= 50 * SECOND
    assert late[-1] - late[0] < 1_000, "none before its time, nor long after it"


def test_nothing_is_replayed_where_a_site_may_live(kafka: KafkaConfig, recording: Recording) -> None:
    bare = msgspec.structs.replace(kafka, prefix="")
    with pytest.raises(BusError, match="only into topics with a prefix of their own"):
        publish(bare, recording.events, epoch=1, clock=SystemClock())
