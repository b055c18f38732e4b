"""The judge itself: what it must find, on messages made to be wrong."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from faults.boards import Boards, Seen
from faults.judge import beats, fate, metered, signs, silence
from faults.rig import SITE
from faults.witness import Said
from support.rows import ROW, T0, feed, make_row
from support.sites import DEMO, site_from

from schemas.commands import Lease, LockClocks
from schemas.decisions import Decision
from schemas.envelope import Event, Tick
from schemas.instants import SECOND
from schemas.outcomes import Accepted, Outcome, Refused, Renewed, Verified
from schemas.shares import SafeShare
from schemas.site_file import read_site
from schemas.topics import topic_of

H = make_row().hosts[0].path
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


def wrong(*events: Event, seen: Iterable[Seen] = ()) -> tuple[str, ...]:
    return fate(said(*events), {event.id: 0 for event in events}, seen, SHARES, END).wrong


def test_a_command_that_nobody_answers_is_lost_unless_a_newer_one_for_its_host_is_answered() -> None:
    first, second, third = lock(0), lock(2_000), lock(4_000)
    found = fate(said(first, second, answer(Verified, second, 3_000), third), {}, (), SHARES, END)
    assert (found.commands, found.answered, found.asked_again) == (3, 1, 1)
    assert found.lost == (f"LockClocks {third.id} for {H}",)
    assert fate(said(third), {}, (), SHARES, third.at + 4_000).lost == (), "it may still be answered"


def test_a_refusal_is_an_answer() -> None:
    command = lock(0)
    assert fate(said(command, answer(Refused, command, 10)), {}, (), SHARES, END).lost == ()


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
    fast, slow = Seen(T0 + 99_000, H, 1_410.0, 6_000.0), Seen(T0 + 99_000, H, 990.0, 3_000.0)
    assert wrong(command, verified, seen=[fast._replace(at=T0 + 89_000), slow]) == ()
    assert wrong(command, verified, seen=[fast]) == (
        f"{H} ran at 1410 MHz 9 s after its last lease for that",
    )
    again = lock(80_000)
    assert wrong(command, verified, again, answer(Renewed, again, 80_100), seen=[fast]) == ()


def test_a_tighter_lock_that_was_only_taken_up_allows_no_more_than_itself() -> None:
    command, tighter = lock(0), lock(60_000, mhz=1_275)
    granted = command, answer(Verified, command, 100), tighter, answer(Accepted, tighter, 60_100)
    fast = Seen(T0 + 99_000, H, 1_410.0, 6_000.0)
    assert wrong(*granted, seen=[fast]) == (f"{H} ran at 1410 MHz 9 s after its last lease for that",)
    assert wrong(*granted, seen=[fast._replace(mhz=1_275.0)]) == ()


def test_a_command_of_the_last_seconds_is_not_due_and_allows_what_it_asks_for() -> None:
    old, young = lock(0), lock(120_000)
    verified = answer(Verified, old, 100), answer(Verified, young, 120_100)
    fast = Seen(T0 + 120_200, H, 1_410.0, 6_000.0)
    found = fate(said(old, young, *verified), {}, [fast], SHARES, T0 + 121_000)
    assert (found.commands, found.wrong) == (1, ())


def test_a_command_that_loosens_before_the_ledger_has_it_is_found() -> None:
    low, high = lock(0, mhz=1_110), lock(10_000, mhz=1_410)
    events = said(low, high)

    def judged(**recorded: int) -> tuple[str, ...]:
        return fate(events, {low.id: low.at, high.id: high.at} | recorded, (), SHARES, END).wrong

    assert judged() == ()
    assert judged(**{low.id: low.at + 500}) == (), "what tightens may be recorded later"
    found = (f"{H} was told 1410 MHz before the ledger had it",)
    assert judged(**{high.id: high.at + 1}) == found
    assert fate(events, {low.id: low.at}, (), SHARES, END).wrong == found, "or never"


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


def test_a_row_with_meters_is_judged_by_them() -> None:
    row = site_from(DEMO).rows[0]
    half = [feed(meter, T0, row.budget_w / len(row.meters)) for meter in row.meters]
    opened = feed(row.meters[0], T0 + 1, 0.0, breaker_closed=False)
    assert metered(said(*half), site_from(DEMO)).peak_ratio == pytest.approx(1.0)
    assert metered(said(*half, opened), site_from(DEMO)).opened == {row.meters[0]}


def test_boards_under_load_draw_what_their_caps_allow_and_a_breaker_has_its_patience(tmp_path: Path) -> None:
    site = read_site(SITE.read_text(), SITE.name)
    boards = Boards(site, site.rows[1:], tmp_path)
    for second in range(120):
        boards.advance(T0 + second * SECOND)
    assert 1.0 < boards.peak_ratio(T0) < 1.2, "uncapped, the load is above the budget for a while"
    assert not boards.opened, "but not for long enough"
    for _, state in sorted(boards.states.items()):
        for gpu in state.gpus:
            gpu.lock_max_mhz = 990
    boards.advance(T0 + 140 * SECOND)
    assert boards.peak_ratio(T0 + 140 * SECOND) < 0.9
