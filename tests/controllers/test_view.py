"""What the view takes the plant to be, from words that repeat, come late or never."""

from __future__ import annotations

import random

import pytest
from support.capped_row import ROW, T0, brake, capped_row, failover, lock, reading, word

from controllers.view import ViewState, fold, view
from schemas.commands import LockClocks
from schemas.decisions import Decision
from schemas.envelope import Event
from schemas.instants import HOUR, SECOND
from schemas.operators import Pin, ReleaseAll, ResetBlastRadius, Resume, Unpin
from schemas.outcomes import (
    Accepted,
    Failed,
    Lapsed,
    Outcome,
    Refused,
    Released,
    Renewed,
    Superseded,
    Verified,
)

ROW4 = capped_row(2, 2)
HOST = ROW4.hosts[0].path


def ceiling(*events: Event, at: int = T0 + 60 * SECOND) -> int | None:
    return view(fold(ViewState(), events), ROW4, at).control(HOST).ceiling(at)


def test_a_ceiling_is_what_was_verified_and_not_what_was_sent() -> None:
    asked = lock(HOST, T0, 1275)
    assert ceiling(asked) is None
    assert ceiling(asked, word(Accepted, asked, T0 + 1)) is None
    assert ceiling(asked, word(Verified, asked, T0 + 1)) == 1275
    assert ceiling(asked, word(Renewed, asked, T0 + 1)) == 1275


def test_a_ceiling_ends_with_its_lease_even_when_nobody_says_so() -> None:
    asked = lock(HOST, T0, 1275)
    seen = (asked, word(Verified, asked, T0 + 1))
    assert ceiling(*seen, at=T0 + 90 * SECOND - 1) == 1275
    assert ceiling(*seen, at=T0 + 90 * SECOND) is None


def test_a_brake_holds_past_its_lease_and_until_a_newer_lock_is_verified() -> None:
    older, stop, newer = lock(HOST, T0, 1410), brake(HOST, T0 + 10), lock(HOST, T0 + 50, 1110)
    seen = [older, word(Verified, older, T0 + 1), stop, word(Verified, stop, T0 + 20)]
    assert ceiling(*seen, at=T0 + HOUR) == 285
    assert ceiling(*seen, word(Lapsed, stop, T0 + 100), at=T0 + HOUR) == 285
    assert ceiling(*seen, newer) == 285
    assert ceiling(*seen, newer, word(Verified, newer, T0 + 60)) == 1110
    late = lock(HOST, T0 + 5, 1410)
    state = fold(ViewState(), [late, *seen[2:], word(Verified, late, T0 + 30)])
    assert state.hosts[HOST].braked, "a lock older than the brake does not release it"


@pytest.mark.parametrize("kind", [Lapsed, Released])
def test_a_setting_that_ended_leaves_the_host_at_its_safe_share(kind: type[Outcome]) -> None:
    asked = lock(HOST, T0, 1275)
    state = fold(ViewState(), [asked, word(Verified, asked, T0 + 1), word(kind, asked, T0 + 2)])
    control = state.hosts[HOST]
    assert (control.ceiling(T0 + 3), control.lapsed) == (None, True)


def test_the_end_of_an_older_setting_says_nothing_of_what_was_asked_since() -> None:
    older, newer = lock(HOST, T0, 1275), lock(HOST, T0 + 85 * SECOND, 1410)
    seen = [older, word(Verified, older, T0 + 1), newer, word(Lapsed, older, T0 + 90 * SECOND)]
    control = fold(ViewState(), seen).hosts[HOST]
    assert (control.lock.in_force, control.lapsed) == (None, True)
    assert control.lock.asked is not None, "else it would be asked twice"
    assert ceiling(*seen, word(Verified, newer, T0 + 99 * SECOND), at=T0 + 100 * SECOND) == 1410


def test_a_looser_lock_under_way_may_have_landed_unseen() -> None:
    tight, loose = lock(HOST, T0, 1110), lock(HOST, T0 + 10, 1410)
    control = fold(ViewState(), [tight, word(Verified, tight, T0 + 1), loose]).hosts[HOST]
    assert (control.ceiling(T0 + 20), control.loosest(T0 + 20)) == (1110, 1410)
    control = fold(
        ViewState(hosts={HOST: control}), [word(Failed, loose, T0 + 30, detail="no answer")]
    ).hosts[HOST]
    assert control.lock.asked is not None
    assert control.lock.asked.failed == "no answer"
    assert control.loosest(T0 + 40) == 1410, "failed is not undone"


