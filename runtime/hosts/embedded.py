"""The embedded host: the whole pipeline in one process, without a broker.

One turn of its loop: poll collectors, beat the rows that are due, write the ledger, and only then
hand commands to the host agents; their outcomes are inputs of the next beat.

When the ledger cannot be written the host goes on: what would loosen is withheld (the rows are told
by an emergency of kind `ledger_loss`), what tightens is done, and records wait in memory, in order,
until the ledger takes them (`write_ahead`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from runtime.clock import Clock
from runtime.control_loop import ControlLoop
from runtime.hosts.write_ahead import WriteAhead
from runtime.ledger.store import LedgerUnwritable
from runtime.row_loop import Beat
from schemas.commands import Command
from schemas.envelope import DeadLetter, Event
from schemas.instants import Instant
from schemas.operators import ReleaseAll


class Samples(Protocol):
    """Where samples come from: collectors polled inline or on threads of their own."""

    def gather(self, now: Instant) -> Sequence[Event]:
        """What has been read since the last call; never waits for a device longer than its deadline."""

    def next_poll(self, now: Instant) -> Instant:
        """When there may be more."""


class Agents(Protocol):
    """Where commands go: the host agents, stepped inline or by their own timer."""

    def start(self, now: Instant) -> Sequence[Event]: ...

    def step(self, commands: Sequence[Command], now: Instant) -> Sequence[Event]: ...

    def release(self, subject: str, now: Instant) -> Sequence[Event]:
        """Give back every host at or below a path, because a person said so."""


class Records(Protocol):
    """Where records go before a command is acted on."""

    def append(self, events: Sequence[Event]) -> None:
        """Write all or nothing. Raises LedgerUnwritable."""

    def tidy(self) -> None:
        """Do what can wait until no command does. Raises LedgerUnwritable."""


class EmbeddedHost:
    """Runs a control loop against collectors and agents until told to stop.

    `operators` yields what people have said since the last call. `observe` is called after each
    beat with the beat: the recorder, metrics and plots hang there.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        loop: ControlLoop,
        samples: Samples,
        agents: Agents,
        ledger: Records,
        operators: Callable[[Instant], Sequence[Event]] = lambda now: (),
        observe: Iterable[Callable[[Beat], None]] = (),
    ) -> None:
        self.clock = clock
        self.loop = loop
        self.samples = samples
        self.agents = agents
        self.ledger = ledger
        self.operators = operators
        self.observers = tuple(observe)
        self._ahead = WriteAhead()
        self._started = False
        self._owed: list[ReleaseAll] = []

    @property
    def waiting(self) -> Sequence[Event]:
        """Records the ledger has not taken yet, in order."""
        return self._ahead.waiting

    def run(self, until: Instant | None = None, stop: Callable[[], bool] = lambda: False) -> None:
        """Turn until `until` has passed or `stop` says so, and again where it left off when called
        again; the agents keep their leases meanwhile."""
        if not self._started:
            self._started = True
            self.loop.offer(self.agents.start(self.clock.now()))
        while not stop():
            now = self.clock.now()
            if until is not None and now >= until:
                return
            self.turn(now)
            wake = min(self.loop.next_beat(now), self.samples.next_poll(now))
            self.clock.sleep_until(max(wake, now + 1))

    def turn(self, now: Instant) -> None:
        """One turn of the loop at `now`."""
        heard = [*self.operators(now), *self.samples.gather(now)]
        # What could not be read steers nothing; the ledger keeps it whole.
        self._ahead.keep_also(event for event in heard if isinstance(event, DeadLetter))
        self.loop.offer(event for event in heard if not isinstance(event, DeadLetter))
        commands: list[Command] = []
        for row in self.loop.due(now):
            beat = self.loop.beat(row, now)
            self._ahead.keep(beat)
            self._record(now)
            go, withheld = self._ahead.may_go(beat, self.loop.view(row, now))
            commands.extend(go)
            self.loop.offer(withheld)
            self._owed.extend(event for event in beat.inputs if isinstance(event, ReleaseAll))
            if not self.waiting:  # giving back may loosen
                for word in self._owed:
                    self.loop.offer(self.agents.release(word.subject, now))
                self._owed.clear()
            for observe in self.observers:
                observe(beat)
        self.loop.offer(self.agents.step(commands, now))
        with contextlib.suppress(LedgerUnwritable):  # the next append says so
            self.ledger.tidy()

    def _record(self, now: Instant) -> None:
        """Hand the ledger what waits, and tell the rows when it has begun or ceased to refuse it."""
        try:
            while batch := self._ahead.batch():
                self.ledger.append(batch)
                self._ahead.taken(batch)
        except LedgerUnwritable as error:
            self._ahead.failed(str(error))
        self.loop.offer(self._ahead.alarms(self.loop.loops, now))
