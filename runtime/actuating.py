"""Actuation: commands off the bus to the hosts' agents, and what became of them back onto it.

    windrow.commands   ─┐                                        ┌─► windrow.outcomes
    windrow.operators  ─┴► Orders ─► LeaseTimer ─► agents ─► …  ─┼─► windrow.emergencies
    the hosts' own GPUs ──► Reflexes ─────┘                      └─► windrow.dead-letters

The rows' partitions are read by assignment: nothing is rebalanced between a command and its host. While
Kafka is away the agents go on with their leases and the reflexes with their hosts, and outcomes wait on
disk; then reading goes on where it stood. After a start the last lease's length is read again, so that
nothing in flight is missed: what is too late or came before is known by its lease, its epoch and its id.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as MetricSource

from actuators.leases import LeaseTimer
from actuators.reflex import Reflex
from collectors.base import Collector
from runtime.agents import TimedAgents
from runtime.bus.keys import Keys, partition_of
from runtime.bus.publish_metrics import PublishMetrics
from runtime.bus.publisher import Publisher
from runtime.bus.reader import Reader, Received
from runtime.clock import Clock
from runtime.config import ConfigError, HostConfig, Setup
from runtime.health import Health, served
from runtime.orders import COMMANDS, OPERATORS, Orders, Release
from runtime.reflexes import PERIOD_MS, Reflexes
from runtime.registry import COLLECTORS
from runtime.state_dir import StateDir
from runtime.wiring import agents_of, stand_down
from schemas.commands import Command
from schemas.envelope import Event
from schemas.instants import SECOND, Span
from schemas.outcomes import Accepted, Outcome, Verified
from schemas.topics import BY_NAME
from schemas.topology import Host

_LOG = logging.getLogger(__name__)

APART_MS: Span = 10 * SECOND
"""How far the brokers' clock may be from this host's when it looks back (our choice)."""

_WAIT_S = 0.25  # for messages, and so to notice that it is to stop
_MOST = 1_000  # messages at once
_WITHIN_S = 10.0  # a turn that takes longer hangs
_LEAVING_S = 3.0  # for the last outcomes to reach Kafka; the rest waits on disk
_REMEMBERED = 10_000  # commands without an answer; the time of older ones is lost

_MS = tuple(ms / 1000 for ms in (1, 2, 5, 10, 20, 50, 100, 250, 500, 1_000, 3_000, 10_000, 50_000))


class ActuationMetrics(MetricSource):
    """What an actuator process tells of itself. What its parts count themselves is read when metrics are."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.outcomes = Counter(
            "windrow_actuator_outcomes", "Outcomes said here.", ("type",), registry=self.registry
        )
        self.faults = Counter(
            "windrow_actuator_turn_faults", "Turns that a mistake of ours ended.", registry=self.registry
        )
        self.accepted_s = Histogram(
            "windrow_actuator_accepted_seconds",
            "From a command's receipt to its first write.",
            registry=self.registry,
            buckets=_MS,
        )
        self.verified_s = Histogram(
            "windrow_actuator_verified_seconds",
            "From a command's receipt to its read-back.",
            registry=self.registry,
            buckets=_MS,
        )
        self.ask: Callable[[], Iterator[Metric]] = lambda: iter(())
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What the parts count themselves."""
        yield from self.ask()

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class Actuation:
    """Reads orders and hands them to the agents of `timer`, until told to stop. `told` is to be what the
    timer's agents are heard by. `turn` is for one thread, `told` for any."""

    def __init__(
        self,
        *,
        hosts: Sequence[Host],
        reader: Reader,
        publisher: Publisher,
        clock: Clock,
        metrics: ActuationMetrics,
        oversubscribed: frozenset[str],
    ) -> None:
        self.orders = Orders(hosts)
        self.reader = reader
        self.faults = 0
        self.turned: Callable[[], None] = lambda: None
        """Called at each turn: a sign of life."""
        self._publisher = publisher
        self._clock = clock
        self._metrics = metrics
        self._oversubscribed = oversubscribed
        self._received: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, timer: LeaseTimer, stop: Callable[[], bool]) -> None:
        """Turn until `stop` says so. A mistake of ours is said and counted: what it kept from a host is
        asked again by whoever wants it so."""
        agents = TimedAgents(timer, self._oversubscribed)
        for agent in timer.agents.values():
            if agent.kept is not None and agent.kept.command is not None:
                self.orders.obeyed(agent.kept.command, self._clock.now())
        while not stop():
            try:
                self.turn(self.reader.poll(_WAIT_S, _MOST), timer, agents)
            except Exception:
                self.faults += 1
                self._metrics.faults.inc()
                _LOG.exception("orders could not be handed on")
            self.turned()

    def turn(self, received: Sequence[Received], timer: LeaseTimer, agents: TimedAgents) -> None:
        """Do what some messages ask for."""
        if not received:
            return
        now, waiting = self._clock.now(), list[Command]()
        orders, said = self.orders.take(received, now)
        for order in orders:
            if isinstance(order, Release):
                self._hand(timer, waiting)
                waiting = []
                word = order.word
                _LOG.warning("%s: released by %s: %s", word.subject, word.by, word.reason)
                for host in sorted(order.hosts):
                    agents.release(host, now)
            else:
                waiting.append(order)
        self._hand(timer, waiting)
        self._publisher.send(said)

    def _hand(self, timer: LeaseTimer, commands: Sequence[Command]) -> None:
        if not commands:
            return
        at = self._clock.monotonic()
        with self._lock:
            self._received.update((command.id, at) for command in commands)
            while len(self._received) > _REMEMBERED:
                self._received.popitem(last=False)
        timer.hand(commands)

    def told(self, outcomes: Sequence[Outcome]) -> None:
        """The agents have said something: publish it, and note how long it took."""
        self._publisher.send(outcomes)
        now = self._clock.monotonic()
        for outcome in outcomes:
            self._metrics.outcomes.labels(type(outcome).__name__).inc()
            with self._lock:
                accepted = isinstance(outcome, Accepted)
                at = self._received.get(outcome.command)
                if not accepted:
                    self._received.pop(outcome.command, None)
            if at is not None and accepted:
                self._metrics.accepted_s.observe(now - at)
            elif at is not None and isinstance(outcome, Verified):
                self._metrics.verified_s.observe(now - at)

    def raised(self, event: Event) -> None:
        """A reflex has said something."""
        self._publisher.send([event])


