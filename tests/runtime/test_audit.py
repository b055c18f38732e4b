"""The ledger answers who was capped, when and why, as the host's own agent lived it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from support.agents import T0, TTL, Hosted, brake, lock

from runtime.ledger.audit import UnknownCommand, alerts, who, why
from runtime.ledger.book import AmbiguousId, UnknownId
from runtime.ledger.holding import Holding
from runtime.ledger.standing import standing
from runtime.ledger.store import Ledger
from schemas.commands import Brake, Command, LockClocks
from schemas.decisions import Decision, Setting
from schemas.emergencies import Emergency, EmergencyKind, Phase
from schemas.envelope import Event
from schemas.forecasts import PeakForecast
from schemas.instants import MINUTE, SECOND, Instant, to_text
from schemas.operators import Pin, ReleaseAll, Resume, Unpin
from schemas.outcomes import Accepted, Failed, Refused, Released, Renewed, Superseded, Verified
from schemas.samples import FeedSample, PowerRollup

ROW = "ams1/row-a"
HOST = f"{ROW}/r01/h01"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite", durable=False) as opened:
        yield opened


class Recorded:
    """A host with its real agent, whose commands and outcomes go to a ledger as a host writes them:
    commands before they are handed over, outcomes after, in no particular order within a millisecond."""

    def __init__(self, ledger: Ledger, hosted: Hosted) -> None:
        self.ledger = ledger
        self.hosted = hosted
        self._chance = random.Random(1)
        self.keep(hosted.start())

    def keep(self, said: Sequence[Event]) -> None:
        shuffled = sorted(said, key=lambda event: (event.at, self._chance.random()))
        self.ledger.append(shuffled)

    def give(self, command: Command) -> None:
        self.ledger.append([command])
        self.keep(self.hosted.give(command))

    def wait(self, span: int) -> None:
        self.keep(self.hosted.wait(span))

    def held(self, at: Instant | None = None) -> Holding:
        (holding,) = who(self.ledger, HOST, self.hosted.now if at is None else at)
        return holding


# ---- who --------------------------------------------------------------------------------------


def test_a_host_that_was_never_commanded_is_at_the_safe_share_it_read_back(ledger: Ledger) -> None:
    recorded = Recorded(ledger, Hosted())
    recorded.wait(MINUTE)
    holding = recorded.held()
    assert (holding.state, holding.command) == ("lapsed", None)
    assert "safe share read back, 1110 MHz" in holding.detail
    assert who(ledger, HOST, T0 - 1) == ()
    assert who(ledger, f"{ROW}/r02", recorded.hosted.now) == ()


def test_a_verified_command_holds_from_its_read_back_until_it_is_superseded(ledger: Ledger) -> None:
    recorded = Recorded(ledger, Hosted("in_band", "out_of_band"))
    first = lock(900, T0 + 1000, path="out_of_band")
    second = lock(1110, T0 + 60_000)
    recorded.wait(1 * SECOND)
    recorded.give(first)
    recorded.wait(59 * SECOND)
    recorded.give(second)
    recorded.wait(20 * SECOND)

    readback = next(outcome for outcome in recorded.hosted.said if isinstance(outcome, Verified))
    before = recorded.held(readback.at - 1)
    assert (before.state, before.command) == ("accepted", first)
    during = recorded.held(T0 + 59_999)
    assert (during.state, during.command, during.first, during.since) == (
        "in force",
        first,
        first,
        readback.at,
    )
    after = recorded.held()
    assert (after.state, after.command) == ("in force", second)
    assert after.pending is None


def test_a_renewed_lease_is_held_by_the_newest_command_and_since_the_first(ledger: Ledger) -> None:
    recorded = Recorded(ledger, Hosted())
    first = lock(1275, T0)
    recorded.give(first)
    recorded.wait(45 * SECOND)
    for _ in range(3):
        recorded.give(lock(1275, recorded.hosted.now))
        recorded.wait(45 * SECOND)
    assert sum(isinstance(outcome, Renewed) for outcome in recorded.hosted.said) == 3
    readback = next(outcome for outcome in recorded.hosted.said if isinstance(outcome, Verified))
    holding = recorded.held()
    assert holding.state == "in force"
    assert holding.command is not None
    assert holding.command.at == T0 + 135 * SECOND  # whose lease counts
    assert (holding.first, holding.since) == (first, readback.at)  # who capped, and since when
    assert isinstance(holding.outcome, Renewed)


def test_a_brake_holds_over_the_lock_and_outlives_its_lease_until_a_newer_lock(ledger: Ledger) -> None:
    hosted = Hosted("in_band", "out_of_band", "brake")
    slow = hosted.intercept("out_of_band", on="verify")
    recorded = Recorded(ledger, hosted)
    recorded.give(lock(1275, T0))
    recorded.wait(10 * SECOND)
    engaged = brake(recorded.hosted.now)
    recorded.give(engaged)
    recorded.wait(10 * SECOND)
    assert (recorded.held().state, recorded.held().command) == ("in force", engaged)
    recorded.wait(TTL)
    beyond = recorded.held()
    assert (beyond.state, beyond.command) == ("in force", engaged)
    assert (
        beyond.detail == f"its lease ended at {to_text(engaged.lease.expires_at)}; held until a newer command"
    )

    newer = lock(1110, recorded.hosted.now, path="out_of_band")
    slow.failing = True
    recorded.give(newer)
    recorded.wait(1 * SECOND)
    under_way = recorded.held()
    assert (under_way.state, under_way.command, under_way.pending) == ("in force", engaged, newer)
    slow.failing = False
    recorded.wait(40 * SECOND)  # under a brake no clock shows the lock: it counts once it must have landed
    assert any(isinstance(said, Released) and said.command == engaged.id for said in recorded.hosted.said)
    assert (recorded.held().state, recorded.held().command) == ("in force", newer)


def test_a_lease_that_ran_out_is_expired_until_the_host_says_that_it_lapsed(ledger: Ledger) -> None:
    recorded = Recorded(ledger, Hosted())
    command = lock(1410, T0)
    recorded.give(command)
    recorded.wait(TTL - 1000)
    recorded.hosted.boards.advance(5 * SECOND)  # the agent is late
    recorded.hosted.now += 5 * SECOND
    expired = recorded.held()
    assert (expired.state, expired.command, expired.since) == ("expired", command, T0 + TTL)
    assert "goes to safe share, and it has not said that it did" in expired.detail
    recorded.wait(10 * SECOND)
    lapsed = recorded.held()
    assert (lapsed.state, lapsed.command) == ("lapsed", command)
    assert "safe share" in lapsed.detail
    assert recorded.held(T0 + TTL - 1).state == "in force"  # the past stays what it was


def test_a_host_whose_agent_died_is_expired_for_good(ledger: Ledger) -> None:
    recorded = Recorded(ledger, Hosted())
    recorded.give(lock(1410, T0))
    recorded.wait(10 * SECOND)
    lost = lock(1410, T0 + 50 * SECOND)
    ledger.append([lost])  # nobody answers from here on
    assert recorded.held(T0 + TTL - 1).pending == lost
    assert recorded.held(T0 + 10 * MINUTE).state == "expired"


def test_a_released_host_is_said_to_be_released_and_by_whom_it_was_held(ledger: Ledger) -> None:
    recorded = Recorded(ledger, Hosted())
    command = lock(1275, T0)
    recorded.give(command)
    recorded.wait(10 * SECOND)
    recorded.keep(recorded.hosted.agent.release_all(recorded.hosted.now))
    recorded.wait(10 * SECOND)
    holding = recorded.held()
    assert (holding.state, holding.command) == ("released", command)


def test_a_command_that_failed_leaves_the_setting_unknown(ledger: Ledger) -> None:
    hosted = Hosted()
    broken = hosted.intercept("in_band", on="verify")
    recorded = Recorded(ledger, hosted)
    recorded.give(lock(1275, T0))
    recorded.wait(10 * SECOND)
    assert recorded.held().state == "in force"
    broken.failing = True
    newer = lock(1110, hosted.now)
    recorded.give(newer)
    recorded.wait(10 * SECOND)
    failed = recorded.held()
    assert (failed.state, failed.command) == ("failed", newer)
    assert isinstance(failed.outcome, Failed)
    assert failed.detail


def test_a_refused_command_changes_nothing(ledger: Ledger) -> None:
    recorded = Recorded(ledger, Hosted())
    held = lock(1275, T0, epoch=2)
    recorded.give(held)
    recorded.wait(10 * SECOND)
    fenced = lock(1410, recorded.hosted.now, epoch=1)
    recorded.give(fenced)
    holding = recorded.held()
    assert any(isinstance(said, Refused) for said in recorded.hosted.said)
    assert (holding.state, holding.command, holding.pending) == ("in force", held, None)


def test_a_refused_command_is_said_where_nothing_else_ever_held(ledger: Ledger) -> None:
    command = lock(1275, T0)
    refused = Refused(at=T0 + 5, source="a", subject=HOST, command=command.id, epoch=1, detail="dry run")
    ledger.append([command])
    (asked,) = who(ledger, HOST, T0)
    assert (asked.state, asked.command, asked.detail) == ("asked", command, "no answer yet")
    ledger.append([refused])
    (holding,) = who(ledger, HOST, T0 + 5)
    assert (holding.state, holding.command, holding.detail) == ("refused", command, "dry run")


def test_a_superseded_command_does_not_hold_though_its_successor_is_silent(ledger: Ledger) -> None:
    first, second = lock(1275, T0), lock(1110, T0 + 2000)
    said = {"source": "a", "subject": HOST, "epoch": 1}
    ledger.append([
        first,
        Verified(at=T0 + 1000, command=first.id, observed=1275.0, **said),  # type: ignore[arg-type]
        second,
        Superseded(at=T0 + 2000, command=first.id, detail=f"by {second.id}", **said),  # type: ignore[arg-type]
    ])  # fmt: skip
    (holding,) = who(ledger, HOST, T0 + 3000)
    assert (holding.state, holding.command, holding.pending) == ("superseded", first, second)


@pytest.mark.parametrize("seed", range(8))
def test_who_holds_a_host_is_what_its_agent_wanted_of_it(ledger: Ledger, seed: int) -> None:
    """The agent's own state is the oracle: at each instant the ledger says the same of it."""
    chance = random.Random(seed)
    hosted = Hosted("in_band", "out_of_band", "brake")
    flaky = hosted.intercept("out_of_band", on="verify")
    recorded = Recorded(ledger, hosted)
    truth: list[tuple[Instant, str | None]] = []
    for _ in range(40):
        flaky.failing = chance.random() < 0.2
        match chance.choice(["lock", "lock", "same", "oob", "brake", "release", "rest"]):
            case "lock":
                recorded.give(lock(chance.choice([1110, 1275, 1410]), hosted.now))
            case "same":
                recorded.give(lock(1275, hosted.now))
            case "oob":
                recorded.give(lock(1200, hosted.now, path="out_of_band"))
            case "brake":
                recorded.give(brake(hosted.now))
            case "release":
                recorded.keep(hosted.agent.release_all(hosted.now))
        for _ in range(chance.choice([1, 3, 10, 120])):
            recorded.wait(1 * SECOND)
            truth.append((hosted.now, _in_force(hosted)))
        recorded.wait(250)  # what comes next does not come in the millisecond of the last look
    assert len({command for _, command in truth}) > 5
    for at, command in truth:
        found = who(ledger, HOST, at)
        held = found[0].command if found and found[0].state == "in force" else None
        assert (held.id if held else None) == command, (at - T0, found)


