"""How far a simulated row may be from the study's and still be taken for it."""

from __future__ import annotations

import msgspec
import pytest

from runtime.experiments.row import PEAK_RATIO, RISE_2S_RATIO, RISE_40S_RATIO, RowCheck

STUDYS = RowCheck(
    servers=40, weeks=6.0, seed=1, peak_ratio=PEAK_RATIO, mean_ratio=0.6, p01_ratio=0.5, p50_ratio=0.6,
    p99_ratio=0.7, rise_2s_ratio=RISE_2S_RATIO, rise_40s_ratio=RISE_40S_RATIO, requests_per_s=7.0,
    latency_s={"high": (20.0, 60.0), "low": (20.0, 60.0)},
)  # fmt: skip


def missed(**changes: float) -> list[str]:
    return msgspec.structs.replace(STUDYS, **changes).misses()


@pytest.mark.parametrize("ratio", [0.7751, 0.79, 0.8049])
def test_a_row_that_peaks_within_a_point_and_a_half_of_the_studys_is_the_studys(ratio: float) -> None:
    assert missed(peak_ratio=ratio) == []


@pytest.mark.parametrize(("ratio", "said"), [(0.7749, "0.775"), (0.8051, "0.805")])
def test_a_row_that_peaks_further_off_has_other_headroom_and_no_servers_may_be_added_by_it(
    ratio: float, said: str
) -> None:
    assert missed(peak_ratio=ratio) == [f"peaks at {said} of its budget, not at 0.79"]


@pytest.mark.parametrize(
    ("rise", "studied", "within"), [("rise_2s_ratio", 0.09, "2 s"), ("rise_40s_ratio", 0.118, "40 s")]
)
def test_a_rise_may_be_a_quarter_of_the_studys_off_and_no_more(
    rise: str, studied: float, within: str
) -> None:
    for share in (0.751, 1.249):
        assert missed(**{rise: share * studied}) == []
    for share in (0.749, 1.251):
        ratio = share * studied
        assert missed(**{rise: ratio}) == [
            f"rises by {ratio:.3f} of its budget within {within}, not by {studied:.3f}"
        ], "a cap must land before the rise does, so thresholds tried on another rise prove nothing"


def test_all_that_is_not_the_studys_is_said_at_once() -> None:
    found = missed(peak_ratio=0.9, rise_2s_ratio=0.2, rise_40s_ratio=0.3)
    assert [miss.split()[0] for miss in found] == ["peaks", "rises", "rises"]
