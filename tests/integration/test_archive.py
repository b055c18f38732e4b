"""The archive keeps every record once and in its order, and every point, whatever is away meanwhile."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from kafka import TopicPartition
from support.influx_server import InfluxServer
from support.processes import free_ports
from support.rigs import START, rig_of, row_text, setup_of

from runtime.archive import LEDGER_TOPIC, SERIES_TOPICS
from runtime.bus.clients import connect
from runtime.bus.settings import InfluxConfig, KafkaConfig
from runtime.ledger import audit
from runtime.ledger.book import LedgerUnreadable
from runtime.ledger.store import Ledger, LedgerMissing
from runtime.row_loop import Beat
from runtime.sinks.influx import client_of
from runtime.sinks.influx_ledger import InfluxLedger
from schemas import codec
from schemas.commands import Command
from schemas.envelope import DeadLetter, Event
from schemas.instants import SECOND
from schemas.samples import FarmSample, PowerRollup
from schemas.topics import topic_of

pytestmark = pytest.mark.counterpart

SITE = row_text(4, budget_w=20_000.0)
ROW = "lab1/row-a"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], list[Event], str]:
    """Forty seconds of a row: what was said on the bus, what went into the ledger, and the ledger's head."""
    beats: list[Beat] = []
    with Ledger(tmp_path_factory.mktemp("own") / "ledger.sqlite", durable=False) as book:
        rig = rig_of(setup_of(SITE), ledger=book, observe=[beats.append])
        rig.host.run(until=START + 5 * SECOND)
        rig.plant.fail_ups()
        rig.host.run(until=START + 40 * SECOND)
        said = {event.id: event for beat in beats for event in (*beat.inputs, *beat.outputs)}
        records = [event for event in said.values() if book.holds(event.id)]
        head = Ledger(tmp_path_factory.mktemp("copy") / "ledger.sqlite", durable=False)
        head.append(records)
        digest = head.head()[1]
        head.close()
    return list(said.values()), records, digest


@pytest.fixture
def topics(kafka: KafkaConfig) -> KafkaConfig:
    """Every topic that the archive reads, empty, two partitions each."""
    admin = AdminClient({"bootstrap.servers": ",".join(kafka.servers), "log_level": 0})
    new = [NewTopic(kafka.topic(t), 1 if t == LEDGER_TOPIC else 2, 1) for t in SERIES_TOPICS]
    for made in admin.create_topics(new).values():
        made.result(20)
    return kafka


def publish(kafka: KafkaConfig, events: Sequence[Event] = (), records: Sequence[Event | bytes] = ()) -> None:
    """Events to their topics; records, or bytes that are none, to the ledger's, in their order."""
    # Idempotent: else a batch sent again, as by a leader not yet elected, comes after a later one.
    servers = ",".join(kafka.servers)
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 5, "enable.idempotence": True})
    for event in events:
        producer.produce(kafka.topic(topic_of(event).name), codec.encode(event), ROW.encode())
    for record in records:
        body = record if isinstance(record, bytes) else codec.encode(record)
        producer.produce(kafka.topic(LEDGER_TOPIC), body, b"lab1", timestamp=START)
    assert producer.flush(20) == 0