def _in_force(hosted: Hosted) -> str | None:
    """The command that the agent has read back and holds; a brake also while a newer lock is on its way."""
    kept = hosted.agent.kept
    assert kept is not None
    if kept.intent == "obey" and kept.settled and kept.command is not None:
        return kept.command.id
    braked = kept.brake.id if kept.intent == "obey" and kept.brake is not None else None
    read_back = any(isinstance(said, Verified | Renewed) and said.command == braked for said in hosted.said)
    return braked if read_back else None


def test_who_finds_hosts_below_a_row_and_the_host_above_a_gpu(ledger: Ledger) -> None:
    hosts = [f"{ROW}/r0{n}/h01" for n in range(1, 4)]
    for host in [*hosts, "ams1/row-ab/r01/h01"]:
        command = lock(1275, T0, subject=host)
        ledger.append([
            command,
            Verified(at=T0 + 1, source="a", subject=host, command=command.id, epoch=1, observed=1275.0),
        ])  # fmt: skip
    assert [holding.target for holding in who(ledger, ROW, T0 + 5)] == hosts
    assert [holding.target for holding in who(ledger, ROW + "/", T0 + 5)] == hosts
    assert [holding.target for holding in who(ledger, hosts[1] + "/gpu3", T0 + 5)] == [hosts[1]]
    assert who(ledger, ROW, T0 - 1) == ()


