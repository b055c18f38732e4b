"""A row's log: whoever reads it does the same beats, whoever dies, and one host owns the row."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import groupby

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rigs import START, Memory, in_band, rig_of, row_text, setup_of
from support.row_logs import Member, Partition, said

from controllers.policy import DEFAULT_POLICY
from runtime.hosts.row_log import HELD_AT_MOST, INPUTS, TICKS, RowLog
from runtime.metronome import phase_of
from runtime.row_loop import Beat, RowLoop
from runtime.wiring import TwinRig, on_twin, plant_of
from schemas import codec
from schemas.decisions import Decision
from schemas.emergencies import Emergency
from schemas.envelope import Event, Tick
from schemas.instants import MINUTE, SECOND, Instant
from schemas.operators import Pin
from schemas.outcomes import Refused, Verified
from schemas.samples import FeedSample, GpuFrame, UpsSample
from schemas.topics import BY_TYPE, topic_of
from twin.workload import Burst, LoadProfile

ROW = "lab1/row-a"
GPUS = topic_of(GpuFrame(at=0, source="", subject="", gpus=())).name
POWER = topic_of(FeedSample(at=0, source="", subject="", power_w=None)).name
OUTCOMES = BY_TYPE[Refused].name
POLICY = msgspec.structs.replace(
    in_band(), guardrails=msgspec.structs.replace(DEFAULT_POLICY.guardrails, dwell_ms=10 * SECOND)
)
BUSY = LoadProfile(
    requests_per_s=0.35,
    points=((0.0, 0.02), (10.0, 0.5), (30.0, 1.0), (70.0, 1.0), (90.0, 0.0)),
    bursts=(Burst(at_s=40.0, rise_s=5.0, hold_s=15.0, height_ratio=0.5),),
)
SETUP = setup_of(row_text(3, budget_w=15_500.0), POLICY)


def loop(epoch: int = 0) -> RowLoop:
    return RowLoop(SETUP.site.rows[0], POLICY, epoch=epoch)


@cache
def embedded() -> list[Beat]:
    """Two minutes of a busy row under the embedded host and epoch 1, with a UPS and a person's word."""
    beats: list[Beat] = []
    rig = rig_of(SETUP, load=BUSY, observe=[beats.append])
    rig.host.run(until=START + 60 * SECOND)
    now = rig.host.clock.now()
    rig.host.loop.offer([pin(now), alarm(now)])
    rig.host.run(until=START + 75 * SECOND)
    rig.plant.advance(START + 76_500)
    rig.host.loop.offer([ups(START + 76_500)])
    rig.host.turn(START + 76_500)
    rig.host.run(until=START + 2 * MINUTE)
    return beats


def pin(at: Instant) -> Pin:
    return Pin(
        at=at, source="operator", subject=ROW, max_mhz=1200, by="ada", reason="heat", expires_at=at + MINUTE
    )


def alarm(at: Instant) -> Emergency:
    return Emergency(
        at=at, source="runtime/ledger", subject=ROW, kind="ledger_loss", phase="raised", because="x"
    )


def ups(at: Instant) -> UpsSample:
    return UpsSample(at=at, source="collector/ups", subject="lab1/ups-1", power_w=4e4, on_battery=True)


def feed(at: Instant, power_w: float = 9_000.0) -> FeedSample:
    return FeedSample(at=at, source="collector/feed", subject="lab1/ups-1/pdu-1/feed-a", power_w=power_w)


def on_topics(events: tuple[Event, ...]) -> list[Event]:
    return [event for event in events if topic_of(event).name in INPUTS]


def besides(events: tuple[Event, ...]) -> list[Event]:
    return [event for event in events if topic_of(event).name not in INPUTS]


def test_the_embedded_run_went_through_trouble() -> None:
    """The claims below are about a row in which something happens."""
    modes = {beat.decision.mode for beat in embedded()}
    assert {"U", "T1", "T2b", "B"} <= modes
    assert any(beat.tick.at % POLICY.period_ms for beat in embedded())
    told = {type(event) for beat in embedded() for event in beat.inputs}
    assert {Pin, Emergency, UpsSample, GpuFrame} <= told


