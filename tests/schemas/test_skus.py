"""Boards: clocks are rounded down, so that a rounded clock never draws more than was asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.skus import SKUS, Sku

BOARDS = st.sampled_from(sorted(SKUS.values(), key=lambda sku: sku.name))


@given(sku=BOARDS, mhz=st.floats(0.0, 3_000.0))
def test_a_clock_is_rounded_down_to_a_supported_one_and_never_up(sku: Sku, mhz: float) -> None:
    clock = sku.round_down(mhz)
    assert clock in range(sku.min_mhz, sku.max_mhz + 1, sku.step_mhz)
    if mhz >= sku.min_mhz:
        assert clock <= mhz
        assert mhz - clock < sku.step_mhz or clock == sku.max_mhz
    else:
        assert clock == sku.min_mhz, "there is no lower clock to give"


@pytest.mark.parametrize(
    ("mhz", "clock"),
    [(1_410, 1_410), (1_409.9, 1_395), (1_275, 1_275), (1_110, 1_110), (5_000, 1_410), (210, 210), (0, 210)],
)
def test_a100_clocks_are_fifteen_megahertz_apart(mhz: float, clock: int) -> None:
    assert SKUS["A100-SXM4-80GB"].round_down(mhz) == clock


def modelled_w(sku: Sku, mhz: float) -> float:
    return sku.idle_w + (sku.tdp_w - sku.idle_w) * sku.power_fraction(mhz)


@given(sku=BOARDS, watts=st.floats(0.0, 1_000.0))
def test_the_clock_for_a_power_is_the_highest_that_stays_within_it(sku: Sku, watts: float) -> None:
    clock = sku.clock_for_power(watts)
    assert clock == sku.round_down(clock)
    assert modelled_w(sku, clock) <= watts or clock == sku.min_mhz
    assert clock == sku.max_mhz or modelled_w(sku, clock + sku.step_mhz) > watts


@given(sku=BOARDS, low=st.floats(0.0, 1_000.0), more=st.floats(0.0, 500.0))
def test_more_power_never_means_a_lower_clock(sku: Sku, low: float, more: float) -> None:
    assert sku.clock_for_power(low + more) >= sku.clock_for_power(low)


@given(sku=BOARDS, low=st.floats(0.0, 3_000.0), more=st.floats(0.0, 3_000.0))
def test_power_rises_with_the_clock_from_nothing_to_all(sku: Sku, low: float, more: float) -> None:
    assert 0.0 <= sku.power_fraction(low) <= sku.power_fraction(low + more) <= 1.0
    assert sku.power_fraction(sku.max_mhz) == 1.0


@pytest.mark.parametrize(
    ("name", "idle_w", "rated_w"),
    [("A100-SXM4-80GB", 1_500.0, 6_500.0), ("H100-SXM5-80GB", 2_800.0, 10_200.0)],
)
def test_an_eight_gpu_server_adds_up_to_its_published_idle_and_rating(
    name: str, idle_w: float, rated_w: float
) -> None:
    sku = SKUS[name]
    assert 8 * sku.idle_w + sku.server_overhead_idle_w == idle_w
    assert 8 * sku.tdp_w + sku.server_overhead_max_w == rated_w


@pytest.mark.parametrize("sku", SKUS.values(), ids=lambda sku: sku.name)
def test_a_boards_figures_are_in_order(sku: Sku) -> None:
    assert sku.idle_w < sku.limit_min_w < sku.tdp_w <= sku.limit_max_w
    assert (sku.max_mhz - sku.min_mhz) % sku.step_mhz == 0
    assert sku.limit_min_w.is_integer()
    assert sku.limit_max_w.is_integer()
