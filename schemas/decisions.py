"""Decisions: the state a policy wants in force, why, and when it wants to look again."""

from __future__ import annotations

import msgspec

from schemas.commands import FailDirection, Path
from schemas.envelope import Event
from schemas.instants import Span


class Setting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What should be in force on one host: a clock ceiling, by a path, with a fail direction.

    `brake` asks for the power brake. `owner` is the policy or guardrail that set it; when several
    want the same control the stricter wins and the losers are named in the decision's `overruled`.
    """

    target: str
    max_mhz: int
    path: Path
    on_expiry: FailDirection
    brake: bool = False
    owner: str = ""


class Decision(Event, frozen=True, kw_only=True, tag=True):
    """One look at a row; subject is the row, cause the messages it rests on.

    `mode` is the policy's state after this look (U, T1, T2a, T2b, B; P1 to P8 of the variant
    `proportional`), the input of the next one.
    `since` is when the mode was entered. `refusal` is the sentence why the policy would not decide;
    then `desired` keeps what is in force. `shortfall_w` is how much the row is above what the
    policy can still bring down. `overruled` names wishes that lost to a guardrail, a pin or a
    stricter policy. `notes` carries the policy's own memory across ticks (all strings, for replay).
    """

    policy: str
    mode: str
    since: int
    desired: tuple[Setting, ...]
    because: str
    shortfall_w: float = 0.0
    recheck_after_ms: Span = 2_000
    refusal: str = ""
    overruled: tuple[str, ...] = ()
    notes: dict[str, str] = {}

    @property
    def told_apart_by(self) -> tuple[str, ...]:
        return (self.policy,)
