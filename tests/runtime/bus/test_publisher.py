"""What is said reaches Kafka in its order, whatever becomes of broker, disk and process meanwhile."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from support.counterparts import PROJECT
from support.kafka_broker import Node
from support.sites import ONE_HOST, site_from

from runtime.bus import publisher as publishing
from runtime.bus.clients import connect
from runtime.bus.keys import Keys
from runtime.bus.provision import ensure
from runtime.bus.publish_metrics import PublishMetrics
from runtime.bus.publisher import Publisher
from runtime.bus.reader import Reader
from runtime.bus.settings import KafkaConfig
from runtime.clock import SystemClock
from schemas import codec
from schemas.envelope import DeadLetter, Event
from schemas.samples import GpuFrame
from schemas.topics import BY_NAME

pytestmark = pytest.mark.counterpart

SITE = site_from(ONE_HOST)
HOST = next(iter(SITE.hosts))
GPUS, DEAD = "windrow.gpus", "windrow.dead-letters"


def frames(first: int, count: int) -> list[Event]:
    return [
        GpuFrame(at=number, source="test", subject=HOST, gpus=("GPU-0",))
        for number in range(first, first + count)
    ]


def letters(count: int) -> list[Event]:
    return [
        DeadLetter(at=number, source="test", subject=SITE.name, topic=GPUS, payload=b"?", reason="test")
        for number in range(count)
    ]


def provision(kafka: KafkaConfig, *names: str) -> None:
    ensure(kafka, [BY_NAME[name]._replace(partitions=2) for name in names or (GPUS, DEAD)])


def provision_narrow(kafka: KafkaConfig) -> None:
    """A topic whose batches may take 2,000 bytes."""
    admin = connect("KafkaAdminClient", kafka, 10.0).client
    narrow = {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "2000"}}
    admin.create_topics({kafka.topic(GPUS): narrow})
    admin.close()


def arrived(kafka: KafkaConfig, last: int, topic: str = GPUS, within_s: float = 30.0) -> list[int]:
    """The event times of what lies on a topic, in its order, read until `last` is seen."""
    reader = Reader(kafka, {topic: None}, start="earliest")
    got: list[int] = []
    until = time.monotonic() + within_s
    while last not in got and time.monotonic() < until:
        got += [codec.decode(each.value).at for each in reader.poll(0.2, 500)]
    reader.close()
    return got


def until(truth: Callable[[], object], within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while not truth():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


@contextlib.contextmanager
def publisher(kafka: KafkaConfig, spool: pathlib.Path | None = None) -> Iterator[Publisher]:
    made = Publisher(kafka, Keys(SITE), spool=spool, clock=SystemClock(), client="test")
    try:
        yield made
    finally:
        made.close(1.0)


def firsts(numbers: list[int]) -> list[int]:
    return list(dict.fromkeys(numbers))


def at(node: Node) -> KafkaConfig:
    return KafkaConfig(servers=(node.address,))


def test_what_is_said_arrives_once_and_in_order_and_no_disk_is_touched(
    kafka: KafkaConfig, tmp_path: pathlib.Path
) -> None:
    provision(kafka)
    with publisher(kafka, tmp_path) as said:
        said.send(frames(0, 500))
        said.send(letters(3))
        assert said.flush(20.0)
        state = said.state()
        assert (state.connected, state.sent, state.waiting, state.lost) == (True, 503, 0, 0)
        assert not list(tmp_path.rglob("*.spool"))
    assert arrived(kafka, 499) == list(range(500))
    assert sorted(arrived(kafka, 2, DEAD)) == [0, 1, 2]


def test_sending_returns_at_once_though_no_broker_is_there_and_all_of_it_is_kept(
    tmp_path: pathlib.Path,
) -> None:
    nobody = KafkaConfig(servers=("127.0.0.1:1",))
    with publisher(nobody, tmp_path) as said:
        began = time.monotonic()
        said.send(frames(0, 1_000))
        assert time.monotonic() - began < 0.1
        until(lambda: said.state().spooled == 1_000)
        until(lambda: "connection refused" in said.state().away)
        assert not said.state().connected
        assert said.state().trouble.endswith("1000 messages wait, 1000 on disk")
        began = time.monotonic()
    assert time.monotonic() - began < 2.0, "nobody waits for a broker that was never reached"


def test_a_broker_that_is_stopped_and_comes_back_has_everything_in_order(
    broker: Node, tmp_path: pathlib.Path
) -> None:
    kafka = at(broker)
    provision(kafka)
    with publisher(kafka, tmp_path) as said:
        said.send(frames(0, 100))
        assert said.flush(20.0)
        broker.kill()
        for number in range(100, 200):  # some of it in flight when it is noticed
            said.send(frames(number, 1))
            time.sleep(0.005)
        until(lambda: said.state().spooled == 100)
        until(lambda: said.state().away)
        broker.start()
        said.send(frames(200, 100))
        assert said.flush(30.0)
        until(lambda: said.state().connected)
        assert said.state().lost == 0
    assert firsts(arrived(kafka, 299)) == list(range(300))


def test_a_broker_that_dies_again_while_the_spool_drains_has_everything_in_order(
    broker: Node, tmp_path: pathlib.Path
) -> None:
    kafka = at(broker)
    provision(kafka)
    count = 40_000
    with publisher(kafka, tmp_path) as said:
        said.send(frames(0, 1))
        assert said.flush(20.0)
        broker.kill()
        for first in range(1, count, 1_000):
            said.send(frames(first, 1_000))
            until(lambda: said.state().queued == 0)
        until(lambda: said.state().spooled == count)
        broker.start()
        until(lambda: said.state().sent > 2_000)
        broker.kill()
        left = said.state().waiting
        assert 0 < left < count, "it was at it"
        said.send(frames(count + 1, 100))
        until(lambda: said.state().away)
        broker.start()
        assert said.flush(60.0)
        assert (said.state().sent, said.state().lost) == (count + 101, 0)
    assert firsts(arrived(kafka, count + 100, within_s=60.0)) == list(range(count + 101))


def test_a_broker_that_hangs_for_long_gets_what_was_in_flight_again_and_nothing_out_of_order(
    broker: Node, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "STALLED_S", 1.0)
    kafka = at(broker)
    provision(kafka)
    with publisher(kafka, tmp_path) as said:
        said.send(frames(0, 10))
        assert said.flush(20.0)
        broker.pause()
        said.send(frames(10, 10))
        until(lambda: "nothing was acknowledged" in said.state().away)
        said.send(frames(20, 10))
        until(lambda: said.state().spooled == 20)
        broker.resume()
        assert said.flush(30.0)
        assert said.state().lost == 0
    assert firsts(arrived(kafka, 29)) == list(range(30))


def test_what_a_killed_process_had_on_disk_goes_out_from_the_next_one_first(
    broker: Node, tmp_path: pathlib.Path
) -> None:
    kafka = at(broker)
    provision(kafka)
    broker.stop()
    script = f"""
        import pathlib, sys, time
        sys.path[:0] = ["tests"]
        from runtime.bus.settings import KafkaConfig
        from runtime.bus.keys import Keys
        from runtime.bus.publisher import Publisher
        from runtime.clock import SystemClock
        from schemas.samples import GpuFrame
        from support.sites import ONE_HOST, site_from
        said = Publisher(
            KafkaConfig(servers=({broker.address!r},)), Keys(site_from(ONE_HOST)),
            spool=pathlib.Path({str(tmp_path)!r}), clock=SystemClock(), client="test",
        )
        said.send([GpuFrame(at=n, source="test", subject={HOST!r}, gpus=("GPU-0",)) for n in range(50)])
        while said.state().spooled < 50:
            time.sleep(0.01)
        print("spooled", flush=True)
        time.sleep(60)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=PROJECT, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"spooled\n"
        child.send_signal(signal.SIGKILL)
    broker.start()
    with publisher(kafka, tmp_path) as said:
        said.send(frames(50, 50))
        assert said.flush(30.0)
        assert (said.state().sent, said.state().lost) == (100, 0)
    assert arrived(kafka, 99) == list(range(100))
    assert not list(tmp_path.rglob("*.spool"))


