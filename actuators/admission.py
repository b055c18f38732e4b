"""Which commands a host's agent takes up: fencing, order, expiry. Pure looks at what the agent keeps."""

from __future__ import annotations

from collections.abc import Collection

from actuators.state_file import Kept
from schemas.commands import Brake, Command, GpuCommand, LimitPower, LockClocks, Path
from schemas.instants import SECOND, Instant, Span, to_text
from schemas.shares import SafeShare

_CLOCKS_APART: Span = 2 * SECOND
"""How far the clocks of a controller and an agent may be apart (our choice)."""


def refusal(command: Command, kept: Kept, paths: Collection[Path], now: Instant, share: SafeShare) -> str:
    """Why `command` is not attempted, in words; empty when it is.

    Commands may arrive late, twice and in any order: of two with the same epoch the one issued later
    counts, and a brake yields only to a lock that is newer than itself. One that is held after its lease
    and loosens nothing comes never too late: this host's clock may be ahead.
    """
    lease = command.lease
    if command.subject != kept.host:
        return f"this agent keeps {kept.host}, not {command.subject}"
    if not isinstance(command, GpuCommand):
        return f"a GPU host takes LockClocks, LimitPower and Brake, not {type(command).__name__}"
    if command.path not in paths:
        return f"{kept.host} offers {', '.join(paths)}, not {command.path}"
    if lease.epoch < kept.epoch:
        return f"epoch {lease.epoch} is fenced: {kept.epoch} has been seen"
    late = now >= lease.expires_at and (lease.on_expiry != "hold" or loosens(command, kept, share))
    if late or lease.issued_at >= lease.expires_at:
        return f"expired on arrival: its lease ended at {to_text(lease.expires_at)}"
    if kept.command is not None and _before(command, kept.command, now):
        return f"issued before {kept.command.id}, which arrived before it"
    brake = engaged(kept)
    if brake is not None and isinstance(command, LimitPower):
        return f"brake {brake.id} is engaged, and only a clock lock releases it"
    if brake is not None and isinstance(command, LockClocks) and not _before(brake, command, now):
        return f"not newer than brake {brake.id}, which is engaged"
    if kept.reflex is not None and isinstance(command, LimitPower):
        return f"it leaves the clock alone, and {kept.reflex}"
    if kept.reflex is not None and loosens(command, kept, share):
        return f"it would loosen, and {kept.reflex}"
    return ""


def engaged(kept: Kept) -> Brake | None:
    """The brake that holds the host, or that no newer lock has replaced yet. None where no command is obeyed:
    a person's release gives a brake up with everything else, whether or not the device has obeyed yet."""
    if kept.intent != "obey":
        return None
    return kept.command if isinstance(kept.command, Brake) else kept.brake


def same_setting(one: GpuCommand, other: GpuCommand) -> bool:
    """Whether two commands ask for the same state by the same path; leases and causes may differ."""
    return _setting(one) == _setting(other)


def loosens(command: GpuCommand, kept: Kept, share: SafeShare) -> bool:
    """Whether `command` might let the host draw more than what is wanted of it now."""
    old = kept.command
    if isinstance(command, Brake):
        return False
    if kept.intent in ("restore", "release"):
        return False  # nothing that an actuator writes is looser than what was found
    if kept.intent == "safe_share" or old is None:
        if isinstance(command, LimitPower):
            return command.limit_w > share.limit_w
        return command.max_mhz > share.max_mhz
    if isinstance(command, LimitPower):
        return not isinstance(old, LimitPower) or command.limit_w > old.limit_w
    return isinstance(old, LimitPower) or command.max_mhz > old.max_mhz


def _before(one: Command, other: Command, now: Instant) -> bool:
    """Whether `one` is older than `other`. A command issued later than this very moment shows that the
    clock was set back since: against it, what arrives counts as newer."""
    if one.lease.epoch == other.lease.epoch:
        ahead = [command.lease.issued_at > now + _CLOCKS_APART for command in (one, other)]
        if ahead[0] != ahead[1]:
            return ahead[0]
    return _age(one) < _age(other)


def _age(command: Command) -> tuple[int, Instant]:
    return command.lease.epoch, command.lease.issued_at


def _setting(command: GpuCommand) -> tuple[object, ...]:
    if isinstance(command, LimitPower):
        return LimitPower, command.path, command.limit_w
    least = command.min_mhz if isinstance(command, LockClocks) else None
    return type(command), command.path, command.max_mhz, least
