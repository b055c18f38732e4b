"""Wiring: a control loop, its collectors and its agents put together, on the twin or on this machine."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from actuators.base import Actuator
from actuators.deadline import Bounded
from actuators.gpu_nvml import NvmlActuator
from actuators.leases import LeaseTimer
from actuators.lifecycle import DEADLINES, HostAgent
from collectors.feed_meter import FeedCollector
from collectors.gpu_nvml import NvmlCollector
from controllers.policy import CappingPolicy
from runtime.agents import InlineAgents, TimedAgents
from runtime.clock import Clock, SimulatedClock
from runtime.config import HostConfig, Setup
from runtime.control_loop import ControlLoop
from runtime.health import Health, served
from runtime.hosts.embedded import EmbeddedHost, Records, Samples
from runtime.inbox import Operators
from runtime.journal import Journal
from runtime.ledger.patient import PatientLedger
from runtime.ledger.selection import told_to_us
from runtime.ledger.standing import last_decisions, last_troubles, standing
from runtime.ledger.store import Ledger, LedgerUnwritable
from runtime.measured import Measured
from runtime.metrics import Metrics
from runtime.polling import InlineSamples, ThreadedSamples, sampled
from runtime.recorder import Recorder, header_of
from runtime.reflexes import FeltSamples, InlineReflexes
from runtime.registry import ACTUATORS
from runtime.row_loop import Beat
from runtime.state_dir import StateDir
from schemas.commands import Path
from schemas.envelope import Event
from schemas.instants import SECOND, Instant, Span
from schemas.outcomes import Outcome
from twin.breaker import TripCurve
from twin.row import TwinRow
from twin.workload import LoadProfile

_LOG = logging.getLogger(__name__)

METERS_MS: Span = 2 * SECOND
"""How often a simulated site's meters are read: the row manager's period in the POLCA study (recalled)."""

_LEAVING_MS: Span = 5 * SECOND
"""How long a host that stops waits to see its devices at what their leases ended in: longer than the
in-band deadline of 3 s, and well inside the 90 s after which service managers kill (our choice)."""


class TwinRig(msgspec.Struct, frozen=True):
    """A row of the twin and the embedded host that runs it."""

    plant: TwinRow
    host: EmbeddedHost


def plant_of(
    setup: Setup,
    *,
    seed: int,
    start: Instant,
    load: LoadProfile | None = None,
    curve: TripCurve | None = None,
) -> TwinRow:
    """The setup's first row, simulated, its out-of-band path as late and as lossy as the policy's
    switches say. `load` None is the demonstration's evening."""
    switches = setup.policy.switches
    return TwinRow(
        setup.site,
        setup.site.rows[0].path,
        seed=seed,
        start=start,
        load=load,
        curve=curve,
        oob_latency=switches.oob_latency,
        oob_loss_ratio=switches.oob_loss,
    )


