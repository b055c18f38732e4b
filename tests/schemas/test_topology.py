"""Topology: what is where, and what a server draws for what its GPUs draw."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sites import DEMO, site_from

SITE = site_from(DEMO)
ROW = SITE.rows[0]
HOST = ROW.hosts[0]


def test_every_host_is_found_by_its_path_and_under_each_path_above_it() -> None:
    assert SITE.hosts[HOST.path] is HOST
    assert SITE.covered(HOST.path) == (HOST,)
    assert SITE.covered(HOST.rack) == ROW.racks[0].hosts
    assert SITE.covered(ROW.path) == SITE.covered(SITE.name) == ROW.hosts
    assert SITE.row(ROW.path) is ROW


def test_a_path_covers_what_is_below_it_and_not_what_begins_alike() -> None:
    assert SITE.covered("ams1/row-b/r0") == ()
    assert SITE.covered("ams1/row") == ()
    assert [host.path for host in SITE.covered("ams1/row-b/r01")][-1] == "ams1/row-b/r01/h04"


def test_a_row_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(KeyError, match="site ams1 has no row 'ams1/row-z'; it has ams1/row-b"):
        SITE.row("ams1/row-z")


def test_a_gpu_is_named_below_its_host() -> None:
    assert HOST.gpu_path(2) == "ams1/row-b/r01/h01/gpu2"


def test_power_nodes_are_found_by_path_and_name_what_feeds_them() -> None:
    feed = SITE.nodes["ams1/ups-1/pdu-3/feed-a"]
    assert (feed.kind, feed.parent) == ("feed", "ams1/ups-1/pdu-3")
    assert SITE.nodes[SITE.nodes[feed.parent].parent].parent == ""


def test_a_server_draws_its_published_idle_and_rating_at_the_ends() -> None:
    assert HOST.wall_w(8 * 63.0) == 1_500.0
    assert HOST.wall_w(8 * 400.0) == 6_500.0 == HOST.rated_w


@given(low=st.floats(0.0, 4_000.0), more=st.floats(0.0, 4_000.0))
def test_a_server_draws_more_when_its_gpus_do_and_always_more_than_they(low: float, more: float) -> None:
    assert HOST.wall_w(low + more) >= HOST.wall_w(low) + more - 1e-6  # rounding
    assert low + HOST.overhead_idle_w <= HOST.wall_w(low) <= low + HOST.overhead_max_w
