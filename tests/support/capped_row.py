"""A row under capping, without sensors or devices: demand in, power and outcomes out.

Hosts obey commands after their path's latency, keep leases, and fall to their safe share by
themselves. The power model is the simplest that has the loop's shape: a host draws its rest and a
dynamic part that shrinks with its clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from controllers.capping import decide
from controllers.guardrails import guard
from controllers.policy import CappingPolicy
from controllers.reconcile import reconcile
from controllers.view import View, ViewState, fold, view
from schemas.commands import Brake, Command, Lease, LockClocks, Path
from schemas.decisions import Decision
from schemas.emergencies import Emergency, Phase
from schemas.envelope import Event
from schemas.instants import Instant
from schemas.outcomes import Lapsed, Outcome, Renewed, Verified
from schemas.samples import PowerRollup
from schemas.shares import SafeShare, safe_shares
from schemas.skus import SKUS
from schemas.topology import Host, PowerNode, Priority, Rack, Row, Site
from schemas.units import Reading

ROW = "ams1/row-b"
SOURCE = f"controller/capping/{ROW}"
T0: Instant = 1_700_000_000_000
BUDGET_W = 40 * 6500.0
IDLE_SHARE = 0.4
"""What a server draws at rest, as a share of its draw under full load (our choice for this model)."""


def capped_row(
    low: int = 26, high: int = 26, *, budget_w: float = BUDGET_W, sku: str = "A100-SXM4-80GB"
) -> Row:
    """A row of `high` and `low` priority servers in racks of four, in that order."""
    board = SKUS[sku]
    racks = []
    for first in range(0, low + high, 4):
        path = f"{ROW}/r{first // 4:02d}"
        hosts = []
        for number in range(first, min(first + 4, low + high)):
            priority: Priority = "high" if number < high else "low"
            hosts.append(
                Host(
                    path=f"{path}/h{number:02d}",
                    rack=path,
                    row=ROW,
                    sku=board,
                    gpu_count=8,
                    priority=priority,
                    rated_w=8 * board.tdp_w + board.server_overhead_max_w,
                    overhead_idle_w=board.server_overhead_idle_w,
                    overhead_max_w=board.server_overhead_max_w,
                    paths=("in_band", "out_of_band", "brake"),
                )
            )
        racks.append(Rack(path=path, row=ROW, hosts=tuple(hosts), feeds=("ams1/ups-1/pdu-1/feed-a",)))
    return Row(path=ROW, budget_w=budget_w, racks=tuple(racks), meters=("ams1/ups-1/pdu-1/feed-a",))


def site_of(row: Row) -> Site:
    """A site of this row alone, behind one feed with the row's budget."""
    ups, pdu, feed = "ams1/ups-1", "ams1/ups-1/pdu-1", "ams1/ups-1/pdu-1/feed-a"
    return Site(
        name="ams1",
        rows=(row,),
        power=(
            PowerNode(path=ups, kind="ups", limit_w=row.budget_w),
            PowerNode(path=pdu, kind="pdu", limit_w=row.budget_w, parent=ups),
            PowerNode(path=feed, kind="feed", limit_w=row.budget_w, parent=pdu),
        ),
    )


def reading(
    row: Row, at: Instant, p: Reading, *, upper: float = 1.3, coverage: float | None = None
) -> PowerRollup:
    """The row's power at `p` of its budget; None is unknown."""
    return PowerRollup(
        at=at,
        source=f"stream/rollup/{row.path}",
        subject=row.path,
        power_w=None if p is None else p * row.budget_w,
        upper_w=upper * row.budget_w,
        budget_w=row.budget_w,
        coverage_ratio=coverage if coverage is not None else 0.0 if p is None else 1.0,
        known_at=at,
        basis="unknown" if p is None else "meter",
    )


def failover(at: Instant, phase: Phase = "raised", episode: str = "ups-1") -> Emergency:
    """A UPS on battery, or well again."""
    return Emergency(
        at=at,
        source="stream/detect",
        subject=ROW,
        kind="failover",
        phase=phase,
        because="on battery",
        episode=episode,
    )


