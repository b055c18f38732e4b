"""What the archive does when something of its own is wrong: it keeps what it has at hand, and says so."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Sequence

import msgspec
import pytest
from support.rigs import START, row_text, setup_of

from runtime.archive import SERIES_TOPICS, Archive, ArchiveMetrics, Index, Part, Progress
from runtime.bus.reader import Received
from runtime.bus.settings import InfluxConfig
from runtime.cli.app import run
from runtime.clock import SystemClock
from runtime.ledger.store import Ledger
from schemas import codec
from schemas.samples import FarmSample
from schemas.topics import BY_TYPE

SITE = setup_of(row_text(4, budget_w=20_000.0)).site
KAFKA = '[kafka]\nservers = ["127.0.0.1:9"]\n'
SERIES = '[influx]\nurl = "http://127.0.0.1:9"\norg = "o"\nbucket = "b"\n'
INFLUX = InfluxConfig(url="http://127.0.0.1:9", org="o", bucket="b")


def received(offset: int) -> Received:
    sample = FarmSample(at=START + offset, source="s", subject="lab1", power_w=1.0)
    return Received("windrow.ledger", 0, offset, b"lab1", codec.encode(sample), START)


class Given:
    """A reader of messages that are at hand."""

    def __init__(self, *batches: list[Received]) -> None:
        self.batches = list(batches)
        self.away = ""
        self.skipped = 0
        self.next = 0

    def poll(self, timeout_s: float, most: int) -> list[Received]:
        found = self.batches.pop(0) if self.batches else []
        self.next = found[-1].offset + 1 if found else self.next
        return found

    def ends(self) -> dict[tuple[str, int], int]:
        return {("windrow.ledger", 0): 10}

    def position(self, topic: str, partition: int) -> int | None:
        return self.next

    def close(self) -> None: ...


class Kept:
    """A keeper that does as told, one answer after the other: words, an exception, or "" for kept."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.kept: list[int] = []
        self.unreadable = 0

    def keep(self, received: Sequence[Received]) -> str:
        answer = self.answers.pop(0) if self.answers else ""
        if isinstance(answer, Exception):
            raise answer
        if not answer:
            self.kept += [each.offset for each in received]
        return answer

    def close(self) -> None: ...


def part(reader: Given, keeper: Kept | Index) -> Part:
    return Part("index", reader, keeper, stop=threading.Event(), clock=SystemClock())  # type: ignore[arg-type]


def test_what_is_not_kept_yet_is_handed_in_again_before_anything_newer() -> None:
    keeper = Kept("the disk is full", "", "")
    at_work = part(Given([received(0), received(1)], [received(2)]), keeper)
    at_work.turn()
    assert (at_work.trouble, keeper.kept, at_work.kept) == ("the disk is full", [], 0)
    assert at_work.lag({("windrow.ledger", 0): 10}) == 10, "what is at hand is not kept"
    at_work.turn()
    at_work.turn()
    assert (at_work.trouble, keeper.kept, at_work.kept) == ("", [0, 1, 2], 3)


def test_a_mistake_of_ours_is_counted_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    keeper = Kept(ZeroDivisionError("of ours"))
    at_work = part(Given([received(0)]), keeper)
    at_work._stop = stop = threading.Event()
    at_work.turned = stop.set
    at_work.run()
    assert keeper.kept == [0]
    assert at_work.faults == 1
    assert "index: failed, and is tried again" in caplog.text


def test_a_ledger_that_cannot_be_written_says_why_and_takes_the_records_later(tmp_path: pathlib.Path) -> None:
    index = Index(Ledger(tmp_path / "ledger.sqlite"), SITE)
    with Ledger.reading(tmp_path / "ledger.sqlite") as other:
        other._db.execute("BEGIN")
        index.ledger._db.execute("PRAGMA query_only = 1")
        assert "readonly" in index.keep([received(0)])
        index.ledger._db.execute("PRAGMA query_only = 0")
    assert index.keep([received(0)]) == ""
    assert (index.ledger.head()[0], index.ledger.taken()) == (1, 1)
    index.close()


def test_how_far_the_series_came_outlives_the_process_and_is_of_one_bucket(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "influx.json"
    progress = Progress(file, INFLUX, SystemClock())
    assert progress.start == {}
    progress.note([("windrow.rollups", 3, 17), ("windrow.rollups", 3, 18), ("windrow.gpus", 0, 1)])
    progress.save()
    assert Progress(file, INFLUX, SystemClock()).start == {("windrow.rollups", 3): 18, ("windrow.gpus", 0): 1}
    other = msgspec.structs.replace(INFLUX, bucket="another")
    assert Progress(file, other, SystemClock()).start == {}, "another bucket has none of it"
    assert not caplog.records
    file.write_text("{", encoding="utf-8")
    assert Progress(file, INFLUX, SystemClock()).start == {}
    assert "so every topic is read from its beginning" in caplog.text


def test_every_kind_of_message_is_on_a_topic_that_the_archive_reads() -> None:
    unread = {topic.name for topic in BY_TYPE.values()} - set(SERIES_TOPICS)
    assert unread == {"windrow.ticks", "windrow.summaries"}
    assert "windrow.ledger" in SERIES_TOPICS
    assert "windrow.snapshots" not in SERIES_TOPICS


def test_the_metrics_say_lag_only_where_it_is_known() -> None:
    at_work = part(Given([received(0)]), Kept())
    archive = Archive([at_work], Given(), threading.Event())  # type: ignore[arg-type]

    def values() -> dict[str, float]:
        metrics = ArchiveMetrics(archive).collect()
        return {sample.name: sample.value for metric in metrics for sample in metric.samples}

    assert str(values()["windrow_archive_lag_messages"]) == "nan"
    at_work.turn()
    archive.ends = {("windrow.ledger", 0): 4}
    assert values()["windrow_archive_lag_messages"] == 3.0
    assert values()["windrow_archive_kept_messages_total"] == 1.0
    assert list(archive.troubles()) == []
    at_work.reader.away = "Kafka is not there"
    assert list(archive.troubles()) == ["index: Kafka is not there"]


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ("", "kafka is missing: write [kafka] with servers, the site's brokers"),
        (
            KAFKA + SERIES,
            "the token for InfluxDB is not there: set the environment variable WINDROW_INFLUX_TOKEN",
        ),
    ],
)
def test_what_the_configuration_lacks_is_said_in_words(
    tables: str,
    said: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WINDROW_INFLUX_TOKEN", raising=False)
    (tmp_path / "site.toml").write_text(row_text(4, budget_w=20_000.0), encoding="utf-8")
    (tmp_path / "archive.toml").write_text(
        f'site = "site.toml"\nstate_dir = "state"\n[health]\nlisten = ""\n{tables}', encoding="utf-8"
    )
    assert run(["archive", "--config", str(tmp_path / "archive.toml")]) == 2
    assert said in capsys.readouterr().err
