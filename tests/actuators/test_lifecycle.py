"""What a host's agent does with commands, leases and time, on boards in memory."""

import copy
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from support.agents import SHARE_MHZ, SHARE_W, T0, TTL, Failing, Hosted, brake, kinds, limit, lock
from support.boards import GPU_IS_LOST, Boards, Wiring, make_host

from actuators.gpu_nvml import NvmlActuator
from actuators.lifecycle import CHECK_MS, DEADLINES, RETRY_MAX_MS, HostAgent
from schemas.commands import Drain
from schemas.commands import Path as Way
from schemas.instants import MINUTE, SECOND
from schemas.outcomes import Failed, Lapsed, Outcome, Refused, Released, Verified

MAX_MHZ, MAX_W = 1410, 400.0
LEASE_END = TTL + SECOND
WIRINGS: tuple[Wiring, ...] = ("own", "shared")
either_wiring = pytest.mark.parametrize("wiring", WIRINGS)


def at_safe_share(stand: Hosted) -> bool:
    return set(stand.boards.clocks) == {SHARE_MHZ} and set(stand.boards.limits) == {SHARE_W}


def as_found(stand: Hosted, limit_w: float = MAX_W) -> bool:
    return set(stand.boards.clocks) == {MAX_MHZ} and set(stand.boards.limits) == {limit_w}


def found_w(stand: Hosted) -> set[float | None]:
    """The power limits that the agent would give back, W."""
    assert stand.agent.kept is not None
    return set(stand.agent.kept.found.limit_w)


