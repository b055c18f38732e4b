"""Instruments: what a running host's metrics and health hear of it, put between the host and its parts.

The host knows nothing of them: they stand where its samples, its ledger and its agents do, and hang on
its beats. `began` throughout is when the samples of a turn were gathered, on the clock nobody sets.
"""

from __future__ import annotations

from collections.abc import Sequence

from actuators.leases import LeaseTimer
from runtime.agents import TimedAgents
from runtime.clock import Clock
from runtime.health import Health
from runtime.ledger.store import Ledger, LedgerUnwritable
from runtime.metrics import Metrics
from runtime.polling import ThreadedSamples
from runtime.row_loop import Beat
from schemas.commands import Command
from schemas.envelope import DeadLetter, Event
from schemas.instants import Instant
from schemas.outcomes import Outcome, Verified
from schemas.topology import Site

BEAT_S = 10.0
"""A row that was not looked at for so long is not controlled: five periods of the default policy."""

SAMPLES_S = 10.0
"""What the default policy takes for an outage of the telemetry."""

LEDGER_S = 30.0
TIMER_S = 5.0
"""The lease timer steps every quarter of a second; a device call may hold it up for 2 s."""

_REMEMBERED = 10_000  # commands whose read-back is waited for


class Instruments:
    """Metrics and health of one host, and the places where they listen."""

    def __init__(self, site: Site, clock: Clock) -> None:
        self.metrics = Metrics(site)
        self.health = Health(clock)
        self.clock = clock
        self.began = clock.monotonic()
        self.beaten = False
        self.unwritten = 0
        for row in site.rows:
            self.health.expect(f"beat {row.path}", within_s=BEAT_S, vital=True)
            self.health.expect(f"samples {row.path}", within_s=SAMPLES_S)
        self.health.expect("ledger", within_s=LEDGER_S)
        self.health.expect("lease timer", within_s=TIMER_S, vital=True)
        self.health.ask(lambda: f"{self.unwritten} records wait for the ledger" if self.unwritten else "")

    def observe(self, beat: Beat) -> None:
        """A beat, its records on their way to the ledger and its commands not yet with the agents."""
        self.beaten = True
        self.metrics.observe(beat)
        self.health.observe(beat)
        if not self.unwritten:
            self.health.seen("ledger")


class HeardSamples:
    """Samples on their way to the host."""

    def __init__(self, samples: ThreadedSamples, to: Instruments) -> None:
        self._samples, self._to = samples, to
        to.health.ask(lambda: "; ".join(f"{s.name} is away: {s.away}" for s in samples.states() if s.away))

    def gather(self, now: Instant) -> Sequence[Event]:
        """What has been read since the last call."""
        self._to.began = self._to.clock.monotonic()
        events = self._samples.gather(now)
        self._to.metrics.buried(event for event in events if isinstance(event, DeadLetter))
        return events

    def next_poll(self, now: Instant) -> Instant:
        """When there may be more."""
        return self._samples.next_poll(now)


class HeardLedger:
    """Records on their way to the ledger."""

    def __init__(self, ledger: Ledger, to: Instruments) -> None:
        self._ledger, self._to = ledger, to

    def append(self, events: Sequence[Event]) -> None:
        """Write all or nothing. Raises LedgerUnwritable."""
        began = self._to.clock.monotonic()
        self._to.unwritten = 0
        try:
            self._ledger.append(events)
        except LedgerUnwritable:
            self._to.unwritten = len(events)
            raise
        finally:
            self._to.metrics.appended(self._to.clock.monotonic() - began, self._to.unwritten)


class HeardAgents:
    """Commands on their way to the agents, and what they say."""

    def __init__(self, agents: TimedAgents, timer: LeaseTimer, to: Instruments) -> None:
        self._agents, self._timer, self._to = agents, timer, to
        self._steps = 0
        self._asked: dict[str, float] = {}
        to.health.ask(
            lambda: "; ".join(
                f"the agent of {path} raised {count} times" for path, count in timer.faults.items()
            )
        )

    def start(self, now: Instant) -> Sequence[Event]:
        """Take every host up."""
        return self._agents.start(now)

    def step(self, commands: Sequence[Command], now: Instant) -> Sequence[Event]:
        """Hand commands over; what the agents have said since."""
        to = self._to
        if to.beaten:
            to.beaten = False
            to.metrics.beat_took(to.clock.monotonic() - to.began)
        for command in commands:
            self._asked[command.id] = to.began
        while len(self._asked) > _REMEMBERED:
            del self._asked[next(iter(self._asked))]
        outcomes = self._agents.step(commands, now)
        for outcome in outcomes:
            asked = self._asked.get(outcome.command) if isinstance(outcome, Outcome) else None
            if isinstance(outcome, Verified) and asked is not None:
                del self._asked[outcome.command]
                to.metrics.verified(to.clock.monotonic() - asked)
        if self._timer.steps != self._steps:
            self._steps = self._timer.steps
            to.health.seen("lease timer")
        return outcomes

    def release(self, subject: str, now: Instant) -> Sequence[Event]:
        """Give back every host at or below a path."""
        return self._agents.release(subject, now)
