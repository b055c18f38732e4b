"""A row of servers, and the messages of its plant, for tests of streams."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.samples import FeedSample, GpuFrame, RackSample
from schemas.skus import SKUS
from schemas.topology import Host, Priority, Rack, Row
from schemas.units import Reading

ROW = "ams1/row-a"
FEEDS = ("ams1/ups-1/pdu-1/feed-a", "ams1/ups-2/pdu-2/feed-b")
T0 = 1_700_000_000_000


def make_row(
    hosts: int = 4,
    *,
    gpus: int = 8,
    per_rack: int = 2,
    meters: tuple[str, ...] = (),
    budget_w: float | None = None,
    sku: str = "A100-SXM4-80GB",
) -> Row:
    """A row of `hosts` servers in racks of `per_rack`, each fed by two feeds of two UPSes; every other
    server serves low priority."""
    board = SKUS[sku]
    racks = []
    for r in range(0, hosts, per_rack):
        rack = f"{ROW}/r{r // per_rack:02d}"
        members = []
        for h in range(r, min(r + per_rack, hosts)):
            priority: Priority = "low" if h % 2 else "high"
            members.append(
                Host(
                    path=f"{rack}/h{h:02d}",
                    rack=rack,
                    row=ROW,
                    sku=board,
                    gpu_count=gpus,
                    priority=priority,
                    rated_w=board.tdp_w * gpus + board.server_overhead_max_w,
                    overhead_idle_w=board.server_overhead_idle_w,
                    overhead_max_w=board.server_overhead_max_w,
                    paths=("in_band",),
                )
            )
        racks.append(
            Rack(
                path=rack,
                row=ROW,
                hosts=tuple(members),
                feeds=("ams1/ups-1/pdu-1/feed-a", "ams1/ups-2/pdu-2/feed-b"),
            )
        )
    row = Row(path=ROW, budget_w=budget_w or 1.0, racks=tuple(racks), meters=meters)
    return row if budget_w else Row(path=ROW, budget_w=row.rated_w, racks=row.racks, meters=meters)


def frame(
    host: Host,
    at: int,
    power_w: Sequence[Reading],
    *,
    utilisation: float = 0.5,
    mhz: float = 1400.0,
    core_c: float = 50.0,
    faults: tuple[str, ...] = (),
    gpus: tuple[str, ...] | None = None,
    averaged: bool = False,
) -> GpuFrame:
    """One host's frame of one sample per board."""
    n = len(power_w)
    grid = (tuple(power_w),)
    return GpuFrame(
        at=at,
        source=f"collector/gpu-nvml/{host.path}",
        subject=host.path,
        gpus=tuple(f"GPU-{host.path}-{i}" for i in range(n)) if gpus is None else gpus,
        power_w=() if averaged else grid,
        power_average_w=grid if averaged else (),
        utilisation_ratio=((utilisation,) * n,),
        sm_mhz=((mhz,) * n,),
        core_c=(core_c,) * n,
        faults=faults,
    )


def wall(rack: Rack, at: int, power_w: Sequence[Reading]) -> RackSample:
    """A rack's servers as their BMCs report them."""
    return RackSample(
        at=at,
        source=f"collector/rack-redfish/{rack.path}",
        subject=rack.path,
        hosts=tuple(host.path for host in rack.hosts),
        power_w=tuple(power_w),
    )


def feed(path: str, at: int, power_w: Reading, *, breaker_closed: bool | None = None) -> FeedSample:
    """A meter's reading."""
    return FeedSample(
        at=at,
        source=f"collector/feed-snmp/{path}",
        subject=path,
        power_w=power_w,
        breaker_closed=breaker_closed,
    )
