"""Workers on a real broker: what they say is what their log says, whoever dies."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Protocol

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
)
from support.cached import Unavailable
from support.counterparts import missing
from support.kafka_broker import Node
from support.kafka_secure import PASSWORD, SecureBroker
from support.live_row import LiveRow, log_of, messages_of
from support.rigs import row_text, setup_of
from support.sites import PROJECT
from support.workers import QUICK, Worker

from collectors.recording import read_recording
from runtime.bus.provision import ensure
from runtime.bus.settings import KafkaConfig
from runtime.bus_replay import publish
from runtime.clock import SystemClock
from runtime.control_loop import ControlLoop
from runtime.hosts.recall import SNAPSHOTS
from runtime.hosts.replay import is_input
from runtime.hosts.row_log import INPUTS, TICKS, RowLog
from runtime.hosts.snapshot import Mark, freeze
from runtime.row_loop import Beat, RowLoop
from schemas import codec
from schemas.commands import Command
from schemas.decisions import Decision
from schemas.envelope import DeadLetter, Tick
from schemas.outcomes import Refused
from schemas.samples import GpuFrame, PowerRollup, SitePower

pytestmark = pytest.mark.counterpart

SITE = row_text(2, budget_w=9_000.0)
SETUP = setup_of(SITE)
ROW = SETUP.site.rows[0]
LEDGER = "windrow.ledger"
COMMANDS = "windrow.commands"
OWNED = 'windrow_row_owned{row="lab1/row-a"} 1.0'
SAID = (
    "windrow.rollups",
    "windrow.forecasts",
    "windrow.emergencies",
    "windrow.decisions",
    COMMANDS,
)


class Start(Protocol):
    def __call__(self, name: str, site: str = SITE, policy: str = "") -> Worker: ...


@pytest.fixture
def start(kafka: KafkaConfig, tmp_path: Path) -> Iterator[Start]:
    """Starts workers by name; those that still run are killed at the end."""
    made: list[Worker] = []

    def worker(name: str, site: str = SITE, policy: str = "") -> Worker:
        made.append(Worker(tmp_path / name, kafka, site, policy=policy))
        return made[-1]

    yield worker
    for each in made:
        each.kill()


def until(true: Callable[[], bool], within_s: float, what: str) -> float:
    """Wait until something is so; how long that took, in seconds."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within_s, f"{what}: not within {within_s} s"
        time.sleep(0.05)
    return time.monotonic() - began


def ticks_of(kafka: KafkaConfig) -> list[Tick]:
    lines = messages_of(kafka, TICKS, ROW.path)
    return [codec.decode(each.value) for each in lines if each.value.startswith(b'{"type":"Tick"')]  # type: ignore[misc]


def redone(kafka: KafkaConfig) -> list[Beat]:
    """The beats that whoever reads the row's partition does."""
    log = RowLog(RowLoop(ROW, SETUP.policy, epoch=0), worker="a reader")
    log.restore(None)
    beats: list[Beat] = []
    for received in log_of(kafka, ROW.path):
        beats += log.take(received.topic, received.offset, codec.decode(received.value))
    return beats


def said_by(beats: list[Beat]) -> dict[str, bytes]:
    return {event.id: codec.encode(event) for beat in beats for event in beat.outputs}


def said_on(kafka: KafkaConfig) -> dict[str, bytes]:
    """What lies on the topics that the row's loop speaks on, by id; the same id has the same bytes."""
    said: dict[str, bytes] = {}
    for topic in SAID:
        for received in messages_of(kafka, topic, ROW.path):
            identity = codec.decode(received.value).id
            assert said.setdefault(identity, received.value) == received.value
    return said


def test_what_a_worker_says_live_is_what_its_log_and_the_embedded_loop_say(
    kafka: KafkaConfig, start: Start
) -> None:
    ensure(kafka)
    worker = start("w1")
    with LiveRow(kafka, SETUP):
        worker.await_line("is beaten here under epoch 1", 120)
        until(lambda: len(ticks_of(kafka)) >= 6, 60, "six beats")
        heard = 'windrow_site_row_silent{row="lab1/row-a"} 0.0'
        until(lambda: heard in worker.get("/metrics")[1], 60, "the row heard where the site is summed")
    worker.stop()
    assert worker.ended_with == 0, worker.said()
    beats = redone(kafka)
    assert len(beats) >= 6
    assert any(beat.rollup.power_w for beat in beats)
    assert any(beat.commands for beat in beats)
    assert said_on(kafka) == said_by(beats)
    # The loop that the embedded host and replay run, on the same inputs and ticks.
    loop = ControlLoop(SETUP.site, SETUP.policy, epoch=1)
    again = [loop.replay(beat.tick, beat.inputs) for beat in beats]
    assert [beat.outputs for beat in again] == [beat.outputs for beat in beats]