class Running:
    """`windrow archive` as a process."""

    def __init__(self, folder: pathlib.Path, kafka: KafkaConfig, influx: InfluxConfig | None) -> None:
        folder.mkdir(exist_ok=True)
        (port,) = free_ports(1)
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        (folder / "site.toml").write_text(SITE, encoding="utf-8")
        series = (
            f'[influx]\nurl = "{influx.url}"\norg = "{influx.org}"\nbucket = "{influx.bucket}"\n'
            "timeout_ms = 2000\n"
            if influx is not None
            else ""
        )
        (folder / "archive.toml").write_text(
            f'site = "site.toml"\nstate_dir = "state"\n[health]\nlisten = "127.0.0.1:{port}"\n'
            f'[kafka]\nservers = {json.dumps(list(kafka.servers))}\nprefix = "{kafka.prefix}"\n{series}',
            encoding="utf-8",
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-c", "from runtime.cli import main; main()", "archive"]
        command += ["--config", str(self.folder / "archive.toml")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def metrics(self) -> dict[str, float]:
        try:
            with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return {}
        return {
            name: float(v) for name, v in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        }

    def reasons(self) -> list[str]:
        try:
            with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5) as answer:
                return list(json.load(answer)["reasons"])
        except urllib.error.HTTPError as error:
            return list(json.load(error)["reasons"])
        except OSError:
            return ["not there yet"]

    def index(self) -> tuple[int, str]:
        try:
            with Ledger.reading(self.folder / "state" / "ledger.sqlite") as book:
                return book.head()
        except (LedgerMissing, LedgerUnreadable):  # not made yet
            return 0, ""

    def until(self, holds: Callable[[], Any], within_s: float = 60.0) -> None:
        give_up = time.monotonic() + within_s
        while not holds():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > give_up:
                raise AssertionError(
                    f"{(self.folder / 'log').read_text()}\n{self.metrics()}\n{self.reasons()}"
                )
            time.sleep(0.05)

    def stop(self) -> float:
        """SIGTERM; how many seconds it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0, (self.folder / "log").read_text()
        return time.monotonic() - began


@pytest.fixture
def archives(tmp_path: pathlib.Path) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def make(kafka: KafkaConfig, influx: InfluxConfig | None = None, name: str = "a") -> Running:
        made.append(Running(tmp_path / name, kafka, influx))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        if each.process is not None and each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def counted(config: InfluxConfig, measurement: str, field: str) -> int:
    client = client_of(config)
    try:
        tables = client.query_api().query(
            f'from(bucket: "{config.bucket}") |> range(start: 0) |> filter(fn: (r) => '
            f'r._measurement == "{measurement}" and r._field == "{field}") |> group() |> count()'
        )
        return sum(record.values["_value"] for table in tables for record in table.records)
    finally:
        client.close()  # type: ignore[no-untyped-call]


def test_every_record_is_in_the_index_once_and_every_point_in_influxdb_also_after_a_kill(
    told: tuple[list[Event], list[Event], str],
    topics: KafkaConfig,
    influx: InfluxConfig,
    archives: Callable[..., Running],
) -> None:
    said, records, head = told
    half = len(records) // 2
    publish(topics, said[: len(said) // 2], records[:half])
    archive = archives(topics, influx)
    archive.until(lambda: archive.index()[0] == half)
    assert archive.process is not None
    archive.process.kill()
    archive.process.wait()

    publish(
        topics,
        said[len(said) // 2 :],
        [*records[half - 3 : half], *records[half:], b"{nobody's", *records[:2]],
    )
    archive.start()
    archive.until(lambda: archive.index()[0] == len(records) + 1)
    archive.until(lambda: archive.metrics().get('windrow_archive_lag_messages{part="series"}') == 0.0)
    assert archive.reasons() == []
    assert archive.metrics()['windrow_archive_unreadable_messages_total{part="index"}'] == 1.0
    assert archive.metrics()["windrow_influx_refused_points_total"] == 0.0

    rollups = [event for event in said if isinstance(event, PowerRollup) and event.power_w is not None]
    assert counted(influx, "rollup", "power_w") == len(rollups)
    commands = [event for event in records if isinstance(event, Command)]
    assert counted(influx, "command", "id") == len(commands) > 0
    assert archive.stop() < 5.0

    with Ledger.reading(archive.folder / "state" / "ledger.sqlite") as book, InfluxLedger(influx) as series:
        assert book.verify() == ""
        assert book.contains_hash(head), "the same records in the same order"
        (letter,) = book.of_type([DeadLetter])
        assert isinstance(letter, DeadLetter)
        assert (letter.payload, letter.topic, letter.at) == (b"{nobody's", "windrow.ledger", START)
        assert list(series.of_type([DeadLetter])) == [letter]
        assert audit.why(series, commands[-1].id) == audit.why(book, commands[-1].id)
        assert audit.alerts(series) == audit.alerts(book) != ()

    again = archives(topics, None, "from-nothing")
    again.until(lambda: again.index()[0] == len(records) + 1)
    assert again.index() == archive.index(), "the index can be made anew from the topic"
    assert again.stop() < 5.0


def test_an_influxdb_that_hangs_holds_no_record_up_and_gets_its_points_later(
    told: tuple[list[Event], list[Event], str],
    topics: KafkaConfig,
    influx_server: InfluxServer,
    archives: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said, records, head = told
    influx = InfluxConfig(url=influx_server.url, org="windrow", bucket="windrow")
    monkeypatch.setenv(influx.token_env, influx_server.token)
    influx_server.pause()
    publish(topics, said, records)
    archive = archives(topics, influx)
    archive.until(lambda: archive.index()[1] == head)
    archive.until(lambda: any("does not answer" in reason for reason in archive.reasons()))
    archive.until(lambda: archive.metrics().get('windrow_archive_lag_messages{part="index"}') == 0.0)
    lag = archive.metrics()['windrow_archive_lag_messages{part="series"}']
    assert lag >= len(said)
    assert archive.metrics()['windrow_archive_failing{part="series"}'] == 1.0
    assert archive.stop() < 8.0, "also in the middle of a request"

    archive.start()
    archive.until(lambda: archive.metrics().get("windrow_influx_request_failures_total", 0) >= 1)
    influx_server.resume()
    archive.until(lambda: archive.metrics().get('windrow_archive_lag_messages{part="series"}') == 0.0)
    assert archive.reasons() == []
    rollups = [event for event in said if isinstance(event, PowerRollup) and event.power_w is not None]
    assert counted(influx, "rollup", "power_w") == len(rollups)
    assert archive.stop() < 5.0


def test_what_kafka_deleted_while_influxdb_was_away_is_counted_and_the_rest_is_kept(
    topics: KafkaConfig,
    influx_server: InfluxServer,
    archives: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    influx = InfluxConfig(url=influx_server.url, org="windrow", bucket="windrow")
    monkeypatch.setenv(influx.token_env, influx_server.token)

    def farms(first: int, count: int) -> list[Event]:
        return [
            FarmSample(at=START + n, source="s", subject="lab1/farm", power_w=1.0)
            for n in range(first, first + count)
        ]

    publish(topics, farms(0, 1))
    archive = archives(topics, influx)
    archive.until(lambda: archive.metrics().get("windrow_influx_written_points_total") == 1.0)
    influx_server.stop()
    publish(topics, farms(1, 1))
    archive.until(lambda: archive.metrics().get("windrow_influx_request_failures_total", 0) >= 1)
    archive.stop()  # and so long nobody starts it that the oldest of what waits is deleted
    publish(topics, farms(2, 9))
    admin = connect("KafkaAdminClient", topics, 10.0).client
    number = zlib.crc32(ROW.encode()) % 2  # where the client above puts the key
    admin.delete_records({TopicPartition(topics.topic("windrow.farms"), number): 6})
    admin.close()
    influx_server.start()
    archive.start()
    archive.until(lambda: archive.metrics().get("windrow_influx_written_points_total") == 5.0)
    assert archive.metrics()['windrow_archive_skipped_messages_total{part="series"}'] == 5.0
    assert counted(influx, "farm", "power_w") == 6
    assert "5 messages were deleted before they were read" in (archive.folder / "log").read_text()
    assert archive.stop() < 5.0


def test_what_cannot_be_read_or_dated_is_kept_in_its_place(
    topics: KafkaConfig, influx: InfluxConfig, archives: Callable[..., Running]
) -> None:
    farm = FarmSample(at=START, source="s", subject="lab1/farm", power_w=1.0)
    undated = codec.encode(farm).replace(str(START).encode(), str(2**70).encode())
    publish(topics, [farm], [farm, undated, b"", b"\xff\x00", b'{"type":"Tomorrow"}'])
    producer = Producer({"bootstrap.servers": ",".join(topics.servers)})
    producer.produce(topics.topic("windrow.farms"), b"[]", b"lab1", timestamp=START)
    assert producer.flush(10) == 0
    archive = archives(topics, influx)
    archive.until(lambda: archive.index()[0] == 5)
    archive.until(lambda: archive.metrics().get('windrow_archive_lag_messages{part="series"}') == 0.0)
    assert archive.metrics()['windrow_archive_unreadable_messages_total{part="series"}'] == 5.0
    assert archive.stop() < 5.0
    with Ledger.reading(archive.folder / "state" / "ledger.sqlite") as book, InfluxLedger(influx) as series:
        assert book.verify() == ""
        letters = list(book.of_type([DeadLetter]))
        assert [letter.payload for letter in letters if isinstance(letter, DeadLetter)] == [
            undated, b"", b"\xff\x00", b'{"type":"Tomorrow"}',
        ]  # fmt: skip
        assert list(series.of_type([DeadLetter])) == letters
    assert counted(influx, "dead_letter", "bytes") == 1, "the ledger's own are not told twice"
    assert counted(influx, "farm", "power_w") == 1


def test_without_kafka_it_says_so_and_ends_when_told(archives: Callable[..., Running]) -> None:
    archive = archives(KafkaConfig(servers=("127.0.0.1:9",)))
    archive.until(lambda: any("127.0.0.1:9 is not there" in reason for reason in archive.reasons()))
    archive.until(lambda: "index: Kafka at 127.0.0.1:9 is not there" in (archive.folder / "log").read_text())
    assert archive.metrics()['windrow_archive_away{part="index"}'] == 1.0
    assert archive.stop() < 8.0
