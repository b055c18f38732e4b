"""Site files: what an operator writes becomes the site, and every mistake is told in their words, at once."""

import re
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sites import DEMO, ONE_HOST, site_from

from schemas.site_file import SiteFileError, read_site
from schemas.topology import Site

SITE = """
[site]
name = "ams1"
[[ups]]
name = "ups-1"
limit_w = 100_000
[[pdus]]
name = "pdu-1"
ups = "ups-1"
limit_w = 80_000
[[feeds]]
name = "feed-a"
pdu = "pdu-1"
limit_w = 20_000
[[feeds]]
name = "feed-b"
pdu = "pdu-1"
limit_w = 20_000.5
[[rows]]
name = "row-a"
budget_w = 30_000
meters = ["feed-a", "feed-b"]
[[racks]]
row = "row-a"
names = "r[1-2]"
feeds = ["feed-a", "feed-b"]
[[racks.hosts]]
names = "h[1-2]"
sku = "A100-SXM4-80GB"
gpus = 8
priority = "high"
paths = ["in_band", "brake"]
[[racks.hosts]]
names = "h3"
sku = "H100-SXM5-80GB"
gpus = 4
priority = "low"
paths = ["out_of_band"]
"""
ROW_C = """
[[rows]]
name = "row-c"
budget_w = 8_000
[[racks]]
row = "row-c"
names = "r1"
feeds = ["feed-a"]
[[racks.hosts]]
names = "h1"
sku = "A100-SXM4-80GB"
gpus = 8
priority = "low"
paths = ["in_band"]
"""


def read(text: str) -> Site:
    return read_site(text, "sites/ams1.toml")


def problems(text: str) -> list[str]:
    """What is said of the file, without its name."""
    with pytest.raises(SiteFileError) as refused:
        read(text)
    assert str(refused.value) == "\n".join(refused.value.problems)
    assert all(problem.startswith("sites/ams1.toml: ") for problem in refused.value.problems)
    return [problem.removeprefix("sites/ams1.toml: ") for problem in refused.value.problems]


def with_line(old: str, new: str, text: str = SITE) -> str:
    """The file with one line changed."""
    assert text.count(f"{old}\n") >= 1, old
    return text.replace(f"{old}\n", f"{new}\n", 1)


def test_a_site_is_read_with_every_path_in_place() -> None:
    site = read(SITE)
    assert [node.path for node in site.power] == [
        "ams1/ups-1",
        "ams1/ups-1/pdu-1",
        "ams1/ups-1/pdu-1/feed-a",
        "ams1/ups-1/pdu-1/feed-b",
    ]
    assert [node.limit_w for node in site.power] == [100_000.0, 80_000.0, 20_000.0, 20_000.5]
    (row,) = site.rows
    assert (row.path, row.budget_w) == ("ams1/row-a", 30_000.0)
    assert row.meters == ("ams1/ups-1/pdu-1/feed-a", "ams1/ups-1/pdu-1/feed-b")
    assert [host.path for host in row.hosts] == [
        f"ams1/row-a/r{rack}/h{host}" for rack in (1, 2) for host in (1, 2, 3)
    ]
    assert {rack.feeds for rack in row.racks} == {row.meters}


def test_priorities_and_boards_may_be_mixed_inside_a_rack() -> None:
    rack = read(SITE).rows[0].racks[1]
    assert [(host.priority, host.sku.name, host.paths) for host in rack.hosts] == [
        ("high", "A100-SXM4-80GB", ("in_band", "brake")),
        ("high", "A100-SXM4-80GB", ("in_band", "brake")),
        ("low", "H100-SXM5-80GB", ("out_of_band",)),
    ]
    assert {(host.rack, host.row) for host in rack.hosts} == {("ams1/row-a/r2", "ams1/row-a")}


def test_a_server_not_described_is_its_boards_server_scaled_to_its_gpus() -> None:
    eight, _, four = read(SITE).rows[0].racks[0].hosts
    assert (eight.rated_w, eight.overhead_idle_w, eight.overhead_max_w) == (6_500.0, 996.0, 3_300.0)
    assert (four.rated_w, four.overhead_idle_w, four.overhead_max_w) == (5_100.0, 1_100.0, 2_300.0)


