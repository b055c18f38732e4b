"""The reflex: what a host does by itself when its own GPUs say that it is beyond its envelope.

It needs neither a network nor a controller. Frames of the host go in; while trouble lasts, a `Hold` stands:
the host is held at or below a clock and a power limit, whatever is commanded.

    well ──`PERSIST` readings beyond──> held ──still beyond for `PATIENCE_MS`──> held at the board's lowest
      ^                                  │                                          │
      └──── all known and well within, without a break, for `DWELL_MS` ─────────────┘

Beyond: a GPU at or above its slowdown temperature or braking itself for heat, or a host above its nameplate.
What is unknown neither raises a hold nor ends one: it breaks the wait for the end.

What cools is less power, and at once. A GPU's temperature follows its power within 5 to 10 s, by 0.055 (H100)
to 0.105 °C/W (A100; both derived), so half of the dynamic power takes some 17 °C off it. Where that does not
help, the cooling itself has failed, and the lowest clock is all that is left to a host.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from schemas.emergencies import Emergency, EmergencyKind, Phase
from schemas.instants import SECOND, Instant, Span
from schemas.samples import GpuFrame
from schemas.shares import SafeShare
from schemas.topology import Host
from schemas.units import Reading

PERSIST = 3
"""Readings beyond the envelope, one after the other, that raise a hold (our choice): no single reading that
lies does, and at two a second it takes 1 to 1.5 s."""

PATIENCE_MS: Span = 20 * SECOND
"""How long half of the power may take to help: two of the slower thermal lags (our choice)."""

DWELL_MS: Span = 30 * SECOND
"""How long all must be well before the hold ends: three of the slower thermal lags (our choice)."""

BELOW_C = 5.0
"""Well is this much below the slowdown temperature (our choice)."""

TOLERANCE_RATIO = 1.05
"""Boards read their power within 5 % (published): a host is beyond its nameplate from there on, and well
within it at the nameplate."""

GAP_MS: Span = 5 * SECOND // 2
"""How far apart two frames may be and still vouch for the time between them (our choice)."""

MEMORY_MS: Span = 10 * SECOND
"""How far apart two readings beyond the envelope may be and still be two in a row, where those between are
unknown (our choice)."""

_HOTTEST_C = 150.0  # no board lives there: above it, and at or below zero, is no reading
_HIGHEST_RATIO = 2.0  # nor does one draw twice its highest limit
_THERMAL_SLOWDOWN = 0x40  # nvmlClocksEventReasonHwThermalSlowdown: the board brakes itself for heat


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """What the reflex holds a host at: at or below `max_mhz`, and at or below `limit_w` a GPU. `lowest` says
    that there is nothing below. It outlives the process, in the agent's state file."""

    kind: EmergencyKind
    because: str
    since: Instant
    episode: str
    max_mhz: int
    limit_w: float
    lowest: bool = False

    def __str__(self) -> str:
        return (
            f"the reflex holds it at or below {self.max_mhz} MHz and {self.limit_w:g} W a GPU: {self.because}"
        )


class _Trouble(NamedTuple):
    """One reading beyond the envelope."""

    kind: EmergencyKind
    because: str
    value: Reading
    limit: Reading


