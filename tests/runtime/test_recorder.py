"""The recorder: the same beats give the same bytes, and a full disk leaves no row alone."""

from __future__ import annotations

import gzip
import pathlib

import pytest
from support.rigs import START, rig_of, row_text, setup_of

from collectors.recording import read_recording
from runtime.cli.app import run
from runtime.recorder import Recorder, header_of
from runtime.row_loop import Beat
from schemas.instants import SECOND

SETUP = setup_of(row_text(2, budget_w=20_000.0))
HEADER = header_of(SETUP, 3, START, "a test")
FULL = pathlib.Path("/dev/full")  # every write to it finds no space left


def beats() -> list[Beat]:
    found: list[Beat] = []
    rig_of(SETUP, observe=[found.append]).host.run(until=START + 10 * SECOND)
    return found


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
