"""The servers that tests run against: one for all where that is enough, ended with its last user."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from support.cached import kept
from support.counterparts import PROJECT
from support.influx_server import InfluxServer, ask
from support.kafka_broker import Cluster, Node

from runtime.bus.settings import InfluxConfig, KafkaConfig

pytestmark = pytest.mark.counterpart

HOLDS = """
import sys, time, pathlib
from support.held import held
with held("kafka", pathlib.Path(sys.argv[1])) as told:
    print(told["servers"], flush=True)
    time.sleep(60)
"""


def topics_at(server: str, timeout_s: float = 10.0) -> set[str]:
    return set(
        AdminClient({"bootstrap.servers": server, "log_level": 0}).list_topics(timeout=timeout_s).topics
    )


def make_topic(server: str, name: str, copies: int = 1) -> None:
    admin = AdminClient({"bootstrap.servers": server, "log_level": 0})
    admin.create_topics([NewTopic(name, 1, copies)])[name].result(20)


def say(servers: str, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": servers, "log_level": 0, "delivery.timeout.ms": 30_000})
    producer.produce(topic, value)
    assert producer.flush(30) == 0


def first_of(servers: str, topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "unused", "log_level": 0})
    consumer.assign([TopicPartition(topic, 0, 0)])
    got = consumer.consume(count, timeout=30)
    consumer.close()
    return [message.value() for message in got]


def serves(server: str) -> bool:
    try:
        topics_at(server, 2.0)
    except Exception:  # its own type is not exported under one name over all versions
        return False
    return True


def test_each_test_has_a_prefix_of_its_own_on_the_broker_of_the_run(kafka: KafkaConfig) -> None:
    assert kafka.prefix
    assert not [name for name in topics_at(kafka.servers[0]) if name.startswith(kafka.prefix)]


def test_two_processes_share_one_broker_and_it_ends_with_the_last_though_killed(tmp_path: Path) -> None:
    def holder() -> tuple[subprocess.Popen[bytes], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(PROJECT / "tests")},
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        with process.stdout:
            return process, process.stdout.readline().decode().strip()

    if os.environ.get("WINDROW_TEST_KAFKA"):
        pytest.skip("WINDROW_TEST_KAFKA names a broker that nobody here ends")
    first, servers = holder()
    second, same = holder()
    assert servers
    assert same == servers
    first.kill()
    first.wait()
    assert serves(servers)
    second.kill()
    second.wait()
    give_up = time.monotonic() + 20
    while serves(servers):
        assert time.monotonic() < give_up, "the broker outlived those who held it"


def test_a_broker_comes_back_on_its_address_with_what_it_acknowledged(broker: Node) -> None:
    make_topic(broker.address, "kept")
    say(broker.address, "kept", b"before")
    broker.kill()
    broker.start()
    say(broker.address, "kept", b"after")
    assert first_of(broker.address, "kept", 2) == [b"before", b"after"]


def test_of_three_brokers_any_one_may_be_killed(brokers: Callable[[int], Cluster]) -> None:
    cluster = brokers(3)
    servers = ",".join(cluster.servers)
    make_topic(servers, "copied", copies=3)
    say(servers, "copied", b"before")
    cluster.nodes[0].kill()
    say(servers, "copied", b"after")
    assert first_of(servers, "copied", 2) == [b"before", b"after"]


def test_each_test_has_an_empty_bucket_of_its_own(influx: InfluxConfig) -> None:
    found = ask(influx.url, os.environ[influx.token_env], f"/api/v2/buckets?name={influx.bucket}")
    assert [bucket["name"] for bucket in found["buckets"]] == [influx.bucket]


def test_an_influx_server_comes_back_on_its_address_with_its_token(influx_server: InfluxServer) -> None:
    influx_server.kill()
    influx_server.start()
    names = {b["name"] for b in ask(influx_server.url, influx_server.token, "/api/v2/buckets")["buckets"]}
    assert "windrow" in names


def test_what_could_not_be_made_is_not_kept_and_is_made_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("the network went away")

    with pytest.raises(OSError, match="went away"):
        kept("thing-1", fails)
    assert not any(path.is_dir() for path in (tmp_path / "windrow").iterdir())
    whole = kept("thing-1", lambda folder: (folder / "whole").touch())
    assert kept("thing-1", fails) == whole
    assert [path.name for path in whole.iterdir()] == ["whole"]


def test_a_server_ends_with_the_process_that_started_it_though_killed(tmp_path: Path) -> None:
    starts = (
        "import sys, pathlib, time; from support.processes import Server;"
        "print(Server(['sleep', '60'], pathlib.Path(sys.argv[1])).pid, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", starts, str(tmp_path / "log")],
        env={**os.environ, "PYTHONPATH": str(PROJECT / "tests")},
        stdout=subprocess.PIPE,
    )
    assert owner.stdout is not None
    with owner.stdout:
        server = int(owner.stdout.readline())
    os.kill(server, 0)
    time.sleep(0.3)  # until the child has asked the kernel; there is nothing to see it by
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    give_up = time.monotonic() + 10
    while (
        Path(f"/proc/{server}").exists() and "\nState:\tZ" not in Path(f"/proc/{server}/status").read_text()
    ):
        assert time.monotonic() < give_up