def test_who_names_the_pins_that_covered_a_host_then(ledger: Ledger) -> None:
    def pin(at: Instant, subject: str, minutes: int) -> Pin:
        said = {"at": at, "source": "operator", "subject": subject, "max_mhz": 900, "by": "ada"}
        return Pin(**said, reason="fan", expires_at=at + minutes * MINUTE)  # type: ignore[arg-type]

    command = lock(900, T0)
    own, racks, elsewhere = pin(T0, HOST, 10), pin(T0, f"{ROW}/r01", 60), pin(T0, f"{ROW}/r02", 60)
    back = Unpin(at=T0 + 20 * MINUTE, source="operator", subject=f"{ROW}/r01", by="ada")
    ledger.append([own, racks, elsewhere, command, back])
    assert [holding.pins for holding in who(ledger, HOST, T0 + 5 * MINUTE)] == [(own, racks)]
    assert [holding.pins for holding in who(ledger, HOST, T0 + 10 * MINUTE)] == [(racks,)]
    assert [holding.pins for holding in who(ledger, HOST, T0 + 20 * MINUTE)] == [()]


def test_answers_can_be_printed_as_json(ledger: Ledger) -> None:
    recorded = Recorded(ledger, Hosted())
    recorded.give(lock(1275, T0))
    recorded.wait(5 * SECOND)
    (answer,) = msgspec.json.decode(msgspec.json.encode(who(ledger, HOST, recorded.hosted.now)))
    assert answer["state"] == "in force"
    assert answer["command"]["type"] == "LockClocks"


