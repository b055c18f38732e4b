"""`windrow topics` says how the site's topics stand, and makes them."""

from __future__ import annotations

import json
import pathlib

import pytest

from runtime.bus.clients import connect
from runtime.bus.settings import KafkaConfig
from runtime.cli.app import run
from schemas.topics import TOPICS

NAMES = [topic.name for topic in TOPICS]


def written(folder: pathlib.Path, kafka: KafkaConfig) -> str:
    """A configuration with these brokers."""
    file = folder / "host.toml"
    servers = ", ".join(f'"{server}"' for server in kafka.servers)
    text = f'site = "s.toml"\nstate_dir = "s"\n[kafka]\nservers = [{servers}]\nprefix = "{kafka.prefix}"\n'
    file.write_text(text, encoding="utf-8")
    return str(file)


@pytest.mark.counterpart
def test_topics_are_missing_then_made_then_as_they_should_be(
    kafka: KafkaConfig, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, kafka)
    hint = "windrow topics --create makes it"
    assert run(["topics", "--config", config]) == 1
    assert capsys.readouterr().out.splitlines() == [f"{kafka.topic(n)}: missing; {hint}" for n in NAMES]
    assert run(["topics", "--config", config, "--create"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [f"{kafka.topic(n)}: made" for n in NAMES] + [f"{len(NAMES)} topics are as they should be"]
    assert run(["topics", "--config", config, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {
        "sound": [kafka.topic(name) for name in NAMES],
        "created": [],
        "missing": [],
        "differing": [],
    }


@pytest.mark.counterpart
def test_a_topic_that_differs_is_told_with_what_it_should_be(
    kafka: KafkaConfig, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = kafka.topic("windrow.ticks")
    admin = connect("KafkaAdminClient", kafka, 10.0).client
    settings = {"retention.ms": "1000", "message.timestamp.type": "LogAppendTime"}
    admin.create_topics({name: {"num_partitions": 2, "replication_factor": 1, "configs": settings}})
    admin.wait_for_topics([name])
    admin.close()
    assert run(["topics", "--config", written(tmp_path, kafka)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[-4:] == [
        f"{name}: partitions is 2 and should be 32",
        f"{name}: retention.ms is 1000 and should be 172800000",
        f"{name}: segment.ms is 604800000 and should be 21600000",
        "what differs is left as it is: change it with Kafka's own tools, or the configuration",
    ]


def test_without_brokers_it_is_said_what_is_missing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "host.toml").write_text('site = "s.toml"\nstate_dir = "s"\n', encoding="utf-8")
    assert run(["topics", "--config", str(tmp_path / "host.toml")]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path}/host.toml: kafka is missing: write [kafka] with servers, the site's brokers\n"
    )