def test_a_worker_that_is_killed_goes_on_without_a_gap_or_a_second_voice(
    kafka: KafkaConfig, start: Start
) -> None:
    ensure(kafka)
    first = start("w1")
    with LiveRow(kafka, SETUP):
        first.await_line("is beaten here under epoch 1", 120)
        until(lambda: len(ticks_of(kafka)) >= 4, 60, "four beats")
        first.kill()
        killed_at = time.monotonic()
        second = start("w2")
        second.await_line("is beaten here under epoch 2", 120)
        print(f"taken up {time.monotonic() - killed_at:.1f} s after the kill")
        until(lambda: sum(tick.epoch == 2 for tick in ticks_of(kafka)) >= 4, 60, "four beats more")
    second.stop()
    assert second.ended_with == 0, second.said()
    assert "begins anew" not in second.said()

    ticks = ticks_of(kafka)
    assert [epoch for epoch, _ in groupby(tick.epoch for tick in ticks)] == [1, 2]
    assert len({tick.source for tick in ticks}) == 2
    assert [tick.at for tick in ticks] == sorted({tick.at for tick in ticks})
    beats = redone(kafka)
    assert [beat.tick.at for beat in beats] == [tick.at for tick in ticks]
    said = said_on(kafka)
    assert said == said_by(beats)
    decisions = [beat.decision for beat in beats]
    assert all(decision.id in said for decision in decisions)


def test_the_rows_of_a_worker_that_dies_are_taken_over(kafka: KafkaConfig, start: Start) -> None:
    ensure(kafka)
    workers = {name: start(name) for name in ("w1", "w2")}
    with LiveRow(kafka, SETUP):

        def owner() -> str:
            owned = [name for name, worker in workers.items() if OWNED in worker.get("/metrics")[1]]
            return owned[0] if len(owned) == 1 else ""

        for worker in workers.values():
            worker.await_line("partitions, rows:", 120)
        until(lambda: bool(owner()), 60, "one owner")
        dead = owner()
        # Until then its first beat may not be said, and nobody could say it again.
        until(lambda: bool(messages_of(kafka, SNAPSHOTS, ROW.path)), 60, "a snapshot")
        (left,) = set(workers) - {dead}
        workers[dead].kill()
        last = ticks_of(kafka)[-1]
        workers[left].await_line("is beaten here", 120)
        until(lambda: ticks_of(kafka)[-1].epoch > last.epoch, 60, "a beat of the other")
        first = next(tick for tick in ticks_of(kafka) if tick.epoch > last.epoch)
        print(f"{(first.at - last.at) / 1000:.1f} s between the last beat of one and the first of the other")
        assert first.at - last.at < 15_000
        until(lambda: ticks_of(kafka)[-1].at > first.at + 3_000, 60, "beats of the other")
    workers[left].stop()
    beats = redone(kafka)
    assert said_on(kafka) == said_by(beats)


def test_a_row_whose_owner_dies_before_its_first_snapshot_begins_anew_above_it(
    kafka: KafkaConfig, start: Start
) -> None:
    """What was said of the first owner's beats stands in the ledger whatever is lost on other topics."""
    ensure(kafka)
    refuse_all(kafka, SNAPSHOTS)
    first = start("w1")
    with LiveRow(kafka, SETUP):
        first.await_line("is beaten here under epoch 1", 120)
        until(lambda: bool(messages_of(kafka, COMMANDS, ROW.path)), 60, "a command")
        first.kill()
        second = start("w2")
        second.await_line("is beaten here under epoch 2", 120)
        until(lambda: sum(tick.epoch == 2 for tick in ticks_of(kafka)) >= 3, 60, "three beats more")
        second.kill()
    assert "no snapshot" in second.said()
    ticks = ticks_of(kafka)
    assert [(epoch, next(own).anew) for epoch, own in groupby(ticks, lambda tick: tick.epoch)] == [
        (1, True),
        (2, True),
    ]
    said = said_on(kafka)
    assert said.items() <= said_by(redone(kafka)).items()
    recorded = {codec.decode(each.value).id for each in messages_of(kafka, LEDGER, SETUP.site.name)}
    commands = {event.id: event for event in map(codec.decode, said.values()) if isinstance(event, Command)}
    assert {command.lease.epoch for command in commands.values()} == {1, 2}
    assert commands.keys() | {command.cause[0] for command in commands.values()} <= recorded