# ---- why --------------------------------------------------------------------------------------


def beat(at: Instant) -> list[Event]:
    """The records of one beat that capped two hosts, with everything it rested on."""
    feeds: list[Event] = [
        FeedSample(at=at - 500, source="collector/feed", subject=f"ams1/ups-1/pdu-{n}", power_w=110_000.0)
        for n in (1, 2)
    ]
    lost = "a-sample-of-before"
    rollup = PowerRollup(
        at=at, source="rollup", subject=ROW, cause=(*(feed.id for feed in feeds), lost), power_w=220_000.0,
        upper_w=230_000.0, budget_w=260_000.0, coverage_ratio=1.0, known_at=at - 500, basis="meter",
    )  # fmt: skip
    forecast = PeakForecast(
        at=at, source="forecast", subject=ROW, cause=(rollup.id,), model="baseline", horizons_s=(40.0,),
        quantiles=(0.5,), values=((225_000.0,),),
    )  # fmt: skip
    alarm = Emergency(
        at=at, source="detect", subject=ROW, cause=(rollup.id,), kind="overload", phase="raised",
        because="0.85 of the budget", value=220_000.0, limit=208_000.0,
    )  # fmt: skip
    pin = Pin(
        at=at - 900,
        source="operator",
        subject=ROW,
        max_mhz=1300,
        by="ada",
        reason="x",
        expires_at=at + MINUTE,
    )
    decision = Decision(
        at=at, source="capping", subject=ROW, cause=(rollup.id, forecast.id, alarm.id, pin.id),
        policy="polca", mode="T1", since=at, because="p is 0.85, above 0.80",
        desired=tuple(
            Setting(target=host, max_mhz=1275, path="in_band", on_expiry="safe_share")
            for host in (HOST, HOST + "b")
        ),
    )  # fmt: skip
    asked = [
        msgspec.structs.replace(lock(1275, at, subject=host), cause=(decision.id, *decision.cause), id="")
        for host in (HOST, HOST + "b")
    ]
    return [pin, *feeds, rollup, forecast, alarm, decision, *asked]


