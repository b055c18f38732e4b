"""`windrow rehearse`: exit status by the verdicts, what it refuses in words, what it leaves behind."""

from __future__ import annotations

import io
import json
import pathlib

import pytest
from rich.console import Console
from support.rigs import row_text, two_rows_text

from runtime.cli import printing, rehearsing
from runtime.cli.app import run
from runtime.ledger import audit
from runtime.ledger.store import Ledger
from twin.scenario import shipped

QUICK = """
[scenario]
title = "a UPS fails on a busy row"
minutes = 2

[demand]
course = [[0, 0.6]]

[[faults]]
kind = "ups_failover"
at_min = 0.5
minutes = 1

[judge]
brakes = {brakes}
"""


@pytest.fixture
def site(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "site.toml"
    path.write_text(
        row_text(3, budget_w=15_000.0, paths=("in_band", "out_of_band", "brake")), encoding="utf-8"
    )
    return str(path)


def scenario(folder: pathlib.Path, text: str = QUICK.format(brakes=1)) -> str:
    path = folder / "quick.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_it_lists_what_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rehearse", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped())
    assert run(["rehearse", "--list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in told] == list(shipped())


def test_all_passed_is_0_and_one_failed_is_1_and_the_ledger_it_leaves_tells_why(
    tmp_path: pathlib.Path, site: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["rehearse", scenario(tmp_path), "--site", site, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "minute 0.5 to 1.5  ups-1 on battery, 0.75 of the budget left" in said
    assert "FAILED" not in said
    lines = said.splitlines()
    (answered,) = [n for n, line in enumerate(lines) if "every command was verified" in line]
    assert "none late or unanswered" in lines[answered]
    assert "while it settled" in lines[answered + 1], "the slowest came before minute 0"
    assert "outcomes, several for some: " in lines[answered + 1]
    assert ": 1 time (allowed: 1 at most)" in said
    assert "\n0 of 8 invariants failed: all held; 3 not judged\n" in said
    for left in ("row.png", "ledger.sqlite", "recording.jsonl.gz"):
        assert (out / left).stat().st_size > 0
    assert run(["replay", str(out / "recording.jsonl.gz"), "--expect", "recorded", "--json"]) == 0
    capsys.readouterr()

    strict = scenario(tmp_path, QUICK.format(brakes=0))
    assert run(["rehearse", strict, "--site", site, "--out", str(out), "--json"]) == 1
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["row"], told["scenario"], told["seed"], told["held"]) == ("lab1/row-a", "quick", 1, False)
    (failed,) = [verdict for verdict in told["verdicts"] if verdict["ruling"] == "failed"]
    assert (failed["invariant"], failed["value"], failed["limit"]) == (
        "the brake was pulled no oftener than allowed", 1, 0
    )  # fmt: skip
    with Ledger.reading(out / "ledger.sqlite") as ledger:
        assert audit.why(ledger, failed["command"]).emergencies[0].kind == "failover"


def test_a_narrow_terminal_cuts_no_name_and_no_id_and_the_last_line_counts_what_failed(
    tmp_path: pathlib.Path, site: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = scenario(tmp_path, QUICK.format(brakes=0))
    assert run(["rehearse", strict, "--site", site, "--json"]) == 1
    (told,) = json.loads(capsys.readouterr().out)
    paper = io.StringIO()
    for module in (rehearsing, printing):
        monkeypatch.setattr(module, "console", Console(width=80, file=paper, highlight=False))
    assert run(["rehearse", strict, "--site", site]) == 1
    said = paper.getvalue()
    words = {word for each in told["verdicts"] for word in f"{each['proof']} {each['command']}".split()}
    assert any(word.startswith("lab1/row-a/r01/h") for word in words)
    assert words <= {word.rstrip(";") for word in said.split()}
    assert said.endswith("\n1 of 8 invariants failed; 3 not judged\n")


def test_each_row_is_played_or_the_one_that_is_named(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "two.toml"
    site.write_text(two_rows_text(), encoding="utf-8")
    quick = scenario(tmp_path)
    assert run(["rehearse", quick, "--site", str(site), "--out", str(tmp_path / "out"), "--json"]) == 0
    assert [each["row"] for each in json.loads(capsys.readouterr().out)] == ["lab1/row-a", "lab1/row-b"]
    assert (tmp_path / "out/row-b/ledger.sqlite").exists()
    assert run(["rehearse", quick, "--site", str(site), "--row", "lab1/row-b", "--json"]) == 0
    assert [each["row"] for each in json.loads(capsys.readouterr().out)] == ["lab1/row-b"]
    assert run(["rehearse", quick, "--site", str(site), "--row", "lab1/row-c"]) == 2
    assert "--row lab1/row-c: no such row in the site file; did you mean" in capsys.readouterr().err


def test_what_cannot_be_played_is_refused_in_words(
    tmp_path: pathlib.Path, site: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*tokens: str) -> str:
        assert run(["rehearse", *tokens]) == 2
        return capsys.readouterr().err

    assert "name a scenario: there is flash-crowd" in refused()
    assert refused("heat", "--seed", "-1") == 'Invalid value "-1" for --seed. Must be >= 0.\n'
    assert "flash-crwd: is no file, and no scenario that ships: did you mean flash-crowd?" in refused(
        "flash-crwd"
    )
    wrong = scenario(tmp_path, QUICK.format(brakes=0.5).replace("minutes = 1\n", "minutes = -1\n"))
    assert [line.partition("quick.toml: ")[2] for line in refused(wrong, "--site", site).splitlines()] == [
        "faults[0].minutes = -1: must be above zero (how long it lasts)",
        "judge.brakes = 0.5: must be a whole number (how often the brake may be pulled)",
    ]
    other = scenario(tmp_path, QUICK.format(brakes=1).replace("at_min", 'ups = "ups-7"\nat_min', 1))
    assert 'quick.toml: faults[0]: ups = "ups-7": lab1/row-a hangs from ups-1' in refused(
        other, "--site", site
    )
    assert refused(site).startswith(f"{site}: this looks like a site file: use --site\n{site}: ")
    (tmp_path / "host.lock").touch()
    said = refused(scenario(tmp_path), "--site", site, "--out", str(tmp_path))
    assert "is the state directory of a host" in said
