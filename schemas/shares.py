"""Safe shares: the cap each host falls to alone, at which no breaker above it can be exceeded.

The sum over a row of its hosts' safe shares fits the row's budget and every power node above the
row, whatever the workload does. It needs no network and no controller: it is worked out from the
site file and kept beside the actuator.

A rack with several feeds is taken to load them equally. Whether the feeds that are left carry the
rack when one is lost is a question of the site's planning, and not asked here: a feed's limit should
be what it may carry then, as in `twin/scenarios/demo-row.toml`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from schemas.topology import Rack, Site
from schemas.units import FloatArray

_ROUNDING_W = 1e-6  # what adding up thousands of figures in watts may be off by


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
    """The safe share of every host of the site, by host path.

    Max-min fair, in whole watts per GPU: the GPUs' limits rise at one pace, each from its board's
    lowest, until it reaches its board's highest or a row or power node above its host is full. So
    when a budget or a limit grows, no host under it gets less.

    Raises Unsafe, with a line for each row or power node that the lowest limits do not fit.
    """
    hosts = tuple(site.hosts.values())
    limits = _limits(site)
    lowest = np.array([math.ceil(host.sku.limit_min_w) for host in hosts])
    highest = np.array([math.floor(host.sku.limit_max_w) for host in hosts])
    gpus = np.array([host.gpu_count for host in hosts])
    rest_w = np.array([host.overhead_max_w for host in hosts])

    if over := limits.exceeded(rest_w + gpus * lowest):
        raise Unsafe("\n".join(_does_not_fit(limits, each, rest_w + gpus * lowest) for each in over))
    limit_w, rising = lowest, np.ones(len(hosts), dtype=bool)
    for level in range(int(highest.max(initial=0)) + 1):
        raised = np.where(rising, np.clip(level, lowest, highest), limit_w)
        for full in limits.exceeded(rest_w + gpus * raised):
            rising &= limits.carried[full] == 0.0
        limit_w = np.where(rising, raised, limit_w)

    return {
        host.path: SafeShare(
            host=host.path,
            limit_w=float(watts),
            max_mhz=host.sku.clock_for_power(watts),
            host_w=host.overhead_max_w + host.gpu_count * watts,
        )
        for host, watts in zip(hosts, limit_w.tolist(), strict=True)
    }


def fits(site: Site, host_w: Mapping[str, float]) -> tuple[str, ...]:
    """Which limits the given host powers (watts by host path) would exceed, in words; empty when all fit.

    A host that is left out, or whose power is NaN, counts at its nameplate: unknown is not zero.
    Raises KeyError in words for a host that the site does not have.
    """
    if strangers := sorted(host_w.keys() - site.hosts.keys()):
        raise KeyError(f"site {site.name} has no host {', '.join(strangers)}")
    known = {path: watts for path, watts in host_w.items() if not math.isnan(watts)}
    powers = np.array([known.get(host.path, host.rated_w) for host in site.hosts.values()])
    limits = _limits(site)
    above_w = limits.load_w(powers) - limits.limit_w
    return tuple(
        f"{limits.names[over]}: {limits.load_w(powers)[over]:.0f} W is {above_w[over]:.0f} W above its "
        + limits.terms[over]
        for over in limits.exceeded(powers)
    )


class _Limits(NamedTuple):
    """Every limit of a site: `carried[i, j]` is the part of host j's power that limit i carries."""

    names: list[str]
    terms: list[str]
    limit_w: FloatArray
    carried: FloatArray

    def load_w(self, host_w: FloatArray) -> FloatArray:
        """What each limit carries when the hosts draw `host_w`."""
        return self.carried @ host_w

    def exceeded(self, host_w: FloatArray) -> list[int]:
        """The limits that the hosts' powers exceed."""
        return np.flatnonzero(self.load_w(host_w) > self.limit_w + _ROUNDING_W).tolist()


def _limits(site: Site) -> _Limits:
    """The site's limits, over its hosts in the order of `site.hosts`."""
    racks = [rack for row in site.rows for rack in row.racks for _ in rack.hosts]
    rows = [[1.0 if rack.row == row.path else 0.0 for rack in racks] for row in site.rows]
    nodes = [[_part_behind(node.path, rack) for rack in racks] for node in site.power]
    return _Limits(
        names=[f"row {row.path}" for row in site.rows] + [f"{node.kind} {node.path}" for node in site.power],
        terms=[f"budget of {row.budget_w:.10g} W" for row in site.rows]
        + [f"limit of {node.limit_w:.10g} W" for node in site.power],
        limit_w=np.array([row.budget_w for row in site.rows] + [node.limit_w for node in site.power]),
        carried=np.array(rows + nodes),
    )


def _part_behind(node: str, rack: Rack) -> float:
    """The part of a rack's power that comes through a power node."""
    through = [feed for feed in rack.feeds if feed == node or feed.startswith(node + "/")]
    return len(through) / len(rack.feeds) if through else 0.0


def _does_not_fit(limits: _Limits, over: int, host_w: FloatArray) -> str:
    """Why limit `over` is too small for the hosts at the least they can be held to, and what would fit."""
    carried_w = (limits.carried[over] * host_w)[limits.carried[over] > 0.0]
    room = int(np.count_nonzero(np.cumsum(carried_w) <= limits.limit_w[over] + _ROUNDING_W))
    return (
        f"{limits.names[over]}: with every GPU at its board's lowest power limit its {carried_w.size} hosts "
        f"may still draw {carried_w.sum():.0f} W, above its {limits.terms[over]}; what would fit is "
        f"{math.ceil(carried_w.sum())} W, or the first {room} of the hosts"
    )
