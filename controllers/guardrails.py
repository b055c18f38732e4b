"""Guardrails: what no policy may do, whatever it wishes. Each adjustment says why in `overruled`.

In this order, per host:

* **Released** hosts are not commanded, but for the brake: a release is about economy, a brake about
  the breaker. It is renewed as long as it is wished, and ends at the host's safe share.
* **Floor**: no ceiling below `floor_ratio` of the board's highest clock, the brake and people apart.
* **Pins**: a person's ceiling holds where it is the stricter one. Where safety asks for less, the pin
  is overruled and the decision says so; the pin itself stays and is not fought.
* **Loosening** is held back (tightening never is) while

  - the power is unknown, or was within the last `dwell_ms` (an outage; a beat that stays away, or a
    restart, is one too: a host that a new controller knows nothing of keeps what the old one left it);
  - the ledger cannot be written, since nothing may be loosened without a record;
  - the blast-radius breaker is open, until a person resets it;
  - the host was loosened within the last `dwell_ms`; and one step of its ladder at a time;
  - as many hosts as `blast_ratio` allows were loosened already: within `blast_window_ms` for steps
    from one cap to a looser one, within `dwell_ms` for hosts that come back from a brake, an outage
    or a start, which is their staggering. High priority goes first: while one of its hosts waits its turn
    no step of low priority takes one, however often that has had its own.

A held host keeps what it was last seen to obey or was asked to; one that is at its safe share, or was
never asked anything, is left out of the decision and stays there.

The pacing keeps the row inside the blast radius by itself. The breaker behind it looks at the record,
not at the wish: when commands show more hosts loosened within the window than allowed, whoever sent
them, it opens, and only `ResetBlastRadius` closes it. A row whose policy is ``off`` has no guardrails
but released hosts and pins.
"""

from __future__ import annotations

import msgspec

from controllers.clock_table import Clocks
from controllers.policy import CappingPolicy
from controllers.view import Asked, HostControl, View
from schemas.decisions import Decision, Setting
from schemas.instants import MINUTE, SECOND, Instant, to_text
from schemas.topology import Host


class Pace:
    """How many hosts may still be loosened at this look: the record's count against the allowance."""

    def __init__(self, view: View, policy: CappingPolicy, now: Instant) -> None:
        rails = policy.guardrails
        self.total = len(view.row.hosts)
        self.limit = max(1, int(rails.blast_ratio * self.total))
        stepped_since = max(now - rails.blast_window_ms, view.blast_reset_at)
        returned_since = now - rails.dwell_ms
        self.stepped = {path for path, control in view.hosts.items() if control.stepped_at > stepped_since}
        self.returned = {path for path, control in view.hosts.items() if control.returned_at > returned_since}
        self._first_waits = False

    def takes(self, host: Host, *, returning: bool) -> bool:
        """Whether this host may be loosened now; if so it is counted. Ask for high priority first."""
        counted = self.returned if returning else self.stepped
        first = host.priority == "high"
        full = host.path not in counted and len(counted) >= self.limit
        if full or (self._first_waits and not first and not returning):
            self._first_waits = self._first_waits or (first and not returning)
            return False
        counted.add(host.path)
        return True


def guard(decision: Decision, view: View, policy: CappingPolicy, now: Instant) -> Decision:
    """`decision` within the guardrails, with every adjustment named in `overruled`."""
    if _known(decision, view, policy, now):
        return decision
    notes = dict(decision.notes)
    pace = Pace(view, policy, now)
    stop, outage = _stop(decision, view, policy, now, notes, pace), _outage(policy, now, notes)
    left = _left(decision, view)
    if not (view.pins or view.released) and all(_stands(wish, view, now) for wish in decision.desired):
        return msgspec.structs.replace(decision, notes=notes)
    plain = not (view.pins or view.released or stop or outage) and policy.variant != "off"
    hosts = {host.path: host for host in view.row.hosts}
    boards: dict[str, Clocks] = {}
    kept: dict[str, Setting] = {}
    reasons: dict[str, list[str]] = {}
    for wish in sorted(decision.desired, key=lambda setting: hosts[setting.target].priority != "high"):
        host = hosts[wish.target]
        if plain and _unopposed(wish, host, view, policy, now):
            kept[wish.target] = wish
            continue
        said: list[str] = []
        setting = _released(wish, view, said)
        if setting is not None and policy.variant != "off":
            setting = _floored(setting, host, policy, said)
        if setting is not None and view.pins:
            setting = _pinned(setting, host, view, said)
        if setting is not None and policy.variant != "off":
            clocks = boards.get(host.sku.name)
            if clocks is None:
                clocks = boards[host.sku.name] = policy.clocks_of(host.sku)
            held = stop or outage
            if outage and not stop and wish.target in left and view.control(host.path).unheard:
                setting, held = _as_left(setting, left[wish.target], said), ""
            setting = _paced(setting, host, clocks, view, policy, now, held, pace, said)
        if setting is not None:
            kept[wish.target] = setting
        for reason in said:
            reasons.setdefault(reason, []).append(wish.target)
    adjusted = tuple(f"{_names(paths)}: {reason}" for reason, paths in reasons.items())
    desired = tuple(kept[wish.target] for wish in decision.desired if wish.target in kept)
    if desired == decision.desired:
        desired = decision.desired  # the very wishes, so that the next look knows them again
    return msgspec.structs.replace(
        decision,
        desired=desired,
        overruled=decision.overruled + adjusted,
        notes=notes,
    )


