"""A host's agent on boards in memory, and the commands that it is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as File

from support.boards import LATENCIES, Boards, Wiring, make_host

from actuators.base import Actuator, ActuatorError, Found, Readback
from actuators.gpu_nvml import NvmlActuator
from actuators.lifecycle import HostAgent
from actuators.reflex import Hold
from schemas.commands import Brake, Command, FailDirection, GpuCommand, Lease, LimitPower, LockClocks, Path
from schemas.instants import SECOND, Instant, Span
from schemas.outcomes import Outcome
from schemas.shares import SafeShare
from schemas.topology import Host

T0: Instant = 1_772_366_400_000
TTL: Span = 90 * SECOND
IN_MEMORY = next((folder for folder in (File("/dev/shm"),) if folder.is_dir()), None)
"""Where files need not wait for a disk: a kill, unlike a power cut, loses nothing that was written."""

SHARE_MHZ = 1110
SHARE_W = 250.0


def share_of(host: Host, *, limit_w: float = SHARE_W, max_mhz: int = SHARE_MHZ) -> SafeShare:
    return SafeShare(
        host=host.path, limit_w=limit_w, max_mhz=max_mhz, host_w=host.wall_w(host.gpu_count * limit_w)
    )


def lease(at: Instant, on_expiry: FailDirection, *, ttl: Span = TTL, epoch: int = 1) -> Lease:
    return Lease(epoch=epoch, issued_at=at, expires_at=at + ttl, on_expiry=on_expiry)


def lock(
    max_mhz: int,
    at: Instant,
    *,
    path: Path = "in_band",
    on_expiry: FailDirection = "safe_share",
    ttl: Span = TTL,
    epoch: int = 1,
    subject: str = "ams1/row-a/r01/h01",
) -> LockClocks:
    return LockClocks(
        at=at,
        source="controller/test",
        subject=subject,
        cause=(f"{path}-{max_mhz}-{epoch}",),
        lease=lease(at, on_expiry, ttl=ttl, epoch=epoch),
        max_mhz=max_mhz,
        path=path,
    )


def limit(
    limit_w: float,
    at: Instant,
    *,
    path: Path = "in_band",
    on_expiry: FailDirection = "safe_share",
    ttl: Span = TTL,
    epoch: int = 1,
) -> LimitPower:
    return LimitPower(
        at=at,
        source="controller/test",
        subject="ams1/row-a/r01/h01",
        cause=(f"{path}-{limit_w}-{epoch}",),
        lease=lease(at, on_expiry, ttl=ttl, epoch=epoch),
        limit_w=limit_w,
        path=path,
    )


def brake(at: Instant, *, max_mhz: int = 288, path: Path = "brake", ttl: Span = TTL, epoch: int = 1) -> Brake:
    return Brake(
        at=at,
        source="controller/test",
        subject="ams1/row-a/r01/h01",
        cause=(f"brake-{epoch}",),
        lease=lease(at, "hold", ttl=ttl, epoch=epoch),
        max_mhz=max_mhz,
        path=path,
    )


class Failing:
    """An interceptor: `actuator`, whose call `on` raises while `failing` is set. `lasting` as the
    error says it."""

    def __init__(self, actuator: Actuator, *, on: str, lasting: bool = False) -> None:
        self._actuator = actuator
        self._on = on
        self._lasting = lasting
        self.failing = True
        self.calls: list[str] = []

    @property
    def path(self) -> Path:
        return self._actuator.path

    def _pass(self, call: str) -> None:
        self.calls.append(call)
        if self.failing and call == self._on:
            raise ActuatorError(f"{call} fails, as the test asks", lasting=self._lasting)

    def inspect(self) -> Found:
        self._pass("inspect")
        return self._actuator.inspect()

    def apply(self, command: GpuCommand, found: Found) -> None:
        self._pass("apply")
        self._actuator.apply(command, found)

    def verify(self, command: GpuCommand) -> Readback:
        self._pass("verify")
        return self._actuator.verify(command)

    def fall_back(self, share: SafeShare, found: Found) -> None:
        self._pass("fall_back")
        self._actuator.fall_back(share, found)

    def release(self, found: Found) -> None:
        self._pass("release")
        self._actuator.release(found)

    def close(self) -> None:
        self._actuator.close()


class Hosted:
    """A host in memory with its agent, moved through time together. `said` is every outcome so far."""

    def __init__(
        self,
        *paths: Path,
        gpus: int = 2,
        limit_w: float = 0.0,
        state_file: File | None = None,
        latencies: Mapping[Path, Span] = LATENCIES,
        wiring: Wiring = "own",
    ) -> None:
        self.host = make_host(gpus, paths=paths or ("in_band",))
        self.boards = Boards(self.host, latencies, limit_w=limit_w, wiring=wiring)
        self.actuators: dict[Path, Actuator] = {
            path: NvmlActuator(self.host, path, self.boards.nvml(path)) for path in self.host.paths
        }
        self.share = share_of(self.host)
        self.state_file = state_file
        self.now = T0
        self.said: list[Outcome] = []
        self.watched = True  # by a reflex
        self.agent = self._agent()

    def intercept(self, path: Path, *, on: str, lasting: bool = False) -> Failing:
        """Put an interceptor before the actuator of `path`; not yet failing."""
        failing = Failing(self.actuators[path], on=on, lasting=lasting)
        failing.failing = False
        self.actuators[path] = failing
        return failing

    def start(self) -> list[Outcome]:
        return self._hear(self.agent.start(self.now))

    def give(self, *commands: Command) -> list[Outcome]:
        """One step with these commands, at this instant."""
        return self._hear(self.agent.step(commands, self.now))

    def wait(self, span: Span, *, every: Span = 250) -> list[Outcome]:
        """Let time pass, the agent stepping by itself."""
        heard: list[Outcome] = []
        until = self.now + span
        while self.now < until:
            stride = min(every, until - self.now)
            self.boards.advance(stride)
            self.now += stride
            heard += self._hear(self.agent.step((), self.now))
        return heard

    def restart(self, *, after: Span = 0) -> list[Outcome]:
        """Kill the agent; `after` that long, start another."""
        self.boards.advance(after)
        self.now += after
        self.agent = self._agent()
        return self.start()

    def hold(self, hold: Hold | None) -> list[Outcome]:
        """The host's reflex says what it holds from now on."""
        return self._hear(self.agent.reflex(hold, self.now))

    def _agent(self) -> HostAgent:
        return HostAgent(
            self.host,
            self.actuators,
            self.share,
            self.state_file,
            source="actuator/test",
            reflex=self.watched,
        )

    def _hear(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        self.said += outcomes
        return list(outcomes)


def kinds(outcomes: Sequence[Outcome]) -> list[str]:
    return [type(outcome).__name__ for outcome in outcomes]