@pytest.mark.parametrize(
    ("said", "rated_w", "idle_w", "max_w"),
    [
        ("rated_w = 8_000", 8_000.0, 996.0, 4_800.0),
        ("rated_w = 4_000", 4_000.0, 800.0, 800.0),
        ("overhead_max_w = 3_000", 6_200.0, 996.0, 3_000.0),
        ("overhead_max_w = 0", 3_200.0, 0.0, 0.0),
        ("rated_w = 8_000\noverhead_max_w = 3_000\noverhead_idle_w = 900", 8_000.0, 900.0, 3_000.0),
    ],
)
def test_a_stated_nameplate_says_what_the_server_draws_besides_its_gpus(
    said: str, rated_w: float, idle_w: float, max_w: float
) -> None:
    host = read(with_line('priority = "high"', f'priority = "high"\n{said}')).rows[0].hosts[0]
    assert (host.rated_w, host.overhead_idle_w, host.overhead_max_w) == (rated_w, idle_w, max_w)


def test_a_site_may_change_a_known_board_and_add_its_own() -> None:
    board = """
    [[skus]]
    name = "A100-SXM4-80GB"
    tdp_w = 300
    limit_max_w = 300
    [[skus]]
    name = "L4"
    max_mhz = 2040
    min_mhz = 210
    step_mhz = 15
    tdp_w = 72
    limit_min_w = 40
    limit_max_w = 72
    idle_w = 16
    server_overhead_idle_w = 200
    server_overhead_max_w = 600
    """
    site = read(SITE.replace("H100-SXM5-80GB", "L4") + board)
    a100, _, l4 = site.rows[0].racks[0].hosts
    assert (a100.sku.tdp_w, a100.sku.limit_max_w, a100.sku.max_mhz) == (300.0, 300.0, 1_410)
    assert (l4.sku.name, l4.sku.max_mhz, l4.rated_w) == ("L4", 2_040, 4 * 72.0 + 300.0)


def test_stated_uuids_stand_at_their_host_in_index_order() -> None:
    uuids = '[racks.hosts.uuids]\n"r2/h3" = ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]\n'
    site = read(SITE + uuids)
    assert site.hosts["ams1/row-a/r2/h3"].uuids == ("GPU-a", "GPU-b", "GPU-c", "GPU-d")
    assert site.hosts["ams1/row-a/r1/h3"].uuids == ()


def test_meters_may_be_left_out_and_may_stand_higher_up() -> None:
    assert read(with_line('meters = ["feed-a", "feed-b"]', "")).rows[0].meters == ()
    assert read(with_line('meters = ["feed-a", "feed-b"]', 'meters = ["pdu-1"]')).rows[0].meters == (
        "ams1/ups-1/pdu-1",
    )


