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
been silent. What agents say shows which epochs they have obeyed: where one is above all that the log knows
(the row ran on one machine before, or the brokers are new), the owner claims its own row anew above that.

**State** is the last snapshot and the log since. A host that has neither begins `anew`: its claim says so,
and what outlives a row's memory (people's words, open troubles, the last decision) comes with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from controllers.view import View, view
from runtime.control_loop import TICK_SOURCE
from runtime.hosts.replay import is_input
from runtime.hosts.snapshot import Mark, SnapshotRefused, freeze, thaw
from runtime.metronome import Metronome, phase_of
from runtime.row_loop import Beat, RowLoop, RowState
from schemas import codec
from schemas.envelope import Event, Tick
from schemas.instants import Instant, Span, to_text
from schemas.outcomes import Outcome, Refused
from schemas.topics import BY_TYPE, TOPICS

TICKS = BY_TYPE[Tick].name
INPUTS = tuple(topic.name for topic in TOPICS if topic.key == "row" and topic.rank < BY_TYPE[Tick].rank)
"""The topics that a row's beats take their inputs from, on the row's own partition of each."""

HELD_AT_MOST = 4_000
"""Messages of one topic that a row holds before it asks for no more: two minutes of 32 hosts at 1 Hz, some
tens of megabytes (our choice)."""

_PATIENCE_PERIODS = 3
"""How long a tick may be under way, and an owner silent, before there is another (our choice: the agents'
leases run for 90 s, and a row's readings are unknown after 5)."""