def lock(
    host: str,
    at: Instant,
    max_mhz: int,
    *,
    path: Path = "out_of_band",
    lease_ms: int = 90_000,
    source: str = SOURCE,
) -> LockClocks:
    """A lock as a controller sends it."""
    lease = Lease(epoch=1, issued_at=at, expires_at=at + lease_ms, on_expiry="safe_share")
    return LockClocks(at=at, source=source, subject=host, lease=lease, max_mhz=max_mhz, path=path)


def brake(host: str, at: Instant, max_mhz: int = 285) -> Brake:
    """A brake as a controller sends it."""
    lease = Lease(epoch=1, issued_at=at, expires_at=at + 90_000, on_expiry="hold")
    return Brake(at=at, source=SOURCE, subject=host, lease=lease, max_mhz=max_mhz)


def word(kind: type[Outcome], command: Command, at: Instant, **more: object) -> Outcome:
    """An outcome of a command."""
    if kind is Verified:
        more.setdefault("observed", None)
    values = {
        "at": at,
        "source": "agent",
        "subject": command.subject,
        "command": command.id,
        "epoch": 1,
        **more,
    }
    return msgspec.convert(values, kind)


class Loop:
    """The controller's half of a row's loop over one view, as the runtime runs it."""

    def __init__(self, row: Row, policy: CappingPolicy, *, state: ViewState | None = None) -> None:
        self.row, self.policy = row, policy
        self.state = state or ViewState()
        self.decisions: list[Decision] = []
        self.commands: list[Command] = []

    def look(self, now: Instant) -> View:
        return view(self.state, self.row, now)

    def tick(self, now: Instant, events: Iterable[Event] = ()) -> tuple[Decision, tuple[Command, ...]]:
        """Fold, decide, guard, reconcile; the decision and its commands are folded too."""
        self.state = fold(self.state, events)
        seen = self.look(now)
        decision = guard(decide(seen, self.policy, now, source=SOURCE), seen, self.policy, now)
        commands = reconcile(decision, seen, self.policy, now, epoch=1, source=SOURCE)
        self.state = fold(self.state, [decision, *commands])
        self.decisions.append(decision)
        self.commands.extend(commands)
        return decision, commands

    def obeyed(self, now: Instant, commands: Sequence[Command], kind: type[Outcome] = Verified) -> None:
        """Fold that the hosts obey these commands."""
        self.state = fold(self.state, [word(kind, command, now) for command in commands])


class _Server:
    """One server and its agent, who counts leases from their receipt, whatever the wall clock says."""

    def __init__(self, host: Host, share: SafeShare) -> None:
        self.host, self.share = host, share
        self.in_force: LockClocks | Brake | None = None
        self.asked_at = self.ends_at = 0
        self.coming: list[tuple[Instant, Instant, LockClocks | Brake]] = []

    @property
    def mhz(self) -> int:
        return self.in_force.max_mhz if self.in_force is not None else self.share.max_mhz

    def hear(self, command: LockClocks | Brake, now: Instant, latency: int, out: list[Outcome]) -> None:
        held = self.in_force
        if (
            held is not None
            and type(held) is type(command)
            and held.max_mhz == command.max_mhz
            and not self.coming
        ):
            self._obey(command, now)
            out.append(word(Renewed, command, now))
        else:
            self.coming.append((now + latency, now, command))

    def _obey(self, command: LockClocks | Brake, asked_at: Instant) -> None:
        self.in_force, self.asked_at = command, asked_at
        self.ends_at = asked_at + command.lease.expires_at - command.lease.issued_at

    def live(self, now: Instant, out: list[Outcome]) -> None:
        for due, asked_at, command in sorted(self.coming, key=lambda one: one[:2]):
            if due > now:
                continue
            self.coming.remove((due, asked_at, command))
            if isinstance(self.in_force, Brake) and asked_at < self.asked_at:
                continue  # a lock older than the brake does not release it
            self._obey(command, asked_at)
            out.append(word(Verified, command, now, observed=float(command.max_mhz)))
        held = self.in_force
        if held is not None and held.lease.on_expiry == "safe_share" and now >= self.ends_at:
            self.in_force = None
            out.append(word(Lapsed, held, now))

    def power_w(self, demand_w: float) -> float:
        dynamic = self.host.sku.power_fraction(self.mhz)
        power_w = demand_w * (IDLE_SHARE + (1 - IDLE_SHARE) * dynamic)
        return power_w if self.in_force is not None else min(power_w, self.share.host_w)


