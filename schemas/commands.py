"""Commands: wishes, imperative. Each asks for a state, carries its cause, and ends with its lease."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from schemas.envelope import Event
from schemas.instants import Instant

FailDirection: TypeAlias = Literal["safe_share", "hold", "restore"]
"""What a lease falls to when nobody renews it.

``safe_share``: the cap at which the row cannot exceed its breaker, for permissions to run higher.
``hold``: stay as commanded until a newer command, for emergency caps.
``restore``: the exact setting found before the first command, for economy.
"""

Path: TypeAlias = Literal["in_band", "out_of_band", "brake"]
"""How a command reaches the GPU: through the host's driver, its BMC, or the power-brake line."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """How long a command holds, and what follows.

    `epoch` fences: an actuator that has seen a higher one refuses this. `expires_at` is exclusive.
    """

    epoch: int
    issued_at: Instant
    expires_at: Instant
    on_expiry: FailDirection


class Command(Event, frozen=True, kw_only=True):
    """Hold `subject` in a state until the lease ends. `because` is the sentence for people; `cause`
    begins with the decision's id."""

    lease: Lease
    because: str = ""

    @property
    def target(self) -> str:
        """The path of the host, GPU, endpoint or site that the command is for."""
        return self.subject


class LockClocks(Command, frozen=True, kw_only=True, tag=True):
    """Hold the SM clock of every GPU of the host `target` at or below `max_mhz`.

    A lock at the SKU's highest clock is the *permission* to run uncapped: it too has an end.
    `min_mhz` None leaves the idle clock free (switch `lock_range`: ``[min,f]``); equal to `max_mhz`
    pins it (``[f,f]``).
    """

    max_mhz: int
    min_mhz: int | None = None
    path: Path = "in_band"


class LimitPower(Command, frozen=True, kw_only=True, tag=True):
    """Hold the board power of every GPU of the host `target` at or below `limit_w`: the backstop."""

    limit_w: float
    path: Path = "in_band"


class Brake(Command, frozen=True, kw_only=True, tag=True):
    """Engage the power brake of the host `target`: SM clock at or below `max_mhz` by the fastest path."""

    max_mhz: int
    path: Path = "brake"


class SetShares(Command, frozen=True, kw_only=True, tag=True):
    """Route requests to `members` in proportion to `shares_ratio` (each 0 to 1, summing to 1);
    target is a router's pool or a site group."""

    members: tuple[str, ...]
    shares_ratio: tuple[float, ...]


class AdmitRate(Command, frozen=True, kw_only=True, tag=True):
    """Admit at most `requests_per_s` at the router `target`; the rest is shed (429)."""

    requests_per_s: float


class Drain(Command, frozen=True, kw_only=True, tag=True):
    """Send no new request to the instance `target`; running ones may end within `grace_s`."""

    grace_s: float


class Park(Command, frozen=True, kw_only=True, tag=True):
    """Keep the drained instance `target` asleep; `depth` 1 keeps weights in host memory, 2 drops them."""

    depth: int = 1


class Reconfigure(Command, frozen=True, kw_only=True, tag=True):
    """Run the instance `target` in this configuration; None leaves a knob as it is."""

    tensor_parallel: int | None = None
    max_batch: int | None = None
    model: str | None = None
    quantisation: str | None = None


class SetReplicas(Command, frozen=True, kw_only=True, tag=True):
    """Run `replicas` instances of the deployment `target`."""

    replicas: int


GpuCommand: TypeAlias = LockClocks | LimitPower | Brake
"""What a host's GPU actuator applies."""