@given(seed=st.integers(0, 10_000))
@settings(max_examples=6)
def test_it_says_what_the_embedded_host_says_byte_for_byte(seed: int) -> None:
    """The same inputs, in any order between two beats, at the same instants."""
    chance, partition = random.Random(seed), Partition()
    host = Member(partition, loop(), "one")
    for beat in embedded():
        inputs = on_topics(beat.inputs)
        chance.shuffle(inputs)
        partition.put(inputs, others=chance.randint(0, 1))
        host.log.tell(besides(beat.inputs))
        host.catch_up(chance)
        assert host.propose(beat.tick.at) is not None, "it is due when the embedded host's row is"
        host.land()
        host.catch_up(chance)
        host.send()
    assert said(host.beats) == said(embedded())
    assert [tick.at for tick in partition.sent] == [beat.tick.at for beat in embedded()]


def lives(seed: int) -> tuple[Partition, list[Member]]:
    """The row's inputs over two minutes, and hosts that come, read late, die and come back: ticks that land
    late or never, snapshots now and then, deliveries repeated. The last host lives to the end."""
    chance, partition = random.Random(seed), Partition()
    everyone: list[Member] = []
    living: list[Member] = []

    def join() -> None:
        member = Member(partition, loop(), f"worker-{len(everyone)}", back=chance.randint(0, 30))
        member.catch_up(chance)
        everyone.append(member)
        living.append(member)

    for beat in embedded():
        partition.put(on_topics(beat.inputs), others=chance.randint(0, 1))
        if not living or (len(living) < 3 and chance.random() < 0.05):
            join()
        for step in range(6):
            member = chance.choice(living)
            match chance.randint(0, 9):
                case 0 | 1 | 2:
                    member.read(chance.choice(list(partition.topics)), chance.randint(1, 20))
                case 3 | 4:
                    member.catch_up(chance)
                case 5 | 6 | 7:
                    now = beat.tick.at + step
                    if chance.random() < 0.1:
                        member.log.tell([alarm(now)])
                    member.propose(now)
                    if chance.random() < 0.8:
                        member.land()
                case 8:
                    member.send()
                    if chance.random() < 0.2:
                        member.keep()
                case 9 if chance.random() < 0.2:
                    living.remove(member)  # what is on its way may land later, what is unsent is lost
                    if chance.random() < 0.5:
                        member.outbox.clear()
                    if not living:
                        join()
        if chance.random() < 0.3:
            chance.choice(everyone).land()
    while living:
        living.pop()
    join()
    end = embedded()[-1].tick.at
    for after in range(1, 60):
        living[0].propose(end + after * SECOND)
        living[0].land()
        living[0].catch_up(chance)
        living[0].send()
    assert living[0].log.owns
    return partition, everyone


@given(seed=st.integers(0, 1_000_000))
@settings(max_examples=25)
def test_whoever_dies_every_host_does_the_same_beats(seed: int) -> None:
    partition, everyone = lives(seed)
    observer = RowLog(loop(), worker="observer")
    true: dict[str, bytes] = {}
    order: list[Tick] = []
    cursors = dict.fromkeys(partition.topics, 0)
    chance = random.Random(seed)
    while left := [topic for topic, log in partition.topics.items() if cursors[topic] < len(log)]:
        topic = chance.choice(left)
        event = partition.topics[topic][cursors[topic]]
        for beat in observer.take(topic, cursors[topic], event) if event is not None else ():
            true[beat.tick.id] = msgspec.json.encode(beat.outputs)
            order.append(beat.tick)
        cursors[topic] += 1
    assert observer.waits == ""

    for member in everyone:
        for beat in member.beats:
            assert msgspec.json.encode(beat.outputs) == true[beat.tick.id]
            assert {command.lease.epoch for command in beat.commands} <= {beat.tick.epoch}
    epochs = [tick.epoch for tick in order]
    assert epochs == sorted(epochs), "no two epochs take turns"
    owners = {(tick.epoch, tick.source) for tick in order}
    assert len(owners) == len({epoch for epoch, _ in owners}), "an epoch has one owner"
    assert {tick.id for tick in partition.sent} <= true.keys(), "nothing is sent that the log does not hold"
    assert true.keys() <= {tick.id for tick in partition.sent}, "and nothing it holds is never sent"


