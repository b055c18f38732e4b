"""Import: a vLLM run on one H100, its engine's metrics joined with nvidia-smi's, about once a second.

Published under Apache-2.0 in FerranAgulloLopez/vLLMBatchingMemoryGap. The runs were closed-loop (all
requests at once), and some sat on a card whose clock was locked.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

from collectors.base import CollectorError
from collectors.recorded_table import Buried, in_order, number, read_rows, reading, site_text
from schemas.envelope import Event
from schemas.instants import Instant, from_text
from schemas.samples import GpuFrame, ServingSample
from schemas.topology import Host, Site
from schemas.units import Reading

COLUMNS = (
    "time_s",
    "gpu_power_w",
    "sm_clk_mhz",
    "sm_util_pct",
    "mem_clk_mhz",
    "gpu_temp_c",
    "mem_temp_c",
    "num_requests_running",
    "num_requests_waiting",
    "gpu_cache_usage_perc",
    "prompt_tokens_total",
    "generation_tokens_total",
    "num_preemptions_total",
)

START: Instant = from_text("2025-01-01T00:00:00Z")
"""Where the run's second 0 is put: the file counts from the run's start and does not name the day."""

_SOURCE = "collector/import-vllm-h100"


def hosts_in(path: pathlib.Path) -> tuple[str, ...]:
    """The one host, which the file does not name."""
    return ("h01",)


def site_for(hosts: Sequence[str], budget_w: float) -> str:
    """A site file for the one host: a rack, a row under `budget_w`, a single H100."""
    return site_text("vllm", budget_w, {"r01": hosts}, sku="H100-SXM5-80GB", gpus=1)


def events(path: pathlib.Path, site: Site) -> Iterator[Event]:
    """Each row as a `GpuFrame` and a `ServingSample` of the site's one host, in total order.

    The watts are nvidia-smi's: on an H100 the driver's average of a second, so they stand as
    `power_average_w` and the instantaneous column stays empty. A row that cannot be taken is a
    `DeadLetter` at the time of the row before it. Raises CollectorError for a site of several hosts.
    """
    if len(site.hosts) != 1:
        raise CollectorError(
            f"{path}: was recorded on one host; the site {site.name} has {len(site.hosts)}: give one with one"
        )
    (host,) = site.hosts.values()

    def parse(cells: Sequence[str]) -> tuple[Instant, list[Reading]]:
        at = START + round(1000 * number(cells[0], COLUMNS[0]))
        return at, [reading(cell, column) for cell, column in zip(cells[1:], COLUMNS[1:], strict=True)]

    taken: list[tuple[Instant, list[Reading]]] = []
    made: list[Event] = []
    for row in read_rows(path, COLUMNS, parse):
        if isinstance(row, Buried):
            at = taken[-1][0] if taken else START
            made.append(row.letter(at, source=_SOURCE, subject=host.path, topic="windrow.gpus"))
        else:
            taken.append(row)
            made += _samples(host, *row)
    yield from in_order(made)


def _samples(host: Host, at: Instant, readings: Sequence[Reading]) -> tuple[GpuFrame, ServingSample]:
    power_w, sm_mhz, sm_percent, memory_mhz, core_c, memory_c, *serving = readings
    running, waiting, cache, prompt, generated, preemptions = serving
    frame = GpuFrame(
        at=at,
        source=_SOURCE,
        subject=host.path,
        gpus=host.uuids or (host.gpu_path(0),),
        power_average_w=((power_w,),),
        sm_mhz=((sm_mhz,),),
        utilisation_ratio=((None if sm_percent is None else sm_percent / 100,),),
        memory_mhz=(memory_mhz,),
        core_c=(core_c,),
        memory_c=(memory_c,),
        faults=("",),
    )
    sample = ServingSample(
        at=at,
        source=_SOURCE,
        subject=host.path,
        running=running,
        waiting=waiting,
        kv_cache_ratio=cache,  # vLLM calls it a percentage and counts to one
        prompt_tokens=prompt,
        generation_tokens=generated,
        preemptions=preemptions,
    )
    return frame, sample
