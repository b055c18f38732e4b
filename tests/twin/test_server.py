"""What servers draw, how fast they answer, and what clocks and limits do to both."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from schemas.skus import SKUS
from schemas.topology import Host, Site
from schemas.units import FloatArray
from twin.server import Servers
from twin.serving.curves import curves_of
from twin.serving.engine import EngineLimits, Pace, Requests, serve
from twin.workload import Arrivals, LoadProfile, PoissonLoad

A100 = SKUS["A100-SXM4-80GB"]
FINE_S = 0.01
PUBLISHED = (
    (128, 0.691, 80.0),
    (256, 0.723, 99.0),
    (512, 0.876, 174.0),
    (1024, 1.007, 289.0),
    (2048, 1.021, 540.0),
    (4096, 1.016, 1348.0),
    (8192, 1.026, 3593.0),
)
"""Prompt tokens, peak power over TDP and prefill ms of BLOOM-176B on 8 x A100 (splitwise-sim, published)."""
NONE = Arrivals(np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0))


def servers_of(hosts: tuple[Host, ...], dt_s: float = 0.5) -> Servers:
    return Servers(hosts, dt_s, np.random.default_rng(3))


class Run:
    """Servers stepped through requests, with the GPU power of each step kept."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.asked = np.zeros(servers.alive.size)
        self.steps = 0
        self.watts: list[FloatArray] = []

    def step(self, *requests: tuple[int, int, int], steps: int = 1) -> None:
        """`requests` (host, prompt, output) arrive at the start of the first of `steps`."""
        for index in range(steps):
            now = self.steps * self.servers.dt_s
            new = NONE
            if requests and not index:
                host, prompt, output = np.array(requests).T
                new = Arrivals(np.full(host.size, now), host, prompt.astype(float), output.astype(float))
            marks = self.servers.places(self.asked, new)
            self.steps += 1
            self.servers.step(self.steps * self.servers.dt_s, new, marks)
            self.watts.append(self.servers.gpu_w.copy())


def alone(make_site: Callable[..., Site], prompt: int, output: int) -> Run:
    """One server, one request, in steps of 10 ms until it is done."""
    run = Run(servers_of(make_site(1).rows[0].hosts, FINE_S))
    run.step((0, prompt, output))
    while run.servers.requests("low").done == 0:
        run.step()
    return run


# ---- the published table ----


def test_a_prompt_peaks_and_lasts_as_in_the_published_table(make_site: Callable[..., Site]) -> None:
    for prompt, peak, ms in PUBLISHED:
        run = alone(make_site, prompt, 128)
        assert max(w.max() for w in run.watts) / A100.tdp_w == pytest.approx(peak, abs=0.01)
        expected_s = ms / 1000 + 128 * curves_of(A100).token_s
        assert run.servers.latency_s("low", 0.5) == pytest.approx(expected_s, rel=0.01)


def test_peak_rises_with_the_prompt_and_its_mean_stays_flat(make_site: Callable[..., Site]) -> None:
    runs = [alone(make_site, prompt, 128) for prompt in (256, 512, 1024, 2048)]
    peaks = [max(w.max() for w in run.watts) for run in runs]
    means = [float(np.mean([w.mean() for w in run.watts])) for run in runs]
    assert peaks == sorted(peaks)
    assert peaks[-1] / peaks[0] > 1.3
    assert max(means) / min(means) < 1.07


def test_a_longer_answer_takes_longer_and_peaks_no_higher(make_site: Callable[..., Site]) -> None:
    short, long = alone(make_site, 1024, 128), alone(make_site, 1024, 1024)
    assert max(w.max() for w in long.watts) == max(w.max() for w in short.watts)
    assert long.servers.latency_s("low", 0.5) > 7 * short.servers.latency_s("low", 0.5)


def test_prompts_prefilled_together_peak_like_a_longer_one(make_site: Callable[..., Site]) -> None:
    """In the published table, four prompts of 512 peak at 1.013 of TDP, one at 0.876."""
    run = Run(servers_of(make_site(1).rows[0].hosts, FINE_S))
    run.step(*[(0, 512, 10)] * 4, steps=100)
    assert run.watts[0].max() / A100.tdp_w == pytest.approx(1.013, abs=0.015)


# ---- requests ----


