"""What a row's beats say: recorded first, in order, and only while the row is this host's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import pytest
from support.rigs import row_text, setup_of

from runtime.clock import SystemClock
from runtime.hosts.row_log import INPUTS, TICKS, RowLog, Snapshot
from runtime.hosts.speaker import Said, Speaker, Unsent
from runtime.row_loop import Beat, RowLoop
from schemas import codec
from schemas.commands import Command
from schemas.decisions import Decision
from schemas.envelope import Event, Tick
from schemas.instants import SECOND, Instant
from schemas.outcomes import Refused
from schemas.samples import FeedSample, GpuFrame

SETUP = setup_of(row_text(2, budget_w=9_000.0))
ROW = SETUP.site.rows[0]
NOW: Instant = 1_700_000_000_000


class Bus:
    """A bus that remembers what it was told, in order; `ledger` and `words` say how it answers."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Event | bytes]] = []
        self.ledger: Callable[[], Awaitable[None]] = self.taken
        self.words: Callable[[], Awaitable[None]] = self.taken

    async def taken(self) -> None:
        """The brokers have it."""

    def _tell(
        self, what: str, event: Event | bytes, answer: Callable[[], Awaitable[None]]
    ) -> Awaitable[None]:
        self.told.append((what, event))
        return asyncio.ensure_future(answer())

    async def say(self, event: Event, key: str) -> Awaitable[None]:
        return self._tell("say", event, self.words)

    async def record(self, event: Event, key: str) -> Awaitable[None]:
        return self._tell("record", event, self.ledger)

    async def keep(self, snapshot: bytes, key: str) -> Awaitable[None]:
        return self._tell("keep", snapshot, self.taken)

    def of(self, what: str, kind: type[Event] = Event) -> list[Event]:
        return [event for told, event in self.told if told == what and isinstance(event, kind)]


class Row:
    """A row of this host, its log in a list, and its speaker at work."""

    def __init__(self, bus: Bus) -> None:
        self.log = RowLog(RowLoop(ROW, SETUP.policy, epoch=0), worker="ours")
        self.log.restore(None)
        self.said: list[Said] = []
        self.kept: list[Snapshot] = []
        self.now: Instant = NOW
        self._offsets = dict.fromkeys((*INPUTS, TICKS), 0)
        self.speaker = Speaker(
            self.log,
            bus,
            SystemClock(),
            site=SETUP.site.name,
            snapshot_ms=3_600 * SECOND,
            said=self.said.append,
            kept=lambda row, snapshot: self.kept.append(snapshot),
        )

    def take(self, topic: str, event: Event) -> list[Beat]:
        offset = self._offsets[topic]
        self._offsets[topic] += 1
        return self.log.take(topic, offset, event)

    def beat(self, *, share: float = 0.5) -> Beat:
        """The row's next beat, at a share of its budget, as its host does it."""
        self.now += 2 * SECOND
        watts = 150.0 * share
        for host in ROW.hosts:
            gpus = tuple(f"{host.path}-{gpu}" for gpu in range(8))
            power_w = (tuple(watts + gpu + self.now % 97 / 10 for gpu in range(8)),)
            self.take(
                "windrow.gpus",
                GpuFrame(at=self.now, source="c", subject=host.path, gpus=gpus, power_w=power_w),
            )
        meter = FeedSample(at=self.now, source="m", subject=ROW.meters[0], power_w=ROW.budget_w * share)
        self.take("windrow.power", meter)
        tick = self.log.propose(self.now)
        assert tick is not None
        (beat,) = self.take(TICKS, tick)
        assert self.log.mine(beat)
        self.speaker.add(beat)
        return beat


def played(play: Callable[[Row, Bus], Awaitable[None]]) -> None:
    """Run a play with the speaker at work."""

    async def run() -> None:
        bus = Bus()
        row = Row(bus)
        task = asyncio.create_task(row.speaker.run())
        try:
            await asyncio.wait_for(play(row, bus), 10)
        finally:
            task.cancel()
            row.speaker.close()

    asyncio.run(run())


def ids(events: Iterable[Event]) -> set[str]:
    return {event.id for event in events}


