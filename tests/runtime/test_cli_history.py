"""`windrow history`: a row over a stretch of time, on the command line."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
from support.rigs import START, rig_of, row_text, setup_of

from runtime.cli.app import run
from runtime.ledger.store import Ledger
from schemas.instants import MINUTE, SECOND, to_text

ROW = "lab1/row-a"


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A minute of a row of four whose UPS fails for a while."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    with Ledger(path, durable=False) as book:
        rig = rig_of(setup_of(row_text(4, budget_w=20_000.0)), ledger=book)
        rig.host.run(until=START + 20 * SECOND)
        rig.plant.fail_ups()
        rig.host.run(until=START + 30 * SECOND)
        rig.plant.restore_ups()
        rig.host.run(until=START + MINUTE)
    return path


def asked(ledger: pathlib.Path, *more: str, since: int = START, until: int = START + MINUTE) -> list[str]:
    span = ["--since", to_text(since), "--until", to_text(until)]
    return ["history", ROW, "--ledger", str(ledger), *span, *more]


def test_a_rows_modes_power_caps_and_troubles_are_told_in_their_order(
    ledger: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(asked(ledger)) == 0
    told = capsys.readouterr().out
    first, *_ = told.splitlines()
    assert first == f"{ROW} from {to_text(START)} to {to_text(START + MINUTE)}"
    assert f"{to_text(START + 20 * SECOND)}  B" in told
    assert "sent 4 Brake" in told
    assert re.search(r"4 hosts braked to \d+ MHz", told)
    assert "100% read" in told
    assert "outcomes: " in told
    assert "failover, " in told
    assert "highest power of the beats that the ledger holds: " in told


def test_what_held_before_is_told_first(ledger: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(asked(ledger, "--json", since=START + 25 * SECOND)) == 0
    told = json.loads(capsys.readouterr().out)["history"]
    assert told["before"]["mode"] == "B"
    assert told["before"]["power_w"] > 0
    assert all(moment["at"] >= START + 25 * SECOND for moment in told["moments"])


def test_the_curve_has_no_point_where_nothing_is_held(
    ledger: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(asked(ledger, "--json")) == 0
    drawn = json.loads(capsys.readouterr().out)["curve"]
    assert (drawn["source"], drawn["step_ms"]) == ("ledger", 1_000)
    assert 2 < len(drawn["points"]) < 31
    assert all(point["power_w"] <= point["peak_w"] for point in drawn["points"])


def test_a_picture_is_drawn(
    ledger: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(asked(ledger, "--plot", str(tmp_path / "row.png"))) == 0
    assert f"drawn to {tmp_path / 'row.png'}" in capsys.readouterr().out
    assert (tmp_path / "row.png").read_bytes()[:4] == b"\x89PNG"


def test_where_nothing_is_known_the_answer_is_no(
    ledger: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["history", "lab1/row-z", "--ledger", str(ledger)]) == 1
    assert capsys.readouterr().out.startswith("nothing is known of lab1/row-z from 2")
    nothing = asked(ledger, "--plot", str(tmp_path / "x.png"), since=START - MINUTE, until=START - 1)
    assert run(nothing) == 2
    assert "there is nothing to draw of lab1/row-a at that time" in capsys.readouterr().err
    assert run(asked(ledger, since=START + 1, until=START)) == 2
    assert "is after --until" in capsys.readouterr().err