def test_a_process_that_ends_in_order_leaves_what_it_could_not_send(tmp_path: pathlib.Path) -> None:
    nobody = KafkaConfig(servers=("127.0.0.1:1",))
    with publisher(nobody, tmp_path) as said:
        said.send(frames(0, 10))
    with publisher(nobody, tmp_path) as said:
        until(lambda: said.state().spooled == 10)


def test_without_a_spool_memory_is_bounded_and_what_falls_out_is_counted_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publishing, "MEMORY_BYTES", 20_000)
    nobody = KafkaConfig(servers=("127.0.0.1:1",))
    with publisher(nobody) as said:
        for number in range(10):
            said.send(frames(100 * number, 100))
        until(lambda: said.state().queued == 0)
        until(lambda: said.state().waiting < 100)
        until(lambda: (state := said.state()).waiting + state.lost == 1_000)
        until(lambda: "lost" in said.state().trouble)
    assert said.state().lost == 1_000
    told = [each.message for each in caplog.records if "are lost: overflow" in each.message]
    assert len(told) == 1


def test_more_at_once_than_memory_takes_goes_to_disk(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "MEMORY_BYTES", 20_000)
    with publisher(KafkaConfig(servers=("127.0.0.1:1",)), tmp_path) as said:
        said.send(frames(0, 1_000))
        until(lambda: said.state().spooled == 1_000)
        assert said.state().lost == 0