def test_a_row_goes_on_whatever_epochs_its_hosts_obeyed_and_whatever_a_tick_names(
    kafka: KafkaConfig, start: Start
) -> None:
    """It was beaten on one machine before; and somebody forges a tick that names what no log holds."""
    ensure(kafka)
    worker = start("w1")
    host = ROW.hosts[0].path
    with LiveRow(kafka, SETUP) as live:
        worker.await_line("is beaten here under epoch 1", 120)
        live.say([Refused(at=1, source="x", subject=host, command="y", epoch=1, fenced_by=41)])
        until(lambda: ticks_of(kafka)[-1].epoch == 42, 60, "a claim above what the hosts obeyed")
        until(lambda: 'windrow_row_epoch{row="lab1/row-a"} 42.0' in worker.get("/metrics")[1], 60, "told")
        upto = dict.fromkeys(INPUTS, 1 << 40)
        live.say(
            [Tick(at=ticks_of(kafka)[-1].at + 1, source="forged", subject=ROW.path, epoch=50, upto=upto)]
        )
        took_s = until(lambda: ticks_of(kafka)[-1].epoch == 51, 60, "a claim above the forged one")
        print(f"beaten again {took_s:.1f} s after a forged tick")
        until(lambda: sum(tick.epoch == 51 for tick in ticks_of(kafka)) >= 3, 60, "three beats")
    worker.stop()
    assert worker.ended_with == 0, worker.said()
    assert "begins anew: the beat of" in worker.said()
    assert "and ends there" in worker.said()
    assert [tick.epoch for tick in ticks_of(kafka) if tick.anew] == [1, 51]


def test_poison_stops_nothing_is_kept_whole_and_counted(kafka: KafkaConfig, start: Start) -> None:
    ensure(kafka)
    poison = {
        topic: [
            b"",
            b"\xff\x00",
            b'{"type":"Gpu',
            b"[" * 50_000,
            codec.encode(Tick(at=1, source="x", subject="y")),
        ]
        for topic in ("windrow.gpus", "windrow.outcomes")
    } | {"windrow.summaries": [b"{}"]}
    worker = start("w1")
    with LiveRow(kafka, SETUP) as live:
        worker.await_line("is beaten here", 120)
        for topic, payloads in poison.items():
            for payload in payloads:
                live.put(topic, SETUP.site.name.encode() if "summ" in topic else ROW.path.encode(), payload)
        live.put("windrow.gpus", b"ams9/row-x", codec.encode(strange_frame()))
        live.put("windrow.ticks", ROW.path.encode(), b"no tick")
        live.say([Tick(at=1, source="of no owner", subject=ROW.path)])
        before = len(ticks_of(kafka))
        until(lambda: len(ticks_of(kafka)) >= before + 3, 60, "three beats after the poison")
        page = worker.get("/metrics")[1]
        site = [codec.decode(each.value) for each in messages_of(kafka, "windrow.sites", SETUP.site.name)]
    worker.stop()
    assert worker.ended_with == 0, worker.said()
    letters = [
        codec.decode(received.value)
        for key in (ROW.path, SETUP.site.name)
        for received in messages_of(kafka, "windrow.dead-letters", key)
    ]
    buried = Counter((each.topic, each.payload) for each in letters if isinstance(each, DeadLetter))
    expected = Counter((topic, payload) for topic, payloads in poison.items() for payload in payloads)
    assert buried == expected + Counter([("windrow.ticks", b"no tick")])
    assert 'windrow_strangers_total{type="GpuFrame"} 1.0' in page
    assert 'windrow_dead_letters_total{reason="malformed",topic="windrow.outcomes"}' in page
    assert 'windrow_bus_passed_over_ticks_total{row="lab1/row-a"} 1.0' in page
    assert "Traceback" not in worker.said()
    powers = [event for event in site if isinstance(event, SitePower)]
    assert any(power.rows_total == 1 and not power.silent for power in powers)


def strange_frame() -> GpuFrame:
    return GpuFrame(at=1, source="c", subject="ams9/row-x/r01/h01", gpus=("GPU-0",), power_w=((300.0,),))