def test_why_walks_from_the_samples_to_the_measured_effect(ledger: Ledger) -> None:
    ledger.append(beat(T0))
    command = next(event for event in ledger.of_type([LockClocks], subject=HOST))
    accepted = Accepted(at=T0 + 10, source="a", subject=HOST, command=command.id, epoch=1)
    verified = Verified(
        at=T0 + 900, source="a", subject=HOST, command=command.id, epoch=1, observed=1275.0, effect_w=-410.0
    )
    ledger.append([accepted, verified, *beat(T0 + 2000), *beat(T0 + 4000)])

    for asked in (command.id, command.id[:9], verified.id):
        walk = why(ledger, asked)
        assert walk.command == command
        assert walk.decision.because == "p is 0.85, above 0.80"
        assert walk.rollup is not None
        assert [sample.subject for sample in walk.samples] == ["ams1/ups-1/pdu-1", "ams1/ups-1/pdu-2"]
        assert walk.outside == 1
        assert [forecast.model for forecast in walk.forecasts] == ["baseline"]
        assert [emergency.kind for emergency in walk.emergencies] == ["overload"]
        assert [pin.by for pin in walk.pins] == ["ada"]
        assert walk.outcomes == (accepted, verified)
        assert walk.effect_w == -410.0
        assert walk.siblings == 1
        assert walk.row_after is not None
        assert walk.row_after.at == T0 + 2000  # the first look at the row after the read-back


def test_why_of_a_command_without_an_answer_yet_stops_there(ledger: Ledger) -> None:
    ledger.append(beat(T0))
    command = next(ledger.of_type([LockClocks]))
    walk = why(ledger, command.id)
    assert (walk.outcomes, walk.effect_w, walk.row_after) == ((), None, None)


def test_why_says_what_else_an_id_is(ledger: Ledger) -> None:
    ledger.append(beat(T0))
    commands = [event.id for event in ledger.of_type([LockClocks])]
    decision = next(ledger.of_type([Decision]))
    with pytest.raises(
        UnknownCommand, match=f"is a Decision of {ROW}, not a command; its commands are"
    ) as told:
        why(ledger, decision.id)
    assert all(command in str(told.value) for command in commands)
    with pytest.raises(UnknownCommand, match=r"is a PeakForecast of [\w/-]+, not a command$"):
        why(ledger, next(ledger.of_type([PeakForecast])).id)
    released = ReleaseAll(at=T0 + 3, source="operator", subject=ROW, by="ada", reason="fan")
    ledger.append([released])
    with pytest.raises(UnknownCommand, match=rf"of {ROW}, not a command: ada said so at .+, because: fan$"):
        why(ledger, released.id)
    with pytest.raises(UnknownId, match="begins with 'z'"):
        why(ledger, "z")
    with pytest.raises(AmbiguousId, match="'' is ambiguous"):
        why(ledger, "")