def _known(decision: Decision, view: View, policy: CappingPolicy, now: Instant) -> bool:
    """Whether an earlier look found that nothing stands against these very wishes, and nothing was heard of
    the hosts since. Where some of them have yet to obey, also whether nothing else holds them back now."""
    still = view.standing
    if still is None or decision.desired is not still.desired:
        return False
    return still.settled or not (
        decision.refusal
        or "blast_open_at" in decision.notes
        or _outage(policy, now, decision.notes)
        or any(emergency.kind == "ledger_loss" for emergency in view.emergencies)
    )


def _unopposed(wish: Setting, host: Host, view: View, policy: CappingPolicy, now: Instant) -> bool:
    """Whether no guardrail has a say in a wish, where nothing holds the row back: it tightens or stays, or
    was asked before. The checks below would come to the same, one by one."""
    if wish.brake:
        return True
    if wish.max_mhz < policy.guardrails.floor_ratio * host.sku.max_mhz:
        return False
    control = view.control(wish.target)
    if control.braked:
        return False
    ceiling, asked = control.ceiling(now), control.lock.asked
    same = asked is not None and asked.max_mhz == wish.max_mhz
    return same or (ceiling is not None and wish.max_mhz <= ceiling)


def _stands(wish: Setting, view: View, now: Instant) -> bool:
    """Whether a host obeys this very wish already: no guardrail has a say in what is not a change."""
    control = view.control(wish.target)
    as_is = wish.max_mhz == control.ceiling(now) and wish.brake == control.braked
    return as_is and control.lock.asked is None


def _stop(
    decision: Decision, view: View, policy: CappingPolicy, now: Instant, notes: dict[str, str], pace: Pace
) -> str:
    """Why nobody may be loosened at this look, an outage apart; empty when somebody may. Keeps the
    breaker's note."""
    if len(pace.stepped) > pace.limit:
        notes.setdefault("blast_open_at", str(now))
    if "blast_open_at" in notes and view.blast_reset_at > int(notes["blast_open_at"]):
        del notes["blast_open_at"]
    if decision.refusal:
        return "not loosened, the power is unknown"
    if any(emergency.kind == "ledger_loss" for emergency in view.emergencies):
        return "not loosened, the ledger cannot be written"
    if "blast_open_at" in notes:
        opened = int(notes["blast_open_at"])
        return (
            f"not loosened, the blast-radius breaker opened at {to_text(opened)}: more than {pace.limit} of "
            f"{pace.total} hosts had been loosened within {policy.guardrails.blast_window_ms / MINUTE:g} min "
            "and a person has to reset it"
        )
    return ""


def _outage(policy: CappingPolicy, now: Instant, notes: dict[str, str]) -> str:
    """Why nobody may be loosened soon after an outage; empty when that is long enough ago."""
    since = now - int(notes.get("outage_at", now - policy.guardrails.dwell_ms))
    if since >= policy.guardrails.dwell_ms:
        return ""
    return (
        f"not loosened, telemetry has been back for {since / SECOND:g} s of the "
        f"{policy.guardrails.dwell_ms / SECOND:g} s dwell"
    )


def _left(decision: Decision, view: View) -> dict[str, Setting]:
    """What an earlier controller left in force, host by host; empty where this one started the row."""
    if view.first is None or view.first.source == decision.source:
        return {}
    return {setting.target: setting for setting in view.first.desired if not setting.brake}


def _as_left(wish: Setting, left: Setting, said: list[str]) -> Setting:
    """The wish, no looser than what an earlier controller left: to ask that again loosens nothing."""
    if wish.brake or wish.max_mhz <= left.max_mhz:
        return wish
    said.append(f"kept at {left.max_mhz} MHz for the first dwell, as the controller before left it")
    return msgspec.structs.replace(wish, max_mhz=left.max_mhz, owner="guardrail/hold")


