"""The control loop of a site: who must be looked at, and when.

Events name what to look at, never what to do: each goes to the rows it concerns, and one that
cannot wait for the next beat (a UPS on battery, power of a row's meter above its budget) marks the
row dirty, so that its beat comes at once. A beat looks at the whole row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from controllers.policy import CappingPolicy
from controllers.view import View, view
from runtime.metronome import Metronome
from runtime.row_loop import Beat, RowLoop, RowState
from schemas.envelope import Event, Tick
from schemas.instants import Instant
from schemas.topology import Site

TICK_SOURCE = "runtime/control-loop"


def rows_by_subject(site: Site) -> dict[str, tuple[str, ...]]:
    """Every topology path a message may speak of → the rows it concerns.

    A power node concerns the rows it feeds, directly or through the nodes below it.
    """
    concerned: dict[str, dict[str, None]] = {site.name: {row.path: None for row in site.rows}}
    for row in site.rows:
        below = [rack.path for rack in row.racks] + [host.path for host in row.hosts]
        feeds = [*row.meters, *(feed for rack in row.racks for feed in rack.feeds)]
        for path in [row.path, *below, *feeds]:
            concerned.setdefault(path, {})[row.path] = None
        for feed in feeds:
            node = site.nodes[feed]
            while node.parent:
                node = site.nodes[node.parent]
                concerned.setdefault(node.path, {})[row.path] = None
    return {subject: tuple(rows) for subject, rows in concerned.items()}


class ControlLoop:
    """Routes events to the rows' loops and beats them.

    `strangers` counts events whose subject is on no row of the site, by type: an unknown host is
    seen and counted, and steers nothing.
    """

    def __init__(self, site: Site, policy: CappingPolicy, *, epoch: int) -> None:
        self.site = site
        self.policy = policy
        self.loops: dict[str, RowLoop] = {row.path: RowLoop(row, policy, epoch=epoch) for row in site.rows}
        self.states: dict[str, RowState] = {path: loop.initial() for path, loop in self.loops.items()}
        self.strangers: dict[str, int] = {}
        self._rows_of = rows_by_subject(site)
        self._metronomes = {row.path: Metronome(row, policy) for row in site.rows}

    def offer(self, events: Iterable[Event]) -> None:
        """Hand events to the rows they concern; they speak at the rows' next beat."""
        for event in events:
            rows = self._rows_of.get(event.subject)
            if rows is None:
                kind = type(event).__name__
                self.strangers[kind] = self.strangers.get(kind, 0) + 1
                continue
            for row in rows:
                self.states[row].pending.append(event)
                self._metronomes[row].hear(event)

    def due(self, now: Instant) -> tuple[str, ...]:
        """The rows to beat now, in site-file order."""
        return tuple(row for row, metronome in self._metronomes.items() if metronome.due(now))

    def next_beat(self, now: Instant) -> Instant:
        """When the next row is due; now, while a row cannot wait."""
        return min(metronome.next_beat(now) for metronome in self._metronomes.values())

    def beat(self, row: str, now: Instant) -> Beat:
        """Close the row's beat at `now`."""
        tick = Tick(at=now, source=TICK_SOURCE, subject=row)
        beat = self.replay(tick)
        self._metronomes[row].beaten(now)
        return beat

    def replay(self, tick: Tick, inputs: Sequence[Event] = ()) -> Beat:
        """Close a beat exactly as it was recorded: these inputs, this tick, this row."""
        row = tick.subject
        if tick.anew:
            self.states[row] = self.loops[row].initial()
        self.states[row], (beat,) = self.loops[row].step(self.states[row], [*inputs, tick])
        return beat

    def view(self, row: str, now: Instant) -> View:
        """The row as its controller sees it."""
        return view(self.states[row].view, self.loops[row].row, now)

    @property
    def unheard(self) -> tuple[Event, ...]:
        """What has been offered since the rows' last beats."""
        return tuple(event for state in self.states.values() for event in state.pending)

    @property
    def dirty(self) -> bool:
        """Whether a row wants its beat before its period has passed."""
        return any(metronome.dirty for metronome in self._metronomes.values())
