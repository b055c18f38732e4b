"""What no policy may do, and what the record says when one wished it."""

from __future__ import annotations

import msgspec
import pytest
from support.capped_row import ROW, SOURCE, T0, Loop, capped_row, lock, reading, word

from controllers.guardrails import guard
from controllers.policy import DEFAULT_POLICY, CappingPolicy
from controllers.view import fold
from schemas.commands import LockClocks
from schemas.decisions import Decision, Setting
from schemas.emergencies import Emergency
from schemas.instants import HOUR, MINUTE, SECOND
from schemas.operators import Pin, ResetBlastRadius
from schemas.outcomes import Verified

ROW52 = capped_row()
HIGH = [host.path for host in ROW52.hosts if host.priority == "high"]
LOW = [host.path for host in ROW52.hosts if host.priority == "low"]
REST, ALL = f"{LOW[0]} and 25 more hosts", f"{HIGH[0]} and 51 more hosts"


def holding(low: int, high: int, policy: CappingPolicy = DEFAULT_POLICY) -> Loop:
    """A row that was put at these clocks an hour ago and has obeyed since."""
    loop = Loop(ROW52, policy)
    locks = [lock(path, T0 - HOUR, low, lease_ms=4 * HOUR) for path in LOW]
    locks += [lock(path, T0 - HOUR, high, lease_ms=4 * HOUR) for path in HIGH]
    loop.state = fold(loop.state, [*locks, *(word(Verified, each, T0 - HOUR) for each in locks)])
    return loop


def in_mode(loop: Loop, mode: str) -> Loop:
    """As if the policy had been in this mode for an hour."""
    loop.state = fold(
        loop.state,
        [
            Decision(
                at=T0 - 1, source=SOURCE, subject=ROW, policy="capping/polca", mode=mode, since=T0 - HOUR,
                desired=(), because="", notes={"known_at": str(T0 - 1)},
            )
        ],
    )  # fmt: skip
    return loop


def look(loop: Loop, t: float, p: float | None) -> tuple[Decision, dict[str, int]]:
    """A look at `p`, and the changes that are sent, answered at once; renewals are no change."""
    now = T0 + int(t * SECOND)
    before = {path: control.ceiling(now) for path, control in loop.state.hosts.items()}
    decision, commands = loop.tick(now, [reading(loop.row, now, p)])
    loop.obeyed(now, commands)
    locks = {c.subject: c.max_mhz for c in commands if isinstance(c, LockClocks)}
    return decision, {path: mhz for path, mhz in locks.items() if mhz != before.get(path)}


def test_easing_changes_at_most_half_of_the_row_in_five_minutes_high_priority_first() -> None:
    loop = in_mode(holding(1110, 1305), "T2b")
    decision, sent = look(loop, 0, 0.8)
    assert decision.mode == "T1"
    assert sent == dict.fromkeys(HIGH, 1410)
    (said,) = decision.overruled
    assert said == f"{REST}: waits its turn, 26 of 52 hosts may be loosened within 5 min"
    assert {s.max_mhz for s in decision.desired if s.target in LOW} == {1110}, "they keep what they have"
    for t in range(2, 300, 2):
        decision, sent = look(loop, t, 0.8)
        assert sent == {}
    decision, sent = look(loop, 300, 0.8)
    assert sent == dict.fromkeys(LOW, 1275)
    assert decision.overruled == ()


def test_tightening_is_never_paced() -> None:
    loop = in_mode(holding(1410, 1410), "U")
    _, sent = look(loop, 0, 0.95)
    assert sent == dict.fromkeys(LOW, 1110)
    _, sent = look(loop, 2, 0.95)
    assert sent == dict.fromkeys(HIGH, 1305)
    decision, commands = loop.tick(T0 + 4 * SECOND, [reading(ROW52, T0 + 4 * SECOND, 1.01)])
    assert len(commands) == 52
    assert decision.overruled == ()