def test_why_of_an_outcome_or_command_without_its_past_says_so(ledger: Ledger) -> None:
    orphan = Verified(at=T0, source="a", subject=HOST, command="nobody", epoch=1, observed=1.0)
    ledger.append([orphan, lock(1275, T0)])
    with pytest.raises(UnknownCommand, match="and its command is not in this ledger"):
        why(ledger, orphan.id)
    with pytest.raises(UnknownCommand, match=r"the decision behind command \w+ is not in this ledger"):
        why(ledger, lock(1275, T0).id)


# ---- alerts -----------------------------------------------------------------------------------


def episode(
    kind: EmergencyKind, start: Instant, *steps: tuple[Phase, float | None], limit: float
) -> list[Event]:
    raised = ""
    told: list[Event] = []
    for n, (phase, value) in enumerate(steps):
        step = Emergency(
            at=start + n * MINUTE, source="detect", subject=ROW, kind=kind, phase=phase,
            because=f"{kind} {phase}", episode=raised, value=value, limit=limit,
        )  # fmt: skip
        raised = raised or step.episode
        told.append(step)
    return told


def test_alerts_are_episodes_from_raised_to_their_last_phase(ledger: Ledger) -> None:
    overload = episode(
        "overload", T0, ("raised", 102.0), ("escalated", 109.0), ("cleared", 70.0), limit=100.0
    )
    blind = episode("telemetry_loss", T0 + MINUTE, ("raised", 0.7), ("escalated", 0.2), limit=0.8)
    ledger.append([*overload, *blind])
    first, second = alerts(ledger)
    assert (first.kind, first.phase, first.raised_at, first.at) == (
        "overload",
        "cleared",
        T0,
        T0 + 2 * MINUTE,
    )
    assert (first.worst, first.limit, first.because) == (109.0, 100.0, "overload raised")
    assert (second.kind, second.phase) == ("telemetry_loss", "escalated")
    assert second.worst == 0.2  # too little is the worse way here


def test_alerts_since_leave_out_what_was_over_before_and_keep_what_is_open(ledger: Ledger) -> None:
    over = episode("overload", T0, ("raised", 102.0), ("cleared", 70.0), limit=100.0)
    still = episode("failover", T0, ("raised", None), limit=0.0)
    ledger.append([*over, *still])
    assert {alert.kind for alert in alerts(ledger, T0 + MINUTE)} == {"overload", "failover"}
    assert {alert.kind for alert in alerts(ledger, T0 + MINUTE + 1)} == {"failover"}


# ---- what people have said --------------------------------------------------------------------


def test_what_people_have_said_stands_until_it_ends_or_is_taken_back(ledger: Ledger) -> None:
    def pin(at: Instant, subject: str, until: Instant) -> Pin:
        return Pin(
            at=at, source="operator", subject=subject, max_mhz=900, by="ada", reason="x", expires_at=until
        )

    gone = pin(T0, HOST, T0 + MINUTE)
    taken = pin(T0, f"{ROW}/r01", T0 + 60 * MINUTE)
    older, newer = (pin(T0 + n, f"{ROW}/r02", T0 + 60 * MINUTE) for n in (1, 2))
    back = Unpin(at=T0 + 5, source="operator", subject=f"{ROW}/r01", by="ada")
    released = ReleaseAll(at=T0 + 3, source="operator", subject=ROW, by="ada", reason="x")
    resumed = Resume(at=T0 + 4, source="operator", subject=HOST, by="ada")
    ledger.append([gone, taken, older, newer, back, released, resumed])
    assert standing(ledger, T0 + 2 * MINUTE) == (newer, released, resumed)
    assert gone in standing(ledger, T0 + 6)


def test_a_brake_is_a_command_too(ledger: Ledger) -> None:
    engaged = brake(T0)
    ledger.append([engaged])
    assert isinstance(ledger.find(engaged.id), Brake)
    assert [holding.state for holding in who(ledger, HOST, T0 + MINUTE)] == ["asked"]
