"""The process around the Faust host: its metrics and health, its watchdog, its signals and how it ends."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from typing import Any

import faust

from runtime.bus.metrics import BusMetrics
from runtime.clock import Clock
from runtime.config import HostConfig, Setup
from runtime.health import Health, served
from runtime.hosts.faust_kafka import FaustHost, Pace, made_app
from runtime.hosts.speaker import Said
from runtime.hosts.watchdog import EXIT, Watchdog, WatchdogThread
from runtime.journal import Journal
from runtime.metrics import Metrics
from runtime.row_loop import Beat
from schemas.instants import SECOND, Instant
from schemas.outcomes import Verified

_REMEMBERED = 10_000  # commands without an answer; the time of older ones is lost

# What of theirs matters is said by the host, once and in its own words; Kafka's client tells each attempt at
# a broker that is away.
for library, level in (("faust", logging.ERROR), ("mode", logging.ERROR), ("aiokafka", logging.CRITICAL)):
    logging.getLogger(library).setLevel(level)


def serve(
    config: HostConfig, setup: Setup, clock: Clock, *, worker: str, pace: Pace, watchdog: Watchdog
) -> int:
    """Run a worker until it is told to stop or fails; its exit status.

    Raises ConfigError, and BusError where a secret or a certificate cannot be read.
    """
    kafka = config.bus()
    metrics = Metrics(setup.site, rows=())
    health = Health(clock)
    signs = _Signs(metrics, health, setup, clock)
    bus = BusMetrics(metrics.registry)
    app = made_app(kafka, worker, str(config.state_dir / "faust"), pace)
    host = FaustHost(
        setup,
        kafka,
        app,
        clock,
        worker=worker,
        pace=pace,
        watchdog=watchdog,
        metrics=bus,
        observe=signs.observe,
        said=signs.said,
        buried=metrics.buried,
        rows=signs.rows,
    )
    bus.watch(lambda: host.lag, lambda: host.strays)
    metrics.watch(lambda: (), host.unplaced.strangers)
    metrics.configured(site=setup.site.name, policy=setup.policy.variant, worker=worker)
    health.ask(lambda: host.trouble)
    with contextlib.ExitStack() as stack:
        if config.listen:
            stack.enter_context(served(config.listen, health, metrics.exposition))
        stack.enter_context(WatchdogThread(watchdog))
        try:
            _Worker(app, host).execute_from_commandline()
        except SystemExit as left:
            return EXIT if left.code else 0


class _Worker(faust.Worker):
    """Faust's worker, which leaves its rows in order when it is told to stop, and prints nothing."""

    def __init__(self, app: faust.App, host: FaustHost) -> None:
        super().__init__(app, quiet=True, override_logging=False, redirect_stdouts=False)
        self.spinner = None
        self._host = host

    def _setproctitle(self, info: str, *, ident: str = "") -> None:
        """A process list shows what was started."""

    async def _stop_on_signal(self, signal: Any) -> None:
        await self._host.leave()
        await super()._stop_on_signal(signal)


class _Signs:
    """What the host's beats tell metrics, journal and health."""

    def __init__(self, metrics: Metrics, health: Health, setup: Setup, clock: Clock) -> None:
        self._metrics = metrics
        self._health = health
        self._clock = clock
        self._journal = Journal()
        self._within_s = max(10.0, 5 * setup.policy.period_ms / SECOND)
        self._watched: frozenset[str] = frozenset()
        self._waiting: dict[str, int] = {}
        self._began: dict[str, Instant] = {}
        health.ask(lambda: self._journal.standing)
        health.ask(self._unrecorded)

    def observe(self, beat: Beat) -> None:
        """A beat of a row that is owned here."""
        self._metrics.observe(beat)
        self._journal.observe(beat)
        self._health.observe(beat)
        now = self._clock.now()
        for event in beat.inputs:
            if isinstance(event, Verified) and event.command in self._began:
                self._metrics.verified((now - self._began.pop(event.command)) / SECOND)

    def said(self, said: Said) -> None:
        """What it said was handed to the brokers."""
        self._metrics.beat_took((self._clock.now() - said.beat.tick.at) / SECOND)
        self._metrics.appended(said.ledger_s, said.waiting)
        self._waiting[said.beat.tick.subject] = said.waiting
        for command in said.commands:
            self._began[command.id] = command.at
        while len(self._began) > _REMEMBERED:
            del self._began[next(iter(self._began))]

    def rows(self, rows: Iterable[str]) -> None:
        """These rows are this worker's to beat."""
        watched = frozenset(rows)
        for row in self._watched - watched:
            self._health.forget(f"beat {row}")
            self._health.forget(f"samples {row}")
            self._journal.forget(row)
            self._metrics.forget(row)
            self._waiting.pop(row, None)
        for row in watched - self._watched:
            self._health.expect(f"beat {row}", within_s=self._within_s, vital=True)
            self._health.expect(f"samples {row}", within_s=self._within_s)
            self._metrics.take_up(row)
        self._watched = watched

    def _unrecorded(self) -> str:
        waiting = sum(tuple(self._waiting.values()))
        return f"{waiting} records wait for the ledger" if waiting else ""
