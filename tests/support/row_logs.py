"""A row's partition without a broker, and hosts that read and write it: for claims about the log."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

import msgspec

from runtime.hosts.row_log import INPUTS, TICKS, RowLog
from runtime.row_loop import Beat, RowLoop
from schemas.envelope import Event, Tick
from schemas.instants import Instant
from schemas.topics import topic_of


class Partition:
    """The topics of one partition as lists; None is a message of another row. `kept` is the row's last
    snapshot, `sent` what reached the ledger and the agents, as (tick, epoch of the sender's claim)."""

    def __init__(self) -> None:
        self.topics: dict[str, list[Event | None]] = {topic: [] for topic in (*INPUTS, TICKS)}
        self.kept: bytes | None = None
        self.covered: Mapping[str, int] = {}
        self.sent: list[Tick] = []

    def put(self, events: Iterable[Event], others: int = 0) -> None:
        """Append each to its topic, behind so many messages of other rows."""
        for event in events:
            log = self.topics[topic_of(event).name]
            log += [None] * others
            log.append(event)

    @property
    def ticks(self) -> list[Tick]:
        """Every tick in the log, also those that count for nothing."""
        return [tick for tick in self.topics[TICKS] if isinstance(tick, Tick)]


class Member:
    """A host of the row: reads the partition as far as it is told, each topic at its own pace, and
    publishes, records and sends as a real shell does. `outbox` are ticks on their way to the broker."""

    def __init__(self, partition: Partition, loop: RowLoop, worker: str, back: int = 0) -> None:
        self.partition = partition
        self.log = RowLog(loop, worker=worker)
        self.log.restore(partition.kept)
        self.at = {topic: max(0, partition.covered.get(topic, 0) - back) for topic in partition.topics}
        self.beats: list[Beat] = []
        self.unsent: list[Beat] = []
        self.outbox: list[Tick] = []

    def read(self, topic: str, most: int) -> None:
        """Take so many messages of a topic, those of other rows among them."""
        log = self.partition.topics[topic]
        while most and self.at[topic] < len(log) and self.log.wants(topic):
            event, offset = log[self.at[topic]], self.at[topic]
            self.at[topic] += 1
            most -= 1
            for beat in self.log.take(topic, offset, event) if event is not None else ():
                self.beats.append(beat)
                if self.log.mine(beat):
                    self.unsent += [*self.log.redone, beat]

    def catch_up(self, chance: random.Random) -> None:
        """Read everything there is, the topics in any order and in any pieces."""
        while behind := [t for t, log in self.partition.topics.items() if self.at[t] < len(log)]:
            self.read(chance.choice(behind), chance.randint(1, 40))

    def propose(self, now: Instant) -> Tick | None:
        """What the log wants published, put on its way."""
        if self.unsent:
            return None
        tick = self.log.propose(now)
        if tick is not None:
            self.outbox.append(tick)
        return tick

    def land(self) -> None:
        """What was on its way arrives."""
        self.partition.put(self.outbox)
        self.outbox.clear()

    def send(self) -> None:
        """Record and send what own beats said."""
        self.partition.sent += [beat.tick for beat in self.unsent]
        self.unsent.clear()

    def keep(self) -> None:
        """Write a snapshot and acknowledge what it covers."""
        kept = self.log.snapshot()
        if kept is not None and self.log.owns and not self.unsent:
            self.partition.kept, self.partition.covered = kept


def said(beats: Iterable[Beat]) -> list[bytes]:
    """What beats said, as it goes on the wire."""
    return [msgspec.json.encode(beat.outputs) for beat in beats]
