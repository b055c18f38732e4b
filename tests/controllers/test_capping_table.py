"""The state table, row by row, at each threshold and just beside it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllers.capping import (
    LADDER,
    RUNG_RATIO,
    SAFE_MODE,
    STRICTNESS,
    Look,
    caps,
    clock_of,
    step,
    taken_over,
)
from controllers.policy import DEFAULT_POLICY, CappingPolicy, Switches, Variant
from schemas.skus import SKUS
from schemas.topology import Priority

E = 1e-9
MODES = list(STRICTNESS)
CAPS = ["U", "T1", "T2a", "T2b"]
A100 = SKUS["A100-SXM4-80GB"]
FINE = CappingPolicy(variant="proportional")


def after(mode: str, p: float, policy: CappingPolicy = DEFAULT_POLICY, **seen: bool) -> str:
    return step(mode, Look(p=p, peak=p, **seen), policy)


def switched(**switches: object) -> CappingPolicy:
    return CappingPolicy(switches=msgspec.structs.replace(Switches(), **switches))


@pytest.mark.parametrize(
    ("mode", "p", "target"),
    [
        ("U", 0.80, "U"),
        ("U", 0.80 + E, "T1"),
        ("U", 0.89, "T1"),
        ("U", 0.89 + E, "T2a"),
        ("T1", 0.75, "T1"),
        ("T1", 0.75 - E, "U"),
        ("T1", 0.89, "T1"),
        ("T1", 0.89 + E, "T2a"),
        ("T2a", 0.84, "T2a"),
        ("T2a", 0.84 - E, "T1"),
        ("T2a", 0.89 + E, "T2a"),  # low has not landed
        ("T2b", 0.84, "T2b"),
        ("T2b", 0.84 - E, "T1"),
        ("T2b", 0.99, "T2b"),
    ],
)
def test_each_row_of_the_table_turns_at_its_threshold_and_not_before(
    mode: str, p: float, target: str
) -> None:
    assert after(mode, p) == target


def test_high_priority_is_capped_only_once_the_low_step_has_landed() -> None:
    assert after("T2a", 0.89 + E, landed=False) == "T2a"
    assert after("T2a", 0.89, landed=True) == "T2a"
    assert after("T2a", 0.89 + E, landed=True) == "T2b"


def test_the_immediate_switch_caps_both_classes_at_one_look() -> None:
    at_once = switched(hp_escalation="immediate")
    assert [after(mode, 0.89 + E, at_once) for mode in ("U", "T1", "T2a")] == ["T2b"] * 3


@pytest.mark.parametrize("mode", MODES)
def test_above_the_budget_every_mode_brakes(mode: str) -> None:
    assert after(mode, 1.0 + E) == "B"
    assert after(mode, 1.0) == mode if mode in ("T2b", "B") else after(mode, 1.0) != "B"


@pytest.mark.parametrize("mode", MODES)
def test_a_failing_ups_brakes_at_any_power(mode: str) -> None:
    assert after(mode, 0.3, failover=True) == "B"


@pytest.mark.parametrize(
    ("variant", "caps"),
    [
        ("polca", "T2b"),
        ("polca_forecast", "T2b"),
        ("one_threshold_low", "T2a"),
        ("one_threshold_all", "T2b"),
        ("no_cap", "U"),
        ("proportional", "P8"),
    ],
)
def test_a_brake_that_is_let_go_leaves_the_strictest_caps_of_its_variant(variant: Variant, caps: str) -> None:
    policy = CappingPolicy(variant=variant)
    assert after("B", 0.5, policy, calm=False) == "B"
    assert after("B", 0.5, policy, calm=True) == caps


def test_uncapping_both_classes_below_t2_is_a_switch() -> None:
    both = switched(uncap_rule="both_below_T2")
    assert after("T2b", 0.80, both) == "U"
    assert after("T2b", 0.84 - E, both) == "T1"  # above T1 the low class would be capped again at once
    assert after("T2b", 0.84, both) == "T2b"


@pytest.mark.parametrize(("variant", "capped"), [("one_threshold_low", "T2a"), ("one_threshold_all", "T2b")])
def test_a_baseline_has_one_threshold(variant: Variant, capped: str) -> None:
    policy = CappingPolicy(variant=variant)
    assert [after("U", p, policy) for p in (0.81, 0.89, 0.89 + E)] == ["U", "U", capped]
    assert [after(capped, p, policy, landed=True) for p in (0.99, 0.84, 0.84 - 1e-5)] == [capped, capped, "U"]
    low = msgspec.structs.replace(policy, switches=Switches(baseline_threshold="0.80"))
    assert after("U", 0.80 + E, low) == capped


def test_no_cap_knows_the_brake_alone_and_off_knows_nothing() -> None:
    assert [after("U", p, CappingPolicy(variant="no_cap")) for p in (0.99, 1.0 + E)] == ["U", "B"]
    assert after("U", 1.3, CappingPolicy(variant="off"), failover=True) == "U"


@given(
    start=st.sampled_from(CAPS),
    band=st.sampled_from([(0.75, 0.80), (0.84, 0.89)]),
    parts=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40),
    variant=st.sampled_from(["polca", "polca_forecast", "one_threshold_low", "one_threshold_all"]),
)
def test_power_that_stays_within_a_hysteresis_band_moves_the_mode_at_most_once_each_way(
    start: str, band: tuple[float, float], parts: list[tuple[float, bool]], variant: Variant
) -> None:
    """Inside a band the mode settles: what it left it never enters again."""
    policy = CappingPolicy(variant=variant)
    low, high = band
    modes, mode = [start], start
    for part, landed in parts:
        mode = after(mode, low + part * (high - low), policy, landed=landed)
        if mode != modes[-1]:
            modes.append(mode)
    assert len(modes) == len(set(modes)), f"oscillates: {modes}"
    assert len(modes) <= 2


@given(p=st.floats(0.0, 2.0), mode=st.sampled_from(MODES), landed=st.booleans(), calm=st.booleans())
def test_more_power_never_leads_to_a_looser_mode(p: float, mode: str, landed: bool, calm: bool) -> None:
    here = STRICTNESS[after(mode, p, landed=landed, calm=calm)]
    above = STRICTNESS[after(mode, p + 0.01, landed=landed, calm=calm)]
    assert above >= here


@pytest.mark.parametrize(
    ("mode", "p", "target"),
    [
        ("U", 0.80, "U"),
        ("U", 0.80 + E, "P1"),
        ("P1", 0.75, "P1"),
        ("P1", 0.75 - E, "U"),
        ("P1", 0.84 - E, "P1"),
        ("P4", 0.84 - E, "P3"),
        ("P4", 0.75 - E, "P3"),
        ("P4", 0.84, "P4"),
        ("P4", 0.89, "P4"),
        ("P4", 0.89 + E, "P5"),
        ("U", 0.89 + E, "P1"),
        ("P2", 0.89 + 2 * RUNG_RATIO - E, "P4"),
        ("P2", 0.89 + 2 * RUNG_RATIO + E, "P5"),
        ("P7", 0.99, "P8"),
        ("P8", 0.89, "P8"),
    ],
)
def test_the_ladder_is_climbed_by_the_excess_and_left_by_the_rung(mode: str, p: float, target: str) -> None:
    assert after(mode, p, FINE) == target


def test_what_is_on_its_way_is_not_asked_for_again_and_what_rises_meanwhile_is() -> None:
    assert step("P3", Look(p=0.92, peak=0.92, provided=0.92), FINE) == "P3"
    assert step("P3", Look(p=0.91, peak=0.91, provided=0.92), FINE) == "P3"
    assert step("P3", Look(p=0.925, peak=0.925, provided=0.92), FINE) == "P4"
    assert step("P3", Look(p=0.96, peak=0.96, provided=0.92), FINE) == "P6"


def test_each_rung_is_stricter_than_the_one_below_and_high_priority_is_last() -> None:
    clocks = FINE.clocks_of(A100)
    low = [clock_of(clocks, A100, mode, "low") for mode in LADDER]
    high = [clock_of(clocks, A100, mode, "high") for mode in LADDER]
    assert low == [1410, 1350, 1290, 1230, 1170, 1110, 1110, 1110, 1110]
    assert high == [1410, 1410, 1410, 1410, 1410, 1410, 1365, 1335, 1305]
    assert [caps(mode, "high") for mode in LADDER] == [clock < 1410 for clock in high]
    assert [caps(mode, "low") for mode in LADDER] == [clock < 1410 for clock in low]
    assert [STRICTNESS[mode] for mode in LADDER] == list(range(9))
    assert STRICTNESS["B"] > STRICTNESS["P8"]


@given(st.sampled_from(LADDER), st.floats(0.3, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 0.2))
def test_more_power_never_leads_to_a_looser_rung(mode: str, p: float, provided: float, more: float) -> None:
    here = step(mode, Look(p=p, peak=p, provided=provided), FINE)
    there = step(mode, Look(p=p + more, peak=p + more, provided=provided), FINE)
    assert STRICTNESS[there] >= STRICTNESS[here]
    assert STRICTNESS[here] >= STRICTNESS[mode] - 1


@pytest.mark.parametrize("variant", list(SAFE_MODE))
@pytest.mark.parametrize("mode", MODES)
def test_a_variant_goes_on_from_anothers_mode_no_looser(variant: Variant, mode: str) -> None:
    adopted = taken_over(mode, variant)
    assert adopted in (LADDER if variant == "proportional" else (*CAPS,)) or adopted == "B"
    if SAFE_MODE[variant] == "U":
        return
    clocks = FINE.clocks_of(A100)
    priorities: tuple[Priority, ...] = ("low",) if variant == "one_threshold_low" else ("low", "high")
    for priority in priorities:
        if "B" not in (mode, adopted) and adopted != mode:
            assert clock_of(clocks, A100, adopted, priority) <= clock_of(clocks, A100, mode, priority)
