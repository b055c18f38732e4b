"""Recording a site off a real bus: the beats that its workers did, and words for what is not whole."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping

import msgspec
import pytest
from support.live_row import LiveRow
from support.rigs import START, rig_of, row_text, setup_of
from support.workers import Worker

from collectors.recording import Recording, read_recording
from controllers.policy import DEFAULT_POLICY, Band
from runtime.bus.clients import connect
from runtime.bus.keys import partition_of
from runtime.bus.provision import ensure
from runtime.bus.settings import KafkaConfig
from runtime.bus_recorder import BusRecorder
from runtime.bus_replay import publish, restaged, staged
from runtime.cli.app import run
from runtime.clock import SystemClock
from runtime.config import ConfigError, Setup
from runtime.hosts.recall import SNAPSHOTS
from runtime.hosts.row_log import INPUTS, TICKS, RowLog
from runtime.recorded import Place
from runtime.recorder import Recorder, header_of
from runtime.row_loop import Beat, RowLoop
from schemas.codec import encode
from schemas.envelope import Tick
from schemas.instants import SECOND
from schemas.samples import GpuFrame
from schemas.topics import BY_NAME, topic_of

pytestmark = pytest.mark.counterpart

SITE = row_text(2, budget_w=9_000.0)
SETUP = setup_of(SITE)
ROW = SETUP.site.rows[0]
PARTITION = partition_of(ROW.path.encode(), BY_NAME[TICKS].partitions)
CLOCK = SystemClock()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A minute of a row, as its own host recorded it."""
    path = tmp_path_factory.mktemp("recorded") / "minute.parquet"
    with Recorder(path, header_of(SETUP, 1, START, "a test")) as recorder:
        rig_of(SETUP, observe=[recorder.write]).host.run(until=START + 60 * SECOND)
    return read_recording(path)


@pytest.fixture
def bus(kafka: KafkaConfig, recording: Recording) -> KafkaConfig:
    """The topics of a site whose row lived that minute."""
    publish(kafka, recording.events, epoch=1, clock=CLOCK, outputs=True)
    return kafka


def recorded(kafka: KafkaConfig, out: pathlib.Path, beats: int, setup: Setup = SETUP) -> BusRecorder:
    """Record so many beats, and until what was said then has been read too."""
    site = BusRecorder(kafka, setup, CLOCK)
    until = CLOCK.now() + 60 * SECOND

    def enough() -> bool:
        witness = site.witness
        return site.beats[ROW.path] >= beats and witness.agreed + witness.differing >= beats

    with Recorder(out, site.header) as recorder:
        site.run(recorder.write, until=until, stop=enough)
    return site


def but_for_ticks(recording: Recording) -> list[bytes]:
    return [encode(event) for event in recording.events if not isinstance(event, Tick)]


def ticks(recording: Recording) -> list[Tick]:
    return [event for event in recording.events if isinstance(event, Tick)]


def half_way(recording: Recording, beats: int) -> bytes:
    """The row's snapshot after so many beats, as its worker would have written it."""
    log = RowLog(RowLoop(ROW, SETUP.policy, epoch=1), worker="a test")
    log.restore(None)
    upto = dict.fromkeys(INPUTS, 0)
    for number, beat in enumerate(staged(recording.events, 1)):
        if number == beats:
            break
        for event in beat.inputs:
            topic = topic_of(event).name
            log.take(topic, upto[topic], event)
            upto[topic] += 1
        assert len(log.take(TICKS, number, msgspec.structs.replace(beat.tick, upto=dict(upto)))) == 1
    snapshot = log.snapshot()
    assert snapshot is not None
    return snapshot.payload


def say(kafka: KafkaConfig, topic: str, payload: bytes) -> None:
    producer = connect("KafkaProducer", kafka, 10.0).client
    try:
        sent = producer.send(kafka.topic(topic), payload, key=ROW.path.encode(), partition=PARTITION)
        sent.get(timeout=10)
    finally:
        producer.close()


def config_for(kafka: KafkaConfig, folder: pathlib.Path) -> pathlib.Path:
    (folder / "site.toml").write_text(SITE, encoding="utf-8")
    path = folder / "windrow.toml"
    path.write_text(
        'site = "site.toml"\nstate_dir = "state"\n'
        f'[kafka]\nservers = ["{kafka.servers[0]}"]\nprefix = "{kafka.prefix}"\n',
        encoding="utf-8",
    )
    return path


