"""The timer that ends leases: threads that need neither a network, a controller nor the control loop.

It steps each agent a few times a second, and hands on the commands that come between. Each agent has a
thread of its own, so that a host that hangs keeps nobody waiting; that thread also steps the agent when it
is due sooner, to read back what was just written. What the agents say is told at once or waits here until
somebody asks; that nobody does changes nothing for the hosts.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from actuators.lifecycle import HostAgent
from actuators.reflex import Hold
from schemas.commands import Brake, Command
from schemas.instants import Instant
from schemas.outcomes import Outcome, Refused

_LOG = logging.getLogger(__name__)

PERIOD_S = 0.25
"""Between two steps (our choice): a lease ends within a quarter of a second, of the second that the dead
man's switch has."""

PROMPT_S = 0.2
"""How long a call waits for what the agents make of it (our choice): a tenth of a control period. What
they say later is in a later answer."""

LEAVING_S = 10.0
"""How long taking hosts up and letting go of them may take (our choice): a few bounded device calls."""

WAITING = 10_000
"""Outcomes kept for whoever asks; beyond it the oldest go, since the hosts come before the books."""

_Call: TypeAlias = Callable[[Instant, int], Sequence[Outcome]]


class Clock(Protocol):
    """The wall clock in milliseconds since the epoch, and seconds that nobody sets."""

    def now(self) -> Instant: ...

    def monotonic(self) -> float: ...


@dataclass(slots=True)
class _Task:
    """One call on an agent; None: a step with `commands`."""

    call: _Call | None = None
    commands: list[Command] = field(default_factory=list)
    done: Future[None] = field(default_factory=Future)


class _Desk:
    """One host's agent and its thread: what it is asked it does in that order, one thing at a time.

    Commands that wait behind a device call go to the agent together, which takes brakes first.
    """

    def __init__(
        self, path: str, agent: HostAgent, serve: Callable[[str, _Call], bool], period_s: float
    ) -> None:
        self._path = path
        self._agent = agent
        self._serve = serve
        self._period_s = period_s
        self._well = False  # it was called, and did not raise the last time
        self._tasks: deque[_Task] = deque()
        self._busy = False
        self._open = True
        self._changed = threading.Condition()
        # A daemon: a device call that never comes back must not hold up the end of the process.
        self._thread = threading.Thread(target=self._work, name=f"agent-{path}", daemon=True)
        self._thread.start()

    def hand(self, commands: Sequence[Command]) -> Future[None]:
        """Have the agent step with `commands`."""
        with self._changed:
            if not self._tasks or self._tasks[-1].call is not None:
                self._add(_Task())
            self._tasks[-1].commands.extend(commands)
            return self._tasks[-1].done

    def beat(self) -> Future[None] | None:
        """Have the agent step, unless it is at something."""
        with self._changed:
            return None if self._busy or self._tasks else self._add(_Task())

    def ask(self, call: _Call) -> Future[None]:
        """Have `call` made when everything asked before is done."""
        with self._changed:
            return self._add(_Task(call))

    def close(self) -> Future[None]:
        """Let go of the devices when everything asked before is done; then the thread ends."""

        def let_go(now: Instant, monotonic_ms: int) -> Sequence[Outcome]:
            self._open = False
            self._agent.close()
            return ()

        return self.ask(let_go)

    def _add(self, task: _Task) -> Future[None]:
        self._tasks.append(task)
        self._changed.notify()
        return task.done

    def _work(self) -> None:
        while self._open:
            with self._changed:
                self._changed.wait_for(lambda: self._tasks, self._patience())
                task, self._busy = self._tasks.popleft() if self._tasks else _Task(), True
            well = self._serve(self._path, task.call or self._step(task.commands))
            with self._changed:
                self._busy, self._well = False, well
            task.done.set_result(None)

    def _patience(self) -> float | None:
        """How long to wait for something to do before the agent is due; None: until the timer's next beat."""
        wait_s = max(self._agent.wait_ms, 1) / 1000 if self._well else self._period_s
        return wait_s if wait_s < self._period_s else None

    def _step(self, commands: Sequence[Command]) -> _Call:
        return lambda now, monotonic_ms: self._agent.step(commands, now, monotonic_ms)


