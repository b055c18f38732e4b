"""The recorder: the same beats give the same bytes, a crash costs seconds, full disks leave no row alone."""

from __future__ import annotations

import gzip
import pathlib
import resource
import sys
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.rigs import START, rig_of, row_text, setup_of

from collectors.base import CollectorError
from collectors.parquet_recording import spool_of
from collectors.recording import read_recording
from runtime.cli.app import run
from runtime.config import ConfigError
from runtime.recorder import Recorder, header_of, unused
from runtime.row_loop import Beat
from schemas.codec import encode
from schemas.instants import SECOND
from schemas.topics import topic_of

SETUP = setup_of(row_text(2, budget_w=20_000.0))
HEADER = header_of(SETUP, 3, START, "a test")
FULL = pathlib.Path("/dev/full")  # every write to it finds no space left


FORMS = ("a.jsonl", "a.jsonl.gz", "a.parquet")


def beats(seconds: int = 10) -> list[Beat]:
    found: list[Beat] = []
    rig_of(SETUP, observe=[found.append]).host.run(until=START + seconds * SECOND)
    return found


def messages(beats: list[Beat]) -> list[bytes]:
    return [encode(event) for beat in beats for event in (*beat.inputs, beat.tick, *beat.outputs)]


def read(path: pathlib.Path) -> tuple[list[bytes], str]:
    """A recording's messages, and what is wrong with its end."""
    recording = read_recording(path)
    assert recording.header == HEADER
    return [encode(event) for event in recording.events], recording.note


@pytest.fixture
def a_disk_of_64_kilobytes() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_recording_is_its_header_and_its_beats_packed_or_not(tmp_path: pathlib.Path) -> None:
    plain, packed, again = (tmp_path / name for name in ("a.jsonl", "a.jsonl.gz", "b.jsonl.gz"))
    for path in (plain, packed, again):
        with Recorder(path, HEADER) as recorder:
            for beat in beats():
                recorder.write(beat)
        assert recorder.trouble == ""
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert again.read_bytes() == packed.read_bytes(), "neither its name nor its time is in a recording"
    assert read_recording(packed).header == HEADER


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, a disk without space")
def test_a_full_disk_ends_the_recording_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with Recorder(FULL, HEADER) as recorder:
        host = rig_of(SETUP, observe=[recorder.write]).host
        host.run(until=START + 60 * SECOND)
    assert recorder.trouble == "/dev/full: the recording ends here: No space left on device"
    assert [record.message for record in caplog.records if record.name == "runtime.recorder"] == [
        recorder.trouble
    ]
    assert host.clock.now() >= START + 60 * SECOND


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, a disk without space")
def test_who_asked_for_a_recording_is_told_that_there_is_none(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site.toml"
    site.write_text(row_text(2, budget_w=20_000.0), encoding="utf-8")
    assert run(["record", str(FULL), "--twin", str(site), "--minutes", "0.5"]) == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("/dev/full: the recording ends here: No space left on device")
    )


def test_a_columnar_recording_holds_the_same_messages_byte_for_byte(tmp_path: pathlib.Path) -> None:
    said = beats()
    for name in FORMS:
        with Recorder(tmp_path / name, HEADER) as recorder:
            for beat in said:
                recorder.write(beat)
        assert recorder.trouble == ""
        assert read(tmp_path / name) == (messages(said), "")
    assert not spool_of(tmp_path / "a.parquet").exists()


def test_a_columnar_recording_can_be_asked_without_windrow(tmp_path: pathlib.Path) -> None:
    path, said = tmp_path / "a.parquet", beats()
    where = {said[0].tick.id: (3, 41)}
    with Recorder(path, HEADER) as recorder:
        for beat in said:
            recorder.write(beat, where)
    table = pq.read_table(path)
    events = [event for beat in said for event in (*beat.inputs, beat.tick, *beat.outputs)]
    assert table.column("at").cast("int64").to_pylist() == [event.at for event in events]
    assert str(table.schema.field("at").type) == "timestamp[ms, tz=UTC]"
    for name in ("id", "subject", "source"):
        assert table.column(name).to_pylist() == [getattr(event, name) for event in events]
    assert table.column("type").to_pylist() == [type(event).__name__ for event in events]
    assert table.column("topic").to_pylist() == [topic_of(event).name for event in events]
    assert set(table.column("key").to_pylist()) == {SETUP.site.rows[0].path}
    (placed,) = table.filter(pq.filters_to_expression([("offset", "=", 41)])).to_pylist()
    assert (placed["type"], placed["partition"], placed["id"]) == ("Tick", 3, said[0].tick.id)
    assert table.column("body").to_pylist()[0].encode() == encode(events[0])


