"""Orders handed to agents and what they say published; reflexes fed; all without a bus."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.agents import SHARE_MHZ, SHARE_W, Hosted, lock, share_of
from support.machines import eventually

from actuators.leases import LeaseTimer
from actuators.reflex import Hold, Reflex
from collectors.base import CollectorError
from runtime.actuating import Actuation, ActuationMetrics
from runtime.agents import TimedAgents
from runtime.bus.reader import Received
from runtime.cli.app import run
from runtime.clock import SystemClock
from runtime.reflexes import Reflexes
from schemas import codec
from schemas.emergencies import Emergency
from schemas.envelope import Event
from schemas.instants import Instant, Span
from schemas.operators import ReleaseAll
from schemas.outcomes import Accepted, Outcome, Verified
from schemas.samples import GpuFrame

ROW = "ams1/row-a"


class Sink:
    """What was published."""

    def __init__(self) -> None:
        self.said: list[Event] = []

    def send(self, events: Sequence[Event]) -> None:
        self.said += events


class Kept:
    """A host in memory under a timer, and its actuation without a bus."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.stand = Hosted()
        self.path = self.stand.host.path
        self.sink = Sink()
        self.metrics = ActuationMetrics()
        self.actuation = Actuation(
            hosts=[self.stand.host],
            reader=None,  # type: ignore[arg-type]  # messages are handed in
            publisher=self.sink,  # type: ignore[arg-type]
            clock=self.clock,
            metrics=self.metrics,
            oversubscribed=frozenset([self.path]),
        )
        self.timer = LeaseTimer(
            {self.path: self.stand.agent}, self.clock, source="actuator", heard=self.actuation.told
        )
        self.timer.start()

    def read(self, *events: Event, topic: str = "windrow.commands") -> None:
        """Messages that came together."""
        messages = [
            Received(
                "windrow.operators" if isinstance(event, ReleaseAll) else topic,
                0,
                number,
                ROW.encode(),
                codec.encode(event),
                0,
            )
            for number, event in enumerate(events)
        ]
        self.actuation.turn(messages, self.timer, TimedAgents(self.timer, frozenset([self.path])))

    def until(self, *kinds: type[Outcome], of: Event) -> None:
        """Wait for outcomes of a command, in their order."""

        def there() -> bool:
            said = [
                event for event in self.sink.said if isinstance(event, Outcome) and event.command == of.id
            ]
            return [type(each) for each in said][: len(kinds)] == list(kinds)

        eventually(there, f"{kinds} of {of}")


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept()
    yield made
    made.timer.close()


def test_a_command_is_handed_on_and_its_outcomes_are_published_with_how_long_it_took(kept: Kept) -> None:
    command = lock(1275, kept.clock.now())
    kept.read(command)
    kept.until(Accepted, Verified, of=command)
    assert set(kept.stand.boards.clocks) == {1275}
    text = kept.metrics.exposition().decode()
    assert "windrow_actuator_accepted_seconds_count 1.0" in text
    assert "windrow_actuator_verified_seconds_count 1.0" in text
    assert 'windrow_actuator_outcomes_total{type="Verified"} 1.0' in text


def test_a_release_takes_its_place_among_the_commands(kept: Kept) -> None:
    now = kept.clock.now()
    first = lock(1275, now - 2)
    word = ReleaseAll(at=now - 1, source="operator", subject=ROW, by="ada", reason="maintenance")
    kept.read(word, first)
    kept.until(Accepted, of=first)
    eventually(
        lambda: set(kept.stand.boards.clocks) == {SHARE_MHZ} and set(kept.stand.boards.limits) == {SHARE_W},
        "released, in an oversubscribed row, is the safe share",
    )


def test_what_nobody_here_is_meant_by_reaches_no_agent(kept: Kept) -> None:
    before = list(kept.stand.boards.writes)
    kept.read(lock(900, kept.clock.now(), subject="ams1/row-a/r01/h02"))
    kept.timer.beat()
    assert kept.stand.boards.writes == before


def test_a_write_that_bites_late_is_read_back_soon_after_it_does(kept: Kept) -> None:
    """50 ms after the write, on a timer of 250 ms."""
    boards, landed = kept.stand.boards, threading.Event()
    boards.latencies["in_band"] = 1
    command = lock(1275, kept.clock.now())
    kept.read(command)
    kept.until(Accepted, of=command)
    time.sleep(0.05)
    boards.advance(1)
    began = time.monotonic()
    landed.set()
    kept.until(Accepted, Verified, of=command)
    assert time.monotonic() - began < 0.2