def deadlines_of(policy: CappingPolicy) -> dict[Path, Span]:
    """How long an agent waits for a read-back, by path: its own time, or where the policy gives the path
    longer, a quarter more than that."""
    return {path: max(least, policy.latency_ms.of(path) * 5 // 4) for path, least in DEADLINES.items()}


def on_twin(
    plant: TwinRow,
    setup: Setup,
    *,
    ledger: Records,
    epoch: int = 1,
    frame_ms: Span = 2 * SECOND,
    state_dir: pathlib.Path | None = None,
    observe: Iterable[Callable[[Beat], None]] = (),
    reflex: bool = False,
    advance: Callable[[Instant], None] | None = None,
) -> TwinRig:
    """The real adapters over a simulated row, in simulated time: waiting advances the plant.

    `frame_ms` is the period of GPU frames; meters are read every `METERS_MS`. `state_dir` None keeps the
    agents' state in memory. `reflex`: each host is watched by its reflex. `advance` moves the plant, where
    it does not move by itself alone.
    """
    meters = {path: plant.meters[path] for path in plant.row.meters}
    power = FeedCollector({**meters, **plant.upses}, upses=tuple(plant.upses), period_ms=METERS_MS)
    agents = agents_on_twin(plant, setup, state_dir=state_dir, reflex=reflex)
    samples: Samples = InlineSamples([*collectors_on_twin(plant, frame_ms), power])
    if reflex:
        samples = FeltSamples(samples, InlineReflexes(agents, setup.shares))
    host = EmbeddedHost(
        clock=SimulatedClock(plant.now, advance or plant.advance),
        loop=ControlLoop(setup.site, setup.policy, epoch=epoch),
        samples=samples,
        agents=InlineAgents(agents, setup.oversubscribed),
        ledger=ledger,
        observe=observe,
    )
    return TwinRig(plant, host)


def collectors_on_twin(plant: TwinRow, frame_ms: Span) -> list[NvmlCollector]:
    """The collectors of a simulated row's hosts, in the row's order."""
    return [
        NvmlCollector(
            host,
            plant.nvml(host.path, "in_band" if "in_band" in host.paths else host.paths[0]),
            period_ms=frame_ms,
        )
        for host in plant.hosts
    ]


def agents_on_twin(
    plant: TwinRow, setup: Setup, *, state_dir: pathlib.Path | None = None, reflex: bool = False
) -> dict[str, HostAgent]:
    """The agents of a simulated row's hosts, by path; `reflex`: each watched by its reflex."""
    return {
        host.path: HostAgent(
            host,
            {path: NvmlActuator(host, path, plant.nvml(host.path, path)) for path in host.paths},
            setup.shares[host.path],
            state_dir / f"{host.path.replace('/', '__')}.json" if state_dir else None,
            source=f"actuator/{host.path}",
            deadlines=deadlines_of(setup.policy),
            reflex=reflex,
        )
        for host in plant.hosts
    }


@contextlib.contextmanager
def on_this_machine(
    config: HostConfig, setup: Setup, state: StateDir, clock: Clock, *, record: pathlib.Path | None = None
) -> Iterator[EmbeddedHost]:
    """The pipeline on real devices: each collector on a thread of its own, each device call bounded,
    leases ended by a timer that needs nothing else. What people said and still holds is said again.

    On leaving, every lease is ended as its fail direction says: nobody would be there to end it. The
    caller has `state` locked. Raises ConfigError, CollectorError or ActuatorError, in words.
    """
    epoch = state.next_epoch()
    state.keep_config(config)
    loop = ControlLoop(setup.site, setup.policy, epoch=epoch)
    metrics = Metrics(setup.site)
    measured = Measured(metrics, clock)
    with contextlib.ExitStack() as stack:
        book = Ledger(state.ledger)
        ledger = stack.enter_context(PatientLedger(book))
        samples = stack.enter_context(_collected(config, setup, clock))
        timer = LeaseTimer(agents_of(config, setup, state), clock, source="actuator")
        health = Health(clock)
        journal = Journal()
        health.ask(lambda: journal.standing)
        observers = [journal.observe, measured.observe, _signs(health, loop, samples, timer, measured)]
        if record is not None:
            header = header_of(setup, epoch, clock.now(), "windrow run")
            observers.append(stack.enter_context(Recorder(record, header)).write)
        host = EmbeddedHost(
            clock=clock,
            loop=loop,
            samples=measured.samples(samples),
            agents=measured.agents(TimedAgents(timer, setup.oversubscribed)),
            ledger=measured.ledger(ledger),
            operators=measured.operators(Operators(state.path, setup.site, ledger.holds)),
            observe=observers,
        )
        stack.callback(
            _stand_down, timer, host, clock, dry=all(a.kind == "dry_run" for a in config.actuators)
        )
        metrics.watch(samples.states, loop.strangers)
        metrics.configured(site=setup.site.name, policy=setup.policy.variant, epoch=str(epoch))
        now = clock.now()
        loop.offer(standing(book, now))
        loop.offer(last_troubles(book, now))
        loop.offer(last_decisions(book, loop.loops, now))
        if config.listen:
            stack.enter_context(served(config.listen, health, metrics.exposition))
        yield host


def _signs(
    health: Health, loop: ControlLoop, samples: ThreadedSamples, timer: LeaseTimer, measured: Measured
) -> Callable[[Beat], None]:
    """What a host's health is judged by; call the result at each beat. A beat is late after five periods
    and never before ten seconds; what is vital, a restart may mend."""
    within_s = max(10.0, 5 * loop.policy.period_ms / SECOND)
    for row in loop.loops:
        health.expect(f"beat {row}", within_s=within_s, vital=True)
        health.expect(f"samples {row}", within_s=within_s)
    health.expect("lease timer", within_s=within_s, vital=True)
    health.expect("ledger", within_s=within_s)
    health.ask(lambda: f"{measured.waiting} records wait for the ledger" if measured.waiting else "")
    health.ask(
        lambda: "; ".join(f"{each.name} is away: {each.away}" for each in samples.states() if each.away)
    )
    health.ask(lambda: "; ".join(f"{path}: its agent raised {n} times" for path, n in timer.faults.items()))
    steps = 0

    def observe(beat: Beat) -> None:
        nonlocal steps
        health.observe(beat)
        if not measured.waiting:
            health.seen("ledger")
        if timer.steps != steps:
            steps = timer.steps
            health.seen("lease timer")

    return observe


@contextlib.contextmanager
def watching_this_machine(
    config: HostConfig, setup: Setup, clock: Clock, recorder: Recorder
) -> Iterator[EmbeddedHost]:
    """The pipeline on real devices with nobody to command and no ledger: what is read and what would be
    decided goes to the recorder. Raises CollectorError, in words."""
    with _collected(config, setup, clock) as samples:
        yield EmbeddedHost(
            clock=clock,
            loop=ControlLoop(setup.site, setup.policy, epoch=1),
            samples=samples,
            agents=InlineAgents({}),
            ledger=Unkept(),
            observe=[recorder.write],
        )


class Unkept:
    """A ledger that keeps nothing: for runs that act on nothing real."""

    def append(self, events: Sequence[Event]) -> None:
        """Let them go."""

    def tidy(self) -> None:
        """There is nothing to tidy."""


def agents_of(
    config: HostConfig, setup: Setup, state: StateDir, *, reflex: Collection[str] = ()
) -> dict[str, HostAgent]:
    """One agent for each host that has an actuator here, each device call bounded; `reflex` names the hosts
    that a reflex watches. Raises ActuatorError where an adapter's library is not installed."""
    by_host: dict[str, dict[Path, Actuator]] = {}
    for actuator in config.actuators:
        host = setup.site.hosts[actuator.host]
        by_host.setdefault(host.path, {})[actuator.path] = Bounded(
            ACTUATORS[actuator.kind](host, actuator.path)
        )
    return {
        path: HostAgent(
            setup.site.hosts[path],
            actuators,
            setup.shares[path],
            state.agent(path),
            source=f"actuator/{path}",
            deadlines=deadlines_of(setup.policy),
            reflex=path in reflex,
        )
        for path, actuators in by_host.items()
    }


def settled(agents: Mapping[str, HostAgent]) -> bool:
    """Whether every host was seen to be as its agent wants it; one that could not be looked at yet has
    nothing to be seen."""
    return all(agent.kept is None or agent.kept.settled for agent in agents.values())


def _collected(config: HostConfig, setup: Setup, clock: Clock) -> contextlib.closing[ThreadedSamples]:
    """The configured collectors, polled from here on."""
    return contextlib.closing(sampled(config, setup.site, clock))


def _stand_down(timer: LeaseTimer, host: EmbeddedHost, clock: Clock, *, dry: bool) -> None:
    """Stand the agents down, and write down what became of it, as far as the disk lets one."""
    said = stand_down(timer, clock, dry=dry)
    last = [*host.waiting, *told_to_us(host.loop.unheard), *said]
    try:
        host.ledger.append(last)
    except LedgerUnwritable as error:
        _LOG.error("the last %d records may be lost: %s", len(last), error)


def stand_down(timer: LeaseTimer, clock: Clock, *, dry: bool) -> list[Outcome]:
    """End every lease, see that it is so (a dry run has nothing to see), and let go of the devices; what
    the agents said meanwhile."""
    said = timer.stand_down()
    until = clock.now() + _LEAVING_MS
    while not (dry or settled(timer.agents)) and clock.now() < until:
        clock.sleep_until(clock.now() + 50)
    timer.close()
    for path, agent in timer.agents.items():
        if not (dry or settled({path: agent})):
            _LOG.error("%s: left before its setting was read back", path)
    return [*said, *timer.take()]
