"""A source to replay: what it is a recording of, and from what it takes its site."""

from __future__ import annotations

import pathlib

import pytest
from support.rigs import START, rig_of, row_text, setup_of
from support.sites import DEMO

from runtime.config import ConfigError
from runtime.recorder import Recorder, header_of
from runtime.source import open_source
from schemas.instants import SECOND
from schemas.samples import FeedSample

MLPERF = "time_ms,host,watts\n0,node_1,5000\n0,node_2,5100\n2000,node_1,5050\nlater,node_2,5000\n"


@pytest.fixture
def recording(tmp_path: pathlib.Path) -> pathlib.Path:
    setup = setup_of(row_text(2, budget_w=20_000.0))
    path = tmp_path / "row.jsonl"
    with Recorder(path, header_of(setup, 7, START, "a test")) as recorder:
        rig_of(setup, observe=[recorder.write]).host.run(until=START + 10 * SECOND)
    return path


@pytest.fixture
def nodes(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "nodes.csv"
    path.write_text(MLPERF, encoding="utf-8")
    return path


def test_a_recording_brings_its_site_its_policy_and_its_epoch(recording: pathlib.Path) -> None:
    source = open_source(recording, None, None)
    assert source.header is not None
    assert (source.site.name, source.epoch, source.header.policy) == ("lab1", 7, "")
    assert len(list(source.events)) == len(list(source.events)), "each reading starts from the beginning"


def test_an_import_stands_in_one_row_under_its_budget(nodes: pathlib.Path) -> None:
    source = open_source(nodes, None, 12.5)
    assert source.header is None
    assert source.epoch == 1
    (row,) = source.site.rows
    assert (row.budget_w, len(row.hosts)) == (12_500.0, 2)
    assert [event.at for event in source.events] == [0, 2000]


def test_what_cannot_be_read_is_set_aside_whole(nodes: pathlib.Path) -> None:
    source = open_source(nodes, None, 12.5)
    list(source.events)
    list(source.events)
    (letter,) = source.dead_letters
    assert b"later,node_2,5000" in letter.payload


@pytest.mark.parametrize(
    ("site", "budget_kw", "said"),
    [
        (None, None, "nodes.csv: an import (mlperf) needs --budget-kw for its row, or --site"),
        (None, -1.0, "the row assumed for nodes.csv: "),
        (
            pathlib.Path("none.toml"),
            None,
            "none.toml: the site file cannot be read: No such file or directory",
        ),
    ],
)
def test_an_import_without_a_site_of_its_own_has_to_be_given_one(
    nodes: pathlib.Path,
    site: pathlib.Path | None,
    budget_kw: float | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(nodes.parent)
    with pytest.raises(ConfigError) as refused:
        open_source(pathlib.Path(nodes.name), site, budget_kw)
    assert str(refused.value).startswith(said)


def test_a_site_without_any_of_the_file_s_hosts_is_refused_when_it_is_read(nodes: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="node_1"):
        list(open_source(nodes, DEMO, None).events)


def test_a_recording_keeps_to_its_own_site(recording: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="brings its site: leave --site and --budget-kw out"):
        open_source(recording, DEMO, None)


def test_the_readings_of_a_recording_come_with_what_was_said(recording: pathlib.Path) -> None:
    kinds = {type(event).__name__ for event in open_source(recording, None, None).events}
    assert {
        FeedSample.__name__,
        "GpuFrame",
        "Tick",
        "PowerRollup",
        "Decision",
        "LockClocks",
        "Lapsed",
    } <= kinds