def test_a_mistake_of_ours_in_one_turn_does_not_end_the_next(kept: Kept) -> None:
    command = lock(1275, kept.clock.now())
    good = Received("windrow.commands", 0, 1, ROW.encode(), codec.encode(command), 0)
    turns = iter([["no message at all"], [good]])

    class Reading:
        def poll(self, timeout_s: float, most: int) -> object:
            return next(turns, [])

    kept.actuation.reader = Reading()  # type: ignore[assignment]
    kept.actuation.run(kept.timer, lambda: set(kept.stand.boards.clocks) == {1275})
    assert kept.actuation.faults == 1


# ---- reflexes ----


class Thermometer:
    """A collector whose host is as hot as the test says, or away."""

    name, period_ms = "test", 500

    def __init__(self) -> None:
        self.core_c = 60.0
        self.away = ""
        self.closed = False

    def poll(self, now: Instant) -> Sequence[Event]:
        if self.away:
            raise CollectorError(self.away)
        return [
            GpuFrame(
                at=now, source="test", subject=f"{ROW}/r01/h01", gpus=("a", "b"),
                power_w=((300.0, 300.0),), core_c=(self.core_c, 60.0),
            )
        ]  # fmt: skip

    def close(self) -> None:
        self.closed = True


@contextmanager
def watched(kept: Kept, thermometer: Thermometer, held: Hold | None = None) -> Iterator[Reflexes]:
    reflex = Reflex(kept.stand.host, share_of(kept.stand.host), source="actuator/test", held=held)
    reflexes = Reflexes({kept.path: (thermometer, reflex)}, kept.timer, kept.clock, kept.actuation.raised)
    yield reflexes
    reflexes.close()


def short(monkeypatch: pytest.MonkeyPatch, period: Span = 20) -> None:
    """Time that passes faster for reflexes."""
    monkeypatch.setattr("runtime.reflexes.PERIOD_MS", period)
    monkeypatch.setattr("actuators.reflex.DWELL_MS", 10 * period)


def test_a_host_too_hot_is_held_told_of_and_let_go(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    short(monkeypatch)
    command, thermometer = lock(1410, kept.clock.now()), Thermometer()
    kept.read(command)
    kept.until(Accepted, Verified, of=command)
    with watched(kept, thermometer) as reflexes:
        thermometer.core_c = 93.0
        eventually(lambda: set(kept.stand.boards.clocks) == {960}, "held at half of its power")
        assert "gpu0 at 93 °C" in reflexes.trouble()
        thermometer.core_c = 60.0
        eventually(lambda: set(kept.stand.boards.clocks) == {1410}, "let go")
        eventually(lambda: reflexes.trouble() == "", "and all is well")
    assert thermometer.closed
    phases = [event.phase for event in kept.sink.said if isinstance(event, Emergency)]
    assert phases == ["raised", "cleared"]


def test_gpus_that_cannot_be_read_are_told_of_and_a_hold_stands(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch)
    monkeypatch.setattr("runtime.reflexes._LATE_S", 0.1)
    thermometer = Thermometer()
    with watched(kept, thermometer) as reflexes:
        thermometer.core_c = 93.0
        eventually(lambda: set(kept.stand.boards.clocks) == {960}, "held")
        thermometer.away = "no NVIDIA driver answers"
        eventually(lambda: "its reflex has read nothing for" in reflexes.trouble(), "told")
        assert "no NVIDIA driver answers" in reflexes.trouble()
        assert set(kept.stand.boards.clocks) == {960}
        assert reflexes.holds[kept.path] is not None


def test_a_hold_that_an_agent_lost_is_said_again(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    short(monkeypatch)
    monkeypatch.setattr("actuators.reflex.DWELL_MS", 60_000)
    hold = Hold(kind="overtemperature", because="x", since=0, episode="e", max_mhz=960, limit_w=200.0)
    with watched(kept, Thermometer(), hold):
        eventually(lambda: set(kept.stand.boards.clocks) == {960}, "held")


# ---- the command line ----


def test_a_configuration_that_sets_nothing_or_names_no_brokers_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Path("deploy/sites/one-host.toml").absolute()
    config = tmp_path / "host.toml"
    config.write_text(f'site = "{site}"\nstate_dir = "state"\n[kafka]\nservers = ["127.0.0.1:1"]\n')
    assert run(["actuate", "--config", str(config)]) == 2
    assert "actuators is missing: write [[actuators]]" in capsys.readouterr().err
    config.write_text(
        f'site = "{site}"\nstate_dir = "state"\n[[actuators]]\nkind = "dry_run"\nhost = "lab/row-a/r01/h01"\n'
    )
    assert run(["actuate", "--config", str(config)]) == 2
    assert "kafka is missing: write [kafka] with servers" in capsys.readouterr().err