MISTAKES: list[tuple[str, str, str]] = [
    # a value that is not allowed
    (
        "limit_w = 20_000",
        "limit_w = -40",
        "feeds[0].limit_w = -40: must be above zero (breaker rating in watts)",
    ),
    ("limit_w = 20_000", "limit_w = 0", "feeds[0].limit_w = 0: must be above zero (breaker rating in watts)"),
    (
        "limit_w = 20_000",
        "limit_w = nan",
        "feeds[0].limit_w = nan: must be a number, and nan is none (breaker rating in watts)",
    ),
    (
        "limit_w = 20_000",
        "limit_w = inf",
        "feeds[0].limit_w = inf: must be below 1e+12 (breaker rating in watts)",
    ),
    (
        "limit_w = 20_000",
        'limit_w = "20 kW"',
        'feeds[0].limit_w = "20 kW": must be a number (breaker rating in watts)',
    ),
    (
        "limit_w = 20_000",
        "limit_w = true",
        "feeds[0].limit_w = true: must be a number (breaker rating in watts)",
    ),
    ("limit_w = 80_000", "", "pdus[0].limit_w is missing: breaker rating in watts"),
    (
        "budget_w = 30_000",
        "budget_w = 41_000",
        "rows[0].budget_w = 41000: must be at most 40000.5, the limits of its feeds together (feed-a, ",
    ),
    ("gpus = 8", "gpus = 2.5", "racks[0].hosts[0].gpus = 2.5: must be a whole number (GPUs of each host)"),
    ("gpus = 8", "gpus = 0", "racks[0].hosts[0].gpus = 0: must be above zero (GPUs of each host)"),
    (
        'priority = "high"',
        'priority = "highest"',
        'racks[0].hosts[0].priority = "highest": did you mean high? there is low, high',
    ),
    (
        'priority = "high"',
        'priority = "high"\nrated_w = 3_000',
        "racks[0].hosts[0].rated_w = 3000: must be at least 3200, the TDP of the host's 8 GPUs",
    ),
    (
        'priority = "high"',
        'priority = "high"\noverhead_idle_w = 4_000',
        "racks[0].hosts[0].overhead_idle_w = 4000: must be at most overhead_max_w, 3300",
    ),
    (
        'paths = ["out_of_band"]',
        'paths = ["outofband"]',
        'racks[0].hosts[1].paths[0] = "outofband": did you mean out_of_band? there is in_band, ',
    ),
    (
        'paths = ["out_of_band"]',
        "paths = []",
        "racks[0].hosts[1].paths is missing: the command paths the hosts offer, of in_band, ",
    ),
    # names
    (
        'names = "r[1-2]"',
        'names = "r[1-9999]"',
        'racks[0].hosts[0].names = "h[1-2]": stands for more than 10000 hosts over these 9999 racks',
    ),
    (
        'name = "ams1"',
        'name = "ams 1"',
        'site.name = "ams 1": must be letters, digits and . _ - after the first',
    ),
    (
        'name = "ams1"',
        'name = ""',
        'site.name = "": must be a text in quotes (the site, first part of every path)',
    ),
    ('name = "feed-b"', 'name = "pdu-1"', 'feeds[1].name = "pdu-1": must be unique; pdus[0] has it too'),
    (
        'names = "r[1-2]"',
        'names = "r[1-"',
        'racks[0].names = "r[1-": has a bracket without its partner (a hostlist pattern such as r[01-13])',
    ),
    (
        'names = "h3"',
        'names = "h[2-3]"',
        'racks[0].hosts[1].names = "h[2-3]": host h2 stands in racks[0].hosts[0] too',
    ),
    # references
    ('ups = "ups-1"', 'ups = "ups-2"', 'pdus[0].ups = "ups-2": did you mean ups-1? there is ups-1'),
    ('row = "row-a"', 'row = "Row-A"', 'racks[0].row = "Row-A": did you mean row-a? there is row-a'),
    (
        'sku = "A100-SXM4-80GB"',
        'sku = "B200"',
        'racks[0].hosts[0].sku = "B200": there is A100-SXM4-80GB, H100',
    ),
    (
        'feeds = ["feed-a", "feed-b"]',
        'feeds = ["feed-a", "pdu-1"]',
        'racks[0].feeds[1] = "pdu-1": there is feed-a, feed-b',
    ),
    (
        'feeds = ["feed-a", "feed-b"]',
        'feeds = ["feed-a", "feed-a"]',
        'racks[0].feeds[1] = "feed-a": stands in this list twice',
    ),
    (
        'feeds = ["feed-a", "feed-b"]',
        'feeds = "feed-a"',
        'racks[0].feeds = "feed-a": must be a list of texts',
    ),
    ('feeds = ["feed-a", "feed-b"]', "", "racks[0].feeds is missing: the feeds that power the racks"),
    (
        'meters = ["feed-a", "feed-b"]',
        'meters = ["feed-a", "feed-z"]',
        'rows[0].meters[1] = "feed-z": did you mean feed-b? there is ups-1, pdu-1, feed-a, feed-b',
    ),
    (
        'meters = ["feed-a", "feed-b"]',
        'meters = ["feed-a"]',
        'rows[0].meters = ["feed-a"]: must measure all of the row\'s power; feed-b powers it and has no ',
    ),
    (
        'meters = ["feed-a", "feed-b"]',
        'meters = ["pdu-1", "feed-b"]',
        'rows[0].meters = ["pdu-1", "feed-b"]: must count each feed once; feed-b is behind several ',
    ),
    # keys and tables
    (
        'pdu = "pdu-1"',
        'pdu = "pdu-1"\nlimt_w = 3',
        "feeds[0].limt_w = 3: no such key here; did you mean limit_w?",
    ),
    (
        "[[rows]]",
        "[rows]",
        'rows = {"name": "row-a", "budget_w": 30000, "meters": ["feed-a",...: must be written [[rows]]',
    ),
    ("[site]", "[sites]", "site is missing: write [site] with the site's name"),
    (
        'priority = "low"',
        'priority = "low"\nuuids = ["GPU-a"]',
        'racks[0].hosts[1].uuids = ["GPU-a"]: must be a table, written [racks.hosts.uuids]',
    ),
    (
        'priority = "low"',
        'priority = "low"\nuuids = { "r1/h3" = ["GPU-a"] }',
        'racks[0].hosts[1].uuids.r1/h3 = ["GPU-a"]: must be one UUID for each of the host\'s 4 GPUs',
    ),
    (
        'priority = "low"',
        'priority = "low"\nuuids = { "r1/h3" = ["a", "b", "c", "a"] }',
        'racks[0].hosts[1].uuids.r1/h3 = ["a", "b", "c", "a"]: has the same UUID twice',
    ),
    (
        'priority = "low"',
        'priority = "low"\nuuids = { "r1/h3" = ["a", "b", "c", "d"], "r2/h3" = ["e", "f", "g", "a"] }',
        "a is given to ams1/row-a/r1/h3 and to ams1/row-a/r2/h3",
    ),
    (
        'priority = "low"',
        'priority = "low"\nuuids = { "r1/h1" = ["a"] }',
        'racks[0].hosts[1].uuids.r1/h1 = ["a"]: no such host in this block; did you mean r1/h3? ',
    ),
]


