"""Workers on a real broker: what they say is what their log says, whoever dies."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
from support.live_row import LiveRow, log_of, messages_of
from support.rigs import row_text, setup_of
from support.workers import QUICK, Worker

from runtime.bus.provision import ensure
from runtime.bus.settings import KafkaConfig
from runtime.control_loop import ControlLoop
from runtime.hosts.row_log import TICKS, RowLog
from runtime.row_loop import Beat, RowLoop
from schemas import codec
from schemas.decisions import Decision
from schemas.envelope import Event, Tick
from schemas.samples import PowerRollup, SitePower
from schemas.topics import BY_TYPE, topic_of

pytestmark = [pytest.mark.counterpart, pytest.mark.timeout(180)]

SITE = row_text(2, budget_w=9_000.0)
SETUP = setup_of(SITE)
ROW = SETUP.site.rows[0]
SAID = (
    "windrow.rollups",
    "windrow.forecasts",
    "windrow.emergencies",
    "windrow.decisions",
    "windrow.commands",
)


def until(true: Callable[[], bool], within_s: float, what: str) -> float:
    """Wait until something is so; how long that took, in seconds."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within_s, f"{what}: not within {within_s} s"
        time.sleep(0.05)
    return time.monotonic() - began


def ticks_of(kafka: KafkaConfig) -> list[Tick]:
    ticks = [codec.decode(received.value) for received in messages_of(kafka, TICKS, ROW.path)]
    return [tick for tick in ticks if isinstance(tick, Tick)]


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
    kafka: KafkaConfig, tmp_path: Path
) -> None:
    ensure(kafka)
    worker = Worker(tmp_path / "w1", kafka, SITE)
    with LiveRow(kafka, SETUP):
        worker.await_line("is beaten here under epoch 1", 30)
        until(lambda: len(ticks_of(kafka)) >= 6, 30, "six beats")
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
    kafka: KafkaConfig, tmp_path: Path
) -> None:
    ensure(kafka)
    first = Worker(tmp_path / "w1", kafka, SITE)
    with LiveRow(kafka, SETUP):
        first.await_line("is beaten here under epoch 1", 30)
        until(lambda: len(ticks_of(kafka)) >= 4, 30, "four beats")
        first.kill()
        killed_at = time.monotonic()
        second = Worker(tmp_path / "w2", kafka, SITE)
        second.await_line("is beaten here under epoch 2", 30)
        print(f"taken up {time.monotonic() - killed_at:.1f} s after the kill")
        until(lambda: sum(tick.epoch == 2 for tick in ticks_of(kafka)) >= 4, 30, "four beats more")
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


def test_the_rows_of_a_worker_that_dies_are_taken_over(kafka: KafkaConfig, tmp_path: Path) -> None:
    ensure(kafka)
    workers = {name: Worker(tmp_path / name, kafka, SITE) for name in ("w1", "w2")}
    with LiveRow(kafka, SETUP):

        def owner() -> str:
            ticks = ticks_of(kafka)
            owned = [
                name
                for name, worker in workers.items()
                if 'windrow_row_owned{row="lab1/row-a"} 1.0' in worker.get("/metrics")[1]
            ]
            return owned[0] if ticks and len(owned) == 1 and ticks[-1].at > time.time() * 1000 - 3_000 else ""

        for worker in workers.values():
            worker.await_line("partitions, rows:", 30)
        until(lambda: bool(owner()), 40, "one owner")
        dead = owner()
        (left,) = set(workers) - {dead}
        workers[dead].kill()
        last = ticks_of(kafka)[-1]
        workers[left].await_line("is beaten here", 30)
        until(lambda: ticks_of(kafka)[-1].epoch > last.epoch, 20, "a beat of the other")
        first = next(tick for tick in ticks_of(kafka) if tick.epoch > last.epoch)
        print(f"{(first.at - last.at) / 1000:.1f} s between the last beat of one and the first of the other")
        assert first.at - last.at < 15_000
        until(lambda: ticks_of(kafka)[-1].at > first.at + 3_000, 20, "beats of the other")
    workers[left].stop()
    beats = redone(kafka)
    assert said_on(kafka) == said_by(beats)