def test_outcomes_of_commands_nobody_remembers_are_harmless() -> None:
    asked, stranger = lock(HOST, T0, 1275), lock(HOST, T0 - 5, 1410)
    for kind in (Accepted, Verified, Renewed, Released, Lapsed, Refused, Failed, Superseded):
        seen = (asked, word(Verified, asked, T0 + 1), word(kind, stranger, T0 + 2))
        assert ceiling(*seen) == 1275, kind.__name__
        unknown = lock("ams1/row-b/r99/h99", T0, 1410)
        assert fold(ViewState(), [word(kind, unknown, T0)]).hosts == {}


def test_a_verified_word_after_a_failed_one_stands() -> None:
    asked = lock(HOST, T0, 1275)
    assert ceiling(asked, word(Failed, asked, T0 + 1), word(Verified, asked, T0 + 9)) == 1275


def test_repeating_or_delaying_words_changes_nothing() -> None:
    one, two = lock(HOST, T0, 1275), lock(HOST, T0 + 10 * SECOND, 1110)
    story: list[Event] = [
        one,
        word(Verified, one, T0 + 1),
        two,
        word(Accepted, two, T0 + 11 * SECOND),
        word(Verified, two, T0 + 12 * SECOND),
        failover(T0),
        failover(T0 + 5, "cleared"),
    ]
    plain = fold(ViewState(), story)
    for seed in range(50):
        draw = random.Random(seed)
        repeated = [event for event in story for _ in range(draw.randint(1, 3))]
        repeated += draw.sample(story, k=5)
        assert fold(ViewState(), repeated) == plain


def test_attempts_count_until_the_setting_was_seen() -> None:
    first, second, third = (lock(HOST, T0 + k, 1275) for k in (0, 50, 100))
    control = fold(ViewState(), [first, word(Failed, first, T0 + 1), second]).hosts[HOST].lock
    assert control.asked is not None
    assert control.asked.attempt == 2
    control = fold(ViewState(), [first, second, word(Verified, second, T0 + 60), third]).hosts[HOST].lock
    assert control.asked is not None
    assert (control.asked.attempt, control.asked.renews) == (1, True)
    control = fold(ViewState(), [first, lock(HOST, T0 + 50, 1110)]).hosts[HOST].lock
    assert control.asked is not None
    assert control.asked.attempt == 1


def test_the_newest_word_of_each_kind_stands_however_late_the_older_comes() -> None:
    state = fold(ViewState(), [failover(T0 + 9, "cleared"), failover(T0)])
    assert view(state, ROW4, T0).emergencies == ()
    state = fold(state, [failover(T0 + 20, episode="later")])
    assert [e.episode for e in view(state, ROW4, T0).emergencies] == ["later"]
    for hour in range(2, 40):
        state = fold(state, [failover(T0 + hour * HOUR, "cleared", f"{hour}")])
    assert len(state.emergencies) < 5, "ended emergencies are forgotten in time"


def test_the_loops_own_words_stand_in_the_order_they_come() -> None:
    """There is one of each per beat, and the wall clock of a beat may step."""
    before, after = reading(ROW4, T0 + HOUR, 0.3), reading(ROW4, T0, 0.9)
    assert fold(ViewState(), [before, after]).rollup == after


def test_a_clock_that_is_set_back_moves_everything_remembered_back_with_it() -> None:
    asked, stop = lock(HOST, T0 + HOUR, 1275), brake(HOST, T0 + HOUR + 10)
    release = ReleaseAll(at=T0 + HOUR, source="cli", subject=ROW, by="ann", reason="service")
    told: list[Event] = [asked, word(Verified, asked, T0 + HOUR), stop, failover(T0 + HOUR), pin(T0 + HOUR)]
    state = fold(ViewState(), [*told, release, decided(T0 + HOUR + 20, outage_at=T0 + HOUR)])
    back = T0 + 20
    state = fold(state, [reading(ROW4, back, 0.9)])
    assert state.last is not None
    assert (state.last.at, state.last.since, state.last.notes) == (back, T0 - 60_000, {"outage_at": str(T0)})
    newer = lock(HOST, back + 1, 1110)
    state = fold(state, [newer, word(Verified, newer, back + 5), failover(back + 6, "cleared")])
    assert state.hosts[HOST].ceiling(back + 6) == 1110, "a command is newer by its coming"
    assert view(state, ROW4, back + 7).emergencies == ()
    state = fold(state, [Resume(at=back + 7, source="cli", subject=ROW, by="ann")])
    state = fold(state, [Unpin(at=back + 8, source="cli", subject=HOST, by="ann")])
    seen = view(state, ROW4, back + 9)
    assert (seen.released, seen.pins) == ({}, ())


