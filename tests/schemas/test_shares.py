"""Safe shares: with every host at its share, no breaker above any of them is exceeded."""

import math
import re
from typing import Literal

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.sites import DEMO, ONE_HOST, site_from

from schemas.shares import SafeShare, Unsafe, fits, safe_shares
from schemas.skus import SKUS, Sku
from schemas.topology import Host, PowerNode, Rack, Row, Site

A100, H100 = SKUS["A100-SXM4-80GB"], SKUS["H100-SXM5-80GB"]


def host(path: str, sku: Sku = A100, gpus: int = 8, overhead_max_w: float = 3_300.0) -> Host:
    return Host(
        path=path,
        rack=path.rpartition("/")[0],
        row="/".join(path.split("/")[:2]),
        sku=sku,
        gpu_count=gpus,
        priority="low",
        rated_w=gpus * sku.tdp_w + overhead_max_w,
        overhead_idle_w=0.0,
        overhead_max_w=overhead_max_w,
        paths=("in_band",),
    )


def node(path: str, limit_w: float) -> PowerNode:
    above = path.rpartition("/")[0]
    kinds: tuple[Literal["ups", "pdu", "feed"], ...] = ("ups", "pdu", "feed")
    return PowerNode(
        path=path, kind=kinds[path.count("/") - 1], limit_w=limit_w, parent=above if "/" in above else ""
    )


def small_site(
    budgets_w: tuple[float, ...], feeds_w: tuple[float, ...], hosts: tuple[tuple[Host, tuple[int, ...]], ...]
) -> Site:
    """A site of one-host racks: each host with the indices of its feeds, all under one PDU and UPS."""
    feeds = [node(f"s/u/p/f{index}", limit_w) for index, limit_w in enumerate(feeds_w)]
    racks = [
        Rack(path=h.rack, row=h.row, hosts=(h,), feeds=tuple(feeds[index].path for index in on))
        for h, on in hosts
    ]
    rows = tuple(
        Row(
            path=f"s/row{index}",
            budget_w=budget_w,
            racks=tuple(rack for rack in racks if rack.row == f"s/row{index}"),
            meters=(),
        )
        for index, budget_w in enumerate(budgets_w)
    )
    return Site(name="s", rows=rows, power=(node("s/u", 1e9), node("s/u/p", 1e9), *feeds))


def limits_of(site: Site) -> list[float]:
    return [share.limit_w for share in safe_shares(site).values()]


def test_the_demonstration_row_fits_its_budget_at_212_watts_per_gpu() -> None:
    """(260 000 W - 52 x 3 300 W) / 416 GPUs is 212.5 W; rounded down."""
    site = site_from(DEMO)
    shares = safe_shares(site)
    assert shares.keys() == site.hosts.keys()
    assert set(shares.values()) == {
        SafeShare(host=path, limit_w=212.0, max_mhz=A100.clock_for_power(212.0), host_w=4_996.0)
        for path in shares
    }
    assert 260_000.0 - 52 * 8 < sum(share.host_w for share in shares.values()) <= 260_000.0


def test_a_server_with_room_for_its_nameplate_is_not_held_below_it() -> None:
    (share,) = safe_shares(site_from(ONE_HOST)).values()
    assert (share.limit_w, share.max_mhz, share.host_w) == (700.0, H100.max_mhz, 10_200.0)


def test_the_clock_of_a_share_stays_within_its_power_limit() -> None:
    (share, *_) = safe_shares(site_from(DEMO)).values()
    dynamic_w = A100.tdp_w - A100.idle_w
    assert A100.idle_w + dynamic_w * A100.power_fraction(share.max_mhz) <= share.limit_w
    assert A100.idle_w + dynamic_w * A100.power_fraction(share.max_mhz + A100.step_mhz) > share.limit_w


def test_what_a_full_board_cannot_use_goes_to_the_others() -> None:
    """Two boards end at 400 W, so the H100s have 12 000 - 800 = 11 200 W for 16 GPUs."""
    hosts = (
        (host("s/row0/r0/h", A100, 2, 0.0), (0,)),
        (host("s/row0/r1/h", H100, 8, 0.0), (0,)),
        (host("s/row0/r2/h", H100, 8, 0.0), (0,)),
    )
    assert limits_of(small_site((11_990.0,), (1e6,), hosts)) == [400.0, 699.0, 699.0]