def test_a_host_is_loosened_one_step_per_dwell() -> None:
    loop = in_mode(holding(1110, 1410), "U")  # as after a lost stretch of the record
    decision, sent = look(loop, 0, 0.5)
    assert sent == dict.fromkeys(LOW, 1275)
    assert decision.overruled == (f"{REST}: to 1275 MHz before 1410 MHz, one step at a time",)
    decision, sent = look(loop, 2, 0.5)
    assert sent == {}
    assert decision.overruled == (f"{REST}: loosened less than 60 s ago, the next step waits",)
    for t in range(4, 60, 2):
        assert look(loop, t, 0.5)[1] == {}
    assert look(loop, 60, 0.5)[1] == dict.fromkeys(LOW, 1410)


def test_a_row_starts_in_two_waves_a_dwell_apart() -> None:
    loop = Loop(ROW52, DEFAULT_POLICY)
    assert look(loop, 0, 0.5)[1] == dict.fromkeys(HIGH, 1410)
    for t in range(2, 60, 2):
        decision, sent = look(loop, t, 0.5)
        assert not set(sent) & set(LOW)
        assert {s.target for s in decision.desired} == set(HIGH), "the others stay at their safe shares"
    assert look(loop, 60, 0.5)[1].items() >= dict.fromkeys(LOW, 1410).items()


def test_after_an_outage_nothing_loosens_for_one_dwell() -> None:
    loop = in_mode(holding(1410, 1410), "U")
    look(loop, 0, 0.5)
    for t in range(2, 42, 2):
        look(loop, t, None)
    assert {loop.state.hosts[path].ceiling(T0 + 42 * SECOND) for path in LOW} == {1110}
    for t in range(42, 100, 2):
        decision, sent = look(loop, t, 0.5)
        assert decision.mode == "T2b"
        assert sent == {}, t
        assert "easing waits until 60 s after the telemetry's outage" in decision.because
    decision, sent = look(loop, 100, 0.5)
    assert (decision.mode, sent) == ("T1", dict.fromkeys(HIGH, 1410))


def test_on_unknown_power_nobody_is_loosened_whatever_a_policy_wishes() -> None:
    loop = in_mode(holding(1110, 1305), "U")
    decision, sent = look(loop, 0, None)
    assert sent == {}
    assert {s.max_mhz for s in decision.desired} == {1110, 1305}
    assert decision.overruled == (f"{ALL}: not loosened, the power is unknown",)


def test_while_the_ledger_cannot_be_written_caps_tighten_and_nothing_loosens() -> None:
    loop = in_mode(holding(1110, 1305), "T2b")
    full = Emergency(
        at=T0, source="ledger", subject=ROW, kind="ledger_loss", phase="raised", because="disk full"
    )
    loop.state = fold(loop.state, [full])
    decision, sent = look(loop, 0, 0.8)
    assert sent == {}
    assert decision.overruled == (f"{ALL}: not loosened, the ledger cannot be written",)
    loop = in_mode(holding(1410, 1410), "U")
    loop.state = fold(loop.state, [full])
    assert look(loop, 0, 0.9)[1] == dict.fromkeys(LOW, 1110)
    cleared = msgspec.structs.replace(full, at=T0 + SECOND, phase="cleared", id="")
    loop.state = fold(loop.state, [cleared])
    assert look(loop, 2, 0.8)[1] == dict.fromkeys(LOW, 1275)


def test_a_new_controller_asks_no_host_for_more_than_the_one_before_left_it() -> None:
    """Hosts that were held below what their mode would give them, as after a step back from T2b."""
    loop = Loop(ROW52, DEFAULT_POLICY)
    left = [
        Setting(target=path, max_mhz=mhz, path="out_of_band", on_expiry="safe_share")
        for paths, mhz in ((HIGH, 1305), (LOW[:-1], 1110))
        for path in paths
    ]
    told = Decision(
        at=T0, source="runtime/restart", subject=ROW, policy="capping/polca", mode="U", since=T0 - HOUR,
        desired=tuple(left), because="",
    )  # fmt: skip
    loop.state = fold(loop.state, [told])
    decision, sent = look(loop, 0, 0.5)
    assert sent == dict.fromkeys(HIGH, 1305)
    assert any("kept at 1305 MHz for the first dwell" in said for said in decision.overruled)
    assert any(f"{LOW[-1]}: not loosened, telemetry" in said for said in decision.overruled)
    for t in range(2, 60, 2):
        assert look(loop, t, 0.5)[1].items() <= dict.fromkeys(HIGH, 1305).items()
    assert set(look(loop, 60, 0.5)[1].values()) == {1410}


