"""Wiring: a control loop, its collectors and its agents put together, on the twin or on this machine."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterable, Iterator

import msgspec

from actuators.base import Actuator
from actuators.deadline import Bounded
from actuators.gpu_nvml import NvmlActuator
from actuators.leases import LeaseTimer
from actuators.lifecycle import HostAgent
from collectors.base import Collector
from collectors.feed_meter import FeedCollector
from collectors.gpu_nvml import NvmlCollector
from runtime.agents import InlineAgents, TimedAgents
from runtime.clock import Clock, SimulatedClock
from runtime.config import ConfigError, HostConfig, Setup, check_adapters
from runtime.control_loop import ControlLoop
from runtime.health import HealthServer
from runtime.hosts.embedded import EmbeddedHost, Records
from runtime.inbox import Inbox
from runtime.ledger.store import Ledger
from runtime.metrics import Metrics
from runtime.polling import InlineSamples, ThreadedSamples
from runtime.recorder import Recorder, header_of
from runtime.registry import ACTUATORS, COLLECTORS
from runtime.row_loop import Beat
from runtime.state_dir import StateDir
from schemas.commands import Path
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
    meters = {path: plant.meters[path] for path in plant.row.meters}
    power = FeedCollector({**meters, **plant.upses}, upses=tuple(plant.upses), period_ms=2 * SECOND)
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
        samples=InlineSamples([*collectors, power]),
        agents=InlineAgents(agents, setup.oversubscribed),
        ledger=ledger,
        observe=observe,
    )
    return TwinRig(plant, host)


@contextlib.contextmanager
def on_this_machine(
    config: HostConfig, setup: Setup, state: StateDir, clock: Clock, *, record: pathlib.Path | None = None
) -> Iterator[EmbeddedHost]:
    """The pipeline on real devices: each collector on a thread of its own, each device call bounded,
    leases ended by a timer that needs nothing else. On leaving, every lease is ended as its fail
    direction says: nobody would be there to end it. Raises ConfigError."""
    problems = [*check_adapters(config, setup.site, "configuration"), *setup.unsuited()]
    if problems:
        raise ConfigError("\n".join(problems))
    epoch = state.next_epoch()
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger(state.ledger))
        metrics = Metrics()
        observers: list[Callable[[Beat], None]] = [metrics.observe]
        if record is not None:
            header = header_of(setup, epoch, clock.now(), "windrow run")
            observers.append(stack.enter_context(Recorder(record, header)).write)
        agents = TimedAgents(LeaseTimer(_agents(config, setup, state), clock, source="actuator"), setup.oversubscribed)
        stack.callback(agents.close)
        samples = ThreadedSamples(_collectors(config, setup), clock)
        stack.callback(samples.close)
        inbox = Inbox(state.path)
        host = EmbeddedHost(
            clock=clock,
            loop=ControlLoop(setup.site, setup.policy, epoch=epoch),
            samples=samples,
            agents=agents,
            ledger=ledger,
            operators=inbox.take,
            observe=observers,
        )
        if config.health.listen:
            stack.enter_context(HealthServer(config.health.listen, metrics, host, clock))
        yield host


def _agents(config: HostConfig, setup: Setup, state: StateDir) -> dict[str, HostAgent]:
    """One agent for each host that has an actuator here."""
    by_host: dict[str, dict[Path, Actuator]] = {}
    for actuator in config.actuators:
        host = setup.site.hosts[actuator.host]
        by_host.setdefault(host.path, {})[actuator.path] = Bounded(ACTUATORS[actuator.kind](host, actuator.path))
    return {
        path: HostAgent(
            setup.site.hosts[path], actuators, setup.shares[path], state.agent(path), source=f"actuator/{path}"
        )
        for path, actuators in by_host.items()
    }


def _collectors(config: HostConfig, setup: Setup) -> list[Collector]:
    return [COLLECTORS[entry.kind](setup.site.hosts[entry.host], entry.period_ms) for entry in config.collectors]