def test_kills_and_takeovers_do_happen() -> None:
    """The claim above is about lives in which much goes wrong."""
    found = [lives(seed) for seed in range(8)]
    assert any(len({tick.epoch for tick in partition.sent}) >= 3 for partition, _ in found)
    assert any(member.log.ignored for _, everyone in found for member in everyone)
    assert any(len(partition.sent) > len({tick.id for tick in partition.sent}) for partition, _ in found)
    assert any(partition.kept for partition, _ in found)


def test_of_two_claims_of_one_epoch_the_first_in_the_log_wins() -> None:
    partition = Partition()
    one, other = Member(partition, loop(), "one"), Member(partition, loop(), "other")
    chance = random.Random(1)
    claims = [member.propose(START) for member in (one, other)]
    assert [claim.epoch for claim in claims if claim] == [1, 1]
    other.land()
    one.land()
    for member in (one, other):
        member.catch_up(chance)
    assert (one.log.owns, other.log.owns) == (False, True)
    assert len(other.unsent) == 1
    assert one.unsent == [], "who lost the race says nothing"
    assert said(one.beats) == said(other.beats), "and follows"


def test_a_host_that_reads_a_higher_epoch_stops_at_once_also_in_the_middle_of_a_beat() -> None:
    host = RowLog(loop(), worker="one")
    claim = host.propose(START)
    assert claim is not None
    (beat,) = host.take(TICKS, 0, claim)
    assert host.mine(beat)
    host.take(TICKS, 1, Tick(at=START + 1, source="other", subject=ROW, epoch=2, upto={POWER: 9}))
    assert host.waits, "the other's beat cannot be done yet"
    assert not host.owns
    assert not host.mine(beat)


def test_who_lost_a_row_claims_it_only_once_its_owner_is_silent() -> None:
    partition = Partition()
    chance = random.Random(1)
    one, other = Member(partition, loop(), "one"), Member(partition, loop(), "other")
    one.propose(START)
    one.land()
    one.catch_up(chance)
    one.send()
    other.catch_up(chance)
    other.propose(START + 500)  # the group gave the row to another
    other.land()
    for member in (one, other):
        member.catch_up(chance)
        member.send()
    assert (one.log.owns, other.log.owns) == (False, True)
    for second in range(2, 60, 2):
        for member in (other, one):
            tick = member.propose(START + second * SECOND)
            assert member is other or tick is None, "the owner speaks"
            member.land()
        for member in (one, other):
            member.catch_up(chance)
            member.send()
    for second in range(60, 66):
        assert one.propose(START + second * SECOND) is None
    taken = one.propose(START + 66 * SECOND)
    assert taken is not None
    assert taken.epoch == 3
    assert not taken.anew, "it has followed, and remembers"


def test_a_tick_of_an_older_epoch_counts_for_nothing_however_late_it_lands() -> None:
    partition = Partition()
    chance = random.Random(1)
    old, new = Member(partition, loop(), "old"), Member(partition, loop(), "new")
    old.propose(START)
    old.land()
    old.catch_up(chance)
    old.send()
    old.propose(START + 2 * SECOND)  # on its way when another takes over
    new.catch_up(chance)
    new.propose(START + 3 * SECOND)
    new.land()
    old.land()
    for member in (old, new):
        member.catch_up(chance)
    assert old.unsent == []
    assert [beat.tick.epoch for beat in new.beats] == [1, 2]
    assert new.log.ignored == old.log.ignored == 1
    assert said(old.beats) == said(new.beats)


def test_a_ups_on_battery_wants_a_beat_at_once_also_while_a_tick_is_under_way() -> None:
    partition, chance = Partition(), random.Random(1)
    host = Member(partition, loop(), "one")
    host.propose(START)
    partition.put([ups(START + 1)])
    host.catch_up(chance)
    assert host.propose(START + 2) is None, "one tick is under way at a time"
    host.land()
    host.catch_up(chance)
    host.send()
    assert host.log.next_beat(START + 3) == START + 3
    tick = host.propose(START + 3)
    host.land()
    host.catch_up(chance)
    assert tick is not None
    assert [event.subject for event in host.beats[-1].inputs] == ["lab1/ups-1"]
    assert host.beats[-1].emergencies[0].kind == "failover"


