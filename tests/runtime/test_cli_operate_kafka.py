"""Where a site's parts are processes of their own, what people say goes to each row it concerns by Kafka."""

from __future__ import annotations

import json
import pathlib
import time

import pytest
from support.machines import Machine
from support.nvml_shim import installed
from support.two_rows import TWO_ROWS

from runtime.bus.keys import partition_of
from runtime.bus.provision import ensure
from runtime.bus.reader import Reader, Received
from runtime.bus.settings import KafkaConfig
from runtime.cli.app import run
from runtime.config import read_host_config
from runtime.state_dir import StateDir
from schemas import codec
from schemas.envelope import Event
from schemas.operators import Pin, ReleaseAll, ResetBlastRadius, Resume, Unpin
from schemas.topics import BY_NAME

OPERATORS = BY_NAME["windrow.operators"]._replace(partitions=4)
ABSENT = KafkaConfig(servers=("127.0.0.1:1",))


def written(folder: pathlib.Path, kafka: KafkaConfig | None) -> str:
    """A configuration of the site, with these brokers."""
    (folder / "site.toml").write_text(TWO_ROWS, encoding="utf-8")
    text = 'site = "site.toml"\nstate_dir = "state"\n' + table_of(kafka)
    (folder / "host.toml").write_text(text, encoding="utf-8")
    return str(folder / "host.toml")


def table_of(kafka: KafkaConfig | None) -> str:
    if kafka is None:
        return ""
    servers = ", ".join(f'"{server}"' for server in kafka.servers)
    return f'[kafka]\nservers = [{servers}]\nprefix = "{kafka.prefix}"\n'


def said(kafka: KafkaConfig, copies: int) -> list[Received]:
    """What lies on the operators' topic."""
    reader = Reader(kafka, {OPERATORS.name: None}, start="earliest")
    found: list[Received] = []
    until = time.monotonic() + 10.0
    while len(found) < copies and time.monotonic() < until:
        found += reader.poll(0.2)
    found += reader.poll(0.1)
    reader.close()
    return sorted(found, key=lambda copy: copy.timestamp_ms)


def words(copies: list[Received]) -> list[Event]:
    return [codec.decode(copy.value) for copy in copies]