class Reflex:
    """The reflex of one host. `held` is a hold that a process before this one left."""

    def __init__(self, host: Host, share: SafeShare, *, source: str, held: Hold | None = None) -> None:
        self.held = held
        self._host = host
        self._share = share
        self._source = source
        self._at: Instant | None = None
        self._beyond = 0
        self._beyond_at: Instant | None = None
        self._beyond_ms: Span = 0
        self._well_ms: Span = 0

    def step(self, frame: GpuFrame) -> Emergency | None:
        """Take in the host's next frame; a step in the trouble's life where it makes one, and then `held` is
        what is to be held from here on."""
        if frame.at == self._at:
            return None  # seen already
        apart = frame.at - self._at if self._at is not None else 0
        vouched = apart if 0 < apart <= GAP_MS else 0
        self._at = frame.at
        trouble, known, well = self._judge(frame)
        self._count(frame.at, trouble, known=known)
        if self.held is None:
            raised = trouble is not None and self._beyond >= PERSIST
            return self._hold(frame, trouble, "raised") if raised and trouble else None
        if trouble is not None:
            self._well_ms = 0
            self._beyond_ms += vouched
            tried = self._beyond_ms >= PATIENCE_MS and not self.held.lowest
            return self._hold(frame, trouble, "escalated") if tried else None
        self._beyond_ms = 0 if known else self._beyond_ms
        self._well_ms = self._well_ms + vouched if well and vouched else 0
        return self._let_go(frame) if self._well_ms >= DWELL_MS else None

    def _count(self, at: Instant, trouble: _Trouble | None, *, known: bool) -> None:
        """How many readings in a row were beyond. One that is unknown is no reading."""
        if trouble is not None:
            again = self._beyond_at is not None and 0 < at - self._beyond_at <= MEMORY_MS
            self._beyond = self._beyond + 1 if again else 1
            self._beyond_at = at
        elif known:
            self._beyond = 0

    def _hold(self, frame: GpuFrame, trouble: _Trouble, phase: Phase) -> Emergency:
        sku, lowest = self._host.sku, phase == "escalated"
        half_w = sku.idle_w + (sku.tdp_w - sku.idle_w) / 2
        max_mhz = min(self._share.max_mhz, sku.clock_for_power(half_w))
        limit_w = min(self._share.limit_w, max(sku.limit_min_w, half_w // 1))
        said = self._say(frame, trouble, phase)
        self.held = Hold(
            kind=said.kind,
            because=said.because,
            since=self.held.since if self.held is not None else frame.at,
            episode=said.episode,
            max_mhz=sku.min_mhz if lowest else max_mhz,
            limit_w=sku.limit_min_w if lowest else limit_w,
            lowest=lowest,
        )
        self._beyond_ms = self._well_ms = 0
        return said

    def _let_go(self, frame: GpuFrame) -> Emergency:
        because = f"all of its GPUs were known and well for {DWELL_MS / SECOND:g} s"
        said = self._say(frame, _Trouble("overtemperature", because, None, None), "cleared")
        self.held = None
        self._beyond = self._beyond_ms = self._well_ms = 0
        return said

    def _say(self, frame: GpuFrame, trouble: _Trouble, phase: Phase) -> Emergency:
        return Emergency(
            at=frame.at,
            source=self._source,
            subject=self._host.path,
            kind=self.held.kind if self.held is not None else trouble.kind,
            phase=phase,
            because=trouble.because,
            episode=self.held.episode if self.held is not None else "",
            value=trouble.value,
            limit=trouble.limit,
        )

    # ---- judging a frame ----

    def _judge(self, frame: GpuFrame) -> tuple[_Trouble | None, bool, bool]:
        """The worst that a frame says, whether all is known, and whether all is known to be well: between the
        two levels it is neither trouble nor well."""
        hot, temperatures, cool = self._heat(frame)
        over, powers, within = self._power(frame)
        return hot or over, temperatures and powers, cool and within

    def _heat(self, frame: GpuFrame) -> tuple[_Trouble | None, bool, bool]:
        limit = self._host.sku.slowdown_c
        known = {
            i: core for i, core in enumerate(frame.core_c) if core is not None and 0.0 < core < _HOTTEST_C
        }
        hottest = max(known, key=known.__getitem__, default=0)
        core = known.get(hottest, 0.0)
        everything = len(known) >= self._host.gpu_count
        if core >= limit:
            words = f"gpu{hottest} at {core:g} °C, its slowdown temperature is {limit:g} °C"
            return _Trouble("overtemperature", words, core, limit), everything, False
        for place, reasons in enumerate(frame.event_reasons):
            if reasons is not None and reasons & _THERMAL_SLOWDOWN:
                at = f"at {known[place]:g} °C" if place in known else "at an unknown temperature"
                words = f"gpu{place} brakes itself for heat, {at}"
                return _Trouble("overtemperature", words, known.get(place), limit), everything, False
        # A board whose memory is too hot says so by braking alone: unknown, that is no reason to let go.
        told = None not in frame.event_reasons
        return None, everything, everything and told and core < limit - BELOW_C

    def _power(self, frame: GpuFrame) -> tuple[_Trouble | None, bool, bool]:
        """The host's power by its GPUs' readings: the average of a second where the boards give one."""
        grid = frame.power_average_w or frame.power_w
        highest_w = _HIGHEST_RATIO * self._host.sku.limit_max_w
        known = [
            watts for watts in (grid[-1] if grid else ()) if watts is not None and 0.0 < watts < highest_w
        ]
        everything = len(known) >= self._host.gpu_count
        wall_w, rated_w = self._host.wall_w(sum(known)), self._host.rated_w
        if wall_w > rated_w * TOLERANCE_RATIO:
            words = f"{wall_w:.0f} W by its GPUs' readings, its nameplate is {rated_w:g} W"
            return _Trouble("overload", words, round(wall_w, 1), rated_w), everything, False
        return None, everything, everything and wall_w <= rated_w
