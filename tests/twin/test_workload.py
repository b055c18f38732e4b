"""Who asks what, and when."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.counterparts import shared_data

from schemas.topology import Site
from twin.workload import MIX, Arrivals, Burst, LoadProfile, PoissonLoad, RecordedLoad

STEADY = LoadProfile(requests_per_s=0.5, points=((0.0, 1.0),))


def drawn(site: Site, profile: LoadProfile, seed: int, minutes: int = 20) -> Arrivals:
    load = PoissonLoad(site.rows[0].hosts, profile, np.random.default_rng(seed))
    parts = [load.minute(index) for index in range(minutes)]
    return Arrivals(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def test_the_same_seed_asks_the_same(make_site: Callable[..., Site]) -> None:
    site = make_site()
    first, again, other = (drawn(site, STEADY, seed) for seed in (7, 7, 8))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert first.at_s.size != other.at_s.size or not np.array_equal(first.at_s, other.at_s)


def test_requests_come_in_order_and_as_often_as_asked(make_site: Callable[..., Site]) -> None:
    asked = drawn(make_site(40), STEADY, 1)
    assert np.all(np.diff(asked.at_s) >= 0)
    expected = 0.5 * 40 * 20 * 60
    assert abs(asked.at_s.size - expected) < 4 * np.sqrt(expected)
    per_host = np.bincount(asked.host, minlength=40)
    assert per_host.var() == pytest.approx(per_host.mean(), rel=0.6)  # Poisson for each host too


def test_each_priority_asks_from_its_own_hosts_in_the_recalled_ranges(make_site: Callable[..., Site]) -> None:
    site = make_site(8)
    asked = drawn(site, STEADY, 1, minutes=60)
    hosts = site.rows[0].hosts
    for priority in ("low", "high"):
        mine = np.array([hosts[h].priority == priority for h in asked.host])
        assert mine.mean() == pytest.approx(0.5, abs=0.02)
        kinds = [kind for kind in MIX if kind.priority == priority]
        fits = np.zeros(mine.sum(), dtype=bool)
        for kind in kinds:
            fits |= (
                (asked.prompt[mine] >= kind.prompt_tokens[0])
                & (asked.prompt[mine] <= kind.prompt_tokens[1])
                & (asked.output[mine] >= kind.output_tokens[0])
                & (asked.output[mine] <= kind.output_tokens[1])
            )
        assert fits.all()


def test_demand_follows_the_profile_and_its_bursts() -> None:
    profile = LoadProfile(
        requests_per_s=1.0,
        points=((0.0, 0.2), (100.0, 1.0)),
        bursts=(Burst(at_s=200.0, rise_s=10.0, hold_s=20.0, height_ratio=0.5),),
    )
    at = np.array([-50.0, 0.0, 50.0, 100.0, 200.0, 205.0, 210.0, 229.0, 240.0, 500.0])
    assert profile.ratio(at).tolist() == pytest.approx([0.2, 0.2, 0.6, 1.0, 1.0, 1.25, 1.5, 1.5, 1.0, 1.0])


def test_a_recording_keeps_its_tokens_and_its_length() -> None:
    rng = np.random.default_rng(1)
    at = np.sort(rng.uniform(30, 570, 2000))
    prompt, output = rng.integers(1, 4000, 2000).astype(float), rng.integers(0, 500, 2000).astype(float)
    load = RecordedLoad(at, prompt, output, 4, np.random.default_rng(2), copies=3.0)
    parts = [load.minute(index) for index in range(-3, 20)]
    whole = Arrivals(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    assert whole.at_s.size == pytest.approx(6000, rel=0.06)
    assert whole.at_s.max() <= 600
    assert set(zip(whole.prompt.tolist(), whole.output.tolist(), strict=True)) <= {
        (p, max(1.0, o)) for p, o in zip(prompt.tolist(), output.tolist(), strict=True)
    }
    assert np.bincount(whole.host).min() > 1300


def test_the_public_azure_trace_can_be_asked() -> None:
    path: Path = shared_data("llm_traces/azure2023_conv.csv")
    with path.open(encoding="utf-8") as lines:
        head = list(itertools.islice(lines, 2001))
    rows = np.genfromtxt(head, delimiter=",", names=True, dtype=None, encoding="utf-8")
    stamps = np.array([stamp[:26] for stamp in rows["TIMESTAMP"]], dtype="datetime64[us]")
    at = (stamps - stamps[0]) / np.timedelta64(1, "s")
    prompt, output = (rows[name].astype(float) for name in ("ContextTokens", "GeneratedTokens"))
    load = RecordedLoad(at, prompt, output, 8, np.random.default_rng(1))
    first = load.minute(1)
    assert first.at_s.size > 50
    assert first.prompt.max() <= rows["ContextTokens"].max()


def test_a_load_that_comes_again_and_faster_is_the_same_load() -> None:
    once = LoadProfile(
        requests_per_s=1.0,
        points=((0.0, 0.1), (1800.0, 0.7), (3600.0, 0.1)),
        bursts=(Burst(at_s=1200.0, rise_s=60.0, hold_s=60.0, height_ratio=0.2),),
        again_s=3600.0,
    )
    at = np.linspace(0.0, 3599.0, 200)
    assert np.allclose(once.ratio(at + 7200.0), once.ratio(at))
    assert np.allclose(once.faster(6.0).ratio(at / 6.0 + 1200.0), once.ratio(at))