def reader_of(config: HostConfig, setup: Setup, hosts: Sequence[Host], clock: Clock) -> Reader:
    """A reader of the orders for `hosts`, from one lease's length ago."""
    rows = {host.row.encode() for host in hosts}
    places = {
        topic: sorted({partition_of(row, BY_NAME[topic].partitions) for row in rows})
        for topic in (COMMANDS, OPERATORS)
    }
    among = {topic: BY_NAME[topic].partitions for topic in places}
    return Reader(config.bus(), places, start=clock.now() - setup.policy.lease_ms - APART_MS, among=among)


@contextlib.contextmanager
def actuating(
    config: HostConfig, setup: Setup, state: StateDir, clock: Clock
) -> Iterator[Callable[[Callable[[], bool]], None]]:
    """The agents of the hosts set here, their leases and their reflexes, living from here on whether or not
    Kafka does; what it yields reads their orders until it is told to stop.

    On leaving every lease is ended as its fail direction says. The caller has `state` locked. Raises
    ConfigError, BusError, CollectorError or ActuatorError, in words.
    """
    if not config.actuators:
        raise ConfigError(
            f"{config.name}: actuators is missing: write [[actuators]], once for each host and path set here"
        )
    kafka = config.bus()
    kafka.for_kafka_python()  # says now what of it cannot be used
    try:
        state.keep_config(config)
    except ConfigError as error:  # a full disk must not keep anybody from ending the leases it left behind
        _LOG.error("%s; whoever speaks to this host has to name its --config", error)
    dry = all(actuator.kind == "dry_run" for actuator in config.actuators)
    paths = dict.fromkeys(actuator.host for actuator in config.actuators)
    hosts = [setup.site.hosts[path] for path in paths]
    readers: dict[str, Collector] = {
        actuator.host: COLLECTORS[actuator.kind](setup.site.hosts[actuator.host], PERIOD_MS)
        for actuator in config.actuators
        if actuator.kind in COLLECTORS
    }
    health, metrics = Health(clock), ActuationMetrics()
    with contextlib.ExitStack() as stack:
        client = f"actuate/{hosts[0].path}"
        publisher = Publisher(kafka, Keys(setup.site), spool=state.path / "spool", clock=clock, client=client)
        stack.callback(publisher.close, _LEAVING_S)
        reader = reader_of(config, setup, hosts, clock)
        stack.callback(reader.close)
        actuation = Actuation(
            hosts=hosts,
            reader=reader,
            publisher=publisher,
            clock=clock,
            metrics=metrics,
            oversubscribed=setup.oversubscribed,
        )
        timer = LeaseTimer(
            agents_of(config, setup, state, reflex=readers), clock, source="actuator", heard=actuation.told
        )
        stack.callback(stand_down, timer, clock, dry=dry)
        timer.start()
        reflexes = Reflexes(
            {path: (collector, _reflex(setup, timer, path)) for path, collector in readers.items()},
            timer,
            clock,
            actuation.raised,
        )
        stack.callback(reflexes.close)
        _signs(health, actuation, timer, reflexes, publisher)
        metrics.ask = lambda: _counted(actuation, timer, reflexes)
        metrics.registry.register(PublishMetrics(publisher.state))
        if config.listen:
            stack.enter_context(served(config.listen, health, metrics.exposition))
        yield lambda stop: actuation.run(timer, stop)


