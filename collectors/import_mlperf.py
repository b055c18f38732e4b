"""Import: wall power of a cluster's nodes in MLPerf training, as Supermicro published it.

The CSV has a row per node and reading: ``time_ms,host,watts`` (Unix time in milliseconds, AC watts at
the node's supplies, about every two seconds). A node is a server of 8 H100s. Published under
Apache-2.0 in mlcommons/training_results_v4.0.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from collectors.base import CollectorError
from collectors.recorded_table import BadRow, Buried, in_order, number, read_rows, reading, site_text
from schemas.envelope import Event
from schemas.instants import Instant
from schemas.samples import RackSample
from schemas.topology import Host, Site
from schemas.units import Reading

COLUMNS = ("time_ms", "host", "watts")

_SOURCE = "collector/import-mlperf"
_HOSTS_PER_RACK = 4  # what an air-cooled rack of 8-GPU servers usually holds; the recording does not say


def hosts_in(path: pathlib.Path) -> tuple[str, ...]:
    """The nodes that the file names, node_2 before node_10."""
    names = {row for row in read_rows(path, ("host",), itemgetter(0)) if not isinstance(row, Buried)}
    return tuple(sorted(names, key=_by_number))


def site_for(hosts: Sequence[str], budget_w: float) -> str:
    """A site file for these nodes: racks of four in the order given, one row under `budget_w`."""
    racks = {
        f"r{first // _HOSTS_PER_RACK + 1:02d}": hosts[first : first + _HOSTS_PER_RACK]
        for first in range(0, len(hosts), _HOSTS_PER_RACK)
    }
    return site_text("mlperf", budget_w, racks, sku="H100-SXM5-80GB", gpus=8)


def events(path: pathlib.Path, site: Site) -> Iterator[Event]:
    """The file's readings as `RackSample`s in total order: one per rack and instant, of those of its
    hosts that were read then (of two readings of a host at one instant, the later row). Zeros and gaps
    are as recorded.

    A node is the host whose path ends in its name. A row that cannot be taken is a `DeadLetter` at the
    time of the row before it. Raises CollectorError when the site has none of the nodes.
    """
    homes = _homes(site)

    def parse(cells: Sequence[str]) -> tuple[Instant, str, str, Reading]:
        at, name, watts = cells
        host = homes.get(name)
        if host is None:
            raise BadRow(f"host = {name!r}: the site {site.name} has no host of that name")
        return round(number(at, "time_ms")), host.rack, host.path, reading(watts, "watts")

    taken: list[tuple[Instant, str, str, Reading]] = []
    buried: list[tuple[int, Buried]] = []  # with how many rows were taken before it
    for row in read_rows(path, COLUMNS, parse):
        if isinstance(row, Buried):
            buried.append((len(taken), row))
        else:
            taken.append(row)
    if not taken:
        why = buried[0][1].reason if buried else "it has no rows"
        raise CollectorError(f"{path}: nothing in it can be taken: {why}")

    made: list[Event] = [
        each.letter(
            taken[max(0, before - 1)][0], source=_SOURCE, subject=site.rows[0].path, topic="windrow.racks"
        )
        for before, each in buried
    ]
    for (at, rack), group in groupby(sorted(taken, key=itemgetter(0, 1, 2)), key=itemgetter(0, 1)):
        by_host = {host: watts for _, _, host, watts in group}
        made.append(
            RackSample(
                at=at, source=_SOURCE, subject=rack, hosts=tuple(by_host), power_w=tuple(by_host.values())
            )
        )
    yield from in_order(made)


def _homes(site: Site) -> dict[str, Host]:
    """Hosts by the last part of their path, where only one has it."""
    named = [(host.path.rpartition("/")[2], host) for host in site.hosts.values()]
    names = [name for name, _ in named]
    return {name: host for name, host in named if names.count(name) == 1}


def _by_number(name: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(digits or 0), text) for text, digits in re.findall(r"(\D*)(\d*)", name))
