"""Measured: a host's samples, agents and ledger, each wrapped so that it tells the metrics how it fares.

The host itself knows nothing of metrics: it calls the same protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runtime.clock import Clock
from runtime.metrics import Metrics
from schemas.commands import Command
from schemas.envelope import DeadLetter, Event
from schemas.instants import Instant
from schemas.outcomes import Accepted, Outcome, Verified

if TYPE_CHECKING:
    from runtime.hosts.embedded import Agents, Records, Samples
    from runtime.row_loop import Beat

_REMEMBERED = 10_000  # commands without an answer; the time of older ones is lost


class Measured:
    """One turn of a host, timed where it passes: samples gathered → beats → ledger → commands handed over.

    `waiting` is how many records the ledger did not take at the last append. `recorded` is called
    after each append that it took.
    """

    def __init__(
        self, metrics: Metrics, clock: Clock, *, recorded: Callable[[], None] = lambda: None
    ) -> None:
        self.metrics = metrics
        self.waiting = 0
        self._clock = clock
        self._recorded = recorded
        self._gathered = 0.0
        self._beaten = False
        self._began: dict[str, float] = {}

    def observe(self, beat: Beat) -> None:
        """Fold a beat into the metrics."""
        self._beaten = True
        self.metrics.observe(beat)

    def samples(self, samples: Samples) -> Samples:
        """The same samples."""
        return _Samples(self, samples)

    def agents(self, agents: Agents) -> Agents:
        """The same agents."""
        return _Agents(self, agents)

    def ledger(self, ledger: Records) -> Records:
        """The same ledger."""
        return _Records(self, ledger)

    def operators(
        self, operators: Callable[[Instant], Sequence[Event]]
    ) -> Callable[[Instant], Sequence[Event]]:
        """The same words of operators."""

        def take(now: Instant) -> Sequence[Event]:
            said = operators(now)
            self._bury(said)
            return said

        return take

    def gathered(self, events: Sequence[Event]) -> None:
        """Samples have been gathered: a turn begins."""
        self._gathered = self._clock.monotonic()
        self._beaten = False
        self._bury(events)

    def _bury(self, events: Sequence[Event]) -> None:
        self.metrics.buried(event for event in events if isinstance(event, DeadLetter))

    def hands_over(self, commands: Sequence[Command]) -> None:
        """Commands are about to be handed over: the turn's beats are done."""
        if self._beaten:
            self.metrics.beat_took(self._clock.monotonic() - self._gathered)
        for command in commands:
            self._began[command.id] = self._gathered
        while len(self._began) > _REMEMBERED:
            del self._began[next(iter(self._began))]

    def heard(self, outcomes: Sequence[Event]) -> None:
        """Outcomes have come back."""
        for outcome in outcomes:
            if isinstance(outcome, Outcome) and not isinstance(outcome, Accepted):
                began = self._began.pop(outcome.command, None)
                if began is not None and isinstance(outcome, Verified):
                    self.metrics.verified(self._clock.monotonic() - began)

    def append(self, ledger: Records, events: Sequence[Event]) -> None:
        """Append, and tell how it went. Raises LedgerUnwritable, as the ledger does."""
        began = self._clock.monotonic()
        waiting = len(events)
        try:
            ledger.append(events)
            waiting = 0
        finally:
            self.waiting = waiting
            self.metrics.appended(self._clock.monotonic() - began, waiting)
        self._recorded()


class _Samples:
    def __init__(self, measured: Measured, samples: Samples) -> None:
        self._measured = measured
        self._samples = samples

    def gather(self, now: Instant) -> Sequence[Event]:
        events = self._samples.gather(now)
        self._measured.gathered(events)
        return events

    def next_poll(self, now: Instant) -> Instant:
        return self._samples.next_poll(now)


class _Agents:
    def __init__(self, measured: Measured, agents: Agents) -> None:
        self._measured = measured
        self._agents = agents

    def start(self, now: Instant) -> Sequence[Event]:
        return self._agents.start(now)

    def step(self, commands: Sequence[Command], now: Instant) -> Sequence[Event]:
        self._measured.hands_over(commands)
        outcomes = self._agents.step(commands, now)
        self._measured.heard(outcomes)
        return outcomes

    def release(self, subject: str, now: Instant) -> Sequence[Event]:
        return self._agents.release(subject, now)


class _Records:
    def __init__(self, measured: Measured, ledger: Records) -> None:
        self._measured = measured
        self._ledger = ledger

    def append(self, events: Sequence[Event]) -> None:
        self._measured.append(self._ledger, events)

    def tidy(self) -> None:
        self._ledger.tidy()
