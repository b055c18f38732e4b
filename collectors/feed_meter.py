"""Meters on the power tree: whatever reads watts at a feed, a PDU or a UPS, polled into samples.

The wire protocol (SNMP, Modbus, a simulated plant) stays behind `Meter`; this module only turns
readings into messages and keeps one silent meter from hiding the others.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from math import isfinite
from typing import Protocol

from schemas.envelope import Event
from schemas.instants import Instant, Span
from schemas.samples import FeedSample, UpsSample
from schemas.units import Reading

_LOG = logging.getLogger(__name__)


class MeterReading(Protocol):
    """What a meter said in one reading; None is *unknown*.

    `breaker_closed` is the state of the breaker the meter stands behind. `on_battery` is None for a
    meter that is no UPS; a UPS says True or False, or None while it cannot tell.
    """

    @property
    def power_w(self) -> Reading: ...

    @property
    def breaker_closed(self) -> bool | None: ...

    @property
    def on_battery(self) -> bool | None: ...


class Meter(Protocol):
    """One meter. `read` takes one reading now; any exception means that it did not answer."""

    def read(self) -> MeterReading: ...


class FeedCollector:
    """Polls meters into one `FeedSample` or, for a UPS, `UpsSample` per meter and poll.

    `meters` maps a path of the power tree to the meter that stands there; `upses` says which of them are
    UPSes. A meter that does not answer, or gives no finite number, yields a sample that says *unknown*:
    the row still sees that it was asked.
    """

    def __init__(
        self,
        meters: Mapping[str, Meter],
        *,
        period_ms: Span,
        upses: Collection[str] = (),
        name: str = "collector/feed-meter",
    ) -> None:
        self.name = name
        self.period_ms = period_ms
        self._meters = dict(meters)
        self._upses = frozenset(upses)
        self._silent: set[str] = set()

    def poll(self, now: Instant) -> Sequence[Event]:
        """One sample per meter, in the order the meters were given."""
        return [self._sample(now, path, self._ask(path, meter)) for path, meter in self._meters.items()]

    def close(self) -> None:
        """Nothing to let go of: the meters belong to whoever made them."""

    def _sample(self, now: Instant, path: str, said: MeterReading | None) -> Event:
        watts = said.power_w if said else None
        power_w = float(watts) if watts is not None and isfinite(watts) else None
        if path in self._upses:
            on_battery = said.on_battery if said else None
            return UpsSample(at=now, source=self.name, subject=path, power_w=power_w, on_battery=on_battery)
        closed = said.breaker_closed if said else None
        return FeedSample(at=now, source=self.name, subject=path, power_w=power_w, breaker_closed=closed)

    def _ask(self, path: str, meter: Meter) -> MeterReading | None:
        """One reading, or None from a meter that did not answer; its going silent is logged once."""
        try:
            said = meter.read()
        except Exception as error:  # whatever the protocol raises: this meter is unknown, others go on
            if path not in self._silent:
                self._silent.add(path)
                # A fault of the line says in words what it is; of others the words alone may mean nothing.
                spoken = isinstance(error, OSError) and str(error)
                _LOG.warning(
                    "meter %s cannot be read: %s", path, spoken or f"{type(error).__name__}: {error}"
                )
            return None
        if path in self._silent:
            self._silent.discard(path)
            _LOG.info("meter %s answers again", path)
        return said
