"""`windrow collect`: what this machine's collectors read, published."""

from __future__ import annotations

import contextlib
import pathlib

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest

from runtime.bus.keys import Keys
from runtime.bus.publish_metrics import PublishMetrics
from runtime.bus.publisher import Publisher
from runtime.cli.printing import say
from runtime.cli.stopping import until_stopped
from runtime.clock import SystemClock
from runtime.config import HostConfig, load_host, read_host_config
from runtime.health import Health, HealthServer, served
from runtime.metrics import SourceMetrics
from runtime.polling import ThreadedSamples, sampled
from schemas.instants import SECOND

_LOOK_S = 0.02  # between two looks for what was read: what it adds to a sample's way
_LEAVING_S = 3.0  # for what was read last to reach Kafka; beyond it, it waits on disk


def collect(*, config: pathlib.Path) -> int:
    """Read this machine's devices and publish what they say.

    Reading needs no privilege, and begins at once: while Kafka is away, what was read waits in the spool
    under the state directory, in its order and for as long as it is worth sending.

    Parameters
    ----------
    config
        A configuration with the site, its brokers, [kafka], and what is read here, [[collectors]].
    """
    chosen = read_host_config(config)
    kafka, site, clock = chosen.bus(), load_host(chosen, decides=False).site, SystemClock()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(until_stopped())
        publisher = Publisher(
            kafka, Keys(site), spool=chosen.state_dir / "spool", clock=clock, client="windrow-collect"
        )
        stack.callback(publisher.close, _LEAVING_S)
        samples = sampled(chosen, site, clock)
        stack.callback(samples.close)
        health = _health(chosen, samples, publisher, clock)
        if chosen.listen:
            stack.enter_context(_served(chosen.listen, health, samples, publisher))
        say(
            f"reading {len(chosen.collectors)} sources of {site.name} for {', '.join(kafka.servers)}; health "
            f"and metrics on {chosen.listen or 'nothing'}"
        )
        while not stop.wait(_LOOK_S):
            _pass_on(samples, publisher, health, clock)
        samples.close()
        _pass_on(samples, publisher, health, clock)
    return 0


def _pass_on(samples: ThreadedSamples, publisher: Publisher, health: Health, clock: SystemClock) -> None:
    events = samples.gather(clock.now())
    publisher.send(events)
    health.seen("collecting")
    for source in {event.source for event in events}:
        health.seen(f"samples of {source}")


def _health(config: HostConfig, samples: ThreadedSamples, publisher: Publisher, clock: SystemClock) -> Health:
    """Each source must be heard, and what it says must go out or be kept. A source is late after five
    periods, and never before ten seconds."""
    health = Health(clock)
    health.expect("collecting", within_s=10.0, vital=True)
    for entry, source in zip(config.collectors, samples.states(), strict=True):
        health.expect(f"samples of {source.name}", within_s=max(10.0, 5 * entry.period_ms / SECOND))
    health.ask(
        lambda: "; ".join(f"{each.name} is away: {each.away}" for each in samples.states() if each.away)
    )
    health.ask(lambda: publisher.state().trouble)
    return health


def _served(listen: str, health: Health, samples: ThreadedSamples, publisher: Publisher) -> HealthServer:
    disable_created_metrics()  # type: ignore[no-untyped-call]  # else each counter brings a second series
    registry = CollectorRegistry()
    registry.register(SourceMetrics(samples.states))
    registry.register(PublishMetrics(publisher.state))
    return served(listen, health, lambda: generate_latest(registry))
