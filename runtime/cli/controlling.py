"""`windrow control`: the rows of a site, beaten on Kafka by as many workers as are started."""

from __future__ import annotations

import pathlib
import socket

from runtime.bus.provision import ensure
from runtime.bus.settings import BusError, KafkaConfig
from runtime.cli.printing import say
from runtime.clock import SystemClock
from runtime.config import load_host, read_host_config
from runtime.hosts.watchdog import AWAY_S, STALLED_S, Watchdog
from runtime.state_dir import StateDir
from schemas.instants import SECOND


def control(
    *,
    config: pathlib.Path,
    worker: str = "",
    snapshot_seconds: float = 60.0,
    dead_after_seconds: float = 10.0,
    stalled_seconds: float = STALLED_S,
    away_seconds: float = AWAY_S,
) -> int:
    """Beat the rows of a site on Kafka: read what collectors, agents and people say, decide, command.

    As many as are started share the rows; when one dies the others take its rows over. Exit status 3 where
    it failed or made no progress, to be started again by whoever supervises it.

    Parameters
    ----------
    config
        A configuration with the site and its brokers, [kafka].
    worker
        The worker's name; the machine's and the state directory's when left out.
    snapshot_seconds
        How often a row's state is kept: what a takeover has to do again.
    dead_after_seconds
        After what silence the group takes a worker for dead.
    stalled_seconds
        How long input may come without a beat before the worker gives up.
    away_seconds
        How long nothing at all may come before the worker gives up.
    """
    chosen = read_host_config(config)
    kafka, setup = chosen.bus(), load_host(chosen)
    _provide(kafka)
    try:
        from runtime.hosts.faust_kafka import Pace
        from runtime.hosts.faust_worker import serve
    except ImportError as error:
        raise BusError(
            f"Faust is not installed here ({error.name}): pip install -e '.[kafka]' in Windrow's clone"
        ) from None
    clock = SystemClock()
    state = StateDir.made(chosen.state_dir)
    named = worker or f"{socket.gethostname()}/{state.path.resolve().name}"
    with state.locked():
        say(f"{named} beats the rows of {setup.site.name} on {', '.join(kafka.servers)}")
        return serve(
            chosen,
            setup,
            clock,
            worker=f"{named}/{clock.now()}",  # another at each start, which has begun nothing yet
            pace=Pace(snapshot_ms=round(snapshot_seconds * SECOND), dead_after_s=dead_after_seconds),
            watchdog=Watchdog(clock, stalled_s=stalled_seconds, away_s=away_seconds),
        )


def _provide(kafka: KafkaConfig) -> None:
    """See that the topics are there, and make them where they are not. Raises BusError where one cannot be
    used: a row's messages lie on the same partition of each topic only while all have as many."""
    report = ensure(kafka)
    if report.created:
        say(f"made {len(report.created)} topics that were not there, from {report.created[0]} on")
    unfit = [str(difference) for difference in report.differing if difference.setting == "partitions"]
    if report.missing or unfit:
        raise BusError("\n".join([*(f"{name} is missing" for name in report.missing), *unfit]))
    for difference in report.differing:
        say(str(difference))
