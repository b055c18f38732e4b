"""A scenario on a row: its parts found by what they are, and broken and mended when it says so."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import TypeVar

import msgspec
import numpy as np

from schemas.commands import Path
from schemas.instants import SECOND, Instant
from schemas.topology import Host, PowerNode, Row, Site
from twin.row import TwinRow
from twin.scenario import (
    Fault,
    GpusFail,
    InletRises,
    MetersFail,
    PathDown,
    PathLossy,
    Scenario,
    UpsFailover,
)

_RAMP_STEP_S = 5.0
_Part = TypeVar("_Part")


class Unplayable(ValueError):
    """A row has not what the scenario breaks: `problems` has a line for each thing that is missing."""

    def __init__(self, problems: Collection[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Spell(msgspec.Struct, frozen=True, kw_only=True):
    """What was wrong from when until when (exclusive), in words."""

    words: str
    since: Instant
    until: Instant


class _Act(msgspec.Struct, order=True, frozen=True):
    """Something done to the plant. Of one moment, what mends comes before what breaks."""

    at: Instant
    number: int
    do: Callable[[], None]


class Trouble:
    """A scenario on one row of the twin. `advance` takes the place of the plant's own. Which parts a share
    comes to depends on the row, the scenario and the seed, and on nothing else.

    Raises Unplayable for a row that has not what the scenario breaks.
    """

    def __init__(self, scenario: Scenario, plant: TwinRow, seed: int, start: Instant) -> None:
        """`start` is the scenario's minute 0."""
        if problems := unplayable(scenario, plant.site, plant.row):
            raise Unplayable(problems)
        self._plant = plant
        self._start = start
        self._acts: list[_Act] = []
        self.spells: tuple[Spell, ...] = tuple(
            self._break(fault, np.random.default_rng([seed, number]))
            for number, fault in enumerate(scenario.faults)
        )

    def advance(self, until: Instant) -> None:
        """Move the plant to `until`, with all that breaks and is mended by then."""
        while self._acts and self._acts[0].at <= until:
            act = heapq.heappop(self._acts)
            self._plant.advance(act.at)
            act.do()
        self._plant.advance(until)

    # ---- what breaks ----

    def _break(self, fault: Fault, rng: np.random.Generator) -> Spell:
        plant = self._plant
        match fault:
            case UpsFailover(capacity_ratio=capacity):
                ups = _ups(fault, plant.site, plant.row)
                assert ups is not None  # it is playable
                self._from_to(
                    fault, partial(plant.fail_ups, capacity_ratio=capacity, ups=ups), plant.restore_ups
                )
                words = f"{_last(ups)} on battery, {capacity:g} of the budget left"
            case PathDown(path=path) | PathLossy(path=path):
                hosts = _some(_offering(plant.row, path), fault.share, rng)
                lossy = isinstance(fault, PathLossy)
                loss_ratio = fault.loss_ratio if isinstance(fault, PathLossy) else 0.0
                for host in hosts:
                    self._from_to(
                        fault,
                        partial(plant.fail_path, host.path, path, loss_ratio),
                        partial(plant.mend_path, host.path, path),
                    )
                how = f"loses {loss_ratio:.0%} of writes" if lossy else "is down"
                words = f"{path.replace('_', ' ')} {how} on {_count(hosts, plant.hosts, 'hosts')}"
            case MetersFail():
                meters = [plant.meters[meter] for meter in plant.row.meters]
                failing = _some(meters, fault.share, rng)
                for meter in failing:
                    self._from_to(fault, partial(meter.fail, fault.how, fault.factor), meter.mend)
                words = f"{_count(failing, meters, 'meters')} {_how(fault)}"
            case GpusFail():
                gpus = [(host.path, index) for host in plant.hosts for index in range(host.gpu_count)]
                broken = _some(gpus, fault.share, rng)
                for host_path, index in broken:
                    self._from_to(
                        fault,
                        partial(plant.fail_gpu, host_path, index, fault.how, fault.factor),
                        partial(plant.mend_gpu, host_path, index),
                    )
                words = f"{_count(broken, gpus, 'GPUs')} {_how(fault)}"
            case InletRises():
                places = _some(range(len(plant.hosts)), fault.share, rng)
                for at_s, rise_c in _ramps(fault):
                    self._act(at_s, partial(self._warm, places, rise_c))
                words = f"inlet +{fault.rise_c:g} °C on {_count(places, plant.hosts, 'hosts')}"
            case _:
                raise TypeError(f"no such fault: {fault}")
        return Spell(words=words, since=self._at(fault.at_s), until=self._at(fault.ends_s))

    def _from_to(self, fault: Fault, breaks: Callable[[], None], mends: Callable[[], None]) -> None:
        self._act(fault.ends_s, mends)
        self._act(fault.at_s, breaks)

    def _act(self, at_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._acts, _Act(self._at(at_s), len(self._acts), do))

    def _at(self, at_s: float) -> Instant:
        return self._start + round(at_s * SECOND)

    def _warm(self, places: Sequence[int], rise_c: float) -> None:
        self._plant.servers.inlet_rise_c[list(places)] = rise_c


