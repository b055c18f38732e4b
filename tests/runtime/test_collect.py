"""`windrow collect` on a machine whose driver is the stand-in, against a real broker: it reads at once,
publishes in order, keeps what it cannot send, and ends in seconds."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from support.kafka_broker import Node
from support.machines import CALM_MW, HOST, Machine, eventually

from runtime.bus.provision import ensure
from runtime.bus.reader import Reader
from runtime.bus.settings import KafkaConfig
from runtime.cli.app import run
from schemas import codec
from schemas.samples import GpuFrame
from schemas.topics import BY_NAME

pytestmark = [pytest.mark.usefixtures("nvml_library"), pytest.mark.counterpart]

GPUS = "windrow.gpus"
KAFKA = '[kafka]\nservers = ["{server}"]\nprefix = "{prefix}"\n'


@pytest.fixture
def machine(tmp_path: pathlib.Path) -> Iterator[Machine]:
    """A server with two H100s, sampled each 50 ms and published each second."""
    made = Machine(tmp_path)
    text = made.config.read_text(encoding="utf-8")
    made.config.write_text(text.replace("period_ms = 200", "period_ms = 1000\nsample_ms = 50"))
    yield made
    made.close()


def told_of(machine: Machine, kafka: KafkaConfig) -> None:
    with machine.config.open("a", encoding="utf-8") as config:
        config.write(KAFKA.format(server=kafka.servers[0], prefix=kafka.prefix))


def frames(kafka: KafkaConfig, enough: int, within_s: float = 20.0) -> list[GpuFrame]:
    """What lies on the topic, in its order, at least so many."""
    reader = Reader(kafka, {GPUS: None}, start="earliest")
    got: list[GpuFrame] = []
    until = time.monotonic() + within_s
    while len(got) < enough and time.monotonic() < until:
        for each in reader.poll(0.2, 500):
            event = codec.decode(each.value)
            assert isinstance(event, GpuFrame)
            assert each.key == b"lab/row-a"
            got.append(event)
    reader.close()
    return got


def test_samples_are_published_in_frames_and_a_jump_at_once(machine: Machine, kafka: KafkaConfig) -> None:
    ensure(kafka, [BY_NAME[GPUS]._replace(partitions=2)])
    told_of(machine, kafka)
    machine.start(command="collect")
    eventually(lambda: (machine.ready() or {}).get("ready") is True, "its source is heard and Kafka answers")
    time.sleep(2.2)
    time.sleep((1.5 - time.time() % 1) % 1)  # far from a tick
    machine.want(CALM_MW + 200_000)
    time.sleep(1.5)
    metrics = machine.get("/metrics").decode()
    assert "windrow_publish_connected 1.0" in metrics
    assert f'windrow_collector_away{{collector="collector/gpu-nvml/{HOST}"}} 0.0' in metrics
    assert machine.stop() == 0
    said = frames(kafka, 4)
    times = [frame.at + offset for frame in said for offset in frame.offsets_ms]
    assert times == sorted(set(times)), "each sample once, in order"
    assert max(len(frame.power_w) for frame in said) >= 10, "many samples a frame"
    # However late a tick's sample is taken, the next frame in the same second did not wait for a tick.
    early = [frame for last, frame in pairwise(said) if frame.at // 1000 == last.at // 1000]
    assert len(early) == 1, "the jump, and nothing else, before its tick"
    before, after = early[0].power_w[0][0], early[0].power_w[-1][0]
    assert before is not None
    assert after is not None
    assert after > before + 100


def test_it_reads_from_the_start_without_a_broker_and_a_kill_loses_nothing_that_was_kept(
    machine: Machine, broker: Node
) -> None:
    kafka = KafkaConfig(servers=(broker.address,))
    ensure(kafka, [BY_NAME[GPUS]._replace(partitions=2)])
    broker.stop()
    told_of(machine, kafka)
    machine.start(command="collect")
    eventually(lambda: "Kafka is away" in str(machine.ready()), "it says what is wrong")
    spooled = 'windrow_publish_spooled_messages{topic="windrow.gpus"} '
    eventually(lambda: f"{spooled}3.0" in machine.get("/metrics").decode(), "frames wait on disk")
    machine.close()  # SIGKILL
    broker.start()
    machine.start(command="collect")
    eventually(lambda: (machine.ready() or {}).get("ready") is True, "all is well")
    began = time.monotonic()
    assert machine.stop() == 0
    assert time.monotonic() - began < 5.0
    said = frames(kafka, 4)
    times = [frame.at for frame in said]
    assert times == sorted(set(times))
    assert len(said) >= 4


def test_what_it_lacks_is_said_in_words(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["collect", "--config", str(machine.config)]) == 2
    assert "kafka is missing: write [kafka] with servers" in capsys.readouterr().err
