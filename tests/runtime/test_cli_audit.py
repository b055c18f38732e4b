"""`windrow audit`: what the ledger answers on the command line."""

from __future__ import annotations

import json
import pathlib
import sqlite3

import msgspec
import pytest
from support.rigs import START, in_band, rig_of, row_text, setup_of

from controllers.policy import DEFAULT_POLICY
from runtime.cli import printing
from runtime.cli.app import run
from runtime.ledger.audit import who
from runtime.ledger.store import Ledger
from schemas.commands import LockClocks
from schemas.instants import MINUTE, SECOND, to_text
from schemas.operators import Pin
from schemas.outcomes import Verified
from twin.workload import LoadProfile

RISING = LoadProfile(requests_per_s=0.35, points=((0.0, 0.05), (30.0, 0.05), (90.0, 1.0), (180.0, 1.0)))
REASON = "[red]hot aisle[/] [f,f]"


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Three minutes of an oversubscribed row of four: mains fail briefly, one host is pinned, caps come."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    policy = msgspec.structs.replace(
        in_band(), guardrails=msgspec.structs.replace(DEFAULT_POLICY.guardrails, dwell_ms=10 * SECOND)
    )
    with Ledger(path, durable=False) as book:
        rig = rig_of(setup_of(row_text(4, budget_w=20_000.0), policy), load=RISING, ledger=book)
        rig.host.run(until=START + 5 * SECOND)
        rig.plant.fail_ups()
        rig.host.run(until=START + 9 * SECOND)
        rig.plant.restore_ups()
        rig.host.run(until=START + 20 * SECOND)
        pin = Pin(
            at=START + 20 * SECOND, source="operator", subject="lab1/row-a/r01/h01", max_mhz=900, by="ada",
            reason=REASON, expires_at=START + 10 * MINUTE,
        )  # fmt: skip
        rig.host.loop.offer([pin])
        rig.host.run(until=START + 3 * MINUTE)
    return path


@pytest.fixture(scope="module")
def cap(ledger: pathlib.Path) -> LockClocks:
    """A cap of a low-priority host that was seen to bite."""
    with Ledger.reading(ledger) as book:
        for outcome in book.of_type([Verified]):
            assert isinstance(outcome, Verified)
            command = book.get(outcome.command)
            if (
                isinstance(command, LockClocks)
                and command.max_mhz < 1410
                and outcome.observed == command.max_mhz
            ):
                return command
    raise AssertionError("the run was to cap somebody")


def asked(ledger: pathlib.Path, *tokens: str) -> list[str]:
    """A question to this ledger."""
    return ["audit", *tokens, "--ledger", str(ledger)]


