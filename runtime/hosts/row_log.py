"""One row on its partition's log: whoever reads the same log does the same beats.

A row's ticks are messages on the log, and their order there is the only order there is. Whoever wants
the row beaten publishes a tick (`propose`). A beat is done when its tick is read back (`take`), by its
own host and by every other reader alike:

    propose ──Tick──► windrow.ticks ──► take ─► beat ─► its host alone: ledger, then commands
                                          ▲
          inputs, in the order of each topic, held until a tick says that they count

So there is nothing to undo: a host whose tick came too late, or never, has not beaten; one that takes a
row over does the beats since the last snapshot as they were done; one that has lost the row follows it.

**Inputs.** A tick names, by topic, the offset that its inputs end before (`upto`), and carries what came
from no topic (`besides`). Topics are fetched independently: a tick that was read before all its inputs
waits for them.

**Owning.** A host that takes a row over *claims* it: its first tick bears the highest epoch read so far
plus one. The first tick of an epoch in the log makes its source the row's owner; ticks of lower epochs,
and of other sources under that epoch, are passed over from there on by everyone. A host that reads a
higher epoch than its own owns the row no longer, at once, and claims it again only when the other has
been silent.

**State** is the last snapshot and the log since. A host that has neither begins `anew`: its claim says so,
and what outlives a row's memory (people's words, open troubles, the last decision) comes with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from controllers.view import View, view
from runtime.control_loop import TICK_SOURCE
from runtime.hosts.snapshot import Mark, SnapshotRefused, freeze, thaw
from runtime.metronome import Metronome
from runtime.row_loop import Beat, RowLoop, RowState
from schemas import codec
from schemas.envelope import Event, Tick
from schemas.instants import Instant
from schemas.topics import BY_TYPE, TOPICS

TICKS = BY_TYPE[Tick].name
INPUTS = tuple(topic.name for topic in TOPICS if topic.key == "row" and topic.rank < BY_TYPE[Tick].rank)
"""The topics that a row's beats take their inputs from, on the row's own partition of each."""

HELD_AT_MOST = 4_000
"""Messages of one topic that a row holds before it asks for no more: two minutes of 32 hosts at 1 Hz, some
tens of megabytes (our choice)."""


class Snapshot(NamedTuple):
    """A row's state as bytes, and by topic the offset below which nothing is needed once they are kept."""

    payload: bytes
    covers: Mapping[str, int]


class RowLog:
    """A row's loop, its log and who owns it. Pure: it is handed messages and `now`, and does no I/O.

    A shell restores it, hands it every message of the row's key on the partition (`take`), publishes
    what `propose` returns to windrow.ticks, and acts on the beats that `take` returns where they are
    its own (`mine`). `worker` must be another at each start of a process: two hosts of one name would
    take each other's ticks for their own.

    `redone` is the last beat before the row became this host's: its owner may have died before it sent
    what it said, so that is sent again, before anything else (every message is known by its id).
    `ignored` counts ticks that were passed over, `unread` messages in ticks that could not be read.
    """

    def __init__(self, loop: RowLoop, *, worker: str) -> None:
        self.loop = loop
        self.source = f"{TICK_SOURCE}/{worker}"
        self.epoch = 0
        """The highest epoch read, and who has it."""
        self.owner = ""
        self.redone: Beat | None = None
        self.refusal = ""
        self.ignored = 0
        self.unread = 0
        self._state: RowState | None = None
        self._done = Mark()
        self._read: dict[str, int] = {}
        self._held: dict[str, deque[tuple[int, Event]]] = {topic: deque() for topic in INPUTS}
        self._ticks: deque[tuple[int, Tick]] = deque()
        self._told: dict[str, Event] = {}
        self._claimed = 0
        self._metronome = Metronome(loop.row, loop.policy)
        self._proposed_at: Instant | None = None
        self._accepted = 0
        self._noticed = (0, 0)

    # -- reading the log --------------------------------------------------------------------------

    def restore(self, snapshot: bytes | None) -> Mapping[str, int]:
        """Begin with a snapshot; by topic, the offset to read on from. Call it first.

        Empty without one, and where it was made by other code, for another row or policy, or is no
        snapshot (`refusal` then says so in words): the row begins anew, wherever one reads on from.
        Reading on from an earlier offset is harmless, from a later one is not: where the group's
        offsets are ahead of these, seek.
        """
        ...

    def take(self, topic: str, offset: int, event: Event) -> list[Beat]:
        """A message of this row's key, in the order of its topic; the beats that could now be done.

        `topic` is the name in the table of topics, INPUTS or TICKS. An offset that was taken before, or
        that the snapshot covers, is passed over.
        """
        ...

    def passed(self, topic: str, offset: int) -> list[Beat]:
        """The topic was read up to before `offset` and no more of this row is there: what was below may
        be of other rows, unreadable, or gone for its age. The beats that could now be done."""
        ...

    def wants(self, topic: str) -> bool:
        """Whether to hand over more of a topic: not while HELD_AT_MOST of it are held, unless a tick waits
        for them. Ticks are always wanted."""
        ...

    @property
    def waits(self) -> str:
        """What the next recorded tick waits for, in words; empty when every tick read has been done."""
        ...

    # -- beating ----------------------------------------------------------------------------------

    @property
    def cold(self) -> bool:
        """Whether nothing is remembered of the row: a claim then begins it anew. Tell it first what
        outlives a row's memory."""
        ...

    def tell(self, events: Iterable[Event]) -> None:
        """Something for the row that is on none of its topics: alarms of its host, a command withheld,
        what a new controller is told. It goes into the next tick that this host proposes; a host that
        loses the row forgets it."""
        ...

    def propose(self, now: Instant) -> Tick | None:
        """The tick to publish now, None when there is none to publish.

        A claim, when this host does not own the row: the first at once, a later one only after the owner
        has been silent for three periods. Else the row's next beat, when it is due. One tick is under
        way at a time; one that has not come back after two periods is given up (should it come after
        all, it counts). Call it only once the log was read to where it ended at the start: the ticks to
        their end, so that no recorded one is missing, and the inputs as far as they are wanted, so that
        the first look is not one at old readings.
        """
        ...

    def next_beat(self, now: Instant) -> Instant:
        """When to call `propose` again, unless a message is taken before."""
        ...

    @property
    def owns(self) -> bool:
        """Whether the row is this host's, as far as the log was read. Ask right before commands are sent,
        records kept and snapshots written."""
        ...

    def mine(self, beat: Beat) -> bool:
        """Whether a beat is this host's own and it still owns the row: record it, then send what it said."""
        ...

    def view(self, now: Instant) -> View:
        """The row as its controller sees it. Raises ValueError while nothing is remembered."""
        ...

    # -- keeping ----------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot | None:
        """The row after its last beat; None while nothing is remembered.

        What was taken since is not in it and not covered by it: it is read again. Take one only while
        the row is owned and after what the last beat said was sent, and acknowledge what it covers only
        when the broker has it.
        """
        ...
