"""The study's row is the study's row."""

from pathlib import Path

import numpy as np
import pytest
from support.counterparts import shared_data

from runtime.experiments.row import (
    BUSY_S,
    PROVISIONED,
    STUDY_DEMAND,
    Spikes,
    recorded_rate,
    row_check,
    row_load,
    row_setup,
    row_site,
    study_row,
)
from schemas.site_file import read_site


def test_the_uncontrolled_row_peaks_and_rises_like_the_studys() -> None:
    """One of the twelve weeks that the demand was set on; the others make the highest figures higher."""
    check = row_check(1.0, 1)
    assert 0.75 < check.peak_ratio <= 0.80, check
    assert 0.045 < check.rise_2s_ratio < 0.11, check
    assert 0.08 < check.rise_40s_ratio < 0.145, check
    assert check.latency_s["high"][0] > check.latency_s["low"][0]  # searches answer at length


def test_fifty_two_servers_pass_the_budget() -> None:
    """Three days of a week whose other days are as busy: 0.79 x 52/40 is above 1."""
    assert row_check(3 / 7, 1, servers=52).peak_ratio > 0.97


@pytest.mark.parametrize("servers", [2, 40, 42, 52, 60])
def test_the_row_has_half_of_each_priority(servers: int) -> None:
    row = read_site(row_site(servers), "study").rows[0]
    assert len(row.hosts) == servers
    assert sum(host.priority == "high" for host in row.hosts) == servers / 2
    assert row.budget_w == PROVISIONED * 6500.0
    assert {host.rated_w for host in row.hosts} == {6500.0}


def test_recorded_arrivals_bring_the_row_to_the_same_peak() -> None:
    files = tuple(shared_data(f"llm_traces/azure2023_{name}.csv") for name in ("code", "conv"))
    setup = row_setup(PROVISIONED)
    peaks = []
    for arrivals in ((), files):
        row = study_row(setup, 5, load=row_load(setup, 5, begin_s=BUSY_S, arrivals=arrivals))
        spikes = Spikes(row.budget_w)
        row.course_w()
        for _ in range(12):
            spikes.take(row.course_w())
        peaks.append(spikes.peak_ratio)
    assert peaks[1] == pytest.approx(peaks[0], abs=0.03)


def test_under_recorded_arrivals_the_row_is_still_the_studys() -> None:
    """Three days of the weeks that their rate was set for."""
    files = tuple(shared_data(f"llm_traces/azure2023_{name}.csv") for name in ("code", "conv"))
    check, random = (row_check(3 / 7, 1, arrivals=arrivals) for arrivals in (files, ()))
    assert 0.75 < check.peak_ratio <= 0.805, check
    assert 0.045 < check.rise_2s_ratio < 0.11, check
    assert 0.08 < check.rise_40s_ratio < 0.145, check
    assert check.mean_ratio == pytest.approx(random.mean_ratio, abs=0.02)
    for priority in ("low", "high"):
        assert check.latency_s[priority] == pytest.approx(random.latency_s[priority], rel=0.05)


def test_arrivals_too_far_apart_to_fill_the_row_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.experiments.row._MOST_PER_S", 0.3)
    file = tmp_path / "gap.csv"
    rows = "".join(
        f"{day} 18:17:{s:02d}.9,{s},1\n" for day in ("2023-11-16", "2023-12-16") for s in range(60)
    )
    file.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    with pytest.raises(
        ValueError,
        match=r"0\.3 such requests a second at each server, over 30\.0 days, do not bring the row to",
    ):
        recorded_rate((file,))


def test_a_row_of_an_odd_number_is_refused() -> None:
    with pytest.raises(ValueError, match="41 servers: the row has as many of high as of low priority"):
        row_setup(41)


def test_spikes_are_the_same_however_the_course_is_cut() -> None:
    rng = np.random.default_rng(1)
    course = (200e3 + np.cumsum(rng.standard_normal(3000)) * 300).tolist()
    whole, cut = Spikes(260e3), Spikes(260e3)
    whole.take(course)
    for first in range(0, 3000, 17):
        cut.take(course[first : first + 17])
    p = np.array(course) / 260e3
    assert whole.rise_2s_ratio == cut.rise_2s_ratio == pytest.approx(np.diff(p).max())
    expected = max(p[i + 1 : i + 21].max() - p[i] for i in range(2999))
    assert whole.rise_40s_ratio == cut.rise_40s_ratio == pytest.approx(expected)
    assert whole.peak_ratio == cut.peak_ratio == p.max()
    assert whole.quantile_ratio(0.5) == pytest.approx(np.median(p), abs=0.001)


def test_a_row_that_is_not_the_studys_says_where() -> None:
    quiet = row_check(0.1, 1, demand=type(STUDY_DEMAND)(requests_per_s=0.05))
    assert any("peaks at" in miss for miss in quiet.misses())
