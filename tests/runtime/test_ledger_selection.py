"""The ledger keeps what was done and what it rested on, and nothing of beats that changed nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.rigs import START, Memory, in_band, rig_of, row_text, setup_of

from runtime.ledger.audit import why
from runtime.ledger.selection import Selection, worth_keeping
from runtime.ledger.store import Ledger
from runtime.row_loop import Beat
from schemas.commands import Brake, Command, Lease, LockClocks
from schemas.decisions import Decision
from schemas.emergencies import Emergency
from schemas.envelope import Event, Tick
from schemas.forecasts import ForecastScore, PeakForecast
from schemas.instants import SECOND, Instant
from schemas.operators import Unpin
from schemas.outcomes import Accepted
from schemas.samples import FeedSample, GpuFrame, PowerRollup, UpsSample

ROW = "ams1/row-a"


def frame(at: Instant, host: str = "h1") -> GpuFrame:
    return GpuFrame(at=at, source="collector", subject=f"{ROW}/{host}", gpus=("GPU-1",), power_w=((300.0,),))


def beat(
    at: Instant,
    inputs: Sequence[Event] = (),
    *,
    cites: Sequence[Event] = (),
    mode: str = "U",
    refusal: str = "",
    commands: int = 0,
    alarm: bool = False,
) -> Beat:
    rollup = PowerRollup(
        at=at, source="rollup", subject=ROW, cause=tuple(event.id for event in cites), power_w=1.0,
        upper_w=2.0, budget_w=3.0, coverage_ratio=1.0, known_at=at, basis="sum",
    )  # fmt: skip
    more: Any = {"model": "m", "horizons_s": (2.0,), "quantiles": (0.5,), "source": "f", "subject": ROW}
    forecast = PeakForecast(at=at, cause=(rollup.id,), values=((1.0,),), **more)
    score = ForecastScore(at=at, samples=1, pinball_w=(1.0,), coverage_ratio=((1.0,),), **more)
    emergency = Emergency(
        at=at, source="d", subject=ROW, cause=(rollup.id,), kind="overload", phase="raised", because="so"
    )
    decision = Decision(
        at=at, source="c", subject=ROW, cause=(rollup.id, forecast.id), policy="polca", mode=mode, since=0,
        desired=(), because="so", refusal=refusal,
    )  # fmt: skip
    lease = Lease(epoch=1, issued_at=at, expires_at=at + 1, on_expiry="hold")
    asked: list[Command] = [
        LockClocks(at=at, source="c", subject=f"{ROW}/h{n}", cause=(decision.id,), lease=lease, max_mhz=1275)
        for n in range(commands)
    ]
    tick = Tick(at=at, source="t", subject=ROW)
    alarms = (emergency,) if alarm else ()
    return Beat(tick, tuple(inputs), rollup, (forecast, score), alarms, decision, tuple(asked))


def names(events: Sequence[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def test_a_beat_that_changed_nothing_leaves_no_record() -> None:
    selection = Selection()
    assert names(selection.of(beat(0))) == ["PowerRollup", "PeakForecast", "Decision"]  # the first look
    assert selection.of(beat(2000, [frame(1500)], cites=[frame(1500)])) == ()


@pytest.mark.parametrize(
    "change", [{"mode": "T1"}, {"refusal": "unknown power"}, {"commands": 2}, {"alarm": True}]
)
def test_a_beat_that_did_something_is_kept_with_what_it_rests_on(change: dict[str, object]) -> None:
    selection = Selection()
    selection.of(beat(0))
    seen, stray = frame(1500), frame(1600, "h2")
    kept = selection.of(beat(2000, [seen, stray], cites=[seen], **change))  # type: ignore[arg-type]
    expected = ["GpuFrame", "PowerRollup", "PeakForecast"]
    expected += (
        ["Emergency"] * bool(change.get("alarm"))
        + ["Decision"]
        + ["LockClocks"] * 2 * bool(change.get("commands"))
    )
    assert names(kept) == expected
    assert kept[0] == seen  # and not the one that nothing rests on


def test_causes_come_before_their_effects() -> None:
    seen = frame(1500)
    kept = Selection().of(beat(2000, [seen], cites=[seen], commands=3, alarm=True))
    place = {event.id: n for n, event in enumerate(kept)}
    assert all(place[cause] < n for n, event in enumerate(kept) for cause in event.cause)


def test_outcomes_and_what_people_said_are_always_kept() -> None:
    selection = Selection()
    selection.of(beat(0))
    accepted = Accepted(at=1, source="a", subject="h", command="c", epoch=1)
    unpin = Unpin(at=2, source="operator", subject=ROW, by="ada")
    assert selection.of(beat(2000, [accepted, frame(1500), unpin])) == (accepted, unpin)


def test_a_beat_that_cannot_wait_is_kept_with_the_samples_of_the_one_before() -> None:
    """A UPS fails right after a beat: what the brake rests on came before that one, and is not lost."""
    selection = Selection()
    old, older, ups = (
        frame(1500),
        frame(1000, "h2"),
        FeedSample(at=2100, source="s", subject="ups", power_w=1.0),
    )
    selection.of(beat(0, [older], cites=[older]))  # kept with the first look
    assert selection.of(beat(2000, [old], cites=[old, older])) == ()
    urgent = beat(2101, [ups], cites=[old, older, ups], commands=1)
    kept = selection.of(urgent)
    assert [event.id for event in kept[:2]] == [old.id, ups.id]  # the older one is in the ledger already
    assert old.id not in {event.id for event in worth_keeping(urgent, None)}
    assert names(selection.of(beat(4000, cites=[old], mode="T1"))) == [
        "PowerRollup",
        "PeakForecast",
        "Decision",
    ]


def test_rows_are_told_apart() -> None:
    selection = Selection()
    selection.of(beat(0))
    other = beat(0)
    moved = Beat(Tick(at=0, source="t", subject="ams1/row-b"), (), other.rollup, (), (), other.decision, ())
    assert names(selection.of(moved)) == ["PowerRollup", "Decision"]  # the first look at that row


def test_every_command_of_a_run_can_be_walked_to_its_samples_without_leaving_the_ledger(
    tmp_path: Path,
) -> None:
    """A row summed from its hosts, with a UPS that fails between two beats."""
    setup = setup_of(row_text(8, budget_w=42_000.0, meters=False), in_band())
    beats: list[Beat] = []
    rig = rig_of(setup, ledger=Memory(), observe=[beats.append])
    rig.host.run(until=START + 20 * SECOND + 1)
    now = START + 20 * SECOND + 100  # right after a beat, and before the next samples
    rig.host.loop.offer([UpsSample(at=now, source="s", subject="lab1/ups-1", power_w=1.0, on_battery=True)])
    rig.host.turn(now)
    rig.host.run(until=START + 60 * SECOND)
    urgent = [b for b in beats if b.commands and set(b.rollup.cause) - {event.id for event in b.inputs}]
    assert any(isinstance(command, Brake) for b in urgent for command in b.commands)
    selection = Selection()
    with Ledger(tmp_path / "ledger.sqlite", durable=False) as ledger:
        for each in beats:
            ledger.append(selection.of(each))
        commands = list(ledger.of_type([LockClocks, Brake]))
        assert len(commands) >= 8
        for command in commands:
            walk = why(ledger, command.id)
            assert walk.rollup is not None
            assert (walk.outside, len(walk.samples)) == (0, len(walk.rollup.cause))
            assert walk.samples