def test_every_request_is_done_waiting_or_decoding(make_site: Callable[..., Site]) -> None:
    hosts = make_site(8).rows[0].hosts
    profile = LoadProfile(requests_per_s=0.4, points=((0.0, 1.0),), wander_ratio=0.1)
    load, run = PoissonLoad(hosts, profile, np.random.default_rng(5)), Run(servers_of(hosts))
    arrived = 0
    for minute in range(6):
        asked = load.minute(minute)
        if minute == 3:  # some in overload
            run.servers.lock_mhz[:] = 288
            run.servers.retune()
        marks = run.servers.places(run.asked, asked)
        for step in range(120):
            end = minute * 60 + (step + 1) * 0.5
            part = slice(*np.searchsorted(asked.at_s, (end - 0.5, end)))
            arrived += asked.at_s[part].size
            run.servers.step(end, asked.part(part), marks[part])
            both = [run.servers.requests(priority) for priority in ("low", "high")]
            assert sum(r.arrived for r in both) == arrived
            for r in both:
                assert r.arrived == r.done + r.waiting + r.decoding + r.lost
    for priority in ("low", "high"):
        assert run.servers.requests(priority).done > 50
        assert run.servers.requests(priority).lost == 0


def test_first_come_first_served(make_site: Callable[..., Site]) -> None:
    """The second of two equal prompts waits for the first; its answer ends that much later."""
    run = Run(servers_of(make_site(1).rows[0].hosts, FINE_S))
    run.step((0, 4096, 10), (0, 4096, 10), steps=600)
    assert run.servers.latency_s("low", 0.25) == pytest.approx(
        1.348 + 0.494, rel=0.05
    )  # slowed by the other's prompt
    assert run.servers.latency_s("low", 0.99) == pytest.approx(2 * 1.348 + 0.494, rel=0.03)


def test_a_dark_server_loses_its_requests_and_draws_nothing(make_site: Callable[..., Site]) -> None:
    run = Run(servers_of(make_site(2).rows[0].hosts))
    run.step((0, 4096, 400), (1, 4096, 400), steps=6)
    run.servers.alive[0] = False
    run.servers.darken()
    run.step((0, 4096, 400), steps=2)
    assert run.servers.requests("high").lost == 2  # the first host serves high priority
    assert run.servers.requests("low").lost == 0
    assert run.servers.wall_w[0] == 0.0
    assert run.servers.wall_w[1] > 1500.0


# ---- clocks and limits ----


def busy(make_site: Callable[..., Site], steps: int = 20, **settings: float) -> Run:
    """One server kept in prompts of 4096 tokens under settings (array name → value)."""
    servers = servers_of(make_site(1).rows[0].hosts)
    for name, value in settings.items():
        getattr(servers, name)[:] = value
    servers.retune()
    run = Run(servers)
    for _ in range(steps):
        run.step((0, 4096, 100), (0, 4096, 100))
    return run


def test_a_lower_clock_draws_less_by_the_synthetic_curve(make_site: Callable[..., Site]) -> None:
    free, capped = busy(make_site), busy(make_site, lock_mhz=1110)
    dynamic = [float(run.watts[-1][0, 0]) - A100.idle_w for run in (free, capped)]
    assert dynamic[1] / dynamic[0] == pytest.approx(A100.power_fraction(1110), rel=0.02)
    assert capped.servers.sm_mhz.max() == 1110


def test_a_lock_between_two_supported_clocks_goes_down(make_site: Callable[..., Site]) -> None:
    assert busy(make_site, lock_mhz=1119).servers.sm_mhz.max() == 1110


def test_a_lower_clock_costs_prompts_much_and_answers_little(make_site: Callable[..., Site]) -> None:
    times = {}
    for mhz in (1410, 1110):
        for kind, prompt, output in (("prompt", 8192, 1), ("answer", 128, 1000)):
            servers = servers_of(make_site(1).rows[0].hosts, FINE_S)
            servers.lock_mhz[:] = mhz
            servers.retune()
            run = Run(servers)
            run.step((0, prompt, output), steps=6000)
            times[kind, mhz] = servers.latency_s("low", 0.5)
    slowdown = 1410 / 1110 - 1
    assert times["prompt", 1110] / times["prompt", 1410] - 1 == pytest.approx(0.9 * slowdown, rel=0.05)
    assert times["answer", 1110] / times["answer", 1410] - 1 == pytest.approx(0.15 * slowdown, rel=0.1)


