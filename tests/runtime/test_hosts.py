"""The two hosts agree, and what the embedded one does in an hour of trouble."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rigs import START, Memory, in_band, rig_of, row_text, setup_of

from collectors.recording import read_recording
from controllers.policy import DEFAULT_POLICY
from runtime.control_loop import ControlLoop
from runtime.hosts.replay import as_recorded, is_input, on_the_grid
from runtime.ledger.standing import last_decisions, last_troubles
from runtime.ledger.store import Ledger, LedgerUnwritable
from runtime.recorder import Recorder, header_of
from runtime.row_loop import Beat, RowLoop
from schemas.commands import Brake, Command, LockClocks
from schemas.emergencies import Emergency
from schemas.envelope import Event, Tick
from schemas.instants import MINUTE, SECOND, Instant
from schemas.operators import Pin, ReleaseAll
from schemas.outcomes import Lapsed, Refused, Verified
from schemas.samples import FeedSample, GpuFrame, UpsSample
from twin.workload import Burst, LoadProfile

BUSY = LoadProfile(
    requests_per_s=0.35,
    points=((0.0, 0.01), (30.0, 0.02), (60.0, 0.5), (90.0, 1.0), (150.0, 1.0), (180.0, 0.0)),
    bursts=(Burst(at_s=100.0, rise_s=10.0, hold_s=30.0, height_ratio=0.5),),
)
"""Four minutes that carry a row through every cap and back."""

POLICY = msgspec.structs.replace(
    in_band(), guardrails=msgspec.structs.replace(DEFAULT_POLICY.guardrails, dwell_ms=10 * SECOND)
)
TIGHT_W = 42_000.0
"""Eight DGX-A100 servers (52 kW nameplate) on this are oversubscribed by a quarter."""


class Full(Memory):
    """A ledger whose disk is full while `full` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False

    def append(self, events: Sequence[Event]) -> None:
        if self.full:
            raise LedgerUnwritable("ledger.sqlite: database or disk is full")
        super().append(events)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, list[Beat]]:
    """Five minutes of a busy, oversubscribed row, run by the embedded host and recorded."""
    path = tmp_path_factory.mktemp("recording") / "row.jsonl.gz"
    setup = setup_of(row_text(8, budget_w=TIGHT_W), POLICY)
    beats: list[Beat] = []
    ledger = Full()
    with Recorder(path, header_of(setup, 1, START, "a test")) as recorder:
        rig = rig_of(setup, load=BUSY, ledger=ledger, observe=[beats.append, recorder.write])
        rig.plant.fail_gpu("lab1/row-a/r01/h01", 3, "lost")
        rig.host.run(until=START + 4 * MINUTE)
        # What else a row is told: a person's word, a ledger that is full, and a UPS between two beats.
        pin = Pin(
            at=rig.host.clock.now(),
            source="operator",
            subject="lab1/row-a/r02",
            max_mhz=1200,
            by="ada",
            reason="hot aisle",
            expires_at=START + 10 * MINUTE,
        )
        rig.host.loop.offer([pin])
        ledger.full = True
        rig.host.run(until=START + 250 * SECOND)
        ledger.full = False
        rig.host.run(until=START + 261 * SECOND)
        rig.plant.advance(START + 262_500)
        rig.host.loop.offer([ups(START + 262_500, on_battery=True)])
        rig.host.turn(START + 262_500)
        rig.host.run(until=START + 5 * MINUTE)
    return path, beats


def ups(at: Instant, *, on_battery: bool) -> UpsSample:
    return UpsSample(at=at, source="collector/ups", subject="lab1/ups-1", power_w=4e4, on_battery=on_battery)


def loop_of(path: pathlib.Path) -> ControlLoop:
    header = read_recording(path).header
    return ControlLoop(setup_of(header.site).site, POLICY, epoch=header.epoch)


def test_a_recorded_run_went_through_caps_and_back(recorded: tuple[pathlib.Path, list[Beat]]) -> None:
    """The claims below are about a run in which something happened."""
    _, beats = recorded
    modes = [mode for mode, _ in itertools.groupby(beat.decision.mode for beat in beats)]
    assert {"U", "T1", "T2a", "T2b", "B"} <= set(modes)
    told = {type(event) for beat in beats for event in beat.inputs}
    assert {Pin, Emergency, UpsSample, GpuFrame} <= told
    assert any(beat.tick.at % POLICY.period_ms for beat in beats), "one beat did not wait for its turn"
    assert any(isinstance(event, Verified) for beat in beats for event in beat.inputs)
    assert any(fault for beat in beats for e in beat.inputs if isinstance(e, GpuFrame) for fault in e.faults)


