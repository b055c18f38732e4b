"""The importers: recordings that others made, told apart by what stands in their first line."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from collectors import import_mlperf, import_vllm_h100
from collectors.base import CollectorError
from collectors.recorded_table import header_of
from schemas.envelope import Event
from schemas.topology import Site


class Importer(NamedTuple):
    """One format. `columns` are those it cannot do without; further ones and their order do not matter.

    `hosts_in` names the hosts of a file; `site_for` proposes a site file for them under a budget in
    watts; `events` yields the file's messages on a site, in total order and without ticks.
    """

    name: str
    what: str
    columns: tuple[str, ...]
    hosts_in: Callable[[pathlib.Path], tuple[str, ...]]
    site_for: Callable[[Sequence[str], float], str]
    events: Callable[[pathlib.Path, Site], Iterator[Event]]


IMPORTERS: tuple[Importer, ...] = (
    Importer(
        "vllm-h100",
        "a vLLM run on one H100",
        import_vllm_h100.COLUMNS,
        import_vllm_h100.hosts_in,
        import_vllm_h100.site_for,
        import_vllm_h100.events,
    ),
    Importer(
        "mlperf",
        "wall power of nodes in MLPerf training",
        import_mlperf.COLUMNS,
        import_mlperf.hosts_in,
        import_mlperf.site_for,
        import_mlperf.events,
    ),
)


def detect(path: pathlib.Path) -> Importer:
    """The importer whose columns stand in the file's first line.

    Raises CollectorError, naming the formats known, when there is none or the file cannot be read.
    """
    header = header_of(path)
    for importer in IMPORTERS:
        if set(importer.columns) <= set(header):
            return importer
    known = "".join(f"\n  {each.name}: {each.what} (CSV: {', '.join(each.columns)})" for each in IMPORTERS)
    begins = f"begins with {','.join(header)[:80]!r}" if header else "has no first line of text"
    raise CollectorError(f"{path}: is of no format that can be imported; it {begins}. Known are:{known}")
