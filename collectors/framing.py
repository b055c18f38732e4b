"""Sampling faster than publishing: a host's samples collected into one frame for each publish tick."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from collectors.base import Collector, CollectorError
from collectors.jump import jumped
from schemas.envelope import Event
from schemas.instants import Instant, Span
from schemas.samples import GpuFrame
from schemas.topology import Host
from schemas.units import Grid


class FramedCollector:
    """A collector of one host's GPUs, polled at its own period and heard once in `publish_ms`.

    Each frame it yields holds the samples that no frame before it held, oldest first. It comes at each tick
    of the publish grid and, once between two ticks, at once when a sample jumps (`collectors.jump`): boards
    whose load alternates would else send every sample alone. What stands once in a
    frame (temperatures, counters, faults) is the newest sample's; a board that did not answer in between
    is unknown in that sample's row. Samples that do not fit together, because a board was exchanged or
    the clock was set back, do not share a frame. Other messages pass through.
    """

    def __init__(self, inner: Collector, host: Host, *, publish_ms: Span) -> None:
        self._inner = inner
        self._rated_w = host.gpu_count * host.sku.tdp_w
        self._publish_ms = publish_ms
        self._held: list[GpuFrame] = []
        self._published: GpuFrame | None = None
        self._due: Instant = 0
        self._early = False  # whether a jump was published since the last tick

    @property
    def name(self) -> str:
        """The inner collector's."""
        return self._inner.name

    @property
    def period_ms(self) -> Span:
        """How often it is sampled."""
        return self._inner.period_ms

    def poll(self, now: Instant) -> Sequence[Event]:
        """Sample, and yield what is due. Raises CollectorError as the inner one does, once what was
        sampled before is out."""
        try:
            events = self._inner.poll(now)
        except CollectorError:
            if not self._held:
                raise
            return self._publish()
        out: list[Event] = []
        for event in events:
            if not isinstance(event, GpuFrame):
                out.append(event)
                continue
            if self._held and not _fit(self._held[-1], event):
                out += self._publish()
            self._held.append(event)
            before = self._published
            ticks = event.at >= self._due or (before is not None and event.at <= before.at)
            if ticks or before is None:
                self._due = event.at - event.at % self._publish_ms + self._publish_ms
                self._early = False
                out += self._publish()
            elif not self._early and jumped(before, event, self._rated_w):
                self._early = True
                out += self._publish()
        return out

    def close(self) -> None:
        """Close the inner one. What it sampled and nobody heard is not worth keeping."""
        self._inner.close()

    def _publish(self) -> list[Event]:
        held, self._held = self._held, []
        self._published = held[-1]
        return [_joined(held)]


def _fit(held: GpuFrame, sample: GpuFrame) -> bool:
    """Whether two samples can share a frame: later, of the same boards, with the same columns."""
    return (
        held.at < sample.at
        and held.gpus == sample.gpus
        and held.source == sample.source
        and all(bool(one) == bool(other) for one, other in zip(_grids(held), _grids(sample), strict=True))
    )


def _joined(samples: Sequence[GpuFrame]) -> GpuFrame:
    """One frame of samples that fit together, at the time of the newest."""
    last = samples[-1]
    if len(samples) == 1:
        return last
    power, average, clock, utilisation = (
        tuple(row for grid in grids for row in grid) for grids in zip(*map(_grids, samples), strict=True)
    )
    return msgspec.structs.replace(
        last,
        offsets_ms=tuple(sample.at + offset - last.at for sample in samples for offset in sample.offsets_ms),
        power_w=power,
        power_average_w=average,
        sm_mhz=clock,
        utilisation_ratio=utilisation,
    )


def _grids(frame: GpuFrame) -> tuple[Grid, Grid, Grid, Grid]:
    return frame.power_w, frame.power_average_w, frame.sm_mhz, frame.utilisation_ratio
