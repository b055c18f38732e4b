"""The judge itself: what it must find, on messages made to be wrong."""

from typing import Any

import pytest
from faults.judge import beats, fate, plant, signs, silence
from faults.witness import Said
from support.rows import ROW, T0, feed, frame, make_row
from support.sites import DEMO, site_from

from schemas.codec import encode
from schemas.commands import Lease, LockClocks
from schemas.decisions import Decision
from schemas.envelope import Event, Tick
from schemas.outcomes import Accepted, Outcome, Refused, Renewed, Verified
from schemas.shares import SafeShare
from schemas.topics import topic_of

HOST = make_row().hosts[0]
H = HOST.path
SHARES = {H: SafeShare(host=H, limit_w=300.0, max_mhz=1_000, host_w=3_000.0)}
END = T0 + 600_000


def said(*events: Event, late_ms: int = 0) -> list[Said]:
    return [Said(topic_of(e).name, 0, n, ROW.encode(), e.at + late_ms, e) for n, e in enumerate(events)]


def lock(at: int, mhz: int = 1_410, epoch: int = 1, lease_ms: int = 90_000) -> LockClocks:
    lease = Lease(epoch=epoch, issued_at=T0 + at, expires_at=T0 + at + lease_ms, on_expiry="safe_share")
    return LockClocks(at=T0 + at, source="controller/capping", subject=H, lease=lease, max_mhz=mhz)


def answer(kind: type[Outcome], command: LockClocks, at: int, **more: Any) -> Outcome:
    told: dict[str, Any] = {"command": command.id, "epoch": command.lease.epoch, "observed": command.max_mhz}
    known: dict[str, Any] = {
        name: value for name, value in (told | more).items() if name in kind.__struct_fields__
    }
    return kind(at=T0 + at, source="actuator", subject=command.subject, **known)


def wrong(*events: Event) -> tuple[str, ...]:
    return fate(said(*events), SHARES, END).wrong


def test_a_command_that_nobody_answers_is_lost_unless_a_newer_one_for_its_host_is_answered() -> None:
    first, second, third = lock(0), lock(2_000), lock(4_000)
    found = fate(said(first, second, answer(Verified, second, 3_000), third), SHARES, END)
    assert (found.commands, found.answered, found.asked_again) == (3, 1, 1)
    assert found.lost == (f"LockClocks {third.id} for {H}",)
    assert fate(said(third), SHARES, third.at + 4_000).lost == (), "it may still be answered"


def test_a_refusal_is_an_answer() -> None:
    command = lock(0)
    assert fate(said(command, answer(Refused, command, 10)), SHARES, END).lost == ()


def test_a_host_that_obeys_an_older_controller_after_a_newer_is_found() -> None:
    new, old = lock(0, epoch=5), lock(1_000, epoch=4)
    assert wrong(new, old, answer(Accepted, new, 1_100), answer(Accepted, old, 1_200)) == (
        f"{H} obeyed epoch 4 after epoch 5",
    )
    assert wrong(new, old, answer(Accepted, new, 1_100), answer(Refused, old, 1_200)) == ()


def test_a_read_back_that_is_looser_than_the_command_is_found() -> None:
    command = lock(0, mhz=1_110)
    assert wrong(command, answer(Verified, command, 50, observed=1_410.0)) == (
        f"{H} verified 1410 MHz for 1110 MHz",
    )
    assert wrong(command, answer(Verified, command, 50, observed=1_110.0)) == ()


def test_a_command_that_is_taken_up_after_its_lease_is_found() -> None:
    command = lock(0)
    assert wrong(command, answer(Accepted, command, 90_000)) == (f"{H} took up {command.id} after its lease",)


def test_a_host_above_its_share_after_its_lease_is_found_by_its_boards() -> None:
    command = lock(0)
    verified = answer(Verified, command, 100, observed=1_410.0)
    slow = frame(HOST, T0 + 99_000, [200.0], mhz=990.0)

    def fast(at: int) -> Event:
        return frame(HOST, T0 + at, [400.0], mhz=1_410.0)

    assert wrong(command, verified, fast(89_000), slow) == ()
    assert wrong(command, verified, fast(99_000)) == (f"{H} ran at 1410 MHz 9 s after its last lease",)
    again = lock(80_000)
    assert wrong(command, verified, again, answer(Renewed, again, 80_100), fast(99_000)) == ()


def test_two_owners_of_one_epoch_are_found_and_a_claim_that_came_second_is_not_one() -> None:
    def tick(at: int, worker: str) -> Tick:
        return Tick(at=T0 + at, source=f"runtime/control-loop/{worker}", subject=ROW, epoch=3)

    assert wrong(tick(0, "a"), tick(10, "b"), tick(2_000, "a")) == ()
    assert wrong(tick(0, "a"), tick(10, "b"), tick(2_000, "a"), tick(2_010, "b")) == (
        f"{ROW} has 2 ticks of epoch 3 besides its owner's",
    )


@pytest.mark.parametrize(
    ("times", "longest"),
    [
        ([0, 2, 4, 6, 8, 10], 2),
        ([0, 2, 8, 10], 6),
        ([0, 2, 4], 6),
        ([0, 9, 10], 9),
        ([], 5),
        ([0, 4, 6, 8, 10, 99], 2),
    ],
)
def test_silence_is_from_the_last_sign_before_a_fault_to_the_first_after(
    times: list[int], longest: int
) -> None:
    assert silence(times, since=5, until=10) == longest


def test_a_beat_counts_when_it_can_be_read_and_a_host_by_its_own_clock() -> None:
    decision = Decision(
        at=T0, source="controller", subject=ROW, policy="polca", mode="U", since=T0, desired=(), because=""
    )
    command = lock(0)
    events = said(decision, answer(Verified, command, 50, observed=1.0), late_ms=700)
    assert beats(events, ROW) == [T0 + 700]
    assert signs(events, H) == [T0 + 50]


def test_the_plant_is_judged_by_its_meters() -> None:
    site = site_from(DEMO)
    row = site.rows[0]
    half = [feed(meter, T0, row.budget_w / len(row.meters)) for meter in row.meters]
    assert plant(said(*half), site).peak_ratio == pytest.approx(1.0)
    opened = feed(row.meters[0], T0, 0.0, breaker_closed=False)
    assert plant(said(opened), site).opened == (row.meters[0],)
    assert encode(opened)