def test_a_full_disk_leaves_a_ring_in_memory_and_goes_on_when_there_is_room(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True
    write = os.write

    def refused(handle: int, content: bytes) -> int:
        if full and threading.current_thread().name == "publish test":
            raise OSError(28, "No space left on device")
        return write(handle, content)

    monkeypatch.setattr(os, "write", refused)
    monkeypatch.setattr(publishing, "MEMORY_BYTES", 20_000)
    nobody = KafkaConfig(servers=("127.0.0.1:1",))
    with publisher(nobody, tmp_path) as said:
        said.send(frames(0, 1_000))
        until(lambda: said.state().lost > 900)
        until(lambda: (state := said.state()).waiting + state.lost == 1_000)
        assert 0 < said.state().waiting < 100
        until(lambda: said.state().disk.endswith("No space left on device"))
        for _ in range(20):
            time.sleep(0.02)
            assert said.state().disk.endswith("No space left on device"), "for as long as it is so"
        full = False
        until(lambda: (kept := said.state()).spooled == kept.waiting > 0)
        until(lambda: not said.state().disk)
        state = said.state()
        assert state.waiting + state.lost == 1_000


def test_a_damaged_spool_is_set_aside_and_publishing_goes_on(
    kafka: KafkaConfig, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    provision(kafka)
    with publisher(KafkaConfig(servers=("127.0.0.1:1",)), tmp_path) as said:
        said.send(frames(0, 10))
    (segment,) = tmp_path.rglob("*.spool")
    segment.write_bytes(segment.read_bytes().replace(b"GPU-0", b"GPU-1", 1))
    with publisher(kafka, tmp_path) as said:
        said.send(frames(10, 10))
        assert said.flush(20.0)
        assert said.state().topics[0].lost == {"damaged": 10}
        until(lambda: "lost 10 messages (damaged)" in said.state().trouble)
    assert arrived(kafka, 19) == list(range(10, 20))
    assert "it was set aside as" in caplog.text


def test_old_telemetry_is_dropped_and_other_words_are_not(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "TELEMETRY_MS", 300)
    with publisher(KafkaConfig(servers=("127.0.0.1:1",)), tmp_path) as said:
        said.send(frames(0, 10))
        said.send(letters(10))
        until(
            lambda: {each.topic: each.lost for each in said.state().topics} == {GPUS: {"stale": 10}, DEAD: {}}
        )


def test_a_topic_that_is_missing_holds_up_no_other_and_is_waited_for(
    kafka: KafkaConfig, tmp_path: pathlib.Path
) -> None:
    provision(kafka, DEAD)
    with publisher(kafka, tmp_path) as said:
        said.send(frames(0, 10))
        said.send(letters(10))
        until(lambda: {each.topic: each.waiting for each in said.state().topics} == {GPUS: 10, DEAD: 0})
        assert "windrow.gpus" in said.state().away
        provision(kafka, GPUS)
        assert said.flush(20.0)
        assert said.state().connected
    assert arrived(kafka, 9) == list(range(10))


def test_a_message_that_kafka_refuses_is_counted_and_the_next_one_goes_out(kafka: KafkaConfig) -> None:
    provision(kafka)
    with publisher(kafka) as said:
        too_large = GpuFrame(at=5, source="x" * 2_000_000, subject=HOST, gpus=())
        said.send([*frames(0, 5), too_large, *frames(6, 4)])
        until(lambda: said.state().sent == 9)
        assert said.state().topics[0].lost == {"refused": 1}
    assert arrived(kafka, 9) == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_a_message_that_the_brokers_refuse_takes_no_other_with_it(
    kafka: KafkaConfig, tmp_path: pathlib.Path
) -> None:
    provision(kafka, DEAD)
    provision_narrow(kafka)
    too_large = GpuFrame(at=5, source=random.Random(1).randbytes(4_000).hex(), subject=HOST, gpus=())
    with publisher(kafka, tmp_path) as said:
        said.send([*frames(0, 5), too_large, *frames(6, 94), *letters(50)])
        assert said.flush(20.0)
        said.send([*frames(100, 10), *letters(1)])  # after the refusal
        assert said.flush(20.0)
        until(lambda: said.state().connected)
        state = {each.topic: (each.sent, each.lost) for each in said.state().topics}
        assert state == {GPUS: (109, {"refused": 1}), DEAD: (51, {})}
    assert firsts(arrived(kafka, 109)) == [number for number in range(110) if number != 5]


def test_what_is_said_is_compressed_on_its_way(kafka: KafkaConfig) -> None:
    provision_narrow(kafka)
    with publisher(kafka) as said:
        said.send([GpuFrame(at=1, source="again " * 4_000, subject=HOST, gpus=())])
        assert said.flush(20.0)
        (topic,) = said.state().topics
        assert (topic.sent, topic.lost) == (1, {}), "it fits only where it is packed"


def test_kafkas_check_sums_are_not_worked_out_in_python() -> None:
    """It would halve what a core can send, without a word."""
    from kafka.record import util

    assert util.crc32c_c is not None


def test_the_metrics_say_what_became_of_messages(kafka: KafkaConfig) -> None:
    provision(kafka)
    with publisher(kafka) as said:
        said.send(frames(0, 5))
        assert said.flush(20.0)
        registry = CollectorRegistry()
        registry.register(PublishMetrics(said.state))
        told = generate_latest(registry).decode()
    assert 'windrow_publish_sent_messages_total{topic="windrow.gpus"} 5.0' in told
    assert "windrow_publish_connected 1.0" in told
