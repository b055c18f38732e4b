"""Host agents as the embedded host drives them: commands in, outcomes out.

Inline for simulated time. On a real machine a timer of the actuators' own steps the agents too, so
that leases end although the loop that gave them is stuck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from actuators.leases import LeaseTimer
from actuators.lifecycle import HostAgent
from schemas.commands import Command
from schemas.envelope import Event
from schemas.instants import Instant
from schemas.topology import covers


def by_target(commands: Sequence[Command]) -> dict[str, list[Command]]:
    """Commands by the host they are for, in their order."""
    sorted_out: dict[str, list[Command]] = {}
    for command in commands:
        sorted_out.setdefault(command.target, []).append(command)
    return sorted_out


class InlineAgents:
    """Agents stepped by the caller."""

    def __init__(self, agents: Mapping[str, HostAgent], oversubscribed: frozenset[str] = frozenset()) -> None:
        """`oversubscribed` names the hosts whose row cannot carry them all uncapped."""
        self._agents = dict(agents)
        self._oversubscribed = oversubscribed

    def start(self, now: Instant) -> list[Event]:
        """Bring every host to what its state file says, or to its safe share."""
        return [outcome for agent in self._agents.values() for outcome in agent.start(now)]

    def step(self, commands: Sequence[Command], now: Instant) -> list[Event]:
        """Hand commands over and let every agent look at its leases and read-backs."""
        waiting = by_target(commands)
        outcomes: list[Event] = []
        for path, agent in self._agents.items():
            outcomes.extend(agent.step(waiting.get(path, ()), now))
        return outcomes

    def release(self, subject: str, now: Instant) -> list[Event]:
        """Give back every host at or below `subject`: to what was found, or, in a row that cannot
        carry all its hosts uncapped, to the safe share."""
        outcomes: list[Event] = []
        for path, agent in self._agents.items():
            if covers(subject, path):
                let_go = agent.fall_back if path in self._oversubscribed else agent.release_all
                outcomes.extend(let_go(now))
        return outcomes

    def close(self) -> None:
        """Let go of the devices; settings and leases stay as they are."""
        for agent in self._agents.values():
            agent.close()


class TimedAgents:
    """Agents stepped by the lease timer too, between and beside the host's own turns."""

    def __init__(self, timer: LeaseTimer, oversubscribed: frozenset[str] = frozenset()) -> None:
        self._timer = timer
        self._oversubscribed = oversubscribed

    def start(self, now: Instant) -> list[Event]:
        """As InlineAgents; from here on leases end by themselves."""
        return list(self._timer.start())

    def step(self, commands: Sequence[Command], now: Instant) -> list[Event]:
        """Hand commands over; what the agents have said since, on whichever thread."""
        return list(self._timer.step(commands))

    def release(self, subject: str, now: Instant) -> list[Event]:
        """As InlineAgents."""
        inside = {path for path in self._timer.agents if covers(subject, path)}
        outcomes = self._timer.fall_back(inside & self._oversubscribed)
        return [*outcomes, *self._timer.release_all(inside - self._oversubscribed)]
