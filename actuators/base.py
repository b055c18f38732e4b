"""What an actuator is: three calls on one host's GPUs by one path, each safe to repeat.

Success is a read-back. `apply` only writes; `verify` reads the device's own state and says whether
it obeys; `release` gives back what was found. The lifecycle owns deadlines, leases and the state
file; an adapter owns nothing but the device handle.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from schemas.commands import GpuCommand, Path
from schemas.shares import SafeShare
from schemas.units import Reading


class ActuatorError(Exception):
    """The device refused or did not answer; the text is for the operator. `lasting` is True where a
    retry cannot help (no permission, not supported)."""

    def __init__(self, text: str, *, lasting: bool = False) -> None:
        super().__init__(text)
        self.lasting = lasting


class NotAttempted(ActuatorError):
    """Nothing was written: out of the device's limits, another board than the site file names, a dry
    run. Always lasting."""

    def __init__(self, text: str) -> None:
        super().__init__(text, lasting=True)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The settings found on a host before the first command: one entry per GPU, by UUID.

    `limit_w` is the power limit. A clock lock cannot be read through NVML: `lock_mhz` is the lock
    the site declares as standing (0: none), and that is what a release gives back. A GPU that is not
    named here, or whose limit is unknown, is given back its device's default limit. Nothing that an
    actuator writes is ever looser than what was found.
    """

    uuids: tuple[str, ...] = ()
    limit_w: tuple[Reading, ...] = ()
    lock_mhz: int = 0


class Readback(msgspec.Struct, frozen=True, kw_only=True):
    """What the device says of a command. `in_force` None: not yet known. `observed` is the highest
    SM clock (MHz) or limit (W) read over the host's GPUs; `lowest_mhz` the lowest SM clock, None unless
    the clock of every GPU was read; `power_w` the sum of their power.

    `shown` is False where the reading would be the same without the command: a clock lock over GPUs
    that are all at rest. It then agrees with the command and proves nothing.
    """

    in_force: bool | None
    observed: Reading
    lowest_mhz: Reading = None
    shown: bool = True
    power_w: Reading = None
    detail: str = ""


class Actuator(Protocol):
    """One host's GPUs by one path (`in_band`, `out_of_band` or `brake`)."""

    @property
    def path(self) -> Path: ...

    def inspect(self) -> Found:
        """The settings in force now. Raises ActuatorError."""

    def apply(self, command: GpuCommand, found: Found) -> None:
        """Make `command` the one setting of every GPU, going on past one that fails: a clock lock gives
        back the power limit found, a power limit the lock found, always tightening before loosening.
        A brake only tightens. Raises ActuatorError naming those that failed, after all were tried;
        NotAttempted when nothing was."""

    def verify(self, command: GpuCommand) -> Readback:
        """Read whether the setting is in force. Raises ActuatorError when the device cannot be read."""

    def fall_back(self, share: SafeShare, found: Found) -> None:
        """Set the safe share on every GPU, going on past one that fails. Raises ActuatorError."""

    def release(self, found: Found) -> None:
        """Give back what was found on every GPU, going on past one that fails. Raises ActuatorError
        naming what could not be given back."""

    def close(self) -> None:
        """Let go of the device handle; changes no setting."""
