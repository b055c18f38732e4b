"""Arbitration: one owner for each host's clock, however many policies look at the row.

Hard limits (power, temperature) come before service levels, those before quality floors, and energy
comes last. A hard limit is a ceiling, which nothing may pass: of several the strictest holds. Under
that ceiling the highest rank that speaks for a host owns it, since a service level that wants the
clock up is not to be undercut by a wish to save energy; within a rank the stricter cap wins. What
lost is named in the decision's `overruled`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from schemas.decisions import Decision, Setting

RANKS = {"capping": 0, "thermal": 0, "service": 1, "quality": 2, "energy": 3}
"""Rank by the first part of a policy's name (``capping/polca``); a name unknown here ranks last."""

_HARD = 0
_LAST = max(RANKS.values()) + 1


def arbitrate(decisions: Sequence[Decision]) -> Decision:
    """One decision for the row out of one per policy, at least one, all of one row and instant.

    The highest-ranking decision (the first of equals) gives mode, notes and sentence; causes add up.
    A refusal of any hard limit stands for the whole: nothing may loosen on it.
    """
    if len(decisions) == 1:
        return decisions[0]
    ordered = sorted(decisions, key=rank)
    lead = ordered[0]
    wishes: dict[str, list[tuple[int, Setting]]] = {}
    for decision in ordered:
        for setting in decision.desired:
            wishes.setdefault(setting.target, []).append((rank(decision), setting))
    desired, overruled = [], [line for decision in ordered for line in decision.overruled]
    for target, asked in wishes.items():
        owner = _owner(asked)
        desired.append(owner)
        overruled.extend(
            f"{target}: {wish.owner} wished {_words(wish)}, {owner.owner} holds {_words(owner)}"
            for _, wish in asked
            if _strictness(wish) != _strictness(owner)
        )
    refusals = [d.refusal for d in ordered if d.refusal and rank(d) == _HARD]
    return msgspec.structs.replace(
        lead,
        id="",
        cause=tuple(dict.fromkeys(cause for decision in ordered for cause in decision.cause)),
        desired=tuple(desired),
        refusal="; ".join(refusals) or lead.refusal,
        overruled=tuple(overruled),
        recheck_after_ms=min(decision.recheck_after_ms for decision in ordered),
    )


def rank(decision: Decision) -> int:
    """Where a decision's policy stands: 0 is a hard limit."""
    return RANKS.get(decision.policy.partition("/")[0], _LAST)


def _owner(asked: Sequence[tuple[int, Setting]]) -> Setting:
    """The wish that holds: the strictest of the hard ceilings and of the highest rank below them."""
    below = min((rank for rank, _ in asked if rank != _HARD), default=_HARD)
    return min((wish for rank, wish in asked if rank in (_HARD, below)), key=_strictness)


def _strictness(setting: Setting) -> tuple[bool, int]:
    """Smallest first: a brake before any lock, then the lower clock."""
    return (not setting.brake, setting.max_mhz)


def _words(setting: Setting) -> str:
    return f"{'brake at ' if setting.brake else ''}{setting.max_mhz} MHz"
