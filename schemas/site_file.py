"""Site files: a site's topology as an operator writes it, in TOML.

A row of 52 servers takes some forty lines::

    [site]
    name = "ams1"

    [[ups]]                       # power, from the UPS down; names are unique over the whole tree
    name = "ups-1"
    limit_w = 1_000_000           # every limit in watts, above zero

    [[pdus]]
    name = "pdu-1"
    ups = "ups-1"
    limit_w = 400_000

    [[feeds]]
    name = "feed-a"
    pdu = "pdu-1"
    limit_w = 260_000

    [[rows]]
    name = "row-b"
    budget_w = 260_000            # what the row may draw for ever
    meters = ["feed-a"]           # whose readings sum to the row's power; leave out where none is fitted

    [[racks]]
    row = "row-b"
    names = "r[01-13]"            # hostlist pattern
    feeds = ["feed-a"]            # several share the rack's power equally

    [[racks.hosts]]               # in each of these racks; a block for each kind of host
    names = "h[01-04]"
    sku = "A100-SXM4-80GB"
    gpus = 8
    priority = "high"
    paths = ["out_of_band", "brake", "in_band"]

A host block may state `rated_w`, `overhead_max_w` and `overhead_idle_w`; what it leaves out comes from
the SKU's 8-GPU server, scaled by the number of GPUs, and a stated nameplate counts before that: what it
has above the GPUs' TDP is the overhead's maximum. `uuids` is a table from ``"r01/h01"`` to that host's
GPU UUIDs in index order. ``[[skus]]`` adds a board, or changes figures of a known one of that name.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal, get_args

import msgspec

from schemas.commands import Path
from schemas.hostlist import MOST_NAMES
from schemas.skus import SKUS, SLOWDOWN_C, Sku
from schemas.toml_tables import NotToml, Table, not_among, read_toml
from schemas.topology import Host, PowerNode, Priority, Rack, Row, Site

_SERVER_GPUS = 8  # the server that a Sku's overheads describe


class SiteFileError(ValueError):
    """The site file cannot be used: `problems` has a line for each thing wrong, str() all of them."""

    def __init__(self, problems: Collection[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def read_site(text: str, name: str) -> Site:
    """The site that the TOML `text` describes; `name` is the file's, for the problems' first words.

    Raises SiteFileError with every problem found, each as file, key, value and what is allowed. Items
    are counted from 0, as in ``feeds[0]``.
    """
    try:
        root = read_toml(text, name)
    except NotToml as error:
        raise SiteFileError([str(error)]) from error
    site = _read(root)
    if root.problems:
        raise SiteFileError(root.problems)
    return site


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _read(root: Table) -> Site:
    head = root.table("site")
    if head is None:
        if "site" not in root.raw:
            root.missing("site", "write [site] with the site's name")
        site = ""
    else:
        site = head.name({}, "the site, first part of every path")
        head.close()
    nodes = _power(root, site)
    skus = _skus(root)
    racks, rows = root.tables("racks", "the racks"), root.tables("rows", "the rows")
    peopled = [table.raw.get("row") for table in racks]
    built = _rows(rows, _racks(racks, rows, site, nodes, skus), peopled, site, nodes)
    root.close()
    return Site(name=site, rows=built, power=tuple(nodes.values()))


def _power(root: Table, site: str) -> dict[str, PowerNode]:
    """The power tree by node name."""
    nodes: dict[str, PowerNode] = {}
    taken: dict[str, str] = {}
    levels: tuple[tuple[Literal["ups", "pdu", "feed"], str, str, str], ...] = (
        ("ups", "ups", "", "the UPSs"),
        ("pdu", "pdus", "ups", "the PDUs"),
        ("feed", "feeds", "pdu", "the feeds"),
    )
    for kind, plural, above, meaning in levels:
        parents = {name: node for name, node in nodes.items() if node.kind == above}
        for table in root.tables(plural, meaning):
            name = table.name(taken, f"the {kind}'s name, unique in the power tree")
            parent = parents.get(table.choice(above, parents, f"the {above} it hangs on")) if above else None
            limit_w = table.number("limit_w", "breaker rating in watts")
            table.close()
            parent_path = parent.path if parent else ""
            path = f"{parent_path or site}/{name}"
            nodes.setdefault(name, PowerNode(path=path, kind=kind, limit_w=limit_w, parent=parent_path))
    return nodes


_MHZ = "clock in MHz"
_SKU_KEYS = {
    "max_mhz": _MHZ,
    "min_mhz": _MHZ,
    "step_mhz": "spacing of the supported clocks in MHz",
    "tdp_w": "board power at full load in watts",
    "limit_min_w": "lowest settable power limit in watts",
    "limit_max_w": "highest settable power limit in watts",
    "idle_w": "board power at rest in watts",
    "server_overhead_idle_w": "rest of an 8-GPU server at rest in watts",
    "server_overhead_max_w": "rest of an 8-GPU server at full load in watts",
}


def _skus(root: Table) -> dict[str, Sku]:
    """The boards built in and the site's own, by name."""
    skus, taken = dict(SKUS), dict[str, str]()
    for table in root.tables("skus", "the site's own boards", needed=False):
        name = table.name(taken, "the board's name")
        built_in = SKUS.get(name)
        found: dict[str, float] = {}
        for key, meaning in _SKU_KEYS.items():
            if built_in is not None and not table.has(key):
                found[key] = getattr(built_in, key)
            elif key.endswith("_mhz"):
                found[key] = table.whole(key, meaning)
            else:
                found[key] = table.number(key, meaning, zero=key.startswith("server_overhead"))
        known_c = built_in.slowdown_c if built_in is not None else SLOWDOWN_C
        found["slowdown_c"] = table.number("slowdown_c", "where the board brakes itself, in °C", known_c)
        table.close()
        sku = skus[name] = msgspec.convert({"name": name, **found}, Sku)
        _check_sku(table, sku)
    return skus