async def idle(row: Row) -> None:
    while not row.speaker.idle:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)


def test_records_go_before_commands_and_commands_before_the_rest() -> None:
    async def play(row: Row, bus: Bus) -> None:
        row.beat()
        beat = row.beat(share=1.05)
        assert beat.commands
        await idle(row)
        order = [what for what, event in bus.told if isinstance(event, Command) and event in beat.commands]
        assert order == ["record"] * len(beat.commands) + ["say"] * len(beat.commands)
        said = [event for event in bus.of("say") if event.at == beat.tick.at]
        assert said[: len(beat.commands)] == list(beat.commands)
        assert ids(beat.outputs) <= ids(said)
        assert [each.beat for each in row.said][-1] is beat

    played(play)


def test_no_command_that_loosens_goes_out_without_the_ledger_and_what_tightens_waits_half_a_second() -> None:
    async def play(row: Row, bus: Bus) -> None:
        never = asyncio.Event()

        async def hangs() -> None:
            await never.wait()

        bus.ledger = hangs
        first = row.beat()  # it may run uncapped: that loosens
        assert first.commands
        began = asyncio.get_running_loop().time()
        await idle(row)
        assert asyncio.get_running_loop().time() - began < 1.0
        assert not bus.of("say", Command)
        assert bus.of("say", Decision)
        braked = row.beat(share=1.05)
        await idle(row)
        assert bus.of("say", Command) == list(braked.commands)
        told = [event for event in braked.inputs if event.source == "runtime/ledger"]
        assert any(isinstance(event, Refused) for event in told)
        never.set()
        row.beat(share=1.05)
        await idle(row)
        recorded = bus.of("record")
        assert len(recorded) == len({event.id for event in recorded})  # the hung ones were not sent twice
        assert not row.speaker.ahead.waiting

    played(play)


def test_records_that_the_brokers_refuse_are_sent_again() -> None:
    async def play(row: Row, bus: Bus) -> None:
        async def refuses() -> None:
            raise Unsent("no")

        bus.ledger = refuses
        first = row.beat()
        await idle(row)
        assert row.speaker.ahead.trouble == "no"
        bus.ledger = bus.taken
        row.beat()
        await idle(row)
        assert [event.id for event in bus.of("record")].count(first.decision.id) == 2
        assert not row.speaker.ahead.waiting

    played(play)


def test_a_host_that_lost_the_row_records_what_it_did_and_says_nothing_more() -> None:
    async def play(row: Row, bus: Bus) -> None:
        row.beat()
        await idle(row)
        told = len(bus.of("say"))
        beat = row.beat(share=1.05)
        claim = Tick(
            at=row.now + 1,
            source="runtime/control-loop/theirs",
            subject=ROW.path,
            epoch=9,
            upto=beat.tick.upto,
        )
        row.take(TICKS, claim)
        assert not row.log.owns
        await idle(row)
        assert len(bus.of("say")) == told
        assert ids(beat.commands) <= ids(bus.of("record"))
        await row.speaker.snapshot(row.now)
        assert len(row.kept) == 1  # the one of before

    played(play)


@pytest.mark.parametrize("answers", [True, False])
def test_a_snapshot_is_kept_only_when_the_brokers_have_what_was_said_before_it(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.hosts.speaker._ANSWER_S", 0.2)

    async def play(row: Row, bus: Bus) -> None:
        gate = asyncio.Event()

        async def waits() -> None:
            await gate.wait()

        bus.words = waits
        row.beat()
        await asyncio.sleep(0.05)
        assert not row.kept
        if answers:
            gate.set()
        await asyncio.sleep(0.4)
        assert len(row.kept) == answers
        if row.kept:
            (taken,) = row.kept
            assert ("keep", taken.payload) in bus.told
            assert taken.covers[TICKS] == 1

    played(play)


def test_what_is_said_can_be_read() -> None:
    async def play(row: Row, bus: Bus) -> None:
        row.beat()
        await idle(row)
        for event in bus.of("say"):
            assert codec.decode(codec.encode(event)) == event

    played(play)
