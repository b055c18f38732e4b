"""Reflexes: each host's own GPUs, read on a thread of its own, and what its reflex makes of it.

Nothing here needs a network. A driver that hangs keeps its host's reflex from knowing better: what it holds
it holds on, and what it does not hold the lease holds. In simulated time the caller feeds them with the
frames that are read anyway.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from actuators.leases import LeaseTimer
from actuators.lifecycle import HostAgent
from actuators.reflex import Hold, Reflex
from collectors.base import Collector, CollectorError
from runtime.clock import Clock
from runtime.hosts.embedded import Samples
from schemas.emergencies import Emergency
from schemas.envelope import Event
from schemas.instants import SECOND, Instant, Span
from schemas.samples import GpuFrame
from schemas.shares import SafeShare

_LOG = logging.getLogger(__name__)

PERIOD_MS: Span = SECOND // 2
"""How often a host's GPUs are read for its reflex (our choice): three readings take a second or so."""

_LATE_S = 10 * PERIOD_MS / SECOND
_CLOSING_S = 1.0


class _Nerve:
    """One host's reader and its reflex."""

    def __init__(self, path: str, collector: Collector, reflex: Reflex) -> None:
        self.path = path
        self.collector = collector
        self.reflex = reflex
        self.away = ""
        self.read_at: float | None = None
        self.thread: threading.Thread | None = None


class Reflexes:
    """The reflexes of the hosts of `timer`. `tell` is handed what they raise and clear, on their threads."""

    def __init__(
        self,
        watched: Mapping[str, tuple[Collector, Reflex]],
        timer: LeaseTimer,
        clock: Clock,
        tell: Callable[[Emergency], None],
    ) -> None:
        self._timer = timer
        self._clock = clock
        self._tell = tell
        self._stop = threading.Event()
        self._nerves = [_Nerve(path, collector, reflex) for path, (collector, reflex) in watched.items()]
        self._since = clock.monotonic()
        for nerve in self._nerves:
            nerve.thread = threading.Thread(
                target=self._run, args=(nerve,), name=f"reflex {nerve.path}", daemon=True
            )
            nerve.thread.start()

    @property
    def holds(self) -> dict[str, Hold | None]:
        """What each host is held at by its reflex."""
        return {nerve.path: nerve.reflex.held for nerve in self._nerves}

    def trouble(self) -> str:
        """Hosts that are held, and hosts whose GPUs are not read, in words; empty when there are none."""
        now, said = self._clock.monotonic(), []
        for nerve in self._nerves:
            if (hold := nerve.reflex.held) is not None:
                said.append(f"{nerve.path}: {hold}")
            since = self._since if nerve.read_at is None else nerve.read_at
            if now - since > _LATE_S:
                why = nerve.away or "its driver does not answer"
                said.append(f"{nerve.path}: its reflex has read nothing for {now - since:.0f} s: {why}")
        return "; ".join(said)

    def close(self) -> None:
        """Stop reading; one that hangs in a driver is left behind, as a daemon, after a second."""
        self._stop.set()
        until = self._clock.monotonic() + _CLOSING_S
        for nerve in self._nerves:
            if nerve.thread is not None:
                nerve.thread.join(max(0.0, until - self._clock.monotonic()))

    def _run(self, nerve: _Nerve) -> None:
        while not self._stop.is_set():
            began = self._clock.monotonic()
            try:
                self._feel(nerve)
            except CollectorError as error:
                self._lacks(nerve, str(error))
            except Exception as error:  # a mistake of ours must not end the reflex
                self._lacks(nerve, f"{type(error).__name__}: {error}", error)
            self._stop.wait(max(0.0, PERIOD_MS / SECOND - (self._clock.monotonic() - began)))
        nerve.collector.close()

    def _feel(self, nerve: _Nerve) -> None:
        """Read once."""
        for frame in nerve.collector.poll(self._clock.now()):
            if not isinstance(frame, GpuFrame):
                continue
            said = nerve.reflex.step(frame)
            agent = self._timer.agents[nerve.path]
            held = agent.kept is not None and agent.kept.reflex is not None
            if said is not None or held != (nerve.reflex.held is not None):
                self._timer.reflex(nerve.path, nerve.reflex.held)
            if said is not None:
                level = logging.WARNING if said.phase == "cleared" else logging.ERROR
                _LOG.log(level, "%s: %s %s: %s", nerve.path, said.kind, said.phase, said.because)
                self._tell(said)
        nerve.read_at = self._clock.monotonic()
        if nerve.away:
            nerve.away = ""
            _LOG.warning("%s: its reflex can read its GPUs again", nerve.path)

    def _lacks(self, nerve: _Nerve, why: str, fault: Exception | None = None) -> None:
        if nerve.away != why:  # said once, not at every reading
            nerve.away = why
            _LOG.error("%s: its reflex cannot read its GPUs: %s", nerve.path, why, exc_info=fault)


class InlineReflexes:
    """The reflexes of simulated hosts, each watched by one. `by_host` has them."""

    def __init__(self, agents: Mapping[str, HostAgent], shares: Mapping[str, SafeShare]) -> None:
        self.by_host = {
            path: Reflex(agent.host, shares[path], source=f"actuator/{path}")
            for path, agent in agents.items()
        }
        self._agents = agents

    def feel(self, frames: Iterable[Event], now: Instant) -> list[Event]:
        """The reflexes take the frames of their hosts in; what they and their agents said."""
        said: list[Event] = []
        for frame in frames:
            if isinstance(frame, GpuFrame):
                reflex = self.by_host[frame.subject]
                raised = reflex.step(frame)
                if raised is not None:
                    said += [raised, *self._agents[frame.subject].reflex(reflex.held, now)]
        return said


class FeltSamples:
    """Samples that the hosts' reflexes feel as they are gathered; what comes of it is gathered too."""

    def __init__(self, samples: Samples, reflexes: InlineReflexes) -> None:
        self._samples = samples
        self._reflexes = reflexes

    def gather(self, now: Instant) -> Sequence[Event]:
        """The samples, and what reflexes and agents said to them."""
        events = self._samples.gather(now)
        return [*events, *self._reflexes.feel(events, now)]

    def next_poll(self, now: Instant) -> Instant:
        """When there may be more."""
        return self._samples.next_poll(now)