class Plant:
    """The servers of a row. `demand(t_ms)` is the row's power without any cap, over its budget, at
    `t_ms` after the start; `lost(command)` drops commands on the way. `set_by` is how far the
    controller's wall clock was set forward, back if negative, since the start."""

    def __init__(
        self,
        row: Row,
        policy: CappingPolicy,
        demand: Callable[[int], float],
        *,
        lost: Callable[[Command], bool] = lambda command: False,
        sees: Callable[[int, float], Reading] = lambda t, p: p,
    ) -> None:
        self.row, self.policy, self.demand, self.lost, self.sees = row, policy, demand, lost, sees
        shares = safe_shares(site_of(row))
        self.servers = {host.path: _Server(host, shares[host.path]) for host in row.hosts}
        self.loop = Loop(row, policy)
        self.now, self.set_by = T0, 0
        self.p: list[float] = []
        self._words: list[Event] = []

    @property
    def power(self) -> float:
        """The row's power now, over its budget."""
        demand_w = self.demand(self.now - T0) * self.row.budget_w / len(self.servers)
        return sum(server.power_w(demand_w) for server in self.servers.values()) / self.row.budget_w

    @property
    def clocks(self) -> dict[Priority, set[int]]:
        """The clocks the servers run at, by priority."""
        out: dict[Priority, set[int]] = {"low": set(), "high": set()}
        for server in self.servers.values():
            out[server.host.priority].add(server.mhz)
        return out

    def run(self, seconds: float, events: Callable[[int], Sequence[Event]] = lambda t: ()) -> None:
        """Let time pass, one control period after the other."""
        end = self.now + int(seconds * 1000)
        while self.now < end:
            outcomes: list[Outcome] = []
            for server in self.servers.values():
                server.live(self.now, outcomes)
            t, p = self.now - T0, self.power
            self.p.append(p)
            wall = self.now + self.set_by
            seen = reading(self.row, wall, self.sees(t, p))
            _, commands = self.loop.tick(wall, [*self._words, *outcomes, *events(t), seen])
            answers: list[Outcome] = []
            for command in commands:
                if isinstance(command, LockClocks | Brake) and not self.lost(command):
                    latency = self.policy.latency_ms.of(command.path)
                    self.servers[command.subject].hear(command, self.now, latency, answers)
            self._words = list(answers)
            self.now += self.policy.period_ms


def restarted(plant: Plant) -> None:
    """Another controller takes the row over, told of nothing but the last decision's mode and settings."""
    left = plant.loop.decisions[-1]
    plant.loop = Loop(plant.row, plant.policy)
    told = msgspec.structs.replace(
        left, id="", at=plant.now + plant.set_by, source="runtime/restart", refusal="", notes={}
    )
    plant.loop.state = fold(plant.loop.state, [told])


def settled(loop: Loop, p: float = 0.5, *, until: Instant = T0) -> None:
    """Bring every host of the loop's row to a verified permission to run uncapped, long before `until`."""
    now = until - 3 * loop.policy.lease_ms
    while now < until:
        _, commands = loop.tick(now, [reading(loop.row, now, p)])
        loop.obeyed(now, commands)
        now += loop.policy.period_ms
    loop.decisions.clear()
    loop.commands.clear()