def decided(at: int, **notes: int) -> Decision:
    return Decision(
        at=at, source="controller", subject=ROW, policy="capping/polca", mode="T2b", since=at - 60_020,
        desired=(), because="", notes={key: str(note) for key, note in notes.items()},
    )  # fmt: skip


def test_who_was_given_up_stays_so_until_it_is_seen_to_obey() -> None:
    attempts = [lock(HOST, T0 + k, 1275) for k in (0, 50, 100)]
    other = lock(HOST, T0 + 150, 1110)
    state = fold(ViewState(), [*attempts, other])
    assert state.hosts[HOST].unanswered == 3, "another clock is no new start"
    assert fold(state, [word(Verified, other, T0 + 160)]).hosts[HOST].unanswered == 0


def pin(at: int, subject: str = HOST, mhz: int = 1005, *, minutes: int = 60) -> Pin:
    until = at + minutes * 60 * SECOND
    return Pin(at=at, source="cli", subject=subject, max_mhz=mhz, by="ann", reason="noise", expires_at=until)


def test_pins_end_by_time_or_by_hand_and_cover_what_lies_below() -> None:
    state = fold(ViewState(), [pin(T0), pin(T0 + 1, ROW), pin(T0 + 2, ROW4.racks[0].path, minutes=1)])
    assert len(view(state, ROW4, T0 + 10).pins_on(ROW4.hosts[0])) == 3
    assert len(view(state, ROW4, T0 + 70 * SECOND).pins_on(ROW4.hosts[0])) == 2
    state = fold(state, [Unpin(at=T0 + 100, source="cli", subject=ROW, by="bob"), pin(T0 + 1, ROW)])
    assert [p.subject for p in view(state, ROW4, T0 + 70 * SECOND).pins] == [HOST]
    assert view(fold(state, [pin(T0 + 200, ROW)]), ROW4, T0 + 300).pins_on(ROW4.hosts[3]) != ()


def test_a_release_covers_what_lies_below_until_the_newest_word_says_otherwise() -> None:
    asked = lock(HOST, T0, 1275)
    state = fold(ViewState(), [asked, word(Verified, asked, T0 + 1)])
    state = fold(state, [ReleaseAll(at=T0 + 5, source="cli", subject=ROW, by="ann", reason="service")])
    assert len(view(state, ROW4, T0 + 6).released) == 4
    assert state.hosts[HOST].ceiling(T0 + 6) is None
    state = fold(state, [Resume(at=T0 + 9, source="cli", subject=HOST, by="ann")])
    assert HOST not in view(state, ROW4, T0 + 10).released
    assert len(view(state, ROW4, T0 + 10).released) == 3
    assert view(state, ROW4, T0 + 10).resumed_at == 0
    state = fold(state, [Resume(at=T0 + 20, source="cli", subject=ROW, by="ann")])
    assert (view(state, ROW4, T0 + 21).released, view(state, ROW4, T0 + 21).resumed_at) == ({}, T0 + 20)


def test_the_record_tells_steps_from_returns() -> None:
    first = lock(HOST, T0, 1110)
    control = fold(ViewState(), [first]).hosts[HOST]
    assert (control.returned_at, control.stepped_at) == (T0, 0)
    up, down = lock(HOST, T0 + 10, 1275), lock(HOST, T0 + 20, 1110)
    control = fold(ViewState(), [first, word(Verified, first, T0 + 1), up]).hosts[HOST]
    assert (control.returned_at, control.stepped_at) == (T0, T0 + 10)
    control = fold(ViewState(hosts={HOST: control}), [word(Verified, up, T0 + 11), down]).hosts[HOST]
    assert control.stepped_at == T0 + 10, "tightening is no step"
    stop = brake(HOST, T0 + 30)
    off: LockClocks = lock(HOST, T0 + 50, 1110)
    control = fold(ViewState(hosts={HOST: control}), [stop, word(Verified, stop, T0 + 31), off]).hosts[HOST]
    assert control.returned_at == T0 + 50


def test_the_blast_radius_reset_of_a_person_is_remembered() -> None:
    reset = ResetBlastRadius(at=T0 + 5, source="cli", subject=ROW, by="ann", reason="looked")
    assert view(fold(ViewState(), [reset]), ROW4, T0 + 6).blast_reset_at == T0 + 5