def test_a_tick_that_never_came_back_is_handed_out_again_the_same() -> None:
    host = Member(Partition(), loop(), "one")
    lost = host.propose(START)
    host.outbox.clear()
    for second in range(1, 6):
        assert host.propose(START + second * SECOND) is None
    assert host.propose(START + 6 * SECOND) == lost
    host.outbox *= 2  # and the first one came late after all
    host.land()
    host.catch_up(random.Random(1))
    assert len(host.beats) == 1, "one beat, however often its tick arrives"


def test_a_recorded_tick_waits_for_the_inputs_it_names() -> None:
    log = RowLog(loop(), worker="reader")
    tick = Tick(at=START, source="x", subject=ROW, epoch=1, anew=True, upto={GPUS: 1, POWER: 8})
    assert log.take(TICKS, 0, tick) == []
    assert POWER in log.waits or GPUS in log.waits
    assert log.propose(START) is None, "recorded beats come first"
    assert log.take(GPUS, 0, GpuFrame(at=START, source="c", subject=f"{ROW}/r01/h01", gpus=("a",))) == []
    assert log.take(POWER, 5, feed(START)) == []
    (beat,) = log.passed(POWER, 9)  # what was below is of other rows, or gone
    assert len(beat.inputs) == 2
    assert log.take(POWER, 5, feed(START)) == [], "delivered again"


def test_a_row_whose_recorded_tick_names_what_its_log_does_not_hold_can_begin_anew_above_it() -> None:
    """Its log was cut, or somebody forged the tick: nobody will ever do that beat."""
    log = RowLog(loop(), worker="one")
    claim = log.propose(START)
    assert claim is not None
    log.take(TICKS, 0, claim)
    log.take(POWER, 0, feed(START + 1))
    log.take(TICKS, 1, Tick(at=START + 2, source="forged", subject=ROW, epoch=7, upto={POWER: 9}))
    assert log.propose(START + MINUTE) is None, "recorded beats come first"
    assert not log.lacks({}), "where the log ends is not known"
    assert not log.lacks({POWER: 2}), "there is more to read"
    why = log.lacks({POWER: 1})
    assert why.endswith("waits for windrow.power up to 9, read to 1, and ends there")
    log.forget()
    log.remind([last_decision()])
    anew = log.propose(START + MINUTE)
    assert anew is not None
    assert (anew.epoch, anew.anew) == (8, True)
    (beat,) = log.take(TICKS, 2, anew)
    assert log.mine(beat)
    assert [type(event) for event in beat.inputs] == [FeedSample, Decision]
    assert beat.decision.mode == "B"
    assert log.redone == ()


def test_a_tick_that_names_less_than_was_taken_in_takes_nothing_twice() -> None:
    log = RowLog(loop(), worker="reader")
    for offset in range(3):
        log.take(POWER, offset, feed(START + offset))
    (first,) = log.take(
        TICKS, 0, Tick(at=START, source="x", subject=ROW, epoch=1, anew=True, upto={POWER: 2})
    )
    (back,) = log.take(TICKS, 1, Tick(at=START + 1, source="x", subject=ROW, epoch=1, upto={POWER: 0}))
    (on,) = log.take(TICKS, 2, Tick(at=START + 2, source="x", subject=ROW, epoch=1, upto={POWER: 3}))
    assert [len(beat.inputs) for beat in (first, back, on)] == [2, 0, 1]


def test_what_comes_after_a_tick_is_not_of_its_beat() -> None:
    log = RowLog(loop(), worker="reader")
    log.take(POWER, 3, feed(START))
    log.take(POWER, 4, feed(START + 1))
    (beat,) = log.take(TICKS, 0, Tick(at=START, source="x", subject=ROW, epoch=1, anew=True, upto={POWER: 4}))
    assert len(beat.inputs) == 1
    log.passed(GPUS, 70)
    kept = log.snapshot()
    assert kept is not None
    assert kept.covers == {POWER: 4, TICKS: 1, GPUS: 70}, "the second one is read again"