def test_a_power_limit_acts_after_the_excess_and_then_holds(make_site: Callable[..., Site]) -> None:
    run = busy(make_site, limit_w=250.0)
    assert run.watts[0].max() > 390.0  # the first half second escapes it
    assert max(w.max() for w in run.watts[2:]) <= 251.0
    assert run.watts[-1].max() > 240.0
    assert run.servers.limited.all()


def test_a_clock_lock_acts_before_the_excess(make_site: Callable[..., Site]) -> None:
    clock = A100.clock_for_power(250.0)
    assert max(w.max() for w in busy(make_site, lock_mhz=clock).watts) <= 250.0 * 1.02


def test_a_brake_leaves_little_more_than_idle_power(make_site: Callable[..., Site]) -> None:
    run = busy(make_site, lock_mhz=288)
    assert run.watts[-1].max() < 95.0
    assert run.servers.requests("low").waiting > 10


# ---- the rest of the server ----


def test_boards_warm_with_power_and_lag(make_site: Callable[..., Site]) -> None:
    servers = servers_of(make_site(1).rows[0].hosts)
    before = servers.core_c.copy()
    run = Run(servers)
    for _ in range(16):  # 8 s: one time constant
        run.step((0, 4096, 100), (0, 4096, 100))
    rise = servers.core_c - before
    final = 0.105 * (run.watts[-1] - A100.idle_w)
    assert rise == pytest.approx((1 - np.exp(-1)) * final, rel=0.03)
    spread = before - 25.0 - 0.105 * A100.idle_w
    assert np.abs(spread).max() <= 5.0
    assert np.ptp(spread) > 1.0


def test_a_server_at_a_standing_load_draws_what_its_site_file_says(make_site: Callable[..., Site]) -> None:
    run = busy(make_site, steps=200)
    host = make_site(1).rows[0].hosts[0]
    assert run.servers.wall_w[0] == pytest.approx(host.wall_w(run.watts[-1].sum()), rel=0.005)


def test_an_idle_server_draws_the_published_idle_power(make_site: Callable[..., Site]) -> None:
    run = Run(servers_of(make_site(1).rows[0].hosts))
    run.step(steps=10)
    assert run.servers.wall_w[0] == pytest.approx(1500.0)


# ---- other boards ----


def test_a_server_of_h100_answers_sooner_and_draws_more_than_one_of_a100(
    make_site: Callable[..., Site],
) -> None:
    (a100,) = make_site(1).rows[0].hosts
    h100 = msgspec.structs.replace(a100, sku=SKUS["H100-SXM5-80GB"])
    runs = []
    for host in (a100, h100):
        run = Run(servers_of((host,), FINE_S))
        run.step((0, 2048, 64))
        while run.servers.requests("low").done == 0:
            run.step()
        runs.append(run)
    slow, fast = runs
    assert fast.servers.latency_s("low", 0.5) < 0.5 * slow.servers.latency_s("low", 0.5)
    assert fast.watts[2].max() > slow.watts[2].max(), "while it prefills"


@pytest.mark.parametrize("name", ["H100-SXM5-80GB", "H200-SXM5-141GB"])
def test_an_answers_energy_is_least_inside_the_clock_range_and_1600_mhz_saves_a_fifth(
    make_site: Callable[..., Site], name: str
) -> None:
    """Published of H100: 1.6 GHz for 2 GHz gives about the same throughput for less than 80 % of the energy.
    The model keeps 96.5 % of it, where our own measure of "about the same" is 97 %."""
    sku = SKUS[name]
    (a100,) = make_site(1).rows[0].hosts
    host = msgspec.structs.replace(a100, sku=sku)

    def answered(mhz: float) -> tuple[float, float]:
        """Seconds, and joules of all boards, of one long answer with the clock locked there."""
        servers = servers_of((host,), 0.1)
        servers.lock_mhz[:] = mhz
        servers.retune()
        run = Run(servers)
        run.step((0, 128, 1000))
        while servers.requests("low").done == 0:
            run.step()
        seconds = servers.latency_s("low", 0.5)
        return seconds, float(np.mean([watts.sum() for watts in run.watts[1:-1]])) * seconds

    clocks = np.arange(sku.min_mhz, sku.max_mhz + 1.0, 99.0)
    joules = [answered(mhz)[1] for mhz in clocks.tolist()]
    least = int(np.argmin(joules))
    assert clocks[0] < 500.0 < clocks[least] < 700.0, "the energy is least strictly inside the range"
    assert joules[0] > 1.02 * joules[least]
    assert joules[-1] > 1.3 * joules[least]
    (slow_s, low_j), (fast_s, high_j) = answered(1600.0), answered(sku.max_mhz)
    assert low_j / high_j < 0.80
    assert fast_s / slow_s == pytest.approx(0.965, abs=0.003)


