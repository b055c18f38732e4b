"""A site's power at each tick, from what its rows say at their beats.

A row that has said nothing for `silent_ms` is unknown: it lowers the coverage, counts at its nameplate in
the upper bound, and leaves the site without a sum. No number stands in for it. Rows are heard in the order
of their beats; one that is dated after the tick counts as said at the tick, so that no clock that runs
ahead keeps a silent row known.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.decisions import Decision
from schemas.envelope import Event, Tick
from schemas.instants import SECOND, Instant, Span
from schemas.samples import PowerRollup, RowSummary, SitePower
from schemas.topology import Site
from streams.quality import InOrder

SILENT_MS: Span = 10 * SECOND
"""Five beats of 2 s, when a row's host calls its own beat late too (our choice)."""


def summarise(rollup: PowerRollup, decision: Decision) -> RowSummary:
    """What a site needs to know of one beat of a row."""
    return RowSummary(
        at=rollup.at,
        source=f"streams/site/{rollup.subject}",
        subject=rollup.subject,
        cause=(rollup.id, decision.id),
        power_w=rollup.power_w,
        upper_w=rollup.upper_w,
        coverage_ratio=rollup.coverage_ratio,
        mode=decision.mode,
        shortfall_w=decision.shortfall_w,
        refusal=decision.refusal,
        hottest_c=rollup.hottest_c,
    )


class RowHeard:
    """The last word of one row, and when it counts as said."""

    __slots__ = ("at", "order", "said")

    def __init__(self, said: RowSummary) -> None:
        self.order = InOrder()
        self.order.take(said.at)
        self.said = said
        self.at: Instant = said.at


class SiteState:
    """What each row of a site said last, by the row's path, and how many words were of no row of it."""

    __slots__ = ("rows", "strangers")

    def __init__(self) -> None:
        self.rows: dict[str, RowHeard] = {}
        self.strangers = 0


class SiteView:
    """RowSummary and the site's Tick in, one SitePower per Tick out; others pass unread."""

    def __init__(self, site: Site, *, silent_ms: Span = SILENT_MS) -> None:
        self._site = site
        self._rated_w = {row.path: row.rated_w for row in site.rows}
        self._total_w = sum(self._rated_w.values())
        self._budget_w = sum(row.budget_w for row in site.rows)
        self._silent_ms = silent_ms

    def key(self, event: Event) -> str:
        """The site."""
        return self._site.name

    def initial(self) -> SiteState:
        """Nothing heard yet."""
        return SiteState()

    def step(self, state: SiteState, events: Sequence[Event]) -> tuple[SiteState, list[SitePower]]:
        """Take the events in; each tick of the site is answered with its power."""
        out: list[SitePower] = []
        for event in events:
            if isinstance(event, RowSummary):
                self._hear(state, event)
            elif isinstance(event, Tick) and event.subject == self._site.name:
                out.append(self._at_tick(state, event))
        return state, out

    def _hear(self, state: SiteState, said: RowSummary) -> None:
        if said.subject not in self._rated_w:
            state.strangers += 1
            return
        heard = state.rows.get(said.subject)
        if heard is None:
            state.rows[said.subject] = RowHeard(said)
        elif heard.order.take(said.at):
            heard.said, heard.at = said, said.at

    def _at_tick(self, state: SiteState, tick: Tick) -> SitePower:
        words: list[RowSummary] = []
        silent: list[str] = []
        known_w = upper_w = covered_w = 0.0
        for path, rated_w in self._rated_w.items():
            heard = state.rows.get(path)
            if heard is not None:
                heard.at = min(heard.at, tick.at)
            if heard is None or tick.at - heard.at > self._silent_ms:
                silent.append(path)
                upper_w += rated_w
                continue
            words.append(heard.said)
            known_w += heard.said.power_w or 0.0
            upper_w += heard.said.upper_w
            covered_w += heard.said.coverage_ratio * rated_w
        whole = not silent and all(said.power_w is not None for said in words)
        modes = [said.mode for said in words]
        strangers, state.strangers = state.strangers, 0
        return SitePower(
            at=tick.at,
            source=f"streams/site/{self._site.name}",
            subject=self._site.name,
            power_w=known_w if whole else None,
            known_w=known_w,
            upper_w=upper_w,
            budget_w=self._budget_w,
            coverage_ratio=covered_w / self._total_w,
            rows_total=len(self._rated_w),
            modes={mode: modes.count(mode) for mode in sorted(set(modes))},
            silent=tuple(silent),
            refusing=sum(1 for said in words if said.refusal),
            shortfall_w=sum(said.shortfall_w for said in words),
            hottest_c=max((said.hottest_c for said in words if said.hottest_c is not None), default=None),
            strangers=strangers,
        )