_UNSURE_AT_MOST = 8  # owners that died one after the other, each in its first beat


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

    `epoch` is the highest read and `owner` the source of its first tick. `redone` is set when the row
    becomes this host's: the beats before its own whose owners may have died before they sent what those
    said. Record and send them again, in order, before the first own beat; every message is known by its id.
    `ignored` counts ticks that were passed over, `unread` words in ticks that could not be read.
    """

    def __init__(self, loop: RowLoop, *, worker: str) -> None:
        self.loop = loop
        self.source = f"{TICK_SOURCE}/{worker}"
        self.epoch = 0
        self.owner = ""
        self.redone: tuple[Beat, ...] = ()
        self.refusal = ""
        self.ignored = 0
        self.unread = 0
        self._patience: Span = _PATIENCE_PERIODS * loop.policy.period_ms
        phase = phase_of(loop.row.path, loop.policy.period_ms)
        self._metronome = Metronome(loop.row, loop.policy, phase)
        self._state: RowState | None = None
        self._done = Mark()
        self._unsure: deque[Beat] = deque(maxlen=_UNSURE_AT_MOST)
        self._read: dict[str, int] = {}
        self._held: dict[str, deque[tuple[int, Event]]] = {topic: deque() for topic in INPUTS}
        self._ticks: deque[tuple[int, Tick]] = deque()
        self._words: tuple[str, ...] = ()
        self._told: dict[str, Event] = {}
        self._claimed = 0
        self._least = 0
        self._proposed: Tick | None = None
        self._proposed_at: Instant = 0
        self._accepted = 0  # ticks; how many there were when last asked, and since when that many
        self._noticed = 0
        self._noticed_at: Instant = 0

    # -- reading the log --------------------------------------------------------------------------

    def restore(self, snapshot: bytes | None) -> Mapping[str, int]:
        """Begin with a snapshot; by topic, the offset to read on from. Call it first.

        Empty without one, and where it was made by other code, for another row or policy, or is no
        snapshot (`refusal` then says so in words): the row begins anew. Reading on from an earlier
        offset is harmless, from a later one is not: where the group's offsets are ahead of these, seek.
        Without a snapshot read the ticks from their beginning, for the epoch.
        """
        if snapshot is None:
            return {}
        try:
            self._state, self._done = thaw(snapshot, self.loop)
        except SnapshotRefused as why:
            self.refusal = str(why)
            self.above(why.epoch)
            return {}
        self.epoch, self.owner = self._done.epoch, self._done.owner
        self._read = dict(self._done.upto)
        self._metronome.beaten(self._done.at)
        return self._done.upto

    def above(self, epoch: int) -> None:
        """Epochs up to this one have been used, as commands and outcomes say: a claim goes above them. The
        log of ticks forgets after its retention, host agents do not."""
        self._least = max(self._least, epoch)

    def take(self, topic: str, offset: int, event: Event) -> list[Beat]:
        """A message of this row's key, in the order of its topic; the beats that can be done with it.

        `topic` is the name in the table of topics, one of INPUTS or TICKS. An offset that was taken
        before, or that the snapshot covers, is passed over.
        """
        if offset < self._read.get(topic, 0):
            return []
        if topic != TICKS:
            self._held[topic].append((offset, event))
            self._metronome.hear(event)
        elif isinstance(event, Tick):
            self._hear(offset, event)
        return self.passed(topic, offset + 1)

    def passed(self, topic: str, offset: int) -> list[Beat]:
        """The topic was read up to before `offset`, and no more of this row is there: what was is of other
        rows, unreadable, or gone for its age. The beats that can be done now."""
        self._read[topic] = max(offset, self._read.get(topic, 0))
        beats = []
        while self._ticks and not self._lacking():
            beat = self._beat(*self._ticks.popleft())
            if beat is not None:
                beats.append(beat)
        return beats

    def wants(self, topic: str) -> bool:
        """Whether to hand over more of a topic now: not while HELD_AT_MOST of it are held, unless the next
        recorded tick waits for them."""
        held = self._ticks if topic == TICKS else self._held[topic]
        if len(held) < HELD_AT_MOST:
            return True
        return bool(self._ticks) and self._read.get(topic, 0) < self._ticks[0][1].upto.get(topic, 0)

    @property
    def waits(self) -> str:
        """What the next recorded tick waits for, in words; empty when every tick read has been done."""
        topic = self._lacking()
        if not topic:
            return ""
        _, tick = self._ticks[0]
        upto, read = tick.upto[topic], self._read.get(topic, 0)
        return f"the beat of {to_text(tick.at)} waits for {topic} up to {upto}, read to {read}"

    def lacks(self, ends: Mapping[str, int]) -> str:
        """What the next recorded tick names, and the log does not hold, in words: it was cut below what that
        tick's owner had read, or the tick is forged. `ends` is by topic where the log ends."""
        topic = self._lacking()
        if topic not in ends or self._read.get(topic, 0) < ends[topic]:
            return ""
        return f"{self.waits}, and ends there"

    def forget(self) -> None:
        """Give up what is remembered and what is still to be redone, for the recorded ticks cannot be done:
        this host claims the row, which begins anew (see `remind`). Whoever else reads the log and waits for
        the same must forget too."""
        self._state = None
        self._ticks.clear()
        self._unsure.clear()
        self.redone = ()
        self._proposed = None
        self._claimed = 0

    # -- beating ----------------------------------------------------------------------------------

    @property
    def cold(self) -> bool:
        """Whether nothing is remembered of the row: a claim then begins it anew."""
        return self._state is None

    def remind(self, words: Iterable[Event]) -> None:
        """What outlives a row's memory, from the ledger: it goes into the claim that begins the row anew,
        and nowhere else. Replaces what was given before."""
        self._words = tuple(codec.encode(event).decode() for event in words)

    def tell(self, events: Iterable[Event]) -> None:
        """Something for the row that is on none of its topics: its host's alarms, a command withheld. It
        goes into the next tick that this host proposes; a host that loses the row forgets it."""
        for event in events:
            self._told[codec.encode(event).decode()] = event
            self._metronome.hear(event)

    def propose(self, now: Instant) -> Tick | None:
        """The tick to publish now, None when there is none to publish.

        A claim, when this host does not own the row: the first at once, a later one only after the owner
        was silent for three periods. Else the row's next beat, when it is due. One tick is under way at a
        time; one that has not come back after three periods is handed out again, the same.

        Call it only when what the last own beat said was sent, and once the log was read to where it ended
        at the start: the ticks to their end, so that no recorded one is missing, and the inputs as far as
        they are wanted, so that the first look is not one at old readings.
        """
        if self._accepted != self._noticed:
            self._noticed, self._noticed_at = self._accepted, now
        if self._ticks or self._not_before(now) > now:
            return None
        if self._proposed is None:
            if self.owns and not self._metronome.due(now):
                return None
            self._proposed = self._tick(now)
            self._noticed_at = now
        self._proposed_at = now
        return self._proposed

    def next_beat(self, now: Instant) -> Instant:
        """When to call `propose` again, unless a message is taken before."""
        waits = self._proposed is not None or not self.owns
        return max(self._not_before(now), now if waits else self._metronome.next_beat(now))

    @property
    def owns(self) -> bool:
        """Whether the row is this host's, as far as the log was read. Ask right before commands are sent
        and snapshots written."""
        return self.owner == self.source and self.epoch == self._claimed

    def mine(self, beat: Beat) -> bool:
        """Whether a beat is this host's own, and it still owns the row: record it, then send what it said."""
        return self.owns and beat.tick.epoch == self.epoch

    def view(self, now: Instant) -> View:
        """The row as its controller sees it. Raises ValueError while nothing is remembered."""
        if self._state is None:
            raise ValueError(f"nothing is remembered of {self.loop.row.path}")
        return view(self._state.view, self.loop.row, now)

    # -- keeping ----------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot | None:
        """The row after its last beat; None while nothing is remembered.

        What was taken since is not in it and not covered by it: it is read again. Take one only while
        the row is owned and after what the last beat said was sent, and acknowledge what it covers only
        when the broker has it.
        """
        if self._state is None:
            return None
        first = {topic: held[0][0] for topic, held in self._held.items() if held}
        if self._ticks:
            first[TICKS] = self._ticks[0][0]
        mark = msgspec.structs.replace(self._done, upto=self._read | first)
        return Snapshot(freeze(self._state, self.loop, mark), mark.upto)

    # -- inside -----------------------------------------------------------------------------------

    def _lacking(self) -> str:
        """The first topic that the next recorded tick waits for; asked at every message."""
        if self._ticks:
            upto, read = self._ticks[0][1].upto, self._read
            for topic in INPUTS:
                if read.get(topic, 0) < upto.get(topic, 0):
                    return topic
        return ""

    def _hear(self, offset: int, tick: Tick) -> None:
        """A tick in the log: whose it is, is settled by its place there, before anything is done."""
        claims = tick.epoch > self.epoch
        known = tick.epoch == self.epoch and tick.source == self.owner
        if tick.subject != self.loop.row.path or not (claims or known):
            self.ignored += 1
            return
        self.epoch, self.owner = tick.epoch, tick.source
        self._accepted += 1
        self._ticks.append((offset, tick))
        if self._proposed is not None and tick.id == self._proposed.id:
            self._proposed = None
        elif self._claimed and not self.owns and tick.epoch >= self._claimed:
            self._told.clear()
            self._proposed = None

    def _beat(self, offset: int, tick: Tick) -> Beat | None:
        """Do a beat that the log holds. None where it is none: one more in the same millisecond, or of a
        row of which nothing is remembered."""
        mark = msgspec.structs.replace(self._done, epoch=tick.epoch, owner=tick.source)
        if tick.at == mark.at:
            self._done = mark
            return None
        inputs = []
        for topic, held in self._held.items():
            upto = tick.upto.get(topic, 0)
            while held and held[0][0] < upto:
                inputs.append(held.popleft()[1])
        reached = {topic: max(n, mark.upto.get(topic, 0)) for topic, n in tick.upto.items()}
        self._done = msgspec.structs.replace(mark, upto={**mark.upto, **reached}, at=tick.at)
        for text in tick.besides:
            self._told.pop(text, None)
            word = _word(text)
            if word is None:
                self.unread += 1
            else:
                inputs.append(word)
        for event in inputs:
            if isinstance(event, Outcome):  # in a beat of its own, not before: then all older claims are read
                self.above(event.fenced_by if isinstance(event, Refused) else event.epoch)
        self._metronome.beaten(tick.at)
        for event in self._unheard():
            self._metronome.hear(event)
        if tick.anew:
            self._state = self.loop.initial()
        if self._state is None:
            return None
        self._state, (beat,) = self.loop.step(self._state, [*inputs, tick])
        if self._unsure and self._unsure[-1].tick.epoch == tick.epoch:
            self._unsure.clear()  # its owner beats on, so it has sent what was said until then
            self.redone = ()
        elif tick.source == self.source and tick.epoch == self._claimed:
            self.redone = tuple(self._unsure)
        self._unsure.append(beat)
        return beat

    def _unheard(self) -> Iterator[Event]:
        for held in self._held.values():
            for _, event in held:
                yield event
        yield from self._told.values()

    def _tick(self, now: Instant) -> Tick:
        anew = self.cold
        if not self.owns or self._least > self.epoch:
            self._claimed = max(self.epoch, self._least) + 1
        upto = {topic: held[-1][0] + 1 for topic, held in self._held.items() if held}
        return Tick(
            at=now,
            source=self.source,
            subject=self.loop.row.path,
            epoch=self._claimed,
            anew=anew,
            upto={topic: n for topic, n in (self._done.upto | upto).items() if topic != TICKS},
            besides=(*(self._words if anew else ()), *self._told),
        )

    def _not_before(self, now: Instant) -> Instant:
        """When a tick may be handed out: not while one is under way, nor while the row's owner speaks."""
        if self._proposed is not None:
            since = self._proposed_at
        elif self._claimed and not self.owns:
            since = self._noticed_at
        else:
            return now
        return since + self._patience if since <= now else now  # else the clock was set back


def _word(text: str) -> Event | None:
    """A word that came with a tick; None where it is nothing that a row is told."""
    try:
        word = codec.decode(text.encode())
    except codec.Malformed:
        return None
    return word if is_input(word) else None