def test_a_worker_says_again_what_a_recording_holds(kafka: KafkaConfig, start: Start) -> None:
    recording = read_recording(PROJECT / "twin/scenarios/small-row.jsonl.gz")
    setup = setup_of(recording.header.site, policy_text=recording.header.policy)
    row = setup.site.rows[0].path
    loop = RowLoop(setup.site.rows[0], setup.policy, epoch=recording.header.epoch)
    begun = freeze(loop.initial(), loop, Mark(upto=dict.fromkeys((*INPUTS, TICKS), 0)))
    publish(
        kafka, recording.events, epoch=recording.header.epoch, clock=SystemClock(), snapshots={row: begun}
    )
    worker = start("w1", setup.site_text, setup.policy_text)
    worker.await_line("is beaten here", 120)
    worker.stop()
    assert worker.ended_with == 0, worker.said()
    assert "begins anew" not in worker.said()
    # What the last recorded beat said, it says again: its state is that of the host which was recorded.
    outputs = [event for event in recording.events if not is_input(event) and not isinstance(event, Tick)]
    last = [event for event in outputs if event.at == outputs[-1].at]
    assert {type(event) for event in last} >= {PowerRollup, Decision}
    said = {
        each.value
        for topic in SAID
        for each in messages_of(kafka, topic, row)
        if codec.decode(each.value).at == outputs[-1].at
    }
    assert said == {codec.encode(event) for event in last}


def test_a_worker_refuses_in_words_what_it_cannot_run_on(kafka: KafkaConfig, start: Start) -> None:
    name = kafka.topic("windrow.gpus")
    admin = admin_of(kafka)
    admin.create_topics([NewTopic(name, 5, 1)])[name].result(20)
    worker = start("w1")
    assert worker.wait(60) == 2
    assert f"{name}: partitions is 5 and should be 32" in worker.said()
    assert "Traceback" not in worker.said()


def admin_of(kafka: KafkaConfig) -> AdminClient:
    return AdminClient({"bootstrap.servers": ",".join(kafka.servers)})


def refuse_all(kafka: KafkaConfig, topic: str) -> None:
    """Have the broker refuse what is said there: too large, whatever it holds."""
    smallest = ConfigEntry("max.message.bytes", "10", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, kafka.topic(topic), incremental_configs=[smallest])
    admin = admin_of(kafka)  # ends what it was asked when it goes
    admin.incremental_alter_configs([resource])[resource].result(20)


def remove(kafka: KafkaConfig, topic: str) -> None:
    name = kafka.topic(topic)
    admin = admin_of(kafka)
    admin.delete_topics([name])[name].result(20)


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (refuse_all, f"{ROW.path}: input came for"),
        (remove, "rows cannot be taken up: {ticks} has no partition 0"),
    ],
)
def test_a_worker_whose_ticks_come_to_nothing_ends_and_says_why(
    kafka: KafkaConfig, tmp_path: Path, trouble: Callable[[KafkaConfig, str], None], words: str
) -> None:
    ensure(kafka)
    worker = Worker(tmp_path / "w1", kafka, SITE, *QUICK, "--stalled-seconds", "5")
    try:
        with LiveRow(kafka, SETUP):
            worker.await_line("is beaten here", 120)
            trouble(kafka, TICKS)
            assert worker.wait(60) == 3
    finally:
        worker.kill()
    assert f"started anew: {words.format(ticks=kafka.topic(TICKS))}" in worker.said()


@pytest.mark.slow
def test_a_worker_waits_for_a_broker_that_is_away_and_goes_on_where_it_was(
    broker: Node, tmp_path: Path
) -> None:
    kafka = KafkaConfig(servers=(broker.address,), prefix="t-")
    ensure(kafka)
    worker = Worker(tmp_path / "w1", kafka, SITE)
    try:
        with LiveRow(kafka, SETUP):
            worker.await_line("is beaten here", 120)
            broker.kill()
            worker.await_line("Kafka has sent nothing for", 120)
            status, page = worker.get("/health/ready")
            assert status == 503
            assert "Kafka has sent nothing for" in page
            time.sleep(20)
            broker.start()
            back = time.time() * 1000
            until(lambda: ticks_of(kafka)[-1].at > back + 2_000, 60, "beats after the broker is back")
            assert {tick.epoch for tick in ticks_of(kafka)} == {1}
            until(lambda: worker.get("/health/ready")[0] == 200, 60, "a healthy worker")
        worker.stop()
        assert worker.ended_with == 0, worker.said()
    finally:
        worker.kill()
    assert said_on(kafka).items() <= said_by(redone(kafka)).items()


@pytest.mark.slow
def test_a_worker_logs_in_over_tls_and_tells_nobody_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        with SecureBroker(tmp_path / "secure").serving() as broker:
            kafka = broker.config("sasl_tls", mechanism="SCRAM-SHA-512", prefix="t-")
            monkeypatch.setenv(kafka.password_env, PASSWORD)
            worker = Worker(tmp_path / "w1", kafka, SITE)
            try:
                worker.await_line("is beaten here under epoch 1", 120)
                worker.stop()
            finally:
                worker.kill()
    except Unavailable as error:
        missing(str(error))
    assert worker.ended_with == 0, worker.said()
    assert PASSWORD not in worker.said()
