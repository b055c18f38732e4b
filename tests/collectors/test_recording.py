"""Recordings read back: nothing lost, nothing invented, whatever became of the file."""

import gzip
import zlib
from pathlib import Path

import pytest

from collectors.base import CollectorError
from collectors.recording import read_recording
from schemas.codec import encode
from schemas.envelope import DeadLetter, Tick
from schemas.recordings import FORMAT, NotARecording, RecordingHeader, decode_header, encode_header
from schemas.samples import FeedSample

HEADER = RecordingHeader(
    site='[site]\nname = "ams1"\n', policy="t1 = 0.8\n", epoch=7, started_at=1_000, made_by="windrow 0.1.0"
)
EVENTS = [
    event
    for at in range(1_000, 401_000, 2_000)
    for event in (
        FeedSample(at=at, source="collector/feed-meter", subject="ams1/ups-1", power_w=at * 1.5),
        Tick(at=at, source="runtime", subject="ams1/row-b"),
    )
]


def content(*lines: bytes) -> bytes:
    return b"".join(line + b"\n" for line in (encode_header(HEADER), *lines))


def written(folder: Path, blob: bytes, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(blob) if name.endswith(".gz") else blob)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_recording_gives_back_its_header_and_its_messages_in_order(tmp_path: Path, name: str) -> None:
    recording = read_recording(written(tmp_path, content(*map(encode, EVENTS)), name))
    assert recording.header == HEADER
    assert list(recording.events) == EVENTS
    assert (recording.dead, recording.note) == (0, "")
    assert list(recording.events) == EVENTS, "and once more from its start"


def test_a_recording_of_several_compressed_parts_is_read_through(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    first, second = content(encode(EVENTS[0])), encode(EVENTS[1]) + b"\n"
    path.write_bytes(gzip.compress(first) + gzip.compress(second))
    assert list(read_recording(path).events) == EVENTS[:2]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"type":"FeedSample","at":1}', "missing required field"),
        (b'{"type":"NoSuch"}', "NoSuch"),
        (b"not json", "malformed"),
        (b"\xff\xfe\x00", ""),
    ],
)
def test_a_malformed_line_is_kept_whole_in_its_place(tmp_path: Path, line: bytes, why: str) -> None:
    recording = read_recording(written(tmp_path, content(encode(EVENTS[0]), line, encode(EVENTS[1]))))
    first, dead, last = recording.events
    assert (first, last) == (EVENTS[0], EVENTS[1])
    assert isinstance(dead, DeadLetter)
    assert dead.payload == line
    assert dead.at == EVENTS[0].at, "where it stood, so that order is kept"
    assert dead.reason.startswith("line 3: ")
    assert why in dead.reason
    assert (recording.dead, recording.note) == (1, "")


def test_a_recording_cut_at_any_byte_loses_at_most_the_last_line(tmp_path: Path) -> None:
    lines = [encode(event) for event in EVENTS[:3]]
    blob = content(*lines)
    start = len(encode_header(HEADER)) + 1
    for cut in range(start, len(blob) + 1):
        recording = read_recording(written(tmp_path, blob[:cut]))
        read = list(recording.events)
        whole = blob[start:cut].count(b"\n")
        assert read[:whole] == EVENTS[:whole]
        assert len(read) - whole in (0, 1)
        assert recording.dead == 0
        unread = cut > start and not blob[:cut].endswith(b"\n") and len(read) == whole
        assert bool(recording.note) == unread
        if unread:
            assert f"was cut short in line {whole + 2}" in recording.note


def test_a_compressed_recording_that_was_cut_gives_what_was_whole(tmp_path: Path) -> None:
    path = written(tmp_path, content(*map(encode, EVENTS)), "a.jsonl.gz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    recording = read_recording(path)
    read = list(recording.events)
    assert 10 < len(read) < len(EVENTS)
    assert read == EVENTS[: len(read)]
    assert "was cut short" in recording.note


def test_a_damaged_compressed_recording_says_so_after_what_was_whole(tmp_path: Path) -> None:
    packed = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    blob = packed.compress(content(*map(encode, EVENTS))) + packed.flush(zlib.Z_FULL_FLUSH)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(blob + b"\xff" * 64)
    with pytest.raises(CollectorError, match=r"a\.jsonl\.gz: cannot be read"):
        list(read_recording(path).events)


@pytest.mark.parametrize(
    "blob", [b"", b"time_ms,host,watts\n1,a,2\n", b"{}\n", encode(EVENTS[0]) + b"\n", b"\x00" * 100]
)
def test_what_is_no_recording_is_said_to_be_none(tmp_path: Path, blob: bytes) -> None:
    with pytest.raises(CollectorError, match=r"a\.jsonl: the first line is no recording header"):
        read_recording(written(tmp_path, blob))


def test_a_recording_of_a_newer_format_is_refused_in_words(tmp_path: Path) -> None:
    line = encode_header(HEADER).replace(b'"format":1', b'"format":%d' % (FORMAT + 1))
    with pytest.raises(CollectorError, match=f"has format {FORMAT + 1}; this version reads up to {FORMAT}"):
        read_recording(written(tmp_path, line + b"\n"))


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CollectorError, match=r"cannot be read.*No such file"):
        read_recording(tmp_path / "gone.jsonl")


def test_a_header_survives_writing_and_reading() -> None:
    assert decode_header(encode_header(HEADER)) == HEADER
    assert b"\n" not in encode_header(HEADER)
    with pytest.raises(NotARecording):
        decode_header(b"[]")
