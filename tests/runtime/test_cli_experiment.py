"""`windrow experiment`: what it prints, its verdicts, and what is said of one that was broken off."""

from __future__ import annotations

import io
import json
import pathlib
import signal
from typing import Any

import msgspec
import pytest
from rich.console import Console

from runtime.cli import experimenting
from runtime.cli.app import run
from runtime.experiments.polca import STUDIED, Figure, Rate, Summary
from runtime.experiments.row import RowCheck
from runtime.workers import WorkerLost

CHECK = RowCheck(
    servers=40, weeks=6.0, seed=1, peak_ratio=0.79, mean_ratio=0.6, p01_ratio=0.5, p50_ratio=0.6,
    p99_ratio=0.7, rise_2s_ratio=0.08, rise_40s_ratio=0.12, requests_per_s=7.0,
    latency_s={"high": (20.0, 60.0), "low": (20.0, 60.0)},
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "status", "misses", "words"),
    [
        ({}, 0, [], "the row is the study's: its peak and its rises agree under 1 seed"),
        (
            {"peak_ratio": 0.9},
            1,
            ["peaks at 0.900 of its budget, not at 0.79"],
            "seed 1: the row peaks at 0.900 of its budget, not at 0.79",
        ),
        (
            {"servers": 52, "peak_ratio": 1.02},
            0,
            None,
            "not held to the study, whose facts are those of 40 servers",
        ),
    ],
)
def test_the_row_check_ends_with_a_verdict(
    changes: dict[str, object],
    status: int,
    misses: list[str] | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    check = msgspec.structs.replace(CHECK, **changes)
    monkeypatch.setattr(experimenting, "row_check", lambda *_, **__: check)
    tokens = ["experiment", "row-check", "--seeds", "1", "--servers", str(check.servers)]
    assert run(tokens) == status
    assert capsys.readouterr().out.splitlines()[-1] == words
    assert run([*tokens, "--json"]) == status
    (told,) = json.loads(capsys.readouterr().out)
    assert told["misses"] == misses
    assert told["peak_ratio"] == check.peak_ratio


def summary(policy: str, half: float | None) -> Summary:
    """Figures as wide as they come."""
    values: dict[str, Any] = {"Figure": Figure(-0.1234, half), "Rate": Rate(1.0, 0.5, 2.0)}
    values |= {"str": "", "int": 1234, "float": 1.024}
    made = {field.name: values[field.type.__name__] for field in msgspec.structs.fields(Summary)}
    return Summary(**{**made, "policy": policy})


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("half", [None, 0.1234])
def test_no_figure_is_cut_in_a_terminal(
    columns: int, half: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = io.StringIO()
    monkeypatch.setattr(experimenting, "console", Console(width=columns, file=paper))
    experimenting._print_summaries([summary(policy, half) for policy in STUDIED])
    lines = paper.getvalue().splitlines()
    figures = ["1234", "1.024", *4 * ["-12.34%"], "-12%", "-12.3%"]
    intervals = [*4 * ["±12.34%"], "±12%", "±12.3%"]
    assert max(map(len, lines)) <= columns
    assert [line.split()[-len(figures) :] for line in lines if "1234" in line] == len(STUDIED) * [figures]
    assert [line.split() for line in lines if "±" in line] == (len(STUDIED) * [intervals] if half else [])


def test_a_row_check_has_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["experiment", "row-check", "--empty-seeds"]) == 2
    assert "--empty-seeds" in capsys.readouterr().err


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("moment", ["Results", "run_all", "summarise", "write_report"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_that_is_broken_off_says_what_is_kept_at_any_moment(
    moment: str,
    number: signal.Signals,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By Ctrl-C or by a service manager; and who comes after finds SIGTERM as it was."""
    before = signal.getsignal(signal.SIGTERM)
    real = getattr(experimenting, moment)

    def broken_off(*arguments: object) -> object:
        monkeypatch.setattr(experimenting, moment, real)
        signal.raise_signal(number)
        raise AssertionError("went on")

    for name in ("run_all", "summarise", "plot_added", "plot_paths"):
        monkeypatch.setattr(experimenting, name, lambda *_, **__: [])
    monkeypatch.setattr(experimenting, moment, lambda *arguments, **_: broken_off(*arguments))
    with pytest.raises(SystemExit) as left:
        run(["experiment", "polca", "--quick", "--out", str(tmp_path)])
    assert left.value.code == 130
    kept = f"0 of 6 runs are whole and kept in {tmp_path / 'runs'}"
    assert capsys.readouterr().err == f"broken off: {kept}; the same command goes on from there\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_worker_that_was_killed_is_told_in_words(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*given: object, **named: object) -> None:
        raise WorkerLost("a process was ended from outside")

    monkeypatch.setattr("runtime.cli.experimenting.run_all", broken)
    assert run(["experiment", "polca", "--quick", "--out", str(tmp_path)]) == 2
    kept = "what is finished is kept, and the same command goes on from there"
    assert capsys.readouterr().err == f"a process was ended from outside; {kept}\n"
