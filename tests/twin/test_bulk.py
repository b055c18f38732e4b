"""The row over weeks: the same plant as the one at half-second steps, worked out at once."""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest

from schemas.topology import Host, Site
from twin.breaker import TripCurve
from twin.bulk import STEP_MS, BulkRow, PathFaults
from twin.row import TwinRow
from twin.weekly import BLOCK_S, Demand, WeeklyLoad, shipped_week
from twin.workload import MINUTE_S, Arrivals

BUSY = Demand(requests_per_s=0.25, volleys_a_day=400.0, volley_ratio=0.5)
CROWDED = msgspec.structs.replace(BUSY, requests_per_s=2.0)
"""On newer boards many answers are under way at once, and each further one draws power."""


class Kept:
    """A load that can be asked again, by the block or by the minute."""

    def __init__(self, hosts: Sequence[Host], seed: int = 1, demand: Demand = BUSY) -> None:
        load = WeeklyLoad([host.priority for host in hosts], demand, shipped_week().shape, seed=seed)
        self._blocks = [load.block(index) for index in range(12)]

    def block(self, index: int) -> Arrivals:
        return self._blocks[index]

    def minute(self, index: int) -> Arrivals:
        begin = index * MINUTE_S
        if begin < 0:
            return self._blocks[0].part(slice(0, 0))
        block = self._blocks[begin // BLOCK_S]
        return block.part((block.at_s >= begin) & (block.at_s < begin + MINUTE_S))


def bulk(site: Site, *, seed: int = 1, faults: PathFaults | None = None) -> BulkRow:
    row = site.rows[0]
    return BulkRow(row.hosts, row.budget_w, Kept(row.hosts, seed), seed=seed, faults=faults)


def course(row: BulkRow, steps: int, first: int = 0) -> list[float]:
    return [row.power_w(step) for step in range(first, first + steps)]


@pytest.mark.parametrize(
    ("sku", "mhz", "asked"),
    [
        ("A100-SXM4-80GB", 1410, BUSY),
        ("A100-SXM4-80GB", 1110, BUSY),
        ("H100-SXM5-80GB", 1590, CROWDED),
        ("H200-SXM5-141GB", 1980, CROWDED),
    ],
)
def test_it_is_the_plant_of_half_second_steps(
    make_site: Callable[..., Site], sku: str, mhz: int, asked: Demand
) -> None:
    site = make_site(12, sku=sku)
    row = site.rows[0]
    fast = BulkRow(row.hosts, row.budget_w, Kept(row.hosts, demand=asked), seed=1)
    slow = TwinRow(
        site, "lab/row-a", seed=1, load=Kept(row.hosts, demand=asked), curve=TripCurve(pickup_ratio=9.0)
    )
    for place, host in enumerate(fast.hosts):
        if host.priority == "low":
            fast.write("in_band", place, mhz)
            for gpu in range(8):
                slow.write("in_band", place * 8 + gpu, "lock", 210.0, mhz)
    powers = np.array(course(fast, 1800))
    slow.advance(1800 * STEP_MS)
    totals, truth, history = fast.settle(), slow.statistics(), slow.history()
    assert totals.energy_j == pytest.approx(truth.energy_j, rel=0.005)
    assert powers[30:].mean() == pytest.approx(history.power_w[30:].mean(), rel=0.005)
    assert np.abs(powers[30:] - history.power_w[30:]).mean() < 0.02 * powers.mean()
    for quantile in (0.5, 0.99):
        ours = {p: totals.quantile_s(p, quantile) for p in ("low", "high")}
        theirs = truth.latency_p50_s if quantile == 0.5 else truth.latency_p99_s
        assert ours == pytest.approx(theirs, rel=0.01)
    assert totals.done.sum() == pytest.approx(sum(r.done for r in truth.requests.values()), abs=3)


def test_what_was_handed_on_stays_when_a_clock_is_set_later(make_site: Callable[..., Site]) -> None:
    free, capped = bulk(make_site(8)), bulk(make_site(8))
    before = course(free, 500)
    assert course(capped, 200) == before[:200]
    for host in range(8):
        capped.write("out_of_band", host, 900)
    after = course(capped, 300, 200)
    landed = 40_000 // STEP_MS
    assert after[:landed] == pytest.approx(before[200 : 200 + landed], rel=1e-9)
    assert sum(after[landed + 5 :]) < 0.95 * sum(before[205 + landed : 500])


def test_where_a_stretch_is_cut_changes_nothing(make_site: Callable[..., Site]) -> None:
    whole, cut = bulk(make_site(8)), bulk(make_site(8))
    powers = course(whole, 900)
    pieces: list[float] = []
    for step in range(900):
        if step % 37 == 5:  # a write that changes no clock cuts all the same
            cut.write("in_band", step % 8, 1410)
        pieces.append(cut.power_w(step))
    assert pieces == pytest.approx(powers, rel=2e-3)
    ours, theirs = cut.settle(), whole.settle()
    assert ours.energy_j == pytest.approx(theirs.energy_j, rel=1e-4)
    assert ours.arrived.tolist() == theirs.arrived.tolist()
    assert ours.quantile_s("low", 0.5) == pytest.approx(theirs.quantile_s("low", 0.5), rel=0.01)


def test_how_far_ahead_is_looked_changes_nothing_to_the_last_bit(make_site: Callable[..., Site]) -> None:
    row = bulk(make_site(8))
    course(row, 100)
    row.write("brake", 0, 900)
    row.write("out_of_band", 1, 1110)
    row.settle()
    whole, glance = row._work_out(100, 200), row._work_out(100, 200, 32)
    assert glance.power_w == whole.power_w[:32]
    assert glance.busy.tolist() == whole.busy[:, :32].tolist()
    assert glance.until == whole.until == 300


def test_no_request_is_lost(make_site: Callable[..., Site]) -> None:
    row = bulk(make_site(8))
    course(row, 1234)
    totals = row.settle()
    state = row._state
    assert totals.arrived.sum() == totals.done.sum() + state.waiting.host.size + state.running.host.size
    assert totals.arrived.sum() > 500


def test_the_brake_lands_after_five_seconds_and_the_bmc_after_forty(make_site: Callable[..., Site]) -> None:
    row = bulk(make_site(4))
    course(row, 100)
    row.write("brake", 0, 288)
    row.write("out_of_band", 1, 1110)
    seen = []
    for step in range(100, 130):
        row.power_w(step)
        seen.append((row.ceiling_mhz(0), row.ceiling_mhz(1)))
    assert (
        seen.index((285.0, 1410.0)) == 2
    )  # asked at 200 s; the step that ends at 206 s is the first after 205
    assert seen.index((285.0, 1110.0)) == 19
    assert row.clock_mhz(1) in (1110.0, 210.0)  # its ceiling at work, its lowest at rest
    assert row.landings(1) == []


def test_a_lost_write_never_lands_and_is_counted(make_site: Callable[..., Site]) -> None:
    row = bulk(make_site(4), faults=PathFaults(loss_ratio=0.999999))
    course(row, 10)
    row.write("out_of_band", 0, 900)
    course(row, 60, 10)
    assert row.lost_writes == 1
    assert row.ceiling_mhz(0) == 1410.0


def test_a_write_that_comes_late_by_chance_lands_within_the_latency(make_site: Callable[..., Site]) -> None:
    row = bulk(make_site(12), faults=PathFaults(latency_s=40.0, spread="uniform"))
    course(row, 10)
    for host in range(12):
        row.write("out_of_band", host, 1110)
    due = {at for host in range(12) for at in row.landings(host)}
    assert len(due) == 12
    assert all(row.now <= each <= row.now + 40_000 for each in due)


def test_the_breaker_that_would_open_is_counted_once(make_site: Callable[..., Site]) -> None:
    site = make_site(8, budget_w=8 * 4000.0)
    row = bulk(site)
    powers = course(row, 1500)
    totals = row.settle()
    over = sum(power > row.budget_w for power in powers)
    assert 0 < over < 1500, "some steps are above the budget and some are not"
    assert totals.over_budget_s == 2.0 * over, "as long as the meter showed it"
    assert totals.trips == 1


class Quiet:
    """Nobody asks for anything: the row draws the same at every step."""

    def block(self, index: int) -> Arrivals:
        nothing = np.zeros(0)
        return Arrivals(nothing, np.zeros(0, dtype=np.int64), nothing, nothing)


def at_rest(site: Site, budget_w: float = 1e6) -> BulkRow:
    return BulkRow(site.rows[0].hosts, budget_w, Quiet(), seed=1)


@pytest.mark.parametrize("steps", [1, 7])
def test_a_row_above_its_budget_is_so_for_the_two_seconds_of_each_step(
    make_site: Callable[..., Site], steps: int
) -> None:
    site = make_site(2)
    rest_w = at_rest(site).power_w(0)
    above, at_it = at_rest(site, rest_w - 1.0), at_rest(site, rest_w)
    course(above, steps)
    course(at_it, steps)
    assert above.settle().over_budget_s == 2.0 * steps
    assert at_it.settle().over_budget_s == 0.0, "what is contracted may be drawn"


@pytest.mark.parametrize(("host", "told"), [(0, [0.0, 59.95]), (3, [59.95, 0.0])])
def test_time_under_a_cap_counts_for_the_priority_of_the_host_that_bears_it(
    make_site: Callable[..., Site], host: int, told: list[float]
) -> None:
    site = make_site(4)
    row = at_rest(site)
    assert [each.priority for each in site.rows[0].hosts] == ["high", "high", "low", "low"]
    row.write("in_band", host, 1110)
    course(row, 30)
    low_and_high = row.settle().capped_host_s.tolist()
    assert low_and_high == pytest.approx(told), "60 s less the 50 ms that the write took to land"


@pytest.mark.parametrize(("load", "trips"), [(4.99, 0), (5.01, 1)])
def test_a_load_above_the_instantaneous_pickup_opens_the_breaker_within_a_step(
    make_site: Callable[..., Site], load: float, trips: int
) -> None:
    site = make_site(2)
    row = at_rest(site, at_rest(site).power_w(0) / load)
    course(row, 1)
    assert TripCurve().instant_ratio == 5.0
    assert row.settle().trips == trips, "the magnet does not wait for the bimetal to warm"


def test_steps_come_in_order_and_each_once(make_site: Callable[..., Site]) -> None:
    row = bulk(make_site(4))
    course(row, 3)
    with pytest.raises(ValueError, match="step 5 was asked for, the next one is 3"):
        row.power_w(5)


def test_a_row_that_nobody_controls_is_handed_on_by_the_block(make_site: Callable[..., Site]) -> None:
    one, other = bulk(make_site(8)), bulk(make_site(8))
    blocks = [*one.course_w(), *one.course_w()]
    assert blocks == course(other, len(blocks))
    assert one.settle().energy_j == other.settle().energy_j
