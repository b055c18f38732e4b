"""Who owns a host's clock when several policies look at it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.capped_row import ROW, T0

from controllers.arbitration import arbitrate, rank
from schemas.decisions import Decision, Setting

HOST = f"{ROW}/r00/h00"


def wish(policy: str, mhz: int, *, brake: bool = False, refusal: str = "", host: str = HOST) -> Decision:
    setting = Setting(
        target=host, max_mhz=mhz, path="in_band", on_expiry="safe_share", brake=brake, owner=policy
    )
    return Decision(
        at=T0, source=f"controller/{policy}", subject=ROW, cause=(f"reading-of-{policy}",), policy=policy,
        mode=f"mode of {policy}", since=T0, desired=(setting,), because=policy, refusal=refusal,
    )  # fmt: skip


def owner(*decisions: Decision) -> tuple[str, int]:
    (setting,) = arbitrate(decisions).desired
    return setting.owner, setting.max_mhz


def test_one_policy_alone_is_left_as_it_is() -> None:
    alone = wish("capping/polca", 1110)
    assert arbitrate([alone]) is alone


@pytest.mark.parametrize(
    ("wishes", "held"),
    [
        ([("capping/polca", 1110), ("thermal/inlet", 1275)], ("capping/polca", 1110)),
        ([("capping/polca", 1410), ("thermal/inlet", 1275)], ("thermal/inlet", 1275)),
        ([("capping/polca", 1410), ("energy/eco", 1005)], ("energy/eco", 1005)),
        ([("capping/polca", 1110), ("service/ttft", 1410)], ("capping/polca", 1110)),
        ([("capping/polca", 1410), ("service/ttft", 1410), ("energy/eco", 1005)], ("capping/polca", 1410)),
        ([("capping/polca", 1410), ("service/ttft", 1305), ("energy/eco", 1005)], ("service/ttft", 1305)),
        ([("quality/floor", 1200), ("energy/eco", 1005)], ("quality/floor", 1200)),
        ([("energy/eco", 1005), ("energy/tariff", 900)], ("energy/tariff", 900)),
        ([("somebody", 600), ("energy/eco", 1005)], ("energy/eco", 1005)),
    ],
)
def test_hard_limits_are_ceilings_and_below_them_the_highest_rank_owns_the_clock(
    wishes: list[tuple[str, int]], held: tuple[str, int]
) -> None:
    assert owner(*(wish(policy, mhz) for policy, mhz in wishes)) == held
    assert owner(*(wish(policy, mhz) for policy, mhz in reversed(wishes)))[1] == held[1]


def test_a_brake_beats_a_lower_lock() -> None:
    assert owner(wish("thermal/inlet", 210), wish("capping/polca", 285, brake=True)) == ("capping/polca", 285)


def test_what_lost_is_named_and_causes_add_up() -> None:
    merged = arbitrate([wish("energy/eco", 1005), wish("service/ttft", 1410), wish("capping/polca", 1275)])
    assert merged.mode == "mode of capping/polca"
    assert merged.cause == ("reading-of-capping/polca", "reading-of-service/ttft", "reading-of-energy/eco")
    assert set(merged.overruled) == {
        f"{HOST}: service/ttft wished 1410 MHz, capping/polca holds 1275 MHz",
        f"{HOST}: energy/eco wished 1005 MHz, capping/polca holds 1275 MHz",
    }
    assert merged.id not in ("", wish("capping/polca", 1275).id)


def test_a_refusal_of_a_hard_limit_stands_for_all_and_one_of_energy_does_not() -> None:
    merged = arbitrate([wish("capping/polca", 1110), wish("thermal/inlet", 1275, refusal="no inlet reading")])
    assert merged.refusal == "no inlet reading"
    merged = arbitrate([wish("capping/polca", 1110), wish("energy/eco", 900, refusal="no tariff")])
    assert merged.refusal == ""


POLICIES = st.sampled_from(["capping/a", "thermal/b", "service/c", "quality/d", "energy/e"])


@given(st.lists(st.tuples(POLICIES, st.integers(210, 1410)), min_size=1, max_size=6))
def test_nothing_passes_a_hard_ceiling(wishes: list[tuple[str, int]]) -> None:
    decisions = [wish(policy, mhz) for policy, mhz in wishes]
    hard = [d.desired[0].max_mhz for d in decisions if rank(d) == 0]
    assert owner(*decisions)[1] <= min(hard, default=1410)