def test_the_same_beats_give_the_same_columnar_file(tmp_path: pathlib.Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        with Recorder(tmp_path / name, HEADER) as recorder:
            for beat in beats():
                recorder.write(beat)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize("name", FORMS)
def test_a_recorder_that_is_killed_loses_seconds_at_most(tmp_path: pathlib.Path, name: str) -> None:
    said = beats(60)
    recorder = Recorder(tmp_path / name, HEADER)
    for beat in said:
        recorder.write(beat)
    found, note = read(tmp_path / name)  # while it has not been closed
    assert found == messages(said)[: len(found)]
    kept = [beat for beat in said if encode(beat.tick) in found]
    assert said[-1].tick.at - kept[-1].tick.at <= 6 * SECOND
    if name == "a.parquet":
        assert kept == said
        assert note == (
            f"{tmp_path}/a.parquet: the recorder has not ended this file, which is read as far as it goes: "
            f"{len(found)} messages"
        )
    recorder.close()


def test_the_spool_of_a_columnar_recording_is_read_up_to_where_it_was_torn(tmp_path: pathlib.Path) -> None:
    path, said = tmp_path / "a.parquet", beats()
    recorder = Recorder(path, HEADER)
    spool = spool_of(path)
    ends = []
    for beat in said:
        recorder.write(beat)
        ends.append(spool.stat().st_size)
    whole = spool.read_bytes()
    for cut in (ends[1] - 1, ends[1], ends[1] + 1, ends[2] + 9, ends[3] - 40):
        spool.write_bytes(whole[:cut])
        found, note = read(path)
        assert found == messages(said[: sum(1 for end in ends if end <= cut)])
        assert note.endswith(f"which is read as far as it goes: {len(found)} messages")
        assert read(spool)[0] == found
    spool.write_bytes(whole)
    recorder.close()
    assert read(path) == (messages(said), "")


@pytest.mark.parametrize("name", FORMS)
def test_no_recording_is_written_over(tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / name
    with Recorder(path, HEADER):
        pass
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=rf"{name}: is there already, and no recording is written over"):
        Recorder(path, HEADER)
    assert path.read_bytes() == before


def test_a_service_that_starts_again_records_beside_what_it_recorded(tmp_path: pathlib.Path) -> None:
    asked = tmp_path / "night.jsonl.gz"
    assert unused(asked) == asked
    for name in ("night.jsonl.gz", "night-2.jsonl.gz"):
        with Recorder(unused(asked), HEADER) as recorder:
            assert recorder.path.name == name
    spool_of(tmp_path / "a.parquet").touch()
    assert unused(tmp_path / "a.parquet").name == "a-2.parquet"
    assert unused(FULL) == FULL


def test_what_a_crash_left_is_not_written_over_either(tmp_path: pathlib.Path) -> None:
    spool_of(tmp_path / "a.parquet").write_bytes(b"what was saved")
    with pytest.raises(ConfigError, match=r"a\.parquet\.part: is there already"):
        Recorder(tmp_path / "a.parquet", HEADER)
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet.part"]


@pytest.mark.usefixtures("a_disk_of_64_kilobytes")
def test_a_disk_that_fills_ends_a_columnar_recording_and_leaves_what_it_took(tmp_path: pathlib.Path) -> None:
    said = beats(120)
    with Recorder(tmp_path / "a.parquet", HEADER) as recorder:
        for beat in said:
            recorder.write(beat)
    assert recorder.trouble == f"{tmp_path}/a.parquet: the recording ends here: File too large"
    found, _ = read(tmp_path / "a.parquet")
    assert len(found) > 20
    assert found == messages(said)[: len(found)]


def test_a_file_of_somebody_else_is_no_recording(tmp_path: pathlib.Path) -> None:
    pq.write_table(pa.table({"body": ["{}"]}), tmp_path / "a.parquet")
    with pytest.raises(CollectorError, match="is no recording header"):
        read_recording(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(CollectorError, match=r"b\.parquet: cannot be read"):
        read_recording(tmp_path / "b.parquet")


def test_a_library_that_is_missing_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for need in (lambda path: Recorder(path, HEADER), read_recording):
        with pytest.raises((ConfigError, CollectorError), match=r"pip install -e '\.\[parquet\]'"):
            need(tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []
