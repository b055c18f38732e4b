"""The timer that ends leases: a thread that needs neither a network, a controller nor the control loop.

It steps each agent a few times a second, and hands on the commands that come between. What the agents
say waits here until somebody asks; that nobody does changes nothing for the hosts.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Protocol

from actuators.lifecycle import HostAgent
from schemas.commands import Command
from schemas.instants import Instant
from schemas.outcomes import Outcome, Refused

_LOG = logging.getLogger(__name__)

PERIOD_S = 0.25
"""Between two steps (our choice): a lease ends within a quarter of a second, of the second that the dead
man's switch has."""

WAITING = 10_000
"""Outcomes kept for whoever asks; beyond it the oldest go, since the hosts come before the books."""


class Clock(Protocol):
    """The wall clock in milliseconds since the epoch, and seconds that nobody sets."""

    def now(self) -> Instant: ...

    def monotonic(self) -> float: ...


class LeaseTimer:
    """Steps `agents`, by host path, every `period_s` by `clock`, one call at a time on each agent.

    An agent that raises is logged and counted in `faults`, and those beside it go on.
    """

    def __init__(
        self, agents: Mapping[str, HostAgent], clock: Clock, *, source: str, period_s: float = PERIOD_S
    ) -> None:
        self.agents = agents
        self.faults: Counter[str] = Counter()
        self.steps = 0
        """How often every agent was stepped; a timer whose count stands still is stuck."""
        self._clock = clock
        self._source = source
        self._period_s = period_s
        self._locks = {path: threading.Lock() for path in agents}
        self._outcomes: deque[Outcome] = deque(maxlen=WAITING)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-timer", daemon=True)

    def start(self) -> list[Outcome]:
        """Take every host up, then begin to step them."""
        for path, agent in self.agents.items():
            self._call(path, agent.start)
        self._thread.start()
        return self.take()

    def step(self, commands: Sequence[Command]) -> list[Outcome]:
        """Hand commands to their hosts' agents at once; what all agents have said since the last call."""
        orders: dict[str, list[Command]] = {}
        for command in commands:
            orders.setdefault(command.target, []).append(command)
        for path, mine in orders.items():
            agent = self.agents.get(path)
            if agent is not None:
                self._call(path, partial(agent.step, mine))
            else:
                self._outcomes.extend(self._stray(command) for command in mine)
        return self.take()

    def beat(self) -> None:
        """Step every agent once. One that is being stepped just now is left to it."""
        for path, agent in self.agents.items():
            self._call(path, partial(agent.step, ()), wait=False)
        self.steps += 1

    def take(self) -> list[Outcome]:
        """What the agents have said since the last call."""
        return [self._outcomes.popleft() for _ in range(len(self._outcomes))]

    def release_all(self, paths: Collection[str] | None = None) -> list[Outcome]:
        """Give the hosts at `paths` (None: every host) back as they were found."""
        for path in self.agents if paths is None else paths:
            self._call(path, self.agents[path].release_all)
        return self.take()

    def fall_back(self, paths: Collection[str]) -> list[Outcome]:
        """Take the hosts at `paths` to their safe shares, whatever is in force."""
        for path in paths:
            self._call(path, self.agents[path].fall_back)
        return self.take()

    def stand_down(self, paths: Collection[str] | None = None) -> list[Outcome]:
        """End the leases of the hosts at `paths` (None: every host) as their fail directions say."""
        for path in self.agents if paths is None else paths:
            self._call(path, self.agents[path].stand_down)
        return self.take()

    def close(self) -> None:
        """Stop the timer and let go of the devices; changes no setting (see `stand_down`)."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for agent in self.agents.values():
            agent.close()

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            self.beat()

    def _call(
        self, path: str, call: Callable[[Instant, int], Sequence[Outcome]], *, wait: bool = True
    ) -> None:
        lock = self._locks[path]
        if not lock.acquire(blocking=wait):
            return
        try:
            self._outcomes.extend(call(self._clock.now(), int(self._clock.monotonic() * 1000)))
        except Exception:
            self.faults[path] += 1
            _LOG.exception("%s: the host's agent raised", path)
        finally:
            lock.release()

    def _stray(self, command: Command) -> Refused:
        return Refused(
            at=self._clock.now(),
            source=self._source,
            subject=command.target,
            cause=(command.id,),
            command=command.id,
            epoch=command.lease.epoch,
            detail=f"no agent here keeps {command.target}; there are {len(self.agents)}",
        )