def _reflex(setup: Setup, timer: LeaseTimer, path: str) -> Reflex:
    """The reflex of a host, which goes on with what it held before a restart."""
    kept = timer.agents[path].kept
    held = kept.reflex if kept is not None else None
    return Reflex(setup.site.hosts[path], setup.shares[path], source=f"actuator/{path}", held=held)


def _signs(
    health: Health, actuation: Actuation, timer: LeaseTimer, reflexes: Reflexes, publisher: Publisher
) -> None:
    """What the process' health is judged by. Only what a restart may mend is vital."""
    health.expect("orders", within_s=_WITHIN_S, vital=True)
    health.expect("lease timer", within_s=_WITHIN_S, vital=True)
    steps = 0

    def turned() -> None:
        nonlocal steps
        health.seen("orders")
        if timer.steps != steps:
            steps = timer.steps
            health.seen("lease timer")

    actuation.turned = turned
    health.ask(lambda: f"orders are not read: {actuation.reader.away}" if actuation.reader.away else "")
    health.ask(lambda: publisher.state().trouble)
    health.ask(lambda: "; ".join(f"{path}: its agent raised {n} times" for path, n in timer.faults.items()))
    health.ask(reflexes.trouble)
    health.ask(lambda: f"orders could not be handed on {actuation.faults} times" if actuation.faults else "")


def _counted(actuation: Actuation, timer: LeaseTimer, reflexes: Reflexes) -> Iterator[Metric]:
    """What the parts count themselves."""
    away = GaugeMetricFamily("windrow_actuator_orders_away", "1 while orders cannot be read.")
    away.add_metric([], bool(actuation.reader.away))
    dead = CounterMetricFamily(
        "windrow_actuator_dead_letters", "Messages that could not be read.", labels=["topic"]
    )
    for topic, count in dict(actuation.orders.dead).items():
        dead.add_metric([topic], count)
    faults = CounterMetricFamily(
        "windrow_actuator_faults", "Times that a host's agent raised.", labels=["host"]
    )
    held = GaugeMetricFamily(
        "windrow_actuator_reflex_held", "1 while a host's own reflex holds it.", labels=["host"]
    )
    ceiling = GaugeMetricFamily(
        "windrow_actuator_epoch", "The highest epoch a host was commanded under.", labels=["host"]
    )
    for path, agent in timer.agents.items():
        faults.add_metric([path], timer.faults.get(path, 0))
        ceiling.add_metric([path], agent.kept.epoch if agent.kept is not None else 0)
    for path, hold in reflexes.holds.items():
        held.add_metric([path], hold is not None)
    yield from (away, dead, faults, held, ceiling)