def test_replay_says_what_the_embedded_host_said_byte_for_byte(
    recorded: tuple[pathlib.Path, list[Beat]],
) -> None:
    path, beats = recorded
    replayed = list(as_recorded(read_recording(path).events, loop_of(path)))
    assert len(replayed) == len(beats)
    for live, (again, said_then) in zip(beats, replayed, strict=True):
        assert msgspec.json.encode(again.outputs) == msgspec.json.encode(live.outputs)
        assert said_then == live.outputs


def test_replay_twice_yields_the_same(recorded: tuple[pathlib.Path, list[Beat]]) -> None:
    path, _ = recorded
    runs = [
        [b.outputs for b in on_the_grid(read_recording(path).events, loop_of(path), POLICY)] for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert any(beat for beat in runs[0])


@given(cuts=st.lists(st.integers(0, 400), max_size=30), data=st.data())
@settings(max_examples=15)
def test_cutting_the_stream_elsewhere_changes_nothing(
    recorded: tuple[pathlib.Path, list[Beat]], cuts: list[int], data: st.DataObject
) -> None:
    """The same events in other batches, and shuffled between two beats, give the same messages."""
    _, beats = recorded
    row = setup_of(row_text(8, budget_w=TIGHT_W)).site.rows[0]
    loop = RowLoop(row, POLICY, epoch=1)
    stream: list[Event] = []
    for beat in beats[:40]:
        stream += [*data.draw(st.permutations(beat.inputs[-12:])), *beat.inputs[:-12], beat.tick]
    state = loop.initial()
    said: list[Beat] = []
    for start, end in itertools.pairwise([0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]):
        state, found = loop.step(state, stream[start:end])
        said += found
    assert [beat.outputs for beat in said] == [beat.outputs for beat in beats[:40]]


def test_inputs_and_outputs_of_a_recording_are_told_apart(recorded: tuple[pathlib.Path, list[Beat]]) -> None:
    _, beats = recorded
    assert all(is_input(event) for beat in beats for event in beat.inputs)
    assert not any(is_input(event) for beat in beats for event in beat.outputs)


class Watching(Memory):
    """A ledger that also sees what reaches the agents, to compare the order."""

    def __init__(self) -> None:
        super().__init__()
        self.unrecorded: list[Command] = []

    def watch(self, commands: Sequence[Command]) -> None:
        known = {event.id for event in self.events}
        self.unrecorded += [command for command in commands if command.id not in known]


def test_no_command_reaches_an_agent_before_the_ledger_has_it() -> None:
    ledger = Watching()
    rig = rig_of(setup_of(row_text(8, budget_w=TIGHT_W), POLICY), load=BUSY, ledger=ledger)
    step = rig.host.agents.step
    sent: list[Command] = []

    def watched(commands: Sequence[Command], now: Instant) -> Sequence[Event]:
        ledger.watch(commands)
        sent.extend(commands)
        return step(commands, now)

    rig.host.agents.step = watched  # type: ignore[method-assign]
    rig.host.run(until=START + 2 * MINUTE)
    assert len(sent) > 16
    assert ledger.unrecorded == []


def test_a_full_ledger_disk_stops_loosening_keeps_tightening_and_raises_an_alarm() -> None:
    ledger = Full()
    beats: list[Beat] = []
    rig = rig_of(
        setup_of(row_text(8, budget_w=TIGHT_W), POLICY), load=BUSY, ledger=ledger, observe=[beats.append]
    )
    rig.host.run(until=START + 40 * SECOND)
    sent: list[Command] = []
    step = rig.host.agents.step

    def watched(commands: Sequence[Command], now: Instant) -> Sequence[Event]:
        sent.extend(commands)
        return step(commands, now)

    rig.host.agents.step = watched  # type: ignore[method-assign]
    ledger.full = True
    before = len(ledger.events)
    rig.host.run(until=START + 4 * MINUTE)  # past the peak, and down again

    assert len(ledger.events) == before
    locks = [command for command in sent if isinstance(command, LockClocks)]
    assert any(command.max_mhz < 1410 for command in locks), "it went on tightening"
    last: dict[str, int] = {}
    for command in locks:
        assert command.max_mhz <= last.get(command.target, 1410), "nothing was loosened"
        last[command.target] = command.max_mhz
    emergencies = [
        e for beat in beats for e in beat.inputs if isinstance(e, Emergency) and e.kind == "ledger_loss"
    ]
    assert [e.phase for e in emergencies] == ["raised"]
    assert "full" in emergencies[0].because
    assert any("ledger cannot be written" in text for beat in beats for text in beat.decision.overruled)

    ledger.full = False
    rig.host.run(until=START + 5 * MINUTE)
    commands = {event.id for event in ledger.events if isinstance(event, Command)}
    assert {command.id for command in sent} <= commands, "every record waited and none was dropped"
    recovered = [
        e for beat in beats for e in beat.inputs if isinstance(e, Emergency) and e.kind == "ledger_loss"
    ]
    assert [(e.phase, e.episode) for e in recovered] == [
        ("raised", recovered[0].id),
        ("cleared", recovered[0].id),
    ]


def test_a_ups_on_battery_brakes_the_row_without_waiting_for_the_next_beat() -> None:
    """The sensing budget: 10 s on the UPS, 5 s for the brake to bite."""
    beats: list[Beat] = []
    setup = setup_of(row_text(8, budget_w=60_000.0), POLICY)
    rig = rig_of(setup, load=BUSY, observe=[beats.append])
    rig.host.run(until=START + 61 * SECOND)
    told = rig.host.clock.now() + 500  # between two beats
    rig.plant.advance(told)
    rig.host.loop.offer([ups(told, on_battery=True)])
    rig.host.turn(told)
    assert beats[-1].tick.at == told, "the row was beaten at once"
    assert beats[-1].decision.mode == "B"
    assert "UPS" in beats[-1].decision.because
    assert {command.target for command in beats[-1].commands if isinstance(command, Brake)} == set(
        setup.site.hosts
    )


def test_an_overloaded_row_is_back_under_its_budget_before_the_ups_deadline() -> None:
    """A step far above the budget: the brake has bitten within 9 s of it (2 s sensing twice, 5 s path)."""
    step = LoadProfile(requests_per_s=1.2, points=((0.0, 0.005), (119.0, 0.005), (120.0, 1.0), (400.0, 1.0)))
    text = row_text(8, budget_w=TIGHT_W, paths=("out_of_band", "brake", "in_band"))
    rig = rig_of(setup_of(text, DEFAULT_POLICY), load=step)
    over: list[tuple[Instant, float]] = []
    for second in range(1, 241):
        rig.host.run(until=START + second * SECOND)
        over.append((second, rig.plant.power_w))
    above = [second for second, power in over if power > TIGHT_W]
    assert above, "the step passed the budget"
    assert max(above) - min(above) <= 9
    assert rig.plant.tripped_at is None


def test_hosts_fall_to_their_safe_shares_when_the_controller_dies() -> None:
    setup = setup_of(row_text(8, budget_w=TIGHT_W), POLICY)
    flat = LoadProfile(requests_per_s=2.0, points=((0.0, 1.0),))
    rig = rig_of(setup, load=flat)
    rig.host.run(until=START + 30 * SECOND)
    died = rig.host.clock.now()
    outcomes: list[Event] = []
    for second in range(1, 130):
        now = died + second * SECOND
        rig.plant.advance(now)
        outcomes += rig.host.agents.step((), now)
    lapsed = {event.subject for event in outcomes if isinstance(event, Lapsed)}
    assert lapsed == set(setup.site.hosts)
    assert (
        max(event.at for event in outcomes if isinstance(event, Lapsed))
        <= died + setup.policy.lease_ms + 2 * SECOND
    )
    assert rig.plant.power_w <= TIGHT_W
    assert sum(share.host_w for share in setup.shares.values()) <= TIGHT_W


def test_silence_of_every_sensor_never_loosens_and_ends_at_the_safe_share() -> None:
    setup = setup_of(row_text(8, budget_w=TIGHT_W), POLICY)
    beats: list[Beat] = []
    rig = rig_of(setup, load=BUSY, observe=[beats.append])
    rig.host.run(until=START + 100 * SECOND)
    mark = len(beats)
    for meter in (*rig.plant.meters.values(), *rig.plant.upses.values()):
        meter.fail("silent")
    for host in rig.plant.hosts:
        for gpu in range(host.gpu_count):
            rig.plant.fail_gpu(host.path, gpu, "hung")
    rig.host.run(until=START + 6 * MINUTE)
    silent = beats[mark:]
    ceilings: dict[str, int] = {}
    for command in (c for beat in silent for c in beat.commands if isinstance(c, LockClocks)):
        assert command.max_mhz <= ceilings.get(command.target, 1410)
        ceilings[command.target] = command.max_mhz
    assert any(beat.decision.refusal for beat in silent)
    assert any("ALARM" in beat.decision.because for beat in silent)
    for host in rig.plant.hosts:
        held = rig.host.loop.view("lab1/row-a", rig.host.clock.now()).control(host.path)
        assert held.ceiling(rig.host.clock.now()) is None, "no lease was renewed"
    kinds = {e.kind for beat in silent for e in beat.emergencies}
    assert "telemetry_loss" in kinds


def test_a_stranger_is_counted_and_steers_nothing() -> None:
    setup = setup_of(row_text(8, budget_w=TIGHT_W), POLICY)
    loop = ControlLoop(setup.site, POLICY, epoch=1)
    loop.offer([FeedSample(at=START, source="x", subject="elsewhere/ups-9", power_w=9e9)])
    assert loop.strangers == {"FeedSample": 1}
    assert not loop.dirty
    assert loop.beat("lab1/row-a", START).inputs == ()


@pytest.mark.parametrize("step_s", [-3, -30, -3600, 30, 3600])
def test_a_row_is_held_although_its_hosts_clock_is_set(step_s: int) -> None:
    """The clock steps in the middle of the rise: beats go on, and the row stays under its breaker."""
    setup = setup_of(row_text(8, budget_w=TIGHT_W), POLICY)
    beats: list[Beat] = []
    rig = rig_of(setup, load=BUSY, observe=[beats.append])
    rig.host.run(until=START + 80 * SECOND)
    plant, told = rig.plant, rig.host.clock

    class Stepped:
        """The same time, told as the clock that was set tells it."""

        def now(self) -> Instant:
            return told.now() + step_s * SECOND

        def monotonic(self) -> float:
            return told.monotonic()

        def sleep_until(self, at: Instant) -> None:
            told.sleep_until(at - step_s * SECOND)

    rig.host.clock = Stepped()
    mark = len(beats)
    rig.host.run(until=START + (180 + step_s) * SECOND)
    after = beats[mark:]
    assert len(after) >= 45, "the row was beaten on"
    assert any(beat.decision.mode in ("T2a", "T2b", "B") for beat in after)
    known = [beat for beat in after if not beat.decision.refusal]
    assert len(known) > len(after) / 2, "and was not blind for the length of the step"
    assert not plant.tripped
    assert plant.statistics().over_budget_s <= 6
    asked = {command.id for beat in after for command in beat.commands}
    refused = [e for beat in after for e in beat.inputs if isinstance(e, Refused) and e.command in asked]
    assert refused == [], "the agents took what the set clock issued"


def test_a_release_gives_an_oversubscribed_row_to_its_safe_shares_and_stops_commanding_it() -> None:
    setup = setup_of(row_text(8, budget_w=TIGHT_W), POLICY)
    said: list[list[Event]] = [
        [],
        [ReleaseAll(at=START, source="operator", subject="lab1", by="ada", reason="drill")],
    ]
    beats: list[Beat] = []
    rig = rig_of(setup, load=BUSY, observe=[beats.append])
    rig.host.operators = lambda now: said.pop() if now >= START + 30 * SECOND and said else []
    rig.host.run(until=START + 90 * SECOND)
    after = [beat for beat in beats if beat.tick.at > START + 32 * SECOND]
    assert not any(beat.commands for beat in after)
    assert any("ada" in text for beat in after for text in beat.decision.overruled)
    lapsed = {event.subject for beat in beats for event in beat.inputs if isinstance(event, Lapsed)}
    assert lapsed == set(setup.site.hosts)


@pytest.mark.parametrize("mode", ["T2b", "B"])
def test_a_restarted_controller_goes_on_from_the_mode_it_left(tmp_path: pathlib.Path, mode: str) -> None:
    """It would else take a capped or braked row for one that may run free, and loosen it."""
    setup = setup_of(row_text(8, budget_w=TIGHT_W), POLICY)
    surge = msgspec.structs.replace(BUSY, requests_per_s=0.35 if mode == "T2b" else 3.0)
    beats: list[Beat] = []
    with Ledger(tmp_path / "ledger.sqlite", durable=False) as ledger:
        rig = rig_of(setup, load=surge, ledger=ledger, observe=[beats.append])
        while not beats or beats[-1].decision.mode != mode:
            rig.host.run(until=rig.host.clock.now() + 2 * SECOND)
            assert rig.host.clock.now() < START + 3 * MINUTE
        left, now = beats[-1].decision, rig.host.clock.now()
        loop = ControlLoop(setup.site, POLICY, epoch=2)
        loop.offer(last_decisions(ledger, loop.loops, now))
    rig.host.loop = loop
    rig.host.run(until=now + 4 * SECOND)
    first = next(beat for beat in beats if beat.tick.at >= now)
    assert (first.decision.mode, first.decision.since) == (mode, left.since)
    asked = {c.max_mhz for c in first.commands if isinstance(c, LockClocks | Brake)}
    assert asked <= {setting.max_mhz for setting in left.desired}
    assert all(is_input(event) for event in first.inputs), "and a recording of it replays"


def test_a_failover_that_a_restart_interrupts_still_holds_the_brake(tmp_path: pathlib.Path) -> None:
    setup = setup_of(row_text(8, budget_w=60_000.0), POLICY)
    with Ledger(tmp_path / "ledger.sqlite", durable=False) as ledger:
        rig = rig_of(setup, load=BUSY, ledger=ledger)
        rig.host.run(until=START + 60 * SECOND)
        rig.plant.fail_ups()
        rig.host.run(until=START + 70 * SECOND)
        now = rig.host.clock.now()
        loop = ControlLoop(setup.site, POLICY, epoch=2)
        loop.offer([*last_troubles(ledger, now), *last_decisions(ledger, loop.loops, now)])
        beat = loop.beat("lab1/row-a", now)
    assert beat.decision.mode == "B"
    assert [(e.kind, e.phase) for e in beat.emergencies] == [("failover", "raised")]
    assert all(isinstance(command, Brake) for command in beat.commands)


def test_a_release_waits_for_the_ledger_to_take_it() -> None:
    """Giving back may loosen, and nothing loosens unrecorded."""
    setup = setup_of(row_text(8, budget_w=60_000.0), POLICY)
    ledger = Full()
    rig = rig_of(setup, ledger=ledger)
    rig.host.run(until=START + 10 * SECOND)
    released: list[str] = []
    release = rig.host.agents.release

    def watched(subject: str, now: Instant) -> Sequence[Event]:
        released.append(subject)
        return release(subject, now)

    rig.host.agents.release = watched  # type: ignore[method-assign]
    ledger.full = True
    word = ReleaseAll(at=rig.host.clock.now(), source="operator", subject="lab1", by="ada", reason="drill")
    rig.host.loop.offer([word])
    rig.host.run(until=START + 20 * SECOND)
    assert released == []
    ledger.full = False
    rig.host.run(until=START + 30 * SECOND)
    assert released == ["lab1"]
    assert word in ledger.events


def test_the_ledger_of_a_run_is_whole(tmp_path: pathlib.Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite", durable=False) as ledger:
        rig = rig_of(setup_of(row_text(8, budget_w=TIGHT_W), POLICY), load=BUSY, ledger=ledger)
        rig.host.run(until=START + 3 * MINUTE)
        assert ledger.verify() == ""
        assert not any(isinstance(event, Refused) for event in ledger.of_type([Refused]))
        verified = list(ledger.of_type([Verified]))
        assert verified
        assert not any(isinstance(event, Tick) for event in ledger.of_type([Tick]))