def test_a_recording_off_the_bus_is_what_the_row_lived(
    bus: KafkaConfig, recording: Recording, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "bus.parquet"
    beats = recording.count_beats()
    site = recorded(bus, out, beats)
    assert site.troubles == ()
    assert (site.witness.agreed, site.witness.differing) == (beats, 0)
    again = read_recording(out)
    assert but_for_ticks(again) == but_for_ticks(recording)
    assert [tick.at for tick in ticks(again)] == [tick.at for tick in ticks(recording)]
    assert ticks(again)[0].anew
    assert again.header.snapshots is msgspec.UNSET
    assert run(["replay", str(out), "--expect", "recorded"]) == 0

    import pyarrow.parquet as pq

    table = pq.read_table(out, columns=["type", "partition", "offset"]).to_pylist()
    frames = [row for row in table if row["type"] == "GpuFrame"]
    assert [frame["partition"] for frame in frames] == [PARTITION] * len(frames)
    assert sorted(frame["offset"] for frame in frames) == list(range(len(frames)))


def test_a_recording_that_begins_in_the_middle_brings_the_rows_state(
    bus: KafkaConfig, recording: Recording, tmp_path: pathlib.Path
) -> None:
    beats = recording.count_beats()
    say(bus, SNAPSHOTS, half_way(recording, beats // 2))
    out = tmp_path / "half.jsonl.gz"
    site = recorded(bus, out, beats - beats // 2)
    assert (site.troubles, site.witness.differing) == ((), 0)
    half = read_recording(out)
    assert half.header.format == 2
    assert but_for_ticks(half) == but_for_ticks(recording)[-len(but_for_ticks(half)) :]
    assert half.count_beats() == beats - beats // 2
    assert run(["replay", str(out), "--expect", "recorded"]) == 0

    # And onto another bus, whose worker goes on from the same state.
    other = msgspec.structs.replace(bus, prefix=f"{bus.prefix}again-")
    begun = restaged(half.header, SETUP.site, SETUP.policy)
    publish(other, half.events, epoch=1, clock=CLOCK, outputs=True, snapshots=begun)
    once_more = tmp_path / "again.jsonl"
    assert recorded(other, once_more, beats - beats // 2).troubles == ()
    assert but_for_ticks(read_recording(once_more)) == but_for_ticks(half)


def test_a_recording_with_another_policy_than_the_workers_is_found_out(
    bus: KafkaConfig, recording: Recording, tmp_path: pathlib.Path
) -> None:
    other = setup_of(SITE, msgspec.structs.replace(DEFAULT_POLICY, t1=Band(enter=0.5, leave=0.4)))
    beats = recording.count_beats()
    site = recorded(bus, tmp_path / "other.jsonl", beats, other)
    assert site.witness.differing
    (trouble,) = site.troubles
    assert trouble.startswith(
        f"{site.witness.differing} decisions were said otherwise than this site file, policy and version say"
    )
    say(bus, SNAPSHOTS, half_way(recording, 3))
    with pytest.raises(ConfigError, match="made under another site file or policy"):
        BusRecorder(bus, other, CLOCK)


def test_what_retention_took_is_told(bus: KafkaConfig, recording: Recording, tmp_path: pathlib.Path) -> None:
    from kafka import TopicPartition

    beats = recording.count_beats()
    say(bus, SNAPSHOTS, half_way(recording, 5))
    gone = sum(isinstance(event, GpuFrame) for event in recording.events)
    admin = connect("KafkaAdminClient", bus, 10.0).client
    admin.delete_records({TopicPartition(bus.topic("windrow.gpus"), PARTITION): gone})
    admin.close()
    site = recorded(bus, tmp_path / "late.jsonl", beats - 5)
    assert site.beats[ROW.path] == beats - 5
    taken = sum(
        isinstance(e, GpuFrame) for beat in list(staged(recording.events, 1))[:5] for e in beat.inputs
    )
    assert site.troubles[0] == f"{gone - taken} messages were deleted for their age before they were read"


def test_a_recorder_that_is_told_to_stop_leaves_a_whole_file(
    bus: KafkaConfig, recording: Recording, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "bus.parquet"
    asked = ["--kafka", "--config", str(config_for(bus, tmp_path))]
    process = subprocess.Popen(
        [sys.executable, "-c", "from runtime.cli import main; main()", "record", str(out), *asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: out.exists() and len(list(read_recording(out).events)) >= 10, process)
        process.send_signal(signal.SIGTERM)
        told, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, ""), told
    whole = read_recording(out)
    assert whole.count_beats() == recording.count_beats()
    assert whole.note == ""
    assert f"recorded {recording.count_beats()} beats of 1 rows to {out}" in told
    assert "decisions were held against what was said, and are the same" in told


def test_a_live_row_is_recorded_while_its_workers_die_and_follow_each_other(
    kafka: KafkaConfig, tmp_path: pathlib.Path
) -> None:
    ensure(kafka)
    first = Worker(tmp_path / "w1", kafka, SITE)
    out = tmp_path / "live.parquet"
    epochs: list[int] = []
    with LiveRow(kafka, SETUP):
        first.await_line("is beaten here under epoch 1", 120)
        site = BusRecorder(kafka, SETUP, CLOCK)
        with Recorder(out, site.header) as recorder:

            def keep(beat: Beat, places: Mapping[str, Place]) -> None:
                recorder.write(beat, places)
                epochs.append(beat.tick.epoch)
                if len(epochs) == 4:
                    first.kill()
                    workers.append(Worker(tmp_path / "w2", kafka, SITE))

            workers: list[Worker] = []
            until = CLOCK.now() + 120 * SECOND
            site.run(keep, until=until, stop=lambda: epochs.count(2) >= 4 and site.witness.agreed >= 6)
    for worker in workers:
        worker.stop()
    assert sorted(set(epochs)) == [1, 2]
    assert site.troubles == ()
    assert run(["replay", str(out), "--expect", "recorded"]) == 0


def wait_for(seen: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = CLOCK.now() + 60 * SECOND
    while process.poll() is None and CLOCK.now() < until:
        try:
            if seen():
                return
        except Exception:  # the file is being made
            pass
        CLOCK.sleep_until(CLOCK.now() + 200)
    raise AssertionError("nothing was recorded")


def test_the_command_publishes_a_recording(
    kafka: KafkaConfig, recording: Recording, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(config_for(kafka, tmp_path))
    asked = ["replay", str(recording.path), "--to-kafka", "--config", config, "--speed", "max", "--outputs"]
    assert run([*asked, "--json"]) == 0
    done = msgspec.json.decode(capsys.readouterr().out)
    assert (done["beats"], done["rows"]) == (recording.count_beats(), [ROW.path])
    assert done["messages"] == sum(1 for _ in recording.events)
    assert run(asked) == 2
    assert "a replay goes only into topics that never held a message" in capsys.readouterr().err
