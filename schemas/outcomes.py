"""Outcomes: what became of a command, past participles. Success is a read-back, nothing less."""

from __future__ import annotations

from schemas.envelope import Event
from schemas.units import Reading


class Outcome(Event, frozen=True, kw_only=True):
    """One step in a command's life; subject is the command's target, `command` its id, `epoch` its
    lease's epoch. `detail` says it in words."""

    command: str
    epoch: int
    detail: str = ""

    @property
    def told_apart_by(self) -> tuple[str, ...]:
        return (self.command, self.detail)


class Accepted(Outcome, frozen=True, kw_only=True, tag=True):
    """Written to the device; not yet known to be in force."""


class Verified(Outcome, frozen=True, kw_only=True, tag=True):
    """Read back: the device was seen to obey. `observed` is what was read (MHz or watts)."""

    observed: Reading
    effect_w: Reading = None
    """Power of the target's GPUs at read-back minus the power when the command was written."""


class Renewed(Outcome, frozen=True, kw_only=True, tag=True):
    """A later command asked for the state already in force: its lease replaced the earlier one."""


class Released(Outcome, frozen=True, kw_only=True, tag=True):
    """The setting was given back on request; `detail` names what was restored."""


class Lapsed(Outcome, frozen=True, kw_only=True, tag=True):
    """The lease ran out and the fail direction was applied; `detail` names it and what it set."""


class Refused(Outcome, frozen=True, kw_only=True, tag=True):
    """Not attempted: fenced by a newer epoch, expired on arrival, unknown target, out of limits.

    `fenced_by` is the higher epoch that the target has obeyed; 0 where that is not the reason."""

    fenced_by: int = 0


class Failed(Outcome, frozen=True, kw_only=True, tag=True):
    """Attempted, and not seen in force before the deadline, or refused by the device."""


class Superseded(Outcome, frozen=True, kw_only=True, tag=True):
    """A newer command for the same control took its place before this one was verified or released."""
