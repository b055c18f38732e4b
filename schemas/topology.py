"""Topology: two trees over the same racks, where things stand and where their power comes from.

Location: ``site/row/rack/host/gpuN`` (``ams1/row-b/r07/h03/gpu2``).
Power: ``site/ups/pdu/feed`` (``ams1/ups-2/pdu-4/feed-a``).
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal, TypeAlias

import msgspec

from schemas.commands import Path
from schemas.skus import Sku

Priority: TypeAlias = Literal["low", "high"]


def covers(subject: str, path: str) -> bool:
    """Whether a path is `subject` or lies below it, in either tree."""
    return path == subject or path.startswith(subject + "/")


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A server. `rated_w` is its nameplate, GPUs included. `uuids` are its GPUs' UUIDs in index
    order where the site file states them, else empty. `paths` are the command paths it offers."""

    path: str
    rack: str
    row: str
    sku: Sku
    gpu_count: int
    priority: Priority
    rated_w: float
    overhead_idle_w: float
    overhead_max_w: float
    paths: tuple[Path, ...]
    uuids: tuple[str, ...] = ()

    def gpu_path(self, index: int) -> str:
        """``…/gpu2``"""
        return f"{self.path}/gpu{index}"

    def wall_w(self, gpus_w: float) -> float:
        """Server power for a sum of GPU power: the rest (CPUs, fans, conversion) rises linearly
        between its idle and its maximum with the GPUs' load. Our approximation; a BMC reads better."""
        idle, full = self.gpu_count * self.sku.idle_w, self.gpu_count * self.sku.tdp_w
        load = min(1.0, max(0.0, (gpus_w - idle) / (full - idle)))
        return gpus_w + self.overhead_idle_w + load * (self.overhead_max_w - self.overhead_idle_w)


class Rack(msgspec.Struct, frozen=True, kw_only=True):
    """A rack, its hosts, and the feeds that power it (shared equally when there are several)."""

    path: str
    row: str
    hosts: tuple[Host, ...]
    feeds: tuple[str, ...]


class Row(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A row: the domain that POLCA caps. `budget_w` is what it may draw for ever (the breaker's
    continuous rating or the share the site grants). `meters` are power-tree paths whose sum is the
    row's power; empty when no meter is fitted."""

    path: str
    budget_w: float
    racks: tuple[Rack, ...]
    meters: tuple[str, ...]

    @cached_property
    def hosts(self) -> tuple[Host, ...]:
        """The row's hosts in site-file order."""
        return tuple(host for rack in self.racks for host in rack.hosts)

    @cached_property
    def rated_w(self) -> float:
        """Nameplate of all hosts."""
        return sum(host.rated_w for host in self.hosts)


class PowerNode(msgspec.Struct, frozen=True, kw_only=True):
    """A UPS, PDU or feed; `limit_w` is its breaker or capacity rating. `parent` is empty for a UPS."""

    path: str
    kind: Literal["ups", "pdu", "feed"]
    limit_w: float
    parent: str = ""


class Site(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A site: rows and power nodes, validated and cross-checked when it was read."""

    name: str
    rows: tuple[Row, ...]
    power: tuple[PowerNode, ...]

    @cached_property
    def hosts(self) -> dict[str, Host]:
        """Every host by path."""
        return {host.path: host for row in self.rows for host in row.hosts}

    @cached_property
    def nodes(self) -> dict[str, PowerNode]:
        """Every power node by path."""
        return {node.path: node for node in self.power}

    def row(self, path: str) -> Row:
        """The row at `path`; KeyError in words."""
        for row in self.rows:
            if row.path == path:
                return row
        raise KeyError(f"site {self.name} has no row {path!r}; it has {', '.join(r.path for r in self.rows)}")

    def covered(self, path: str) -> tuple[Host, ...]:
        """The hosts at or under a location path (a host, a rack, a row or the site)."""
        return tuple(h for h in self.hosts.values() if covers(path, h.path))