def test_a_board_that_cannot_go_as_low_as_the_others_keeps_its_lowest() -> None:
    """The H100s need 200 W each, so the A100s share 2 600 - 1 600 W."""
    hosts = ((host("s/row0/r0/h", A100, 8, 0.0), (0,)), (host("s/row0/r1/h", H100, 8, 0.0), (0,)))
    assert limits_of(small_site((2_600.0,), (1e6,), hosts)) == [125.0, 200.0]


def test_a_tight_feed_holds_its_own_hosts_and_leaves_the_rest_to_the_others() -> None:
    hosts = tuple((host(f"s/row0/r{index}/h", A100, 8, 0.0), (index // 2,)) for index in range(4))
    assert limits_of(small_site((8_000.0,), (2_000.0, 1e6), hosts)) == [125.0, 125.0, 375.0, 375.0]


def test_a_rack_on_two_feeds_loads_each_with_half() -> None:
    hosts = ((host("s/row0/r0/h", A100, 8, 0.0), (0, 1)), (host("s/row0/r1/h", A100, 8, 0.0), (1,)))
    assert limits_of(small_site((1e6,), (1_000.0, 3_000.0), hosts)) == [250.0, 250.0]


def test_a_pdu_or_ups_holds_the_rows_below_it_together() -> None:
    hosts = ((host("s/row0/r0/h", overhead_max_w=0.0), (0,)), (host("s/row1/r0/h", overhead_max_w=0.0), (1,)))
    site = small_site((1e6, 1e6), (1e6, 1e6), hosts)
    for path in ("s/u", "s/u/p"):
        power = tuple(node(each.path, 4_000.0) if each.path == path else each for each in site.power)
        assert limits_of(msgspec.structs.replace(site, power=power)) == [250.0, 250.0]


def test_a_row_that_does_not_fit_at_the_lowest_limits_is_refused_with_what_would() -> None:
    site = site_from(DEMO)
    rows = (msgspec.structs.replace(site.rows[0], budget_w=200_000.0),)
    told = (
        "row ams1/row-b: with every GPU at its board's lowest power limit its 52 hosts may still draw "
        "213200 W, above its budget of 200000 W; what would fit is 213200 W, or the first 48 of the hosts"
    )
    with pytest.raises(Unsafe, match=f"^{re.escape(told)}$"):
        safe_shares(msgspec.structs.replace(site, rows=rows))
    rows = (msgspec.structs.replace(site.rows[0], budget_w=213_200.0),)
    assert set(limits_of(msgspec.structs.replace(site, rows=rows))) == {100.0}, "what was said to fit fits"


def test_every_node_that_does_not_fit_is_told() -> None:
    site = small_site((4_000.0,), (4_050.0, 1e6), ((host("s/row0/r0/h"), (0,)),))
    with pytest.raises(Unsafe) as refused:
        safe_shares(site)
    assert [line.partition(":")[0] for line in str(refused.value).splitlines()] == [
        "row s/row0",
        "feed s/u/p/f0",
    ]
    assert "or the first 0 of the hosts" in str(refused.value)


def test_limits_that_powers_exceed_are_told_in_watts() -> None:
    site = site_from(DEMO)
    at_share = {path: share.host_w for path, share in safe_shares(site).items()}
    assert fits(site, at_share) == ()
    assert fits(site, dict.fromkeys(at_share, 5200.0)) == (
        "row ams1/row-b: 270400 W is 10400 W above its budget of 260000 W",
    )
    assert fits(site, dict.fromkeys(at_share, 11000.0))[1:] == (
        "feed ams1/ups-1/pdu-3/feed-a: 286000 W is 26000 W above its limit of 260000 W",
        "feed ams1/ups-2/pdu-4/feed-b: 286000 W is 26000 W above its limit of 260000 W",
    )


@pytest.mark.parametrize("rest", [{}, {"ams1/row-b/r01/h01": math.nan}], ids=["left out", "unknown"])
def test_a_host_of_unknown_power_counts_at_its_nameplate(rest: dict[str, float]) -> None:
    site = site_from(DEMO)
    powers = dict.fromkeys(list(site.hosts)[1:], 4999.0) | rest
    assert fits(site, powers) == ("row ams1/row-b: 261449 W is 1449 W above its budget of 260000 W",)


def test_a_host_that_the_site_does_not_have_is_told() -> None:
    with pytest.raises(KeyError, match="site ams1 has no host ams1/row-b/r01/h99"):
        fits(site_from(DEMO), {"ams1/row-b/r01/h99": 1.0})


BOARDS = st.builds(
    lambda base, low, span: msgspec.structs.replace(
        base, name="any", limit_min_w=float(low), limit_max_w=float(low + span), tdp_w=float(low + span)
    ),
    st.sampled_from([A100, H100]),
    st.integers(80, 300),
    st.integers(0, 400),
)


@st.composite
def sites(draw: st.DrawFn) -> Site:
    """Up to 3 rows and 9 hosts under a random power tree, with limits from too small to ample."""
    rng = draw(st.randoms(use_true_random=False))
    ups = [f"s/u{index}" for index in range(rng.randint(1, 2))]
    pdus = [f"{rng.choice(ups)}/p{index}" for index in range(rng.randint(1, 3))]
    feeds = [f"{rng.choice(pdus)}/f{index}" for index in range(rng.randint(1, 4))]
    boards = draw(st.lists(BOARDS, min_size=1, max_size=3))
    count = rng.randint(1, 9)
    rows = rng.randint(1, min(3, count))
    racks = []
    for index in range(count):
        own = host(
            f"s/row{index % rows}/r{index}/h", rng.choice(boards), rng.randint(1, 8), rng.uniform(0, 5e3)
        )
        on = tuple(rng.sample(feeds, rng.randint(1, min(2, len(feeds)))))
        racks.append(Rack(path=own.rack, row=own.row, hosts=(own,), feeds=on))
    return Site(
        name="s",
        rows=tuple(
            Row(
                path=f"s/row{index}",
                budget_w=rng.uniform(1e3, 6e4),
                racks=tuple(rack for rack in racks if rack.row == f"s/row{index}"),
                meters=(),
            )
            for index in range(rows)
        ),
        power=tuple(node(path, rng.uniform(1e3, 1e5)) for path in (*ups, *pdus, *feeds)),
    )


def shares_or_none(site: Site) -> dict[str, SafeShare] | None:
    try:
        return safe_shares(site)
    except Unsafe:
        return None


@given(site=sites())
def test_shares_fit_every_limit_or_nothing_would(site: Site) -> None:
    shares = shares_or_none(site)
    if shares is None:
        least = {h.path: h.overhead_max_w + h.gpu_count * h.sku.limit_min_w for h in site.hosts.values()}
        assert fits(site, least) != ()
        return
    assert fits(site, {path: share.host_w for path, share in shares.items()}) == ()
    for path, share in shares.items():
        sku = site.hosts[path].sku
        assert sku.limit_min_w <= share.limit_w <= sku.limit_max_w
        assert share.limit_w.is_integer()
        assert share.max_mhz == sku.clock_for_power(share.limit_w)
        assert share.host_w == site.hosts[path].overhead_max_w + site.hosts[path].gpu_count * share.limit_w


@given(site=sites())
def test_no_watt_is_withheld_that_a_host_could_have_without_taking_it_from_one_with_less(site: Site) -> None:
    """Max-min: with a watt more per GPU for a host below its board's highest limit, and for all that have
    no more than it, a limit would be exceeded."""
    shares = shares_or_none(site)
    assume(shares is not None)
    assert shares is not None
    for path, share in shares.items():
        if share.limit_w >= site.hosts[path].sku.limit_max_w:
            continue
        raised = {
            other: s.host_w + site.hosts[other].gpu_count * (s.limit_w <= share.limit_w)
            for other, s in shares.items()
        }
        assert fits(site, raised) != (), path


@given(site=sites(), which=st.integers(0, 20), factor=st.floats(1.0, 3.0))
def test_no_host_gets_less_when_a_limit_above_it_grows(site: Site, which: int, factor: float) -> None:
    before = shares_or_none(site)
    assume(before is not None)
    assert before is not None
    if which % 2:
        index = which % len(site.rows)
        grown = msgspec.structs.replace(site.rows[index], budget_w=site.rows[index].budget_w * factor)
        after_site = msgspec.structs.replace(site, rows=(*site.rows[:index], grown, *site.rows[index + 1 :]))
        under = {h.path for h in grown.hosts}
    else:
        index = which % len(site.power)
        bigger = msgspec.structs.replace(site.power[index], limit_w=site.power[index].limit_w * factor)
        after_site = msgspec.structs.replace(
            site, power=(*site.power[:index], bigger, *site.power[index + 1 :])
        )
        under = {
            h.path
            for row in site.rows
            for rack in row.racks
            for h in rack.hosts
            if any(f"{feed}/".startswith(f"{bigger.path}/") for feed in rack.feeds)
        }
    after = safe_shares(after_site)
    assert all(after[path].limit_w >= before[path].limit_w for path in under)
    assert min(s.limit_w for s in after.values()) >= min(s.limit_w for s in before.values())