def test_servers_of_two_boards_stand_side_by_side_as_each_would_alone(make_site: Callable[..., Site]) -> None:
    (a100,) = make_site(1).rows[0].hosts
    h100 = msgspec.structs.replace(a100, sku=SKUS["H100-SXM5-80GB"])
    both = Run(servers_of((a100, h100), FINE_S))
    apart = [Run(servers_of((host,), FINE_S)) for host in (a100, h100)]
    both.step((0, 1024, 32), (1, 3000, 64), steps=300)
    apart[0].step((0, 1024, 32), steps=300)
    apart[1].step((0, 3000, 64), steps=300)
    for place, run in enumerate(apart):
        alone_w = np.array([watts[0] for watts in run.watts])
        assert np.array([watts[place] for watts in both.watts]) == pytest.approx(alone_w)


@pytest.mark.parametrize("requests_per_s", [0.1, 0.5, 1.0])
def test_a_server_as_curves_draws_what_the_engine_would_draw_step_by_step(
    make_site: Callable[..., Site], requests_per_s: float
) -> None:
    """The same requests through both. Answers go on at nine tenths beside prompts here, where the engine
    holds them up: so the curves are ahead of it by some percent, and more with more prompts."""
    (a100,) = make_site(1).rows[0].hosts
    host = msgspec.structs.replace(a100, sku=SKUS["H100-SXM5-80GB"])
    curves, rng, lasts_s = curves_of(host.sku), np.random.default_rng(4), 900.0
    count = rng.poisson(requests_per_s * lasts_s)
    at = np.sort(rng.uniform(0.0, lasts_s, count))
    prompt, output = (
        rng.integers(2048, 4096, count).astype(float),
        rng.integers(128, 1024, count).astype(float),
    )

    per_token_s = (curves.prompt_s[-1] - curves.prompt_s[0]) / (
        curves.prompt_tokens[-1] - curves.prompt_tokens[0]
    )
    pace = Pace(
        prefill_s=curves.prompt_s[0] - per_token_s * curves.prompt_tokens[0],
        prompt_token_s=per_token_s,
        decode_s=curves.token_s * (1.0 - curves.batch_cost),
        answer_s=curves.token_s * curves.batch_cost,
        context_token_s=0.0,
        chunk_token_s=0.0,
    )
    limits = EngineLimits(max_answers=1000, kv_tokens=10_000_000, step_tokens=8192)
    course = serve(Requests(at, prompt, output), limits, pace)
    watts = np.where(
        course.whole,
        curves.prompt_peak_ratio(course.prompt_tokens) * host.sku.tdp_w,
        curves.decode_w + curves.answer_w * (course.batch - 1.0),
    )
    inside = course.end_s < lasts_s
    busy_s = course.seconds[inside].sum()
    engine_w = ((watts * course.seconds)[inside].sum() + host.sku.idle_w * (lasts_s - busy_s)) / lasts_s
    engine_s = float(np.median((course.end_s[course.last] - at)[at < lasts_s - 60.0]))

    servers, asked = servers_of((host,)), np.zeros(1)
    new = Arrivals(at, np.zeros(count, dtype=np.int64), prompt, output)
    marks, taken, energy_j = servers.places(asked, new), 0, 0.0
    for step in range(1, int(lasts_s / servers.dt_s) + 1):
        upto = int(np.searchsorted(at, step * servers.dt_s))
        part = slice(taken, upto)
        servers.step(step * servers.dt_s, new.part(part), marks[part])
        taken = upto
        energy_j += float(servers.gpu_w[0].mean()) * servers.dt_s
    assert energy_j / lasts_s == pytest.approx(engine_w, rel=0.03)
    assert 0.83 * engine_s < servers.latency_s("low", 0.5) < 1.01 * engine_s
