from __future__ import annotations

import msgspec
import pytest
from support.capped_row import capped_row

from controllers.clock_table import PUBLISHED, ClockTable, Uncalibrated, from_fractions, settle
from controllers.policy import DEFAULT_POLICY, CappingPolicy
from schemas.skus import SKUS

A100 = SKUS["A100-SXM4-80GB"]


def test_the_published_clocks_of_an_a100_are_used_as_they_stand_where_the_board_lists_them() -> None:
    clocks = DEFAULT_POLICY.clocks_of(A100)
    assert (clocks.max, clocks.high_t2, clocks.low_t1, clocks.low_t2) == (1410, 1305, 1275, 1110)
    # 288 MHz is not on the 15 MHz list from 210 MHz up: the next one below it is.
    assert PUBLISHED["A100-SXM4-80GB"].brake == 288
    assert clocks.brake == 285


@pytest.mark.parametrize("board", ["H100-SXM5-80GB", "H200-SXM5-141GB"])
def test_a_hopper_starts_from_the_a100s_fractions_rounded_down_to_its_own_clocks(board: str) -> None:
    sku = SKUS[board]
    stated = from_fractions(sku)
    assert (stated.low_t1, stated.high_t2, stated.low_t2, stated.brake) == (1789, 1833, 1558, 403)
    clocks = settle(stated, sku)
    assert (clocks.max, clocks.low_t1, clocks.high_t2, clocks.low_t2, clocks.brake) == (
        1980,
        1785,
        1830,
        1545,
        390,
    )


def test_each_clock_is_rounded_down_and_never_up() -> None:
    clocks = settle(ClockTable(low_t1=1289, high_t2=1319, low_t2=1124, brake=299), A100)
    assert (clocks.low_t1, clocks.high_t2, clocks.low_t2, clocks.brake) == (1275, 1305, 1110, 285)


def test_a_board_nobody_swept_is_refused_with_what_to_do_about_it() -> None:
    sku = SKUS["H200-SXM5-141GB"]
    with pytest.raises(Uncalibrated) as refusal:
        DEFAULT_POLICY.clocks_of(sku)
    assert "[clocks.H200-SXM5-141GB]" in str(refusal.value)
    assert "allow_fraction_defaults" in str(refusal.value)
    assert len(DEFAULT_POLICY.unfit_for(capped_row(2, 2, sku=sku.name))) == 1
    allowed = CappingPolicy(allow_fraction_defaults=True)
    assert allowed.clocks_of(sku).low_t2 == 1545
    assert allowed.unfit_for(capped_row(2, 2, sku=sku.name)) == ()


def test_a_sites_own_sweep_goes_before_what_was_published() -> None:
    swept = ClockTable(low_t1=1200, high_t2=1290, low_t2=1005, brake=300)
    assert CappingPolicy(clocks={A100.name: swept}).clocks_of(A100).low_t2 == 1005


@pytest.mark.parametrize(
    "wrong",
    [
        {"brake": 1110},
        {"low_t2": 1275},
        {"low_t1": 1410},
        {"high_t2": 1410},
        {"high_t2": 1110},
        {"low_t2": 1276, "low_t1": 1280},  # in order as stated, one clock once rounded
    ],
)
def test_a_table_out_of_order_on_its_board_is_refused(wrong: dict[str, int]) -> None:
    table = msgspec.structs.replace(PUBLISHED[A100.name], **wrong)
    with pytest.raises(Uncalibrated, match="must hold"):
        settle(table, A100)
