"""What waits for a ledger: in order, bounded, and told to the rows when it begins and when it ends."""

from __future__ import annotations

import pytest
from support.capped_row import ROW, brake, capped_row, lock, reading

from controllers.view import Asked, Control, HostControl, View, ViewState, view
from runtime.hosts import write_ahead
from runtime.hosts.write_ahead import LEDGER_SOURCE, WriteAhead
from runtime.row_loop import Beat
from schemas.commands import Command
from schemas.decisions import Decision
from schemas.emergencies import Emergency
from schemas.envelope import DeadLetter, Tick
from schemas.instants import Instant
from schemas.samples import GpuFrame

T0: Instant = 1_700_000_000_000
PLANT = capped_row(low=2, high=0)
HOST = PLANT.hosts[0].path


def beat(at: Instant, *commands: Command, mode: str = "U") -> Beat:
    return Beat(
        tick=Tick(at=at, source="x", subject=ROW),
        inputs=(),
        rollup=reading(PLANT, at, 0.9),
        forecasts=(),
        emergencies=(),
        decision=Decision(
            at=at, source="x", subject=ROW, policy="p", mode=mode, since=at, desired=(), because="b"
        ),
        commands=commands,
    )


def seen(ceiling: int | None = 1000) -> View:
    held = None if ceiling is None else Asked(
        id="c", at=T0, max_mhz=ceiling, path="in_band", expires_at=T0 + 90_000, on_expiry="safe_share"
    )  # fmt: skip
    state = ViewState(hosts={HOST: HostControl(lock=Control(in_force=held))})
    return view(state, PLANT, T0 + 1)


def letter(number: int) -> DeadLetter:
    return DeadLetter(at=T0 + number, source="x", subject=ROW, topic="t", payload=b"?", reason="r")


def frame(number: int) -> GpuFrame:
    return GpuFrame(at=T0 + number, source="x", subject=HOST, gpus=())


def test_everything_may_go_once_the_ledger_has_all_that_was_ever_kept() -> None:
    ahead = WriteAhead()
    looser = lock(HOST, T0, 1400)
    said = beat(T0, looser)
    ahead.keep(said)
    batch = ahead.batch()
    assert looser in batch
    assert ahead.may_go(said, seen())[0] == [], "not before"
    ahead.taken(batch)
    assert ahead.may_go(said, seen()) == ((looser,), ())


def test_without_the_ledger_what_tightens_goes_and_what_loosens_is_refused_in_words() -> None:
    ahead = WriteAhead()
    looser, tighter, stop = lock(HOST, T0, 1400), lock(HOST, T0, 900), brake(HOST, T0)
    said = beat(T0, looser, tighter, stop)
    ahead.keep(said)
    ahead.failed("the broker is away")
    go, words = ahead.may_go(said, seen())
    assert list(go) == [tighter, stop]
    assert [(word.command, word.source) for word in words] == [(looser.id, LEDGER_SOURCE)]
    assert "ledger cannot be written" in words[0].detail


def test_a_later_beat_waits_for_what_an_earlier_one_left_behind() -> None:
    ahead = WriteAhead()
    ahead.keep(beat(T0))
    ahead.failed("away")
    quiet = beat(T0 + 2000, lock(HOST, T0, 1400))
    ahead.keep(quiet)
    first = ahead.batch()
    ahead.taken(first[:1])
    assert ahead.may_go(quiet, seen())[0] == []
    assert ahead.trouble
    ahead.taken(ahead.batch())
    assert ahead.trouble == ""
    assert ahead.may_go(quiet, seen())[0] == quiet.commands


def test_each_row_is_told_once_that_the_ledger_is_away_and_once_that_it_is_back() -> None:
    ahead = WriteAhead()
    ahead.keep(beat(T0))
    assert ahead.alarms(["a", "b"], T0) == []
    ahead.failed("the disk is full")
    raised = ahead.alarms(["a", "b"], T0)
    assert [(e.subject, e.kind, e.phase) for e in raised] == [
        ("a", "ledger_loss", "raised"),
        ("b", "ledger_loss", "raised"),
    ]
    assert "full" in raised[0].because
    ahead.failed("the disk is full")
    assert ahead.alarms(["a", "b"], T0 + 1) == []
    (late,) = ahead.alarms(["a", "b", "c"], T0 + 2)
    assert late.subject == "c", "a row that came meanwhile is told too"
    ahead.taken(ahead.batch())
    cleared = ahead.alarms(["a", "b", "c"], T0 + 3)
    assert [(e.subject, e.phase) for e in cleared] == [(row, "cleared") for row in ("a", "b", "c")]
    assert cleared[0].episode == raised[0].id
    assert ahead.alarms(["a", "b", "c"], T0 + 4) == []


def test_an_alarm_that_an_earlier_host_raised_is_cleared_by_the_next() -> None:
    raised = Emergency(
        at=T0, source=LEDGER_SOURCE, subject=ROW, kind="ledger_loss", phase="raised", because="away"
    )
    ahead = WriteAhead()
    ahead.adopt(view(ViewState(emergencies={raised.episode: raised}), PLANT, T0 + 1))
    (cleared,) = ahead.alarms([ROW], T0 + 2)
    assert (cleared.phase, cleared.episode) == ("cleared", raised.episode)


def test_evidence_makes_room_before_what_was_said_and_done_and_the_end_of_the_alarm_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("WAITING_AT_MOST", 100), ("_ROOM", 10), ("_SLICE", 5)):
        monkeypatch.setattr(write_ahead, name, value)
    ahead = WriteAhead()
    ahead.keep_also(frame(n) for n in range(5))
    under_way = ahead.batch()
    ahead.failed("away")
    ahead.alarms([ROW], T0)
    locks = [lock(HOST, T0 + n, 900) for n in range(60)]
    for n, command in enumerate(locks):
        ahead.keep_also([frame(100 + n), command])
    assert len(ahead.waiting) <= 100
    assert list(ahead.waiting[:5]) == list(under_way), "what is under way to the ledger stays in its place"
    assert [event for event in ahead.waiting if isinstance(event, Command)] == locks
    assert set(ahead.dropped) == {"GpuFrame"}

    more = [lock(HOST, T0 + n, 800) for n in range(60, 160)]
    ahead.keep_also(more)
    assert len(ahead.waiting) <= 100, "bounded, whatever comes"
    assert ahead.waiting[-1] == more[-1], "the newest stay"
    lost = ahead.dropped.copy()
    assert lost["LockClocks"] > 0
    while batch := ahead.batch():
        ahead.taken(batch)
    (cleared,) = ahead.alarms([ROW], T0 + 1)
    assert f"{lost['GpuFrame']} GpuFrame, {lost['LockClocks']} LockClocks" in cleared.because
    assert not ahead.dropped


def test_dead_letters_wait_too() -> None:
    ahead = WriteAhead()
    ahead.keep_also([letter(1)])
    assert list(ahead.batch()) == [letter(1)]


def test_a_beat_that_another_host_recorded_tells_news_from_what_was_said_before() -> None:
    ahead, fresh = WriteAhead(), WriteAhead()
    ahead.pass_by(beat(T0))
    again = beat(T0 + 2000)
    ahead.keep(again)
    fresh.keep(again)
    assert ahead.batch() == []
    assert len(fresh.batch()) > 0