@contextmanager
def a_full_disk() -> Iterator[None]:
    """No file of this process can grow: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---- a command's life ----


def test_a_host_without_a_lease_starts_at_its_safe_share() -> None:
    stand = Hosted()
    (lapsed,) = stand.start()
    assert at_safe_share(stand)
    assert isinstance(lapsed, Lapsed)
    assert lapsed.command == ""
    assert "no lease at start; safe share read back, 1110 MHz and 250 W" in lapsed.detail


def test_a_lock_is_verified_by_the_clock_read_back_with_its_effect_in_watts() -> None:
    stand = Hosted("out_of_band")
    stand.start()
    stand.wait(41 * SECOND)  # the share's own way is as slow
    permission = lock(MAX_MHZ, stand.now, path="out_of_band")
    assert kinds(stand.give(permission)) == ["Accepted"]
    assert kinds(stand.wait(41 * SECOND)) == ["Verified"]
    before_w = sum(map(stand.boards.power_w, stand.boards.gpus))
    cap = lock(1275, stand.now, path="out_of_band")
    assert kinds(stand.give(cap)) == ["Superseded", "Accepted"]
    assert stand.wait(39 * SECOND) == []  # written is not obeyed
    (verified,) = stand.wait(2 * SECOND)
    assert isinstance(verified, Verified)
    assert verified.command == cap.id
    assert verified.observed == 1275
    after_w = sum(map(stand.boards.power_w, stand.boards.gpus))
    assert verified.effect_w == pytest.approx(after_w - before_w, abs=0.01)
    assert after_w < before_w - 100


def test_a_permission_lifts_the_power_limit_of_the_safe_share() -> None:
    stand = Hosted()
    stand.start()
    stand.give(lock(1275, stand.now))
    assert set(stand.boards.clocks) == {1275}
    assert set(stand.boards.limits) == {MAX_W}


def test_the_safe_share_is_lifted_only_once_the_lock_is_written() -> None:
    stand = Hosted()
    stand.start()
    stand.boards.writes.clear()
    stand.give(lock(1275, stand.now))
    for gpu in (0, 1):
        assert [w[2] for w in stand.boards.writes if w[1] == gpu] == ["lock", "limit"]


def test_a_command_seen_twice_is_written_once_and_answered_once() -> None:
    stand = Hosted()
    stand.start()
    command = lock(1275, stand.now)
    stand.give(command)
    stand.boards.writes.clear()
    assert stand.give(command, command) == []
    assert stand.boards.writes == []


def test_renewal_replaces_the_lease_and_writes_nothing() -> None:
    stand = Hosted()
    stand.start()
    stand.give(lock(1275, stand.now))
    stand.wait(60 * SECOND)
    stand.boards.writes.clear()
    assert kinds(stand.give(lock(1275, stand.now))) == ["Renewed"]
    assert stand.wait(TTL - SECOND) == []  # well beyond the end of the first lease
    assert stand.boards.writes == []
    assert kinds(stand.wait(2 * SECOND)) == ["Lapsed"]


def test_a_repeat_in_new_words_of_what_is_on_its_way_is_not_written_again() -> None:
    stand = Hosted("out_of_band")
    stand.start()
    stand.wait(41 * SECOND)
    first = lock(1005, stand.now, path="out_of_band")
    stand.give(first)
    stand.wait(20 * SECOND)
    stand.boards.writes.clear()
    second = lock(1005, stand.now, path="out_of_band")
    superseded, accepted = stand.give(second)
    assert (superseded.command, accepted.command) == (first.id, second.id)
    assert stand.boards.writes == []
    (verified,) = stand.wait(21 * SECOND)
    assert (kinds([verified]), verified.command) == (["Verified"], second.id)


# ---- what a lease ends in ----


def test_a_permission_that_nobody_renews_ends_in_the_safe_share_within_a_second() -> None:
    stand = Hosted()
    stand.start()
    command = lock(MAX_MHZ, stand.now)
    stand.give(command)
    stand.wait(TTL - SECOND)
    assert as_found(stand)
    (lapsed,) = stand.wait(2 * SECOND)
    assert at_safe_share(stand)
    assert lapsed.at - command.lease.expires_at <= SECOND
    assert isinstance(lapsed, Lapsed)
    assert lapsed.command == command.id
    assert "the lease ended at" in lapsed.detail
    assert "safe share read back" in lapsed.detail


def test_an_economy_cap_that_runs_out_gives_back_exactly_what_was_found() -> None:
    stand = Hosted(limit_w=317.25)
    stand.start()
    command = lock(1005, stand.now, on_expiry="restore")
    stand.give(command)
    assert set(stand.boards.clocks) == {1005}
    lapsed = stand.wait(LEASE_END)[-1]
    assert as_found(stand, 317.25)
    assert (lapsed.command, kinds([lapsed])) == (command.id, ["Lapsed"])
    assert "given back as found, power limit 317.25 W and no clock lock" in lapsed.detail


def test_an_emergency_cap_is_held_after_its_lease() -> None:
    stand = Hosted()
    stand.start()
    stand.give(lock(1005, stand.now, on_expiry="hold"))
    (lapsed,) = stand.wait(LEASE_END)
    assert "held until a newer command" in lapsed.detail
    stand.wait(10 * MINUTE, every=5 * SECOND)
    assert set(stand.boards.clocks) == {1005}
    assert kinds(stand.give(lock(1005, stand.now))) == ["Renewed"]


def test_no_write_is_looser_than_what_was_found() -> None:
    stand = Hosted(limit_w=200.0)  # tighter than the safe share: somebody's own limit
    stand.start()
    assert set(stand.boards.limits) == {200.0}
    stand.give(lock(MAX_MHZ, stand.now))
    assert set(stand.boards.limits) == {200.0}
    stand.give(limit(300.0, stand.now + 1))
    assert set(stand.boards.limits) == {200.0}


def test_a_power_limit_takes_the_place_of_a_lock() -> None:
    stand = Hosted()
    stand.start()
    stand.give(lock(1005, stand.now))
    stand.boards.writes.clear()
    stand.wait(SECOND)
    assert kinds(stand.give(limit(330.0, stand.now))) == ["Superseded", "Accepted", "Verified"]
    assert set(stand.boards.limits) == {330.0}
    assert set(stand.boards.clocks) == {MAX_MHZ}
    assert [w[2] for w in stand.boards.writes if w[1] == 0] == ["limit", "unlock"]  # tighter before looser
    assert stand.wait(LEASE_END)[-1].detail.endswith("250 W a GPU")
    assert at_safe_share(stand)


def test_settings_changed_while_nothing_of_ours_was_on_the_host_are_what_is_found() -> None:
    stand = Hosted()
    stand.start()
    stand.give(lock(1005, stand.now, on_expiry="restore"))
    stand.wait(LEASE_END)
    stand.boards.gpus[1].limit_w["in_band"] = 350.0  # an operator, with nvidia-smi
    stand.give(lock(1005, stand.now, on_expiry="restore"))
    stand.wait(LEASE_END)
    assert stand.boards.limits == (MAX_W, 350.0)


def test_a_path_that_was_given_back_takes_no_part_in_what_follows() -> None:
    stand = Hosted("out_of_band", "brake", "in_band")
    stand.start()
    stand.give(lock(1005, stand.now, path="out_of_band", on_expiry="restore"))
    stand.wait(TTL + MINUTE)
    assert as_found(stand)
    stand.boards.writes.clear()
    stand.give(lock(1005, stand.now, path="brake", on_expiry="restore"))
    stand.wait(MINUTE)
    assert {write[0] for write in stand.boards.writes} == {"brake"}


@either_wiring
def test_a_limit_of_ours_that_lands_after_the_give_back_is_not_what_was_found(wiring: Wiring) -> None:
    stand = Hosted("in_band", "out_of_band", limit_w=375.25, wiring=wiring)
    stand.start()
    stand.give(limit(350.0, stand.now, path="out_of_band"))
    stand.wait(20 * SECOND)
    (released,) = stand.agent.release_all(stand.now)  # read back in band: the slow path has ours in hand
    assert isinstance(released, Released)
    stand.wait(25 * SECOND)
    assert stand.boards.limits == (350.0, 350.0)
    stand.give(lock(900, stand.now))
    assert found_w(stand) == {375.25}
    stand.agent.release_all(stand.now)
    stand.wait(MINUTE)
    assert as_found(stand, 375.25)


@pytest.mark.parametrize("a_permission_first", [False, True])
def test_a_limit_of_ours_under_way_over_a_restart_is_not_what_was_found(
    a_permission_first: bool, tmp_path: Path
) -> None:
    file = tmp_path / "h01.json"
    stand = Hosted("in_band", "out_of_band", limit_w=375.25, wiring="shared", state_file=file)
    stand.start()
    stand.give(limit(350.0, stand.now, path="out_of_band"))
    stand.wait(20 * SECOND)
    if a_permission_first:  # which leaves nothing of ours on the device, once it is all there
        stand.give(lock(MAX_MHZ, stand.now))
    stand.agent.release_all(stand.now)
    stand.wait(21 * SECOND)
    assert stand.boards.limits == (350.0, 350.0)
    stand.restart()
    assert found_w(stand) == {375.25}


def test_a_gpu_silent_while_settings_are_looked_at_keeps_what_was_found_on_it_before() -> None:
    stand = Hosted(limit_w=375.5)
    stand.start()
    stand.agent.release_all(stand.now)
    stand.boards.gpus[0].refusal = 999
    stand.give(lock(1005, stand.now))
    stand.boards.gpus[0].refusal = 0
    stand.agent.release_all(stand.now)
    assert as_found(stand, 375.5)


@either_wiring
def test_the_safe_share_leaves_nothing_tighter_behind_on_another_path(wiring: Wiring) -> None:
    stand = Hosted("out_of_band", "in_band", wiring=wiring)
    stand.start()
    stand.give(lock(900, stand.now, path="out_of_band"))
    stand.wait(41 * SECOND)
    assert set(stand.boards.clocks) == {900}
    stand.wait(TTL + 41 * SECOND)
    assert at_safe_share(stand)


def test_a_released_host_is_as_it_was_found_and_stays_so() -> None:
    stand = Hosted()
    stand.start()
    command = lock(1005, stand.now)
    stand.give(command)
    (released,) = stand.agent.release_all(stand.now)
    assert as_found(stand)
    assert isinstance(released, Released)
    assert released.command == command.id
    assert stand.wait(LEASE_END) == []
    assert as_found(stand)


def test_an_agent_that_stops_leaves_no_permission_behind() -> None:
    stand = Hosted()
    stand.start()
    stand.give(lock(MAX_MHZ, stand.now))
    (lapsed,) = stand.agent.stand_down(stand.now)
    assert at_safe_share(stand)
    assert lapsed.detail.startswith("the agent stands down")


# ---- fencing, order, expiry ----


def test_a_lower_epoch_is_fenced_and_a_higher_one_takes_over() -> None:
    stand = Hosted()
    stand.start()
    stand.give(lock(1275, stand.now, epoch=2))
    stand.boards.writes.clear()
    (refused,) = stand.give(lock(MAX_MHZ, stand.now + 1, epoch=1))
    assert isinstance(refused, Refused)
    assert refused.detail == "epoch 1 is fenced: 2 has been seen"
    assert (refused.epoch, refused.fenced_by) == (1, 2)
    assert stand.boards.writes == []
    # The new controller's clock may be behind the old one's.
    assert kinds(stand.give(lock(1005, stand.now - 30 * SECOND, epoch=3))) == [
        "Superseded",
        "Accepted",
        "Verified",
    ]


def test_a_controller_is_fenced_by_a_newer_one_whose_command_was_refused(tmp_path: Path) -> None:
    stand = Hosted("in_band", "brake", state_file=tmp_path / "h01.json")
    stand.start()
    stand.give(brake(stand.now, epoch=4))
    (refused,) = stand.give(limit(150.0, stand.now + 1, epoch=5))
    assert "only a clock lock releases it" in refused.detail
    (fenced,) = stand.give(lock(MAX_MHZ, stand.now + 2, epoch=4))
    assert fenced.detail == "epoch 4 is fenced: 5 has been seen", "else it would release the brake"
    stand.restart()
    (fenced,) = stand.give(lock(MAX_MHZ, stand.now + 3, epoch=4))
    assert isinstance(fenced, Refused)
    assert fenced.fenced_by == 5


def test_a_command_that_comes_after_its_lease_is_refused() -> None:
    stand = Hosted()
    stand.start()
    (refused,) = stand.give(lock(MAX_MHZ, stand.now - TTL))
    assert "expired on arrival" in refused.detail
    assert at_safe_share(stand)


def test_a_brake_is_taken_by_a_host_whose_clock_is_ahead() -> None:
    stand = Hosted("in_band", "brake")
    stand.start()
    stand.give(lock(MAX_MHZ, stand.now - 2 * MINUTE, ttl=10 * MINUTE))
    pulled = brake(stand.now - 2 * MINUTE + 1)  # by the controller's clock
    assert pulled.lease.expires_at < stand.now
    assert kinds(stand.give(pulled)) == ["Superseded", "Accepted"]
    assert kinds(stand.wait(6 * SECOND)) == ["Verified"]
    assert set(stand.boards.clocks) == {285}
    older = brake(stand.now - 3 * MINUTE, max_mhz=600)
    assert "issued before" in stand.give(older)[0].detail
    stand.wait(LEASE_END)
    assert kinds(stand.said[-1:]) == ["Lapsed"]
    assert "held until a newer command" in stand.said[-1].detail
    assert set(stand.boards.clocks) == {285}


def test_what_is_held_after_its_lease_comes_too_late_only_to_loosen() -> None:
    stand = Hosted()
    stand.start()
    late = stand.now - 2 * MINUTE
    assert "expired on arrival" in stand.give(lock(MAX_MHZ, late, on_expiry="hold"))[0].detail
    assert at_safe_share(stand)
    assert kinds(stand.give(lock(900, late + 1, on_expiry="hold"))) == ["Accepted", "Verified"]


def test_a_late_message_does_not_undo_a_newer_one() -> None:
    stand = Hosted()
    stand.start()
    newer = lock(1005, stand.now)
    stand.give(newer)
    (refused,) = stand.give(lock(MAX_MHZ, stand.now - 4 * SECOND))
    assert refused.detail == f"issued before {newer.id}, which arrived before it"
    assert set(stand.boards.clocks) == {1005}


def test_what_an_agent_does_not_keep_or_offer_is_refused_in_words() -> None:
    stand = Hosted()
    stand.start()
    stray, by_bmc = lock(1005, T0, subject="ams1/row-a/r01/h02"), lock(1005, T0, path="out_of_band")
    drain = Drain(at=T0, source="x", subject=stand.host.path, lease=stray.lease, grace_s=1.0)
    details = [outcome.detail for outcome in stand.give(stray, by_bmc, drain)]
    assert details == [
        "this agent keeps ams1/row-a/r01/h01, not ams1/row-a/r01/h02",
        "ams1/row-a/r01/h01 offers in_band, not out_of_band",
        "a GPU host takes LockClocks, LimitPower and Brake, not Drain",
    ]
    assert at_safe_share(stand)


def test_a_limit_that_a_board_does_not_take_is_refused_and_changes_nothing() -> None:
    stand = Hosted()
    stand.start()
    held = lock(1275, stand.now)
    stand.give(held)
    stand.boards.writes.clear()
    (refused,) = stand.give(limit(90.0, stand.now + 1))
    assert isinstance(refused, Refused)
    assert "takes power limits from 100 to 400 W, not 90 W: nothing was written" in refused.detail
    assert stand.boards.writes == []
    (lapsed,) = stand.wait(LEASE_END)  # the lease of the lock was not touched
    assert lapsed.command == held.id


def test_a_limit_refused_only_when_the_boards_answer_again_keeps_no_host_as_the_looser_lock_left_it() -> None:
    stand = Hosted()
    stand.start()
    stand.give(lock(MAX_MHZ, stand.now))
    for board in stand.boards.gpus:
        board.refusal = GPU_IS_LOST
    stand.wait(CHECK_MS)  # the agent has no handle of them any more
    never = limit(90.0, stand.now, on_expiry="hold")
    stand.give(never)
    stand.wait(SECOND)
    for board in stand.boards.gpus:
        board.refusal = 0
    refused, lapsed = stand.wait(RETRY_MAX_MS)
    assert (refused.command, lapsed.command) == (never.id, never.id)
    assert isinstance(refused, Refused)
    assert "takes power limits from 100 to 400 W, not 90 W: nothing was written" in refused.detail
    assert "it was refused; safe share read back" in lapsed.detail
    assert at_safe_share(stand)


# ---- the brake ----


def braked(wiring: Wiring = "own") -> Hosted:
    """A host that runs uncapped, on whose slow path a lock is outstanding as the brake is pulled."""
    stand = Hosted("out_of_band", "brake", "in_band", wiring=wiring)
    stand.start()
    stand.give(lock(MAX_MHZ, stand.now, path="out_of_band"))
    stand.wait(41 * SECOND)
    stand.give(lock(1275, stand.now, path="out_of_band"))
    stand.wait(10 * SECOND)
    return stand


@either_wiring
def test_a_brake_goes_at_once_past_a_lock_that_is_outstanding(wiring: Wiring) -> None:
    stand = braked(wiring)
    pulled = brake(stand.now)
    superseded, accepted = stand.give(pulled)
    assert kinds([superseded, accepted]) == ["Superseded", "Accepted"]
    assert accepted.command == pulled.id
    (verified,) = stand.wait(6 * SECOND)
    assert set(stand.boards.clocks) == {285}  # 288 MHz, on the board's grid of clocks
    assert (kinds([verified]), verified.command) == (["Verified"], pulled.id)


def test_a_brake_in_the_same_batch_goes_first_and_a_lock_as_old_does_not_release_it() -> None:
    stand = braked()
    outcomes = stand.give(lock(1110, stand.now, path="out_of_band"), brake(stand.now))
    assert kinds(outcomes) == ["Superseded", "Refused", "Accepted"]
    assert "not newer than brake" in outcomes[1].detail


def test_a_brake_is_written_before_anything_is_read() -> None:
    stand = braked()
    line = stand.intercept("brake", on="never")
    keeper = stand.intercept("in_band", on="never")
    stand.agent.release_all(stand.now)
    stand.wait(MINUTE)
    line.calls.clear()
    keeper.calls.clear()
    stand.give(brake(stand.now))
    assert line.calls == ["apply", "verify"]
    assert keeper.calls == ["inspect"]


def test_a_device_that_does_not_answer_is_written_before_it_is_read() -> None:
    stand = Hosted()
    in_band = stand.intercept("in_band", on="verify")
    stand.start()
    stand.give(lock(1275, stand.now))
    in_band.failing = True
    stand.wait(CHECK_MS + SECOND)
    in_band.calls.clear()
    stand.give(lock(900, stand.now))
    assert in_band.calls == ["apply", "verify"]
    assert set(stand.boards.clocks) == {900}


def test_a_slow_path_is_written_before_it_is_read() -> None:
    stand = Hosted("out_of_band")
    out_of_band = stand.intercept("out_of_band", on="never")
    stand.start()
    stand.wait(41 * SECOND)
    out_of_band.calls.clear()
    stand.give(lock(900, stand.now, path="out_of_band"))
    assert out_of_band.calls == ["apply", "verify"]


@either_wiring
def test_a_brake_yields_to_a_newer_lock_and_the_clock_never_passes_it(wiring: Wiring) -> None:
    stand = braked(wiring)
    pulled = brake(stand.now)
    stand.give(pulled)
    stand.wait(60 * SECOND)
    newer = lock(1110, stand.now, path="out_of_band")
    outcomes = stand.give(newer)
    highest = 0.0
    for _ in range(60):
        outcomes += stand.wait(SECOND)
        highest = max(highest, *stand.boards.clocks)
    assert highest == 1110  # also while the slow path still held an older, looser lock
    assert set(stand.boards.clocks) == {1110}
    (released,) = [outcome for outcome in outcomes if isinstance(outcome, Released)]
    assert released.command == pulled.id
    assert newer.id in released.detail


def test_a_brake_is_held_by_its_own_path_alone() -> None:
    stand = braked()
    stand.boards.writes.clear()
    stand.give(brake(stand.now))
    stand.wait(10 * SECOND)
    assert {write[0] for write in stand.boards.writes} == {"brake"}


@either_wiring
def test_a_brake_outlives_its_lease(wiring: Wiring) -> None:
    stand = braked(wiring)
    stand.give(brake(stand.now))
    lapsed = stand.wait(LEASE_END)[-1]
    assert "held until a newer command" in lapsed.detail
    stand.wait(5 * MINUTE, every=SECOND)
    assert set(stand.boards.clocks) == {285}


@either_wiring
def test_a_lock_never_read_back_does_not_release_the_brake_when_it_lapses(wiring: Wiring) -> None:
    stand = Hosted("out_of_band", "brake", "in_band", wiring=wiring)
    out_of_band = stand.intercept("out_of_band", on="verify")
    stand.start()
    pulled = brake(stand.now)
    stand.give(pulled)
    stand.wait(10 * SECOND)
    out_of_band.failing = True
    stand.give(lock(1110, stand.now, path="out_of_band"))
    failed, lapsed, engaged_again, verified = stand.wait(LEASE_END + 10 * SECOND)
    assert kinds([failed, lapsed]) == ["Failed", "Lapsed"]
    assert f"brake {pulled.id} is held" in lapsed.detail
    assert engaged_again.command == verified.command == pulled.id
    assert engaged_again.detail == "engaged again"
    assert set(stand.boards.clocks) == {285}


@either_wiring
@pytest.mark.parametrize("released_to", ["what was found", "its safe share"])
def test_a_brake_that_a_person_released_is_not_engaged_again_though_the_device_was_deaf(
    released_to: str, wiring: Wiring
) -> None:
    stand = Hosted("in_band", "brake", wiring=wiring)
    stand.start()
    stand.give(limit(330.0, stand.now))
    stand.boards.gpus[0].deaf = True
    pulled = brake(stand.now + 1)
    stand.give(pulled)
    stand.wait(SECOND)
    stand.give(lock(900, stand.now))
    release = stand.agent.release_all if released_to == "what was found" else stand.agent.fall_back
    assert release(stand.now) == []  # it was not read back, and cannot be said to be so
    stand.wait(SECOND)
    said = stand.give(limit(150.0, stand.now))  # only a clock lock may follow a brake that is engaged
    assert kinds(said) == ["Lapsed", "Released", "Accepted"]
    assert said[1].command == pulled.id
    assert "brake given up" in said[1].detail
    assert f"came before {released_to.replace('its', 'the')} was read back" in said[1].detail
    stand.wait(SECOND)
    stand.give(lock(900, stand.now))
    stand.boards.gpus[0].deaf = False
    stand.wait(LEASE_END + MINUTE)
    assert at_safe_share(stand)


def test_only_a_lock_releases_the_brake() -> None:
    stand = braked()
    pulled = brake(stand.now)
    stand.give(pulled)
    (refused,) = stand.give(limit(300.0, stand.now + 1))
    assert refused.detail == f"brake {pulled.id} is engaged, and only a clock lock releases it"


@either_wiring
def test_a_looser_permission_frees_every_path_of_what_an_earlier_one_left(wiring: Wiring) -> None:
    stand = braked(wiring)
    stand.give(brake(stand.now))
    stand.wait(6 * SECOND)
    stand.give(lock(1110, stand.now, path="out_of_band"))
    stand.wait(45 * SECOND)
    stand.give(lock(MAX_MHZ, stand.now, path="out_of_band"))
    stand.wait(45 * SECOND)
    assert as_found(stand)


# ---- when the device does not obey ----


def test_a_lock_never_read_back_fails_at_its_deadline_and_its_lease_still_counts() -> None:
    stand = Hosted()
    stand.start()
    stand.give(lock(MAX_MHZ, stand.now))
    for board in stand.boards.gpus:
        board.deaf = True
    command = lock(1005, stand.now + 1)
    stand.give(command)
    (failed,) = stand.wait(DEADLINES["in_band"] + SECOND)
    assert isinstance(failed, Failed)
    assert failed.command == command.id
    assert "GPU-0) reads 1410 MHz" in failed.detail
    for board in stand.boards.gpus:
        board.deaf = False
    assert stand.wait(LEASE_END)[-1].command == command.id
    assert at_safe_share(stand)


def test_a_lock_seen_after_its_deadline_is_verified_late() -> None:
    stand = Hosted("out_of_band", latencies={"out_of_band": 55 * SECOND})
    stand.start()
    stand.wait(60 * SECOND)
    stand.give(lock(1005, stand.now, path="out_of_band"))
    assert kinds(stand.wait(70 * SECOND)) == ["Failed", "Verified"]


def test_a_command_that_failed_is_tried_on_while_its_lease_counts_and_told_once() -> None:
    stand = Hosted()
    stand.start()
    for board in stand.boards.gpus:
        board.deaf = True
    command = lock(1005, stand.now, ttl=5 * MINUTE)
    stand.give(command)
    assert kinds(stand.wait(MINUTE)) == ["Failed"]
    for board in stand.boards.gpus:
        board.deaf = False
    (verified,) = stand.wait(CHECK_MS + SECOND)
    assert (kinds([verified]), verified.command) == (["Verified"], command.id)
    assert set(stand.boards.clocks) == {1005}


def test_a_command_that_takes_over_what_is_tried_on_fails_in_its_own_name() -> None:
    stand = Hosted()
    stand.start()
    for board in stand.boards.gpus:
        board.deaf = True
    first = lock(1005, stand.now, ttl=5 * MINUTE)
    stand.give(first)
    assert kinds(stand.wait(4 * SECOND)) == ["Failed"]
    while not stand.agent.pending:
        stand.wait(250)
    again = lock(1005, stand.now, ttl=5 * MINUTE)
    said = [*stand.give(again), *stand.wait(MINUTE)]
    assert [(type(word).__name__, word.command) for word in said] == [
        ("Superseded", first.id),
        ("Accepted", again.id),
        ("Failed", again.id),
    ]


def test_locks_that_cannot_be_written_keep_no_host_running_longer_than_the_looser_one_let_it() -> None:
    stand = Hosted("in_band", "out_of_band")
    bmc = stand.intercept("out_of_band", on="apply")
    stand.start()
    began = stand.now
    stand.give(lock(1410, stand.now, path="out_of_band"))
    stand.wait(45 * SECOND)
    assert set(stand.boards.clocks) == {1410}
    bmc.failing = True
    said: list[Outcome] = []
    for mhz in (1275, 1005, 990):  # each under a lease of its own
        said += stand.give(lock(mhz, stand.now, path="out_of_band"))
        said += stand.wait(20 * SECOND)
    (lapsed,) = (word for word in said if isinstance(word, Lapsed))
    assert lapsed.at - began == pytest.approx(TTL, abs=SECOND)
    assert "the lease of the looser lock before it ended" in lapsed.detail
    assert set(stand.boards.clocks) == {SHARE_MHZ}


def test_a_tighter_lock_under_way_gives_no_more_of_the_looser_ones_lease() -> None:
    stand = Hosted("in_band", "out_of_band")
    stand.start()
    began = stand.now
    stand.give(lock(1410, stand.now, path="out_of_band"))
    stand.wait(60 * SECOND)
    said = [*stand.give(lock(1275, stand.now, path="out_of_band")), *stand.wait(60 * SECOND)]
    assert kinds(said) == ["Superseded", "Accepted", "Lapsed"]
    assert said[-1].at - began == pytest.approx(TTL, abs=SECOND)
    assert set(stand.boards.clocks) == {SHARE_MHZ}, "the tighter lock, landed late, is looser than the share"


def test_a_tighter_lock_lands_in_time_where_the_looser_one_was_renewed_in_time() -> None:
    stand = Hosted("in_band", "out_of_band")
    stand.start()
    stand.give(lock(1410, stand.now, path="out_of_band"))
    stand.wait(46 * SECOND)
    stand.give(lock(1410, stand.now, path="out_of_band"))
    stand.wait(44 * SECOND)
    said = [*stand.give(lock(1275, stand.now, path="out_of_band")), *stand.wait(60 * SECOND)]
    assert kinds(said) == ["Superseded", "Accepted", "Verified"]
    assert set(stand.boards.clocks) == {1275}


def test_a_lock_wrongly_taken_for_in_force_leaves_what_is_left_of_the_lease_before() -> None:
    """At rest a board reads as if it were locked. When it works, what really stands shows."""
    stand = Hosted("in_band", "out_of_band")
    stand.start()
    began = stand.now
    stand.give(lock(1410, stand.now, path="out_of_band"))
    stand.wait(45 * SECOND)
    stand.give(lock(1275, stand.now, path="out_of_band"))
    stand.wait(42 * SECOND)
    assert set(stand.boards.clocks) == {1275}
    stand.boards.reload_driver()  # as if it had never been so
    said = stand.wait(60 * SECOND)
    lapsed = next(word for word in said if isinstance(word, Lapsed))
    assert "the lease of the looser lock before it ended" in lapsed.detail
    assert lapsed.at - began <= TTL + 10 * SECOND
    assert set(stand.boards.clocks) == {SHARE_MHZ}


def test_a_looser_lock_that_cannot_be_written_leaves_the_host_at_its_tighter_one() -> None:
    stand = Hosted("in_band", "out_of_band")
    bmc = stand.intercept("out_of_band", on="apply")
    stand.start()
    stand.give(lock(1005, stand.now, path="out_of_band"))
    stand.wait(45 * SECOND)
    bmc.failing = True
    stand.give(lock(1410, stand.now, path="out_of_band", ttl=5 * MINUTE))
    assert "Lapsed" not in kinds(stand.wait(2 * MINUTE))
    assert set(stand.boards.clocks) == {1005}


def test_a_write_that_fails_is_tried_again_until_its_deadline() -> None:
    stand = Hosted()
    stand.start()
    stand.boards.gpus[1].refusal = 999
    command = lock(1275, stand.now)
    assert stand.give(command) == []
    assert stand.boards.gpus[0].clock == 1275  # one GPU in trouble does not keep the other uncapped
    stand.boards.gpus[1].refusal = 0
    assert kinds(stand.wait(SECOND)) == ["Accepted", "Verified"]
    assert set(stand.boards.clocks) == {1275}


def test_a_lost_gpu_leaves_a_command_unknown_then_failed() -> None:
    stand = Hosted()
    stand.start()
    stand.boards.gpus[1].refusal = GPU_IS_LOST
    stand.give(lock(1005, stand.now))
    (failed,) = stand.wait(4 * SECOND)
    assert isinstance(failed, Failed)
    assert "gpu1 (GPU-1): GPU is lost" in failed.detail or "gpu1: GPU is lost" in failed.detail
    assert stand.boards.gpus[0].clock == 1005


def test_without_permission_a_command_fails_at_once_and_says_what_to_do() -> None:
    stand = Hosted()
    stand.start()
    for board in stand.boards.gpus:
        board.denied = True
    (failed,) = stand.give(lock(1005, stand.now))
    assert isinstance(failed, Failed)
    assert "needs root: run the actuator unit as root or grant CAP_SYS_ADMIN" in failed.detail


def test_the_safe_share_is_tried_until_it_is_read_back_and_its_failure_is_told_once() -> None:
    stand = Hosted()
    in_band = stand.intercept("in_band", on="fall_back")
    stand.start()
    command = lock(MAX_MHZ, stand.now)
    stand.give(command)
    in_band.failing = True
    (failed,) = stand.wait(3 * MINUTE)
    assert isinstance(failed, Failed)
    assert failed.command == command.id
    assert "the safe share is not in force and is tried on: fall_back fails" in failed.detail
    in_band.failing = False
    (lapsed,) = stand.wait(3 * SECOND)
    assert (kinds([lapsed]), lapsed.command) == (["Lapsed"], command.id)
    assert at_safe_share(stand)


def test_a_share_that_was_written_and_does_not_hold_is_written_again() -> None:
    stand = Hosted()
    stand.start()
    stand.give(lock(MAX_MHZ, stand.now))
    stand.boards.gpus[1].deaf = True
    (failed,) = stand.wait(LEASE_END + 10 * SECOND)
    assert isinstance(failed, Failed)
    assert "GPU-1) reads 1410 MHz" in failed.detail
    stand.boards.gpus[1].deaf = False
    assert kinds(stand.wait(4 * SECOND)) == ["Lapsed"]
    assert at_safe_share(stand)


def test_what_could_not_be_given_back_is_named_and_the_rest_is_given_back() -> None:
    stand = Hosted()
    stand.start()
    stand.give(lock(1005, stand.now))
    stand.boards.gpus[0].refusal = 999
    (failed,) = stand.agent.release_all(stand.now)
    assert isinstance(failed, Failed)
    assert "gpu0" in failed.detail
    assert "gpu1" not in failed.detail
    assert stand.boards.gpus[1].clock == MAX_MHZ
    stand.boards.gpus[0].refusal = 0
    assert kinds(stand.wait(3 * SECOND)) == ["Released"]
    assert as_found(stand)


def test_a_lock_lost_in_a_driver_reload_is_noticed_and_written_again() -> None:
    stand = Hosted()
    stand.start()
    command = lock(1005, stand.now)
    stand.give(command)
    stand.boards.reload_driver()
    assert set(stand.boards.clocks) == {MAX_MHZ}
    accepted, verified = stand.wait(CHECK_MS + SECOND)
    assert set(stand.boards.clocks) == {1005}
    assert accepted.command == verified.command == command.id
    assert accepted.detail.startswith("lost, and written again: ")
    assert "reads 1410 MHz" in accepted.detail


def test_a_safe_share_lost_in_a_driver_reload_is_written_again() -> None:
    stand = Hosted()
    stand.start()
    stand.boards.reload_driver()
    (lapsed,) = stand.wait(CHECK_MS + SECOND)
    assert at_safe_share(stand)
    assert lapsed.detail.startswith("lost, and written again: ")


def test_an_idle_gpu_proves_no_lock_before_the_slow_path_must_have_landed() -> None:
    """A GPU at rest reads below any lock, also below one that is still on its way."""
    stand = Hosted("out_of_band", "in_band")
    stand.start()
    stand.give(lock(MAX_MHZ, stand.now, path="out_of_band"))
    stand.wait(41 * SECOND)
    for board in stand.boards.gpus:
        board.busy = False
    assert kinds(stand.give(lock(1005, stand.now, path="out_of_band"))) == ["Superseded", "Accepted"]
    assert stand.wait(39 * SECOND) == []
    assert kinds(stand.wait(2 * SECOND)) == ["Verified"]
    for board in stand.boards.gpus:
        board.busy = True
    assert stand.wait(40 * SECOND) == []


def test_a_host_whose_driver_is_away_is_taken_up_when_it_comes_back() -> None:
    stand = Hosted()
    stand.boards.gpus[0].refusal = 9
    stand.boards.gpus[1].refusal = 9
    (failed,) = stand.start()
    assert "the settings in force cannot be read" in failed.detail
    (refused,) = stand.give(lock(1005, stand.now))
    assert isinstance(refused, Refused)
    stand.boards.gpus[0].refusal = 0
    stand.boards.gpus[1].refusal = 0
    assert kinds(stand.wait(3 * SECOND)) == ["Lapsed"]
    assert at_safe_share(stand)


# ---- a path that cannot be read, or not be written ----


def unread(*paths: Way) -> Hosted:
    """A host of which nothing is known and of which `paths` cannot be read."""
    stand = Hosted("in_band", "out_of_band", "brake")
    for path in paths:
        stand.intercept(path, on="inspect").failing = True
    return stand


def test_a_host_whose_driver_hangs_at_a_fresh_start_is_kept_by_its_other_paths() -> None:
    stand = unread("in_band")
    stand.intercept("in_band", on="fall_back").failing = True
    failed = stand.start()[0]
    assert "the settings in force cannot be read: inspect fails" in failed.detail
    outcomes = stand.wait(45 * SECOND)
    assert kinds(outcomes)[-1] == "Lapsed"  # by the controller in the machine
    assert at_safe_share(stand)
    assert kinds(stand.give(brake(stand.now))) == ["Accepted"]
    stand.wait(6 * SECOND)
    assert set(stand.boards.clocks) == {285}


def test_a_brake_and_a_tighter_lock_are_taken_where_nothing_can_be_read() -> None:
    stand = unread("in_band", "out_of_band", "brake")
    stand.start()
    (refused,) = stand.give(lock(MAX_MHZ, stand.now, path="out_of_band"))
    assert refused.detail == "what would have to be given back cannot be read"
    assert kinds(stand.give(lock(900, stand.now, path="out_of_band"))) == ["Accepted"]
    stand.wait(41 * SECOND)
    assert set(stand.boards.clocks) == {900}

    stand = unread("in_band", "out_of_band", "brake")
    stand.start()
    assert kinds(stand.give(brake(stand.now))) == ["Accepted"]
    stand.wait(6 * SECOND)
    assert set(stand.boards.clocks) == {285}


# ---- a looser setting that gets lost ----


def lossy(*, lost: int) -> Hosted:
    """A host at its safe share by its slow path alone, which loses the next `lost` writes."""
    stand = Hosted("out_of_band")
    stand.start()
    stand.wait(41 * SECOND)
    stand.boards.lose = lost
    return stand


def test_a_permission_that_was_lost_is_written_until_the_gpus_run_above_the_earlier_lock() -> None:
    stand = lossy(lost=3)  # three of the four writes that it takes
    command = lock(MAX_MHZ, stand.now, path="out_of_band", ttl=10 * MINUTE)
    assert kinds(stand.give(command)) == ["Accepted"]
    assert stand.wait(39 * SECOND) == []
    (verified,) = stand.wait(2 * SECOND)
    assert isinstance(verified, Verified)
    assert verified.detail == "not seen: not every GPU ran above the earlier lock"
    assert not as_found(stand)
    assert stand.wait(110 * SECOND) == []
    assert as_found(stand)
    stand.boards.writes.clear()
    assert stand.wait(2 * MINUTE) == []
    assert stand.boards.writes == []


def test_a_looser_lock_that_was_lost_is_written_again_though_a_tighter_one_would_agree() -> None:
    stand = lossy(lost=4)
    stand.give(lock(1275, stand.now, path="out_of_band", ttl=10 * MINUTE))
    stand.wait(41 * SECOND)
    assert set(stand.boards.clocks) == {SHARE_MHZ}
    stand.wait(110 * SECOND)
    assert set(stand.boards.clocks) == {1275}


def test_a_lost_permission_under_a_newer_tighter_lock_is_not_forgotten() -> None:
    stand = lossy(lost=8)
    stand.give(lock(MAX_MHZ, stand.now, path="out_of_band", ttl=10 * MINUTE))
    stand.wait(45 * SECOND)
    stand.give(lock(1275, stand.now, path="out_of_band", ttl=10 * MINUTE))  # also lost
    stand.wait(3 * MINUTE)
    assert set(stand.boards.clocks) == {1275}


def test_gpus_at_rest_show_no_permission_and_it_is_written_on_without_a_word() -> None:
    stand = lossy(lost=0)
    for board in stand.boards.gpus:
        board.busy = False
    stand.give(lock(MAX_MHZ, stand.now, path="out_of_band", ttl=10 * MINUTE))
    assert kinds(stand.wait(41 * SECOND)) == ["Verified"]
    stand.boards.writes.clear()
    assert stand.wait(3 * MINUTE) == []
    assert 0 < len(stand.boards.writes) <= 4 * 4


def test_a_brake_line_that_lost_its_release_is_released_again() -> None:
    stand = Hosted("in_band", "brake")
    stand.start()
    stand.give(lock(MAX_MHZ, stand.now, ttl=10 * MINUTE))
    stand.give(brake(stand.now + 1))
    stand.wait(6 * SECOND)
    stand.boards.lose_by = "brake"
    stand.boards.lose = 4
    stand.give(lock(MAX_MHZ, stand.now, ttl=10 * MINUTE))
    stand.wait(6 * SECOND)
    assert set(stand.boards.clocks) == {285}
    stand.wait(30 * SECOND)
    assert as_found(stand)


# ---- clocks ----


def test_a_wall_clock_set_back_keeps_no_permission_alive() -> None:
    stand = Hosted()
    stand.start()
    stand.give(lock(MAX_MHZ, stand.now))
    stand.wait(10 * SECOND)
    stand.now -= 60 * MINUTE
    stand.wait(81 * SECOND)
    assert at_safe_share(stand)


def test_a_monotonic_clock_ends_a_lease_though_the_wall_clock_stands_still() -> None:
    stand = Hosted()
    agent, now = stand.agent, stand.now
    agent.start(now, 5_000)
    agent.step([lock(MAX_MHZ, now)], now, 5_000)
    assert agent.step((), now, 5_000 + TTL - 1) == []
    assert kinds(agent.step((), now, 5_000 + TTL)) == ["Lapsed"]


def test_a_host_whose_clock_is_behind_holds_no_lease_for_longer_than_it_was_made() -> None:
    stand = Hosted()
    stand.start()
    stand.give(lock(MAX_MHZ, stand.now + 30 * MINUTE))  # by the controller's clock
    stand.wait(LEASE_END)
    assert at_safe_share(stand)


def test_a_wall_clock_set_forward_ends_the_lease() -> None:
    stand = Hosted()
    stand.start()
    stand.give(lock(MAX_MHZ, stand.now))
    stand.now += 60 * MINUTE
    assert kinds(stand.give()) == ["Lapsed"]
    assert at_safe_share(stand)


# ---- restarts ----


def test_a_live_lease_is_taken_up_again_after_a_restart_and_ends_when_it_would_have(tmp_path: Path) -> None:
    stand = Hosted(state_file=tmp_path / "h01.json")
    stand.start()
    command = lock(1275, stand.now)
    stand.give(command)
    stand.boards.reload_driver()  # the machine was rebooted
    accepted, verified = stand.restart(after=30 * SECOND)
    assert (kinds([accepted, verified]), verified.command) == (["Accepted", "Verified"], command.id)
    assert accepted.detail == "taken up again after a restart"
    assert set(stand.boards.clocks) == {1275}
    stand.wait(59 * SECOND)
    assert set(stand.boards.clocks) == {1275}
    stand.wait(2 * SECOND)
    assert at_safe_share(stand)


def test_a_renewed_lease_is_still_alive_after_a_restart(tmp_path: Path) -> None:
    stand = Hosted(state_file=tmp_path / "h01.json")
    stand.start()
    stand.give(lock(1275, stand.now))
    stand.wait(60 * SECOND)
    stand.give(lock(1275, stand.now))
    assert kinds(stand.restart(after=60 * SECOND)) == ["Accepted", "Verified"]
    assert set(stand.boards.clocks) == {1275}


def test_what_was_in_force_before_a_restart_is_unknown_until_it_is_read_back(tmp_path: Path) -> None:
    stand = Hosted(state_file=tmp_path / "h01.json")
    stand.start()
    stand.give(lock(1275, stand.now))
    stand.boards.reload_driver()
    for board in stand.boards.gpus:
        board.deaf = True
    assert kinds(stand.restart(after=SECOND)) == ["Accepted"]
    assert "Renewed" not in kinds(stand.give(lock(1275, stand.now)))


def test_a_dead_lease_is_ended_at_the_restart(tmp_path: Path) -> None:
    stand = Hosted(state_file=tmp_path / "h01.json", limit_w=375.5)
    stand.start()
    stand.give(lock(MAX_MHZ, stand.now))
    (lapsed,) = stand.restart(after=LEASE_END)
    assert at_safe_share(stand)
    assert "the lease ended at" in lapsed.detail
    stand.give(lock(1005, stand.now, on_expiry="restore"))
    stand.restart(after=LEASE_END)
    assert as_found(stand, 375.5)


def test_a_restart_takes_no_cap_of_ours_for_what_was_found(tmp_path: Path) -> None:
    stand = Hosted(state_file=tmp_path / "h01.json", limit_w=375.5)
    stand.start()
    for _ in range(3):
        stand.give(limit(150.0, stand.now))
        stand.restart(after=10 * SECOND)
        stand.restart(after=LEASE_END)
    stand.agent.release_all(stand.now)
    assert as_found(stand, 375.5)


def test_a_brake_is_engaged_again_after_a_restart_long_after_its_lease(tmp_path: Path) -> None:
    stand = Hosted("in_band", "brake", state_file=tmp_path / "h01.json")
    stand.start()
    stand.give(brake(stand.now))
    stand.wait(6 * SECOND)
    for board in stand.boards.gpus:
        board.run_free(MAX_MHZ, MAX_W)  # the machine was rebooted
    (accepted,) = stand.restart(after=60 * MINUTE)
    assert accepted.detail == "held, its lease over, and taken up again after a restart"
    stand.wait(6 * SECOND)
    assert set(stand.boards.clocks) == {285}


def test_fencing_and_idempotence_survive_a_restart(tmp_path: Path) -> None:
    stand = Hosted(state_file=tmp_path / "h01.json")
    stand.start()
    command = lock(1275, stand.now, epoch=7)
    stand.give(command)
    stand.restart(after=SECOND)
    assert stand.give(command) == []
    assert "epoch 6 is fenced" in stand.give(lock(MAX_MHZ, stand.now, epoch=6))[0].detail


def test_a_clock_set_back_over_a_restart_ends_the_lease(tmp_path: Path) -> None:
    stand = Hosted(state_file=tmp_path / "h01.json")
    stand.start()
    stand.give(lock(MAX_MHZ, stand.now))
    stand.now -= 60 * MINUTE
    stand.restart()
    assert at_safe_share(stand)


def test_a_host_given_back_is_kept_again_by_a_new_agent(tmp_path: Path) -> None:
    stand = Hosted(state_file=tmp_path / "h01.json")
    stand.start()
    stand.agent.release_all(stand.now)
    assert as_found(stand)
    for board in stand.boards.gpus:
        board.limit_w["in_band"] = 390.0  # by its owner, in between
    stand.restart(after=MINUTE)
    assert at_safe_share(stand)
    stand.agent.release_all(stand.now)
    assert as_found(stand, 390.0)


def test_an_unreadable_state_file_raises_an_alarm_is_kept_and_means_the_safe_share(tmp_path: Path) -> None:
    file = tmp_path / "h01.json"
    stand = Hosted(state_file=file)
    stand.start()
    stand.give(limit(150.0, stand.now))
    file.write_bytes(file.read_bytes()[:40])
    alarm, lapsed = stand.restart(after=SECOND)
    assert isinstance(alarm, Failed)
    assert "is damaged" in alarm.detail
    assert "it was kept as h01.json.unreadable-1" in alarm.detail
    assert (tmp_path / "h01.json.unreadable-1").stat().st_size == 40
    assert kinds([lapsed]) == ["Lapsed"]
    assert at_safe_share(stand)
    stand.agent.release_all(stand.now)
    assert as_found(stand, MAX_W)  # the device's default: better than our own cap taken for what was found


def test_a_path_that_is_no_longer_offered_ends_in_the_safe_share(tmp_path: Path) -> None:
    stand = Hosted("out_of_band", "in_band", state_file=tmp_path / "h01.json")
    stand.start()
    stand.give(lock(MAX_MHZ, stand.now, path="out_of_band"))
    stand.wait(41 * SECOND)
    del stand.actuators["out_of_band"]
    (lapsed,) = stand.restart()
    assert lapsed.detail.startswith("the path of the last command is no longer offered")
    assert at_safe_share(stand)


# ---- a full disk ----


def test_with_a_full_disk_what_tightens_is_done_and_what_loosens_is_refused(tmp_path: Path) -> None:
    stand = Hosted(state_file=tmp_path / "h01.json")
    stand.start()
    stand.give(lock(1275, stand.now))
    with a_full_disk():
        (refused,) = stand.give(lock(MAX_MHZ, stand.now + 1))
        assert isinstance(refused, Refused)
        assert refused.detail.startswith("it would loosen, and a killed agent could not undo it; state file")
        assert set(stand.boards.clocks) == {1275}
        outcomes = stand.give(lock(1005, stand.now + 2))
        assert kinds(outcomes) == ["Superseded", "Accepted", "Verified"]
        assert all(outcome.detail.endswith("kept in memory only") for outcome in outcomes)
        assert set(stand.boards.clocks) == {1005}
        stand.wait(LEASE_END)
        assert at_safe_share(stand)
    stand.wait(CHECK_MS + SECOND)  # the disk takes files again
    assert kinds(stand.give(lock(MAX_MHZ, stand.now))) == ["Accepted", "Verified"]
    assert stand.said[-1].detail == ""


def test_a_command_kept_in_memory_only_is_undone_by_the_next_agent(tmp_path: Path) -> None:
    stand = Hosted(state_file=tmp_path / "h01.json", limit_w=375.5)
    stand.start()
    stand.give(lock(1275, stand.now, on_expiry="restore"))
    with a_full_disk():
        stand.give(limit(150.0, stand.now + 1))
    stand.give(lock(1005, stand.now + 2))
    stand.restart(after=LEASE_END)
    stand.agent.release_all(stand.now)
    assert as_found(stand, 375.5)


# ---- cost and shape ----


def test_an_agent_with_nothing_to_do_touches_no_device() -> None:
    stand = Hosted()
    stand.start()
    counting = Failing(stand.actuators["in_band"], on="never")
    agent = HostAgent(stand.host, {"in_band": counting}, stand.share, source="actuator/test")
    agent.start(T0)
    agent.step([lock(1275, T0, ttl=10 * MINUTE)], T0)
    counting.calls.clear()
    for at in range(T0, T0 + MINUTE, 250):
        assert agent.step((), at) == []
    assert counting.calls == ["verify"] * 5  # one look in ten seconds


def test_two_outcomes_of_one_instant_have_ids_of_their_own() -> None:
    stand = braked()
    stand.give(brake(stand.now))
    stand.give(lock(1110, stand.now + 1, path="out_of_band"))
    assert len({outcome.id for outcome in stand.said}) == len(stand.said)


def test_an_agent_without_a_path_cannot_keep_its_host_safe() -> None:
    with pytest.raises(ValueError, match="offers no path"):
        HostAgent(make_host(), {}, Hosted().share, source="actuator/test")


def test_boards_of_another_host_are_not_touched() -> None:
    mine = make_host(uuids=("GPU-a", "GPU-b"))
    other = Boards(msgspec.structs.replace(mine, uuids=("GPU-a", "GPU-x")))
    agent = HostAgent(
        mine, {"in_band": NvmlActuator(mine, "in_band", other.nvml("in_band"))}, Hosted().share, source="test"
    )
    agent.start(T0)
    before = copy.deepcopy(other.gpus)
    (refused,) = agent.step([lock(1005, T0)], T0)
    assert isinstance(refused, Refused)
    assert (
        "the site file states GPU-b, which the driver does not know; in its place it has GPU-x"
        in refused.detail
    )
    assert other.gpus[1] == before[1]
