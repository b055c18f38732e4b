"""Host agents over the row of weeks: the real ones, called when there is something for them to do.

A `HostAgent` that nobody commands, whose lease lives and whose device is as it was seen last has nothing to
do but look again. Over weeks those looks would take longer than everything else, so an agent is left alone
from `QUIET_MS` after its last write has landed until it is commanded or its lease ends, and while a write is
on its way: what it would see is what it saw, for nothing else changes a simulated device. What agents say is
the same (a test holds it so).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from actuators.base import Found, NotAttempted, Readback
from actuators.lifecycle import CHECK_MS, LANDED, HostAgent
from runtime.agents import by_target
from runtime.config import Setup
from runtime.wiring import deadlines_of
from schemas.commands import Command, GpuCommand, LimitPower, Path
from schemas.instants import SECOND, Instant, Span
from schemas.outcomes import Outcome
from schemas.shares import SafeShare
from schemas.topology import Host
from twin.bulk import BulkRow

QUIET_MS: Span = 6 * CHECK_MS
"""How long a host is looked after when its last write has landed: several of its own checks, of which one
that found anything amiss would have written again."""


class BulkActuator:
    """Sets the clocks of one host of a `BulkRow` by one path. A power limit is not modelled there: a safe
    share is its clock, and is read back as in force."""

    def __init__(self, row: BulkRow, place: int, host: Host, path: Path) -> None:
        """`place` is the host's in the row."""
        self._row, self._place, self._host = row, place, host
        self._path: Path = path
        uuids = tuple(host.gpu_path(gpu) for gpu in range(host.gpu_count))
        self._found = Found(uuids=uuids, limit_w=(host.sku.tdp_w,) * host.gpu_count)

    @property
    def path(self) -> Path:
        return self._path

    def inspect(self) -> Found:
        return self._found

    def apply(self, command: GpuCommand, found: Found) -> None:
        if isinstance(command, LimitPower):
            raise NotAttempted(f"{self._host.path}: the row over weeks has no power limits")
        self._row.write(self._path, self._place, command.max_mhz)

    def verify(self, command: GpuCommand) -> Readback:
        if isinstance(command, LimitPower):
            return Readback(in_force=True, observed=command.limit_w)
        sku, seen = self._host.sku, self._row.clock_mhz(self._place)
        permits = command.max_mhz >= sku.max_mhz
        return Readback(
            in_force=permits or seen <= command.max_mhz,
            observed=seen,
            lowest_mhz=seen,
            shown=permits or seen > command.max_mhz - 2 * sku.step_mhz,
        )

    def fall_back(self, share: SafeShare, found: Found) -> None:
        self._row.write(self._path, self._place, share.max_mhz)

    def release(self, found: Found) -> None:
        self._row.write(self._path, self._place, self._host.sku.max_mhz)

    def close(self) -> None:
        """There is nothing to let go of."""


class BulkAgents:
    """The agents of a row's hosts. `begin` is the instant at which the row began, `patient` False calls each
    agent at every step, as a host's own timer would."""

    def __init__(self, row: BulkRow, setup: Setup, begin: Instant, *, patient: bool = True) -> None:
        self._row, self._begin, self._patient = row, begin, patient
        faults = row.faults
        on_time = faults.spread == "constant" and faults.latency_s * SECOND == LANDED["out_of_band"]
        self._punctual = patient and on_time
        deadlines = deadlines_of(setup.policy)
        self.agents: Mapping[str, HostAgent] = {
            host.path: HostAgent(
                host,
                {path: BulkActuator(row, place, host, path) for path in host.paths},
                setup.shares[host.path],
                source=f"actuator/{host.path}",
                deadlines=deadlines,
            )
            for place, host in enumerate(row.hosts)
        }
        self._places = {host.path: place for place, host in enumerate(row.hosts)}
        self._due = [begin] * len(row.hosts)
        self._quiet_from = [begin] * len(row.hosts)
        self._next = begin

    def start(self, now: Instant) -> list[Outcome]:
        """Take every host up: without a lease, to its safe share."""
        said: list[Outcome] = []
        for path, agent in self.agents.items():
            said.extend(agent.start(now))
            self._plan(path, agent, now)
        self._next = min(self._due)
        return said

    def step(self, commands: Sequence[Command], now: Instant) -> list[Outcome]:
        """Hand commands over and let each agent look that has something to look at."""
        if not commands and now < self._next:
            return []
        waiting = by_target(commands)
        said: list[Outcome] = []
        for path, agent in self.agents.items():
            mine = waiting.get(path)
            if mine is None and now < self._due[self._places[path]]:
                continue
            said.extend(agent.step(mine or (), now))
            self._plan(path, agent, now)
        self._next = min(self._due)
        return said

    def _plan(self, path: str, agent: HostAgent, now: Instant) -> None:
        """When this agent has something to do next, if no command comes."""
        place = self._places[path]
        landings = self._row.landings(place)
        if landings:
            self._quiet_from[place] = self._begin + landings[-1] + QUIET_MS
        kept = agent.kept
        if self._punctual and agent.pending and landings and kept is not None and kept.command is not None:
            # Until the write lands, when the agent expects it to, a read-back proves nothing.
            self._due[place] = min(self._begin + landings[0], kept.command.lease.expires_at)
            return
        busy = agent.pending or kept is None or not kept.settled or now < self._quiet_from[place]
        if busy or not self._patient:
            self._due[place] = now + agent.wait_ms
        elif kept is not None and kept.intent == "obey" and kept.command is not None:
            self._due[place] = kept.command.lease.expires_at
        else:
            self._due[place] = _NEVER


_NEVER: Instant = 1 << 62