@pytest.mark.parametrize(("old", "new", "told"), MISTAKES, ids=[told[:50] for _, _, told in MISTAKES])
def test_a_mistake_is_told_with_its_place_its_value_and_what_is_allowed(
    old: str, new: str, told: str
) -> None:
    found = problems(with_line(old, new))
    assert any(told in problem for problem in found), found


def test_one_mistake_is_told_once() -> None:
    """Quiet about what only follows from it."""
    alone = [(old, new, told) for old, new, told in MISTAKES if "limit_w = " in old or "gpus" in old]
    for old, new, told in alone:
        assert problems(with_line(old, new)) == [told]


BOARD = '[[skus]]\nname = "A100-SXM4-80GB"\n'


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ("limit_max_w = 300", "skus[0].limit_max_w = 300: must be at least tdp_w, which is 400"),
        ("tdp_w = 500", "skus[0].tdp_w = 500: must be at most limit_max_w, which is 400"),
        ("limit_min_w = 450", "skus[0].limit_min_w = 450: must be at most tdp_w, which is 400"),
        ("limit_min_w = 100.5", "skus[0].limit_min_w = 100.5: must be a whole number of watts"),
        ("idle_w = 120", "skus[0].idle_w = 120: must be at most limit_min_w, which is 100"),
        ("min_mhz = 1500", "skus[0].min_mhz = 1500: must be at most max_mhz, which is 1410"),
        ("step_mhz = 7", "skus[0].step_mhz = 7: must divide max_mhz less min_mhz, 1200"),
        ("max_mhz = 1410.5", "skus[0].max_mhz = 1410.5: must be a whole number (clock in MHz)"),
        (
            "server_overhead_max_w = 900",
            "skus[0].server_overhead_max_w = 900: must be at least server_overhead_idle_w, which is 996",
        ),
    ],
)
def test_a_board_that_cannot_be_is_told(changes: str, told: str) -> None:
    assert told in problems(f"{SITE}{BOARD}{changes}\n")


def test_a_new_board_must_state_every_figure() -> None:
    found = problems(f'{SITE}[[skus]]\nname = "L4"\nmax_mhz = 2040\n')
    assert "skus[0].tdp_w is missing: board power at full load in watts" in found
    assert len(found) == 8


def test_every_mistake_of_a_file_is_told_at_once() -> None:
    text = with_line("limit_w = 20_000", "limit_w = -40")
    text = with_line('ups = "ups-1"', 'ups = "ups-9"', text)
    text = with_line("gpus = 8", "gpus = 0", text)
    places = [problem.partition(" ")[0] for problem in problems(text)]
    assert places == ["pdus[0].ups", "feeds[0].limit_w", "racks[0].hosts[0].gpus"]


def test_a_row_without_hosts_is_told() -> None:
    found = problems(SITE + '[[rows]]\nname = "row-d"\nbudget_w = 1\n')
    assert found == ['rows[1].name = "row-d": no [[racks]] of the file stand in this row; a row needs hosts']