def _check_sku(table: Table, sku: Sku) -> None:
    def not_above(key: str, other: str) -> None:
        if getattr(sku, key) > getattr(sku, other):
            if key in table.raw:
                table.wrong(key, f"must be at most {other}, which is {getattr(sku, other):.10g}")
            else:  # the built-in figure stands: what the file changed is the other
                table.wrong(other, f"must be at least {key}, which is {getattr(sku, key):.10g}")

    not_above("min_mhz", "max_mhz")
    not_above("tdp_w", "limit_max_w")
    not_above("limit_min_w", "tdp_w")
    not_above("server_overhead_idle_w", "server_overhead_max_w")
    not_above("idle_w", "limit_min_w")
    if sku.idle_w == sku.tdp_w:
        table.wrong("idle_w" if "idle_w" in table.raw else "tdp_w", "idle_w must be below tdp_w")
    if sku.step_mhz and (sku.max_mhz - sku.min_mhz) % sku.step_mhz:
        table.wrong("step_mhz", f"must divide max_mhz less min_mhz, {sku.max_mhz - sku.min_mhz}")
    for key in ("limit_min_w", "limit_max_w"):
        if getattr(sku, key) % 1 > 0:
            table.wrong(key, "must be a whole number of watts")


def _racks(
    tables: list[Table], rows: list[Table], site: str, nodes: dict[str, PowerNode], skus: dict[str, Sku]
) -> list[Rack]:
    """Every rack with its hosts, in the file's order."""
    row_names = [name for row in rows if isinstance(name := row.raw.get("name"), str)]
    feeds = {name: node for name, node in nodes.items() if node.kind == "feed"}
    racks: list[Rack] = []
    taken: dict[str, str] = {}
    homes: dict[str, str] = {}
    for table in tables:
        row = table.choice("row", row_names, "the row the racks stand in")
        names = table.pattern("names", "the racks' names")
        if not table.has("feeds") or table.raw["feeds"] == []:
            table.missing("feeds", 'the feeds that power the racks, such as feeds = ["feed-a"]')
        powered = tuple(feeds[name].path for name in table.choices("feeds", feeds, "the racks' feeds"))
        for name in names:
            path = f"{site}/{row}/{name}"
            if path in taken:
                table.wrong("names", f"rack {path} stands in {taken[path]} too")
            taken[path] = table.where
        paths = [f"{site}/{row}/{name}" for name in names]
        hosts = _hosts(table.tables("hosts", "the racks' kinds of host"), paths, f"{site}/{row}", skus, homes)
        racks += [
            Rack(path=path, row=f"{site}/{row}", hosts=tuple(hosts[path]), feeds=powered) for path in paths
        ]
        table.close()
    return racks


def _hosts(
    tables: list[Table], racks: list[str], row: str, skus: dict[str, Sku], homes: dict[str, str]
) -> dict[str, list[Host]]:
    """The hosts of one ``[[racks]]`` table by rack path. `homes`: UUID → host path, over the whole file."""
    hosts: dict[str, list[Host]] = {rack: [] for rack in racks}
    taken: dict[str, str] = {}
    for table in tables:
        names = table.pattern("names", "the hosts' names")
        if len(racks) * len(names) > MOST_NAMES:
            table.wrong("names", f"stands for more than {MOST_NAMES} hosts over these {len(racks)} racks")
            names = ()
        sku = skus.get(table.choice("sku", skus, "the GPUs' board"))
        gpus = table.whole("gpus", "GPUs of each host")
        priority = table.choice("priority", get_args(Priority), "whose work is capped last")
        paths = table.choices("paths", get_args(Path), "command paths the hosts offer")
        if not table.raw.get("paths"):
            table.missing("paths", f"the command paths the hosts offer, of {', '.join(get_args(Path))}")
        rated_w, idle_w, max_w = _server(table, sku, gpus)
        uuids = _uuids(table, [f"{_last(rack)}/{name}" for rack in racks for name in names], gpus)
        table.close()
        for name in names:
            if name in taken:
                table.wrong("names", f"host {name} stands in {taken[name]} too")
            taken[name] = table.where
        if sku is None:
            continue
        for rack in racks:
            for name in names:
                path = f"{rack}/{name}"
                own = uuids.get(f"{_last(rack)}/{name}", ())
                for uuid in own:
                    if homes.setdefault(uuid, path) != path:
                        table.wrong("uuids", f"{uuid} is given to {homes[uuid]} and to {path}")
                hosts[rack].append(
                    Host(
                        path=path,
                        rack=rack,
                        row=row,
                        sku=sku,
                        gpu_count=gpus,
                        priority="high" if priority == "high" else "low",
                        rated_w=rated_w,
                        overhead_idle_w=idle_w,
                        overhead_max_w=max_w,
                        paths=msgspec.convert(paths, tuple[Path, ...]),
                        uuids=own,
                    )
                )
    return hosts