def test_a_row_of_which_nothing_is_remembered_begins_anew_with_what_the_ledger_knows() -> None:
    partition, chance = Partition(), random.Random(1)
    before = Member(partition, loop(), "before")
    for second in range(0, 10, 2):
        partition.put([feed(START + second * SECOND)])
        before.catch_up(chance)
        before.propose(START + second * SECOND)
        before.land()
        before.catch_up(chance)
        before.send()
    log = partition.topics
    log[TICKS][0] = None  # its beginning is gone for its age
    host = Member(partition, loop(), "after")
    host.log.above(7)
    host.catch_up(chance)
    assert host.log.cold
    assert host.beats == []
    host.log.remind([last_decision()])
    claim = host.propose(START + 20 * SECOND)
    assert claim is not None
    assert claim.anew
    assert claim.epoch == 8, "above what the ledger has seen, though the log of ticks forgot"
    host.land()
    host.catch_up(chance)
    (beat,) = host.beats
    assert [type(event) for event in beat.inputs] == [Decision]
    assert beat.decision.mode == "B", "a braked row stays braked"
    before.catch_up(chance)
    assert said(before.beats[-1:]) == said([beat]), "who remembered more begins anew with it"


def last_decision() -> Decision:
    return Decision(
        at=START + 20 * SECOND,
        source="runtime/restart",
        subject=ROW,
        policy="capping/polca",
        mode="B",
        since=START,
        desired=(),
        because="",
    )


def test_a_snapshot_of_another_policy_is_refused_in_words_and_its_epoch_kept() -> None:
    partition, chance = Partition(), random.Random(1)
    host = Member(partition, loop(), "one")
    host.log.above(4)
    host.propose(START)
    host.land()
    host.catch_up(chance)
    host.send()
    host.keep()
    other = msgspec.structs.replace(POLICY, lease_ms=POLICY.lease_ms + 1)
    log = RowLog(RowLoop(SETUP.site.rows[0], other, epoch=0), worker="two")
    assert log.restore(partition.kept) == {}
    assert "another site file or policy" in log.refusal
    claim = log.propose(START + SECOND)
    assert claim is not None
    assert claim.anew
    assert claim.epoch == 6


def on_the_bus(log: RowLog, rig: TwinRig, now: Instant, offsets: Counter[str]) -> list[Beat]:
    """A second of a host on the row's log, with the agents of a rig that ran until then."""

    def put(events: Iterable[Event]) -> list[Beat]:
        beats: list[Beat] = []
        for event in events:
            topic = topic_of(event).name
            beats += log.take(topic, offsets[topic], event)
            offsets[topic] += 1
        return beats

    rig.plant.advance(now)
    put(rig.host.samples.gather(now))
    tick = log.propose(now)
    beats = put([tick]) if tick is not None else []
    commands = [command for beat in beats if log.mine(beat) for command in beat.commands]
    put(rig.host.agents.step(commands, now))
    return beats


def test_a_row_whose_hosts_obeyed_a_higher_epoch_is_claimed_above_it_and_obeyed_again() -> None:
    """As when it ran on one machine before, or on brokers that are lost: the log knows nothing of it."""
    plant = plant_of(SETUP, seed=1, start=START, load=BUSY)
    rig = on_twin(plant, SETUP, ledger=Memory(), epoch=41)
    rig.host.run(until=START + 10 * SECOND)
    log = RowLog(loop(), worker="on Kafka")
    offsets: Counter[str] = Counter()
    beats: list[Beat] = []
    for second in range(11, 60):
        beats += on_the_bus(log, rig, START + second * SECOND, offsets)
    assert [epoch for epoch, _ in groupby(beat.tick.epoch for beat in beats)] == [1, 42]
    refused = {e.detail for beat in beats for e in beat.inputs if isinstance(e, Refused)}
    assert "epoch 1 is fenced: 41 has been seen" in refused
    assert any(isinstance(event, Verified) and event.epoch == 42 for beat in beats for event in beat.inputs)
    assert log.owns


