"""Reconcile: the difference between what should be in force and what was seen to be, as commands.

Level-triggered: it looks at the whole row each time, so a command or an outcome that is lost, late
or repeated costs time and nothing else.

==============================================  ================================================
the host's control                              what is sent
==============================================  ================================================
in force as wished, lease long enough           nothing
in force as wished, lease below `renew_ms`      the same again with a fresh lease (no device write)
wished otherwise, nothing under way             the wish
wished otherwise, another wish under way        nothing until that is verified, failed or past its
                                                deadline (switch `inflight`: or the wish at once)
the wish itself under way                       nothing
the wish failed, or lost past its deadline      the wish again, after the path's latency doubled per
                                                attempt; once `retries` are used up, every
                                                `retry_slow_ms` (a brake goes on as before)
==============================================  ================================================

Clock lock and brake are two controls of a host, each with its own place under way, so that a brake
never waits behind a slow lock. An identical command therefore never follows within one latency of
its path (40 s out of band).

**How a brake is released.** There is no command for it: a `LockClocks` whose `at` is later than the
brake's is its release. The host's agent applies and verifies the lock first and lets go of the brake
then; a lock older than the brake never releases it, however late it lands. While a brake is wished,
no lock is sent.

**On unknown power** (a decision with a refusal) only tightening goes out: the brake, and locks below
a ceiling that the host was seen to obey. No lease is renewed, so a row that stays unknown falls to
its safe shares by itself.
"""

from __future__ import annotations

from controllers.policy import CappingPolicy
from controllers.view import Asked, HostControl, Standing, View
from schemas.commands import Brake, Command, Lease, LockClocks
from schemas.decisions import Decision, Setting
from schemas.instants import Instant, Span


def reconcile(
    decision: Decision, view: View, policy: CappingPolicy, now: Instant, *, epoch: int, source: str
) -> tuple[Command, ...]:
    """The commands that bring the row to `decision`: brakes first, then what tightens, then the rest,
    each in the decision's order. Released hosts get nothing but a brake; hosts it does not name, nothing."""
    still = view.standing
    if still is not None and decision.desired is still.desired and now < still.due:
        return ()
    ranked: list[tuple[int, Command]] = []
    for setting in decision.desired:
        if setting.target in view.released and not setting.brake:
            continue
        host = view.control(setting.target)
        if not _due(setting, host, policy, now, blind=bool(decision.refusal)):
            continue
        ceiling = host.ceiling(now)
        rank = 0 if setting.brake else 1 if ceiling is not None and setting.max_mhz < ceiling else 2
        ranked.append((rank, _command(setting, decision, policy, now, epoch=epoch, source=source)))
    return tuple(command for _, command in sorted(ranked, key=lambda pair: pair[0]))


def standing(decision: Decision, view: View, policy: CappingPolicy, now: Instant) -> Standing | None:
    """The row as one that stands as the decision wishes, where it does (see `Standing`); None elsewhere."""
    if view.pins or view.released or len(decision.desired) != len(view.row.hosts):
        return None
    due = until = now + policy.lease_ms
    settled = True
    for setting in decision.desired:
        host = view.control(setting.target)
        control, other = (host.brake, host.lock) if setting.brake else (host.lock, host.brake)
        held, asked = control.in_force, control.asked
        if other.asked is not None or (not setting.brake and other.in_force is not None):
            return None
        obeys = held is not None and held.max_mhz == setting.max_mhz
        if held is not None:
            if held.expires_at > now:
                until = min(until, held.expires_at)
            elif obeys or held.on_expiry == "hold":
                return None
        if asked is None:
            if held is None or not obeys:
                return None
            due = min(due, held.expires_at - policy.renew_ms)
        elif asked.failed or asked.attempt > policy.retries or asked.max_mhz != setting.max_mhz:
            return None
        else:
            if not (obeys and asked.renews):
                if setting.brake:
                    return None
                settled = False
            due = min(due, asked.at + _patience(asked, policy, braking=setting.brake))
    return Standing(decision.desired, due=due, until=until, settled=settled)


def loosens(command: Command, view: View) -> bool:
    """Whether a command lets its host run higher than it was seen to obey: a lock above its ceiling, over
    its brake, or where no ceiling is known. A renewal does not; nor does anything that is no lock."""
    if not isinstance(command, LockClocks):
        return False
    host = view.control(command.target)
    ceiling = host.ceiling(view.now)
    return host.braked or ceiling is None or command.max_mhz > ceiling


def _due(setting: Setting, host: HostControl, policy: CappingPolicy, now: Instant, *, blind: bool) -> bool:
    """Whether a command for this setting goes out at this look."""
    control = host.brake if setting.brake else host.lock
    held, asked = control.in_force, control.asked
    released = not setting.brake and host.braked
    as_wished = held is not None and held.max_mhz == setting.max_mhz and held.lives(now) and not released
    if blind:
        ceiling = host.ceiling(now)
        if not setting.brake and (ceiling is None or setting.max_mhz >= ceiling):
            return False
        if as_wished:
            return False
    if asked is not None and released and asked.at <= host.brake_at:
        asked = None  # asked before the brake: no wish to release it, and not waited for
    if asked is None:
        return not as_wished or held is None or held.expires_at - now < policy.renew_ms
    if asked.max_mhz == setting.max_mhz:
        return now >= asked.at + _patience(asked, policy, braking=setting.brake)
    under_way = not asked.failed and now < asked.at + policy.answer_ms(asked.path, renewal=asked.renews)
    return not under_way or asked.renews or policy.switches.inflight == "reissue"


def _patience(asked: Asked, policy: CappingPolicy, *, braking: bool) -> Span:
    """How long after an attempt the same wish may be asked again: its path's latency, doubled per
    attempt, and after silence never before its deadline. A brake is never given up."""
    latency, answer = policy.latency_ms.of(asked.path), policy.answer_ms(asked.path, renewal=asked.renews)
    if asked.renews:
        return max(latency, answer)
    if asked.attempt > policy.retries and not braking:
        return policy.retry_slow_ms
    pause: int = latency * 2 ** min(asked.attempt - 1, policy.retries)
    return pause if asked.failed else max(pause, answer)


def _command(
    setting: Setting, decision: Decision, policy: CappingPolicy, now: Instant, *, epoch: int, source: str
) -> Command:
    lease = Lease(epoch=epoch, issued_at=now, expires_at=now + policy.lease_ms, on_expiry=setting.on_expiry)
    cause = (decision.id, *decision.cause)
    if setting.brake:
        return Brake(
            at=now, source=source, subject=setting.target, cause=cause, lease=lease, because=decision.because,
            max_mhz=setting.max_mhz, path=setting.path,
        )  # fmt: skip
    return LockClocks(
        at=now, source=source, subject=setting.target, cause=cause, lease=lease, because=decision.because,
        max_mhz=setting.max_mhz, path=setting.path,
        min_mhz=setting.max_mhz if policy.switches.lock_range == "[f,f]" else None,
    )  # fmt: skip