def test_a_rack_without_hosts_is_told() -> None:
    found = problems(SITE + '[[racks]]\nrow = "row-a"\nnames = "r3"\nfeeds = ["feed-a"]\n')
    assert found == [
        "racks[1].hosts is missing: write [[racks.hosts]], once for each of the racks' kinds of host"
    ]


def test_a_rack_that_stands_twice_in_a_row_is_told_and_in_two_rows_is_not() -> None:
    twice = SITE + ROW_C.replace("row-c", "row-a").partition("budget_w = 8_000\n")[2]
    assert 'racks[1].names = "r1": rack ams1/row-a/r1 stands in racks[0] too' in problems(twice)
    unmetered = with_line('meters = ["feed-a", "feed-b"]', "")
    assert len(read(unmetered + ROW_C).rows) == 2


def test_a_meter_that_another_rows_power_passes_through_is_told() -> None:
    found = problems(SITE + ROW_C)
    assert found == [
        'rows[0].meters = ["feed-a", "feed-b"]: must measure this row alone; feed-a powers another row too'
    ]


def test_a_row_and_a_ups_of_one_name_are_told_apart_or_refused() -> None:
    text = SITE.replace("row-a", "ups-1")
    assert problems(text) == ['rows[0].name = "ups-1": must be unique; the UPS ups-1 has it too']


def test_a_file_that_is_no_toml_is_told_with_the_line() -> None:
    assert problems("[site]\nname = ams1\n") == ["line 2, column 8: Invalid value (the file is not TOML)"]
    assert problems("[site]\nname = ") == ["end of document: Invalid value (the file is not TOML)"]
    assert "line 3" in problems('[site]\nname = "a"\nname = "b"\n')[0]


def test_an_empty_file_is_told_all_that_it_needs() -> None:
    missing = [re.match(r"(\w+) is missing: write \[", problem) for problem in problems("")]
    assert [found[1] for found in missing if found] == ["site", "ups", "pdus", "feeds", "racks", "rows"]


SCALARS = st.one_of(
    st.booleans(), st.integers(-(10**18), 10**18), st.floats(), st.text(max_size=3), st.just([]), st.just({})
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in the parsed file."""
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path] * bool(path) + [place for key, value in inside for place in places(value, (*path, key))]


def as_toml(value: Any) -> str:
    """A parsed file written out again, everything inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {as_toml(each)}' for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


@given(draws=st.data())
def test_whatever_stands_anywhere_in_the_file_is_read_or_told_of(draws: st.DataObject) -> None:
    raw = tomllib.loads(SITE)
    *above, last = draws.draw(st.sampled_from(places(raw)))
    node: Any = raw
    for key in above:
        node = node[key]
    node[last] = draws.draw(SCALARS)
    text = "\n".join(f"{key} = {as_toml(value)}" for key, value in raw.items())
    try:
        site = read(text)
    except SiteFileError:
        return  # told of; anything else that is raised fails the test
    assert site.hosts


def test_the_demonstration_row_is_thirty_percent_oversubscribed() -> None:
    site = site_from(DEMO)
    row = site.row("ams1/row-b")
    assert (len(row.racks), len(row.hosts), row.budget_w) == (13, 52, 260_000.0)
    assert row.rated_w / row.budget_w == pytest.approx(1.3)
    for rack in row.racks:
        assert [host.priority for host in rack.hosts] == ["high", "high", "low", "low"]
    assert {host.paths for host in row.hosts} == {("out_of_band", "brake", "in_band")}
    assert {host.sku.name for host in row.hosts} == {"A100-SXM4-80GB"}
    assert set(row.meters) == set(row.racks[0].feeds)


def test_either_feed_of_the_demonstration_row_carries_its_whole_budget() -> None:
    site = site_from(DEMO)
    assert all(site.nodes[feed].limit_w >= site.rows[0].budget_w for feed in site.rows[0].meters)


def test_the_single_server_offers_its_own_driver_and_may_draw_its_nameplate() -> None:
    site = site_from(ONE_HOST)
    (host,) = site.hosts.values()
    assert (host.gpu_count, host.paths, host.rated_w) == (8, ("in_band",), site.rows[0].budget_w)