class LeaseTimer:
    """Steps `agents`, by host path, every `period_s` by `clock`, one call at a time on each agent.

    `heard` is told what the agents say as they say it, on their threads, and must neither wait nor raise;
    without it their words wait for `take`. An agent that raises is logged and counted in `faults`, and
    those beside it go on; one that hangs is waited for `prompt_s` at most.
    """

    def __init__(
        self,
        agents: Mapping[str, HostAgent],
        clock: Clock,
        *,
        source: str,
        period_s: float = PERIOD_S,
        prompt_s: float = PROMPT_S,
        heard: Callable[[Sequence[Outcome]], None] | None = None,
    ) -> None:
        self.agents = agents
        self.faults: Counter[str] = Counter()
        self.steps = 0
        """How often every agent was stepped; a timer whose count stands still is stuck."""
        self._clock = clock
        self._source = source
        self._period_s = period_s
        self._prompt_s = prompt_s
        self._outcomes: deque[Outcome] = deque(maxlen=WAITING)
        self._heard = heard or self._outcomes.extend
        self._desks = {path: _Desk(path, agent, self._call, period_s) for path, agent in agents.items()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-timer", daemon=True)

    def start(self) -> list[Outcome]:
        """Take every host up, then begin to step them."""
        wait([self._desks[path].ask(agent.start) for path, agent in self.agents.items()], LEAVING_S)
        self._thread.start()
        return self.take()

    def step(self, commands: Sequence[Command]) -> list[Outcome]:
        """Hand commands to their hosts' agents; what all agents have said since the last call. What a slow
        one makes of its commands is in the answer to a later call."""
        return self._said(self.hand(commands))

    def hand(self, commands: Sequence[Command]) -> list[Future[None]]:
        """Hand commands to their hosts' agents, brakes first, and wait for none of them."""
        orders: dict[str, list[Command]] = {}
        for command in sorted(commands, key=lambda command: not isinstance(command, Brake)):
            orders.setdefault(command.target, []).append(command)
        handed: list[Future[None]] = []
        for path, mine in orders.items():
            desk = self._desks.get(path)
            if desk is not None:
                handed.append(desk.hand(mine))
            else:
                self._heard([self._stray(command) for command in mine])
        return handed

    def reflex(self, path: str, hold: Hold | None) -> None:
        """Have a host held at what its reflex says, as soon as its agent can; None: let go."""
        agent = self.agents[path]
        self._desks[path].ask(lambda now, monotonic_ms: agent.reflex(hold, now, monotonic_ms))

    def beat(self) -> None:
        """Step every agent once. One that is at something just now is left to it."""
        beats = [desk.beat() for desk in self._desks.values()]
        wait([each for each in beats if each is not None], self._prompt_s)
        self.steps += 1

    def take(self) -> list[Outcome]:
        """What the agents have said since the last call."""
        return [self._outcomes.popleft() for _ in range(len(self._outcomes))]

    def release_all(self, paths: Collection[str] | None = None) -> list[Outcome]:
        """Give the hosts at `paths` (None: every host) back as they were found."""
        asked = self.agents if paths is None else paths
        return self._said(self._desks[path].ask(self.agents[path].release_all) for path in asked)

    def fall_back(self, paths: Collection[str]) -> list[Outcome]:
        """Take the hosts at `paths` to their safe shares, whatever is in force."""
        return self._said(self._desks[path].ask(self.agents[path].fall_back) for path in paths)

    def stand_down(self, paths: Collection[str] | None = None) -> list[Outcome]:
        """End the leases of the hosts at `paths` (None: every host) as their fail directions say."""
        asked = self.agents if paths is None else paths
        wait([self._desks[path].ask(self.agents[path].stand_down) for path in asked], LEAVING_S)
        return self.take()

    def close(self) -> None:
        """Stop the timer and let go of the devices; changes no setting (see `stand_down`)."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        wait([desk.close() for desk in self._desks.values()], LEAVING_S)

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            self.beat()

    def _said(self, asked: Iterable[Future[None]]) -> list[Outcome]:
        wait(list(asked), self._prompt_s)
        return self.take()

    def _call(self, path: str, call: _Call) -> bool:
        """Make a call on an agent; whether it did not raise."""
        try:
            said = call(self._clock.now(), int(self._clock.monotonic() * 1000))
            if said:
                self._heard(said)
        except Exception:
            self.faults[path] += 1
            _LOG.exception("%s: the host's agent raised", path)
            return False
        return True

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
