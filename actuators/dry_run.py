"""An actuator that holds no device: it says what it would do, and that it did not.

Every write is answered with NotAttempted, so a command's outcome is Refused with the words "dry run".
Nothing it says can be taken for success. It is made from the host's entry in the site file alone.
"""

from __future__ import annotations

from actuators.base import Found, NotAttempted, Readback
from schemas.commands import GpuCommand, LimitPower, LockClocks, Path
from schemas.shares import SafeShare
from schemas.topology import Host


class DryRunActuator:
    """Says what would be done to `host` by `path`."""

    def __init__(self, host: Host, path: Path = "in_band") -> None:
        self._host = host
        self._path: Path = path

    @property
    def path(self) -> Path:
        return self._path

    def inspect(self) -> Found:
        """Nothing is known of a device that was never asked."""
        return Found()

    def apply(self, command: GpuCommand, found: Found) -> None:
        if isinstance(command, LimitPower):
            wish = f"limit {self._gpus} to {command.limit_w:g} W"
        elif isinstance(command, LockClocks) and command.max_mhz >= self._host.sku.max_mhz:
            wish = f"let {self._gpus} run uncapped"
        elif isinstance(command, LockClocks):
            wish = f"lock {self._gpus} at or below {command.max_mhz} MHz"
        else:
            wish = f"engage the power brake of {self._gpus} at {command.max_mhz} MHz"
        raise self._would(wish)

    def verify(self, command: GpuCommand) -> Readback:
        return Readback(in_force=None, observed=None, detail="dry run: no device is read")

    def fall_back(self, share: SafeShare, found: Found) -> None:
        raise self._would(f"set {self._gpus} to the safe share, {share.limit_w:g} W and {share.max_mhz} MHz")

    def release(self, found: Found) -> None:
        raise self._would(f"give back what was found on {self._gpus}")

    def close(self) -> None:
        """There is nothing to let go of."""

    @property
    def _gpus(self) -> str:
        return f"the {self._host.gpu_count} GPUs of {self._host.path}"

    def _would(self, wish: str) -> NotAttempted:
        return NotAttempted(f"dry run: would {wish} by {self._path}")