def unplayable(scenario: Scenario, site: Site, row: Row) -> list[str]:
    """Why a row cannot play a scenario, a line for each fault that finds nothing to break."""
    lacking = ((fault, _lacks(fault, site, row)) for fault in scenario.faults)
    return [f"{scenario.name}.toml: {fault.place}: {why}" for fault, why in lacking if why]


def _lacks(fault: Fault, site: Site, row: Row) -> str:
    """What a row has not that a fault breaks, in words; empty when it has it."""
    match fault:
        case UpsFailover():
            names = [_last(node.path) for node in _upses(site, row)]
            if not names:
                return f"{row.path} hangs from no UPS in the site file, so none can fail over"
            if _ups(fault, site, row) is None:
                return f'ups = "{fault.ups}": {row.path} hangs from {", ".join(names)}'
        case PathDown(path=path) | PathLossy(path=path):
            if not _offering(row, path):
                return f"no host of {row.path} has the path {path}"
        case MetersFail():
            if not row.meters:
                return f"{row.path} has no meters of its own in the site file"
    return ""


def _upses(site: Site, row: Row) -> list[PowerNode]:
    """The UPSes that the row's racks hang from, in the site's order."""
    above = set()
    for path in (feed for rack in row.racks for feed in rack.feeds):
        while site.nodes[path].parent:
            path = site.nodes[path].parent
        above.add(path)
    return [node for node in site.power if node.path in above and node.kind == "ups"]


def _ups(fault: UpsFailover, site: Site, row: Row) -> str | None:
    """The path of the UPS that fails; None where the row has none like it."""
    paths = [node.path for node in _upses(site, row)]
    if fault.ups == "first":
        return paths[0] if paths else None
    return next((path for path in paths if _last(path) == fault.ups), None)


def _offering(row: Row, path: Path) -> list[Host]:
    return [host for host in row.hosts if path in host.paths]


def _some(parts: Sequence[_Part], share: float, rng: np.random.Generator) -> list[_Part]:
    """This share of the parts, rounded up, in their order."""
    count = math.ceil(share * len(parts) - 1e-9)
    chosen = rng.permutation(len(parts))[:count]
    return [parts[place] for place in sorted(chosen.tolist())]


def _count(some: Sequence[object], parts: Sequence[object], what: str) -> str:
    return f"{len(some)} of {len(parts)} {what}"


def _how(fault: MetersFail | GpusFail) -> str:
    return f"reading {fault.factor:g} of their power" if fault.how == "lying" else fault.how


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _ramps(fault: InletRises) -> Iterator[tuple[float, float]]:
    """(second, rise): up over the first ramp, down over the last."""
    steps = max(1, math.ceil(fault.ramp_s / _RAMP_STEP_S))
    for step in range(1, steps + 1):
        part = step / steps
        yield fault.at_s + part * fault.ramp_s, part * fault.rise_c
        yield fault.ends_s - (1 - part) * fault.ramp_s, (1 - part) * fault.rise_c
