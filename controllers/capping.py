"""POLCA: a row's power held under its budget by clock locks per priority, and by the brake.

`p` is the row's power over its budget, looked at once per control period. Clocks are those of the
host's board (`controllers.clock_table`); thresholds and the 40 s and 5 s paths are POLCA's
(arXiv 2308.12908), what it leaves open is a switch of the policy.

====  ==================================  ==============================================  ========  ========
mode  entered                             left                                            low       high
====  ==================================  ==============================================  ========  ========
U     at the start                        p > t1.enter → T1, p > t2.enter → T2a           max       max
T1    p > t1.enter (0.80)                 p < t1.leave (0.75) → U, p > t2.enter → T2a     low_t1    max
T2a   p > t2.enter (0.89)                 p < t2.leave (0.84) → T1; low has landed and    low_t2    max
                                          still p > t2.enter → T2b
T2b   see T2a                             p < t2.leave → T1                               low_t2    high_t2
B     p > brake (1.00) or a UPS failing   p < t2.leave for 40 s and no UPS failing → T2b  brake     brake
      over, from any mode
====  ==================================  ==============================================  ========  ========

Steps to a looser mode are at least `guardrails.dwell_ms` apart, and wait that long after an outage
and until every host that is coming back is back, since a row whose hosts are held down draws little.
Beats that stay away for longer than a reading may be old are an outage, and so is a restart.

``proportional`` has a ladder of eight caps between U and the strictest, each of which takes about as much
power off a row as the next: five of low priority alone down to low_t2, then three of high priority down to
high_t2.

====  ==================================  =====================================================  ====
mode  entered                             left                                                   caps
====  ==================================  =====================================================  ====
U     at the start                        p > t1.enter → P1, p > t2.enter → as P                 none
P1…8  see U                               p > t2.enter → up by the excess over t2.enter, one     rung
                                          rung per `RUNG_RATIO` or part of it; p < t2.leave →
                                          down by one; P1: p < t1.leave → U
B     as above                            as above → P8                                          brake
====  ==================================  =====================================================  ====

What is on its way already counts: until all hosts obey, the excess is that over the power at which the last
step up was decided. So a slow path is not asked for the same watts twice, and what rises meanwhile is.

The baselines use the same modes: one threshold steps U ↔ T2a (low priority only) or U ↔ T2b
(everyone); ``no_cap`` knows U and B; ``off`` only U.

A reading that is missing, stale, zero or no number is unknown, and on unknown nothing loosens:

* at once the caps hold, and permissions are not renewed;
* past `stale_hold_periods`, where at least half of the row is measured, the upper bound of its power
  may still step the caps up (never the brake: a bound is no reading);
* past `stale_safe_periods` the row goes to its strictest caps, with an alarm, whatever is known;
* leases that nobody renews then run out, and the hosts fall to their safe shares by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from controllers.base import Refusal, Requirements
from controllers.clock_table import Clocks
from controllers.policy import Band, CappingPolicy, Variant
from controllers.view import HostControl, View
from schemas.commands import FailDirection, Path
from schemas.decisions import Decision, Setting
from schemas.forecasts import PeakForecast
from schemas.instants import SECOND, Instant, Span
from schemas.skus import Sku
from schemas.topology import Host, Priority, Row

BOUND_COVERAGE_RATIO = 0.5
"""Below this share of measured nameplate an upper bound says nothing about the row (our choice)."""

SPIKE_RATIO = 0.118
"""The highest rise of an inference row within one out-of-band latency of 40 s (published)."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What the state table asks about: shares of the budget, and what has happened meanwhile.

    `p` decides the brake; `peak` decides the caps: the larger of `p` and, in `polca_forecast`, the
    forecast peak. `landed`: every low-priority host has its step in force. `calm`: the brake may go.
    `provided`: the power that caps on their way were asked for; 0 where none are (`proportional`).
    """

    p: float
    peak: float
    landed: bool = False
    calm: bool = False
    failover: bool = False
    provided: float = 0.0


Test = Callable[[Look, CappingPolicy], bool]


class Rule(NamedTuple):
    """One row of the state table: in one of `modes`, when `test` holds, go to `target`."""

    modes: tuple[str, ...]
    test: Test
    target: str


LADDER = ("U", "P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8")
"""The modes of `proportional`, loosest first."""

_LOW_RUNGS = 5  # of the ladder, those that cap low priority alone; the rest go on with high priority

RUNG_RATIO = 0.015
"""What a rung takes off a row, as a share of its budget, or a little less: the ladder then climbs a little
further than it must (derived from the twin's A100 row: the low step of 300 MHz takes some 9 %)."""

STRICTNESS = {"U": 0, "T1": 1, "T2a": 2, "T2b": 3, "B": 9, **{mode: i for i, mode in enumerate(LADDER)}}

STEPS: dict[str, dict[Priority, str]] = {
    "U": {"low": "max", "high": "max"},
    "T1": {"low": "low_t1", "high": "max"},
    "T2a": {"low": "low_t2", "high": "max"},
    "T2b": {"low": "low_t2", "high": "high_t2"},
    "B": {"low": "brake", "high": "brake"},
}
"""Mode → priority → entry of the board's clocks."""


def clock_of(clocks: Clocks, sku: Sku, mode: str, priority: Priority) -> int:
    """The ceiling (MHz) that a mode asks of a board: an entry of its table or, on the ladder, as many parts
    of the way from its highest clock to its strictest cap, rounded down to what it supports."""
    if mode not in LADDER[1:]:
        clock: int = getattr(clocks, STEPS[mode][priority])
        return clock
    rung = LADDER.index(mode)
    if priority == "low":
        strictest, part = clocks.low_t2, min(rung / _LOW_RUNGS, 1.0)
    else:
        strictest, part = clocks.high_t2, max(rung - _LOW_RUNGS, 0) / (len(LADDER) - 1 - _LOW_RUNGS)
    return sku.round_down(clocks.max - part * (clocks.max - strictest))


def caps(mode: str, priority: Priority) -> bool:
    """Whether a mode holds this priority below its highest clock."""
    if mode in LADDER[1:]:
        return priority == "low" or LADDER.index(mode) > _LOW_RUNGS
    return STEPS[mode][priority] != "max"


def _over_t1(look: Look, policy: CappingPolicy) -> bool:
    return look.peak > policy.t1.enter


def _over_t2(look: Look, policy: CappingPolicy) -> bool:
    return look.peak > policy.t2.enter


def _over_t2_at_once(look: Look, policy: CappingPolicy) -> bool:
    return _over_t2(look, policy) and policy.switches.hp_escalation == "immediate"


def _over_t2_landed(look: Look, policy: CappingPolicy) -> bool:
    return _over_t2(look, policy) and (look.landed or policy.switches.hp_escalation == "immediate")


def _under_t1(look: Look, policy: CappingPolicy) -> bool:
    return look.peak < policy.t1.leave


def _under_t2(look: Look, policy: CappingPolicy) -> bool:
    return look.peak < policy.t2.leave


def _under_t2_both(look: Look, policy: CappingPolicy) -> bool:
    # Above t1.enter both classes would be capped again at the next look: then low stays at its first step.
    both = policy.switches.uncap_rule == "both_below_T2"
    return both and _under_t2(look, policy) and not _over_t1(look, policy)


def _over_one(look: Look, policy: CappingPolicy) -> bool:
    return look.peak > policy.baseline.enter


def _under_one(look: Look, policy: CappingPolicy) -> bool:
    return look.peak < policy.baseline.leave


def _over_brake(look: Look, policy: CappingPolicy) -> bool:
    return look.p > policy.brake or look.failover


def _calm(look: Look, policy: CappingPolicy) -> bool:
    return look.calm


_BRAKE = Rule(tuple(STRICTNESS), _over_brake, "B")

_POLCA = (
    _BRAKE,
    Rule(("B",), _calm, "T2b"),
    Rule(("U", "T1"), _over_t2_at_once, "T2b"),
    Rule(("U", "T1"), _over_t2, "T2a"),
    Rule(("T2a",), _over_t2_landed, "T2b"),
    Rule(("U",), _over_t1, "T1"),
    Rule(("T2a", "T2b"), _under_t2_both, "U"),
    Rule(("T2a", "T2b"), _under_t2, "T1"),
    Rule(("T1",), _under_t1, "U"),
)

TABLES: dict[Variant, tuple[Rule, ...]] = {
    "polca": _POLCA,
    "polca_forecast": _POLCA,
    "one_threshold_low": (
        _BRAKE, Rule(("B",), _calm, "T2a"), Rule(("U",), _over_one, "T2a"), Rule(("T2a",), _under_one, "U")
    ),
    "one_threshold_all": (
        _BRAKE, Rule(("B",), _calm, "T2b"), Rule(("U",), _over_one, "T2b"), Rule(("T2b",), _under_one, "U")
    ),
    "no_cap": (_BRAKE, Rule(("B",), _calm, "U")),
    "off": (),
    "proportional": (_BRAKE, Rule(("B",), _calm, LADDER[-1])),
}  # fmt: skip
"""The first rule that fits is taken; none: the mode stays."""

SAFE_MODE: dict[Variant, str] = {
    "polca": "T2b", "polca_forecast": "T2b", "one_threshold_low": "T2a", "one_threshold_all": "T2b",
    "no_cap": "U", "off": "U", "proportional": LADDER[-1],
}  # fmt: skip
"""Each variant's strictest caps, where telemetry that stays away leads."""


def step(mode: str, look: Look, policy: CappingPolicy) -> str:
    """The mode after one look: the first rule of the variant's table that fits."""
    for rule in TABLES[policy.variant]:
        if mode in rule.modes and rule.test(look, policy):
            return rule.target
    return _rung(mode, look, policy) if policy.variant == "proportional" and mode in LADDER else mode


def _rung(mode: str, look: Look, policy: CappingPolicy) -> str:
    """Where on the ladder a row goes from here."""
    rung = LADDER.index(mode)
    if look.peak > policy.t2.enter:
        excess = look.peak - max(policy.t2.enter, look.provided)
        rung += max(0, math.ceil(excess / RUNG_RATIO))
    elif look.peak < policy.t2.leave and rung > 1:
        rung -= 1
    elif look.peak < policy.t1.leave:
        rung = 0
    elif look.peak > policy.t1.enter:
        rung = max(rung, 1)
    return LADDER[min(rung, len(LADDER) - 1)]


_TO_LADDER = {"T1": "P3", "T2a": "P5", "T2b": "P8"}


def taken_over(mode: str, variant: Variant) -> str:
    """The mode in which a variant goes on from another's: none that is looser."""
    if variant == "proportional":
        return _TO_LADDER.get(mode, mode)
    return SAFE_MODE[variant] if mode in LADDER[1:] else mode


def decide(view: View, policy: CappingPolicy, now: Instant, *, source: str) -> Decision:
    """What should be in force on every host of the row, from this look on.

    Raises Uncalibrated for a board without a clock table; `policy.unfit_for(row)` says so before a start.
    """
    last = view.last
    mode, since = (taken_over(last.mode, policy.variant), last.since) if last is not None else ("U", now)
    notes = dict(last.notes) if last is not None else {}
    if last is not None and (now - last.at > policy.hold_ms or last.source != source):
        # Nobody looked meanwhile, so no time of calm or dwell has passed.
        notes["outage_at"] = str(now)
        notes.pop("calm_since", None)
    failover = tuple(e for e in view.emergencies if e.kind == "failover") if policy.variant != "off" else ()
    refusal = ""
    try:
        p = known_p(view, policy, now)
    except Refusal as why:
        refusal = str(why)
        target = _blind(view, policy, now, mode, notes, braking=bool(failover))
        look = None
    else:
        look = _look(view, policy, now, mode, since, notes, p, failover=bool(failover))
        target = step(mode, look, policy)
    waits = ""
    if STRICTNESS[target] < STRICTNESS[mode]:
        waits = _too_soon(view, policy, now, mode, notes)
        if waits:
            target = mode
        else:
            notes["eased_at"] = str(now)
    if target != mode:
        since = now
        if target in LADDER and look is not None and STRICTNESS[target] > STRICTNESS[mode]:
            notes["provided"] = str(look.peak)
    forecast = _forecast(view, policy, now)
    causes = (view.rollup, forecast, *failover)
    return Decision(
        at=now,
        source=source,
        subject=view.row.path,
        cause=tuple(event.id for event in causes if event is not None),
        policy=f"capping/{policy.variant}",
        mode=target,
        since=since,
        desired=settings(view, policy, target),
        because=_because(view, policy, now, target, look, refusal, notes, failover=bool(failover)) + waits,
        shortfall_w=_shortfall_w(view, policy, target, look),
        recheck_after_ms=policy.period_ms,
        refusal=refusal,
        notes=notes,
    )


def requirements(policy: CappingPolicy) -> Requirements:
    """What capping asks of the row's power before it decides on it."""
    return Requirements(freshness_ms=policy.hold_ms, coverage_ratio=policy.coverage_ratio)


def known_p(view: View, policy: CappingPolicy, now: Instant) -> float:
    """The row's power over its budget. Raises Refusal in a sentence where it is unknown: missing,
    too old, from the future, no number, nothing, or a sum over too few hosts."""
    need, rollup = requirements(policy), view.rollup
    if rollup is None:
        raise Refusal("no reading of the row's power has come yet")
    if rollup.power_w is None:
        raise Refusal(f"the row's power is not known ({rollup.coverage_ratio:.0%} of its nameplate is read)")
    if not (math.isfinite(rollup.power_w) and rollup.power_w > 0.0):
        raise Refusal(f"the row's power reads {rollup.power_w} W, which no running row draws")
    known_at = rollup.at if rollup.known_at is None else min(rollup.at, rollup.known_at)
    if abs(now - known_at) > need.freshness_ms:
        age, bound = _seconds(now - known_at), _seconds(need.freshness_ms)
        raise Refusal(f"the row's power was last known {age} ago, the bound is {bound}")
    if rollup.basis == "sum" and not rollup.coverage_ratio >= need.coverage_ratio:
        read, needed = f"{rollup.coverage_ratio:.0%}", f"{need.coverage_ratio:.0%}"
        raise Refusal(f"only {read} of the row's nameplate is read, {needed} are needed")
    return rollup.power_w / view.row.budget_w


def settings(view: View, policy: CappingPolicy, mode: str) -> tuple[Setting, ...]:
    """What `mode` asks of every host of the row: a ceiling under a lease, or the brake. The same tuple each
    time for the same row and policy."""
    key = (id(view.row), id(policy), mode)
    known = _SETTINGS.get(key)
    if known is None or known[0] is not view.row or known[1] is not policy:
        if len(_SETTINGS) >= _SETTINGS_KEPT:
            _SETTINGS.clear()
        known = _SETTINGS[key] = (view.row, policy, _settings(view, policy, mode))
    return known[2]


_SETTINGS: dict[tuple[int, int, str], tuple[Row, CappingPolicy, tuple[Setting, ...]]] = {}
"""What `settings` has worked out, with what it was worked out for."""

_SETTINGS_KEPT = 4096


def _settings(view: View, policy: CappingPolicy, mode: str) -> tuple[Setting, ...]:
    owner, brake = f"capping/{policy.variant}", mode == "B"
    direction: FailDirection = "hold" if brake else "safe_share"
    alike: dict[tuple[str, Priority, tuple[Path, ...]], tuple[int, Path]] = {}
    out = []
    for host in view.row.hosts:
        kind = (host.sku.name, host.priority, host.paths)
        if kind not in alike:
            mhz = clock_of(policy.clocks_of(host.sku), host.sku, mode, host.priority)
            alike[kind] = (mhz, policy.path_to(host, brake=brake))
        mhz, path = alike[kind]
        out.append(
            Setting(target=host.path, max_mhz=mhz, path=path, on_expiry=direction, brake=brake, owner=owner)
        )
    return tuple(out)


def landed(view: View, policy: CappingPolicy, now: Instant) -> bool:
    """Whether the low-priority step is in force: `landed_ratio` of the low-priority hosts were seen at
    or below their `low_t2`, said that they are at their safe share, were released by a person, or failed
    their retries."""
    low = [host for host in view.row.hosts if host.priority == "low"]
    return sum(not _waits(view, policy, now, host) for host in low) >= policy.landed_ratio * len(low)


def _waits(view: View, policy: CappingPolicy, now: Instant, host: Host) -> bool:
    if host.path in view.released:
        return False
    control = view.control(host.path)
    step, ceiling, asked = policy.clocks_of(host.sku).low_t2, control.loosest(now), control.lock.asked
    at_step = ceiling is not None and ceiling <= step
    at_share = control.lapsed and (asked is None or asked.max_mhz <= step)
    return not (at_step or at_share or gave_up(control, policy, now))


def gave_up(control: HostControl, policy: CappingPolicy, now: Instant) -> bool:
    """Whether a host's bounded retries are used up, and it was not seen to obey anything since."""
    if control.unanswered > policy.retries:
        return True
    asked = control.lock.asked
    return asked is not None and asked.attempt > policy.retries and (
        bool(asked.failed) or now >= asked.at + policy.answer_ms(asked.path, renewal=asked.renews)
    )  # fmt: skip


def _look(
    view: View,
    policy: CappingPolicy,
    now: Instant,
    mode: str,
    since: Instant,
    notes: dict[str, str],
    p: float,
    *,
    failover: bool,
) -> Look:
    """One look at known power; brings the policy's notes up to date."""
    assert view.rollup is not None  # known_p has seen it
    notes["known_at"] = str(now if view.rollup.known_at is None else min(now, view.rollup.known_at))
    calm_here = mode == "B" and p < policy.t2.leave and not failover
    if calm_here:
        notes.setdefault("calm_since", str(now))
    else:
        notes.pop("calm_since", None)
    if policy.switches.brake_release == "manual":
        calm = calm_here and view.resumed_at > since
    else:
        calm = calm_here and now - int(notes["calm_since"]) >= policy.switches.brake_calm_ms
    if calm:
        del notes["calm_since"]
    forecast = _forecast_p(view, policy, now)
    return Look(
        p=p,
        peak=p if forecast is None else max(p, forecast),
        landed=mode == "T2a" and _memo(view, "landed", lambda: str(landed(view, policy, now))) == "True",
        calm=calm,
        failover=failover,
        provided=float(notes["provided"]) if _on_its_way(view, policy, now, notes) else 0.0,
    )


def _on_its_way(view: View, policy: CappingPolicy, now: Instant, notes: dict[str, str]) -> bool:
    """Whether caps that a step up the ladder asked for are yet to be obeyed by more hosts than may lag."""
    if policy.variant != "proportional" or "provided" not in notes:
        return False
    return _memo(view, "arrived", lambda: str(_arrived(view, policy, now))) == "False"


def _arrived(view: View, policy: CappingPolicy, now: Instant) -> bool:
    obey = 0
    for host in view.row.hosts:
        control = view.control(host.path)
        asked = control.lock.asked
        settled = asked is None or asked.renews or gave_up(control, policy, now)
        obey += settled or host.path in view.released
    return obey >= policy.landed_ratio * len(view.row.hosts)


def _too_soon(view: View, policy: CappingPolicy, now: Instant, mode: str, notes: dict[str, str]) -> str:
    """Why the row may not ease by a step yet, as a clause; empty when it may.

    After an easing and after an outage the row is watched for one dwell: power that is low because
    hosts are still held down says nothing about the next step. For the same reason nothing eases
    while hosts are braked or at their safe shares, nor until the last of them has been back for a dwell.
    """
    if mode == "B":
        return ""
    dwell = policy.guardrails.dwell_ms
    for note, what in (("eased_at", "the last one"), ("outage_at", "the telemetry's outage")):
        if note in notes and now - int(notes[note]) < dwell:
            return f"; easing waits until {_seconds(dwell)} after {what}"
    controls = [view.control(host.path) for host in view.row.hosts if host.path not in view.released]
    coming = [control for control in controls if not gave_up(control, policy, now)]
    held = sum(control.braked or control.ceiling(now) is None for control in coming)
    if held:
        return f"; easing waits for {held} hosts still braked or at their safe shares"
    # A return counts from its command, which may take the path's latency to bite.
    wait = dwell + policy.answer_ms(policy.path)
    if any(control.returned_at and now - control.returned_at < wait for control in coming):
        return f"; easing waits until {_seconds(wait)} after the last host was let back"
    return ""


def _blind(
    view: View, policy: CappingPolicy, now: Instant, mode: str, notes: dict[str, str], *, braking: bool
) -> str:
    """The mode without a known power: never a looser one."""
    notes.pop("calm_since", None)
    if int(notes.setdefault("known_at", str(now))) > now:
        notes["known_at"] = str(now)
    if braking:
        return "B"
    age = now - int(notes["known_at"])
    safe = SAFE_MODE[policy.variant]
    if age > policy.hold_ms:
        notes["outage_at"] = str(now)
        if age > policy.safe_ms:
            return max(mode, safe, key=STRICTNESS.__getitem__)
        rollup = view.rollup
        if mode != "B" and rollup is not None and rollup.coverage_ratio >= BOUND_COVERAGE_RATIO:
            bound = Look(p=0.0, peak=rollup.upper_w / view.row.budget_w, landed=landed(view, policy, now))
            return max(mode, step(mode, bound, policy), key=STRICTNESS.__getitem__)
    return mode


def _forecast(view: View, policy: CappingPolicy, now: Instant) -> PeakForecast | None:
    """The forecast that this policy reads, where there is a fresh one."""
    forecast = view.forecast
    if policy.variant != "polca_forecast" or forecast is None or abs(now - forecast.at) > policy.hold_ms:
        return None
    return forecast


def _forecast_p(view: View, policy: CappingPolicy, now: Instant) -> float | None:
    """The forecast peak over the path's latency, as a share of the budget; None without a sound one.

    A fall-back forecast (its model stood aside) is calibrated too and counts like any other.
    """
    forecast = _forecast(view, policy, now)
    if forecast is None or not forecast.horizons_s or not forecast.quantiles:
        return None
    reach_s = policy.latency_ms.of(policy.path) / SECOND
    horizon = min((h for h in forecast.horizons_s if h >= reach_s), default=max(forecast.horizons_s))
    wanted = policy.forecast.quantile
    quantile = min((q for q in forecast.quantiles if q >= wanted), default=max(forecast.quantiles))
    peak_w = forecast.value(horizon, quantile)
    return peak_w / view.row.budget_w if math.isfinite(peak_w) and peak_w > 0.0 else None


def _shortfall_w(view: View, policy: CappingPolicy, mode: str, look: Look | None) -> float:
    """How far the row is above its limit with no step left: at its strictest caps above the threshold
    that led there, braked (or where a variant has no caps) above the brake's. Zero while power is unknown."""
    if look is None:
        return 0.0
    if mode == "B" or SAFE_MODE[policy.variant] == "U":
        limit = policy.brake
    elif mode == SAFE_MODE[policy.variant]:
        limit = _top_band(policy).enter
    else:
        return 0.0
    return max(0.0, (look.p - limit) * view.row.budget_w)


def _top_band(policy: CappingPolicy) -> Band:
    return policy.baseline if policy.variant.startswith("one_threshold") else policy.t2


def _because(
    view: View,
    policy: CappingPolicy,
    now: Instant,
    mode: str,
    look: Look | None,
    refusal: str,
    notes: dict[str, str],
    *,
    failover: bool,
) -> str:
    """The sentence that an operator reads at night: where the row is, and what follows."""
    if look is None:
        where = f"power unknown: {refusal}"
        age = now - int(notes["known_at"])
        if age > policy.safe_ms:
            where = f"ALARM, no power reading for {_seconds(age)}: {refusal}"
        doing = f"{_doing(view, policy, now, mode, notes)}; nothing is loosened and no lease is renewed"
    else:
        where = f"row at {look.p:.3f} of {view.row.budget_w / 1000:g} kW{_against(policy, mode, look)}"
        doing = _doing_now(view, policy, now, mode, notes) + _spike(view, policy, mode, look)
    return f"{'a UPS is failing over, ' if failover else ''}{where}: {doing}"


def _against(policy: CappingPolicy, mode: str, look: Look) -> str:
    """Which threshold speaks, as a clause."""
    seen = f", forecast to peak at {look.peak:.3f}" if look.peak > look.p else ""
    if policy.variant == "off":
        return ""
    if look.p > policy.brake:
        return f"{seen}, above the brake's {policy.brake:.3f}"
    bands = [("the threshold", policy.baseline)] if policy.variant.startswith("one_threshold") else (
        [] if policy.variant == "no_cap" else [("T2", policy.t2), ("T1", policy.t1)]
    )  # fmt: skip
    for name, band in bands:
        if look.peak > band.enter:
            return f"{seen}, above {name} {band.enter:.3f}"
        if look.peak >= band.leave and mode in ("T2a", "T2b", "B" if name == "T2" else "T1"):
            return f"{seen}, not below {band.leave:.3f} yet"
    return seen


def _doing_now(view: View, policy: CappingPolicy, now: Instant, mode: str, notes: dict[str, str]) -> str:
    """`_doing`, or what was said of a row whose hosts are as they were; but for the brake, which counts."""
    if mode == "B":
        return _doing(view, policy, now, mode, notes)
    return _memo(view, mode, lambda: _doing(view, policy, now, mode, notes))


def _memo(view: View, key: str, work: Callable[[], str]) -> str:
    """What `work` says, which goes by the row's hosts alone: asked once while they stand as they are."""
    if view.standing is None:
        return work()
    memo = view.standing.memo
    if key not in memo:
        memo[key] = work()
    return memo[key]


def _doing(view: View, policy: CappingPolicy, now: Instant, mode: str, notes: dict[str, str]) -> str:
    """What the mode asks, of how many hosts, and how many were seen to obey."""
    if mode == "U":
        return "every host may run at its highest clock"
    wishes = settings(view, policy, mode)
    groups: dict[Priority, list[Setting]] = {"low": [], "high": []}
    for host, wish in zip(view.row.hosts, wishes, strict=True):
        if host.path not in view.released:
            groups[host.priority].append(wish)
    if mode == "B":
        obey = _obey(view, now, wishes)
        words = f"power brake on all {len(view.row.hosts)} hosts ({obey})"
        if "calm_since" in notes:
            words += f"; calm for {_seconds(now - int(notes['calm_since']))}"
        return words
    parts = [
        f"{priority} priority ({len(group)} hosts) to {_clocks(group)} ({_obey(view, now, group)})"
        for priority, group in groups.items()
        if group and caps(mode, priority)
    ]
    if mode == "T2a" and policy.variant.startswith("polca") and groups["high"]:
        parts.append("high priority waits until that has landed")
    asked = [*groups["low"], *groups["high"]]
    silent = [wish.target for wish in asked if gave_up(view.control(wish.target), policy, now)]
    if silent:
        parts.append(f"not waited for after {policy.retries + 1} attempts: {_some(silent)}")
    return "; ".join(parts)


def _obey(view: View, now: Instant, wishes: Sequence[Setting]) -> str:
    count = 0
    for wish in wishes:
        ceiling = view.control(wish.target).loosest(now)
        count += ceiling is not None and ceiling <= wish.max_mhz
    return f"{count} of {len(wishes)} verified"


def _clocks(wishes: Sequence[Setting]) -> str:
    clocks = sorted({wish.max_mhz for wish in wishes})
    return "/".join(str(clock) for clock in clocks) + " MHz"


def _spike(view: View, policy: CappingPolicy, mode: str, look: Look) -> str:
    """What the worst rise within one out-of-band latency would come to, where that is past the budget."""
    if mode == "B" or policy.variant == "off":
        return ""
    additive = policy.switches.spike_model == "additive"
    over = (look.p + SPIKE_RATIO if additive else look.p * (1 + SPIKE_RATIO)) - 1.0
    if over <= 0.0:
        return ""
    how = f"+{SPIKE_RATIO:g}" if additive else f"×{1 + SPIKE_RATIO:g}"
    return f"; the worst 40 s spike ({how}) would pass the budget by {over * view.row.budget_w / 1000:.1f} kW"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _seconds(span: Span) -> str:
    return f"{span / SECOND:g} s"
