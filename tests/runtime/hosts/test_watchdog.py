"""The watchdog: what it lets pass, what it ends a worker for, and that it ends one whose loop is stuck."""

from __future__ import annotations

import threading

from runtime.clock import SimulatedClock
from runtime.hosts.watchdog import Watchdog, WatchdogThread
from schemas.instants import SECOND

ROW = "lab1/row-a"


class Run:
    """A worker as its watchdog sees it."""

    def __init__(self) -> None:
        self.clock = SimulatedClock(0)
        self.dog = Watchdog(self.clock, stalled_s=20.0, away_s=90.0)
        self.dog.settled(settled=True)
        self.dog.watch(ROW)

    def go(self, seconds: int, *, turns: bool = True, reads: bool = True, beats: bool = True) -> str:
        """Let time pass; the verdict at its end."""
        for _ in range(seconds):
            self.clock.sleep_until(self.clock.now() + SECOND)
            if turns:
                self.dog.turned()
            if reads:
                self.dog.read()
            if beats:
                self.dog.beat(ROW)
        return self.dog.verdict()


def test_a_worker_that_gets_on_is_let_be() -> None:
    assert Run().go(600) == ""


def test_a_worker_whose_input_moves_and_whose_rows_do_not_is_ended() -> None:
    run = Run()
    assert run.go(20, beats=False) == ""
    assert run.go(1, beats=False) == f"{ROW}: input came for 21 s, and no beat was done"


def test_one_row_that_stands_still_is_enough() -> None:
    run = Run()
    run.dog.watch("lab1/row-b")
    assert run.go(21) == "lab1/row-b: input came for 21 s, and no beat was done"


def test_brokers_that_are_away_are_waited_for_and_then_given_up() -> None:
    run = Run()
    assert run.go(90, reads=False, beats=False) == ""
    assert run.go(10) == ""  # they came back
    assert run.go(91, reads=False, beats=False) == f"{ROW}: nothing came and no beat was done for 91 s"


def test_a_loop_that_does_not_turn_is_ended_whatever_else_is_said() -> None:
    run = Run()
    assert run.go(60, turns=False) == ""  # not started yet
    run.go(1)
    assert run.go(21, turns=False) == "the event loop has not turned for 21 s"


def test_a_worker_that_is_given_nothing_to_read_is_ended_in_the_end() -> None:
    run = Run()
    run.dog.settled(settled=False)
    run.dog.forget(ROW)
    assert run.go(90) == ""
    assert run.go(1) == "nothing has been assigned to read for 91 s"


def test_a_row_that_is_anothers_is_not_waited_for() -> None:
    run = Run()
    run.dog.forget(ROW)
    run.dog.beat(ROW)  # one that was under way
    assert run.go(60, beats=False) == ""


def test_a_fault_is_told_at_once_and_the_first_is_kept() -> None:
    run = Run()
    run.dog.fault("an agent crashed")
    run.dog.fault("and so everything else")
    assert run.go(1) == "an agent crashed"


def test_the_thread_ends_a_process_whose_loop_is_stuck() -> None:
    ended, why = threading.Event(), list[str]()
    dog = Watchdog(SimulatedClock(0))
    with WatchdogThread(dog, end=lambda words: (why.append(words), ended.set())[0], every_s=0.01):  # type: ignore[func-returns-value]
        assert not ended.wait(0.1)
        dog.fault("stuck")
        assert ended.wait(5)
    assert why == ["stuck"]
