"""Safe shares: the cap each host falls to alone, at which no breaker above it can be exceeded.

The sum over a row of its hosts' safe shares fits the row's budget and every power node above the
row, whatever the workload does. It needs no network and no controller: it is worked out from the
site file and kept beside the actuator.
"""

from __future__ import annotations

import msgspec

from schemas.topology import Host, Site


class SafeShare(msgspec.Struct, frozen=True, kw_only=True):
    """What one host falls to: a power limit per GPU, and the clock at which its modelled full-load
    power is within that limit (a limit acts after the excess, a clock before it).

    `host_w` is the most the host can then draw: GPUs at their limit plus the rest of the server.
    """

    host: str
    limit_w: float
    max_mhz: int
    host_w: float


class Unsafe(ValueError):
    """No share is safe: the boards' lowest power limits do not fit under a breaker. Says which."""


def safe_shares(site: Site) -> dict[str, SafeShare]:
    """The safe share of every host of the site, by host path. Raises Unsafe in the operator's words."""
    raise NotImplementedError


def fits(site: Site, host_w: dict[str, float]) -> tuple[str, ...]:
    """Which limits the given host powers would exceed, in words; empty when all fit."""
    raise NotImplementedError


__all__ = ["Host", "SafeShare", "Unsafe", "fits", "safe_shares"]
