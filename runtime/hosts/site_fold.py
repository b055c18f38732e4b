"""A site's power on Kafka: the worker that has the site's partition of the rows' summaries sums them.

Nothing is kept of it: within one silence of `SILENT_MS` a new owner has heard every row that speaks.
"""

from __future__ import annotations

from collections.abc import Iterable

from runtime.bus.keys import partition_of
from runtime.hosts.partition import Record, read
from schemas.envelope import DeadLetter, Tick
from schemas.instants import Instant, Span
from schemas.samples import RowSummary, SitePower
from schemas.topics import BY_NAME, BY_TYPE
from schemas.topology import Site
from streams.site_power import SILENT_MS, SiteView

SUMMARIES = BY_TYPE[RowSummary].name

LOOK_BACK: Span = SILENT_MS
"""How far back a new owner reads: further, a row counts as silent."""


class SiteFold:
    """The fold of one site. `number` is the partition that it lies on; `owned` says whether that is read
    here."""

    def __init__(self, site: Site, period_ms: Span) -> None:
        self.number = partition_of(site.name.encode(), BY_NAME[SUMMARIES].partitions)
        self.owned = False
        self._site = site.name
        self._view = SiteView(site)
        self._state = self._view.initial()
        self._period = period_ms
        self._last: Instant = 0

    def begin(self) -> None:
        """The partition is read here from now on."""
        self.owned = True
        self._state = self._view.initial()

    def lose(self) -> None:
        """It is another's."""
        self.owned = False

    def take(self, records: Iterable[Record]) -> list[DeadLetter]:
        """What rows say of themselves; what was unreadable."""
        events = [read(record, SUMMARIES) for record in records]
        letters = [event for event in events if isinstance(event, DeadLetter)]
        if self.owned:
            self._state, _ = self._view.step(self._state, events)
        return letters

    def tick(self, now: Instant) -> SitePower | None:
        """The site's power, once in each period, from the latest beat of each row. They beat at moments of
        their own (`runtime.metronome`): no word is older than a period, whenever they are summed."""
        at = now - now % self._period
        if not self.owned or at == self._last:
            return None
        self._last = at
        tick = Tick(at=at, source="runtime/site", subject=self._site)
        self._state, (power,) = self._view.step(self._state, [tick])
        return power