def _released(wish: Setting, view: View, said: list[str]) -> Setting | None:
    word = view.released.get(wish.target)
    if word is None:
        return wish
    if wish.brake:
        said.append(f"braked although released by {word.by} ({word.reason}), until the brake's lease ends")
        return msgspec.structs.replace(wish, on_expiry="safe_share")
    said.append(f"not commanded, released by {word.by} ({word.reason})")
    return None


def _floored(wish: Setting, host: Host, policy: CappingPolicy, said: list[str]) -> Setting:
    floor = policy.guardrails.floor_ratio * host.sku.max_mhz
    if wish.brake or wish.max_mhz >= floor:
        return wish
    raised = host.sku.round_down(floor)
    said.append(f"{wish.owner} wished {wish.max_mhz} MHz, raised to the floor of {raised} MHz")
    return msgspec.structs.replace(wish, max_mhz=raised, owner="guardrail/floor")


def _pinned(wish: Setting, host: Host, view: View, said: list[str]) -> Setting:
    for pin in sorted(view.pins_on(host), key=lambda pin: pin.max_mhz):
        ceiling = host.sku.round_down(pin.max_mhz)
        until = to_text(pin.expires_at)
        words = f"pin of {pin.subject} at {pin.max_mhz} MHz by {pin.by} until {until} ({pin.reason})"
        asked = "the brake" if wish.brake else f"{wish.max_mhz} MHz"
        if wish.brake or ceiling > wish.max_mhz:
            said.append(f"{words} is looser than allowed, {wish.owner} holds {asked}")
        elif ceiling < wish.max_mhz:
            said.append(f"{wish.owner} wished {asked}, {words} holds")
            wish = msgspec.structs.replace(wish, max_mhz=ceiling, owner=f"pin/{pin.by}")
    return wish


def _paced(
    wish: Setting,
    host: Host,
    clocks: Clocks,
    view: View,
    policy: CappingPolicy,
    now: Instant,
    stop: str,
    pace: Pace,
    said: list[str],
) -> Setting | None:
    """The wish, or what the host keeps instead; None where it stays at its safe share."""
    control = view.control(host.path)
    ceiling, asked, rails = control.ceiling(now), control.lock.asked, policy.guardrails
    returning = control.braked or ceiling is None
    if wish.brake or (not returning and ceiling is not None and wish.max_mhz <= ceiling):
        return wish
    if stop:
        said.append(stop)
        return _kept(wish, control, now, asked=None)
    if asked is not None and asked.at <= control.brake_at:
        asked = None
    if asked is not None and asked.max_mhz == wish.max_mhz:
        return wish  # it was counted when it was asked
    if not returning and now - max(control.stepped_at, control.returned_at) < rails.dwell_ms:
        said.append(f"loosened less than {rails.dwell_ms / SECOND:g} s ago, the next step waits")
        return _kept(wish, control, now, asked=asked)
    if not pace.takes(host, returning=returning):
        window = f"{rails.dwell_ms / SECOND:g} s" if returning else f"{rails.blast_window_ms / MINUTE:g} min"
        said.append(f"waits its turn, {pace.limit} of {pace.total} hosts may be loosened within {window}")
        return _kept(wish, control, now, asked=asked)
    if ceiling is not None:
        rung = next((mhz for mhz in clocks.rungs(host.priority) if mhz > ceiling), clocks.max)
        if rung < wish.max_mhz:
            said.append(f"to {rung} MHz before {wish.max_mhz} MHz, one step at a time")
            return msgspec.structs.replace(wish, max_mhz=rung, owner="guardrail/ramp")
    return wish


def _kept(wish: Setting, control: HostControl, now: Instant, *, asked: Asked | None) -> Setting | None:
    """What a host held back keeps: the lock it was asked for (never looser than the wish), its brake,
    or the lock it obeys; None where none of them stands."""
    brake = control.brake.in_force or control.brake.asked
    if asked is not None:
        return msgspec.structs.replace(wish, max_mhz=min(asked.max_mhz, wish.max_mhz), owner="guardrail/hold")
    if brake is not None:
        return msgspec.structs.replace(
            wish, max_mhz=brake.max_mhz, path=brake.path, on_expiry="hold", brake=True, owner="guardrail/hold"
        )
    ceiling = control.ceiling(now)
    return None if ceiling is None else msgspec.structs.replace(wish, max_mhz=ceiling, owner="guardrail/hold")


def _names(paths: list[str]) -> str:
    return ", ".join(paths) if len(paths) <= 3 else f"{paths[0]} and {len(paths) - 1} more hosts"
