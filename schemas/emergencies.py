"""Emergencies: trouble with a life of its own: raised, escalated, cleared."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from schemas.envelope import Event
from schemas.units import Reading

EmergencyKind: TypeAlias = Literal[
    "overload",  # a power domain above its limit
    "failover",  # a UPS on battery or lost: its share falls on the others within seconds
    "overtemperature",
    "cooling_loss",
    "supply_loss",  # a feed's breaker is open, or a wind farm's power falls away
    "telemetry_loss",  # too little is known of a domain
    "ledger_loss",  # the ledger cannot be written
]
Phase: TypeAlias = Literal["raised", "escalated", "cleared"]


class Emergency(Event, frozen=True, kw_only=True, tag=True):
    """One step in an emergency's life; subject is the domain in trouble.

    `episode` is the same from raised to cleared: the id of the first message. `value` and `limit`
    are in the unit of the kind (watts, °C, ratio of coverage). `because` says it in words.
    """

    kind: EmergencyKind
    phase: Phase
    because: str
    episode: str = ""
    value: Reading = None
    limit: Reading = None

    @property
    def told_apart_by(self) -> tuple[str, ...]:
        return (self.kind, self.phase)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.episode:
            msgspec.structs.force_setattr(self, "episode", self.id)
