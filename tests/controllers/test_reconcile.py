"""Which commands go out, and which do not."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import msgspec
import pytest
from support.capped_row import ROW, SOURCE, T0, Loop, brake, capped_row, lock, reading, settled, word

from controllers.policy import DEFAULT_POLICY, CappingPolicy, Switches
from controllers.reconcile import loosens, reconcile
from controllers.view import fold
from schemas.commands import Brake, Command, LockClocks
from schemas.instants import HOUR, SECOND
from schemas.operators import ReleaseAll, Resume
from schemas.outcomes import Failed, Lapsed, Refused, Renewed, Verified

ROW4 = capped_row(2, 2)
HIGH, _, LOW, _ = (host.path for host in ROW4.hosts)
IN_BAND = CappingPolicy(path="in_band")


def running(policy: CappingPolicy = DEFAULT_POLICY) -> Loop:
    """A row whose hosts may run uncapped for longer than a test takes."""
    loop = Loop(ROW4, policy)
    grants = [lock(host.path, T0 - HOUR, 1410, path=policy.path, lease_ms=3 * HOUR) for host in ROW4.hosts]
    loop.state = fold(loop.state, [*grants, *(word(Verified, grant, T0 - HOUR) for grant in grants)])
    return loop


def ticks(loop: Loop, seconds: Iterable[int], p: float | None) -> list[Command]:
    """What goes out over these looks at `p`, unanswered."""
    instants = (T0 + t * SECOND for t in seconds)
    return [command for now in instants for command in loop.tick(now, [reading(ROW4, now, p)])[1]]


def sent(loop: Loop, t: float, p: float | None, host: str = LOW) -> list[tuple[float, str, int]]:
    now = T0 + int(t * SECOND)
    _, commands = loop.tick(now, [reading(ROW4, now, p)])
    return [(t, type(c).__name__, c.max_mhz) for c in mine(commands, host)]


def mine(commands: tuple[Command, ...], host: str) -> list[LockClocks | Brake]:
    return [c for c in commands if c.subject == host and isinstance(c, LockClocks | Brake)]


def test_a_command_carries_its_decision_as_cause_its_sentence_and_a_fenced_lease() -> None:
    loop = running()
    decision, commands = loop.tick(T0, [reading(ROW4, T0, 0.82)])
    (command,) = mine(commands, LOW)
    assert isinstance(command, LockClocks)
    assert command.cause == (decision.id, *decision.cause)
    assert command.because == decision.because
    assert (command.max_mhz, command.min_mhz, command.path) == (1275, None, "out_of_band")
    lease = command.lease
    assert (lease.epoch, lease.issued_at, lease.expires_at) == (1, T0, T0 + 90 * SECOND)
    assert lease.on_expiry == "safe_share"
    assert mine(commands, HIGH) == [], "what is in force as wished is left alone"


def test_ids_are_derived_so_the_same_look_gives_the_same_commands() -> None:
    first, second = running(), running()
    assert first.tick(T0, [reading(ROW4, T0, 0.82)]) == second.tick(T0, [reading(ROW4, T0, 0.82)])


def test_lock_range_pins_the_idle_clock_only_where_the_switch_says_so() -> None:
    loop = running(CappingPolicy(switches=Switches(lock_range="[f,f]")))
    _, commands = loop.tick(T0, [reading(ROW4, T0, 0.82)])
    assert [c.min_mhz for c in mine(commands, LOW) if isinstance(c, LockClocks)] == [1275]


def test_one_command_is_under_way_and_the_latest_wish_follows_once_it_is_settled() -> None:
    loop = running()
    assert sent(loop, 0, 0.82) == [(0, "LockClocks", 1275)]
    first = loop.commands[-1] if loop.commands[-1].subject == LOW else loop.commands[-2]
    assert [out for t in range(2, 20, 2) for out in sent(loop, t, 0.90)] == []
    loop.obeyed(T0 + 20 * SECOND, [first])
    assert sent(loop, 20, 0.90) == [(20, "LockClocks", 1110)]


def test_reissue_sends_the_latest_wish_at_once() -> None:
    loop = running(CappingPolicy(switches=Switches(inflight="reissue")))
    assert sent(loop, 0, 0.82) == [(0, "LockClocks", 1275)]
    assert [out for t in range(2, 8, 2) for out in sent(loop, t, 0.90)] == [(2, "LockClocks", 1110)]


def test_a_lost_command_is_asked_again_with_back_off_and_never_within_its_paths_latency() -> None:
    loop = running()
    out = [found for t in range(0, 1200, 2) for found in sent(loop, t, 0.82)]
    assert {name for _, name, _ in out} == {"LockClocks"}
    # Lost 45 s after it was asked; then after 80 s; then once per five minutes.
    assert [t for t, _, _ in out] == [0, 46, 126, 426, 726, 1026]
    assert [mhz for _, _, mhz in out] == [1275] * 6


def test_a_command_that_failed_at_once_still_waits_out_one_latency() -> None:
    loop = running()
    assert sent(loop, 0, 0.82) == [(0, "LockClocks", 1275)]
    (command,) = [c for c in loop.commands if c.subject == LOW]
    loop.obeyed(T0 + SECOND, [command], Refused)
    assert [out for t in range(2, 60, 2) for out in sent(loop, t, 0.82)] == [(40, "LockClocks", 1275)]

    loop = running(IN_BAND)
    assert sent(loop, 0, 0.82) == [(0, "LockClocks", 1275)]
    (command,) = [c for c in loop.commands if c.subject == LOW]
    loop.obeyed(T0 + SECOND, [command], Failed)
    assert [out for t in range(2, 6, 2) for out in sent(loop, t, 0.82)] == [(2, "LockClocks", 1275)]


def test_a_changed_wish_after_a_failure_goes_at_once() -> None:
    loop = running()
    sent(loop, 0, 0.82)
    (command,) = [c for c in loop.commands if c.subject == LOW]
    loop.obeyed(T0 + SECOND, [command], Failed)
    assert sent(loop, 2, 0.90) == [(2, "LockClocks", 1110)]


def test_a_brake_never_waits_behind_a_lock_that_is_under_way() -> None:
    loop = running()
    assert sent(loop, 0, 0.82) == [(0, "LockClocks", 1275)]
    assert sent(loop, 2, 1.01) == [(2, "Brake", 285)]
    out = [found for t in range(4, 120, 2) for found in sent(loop, t, 1.01)]
    assert {name for _, name, _ in out} == {"Brake"}, "no lock is sent while a brake is wished"
    # Lost 10 s after it was asked, then after 10, 20, 20 s …: a brake is never given up.
    assert [t for t, _, _ in out] == [12, 22, 42, 62, 82, 102]


def test_a_newer_lock_is_the_brakes_release() -> None:
    loop = running()
    _, commands = loop.tick(T0, [reading(ROW4, T0, 1.01)])
    assert len(commands) == 4
    for command in commands:
        assert isinstance(command, Brake)
        assert (command.path, command.lease.on_expiry) == ("brake", "hold")
    loop.obeyed(T0 + 5 * SECOND, commands)
    locks = [c for c in ticks(loop, range(6, 48, 2), 0.5) if isinstance(c, LockClocks)]
    # Calm since 6 s; the first wave is half of the row, high priority first.
    assert {(c.subject, c.at - T0, c.max_mhz) for c in locks} == {
        (host.path, 46 * SECOND, 1305) for host in ROW4.hosts if host.priority == "high"
    }
    assert loop.state.hosts[HIGH].braked
    loop.obeyed(T0 + 60 * SECOND, locks)
    assert not loop.state.hosts[HIGH].braked
    assert loop.state.hosts[LOW].braked


def test_leases_are_renewed_before_they_end() -> None:
    loop = Loop(ROW4, DEFAULT_POLICY)
    settled(loop)
    renewals = []
    for t in range(0, 300, 2):
        now = T0 + t * SECOND
        _, commands = loop.tick(now, [reading(ROW4, now, 0.5)])
        renewals += [c.at for c in mine(commands, LOW)]
        loop.obeyed(now, commands, Renewed)
        assert all(control.ceiling(now) == 1410 for control in loop.state.hosts.values())
    assert {later - earlier for earlier, later in pairwise(renewals)} == {46 * SECOND}


def test_an_unanswered_renewal_holds_no_tighter_wish_up() -> None:
    loop = running()
    for control in loop.state.hosts.values():
        assert control.lock.in_force is not None
        control.lock.in_force = msgspec.structs.replace(control.lock.in_force, expires_at=T0 + 44 * SECOND)
    assert sent(loop, 0, 0.5) == [(0, "LockClocks", 1410)]
    assert sent(loop, 2, 0.9) == [(2, "LockClocks", 1110)]


def test_an_unanswered_renewal_is_sent_again_before_the_lease_ends() -> None:
    loop = running()
    for control in loop.state.hosts.values():
        assert control.lock.in_force is not None
        control.lock.in_force = msgspec.structs.replace(control.lock.in_force, expires_at=T0 + 44 * SECOND)
    assert [t for t in range(0, 44, 2) if sent(loop, t, 0.5)] == [0, 40]


def test_on_unknown_power_nothing_is_renewed_and_only_tightening_goes_out() -> None:
    loop = running()
    for control in loop.state.hosts.values():
        assert control.lock.in_force is not None
        control.lock.in_force = msgspec.structs.replace(control.lock.in_force, expires_at=T0 + 80 * SECOND)
    sent(loop, 0, 0.5)
    out = ticks(loop, range(2, 200, 2), None)
    high = [host.path for host in ROW4.hosts if host.priority == "high"]
    assert {(c.subject in high, c.max_mhz) for c in out if isinstance(c, LockClocks)} == {
        (True, 1305),
        (False, 1110),
    }
    assert min(c.at for c in out) == T0 + 22 * SECOND
    assert all(c.at < T0 + 80 * SECOND for c in out), "a host that may be at its safe share is left there"


def test_a_host_whose_lease_ran_out_is_granted_anew_once_power_is_known() -> None:
    loop = running()
    loop.state.hosts[LOW].lock.in_force = None
    assert sent(loop, 0, 0.5) == [(0, "LockClocks", 1410)]


def test_released_hosts_get_no_command_until_they_are_resumed() -> None:
    loop = running()
    release = ReleaseAll(at=T0, source="cli", subject=LOW, by="ann", reason="service")
    wish, _ = running().tick(T0, [reading(ROW4, T0, 0.85)])
    decision, commands = loop.tick(T0, [release, reading(ROW4, T0, 0.85)])
    assert {c.subject for c in commands} == {c.target for c in wish.desired if c.max_mhz == 1275} - {LOW}
    assert f"{LOW}: not commanded, released by ann (service)" in decision.overruled
    assert "low priority (1 hosts)" in decision.because
    again = reconcile(wish, loop.look(T0), DEFAULT_POLICY, T0, epoch=1, source=SOURCE)
    assert all(c.subject != LOW for c in again)
    resume = Resume(at=T0 + SECOND, source="cli", subject=ROW, by="ann")
    _, commands = loop.tick(T0 + 2 * SECOND, [resume, reading(ROW4, T0 + 2 * SECOND, 0.85)])
    assert {c.subject for c in commands} == {LOW}


def test_a_brake_reaches_a_released_host_for_as_long_as_it_is_wished() -> None:
    """A release is about economy, a brake about the breaker."""
    loop = running()
    release = ReleaseAll(at=T0, source="cli", subject=LOW, by="ann", reason="service")
    decision, commands = loop.tick(T0, [release, reading(ROW4, T0, 1.2)])
    (stop,) = mine(commands, LOW)
    assert isinstance(stop, Brake)
    assert stop.lease.on_expiry == "safe_share", "it is nobody's to release, and ends by itself"
    assert {c.lease.on_expiry for c in mine(commands, HIGH)} == {"hold"}
    assert f"{LOW}: braked although released by ann (service), until the brake's lease ends" in (
        decision.overruled
    )
    loop.obeyed(T0, commands)
    renewed = []
    for t in range(2, 120, 2):
        now = T0 + t * SECOND
        _, commands = loop.tick(now, [reading(ROW4, now, 1.2)])
        loop.obeyed(now, commands, Renewed)
        renewed += [t for c in mine(commands, LOW) if isinstance(c, Brake)]
    assert renewed == [46, 92]
    for t in range(120, 400, 2):
        now = T0 + t * SECOND
        decision, commands = loop.tick(now, [reading(ROW4, now, 0.5)])
        assert not [c for c in mine(commands, LOW) if decision.mode != "B"]
    assert decision.mode != "B"


def test_what_tightens_is_sent_before_what_does_not() -> None:
    loop = running()
    loop.state.hosts[HIGH].lock.in_force = None  # at its safe share: to be granted anew
    _, commands = loop.tick(T0, [reading(ROW4, T0, 0.82)])
    assert [c.subject in (LOW, ROW4.hosts[3].path) for c in commands] == [True, True, False]


@pytest.mark.parametrize(
    ("ceiling", "mhz", "said"),
    [(1110, 1110, False), (1110, 1109, False), (1110, 1125, True), (None, 300, True)],
)
def test_loosening_is_judged_by_what_the_host_was_seen_to_obey(
    ceiling: int | None, mhz: int, said: bool
) -> None:
    loop = running()
    control = loop.state.hosts[LOW].lock
    assert control.in_force is not None
    control.in_force = None if ceiling is None else msgspec.structs.replace(control.in_force, max_mhz=ceiling)
    assert loosens(lock(LOW, T0, mhz), loop.look(T0)) is said
    assert not loosens(brake(LOW, T0), loop.look(T0))


def test_a_lapse_that_is_told_is_answered_by_a_new_grant_and_not_by_a_renewal() -> None:
    loop = running()
    held = loop.state.hosts[LOW].lock.in_force
    assert held is not None
    lapsed = word(Lapsed, msgspec.structs.replace(lock(LOW, T0, 1410), id=held.id), T0)
    _, commands = loop.tick(T0, [lapsed, reading(ROW4, T0, 0.5)])
    assert [c.max_mhz for c in mine(commands, LOW)] == [1410]
    assert loop.state.hosts[LOW].returned_at == T0
