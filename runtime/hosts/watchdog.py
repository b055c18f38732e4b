"""Progress, watched from outside the event loop: a worker that makes none is ended, in words.

Much can stop a worker and leave its process alive: a send that waits for ever, an agent that crashed, a
fetch that never comes, a loop that is stuck. None is worth telling apart once input moves and no beat
follows: the supervisor starts the worker anew, and it goes on from the last snapshots. Where nothing moves
at all, the brokers are away: that is waited for longer, for a start would not bring them back.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from runtime.clock import Clock

_LOG = logging.getLogger(__name__)

EXIT = 3
"""The exit status of a worker that its watchdog ended."""

STALLED_S = 20.0
"""How long input may move without a beat, or the loop not turn (our choice: ten beats of 2 s; the agents'
leases run for 90 s and are renewed in their last 45)."""

AWAY_S = 90.0
"""How long nothing at all may move (our choice: as long as a lease; after that every host is at its safe
share, and a fresh start costs nothing)."""


class Watchdog:
    """What a worker tells of its progress, and the verdict on it. Signs may come from any thread.

    `read` is input that came, `beat` a beat that was done of a row that is watched (`watch`), `turned` a
    turn of the loop. `fault` is trouble that only a fresh start mends.
    """

    def __init__(self, clock: Clock, *, stalled_s: float = STALLED_S, away_s: float = AWAY_S) -> None:
        self._clock = clock
        self._stalled_s = stalled_s
        self._away_s = away_s
        self._turned_at: float | None = None  # it does not turn before there is something to read
        self._read_at = self._settled_at = clock.monotonic()
        self._settled = False
        self._beats: dict[str, float] = {}
        self._fault = ""

    def watch(self, row: str) -> None:
        """From now on the row is this worker's to beat."""
        self._beats[row] = self._clock.monotonic()

    def forget(self, row: str) -> None:
        """The row is another's."""
        self._beats.pop(row, None)

    def settled(self, *, settled: bool) -> None:
        """Whether the worker knows what it has to read. Until it does, nothing is."""
        if settled != self._settled:
            self._settled, self._settled_at = settled, self._clock.monotonic()

    def turned(self) -> None:
        """The loop turned."""
        self._turned_at = self._clock.monotonic()

    def read(self) -> None:
        """Input came."""
        self._read_at = self._clock.monotonic()

    def beat(self, row: str) -> None:
        """A beat of a row was done."""
        if row in self._beats:
            self._beats[row] = self._clock.monotonic()

    def fault(self, why: str) -> None:
        """Something that only a fresh start mends; the first is told."""
        self._fault = self._fault or why

    def verdict(self) -> str:
        """Why the worker is to be ended, in words; empty while it gets on."""
        now = self._clock.monotonic()
        if self._fault:
            return self._fault
        if self._turned_at is not None and now - self._turned_at > self._stalled_s:
            return f"the event loop has not turned for {now - self._turned_at:.0f} s"
        if not self._settled and now - self._settled_at > self._away_s:
            return f"nothing has been assigned to read for {now - self._settled_at:.0f} s"
        for row, at in self._beats.copy().items():
            if self._read_at - at > self._stalled_s:
                return f"{row}: input came for {self._read_at - at:.0f} s, and no beat was done"
            if now - max(at, self._read_at) > self._away_s:
                return f"{row}: nothing came and no beat was done for {now - max(at, self._read_at):.0f} s"
        return ""


def end(why: str) -> None:
    """End the process, now: what is stuck cannot be asked to leave."""
    _LOG.critical("ended by its watchdog, to be started anew: %s", why)
    logging.shutdown()
    os._exit(EXIT)


class WatchdogThread:
    """Asks a watchdog every second on a thread of its own, and ends the process where it says so. Use as a
    context manager."""

    def __init__(self, watchdog: Watchdog, *, end: Callable[[str], None] = end, every_s: float = 1.0) -> None:
        self._watchdog = watchdog
        self._end = end
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> WatchdogThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            if why := self._watchdog.verdict():
                self._end(why)
                return
