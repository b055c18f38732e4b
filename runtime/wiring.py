"""Wiring: a control loop, its collectors and its agents put together, on the twin or on this machine."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable

import msgspec

from actuators.gpu_nvml import NvmlActuator
from actuators.lifecycle import HostAgent
from collectors.feed_meter import FeedCollector
from collectors.gpu_nvml import NvmlCollector
from runtime.agents import InlineAgents
from runtime.clock import SimulatedClock
from runtime.config import Setup
from runtime.control_loop import ControlLoop
from runtime.hosts.embedded import EmbeddedHost, Records
from runtime.polling import InlineSamples
from runtime.row_loop import Beat
from schemas.instants import SECOND, Span
from twin.row import TwinRow


class TwinRig(msgspec.Struct, frozen=True):
    """A row of the twin and the embedded host that runs it."""

    plant: TwinRow
    host: EmbeddedHost


def on_twin(
    plant: TwinRow,
    setup: Setup,
    *,
    ledger: Records,
    epoch: int = 1,
    frame_ms: Span = 2 * SECOND,
    state_dir: pathlib.Path | None = None,
    observe: Iterable[Callable[[Beat], None]] = (),
) -> TwinRig:
    """The real adapters over a simulated row, in simulated time: waiting advances the plant.

    `frame_ms` is the period of GPU frames; meters are read every 2 s, the row manager's period in
    the POLCA study (recalled). `state_dir` None keeps the agents' state in memory.
    """
    hosts = plant.hosts
    collectors = [
        NvmlCollector(host, plant.nvml(host.path, "in_band" if "in_band" in host.paths else host.paths[0]), period_ms=frame_ms)
        for host in hosts
    ]
    meters = FeedCollector(
        {path: plant.meters[path] for path in plant.row.meters}, upses=plant.upses, period_ms=2 * SECOND
    )
    agents = {
        host.path: HostAgent(
            host,
            {path: NvmlActuator(host, path, plant.nvml(host.path, path)) for path in host.paths},
            setup.shares[host.path],
            state_dir / f"{host.path.replace('/', '__')}.json" if state_dir else None,
            source=f"actuator/{host.path}",
        )
        for host in hosts
    }
    host = EmbeddedHost(
        clock=SimulatedClock(plant.now, plant.advance),
        loop=ControlLoop(setup.site, setup.policy, epoch=epoch),
        samples=InlineSamples([*collectors, meters]),
        agents=InlineAgents(agents, setup.oversubscribed),
        ledger=ledger,
        observe=observe,
    )
    return TwinRig(plant, host)