# ---- the blast-radius breaker ----


def blown(loop: Loop) -> Loop:
    """Somebody else's commands loosen one host more than half of the row."""
    theirs = [lock(path, T0 - SECOND, 1335, lease_ms=4 * HOUR) for path in [*HIGH, LOW[0]]]
    loop.state = fold(loop.state, [*theirs, *(word(Verified, each, T0 - SECOND) for each in theirs)])
    return loop


def test_the_blast_radius_breaker_opens_on_the_record_and_waits_for_a_person() -> None:
    loop = blown(in_mode(holding(1110, 1305), "U"))
    decision, sent = look(loop, 0, 0.5)
    assert sent == {}
    (said,) = decision.overruled
    assert "the blast-radius breaker opened at 2023-11-14T22:13:20.000Z: more than 26 of 52 hosts" in said
    assert "a person has to reset it" in said
    for t in range(10, 21 * 60, 10):
        assert look(loop, t, 0.5)[1] == {}, "time alone does not close it"
    now = T0 + 21 * MINUTE
    reset = ResetBlastRadius(at=now, source="cli", subject=ROW, by="ann", reason="two controllers")
    loop.state = fold(loop.state, [reset])
    decision, sent = look(loop, 21 * MINUTE / SECOND, 0.5)
    assert len(sent) == 26
    assert "blast_open_at" not in decision.notes


def test_what_was_loosened_before_the_reset_counts_no_more() -> None:
    loop = blown(in_mode(holding(1110, 1305), "U"))
    look(loop, 0, 0.5)
    reset = ResetBlastRadius(at=T0 + SECOND, source="cli", subject=ROW, by="ann", reason="looked")
    loop.state = fold(loop.state, [reset])
    decision, sent = look(loop, 2, 0.5)
    assert len(sent) == 25, "those that were not loosened within the dwell"
    assert "blast_open_at" not in decision.notes


def test_an_open_breaker_does_not_keep_the_row_from_tightening() -> None:
    loop = blown(in_mode(holding(1410, 1410), "U"))
    loop.state.hosts[LOW[0]].stepped_at = T0 - SECOND
    for path in HIGH:
        loop.state.hosts[path].stepped_at = T0 - SECOND
    _, sent = look(loop, 0, 0.95)
    assert sent == dict.fromkeys(LOW, 1110)
    assert "blast_open_at" in loop.decisions[-1].notes
    decision, commands = loop.tick(T0 + 2 * SECOND, [reading(ROW52, T0 + 2 * SECOND, 1.02)])
    assert (decision.mode, len(commands)) == ("B", 52)


# ---- pins ----


def pin(mhz: int, subject: str = LOW[0], *, minutes: int = 10) -> Pin:
    return Pin(
        at=T0 - SECOND, source="cli", subject=subject, max_mhz=mhz, by="ann", reason="noisy fan",
        expires_at=T0 + minutes * MINUTE,
    )  # fmt: skip


def setting(decision: Decision, host: str) -> tuple[int, str]:
    found = next(s for s in decision.desired if s.target == host)
    return found.max_mhz, found.owner


def test_a_stricter_pin_holds_and_is_rounded_down_to_the_board() -> None:
    loop = in_mode(holding(1410, 1410), "U")
    loop.state = fold(loop.state, [pin(1010)])
    decision, sent = look(loop, 0, 0.5)
    assert setting(decision, LOW[0]) == (1005, "pin/ann")
    assert sent == {LOW[0]: 1005}
    (said,) = decision.overruled
    assert said.startswith(
        f"{LOW[0]}: capping/polca wished 1410 MHz, pin of {LOW[0]} at 1010 MHz by ann until"
    )
    assert "(noisy fan)" in said


def test_a_pin_below_the_floor_is_a_persons_to_give() -> None:
    loop = in_mode(holding(1410, 1410), "U")
    loop.state = fold(loop.state, [pin(600)])
    assert setting(look(loop, 0, 0.5)[0], LOW[0]) == (600, "pin/ann")


