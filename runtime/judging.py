"""What must never be done, found in the messages alone: as an outsider reads them, asking no part of the
pipeline how it did.

Each function yields what it found in words, or nothing. They are for runs whose plant is known: tests that
break things on purpose, and rehearsals.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from runtime.row_loop import Beat
from schemas.commands import Brake, Command, LockClocks
from schemas.instants import SECOND, Instant, Span
from schemas.outcomes import Accepted, Lapsed, Outcome, Released, Renewed, Verified
from schemas.shares import SafeShare

LAPSE_MS: Span = 5 * SECOND
"""How long after its lease a host may still be above its share: the timer's 0.25 s, a write, a read-back in
band (3 s), and a frame (our choice)."""

_MHZ = 16.0  # clocks come in steps of 15 MHz


class Found(NamedTuple):
    """Something that must not be: when, by which command (empty: by none), and in words."""

    at: Instant
    command: str
    words: str


class Clocked(Protocol):
    """A host's boards at an instant: the highest clock that one of them may run at."""

    @property
    def at(self) -> Instant: ...

    @property
    def host(self) -> str: ...

    @property
    def mhz(self) -> float: ...


def obeyed_backwards(outcomes: Iterable[Outcome]) -> Iterator[Found]:
    """A host took a command of an older controller after one of a newer: settings that go back and forth."""
    highest: dict[str, int] = defaultdict(int)
    for outcome in outcomes:
        if isinstance(outcome, Accepted | Renewed):
            if outcome.epoch < highest[outcome.subject]:
                words = f"obeyed epoch {outcome.epoch} after epoch {highest[outcome.subject]}"
                yield Found(outcome.at, outcome.command, f"{outcome.subject} {words}")
            highest[outcome.subject] = max(highest[outcome.subject], outcome.epoch)


def not_as_asked(outcomes: Iterable[Outcome], commands: Mapping[str, Command]) -> Iterator[Found]:
    """Taken for success at a looser setting than was asked for, or taken up after its lease."""
    for outcome in outcomes:
        command = commands.get(outcome.command)
        if not isinstance(command, LockClocks | Brake):
            continue
        seen = outcome.observed if isinstance(outcome, Verified) else None
        if seen is not None and seen > command.max_mhz + _MHZ:
            words = f"{outcome.subject} verified {seen:.0f} MHz for {command.max_mhz} MHz"
            yield Found(outcome.at, command.id, words)
        late = isinstance(outcome, Accepted) and outcome.at >= command.lease.expires_at
        if late and command.lease.on_expiry != "hold":
            words = f"{outcome.subject} took up {command.id} after its lease"
            yield Found(outcome.at, command.id, words)


def out_of_lease(
    outcomes: Iterable[Outcome],
    seen: Iterable[Clocked],
    commands: Mapping[str, Command],
    shares: Mapping[str, SafeShare],
    lapse_ms: Span = LAPSE_MS,
) -> Iterator[Found]:
    """A host above its safe share while no lease has allowed so high a clock for `lapse_ms`, by its boards
    themselves; once for each host. The lease of a tighter lock that was taken up allows no more than that
    lock: until it lands, what stands is allowed by the leases that it stands by, or by none."""
    allowed: dict[str, dict[int, tuple[Instant, str]]] = defaultdict(dict)
    """By host, and the clock that a lease allows: until when the last such runs, and whose it is."""
    found: set[str] = set()
    taken = [each for each in outcomes if isinstance(each, Accepted | Verified | Renewed)]
    for event in sorted([*taken, *seen], key=lambda event: event.at):
        if isinstance(event, Outcome):
            command = commands.get(event.command)
            if isinstance(command, LockClocks | Brake):
                lease, leases = (command.lease.expires_at, command.id), allowed[event.subject]
                leases[command.max_mhz] = max(leases.get(command.max_mhz, (0, "")), lease)
            continue
        share = shares[event.host]
        if event.mhz <= share.max_mhz + _MHZ or event.host in found:
            continue
        enough = [lease for mhz, lease in allowed[event.host].items() if mhz + _MHZ >= event.mhz]
        until, command_id = max(enough, default=(event.at, ""))  # none yet: it runs as it was found
        if event.at > until + lapse_ms:
            found.add(event.host)
            late_s = (event.at - until) / SECOND
            words = f"{event.host} ran at {event.mhz:.0f} MHz {late_s:.0f} s after its last lease for that"
            yield Found(event.at, command_id, words)


class BlindEye:
    """Watches a row's beats for what was loosened or renewed while the row's power was unknown.

    Unknown is a sum that is no number, nothing or less, or was last known more than `hold_ms` ago. What a
    host is at follows from what was seen to be in force, never from what was asked.
    """

    def __init__(self, hold_ms: Span) -> None:
        self.blind_beats = 0
        self.found: list[Found] = []
        self._hold_ms = hold_ms
        self._asked: dict[str, LockClocks | Brake] = {}
        self._held: dict[str, LockClocks | Brake] = {}

    def observe(self, beat: Beat) -> None:
        """Take one beat in."""
        for event in beat.inputs:
            if isinstance(event, Verified | Renewed) and event.command in self._asked:
                self._held[event.subject] = self._asked[event.command]
            elif isinstance(event, Lapsed | Released):
                held = self._held.get(event.subject)
                holds_on = isinstance(event, Lapsed) and held is not None and held.lease.on_expiry == "hold"
                if not holds_on:
                    self._held.pop(event.subject, None)
        blind = self._blind(beat)
        self.blind_beats += blind
        for command in beat.commands:
            if not isinstance(command, LockClocks | Brake):
                continue
            self._asked[command.id] = command
            ceiling = self._ceiling(command.subject, beat.tick.at)
            if blind and isinstance(command, LockClocks) and not (ceiling and command.max_mhz < ceiling):
                was = f"at {ceiling} MHz" if ceiling else "at its safe share"
                words = f"{command.subject}, {was}, was told {command.max_mhz} MHz on unknown power"
                self.found.append(Found(command.at, command.id, words))

    def _blind(self, beat: Beat) -> bool:
        rollup = beat.rollup
        if rollup.power_w is None or not math.isfinite(rollup.power_w) or rollup.power_w <= 0.0:
            return True
        known_at = rollup.at if rollup.known_at is None else rollup.known_at
        return beat.tick.at - known_at > self._hold_ms

    def _ceiling(self, host: str, now: Instant) -> int | None:
        held = self._held.get(host)
        if held is None or (held.lease.on_expiry != "hold" and now >= held.lease.expires_at):
            return None
        return held.max_mhz
