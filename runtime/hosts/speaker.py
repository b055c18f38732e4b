"""What a row's beats say, sent in its order: records first, then commands, then the rest, then a snapshot.

A beat comes here when its tick was read back, so it is done already, and whoever reads the log does it too.
What is left to the row's owner is to say it: its records go to the ledger and are waited for, half a second
at most; then its commands go out, without the ledger only those that loosen nothing (`write_ahead`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from runtime.clock import Clock
from runtime.hosts.row_log import RowLog, Snapshot
from runtime.hosts.write_ahead import WriteAhead
from runtime.metronome import phase_of
from runtime.row_loop import Beat
from schemas.commands import Command
from schemas.envelope import Event
from schemas.instants import Instant, Span
from streams.site_power import summarise

_LOG = logging.getLogger(__name__)

LEDGER_S = 0.5
"""How long records may keep a command waiting: as with a ledger on a disk (`runtime.ledger.patient`)."""

_ANSWER_S = 5.0  # how long a snapshot waits for the broker to have what was said before it (our choice)


class Unsent(Exception):
    """The brokers did not take a message; the text says why."""


class Bus(Protocol):
    """Where a row's words go. A call returns once the message is in line; what it returns is done when the
    brokers have it, and raises Unsent where they will not. Calls raise Unsent too."""

    async def say(self, event: Event, key: str) -> Awaitable[None]:
        """A message to the topic of its type."""

    async def record(self, event: Event, key: str) -> Awaitable[None]:
        """A message to the ledger."""

    async def keep(self, snapshot: bytes, key: str) -> Awaitable[None]:
        """A row's snapshot, in place of the one before."""


class Said(NamedTuple):
    """A beat that was said: the commands that went, how long the ledger took and how many records it did
    not take."""

    beat: Beat
    commands: Sequence[Command]
    ledger_s: float
    waiting: int


class Speaker:
    """Says what the beats of one row say, while this host owns it. One task runs `run`.

    `said` is called after each beat, `kept` when the brokers have a snapshot.
    """

    def __init__(
        self,
        log: RowLog,
        bus: Bus,
        clock: Clock,
        *,
        site: str,
        snapshot_ms: Span,
        said: Callable[[Said], None],
        kept: Callable[[str, Snapshot], None],
    ) -> None:
        self.row = log.loop.row.path
        self.ahead = WriteAhead()
        self._log = log
        self._bus = bus
        self._clock = clock
        self._site = site
        self._snapshot_ms = snapshot_ms
        self._snapshot_at: Instant = 0
        self._on_said = said
        self._on_kept = kept
        self._beats: asyncio.Queue[Beat] = asyncio.Queue()
        self._unsaid = 0
        self._in_line: list[asyncio.Future[None]] = []
        self._under_way: tuple[Sequence[Event], asyncio.Task[None]] | None = None

    def add(self, beat: Beat) -> None:
        """A beat to say: this host's own, or the one before its first, which may not have been said."""
        self._unsaid += 1
        self._beats.put_nowait(beat)

    @property
    def idle(self) -> bool:
        """Whether every beat that was added has been said."""
        return not self._unsaid

    async def run(self) -> None:
        """Say the beats as they are added, until cancelled."""
        while True:
            beat = await self._beats.get()
            try:
                await self._say(beat)
            except Unsent as error:
                _LOG.warning("%s: what the beat of %s says is lost: %s", self.row, beat.tick.at, error)
            finally:
                self._unsaid -= 1
            now = self._clock.now()
            if self.idle and self._snapshot_due(now):
                await self.snapshot(now)

    async def snapshot(self, now: Instant) -> None:
        """Keep the row as it is after its last beat, once the brokers have all that was said; not while a
        newer beat is still to be said. One that cannot be kept is tried again after the next beat."""
        if self._in_line:
            _, unanswered = await asyncio.wait(self._in_line, timeout=_ANSWER_S)
            self._in_line = list(unanswered)
        if self._in_line or not self.idle or not self._log.owns:
            return
        taken = self._log.snapshot()
        if taken is None:
            return
        try:
            await (await self._bus.keep(taken.payload, self.row))
        except Unsent as error:
            _LOG.warning("%s: no snapshot: %s", self.row, error)
            return
        shift = phase_of(self.row, self._snapshot_ms)
        self._snapshot_at = now - (now - shift) % self._snapshot_ms + self._snapshot_ms
        self._on_kept(self.row, taken)

    def close(self) -> None:
        """The row is no longer this host's."""
        if self._under_way is not None:
            self._under_way[1].cancel()

    def _snapshot_due(self, now: Instant) -> bool:
        return now >= self._snapshot_at or now < self._snapshot_at - self._snapshot_ms

    async def _say(self, beat: Beat) -> None:
        self.ahead.keep(beat)
        began = self._clock.monotonic()
        await self._record()
        took_s = self._clock.monotonic() - began
        self._log.tell(self.ahead.alarms([self.row], self._clock.now()))
        commands, withheld = self.ahead.may_go(beat, self._log.view(beat.tick.at))
        self._log.tell(withheld)
        if not self._log.owns:
            return
        words = (*commands, beat.rollup, *beat.forecasts, *beat.emergencies, beat.decision)
        line = [await self._bus.say(event, self.row) for event in words]
        line.append(await self._bus.say(summarise(beat.rollup, beat.decision), self._site))
        self._in_line = [future for future in self._in_line if not future.done()]
        self._in_line += [asyncio.ensure_future(answer) for answer in line]
        self._on_said(Said(beat, commands, took_s, len(self.ahead.waiting)))

    async def _record(self) -> None:
        """Have the ledger take what waits, and wait for it no longer than `LEDGER_S`."""
        until = self._clock.monotonic() + LEDGER_S
        while self._under_way is not None or self.ahead.waiting:
            if self._under_way is None:
                batch = self.ahead.batch()
                self._under_way = batch, asyncio.create_task(self._append(batch))
            batch, task = self._under_way
            await asyncio.wait({task}, timeout=max(0.0, until - self._clock.monotonic()))
            if not task.done():
                self.ahead.failed(f"the brokers have not taken them within {LEDGER_S:g} s")
                return
            self._under_way = None
            if (error := task.exception()) is not None:
                self.ahead.failed(str(error))
                return
            self.ahead.taken(batch)

    async def _append(self, batch: Sequence[Event]) -> None:
        answers = [await self._bus.record(event, self.row) for event in batch]
        await asyncio.gather(*answers)
