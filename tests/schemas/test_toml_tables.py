"""Tables of TOML: what a key hands out, and how a mistake is told."""

from __future__ import annotations

import math

import pytest

from schemas.toml_tables import NotToml, not_among, read_toml, shown


def test_what_is_left_out_has_its_default_or_is_missing() -> None:
    root = read_toml("", "x.toml")
    assert (root.text("a", "a name", "usual"), root.choice("b", ["one"], "a kind", "one")) == ("usual", "one")
    assert (root.number("c", "watts", 3.5), root.whole("d", "GPUs", 8)) == (3.5, 8)
    assert root.problems == []
    assert root.text("e", "a name") == ""
    assert math.isnan(root.number("f", "watts"))
    assert root.problems == ["x.toml: e is missing: a name", "x.toml: f is missing: watts"]


def test_a_problem_stands_under_its_whole_path_with_its_value() -> None:
    root = read_toml("[a]\n[[a.b]]\nc = 1\n[[a.b]]\nc = -1\nd = 2\n", "x.toml")
    part = root.table("a")
    assert part is not None
    for table in part.tables("b", "the parts"):
        table.number("c", "watts")
        table.close()
    part.close()
    root.close()
    assert root.problems == [
        "x.toml: a.b[1].c = -1: must be above zero (watts)",
        "x.toml: a.b[1].d = 2: no such key here; there is c",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-3, "0.001"),
        (True, "true"),
        ("a\nb", '"a\\nb"'),
        ([1, "é"], '[1, "é"]'),
        ("x" * 99, '"' + "x" * 56 + "..."),
    ],
)
def test_a_value_is_shown_as_it_was_written_and_never_long(value: object, text: str) -> None:
    assert shown(value) == text


def test_the_nearest_of_many_is_told_and_not_all_of_them() -> None:
    hosts = [*(f"h{number:02d}" for number in range(52)), "spare"]
    told = not_among("Spore", hosts)
    assert told.startswith("did you mean spare? there is h00, h01, ")
    assert told.endswith(", h19 and 33 more")
    assert not_among("x", ()) == "there is none"


def test_text_that_stops_being_toml_says_where() -> None:
    with pytest.raises(NotToml) as refused:
        read_toml("a = 1\nb = \n", "x.toml")
    assert str(refused.value).startswith("x.toml: line 2, column 5: ")
