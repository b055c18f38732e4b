"""The timer that ends leases when everything else is dead."""

import logging
import threading
import time

import pytest
from support.agents import SHARE_MHZ, T0, TTL, Hosted, brake, kinds, lock

from actuators.leases import PROMPT_S, LeaseTimer
from actuators.lifecycle import HostAgent
from schemas.instants import SECOND, Instant
from schemas.outcomes import Refused


class HandClock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.at = T0

    def now(self) -> Instant:
        return self.at

    def monotonic(self) -> float:
        return self.at / 1000


class Broken:
    """An agent with a mistake in it."""

    wait_ms = SECOND

    def start(self, now: Instant, monotonic_ms: int) -> list[object]:
        return []

    def step(self, commands: object, now: Instant, monotonic_ms: int) -> list[object]:
        raise RuntimeError("a mistake of ours")

    def close(self) -> None:
        pass


def test_leases_end_though_no_command_ever_comes_again() -> None:
    stand, clock = Hosted(), HandClock()
    path = stand.host.path
    timer = LeaseTimer({path: stand.agent}, clock, source="actuator/test", period_s=0.01)
    ended = threading.Event()
    take = timer.beat

    def beat() -> None:
        take()
        if set(stand.boards.clocks) == {SHARE_MHZ} and clock.at > T0:
            ended.set()

    timer.beat = beat  # type: ignore[method-assign]
    assert kinds(timer.start()) == ["Lapsed"]
    assert kinds(timer.step([lock(1410, T0)])) == ["Accepted", "Verified"]
    clock.at += TTL
    assert ended.wait(30)
    timer.close()
    (lapsed,) = timer.take()
    assert kinds([lapsed]) == ["Lapsed"]


def test_a_mistake_in_one_agent_is_counted_and_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stand, clock = Hosted(), HandClock()
    agents: dict[str, HostAgent] = {"ams1/row-a/r01/h00": Broken(), stand.host.path: stand.agent}  # type: ignore[dict-item]
    timer = LeaseTimer(agents, clock, source="actuator/test", period_s=3600.0)
    timer.start()
    timer.step([lock(1410, T0)])
    clock.at += TTL
    with caplog.at_level(logging.ERROR):
        timer.beat()
        timer.beat()
    assert kinds(timer.take()) == ["Lapsed"]
    assert set(stand.boards.clocks) == {SHARE_MHZ}
    assert timer.faults == {"ams1/row-a/r01/h00": 2}
    assert "ams1/row-a/r01/h00: the host's agent raised" in caplog.text
    timer.close()


def test_a_command_for_nobody_is_refused_in_words() -> None:
    stand = Hosted()
    timer = LeaseTimer({stand.host.path: stand.agent}, HandClock(), source="actuator/test", period_s=3600.0)
    timer.start()
    (refused,) = timer.step([lock(1005, T0, subject="ams1/row-z/r09/h99")])
    assert isinstance(refused, Refused)
    assert refused.detail == "no agent here keeps ams1/row-z/r09/h99; there are 1"
    timer.close()


def test_commands_and_beats_never_step_an_agent_at_the_same_time() -> None:
    clock = HandClock()
    inside = threading.Lock()
    overlaps: list[str] = []

    class Watching(Broken):
        def step(self, commands: object, now: Instant, monotonic_ms: int) -> list[object]:
            if not inside.acquire(blocking=False):
                overlaps.append("two at once")
                return []
            for _ in range(200):
                clock.now()
            inside.release()
            return []

    watching: HostAgent = Watching()  # type: ignore[assignment]
    timer = LeaseTimer({"h": watching}, clock, source="actuator/test", period_s=3600.0)

    def beat() -> None:
        for _ in range(300):
            timer.beat()

    threads = [threading.Thread(target=beat) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(300):
        timer.step([lock(1005, T0 + n, subject="h")])
    for thread in threads:
        thread.join()
    timer.close()
    assert overlaps == []


def test_hosts_are_let_go_by_name() -> None:
    stand = Hosted()
    path = stand.host.path
    timer = LeaseTimer({path: stand.agent}, HandClock(), source="actuator/test", period_s=3600.0)
    timer.start()
    timer.step([lock(1410, T0)])
    assert timer.stand_down([]) == []
    assert kinds(timer.stand_down([path])) == ["Lapsed"]
    assert set(stand.boards.clocks) == {SHARE_MHZ}
    assert kinds(timer.release_all()) == ["Released"]
    assert set(stand.boards.clocks) == {1410}
    timer.close()


def test_nothing_is_lost_of_what_is_said_between_two_looks() -> None:
    stand, clock = Hosted(), HandClock()
    timer = LeaseTimer({stand.host.path: stand.agent}, clock, source="actuator/test", period_s=3600.0)
    timer.start()
    timer.step([lock(1275, T0, ttl=5 * SECOND)])
    clock.at += 6 * SECOND
    timer.beat()
    said = timer.step([lock(1005, clock.at)])
    assert kinds(said) == ["Lapsed", "Accepted", "Verified"]
    timer.close()


class Hung(Broken):
    """An agent whose device call comes back when the test says so."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.back = threading.Event()
        self.given: list[list[object]] = []

    def step(self, commands: object, now: Instant, monotonic_ms: int) -> list[object]:
        self.given.append(list(commands))  # type: ignore[call-overload]
        self.entered.set()
        self.back.wait()
        return []


def test_hosts_that_hang_delay_neither_the_brake_of_the_others_nor_the_control_loop() -> None:
    stand, clock = Hosted("in_band", "brake", latencies={"in_band": 0, "brake": 0}), HandClock()
    hung = {f"ams1/row-a/r01/a{n}": Hung() for n in range(8)}
    agents: dict[str, HostAgent] = {**hung, stand.host.path: stand.agent}  # type: ignore[dict-item]
    timer = LeaseTimer(agents, clock, source="actuator/test", period_s=3600.0)
    timer.start()
    pulled = [*(lock(1005, T0, subject=path) for path in hung), brake(T0)]
    began = time.monotonic()
    said = timer.step(pulled)
    took_s = time.monotonic() - began
    assert set(stand.boards.clocks) == {285}
    assert kinds(said) == ["Accepted", "Verified"]
    assert took_s < PROMPT_S + 1.0  # eight waits one after the other would be longer
    timer.beat()  # nor does the timer wait for them
    assert timer.steps == 1
    for agent in hung.values():
        agent.back.set()
    timer.close()


def test_what_waits_behind_a_call_that_hangs_is_done_in_its_order_when_it_comes_back() -> None:
    agent = Hung()
    agents: dict[str, HostAgent] = {"h": agent}  # type: ignore[dict-item]
    timer = LeaseTimer(agents, HandClock(), source="actuator/test", period_s=3600.0, prompt_s=0.0)
    commands = [lock(mhz, T0 + mhz, subject="h") for mhz in (1410, 1275, 1110)]
    timer.step(commands[:1])
    assert agent.entered.wait(30)
    timer.step(commands[1:2])
    timer.step(commands[2:])
    agent.back.set()
    timer.close()
    assert agent.given == [commands[:1], commands[1:]]