def test_why_is_told_from_the_meter_to_the_effect(
    ledger: pathlib.Path, cap: LockClocks, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(asked(ledger, "why", cap.id[:10])) == 0
    told = capsys.readouterr().out
    heads = ["asked ", "decided ", "saw ", "from ", "became ", "effect "]
    places = [told.index(head) for head in heads]
    assert places == sorted(places), told
    assert f"{cap.subject}: hold SM clocks at or below {cap.max_mhz} MHz (in band)" in told
    assert "on the meter at" in told
    assert f"verified, read back {cap.max_mhz}" in told
    assert "then safe share; epoch 1" in told

    assert run(asked(ledger, "why", cap.id, "--json")) == 0
    walk = json.loads(capsys.readouterr().out)
    assert walk["command"]["id"] == cap.id
    assert walk["rollup"]["id"] in walk["decision"]["cause"]


def test_who_tells_of_every_host_below_a_path_and_of_its_pins(
    ledger: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = to_text(START + 3 * MINUTE)
    assert run(asked(ledger, "who", "--target", "lab1/row-a", "--at", at)) == 0
    told = capsys.readouterr().out
    lines = [line for line in told.splitlines() if "lab1/row-a/r01/h" in line]
    assert [line.split()[0][-3:] for line in lines] == ["h01", "h02", "h03", "h04"]
    assert all(line.split()[1:3] == ["in", "force"] for line in lines)
    assert "pinned at 900 MHz by ada until" in told
    assert "[red]hot" in told, "what people write is told as they wrote it"

    assert run(asked(ledger, "who", "--target", "lab1/row-a/r01/h01", "--at", at, "--json")) == 0
    (holding,) = json.loads(capsys.readouterr().out)
    assert holding["command"]["max_mhz"] == 900
    assert holding["pins"][0]["reason"] == REASON


def test_nothing_is_cut_off_in_a_narrow_terminal(
    ledger: pathlib.Path, cap: LockClocks, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printing.console, "width", 80)
    assert run(asked(ledger, "who", "--target", "lab1/row-a", "--at", to_text(START + 3 * MINUTE))) == 0
    told = capsys.readouterr().out
    with Ledger.reading(ledger) as book:
        holdings = who(book, "lab1/row-a", START + 3 * MINUTE)
    for holding in holdings:
        assert holding.command is not None
        assert f"{holding.target}  {holding.state}  hold SM clocks at or below" in told
        assert (holding.first or holding.command).id in told
        assert f"its lease ends {to_text(holding.command.lease.expires_at)}" in told
    assert run(asked(ledger, "alerts")) == 0
    told += capsys.readouterr().out
    assert "…" not in told


@pytest.mark.parametrize("names", [[], ["--ledger", "a.sqlite", "--config", "b.toml"]])
def test_one_ledger_is_asked_and_not_none_or_two(
    names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", "alerts", *names]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "name either a ledger's file with --ledger, or a configuration with --config"


def test_a_configuration_without_influxdb_means_the_file_of_that_host(
    ledger: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ledger.sqlite").write_bytes(ledger.read_bytes())
    (tmp_path / "site.toml").write_text(row_text(4, budget_w=20_000.0), encoding="utf-8")
    (tmp_path / "host.toml").write_text('site = "site.toml"\nstate_dir = "state"\n', encoding="utf-8")
    assert run(["audit", "alerts", "--config", str(tmp_path / "host.toml")]) == 0
    told = capsys.readouterr().out
    assert run(asked(ledger, "alerts")) == 0
    assert capsys.readouterr().out == told


def test_where_nothing_was_commanded_the_answer_is_no(
    ledger: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(asked(ledger, "who", "--target", "lab1/row-z", "--at", "2026-03-02")) == 1
    assert capsys.readouterr().out == (
        "nothing had been commanded at or below lab1/row-z by 2026-03-02T00:00:00.000Z\n"
    )
    assert run(asked(ledger, "who", "--target", "lab1/row-z", "--at", "2026-03-02", "--json")) == 1
    assert json.loads(capsys.readouterr().out) == []


def test_alerts_are_listed_from_a_time_on(ledger: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(asked(ledger, "alerts", "--json")) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["phase"]) == ("failover", "cleared")
    assert run(asked(ledger, "alerts")) == 0
    told = capsys.readouterr().out
    assert "failover" in told
    assert f"cleared {to_text(found['at'])[11:19]}" in told
    assert run(asked(ledger, "alerts", "--since", "2027-01-01")) == 0
    assert capsys.readouterr().out == "no emergency\n"


def test_a_whole_chain_is_verified_with_its_head(
    ledger: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(asked(ledger, "verify", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["broken"], len(found["head"])) == ("", 64)
    assert run(asked(ledger, "verify", "--head", found["head"])) == 0
    assert f"{found['records']} records, chain whole; head {found['head']}" in capsys.readouterr().out


def test_a_head_that_is_gone_and_a_changed_record_are_found(
    ledger: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(asked(ledger, "verify", "--head", "ab" * 32)) == 1
    assert "is not in this ledger: records were cut off or replaced" in capsys.readouterr().err

    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(ledger.read_bytes())
    with sqlite3.connect(copy) as db:
        db.execute("DROP TRIGGER no_update")
        db.execute("UPDATE records SET body = replace(body, 'lab1', 'lab2') WHERE seq = 3")
    db.close()
    assert run(asked(copy, "verify")) == 1
    assert "record 3 (" in capsys.readouterr().err
    assert run(asked(copy, "verify", "--json")) == 1
    assert json.loads(capsys.readouterr().out)["broken"].startswith("record 3 (")


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["why", "zzzz"], "no record has an id that begins with 'zzzz'"),
        (["why", ""], "'' is ambiguous: "),
        (["who", "--target", "lab1", "--at", "yesterday"], "'yesterday' is not a time; write it like 2026-"),
        (["alerts", "--since", "monday"], "'monday' is not a time"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_in_one_line(
    ledger: pathlib.Path, tokens: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(asked(ledger, *tokens)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def test_a_file_that_is_no_ledger_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").write_text("not a ledger, and long enough to be looked at" * 50, encoding="utf-8")
    assert run(asked(tmp_path / "notes", "alerts")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/notes: ")