def test_a_pin_looser_than_safety_allows_is_overruled_and_the_decision_says_so() -> None:
    loop = in_mode(holding(1410, 1410), "U")
    loop.state = fold(loop.state, [pin(1380, ROW)])
    decision, sent = look(loop, 0, 0.82)
    assert sent == {**dict.fromkeys(LOW, 1275), **dict.fromkeys(HIGH, 1380)}
    assert any(f"{REST}: pin of {ROW} at 1380 MHz by ann" in said for said in decision.overruled)
    assert any("is looser than allowed, capping/polca holds 1275 MHz" in said for said in decision.overruled)
    decision, _ = look(loop, 2, 1.01)
    assert {s.brake for s in decision.desired} == {True}
    assert any("is looser than allowed, capping/polca holds the brake" in said for said in decision.overruled)


def test_a_pin_that_ends_is_eased_like_any_cap() -> None:
    loop = in_mode(holding(1410, 1410), "U")
    loop.state = fold(loop.state, [pin(1005)])
    look(loop, 0, 0.5)
    for t in range(10, 600, 10):
        assert look(loop, t, 0.5)[1] == {}
    decision, sent = look(loop, 600, 0.5)
    assert sent == {LOW[0]: 1110}, "to the next rung first"
    assert "one step at a time" in decision.overruled[0]


def test_a_pin_that_ends_while_power_is_unknown_holds_on() -> None:
    loop = in_mode(holding(1410, 1410), "U")
    loop.state = fold(loop.state, [pin(1005, minutes=1)])
    look(loop, 0, 0.5)
    decision, sent = look(loop, 62, None)
    assert LOW[0] not in sent
    assert setting(decision, LOW[0]) == (1005, "guardrail/hold")


def test_a_policy_below_the_floor_is_raised_to_it() -> None:
    loop = in_mode(holding(1410, 1410), "U")
    decision, _ = loop.tick(T0, [reading(ROW52, T0, 0.5)])
    low = msgspec.structs.replace(decision.desired[-1], max_mhz=600, owner="energy/eco")
    wish = msgspec.structs.replace(decision, desired=(low,))
    guarded = guard(wish, loop.look(T0), DEFAULT_POLICY, T0)
    assert [(s.max_mhz, s.owner) for s in guarded.desired] == [(705, "guardrail/floor")]
    assert guarded.overruled == (f"{low.target}: energy/eco wished 600 MHz, raised to the floor of 705 MHz",)


def test_the_comparison_run_without_control_has_no_pacing_but_respects_people() -> None:
    off = CappingPolicy(variant="off")
    loop = Loop(ROW52, off)
    loop.state = fold(loop.state, [pin(1005)])
    _, sent = look(loop, 0, 1.3)
    assert sent == {**dict.fromkeys([*HIGH, *LOW], 1410), LOW[0]: 1005}


@pytest.mark.parametrize(("low", "high", "limit"), [(1, 0, 1), (2, 1, 1), (3, 2, 2)])
def test_a_small_row_can_always_ease_by_at_least_one_host(low: int, high: int, limit: int) -> None:
    loop = Loop(capped_row(low, high), DEFAULT_POLICY)
    assert len(look(loop, 0, 0.5)[1]) == limit


def test_low_priority_takes_no_step_while_high_priority_waits_its_turn() -> None:
    """Low priority that steps up and down has its turn already, and would keep it for ever."""
    loop = holding(1110, 1305)
    stepped = [lock(path, T0 - 2 * MINUTE, 1275, lease_ms=HOUR) for path in LOW]
    back = [lock(path, T0 - 70 * SECOND, 1110, lease_ms=HOUR) for path in LOW]
    for locks in (stepped, back):
        loop.state = fold(loop.state, [*locks, *(word(Verified, each, each.at) for each in locks)])
    in_mode(loop, "T2b")
    decision, sent = look(loop, 0, 0.8)
    assert decision.mode == "T1"
    assert sent == {}
    assert {s.max_mhz for s in decision.desired if s.target in LOW} == {1110}
    assert {s.max_mhz for s in decision.desired if s.target in HIGH} == {1305}
    for t in range(2, 180, 2):
        assert look(loop, t, 0.8)[1] == {}
    assert look(loop, 182, 0.8)[1] == dict.fromkeys(HIGH, 1410), "its turn, once low priority's has passed"