def _server(table: Table, sku: Sku | None, gpus: int) -> tuple[float, float, float]:
    """Nameplate, and overhead at rest and at full load, of a host, in watts."""
    scale = gpus / _SERVER_GPUS
    tdp_w = gpus * sku.tdp_w if sku else math.nan
    typical_max_w = sku.server_overhead_max_w * scale if sku else math.nan
    typical_idle_w = sku.server_overhead_idle_w * scale if sku else math.nan
    rated_w = table.number("rated_w", "a host's nameplate in watts, GPUs included", math.nan)
    if rated_w < tdp_w:
        table.wrong("rated_w", f"must be at least {tdp_w:.10g}, the TDP of the host's {gpus} GPUs")
    beyond_gpus_w = typical_max_w if math.isnan(rated_w) else rated_w - tdp_w
    max_w = table.number(
        "overhead_max_w", "a host's power besides its GPUs, in watts", beyond_gpus_w, zero=True
    )
    idle_w = table.number(
        "overhead_idle_w", "the same at rest, in watts", min(typical_idle_w, max_w), zero=True
    )
    if idle_w > max_w:
        table.wrong("overhead_idle_w", f"must be at most overhead_max_w, {max_w:.10g}")
    return (tdp_w + max_w if math.isnan(rated_w) else rated_w), idle_w, max_w


def _uuids(table: Table, hosts: list[str], gpus: int) -> dict[str, tuple[str, ...]]:
    """GPU UUIDs by ``rack/host``."""
    given = table.table("uuids")
    found: dict[str, tuple[str, ...]] = {}
    for host in given.raw if given else ():
        assert given is not None
        value = given.raw[host]
        if host not in hosts:
            given.wrong(host, f"no such host in this block; {not_among(host, hosts)}")
        elif not isinstance(value, list) or not all(isinstance(uuid, str) and uuid for uuid in value):
            given.wrong(host, "must be a list of GPU UUIDs in index order")
        elif len(value) != gpus:
            given.wrong(host, f"must be one UUID for each of the host's {gpus} GPUs, and has {len(value)}")
        elif len(set(value)) < len(value):
            given.wrong(host, "has the same UUID twice")
        else:
            found[host] = tuple(value)
    return found


def _rows(
    tables: list[Table], racks: list[Rack], peopled: list[object], site: str, nodes: dict[str, PowerNode]
) -> tuple[Row, ...]:
    """Every row, with its power cross-checked."""
    rows: list[Row] = []
    taken = {name: f"the UPS {name}" for name, node in nodes.items() if node.kind == "ups"}
    by_path = {node.path: node for node in nodes.values()}
    for table in tables:
        name = table.name(taken, "the row's name, unique in the site")
        path = f"{site}/{name}"
        budget_w = table.number("budget_w", "what the row may draw for ever, in watts")
        meters = [nodes[meter] for meter in table.choices("meters", nodes, "power nodes metered for the row")]
        table.close()
        own = tuple(rack for rack in racks if rack.row == path)
        others = {feed for rack in racks if rack.row != path for feed in rack.feeds}
        feeds = dict.fromkeys(feed for rack in own for feed in rack.feeds)
        names = [_last(feed) for feed in feeds]
        limit_w = sum(by_path[feed].limit_w for feed in feeds)
        if name and name not in peopled:
            table.wrong("name", "no [[racks]] of the file stand in this row; a row needs hosts")
        elif feeds and budget_w > limit_w:
            table.wrong(
                "budget_w",
                f"must be at most {limit_w:.10g}, the limits of its feeds together ({', '.join(names)})",
            )
        if meters:
            _check_meters(table, meters, feeds, others)
        rows.append(Row(path=path, budget_w=budget_w, racks=own, meters=tuple(node.path for node in meters)))
    return tuple(rows)


def _check_meters(table: Table, meters: list[PowerNode], feeds: Collection[str], others: set[str]) -> None:
    """A row's meters sum to its power only if each of its feeds is behind exactly one, and no other row's."""

    def behind(feed: str) -> list[PowerNode]:
        return [meter for meter in meters if feed == meter.path or feed.startswith(meter.path + "/")]

    for feed in feeds:
        if not behind(feed):
            table.wrong(
                "meters",
                f"must measure all of the row's power; {_last(feed)} powers it and has no meter here",
            )
        elif len(behind(feed)) > 1:
            table.wrong(
                "meters", f"must count each feed once; {_last(feed)} is behind several of these meters"
            )
    for feed in sorted(others):
        if behind(feed):
            table.wrong("meters", f"must measure this row alone; {_last(feed)} powers another row too")