def test_a_host_claims_no_row_again_for_what_its_agents_say_of_another_owner() -> None:
    """It hears of the higher epoch from an agent, and has not yet read the claim that stands in the log."""
    host = RowLog(loop(), worker="one")
    claim = host.propose(START)
    assert claim is not None
    host.take(TICKS, 0, claim)
    word = Refused(
        at=START + 1, source="agent", subject=f"{ROW}/r01/h01", command="x", epoch=1, fenced_by=2, detail=""
    )
    host.take(OUTCOMES, 0, word)
    own = host.propose(START + 2 * SECOND)
    assert own is not None
    assert own.epoch == 1, "it may be behind: its next tick comes back after whatever is in the log"
    host.take(TICKS, 1, Tick(at=START + 1, source="other", subject=ROW, epoch=2))
    host.take(TICKS, 2, own)
    assert (host.epoch, host.owns, host.ignored) == (2, False, 1)


def test_no_tick_under_a_foreign_subject_or_without_an_epoch_beats_the_row() -> None:
    log = RowLog(loop(), worker="one")
    assert log.take(TICKS, 0, Tick(at=START, source="x", subject="lab1/row-z", epoch=9, anew=True)) == []
    assert log.take(TICKS, 1, Tick(at=START, source="x", subject=ROW)) == []
    assert (log.ignored, log.epoch) == (2, 0)


def test_a_word_in_a_tick_that_cannot_be_read_is_counted_and_the_beat_goes_on() -> None:
    log = RowLog(loop(), worker="one")
    nested = codec.encode(Tick(at=START, source="x", subject=ROW)).decode()
    tick = Tick(at=START, source="x", subject=ROW, epoch=1, anew=True, besides=("{}", "no json", nested))
    (beat,) = log.take(TICKS, 0, tick)
    assert beat.inputs == ()
    assert log.unread == 3


def test_a_row_that_cannot_be_beaten_asks_for_no_more_than_it_can_hold() -> None:
    log = RowLog(loop(), worker="one")
    for offset in range(HELD_AT_MOST):
        assert log.wants(POWER)
        log.take(POWER, offset, feed(START + offset))
    assert not log.wants(POWER)
    assert log.wants(GPUS)
    log.take(TICKS, 0, Tick(at=START, source="x", subject=ROW, epoch=1, anew=True, upto={POWER: 5_000}))
    assert log.wants(POWER), "a recorded beat needs more of them"


def test_alarms_of_a_host_that_loses_the_row_are_forgotten_and_those_of_its_owner_told_once() -> None:
    partition, chance = Partition(), random.Random(1)
    one, other = Member(partition, loop(), "one"), Member(partition, loop(), "other")
    one.propose(START)
    one.land()
    one.catch_up(chance)
    one.send()
    one.log.tell([alarm(START + 1)])
    other.catch_up(chance)
    other.log.tell([alarm(START + 2)])
    for after in range(1, 4):
        other.propose(START + after * 2 * SECOND)
        other.land()
        for member in (one, other):
            member.catch_up(chance)
            member.send()
    told = [event for beat in one.beats for event in beat.inputs if isinstance(event, Emergency)]
    assert [event.at for event in told] == [START + 2]
    assert said(one.beats) == said(other.beats)


def test_beats_come_on_a_grid_of_the_rows_own() -> None:
    partition, chance = Partition(), random.Random(1)
    host = Member(partition, loop(), "one")
    for now in range(START, START + 20 * SECOND, 250):
        host.propose(now)
        host.land()
        host.catch_up(chance)
        host.send()
    first, *gaps = (b.tick.at - a.tick.at for a, b in itertools.pairwise(host.beats))
    assert first < POLICY.period_ms, "the first is a claim, at once"
    assert set(gaps) == {POLICY.period_ms}
    phase = phase_of(host.log.loop.row.path, POLICY.period_ms)
    assert {(beat.tick.at - phase) % POLICY.period_ms // 250 for beat in host.beats[1:]} == {0}
    assert phase != phase_of("demo/row-other", POLICY.period_ms)