@pytest.mark.counterpart
def test_a_word_goes_to_the_row_it_concerns(
    kafka: KafkaConfig, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure(kafka, [OPERATORS])
    where = ["--config", written(tmp_path, kafka), "--by", "ada"]
    host = "ams1/row-b/r-row-b/h01"
    assert run(["pin", host, "--max-mhz", "1200", "--minutes", "30", "--reason", "hot", *where]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "Kafka has it for ams1/row-b"
    (copy,) = said(kafka, 1)
    assert (copy.key, copy.partition) == (b"ams1/row-b", partition_of(b"ams1/row-b", 4))
    (word,) = words([copy])
    assert isinstance(word, Pin)
    assert (word.subject, word.max_mhz, word.by, word.reason) == (host, 1200, "ada", "hot")


@pytest.mark.counterpart
def test_a_word_on_the_site_is_the_same_message_for_every_row(
    kafka: KafkaConfig, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure(kafka, [OPERATORS])
    assert run(["resume", "ams1", "--config", written(tmp_path, kafka)]) == 0
    assert capsys.readouterr().out == "Kafka has it for 2 rows\nasked to command ams1 again\n"
    copies = said(kafka, 2)
    assert {copy.key for copy in copies} == {b"ams1/row-a", b"ams1/row-b"}
    first, second = words(copies)
    assert first == second
    assert isinstance(first, Resume)


@pytest.mark.counterpart
def test_all_that_people_say_goes_there_and_can_be_had_as_json(
    kafka: KafkaConfig, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure(kafka, [OPERATORS])
    where, row = ["--config", written(tmp_path, kafka), "--json"], "ams1/row-a"
    assert run(["pin", row, "--max-mhz", "1200", "--minutes", "1", "--reason", "x", *where]) == 0
    assert run(["unpin", row, *where]) == 0
    assert run(["reset-blast-radius", row, "--reason", "x", *where]) == 0
    assert run(["resume", row, *where]) == 0
    shown = capsys.readouterr()
    kinds = [Pin, Unpin, ResetBlastRadius, Resume]
    messages = [codec.decode(line.encode()) for line in shown.out.splitlines()]
    assert [type(message) for message in messages] == kinds
    assert shown.err.splitlines() == ["Kafka has it for ams1/row-a"] * 4
    assert words(said(kafka, 4)) == messages


@pytest.mark.counterpart
def test_a_state_directory_knows_that_its_host_hears_kafka(
    kafka: KafkaConfig, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure(kafka, [OPERATORS])
    config = read_host_config(pathlib.Path(written(tmp_path, kafka)))
    StateDir.made(config.state_dir).keep_config(config)
    assert run(["unpin", "ams1/row-a", "--state-dir", str(config.state_dir)]) == 0
    assert "Kafka has it for ams1/row-a\n" in capsys.readouterr().out
    assert [type(word) for word in words(said(kafka, 1))] == [Unpin]


@pytest.mark.counterpart
def test_a_release_is_asked_for_by_kafka_where_nothing_is_set(
    kafka: KafkaConfig, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure(kafka, [OPERATORS])
    given = ["--all", "--reason", "fire", "--config", written(tmp_path, kafka)]
    assert run(["release", *given, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    copies = said(kafka, 2)
    release, again = words(copies)
    assert isinstance(release, ReleaseAll)
    assert release == again
    assert (release.subject, release.reason) == ("ams1", "fire")
    assert answer == {"release": release.id, "asked": True, "hosts": []}
    assert not (tmp_path / "state").exists()
    assert run(["release", *given, "--uncapped", "--yes"]) == 2
    assert "--uncapped is for the machine that sets the hosts, and " in capsys.readouterr().err


@pytest.mark.counterpart
def test_without_the_topic_nothing_is_said_to_have_arrived(
    kafka: KafkaConfig, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["resume", "ams1", "--config", written(tmp_path, kafka)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        f"Kafka at {kafka.servers[0]} did not take it for {kafka.topic(OPERATORS.name)} in time: "
        "see windrow topics\n"
    )


def test_without_a_broker_it_is_said_why(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["resume", "ams1", "--config", written(tmp_path, ABSENT)]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "Kafka at 127.0.0.1:1 is not there (connection refused)\n")


def test_a_path_that_the_site_does_not_have_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["resume", "ams1/row-z", "--config", written(tmp_path, ABSENT)]) == 2
    assert capsys.readouterr().err == (
        "site ams1 has no host at or below 'ams1/row-z'; its rows are ams1/row-a, ams1/row-b\n"
    )


def test_a_configuration_without_kafka_names_the_state_directory(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, None)
    StateDir.made(tmp_path / "state")
    assert run(["unpin", "ams1/row-a", "--config", config, "--json"]) == 0
    (file,) = (tmp_path / "state" / "inbox").glob("*.json")
    shown = capsys.readouterr()
    assert codec.decode(file.read_bytes()) == codec.decode(shown.out.encode())
    assert shown.err == f"no host is running on {tmp_path}/state: it will be heard at the next start\n"


@pytest.mark.usefixtures("nvml_library")
def test_a_broker_that_is_away_keeps_no_host_from_being_given_back(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path)
    machine.config.write_text(machine.config.read_text() + table_of(ABSENT), encoding="utf-8")
    with installed(machine.state):
        assert run(["release", "--all", "--reason", "now", "--config", str(machine.config)]) == 0
    machine.close()
    assert machine.at_safe_share
    assert capsys.readouterr().err == (
        "the site's controllers were not told: Kafka at 127.0.0.1:1 is not there (connection refused)\n"
    )
