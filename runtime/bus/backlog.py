"""A topic's backlog: what was said and Kafka has not yet acknowledged, in order, in memory or on disk.

Records are numbered as they are said. A record leaves when Kafka has it, or when it is dropped, and then
it is counted:

    first             on disk …           held_from   in memory …      end
    |-----------------|-------------------|-----------|----------------|
                      next: the first that was not yet handed out

`take` hands out from `next` on, `done` settles one, and `rewind` begins again at the first that is not
settled, when the connection they were handed to is gone. So within the topic nothing newer is handed out
before anything older, and nothing is handed out twice that is known to have arrived.
"""

from __future__ import annotations

from collections import Counter, deque

from runtime.bus.spool import Damaged, Record, Spool
from schemas.instants import Instant, Span

_OVERHEAD = 100  # bytes that Python spends on a record beside its content


class Backlog:
    """What of one topic waits. Not for several threads.

    At most `memory_bytes` wait in memory and `disk_bytes` on disk, none longer than `keep_ms`; beyond any
    of these the oldest are dropped first. `sent` counts what Kafka has, `lost` by reason what it never
    will: ``stale``, ``overflow``, ``damaged``, ``refused`` by Kafka, or what the owner counts there.
    """

    def __init__(self, *, keep_ms: Span, memory_bytes: int, disk_bytes: int) -> None:
        self.sent = 0
        self.lost: Counter[str] = Counter()
        self.in_flight: set[int] = set()
        self.notes: list[str] = []
        """What was met on disk, in words, for the log; the owner empties it."""
        self._keep_ms = keep_ms
        self._memory_bytes = memory_bytes
        self._disk_bytes = disk_bytes
        self._disk: Spool | None = None
        self._held: deque[tuple[Record, float]] = deque()
        self._held_from = 0
        self._held_bytes = 0
        self._first = 0
        self._next = 0
        self._settled: set[int] = set()  # above `_first`

    def attach(self, disk: Spool) -> None:
        """Use this spool from now on. What it holds is older than anything said here: it goes out first,
        and where something newer is out already it is dropped."""
        self._disk = disk
        self.notes += disk.found
        if disk.lost:
            self.lost["damaged"] += disk.lost
        if self._next or self._settled or self.sent:
            if disk:
                self.lost["overflow"] += disk.end - disk.first
                disk.forget(disk.end)
        elif disk:
            self._held_from = disk.end
            self._first = self._next = disk.first
            for gap in disk.gaps:
                self._settled.update(gap)

    @property
    def end(self) -> int:
        """The number that the next record will have."""
        return self._held_from + len(self._held)

    @property
    def untaken(self) -> bool:
        """Whether there is something to take."""
        return self._next < self.end

    @property
    def held_since(self) -> float:
        """When the oldest in memory was put, on the monotonic clock; infinite where there is none."""
        return self._held[0][1] if self._held else float("inf")

    @property
    def overfull(self) -> bool:
        """Whether more is in memory than may be."""
        return self._held_bytes > self._memory_bytes

    @property
    def equipped(self) -> bool:
        """Whether there is a spool."""
        return self._disk is not None

    @property
    def waiting(self) -> int:
        """Records that Kafka may not have."""
        return self.end - self._first - len(self._settled)

    @property
    def spooled(self) -> int:
        """Those of them that are on disk."""
        return max(0, self._held_from - self._first) if self._disk else 0

    @property
    def spooled_bytes(self) -> int:
        """What they take there."""
        return self._disk.bytes if self._disk else 0

    @property
    def trouble(self) -> str:
        """Why the disk takes no more, in words; empty when it does."""
        return "" if self._disk is None else self._disk.trouble  # also of a disk that took nothing at all

    # ---- what is said ----

    def put(self, record: Record, since: float) -> None:
        """Add a record; `since` is the monotonic clock now."""
        self._held.append((record, since))
        self._held_bytes += _size(record)

    def spill(self, before: float) -> None:
        """Write down what was put before, on the monotonic clock, and whatever was put earlier still."""
        if self._disk is None:
            return
        records = []
        for record, since in self._held:
            if since >= before:
                break
            records.append(record)
        if not records:
            return
        taken = self._disk.append(self._held_from, records)
        for _ in range(taken):
            self._held_from += 1  # first: who asks meanwhile is told one too many and never one too few
            self._held_bytes -= _size(self._held.popleft()[0])
        while self._disk.bytes > self._disk_bytes:
            self._drop(self._disk.drop_oldest(), "overflow")

    def trim(self, now: Instant) -> None:
        """Keep to the bounds of age and of memory."""
        stale = now - self._keep_ms
        while self._disk is not None and self._disk.older_than(stale):
            self._drop(self._disk.drop_oldest(), "stale")
        while self._first == self._held_from and self._held and self._held[0][0].at < stale:
            if self._first in self.in_flight:
                break
            self._drop(self._first + 1, "stale")
        while self.overfull:
            held = len(self._held)
            self.spill(float("inf"))
            if len(self._held) < held:
                continue
            if self._disk:  # it takes nothing more: its oldest give room
                self._drop(self._disk.drop_oldest(), "overflow")
                continue
            while self.overfull:  # nor is there anything on it: to ask again for each record would take long
                self._drop(self._held_from + 1, "overflow")

    # ---- what is sent ----

    def take(self, most: int, now: Instant) -> list[tuple[int, Record]]:
        """The next records to send, in order, with their numbers. They are in flight until `done`,
        `refuse` or `rewind`."""
        taken: list[tuple[int, Record]] = []
        while len(taken) < most and self._next < self.end:
            number = self._next
            if number not in self._settled:
                try:
                    record = self._at(number)
                except Damaged as damage:
                    self.notes.append(str(damage))
                    unread = set(range(damage.first, damage.end)) - self._settled
                    self.lost["damaged"] += len(unread)
                    self._settled |= unread
                    continue
                if record.at < now - self._keep_ms:
                    self.lost["stale"] += 1
                    self._settled.add(number)
                else:
                    self.in_flight.add(number)
                    taken.append((number, record))
            self._next += 1
        if not taken:
            self._advance()
        return taken

    def done(self, number: int) -> None:
        """Kafka has it."""
        if number in self.in_flight:
            self.sent += 1
            self._settle(number)

    def refuse(self, number: int) -> None:
        """Kafka will never take it."""
        if number in self.in_flight:
            self.lost["refused"] += 1
            self._settle(number)

    def rewind(self) -> None:
        """What is in flight has nowhere to arrive any more: it is taken again, the oldest first."""
        gone = sum(number < self._first for number in self.in_flight)
        if gone:
            self.lost["overflow"] += gone
        self.in_flight.clear()
        self._next = self._first

    def close(self) -> None:
        """Leave what is on disk to the next process; what is not is lost, as ``closing``."""
        self.rewind()
        unkept = set(range(max(self._first, self._held_from), self.end)) - self._settled
        if unkept:
            self.lost["closing"] += len(unkept)
        self._settled = {number for number in self._settled if number < self._held_from}
        self._held.clear()
        if self._disk is not None:
            self._disk.close()

    def _at(self, number: int) -> Record:
        if number >= self._held_from:
            return self._held[number - self._held_from][0]
        assert self._disk is not None, "what is not held is on disk"
        return self._disk.read(number)

    def _settle(self, number: int) -> None:
        self.in_flight.discard(number)
        if number >= self._first:
            self._settled.add(number)
            self._advance()

    def _advance(self) -> None:
        """Let go of the settled ones that nothing older waits before."""
        first = self._first
        while first in self._settled:
            self._settled.discard(first)
            first += 1
        if first != self._first:
            self._let_go(first)
            if self._disk is not None and not self._held:
                self._disk.trouble = ""  # nothing is left by whose writing it would show that it takes more

    def _drop(self, end: int, reason: str) -> None:
        """Give up what has a number below `end`. What is in flight may still arrive."""
        for number in range(self._first, end):
            if number in self._settled:
                self._settled.discard(number)
            elif number not in self.in_flight:
                self.lost[reason] += 1
        self._let_go(max(self._first, end))
        self._advance()

    def _let_go(self, first: int) -> None:
        self._first = first
        self._next = max(self._next, first)
        while self._held and self._held_from < first:
            self._held_from += 1
            self._held_bytes -= _size(self._held.popleft()[0])
        if self._disk is not None:
            self._disk.forget(first)


def _size(record: Record) -> int:
    return len(record.key) + len(record.value) + _OVERHEAD
