"""The embedded host: the whole pipeline in one process, without a broker.

One turn of its loop: poll collectors, beat the rows that are due, write the ledger, and only then
hand commands to the host agents; their outcomes are inputs of the next beat.

When the ledger cannot be written the host goes on: what would loosen is withheld (the rows are told
by an emergency of kind `ledger_loss`), what tightens is done, and every record waits in memory, in
order, until the ledger takes it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from controllers.reconcile import loosens
from runtime.clock import Clock
from runtime.control_loop import ControlLoop
from runtime.ledger.selection import Selection
from runtime.ledger.store import LedgerUnwritable
from runtime.row_loop import Beat
from schemas.commands import Command
from schemas.emergencies import Emergency, Phase
from schemas.envelope import DeadLetter, Event
from schemas.instants import Instant
from schemas.operators import ReleaseAll
from schemas.outcomes import Refused

_LOG = logging.getLogger(__name__)

LEDGER_SOURCE = "runtime/ledger"
_SLICE = 1_000  # records a time, when many have waited


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
        self.waiting: list[Event] = []
        """Records the ledger has not taken yet, in order."""
        self._selection = Selection()
        self._started = False
        self._owed: list[ReleaseAll] = []
        self._alarms: dict[str, str] = {}

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
        self.waiting.extend(event for event in heard if isinstance(event, DeadLetter))
        self.loop.offer(event for event in heard if not isinstance(event, DeadLetter))
        commands: list[Command] = []
        for row in self.loop.due(now):
            beat = self.loop.beat(row, now)
            recorded = self._record(self._selection.of(beat), now)
            commands.extend(self._may_go(beat, recorded))
            self._owed.extend(event for event in beat.inputs if isinstance(event, ReleaseAll))
            if recorded:  # giving back may loosen
                for word in self._owed:
                    self.loop.offer(self.agents.release(word.subject, now))
                self._owed.clear()
            for observe in self.observers:
                observe(beat)
        self.loop.offer(self.agents.step(commands, now))
        with contextlib.suppress(LedgerUnwritable):  # the next append says so
            self.ledger.tidy()

    def _record(self, kept: Sequence[Event], now: Instant) -> bool:
        """Write-ahead; True when everything that was ever kept is in the ledger."""
        self.waiting.extend(kept)
        if not self.waiting:
            return True
        try:
            while self.waiting:
                self.ledger.append(self.waiting[:_SLICE])
                del self.waiting[:_SLICE]
        except LedgerUnwritable as error:
            if not self._alarms:
                _LOG.error("%d records wait: %s", len(self.waiting), error)
                raised = [self._alarm(path, now, "raised", str(error)) for path in self.loop.loops]
                self._alarms = {alarm.subject: alarm.episode for alarm in raised}
                self.loop.offer(raised)
            return False
        if self._alarms:
            _LOG.warning("the ledger takes records again, and has all that waited")
            self.loop.offer(
                [
                    self._alarm(path, now, "cleared", "the ledger takes records again")
                    for path in self.loop.loops
                ]
            )
            self._alarms = {}
        return True

    def _may_go(self, beat: Beat, recorded: bool) -> Sequence[Command]:
        """The beat's commands that may be acted on: all once they are in the ledger, else only those
        that loosen nothing; what is withheld is refused back to the row, in words."""
        if recorded:
            return beat.commands
        seen = self.loop.view(beat.tick.subject, beat.tick.at)
        withheld = [command for command in beat.commands if loosens(command, seen)]
        self.loop.offer(
            Refused(
                at=beat.tick.at,
                source=LEDGER_SOURCE,
                subject=command.target,
                cause=(command.id,),
                command=command.id,
                epoch=command.lease.epoch,
                detail="withheld: it would loosen, and the ledger cannot be written",
            )
            for command in withheld
        )
        return [command for command in beat.commands if command not in withheld]

    def _alarm(self, row: str, now: Instant, phase: Phase, because: str) -> Emergency:
        return Emergency(
            at=now,
            source=LEDGER_SOURCE,
            subject=row,
            kind="ledger_loss",
            phase=phase,
            because=because,
            episode=self._alarms.get(row, ""),
        )
