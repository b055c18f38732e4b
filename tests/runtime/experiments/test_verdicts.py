"""Each bound that an experiment is judged by, from both sides: wide bounds hold anything."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime.cli import experimenting
from runtime.cli.app import run
from runtime.experiments.polca import NO_CAP, POLCA, STUDIED, Figure, Point, Rate, Summary
from runtime.experiments.report import Fact, facts

WEEKS = 6.0


def figure(mean: float) -> Figure:
    return Figure(mean, 0.0)


def summary(policy: str, brakes: int = 0, **changes: Any) -> Summary:
    """Six quiet weeks, every figure as the uncapped runs have it."""
    made = Summary(
        sweep="headline", setting="+30 %", policy=policy, servers=52, runs=6, seeds="1 2 3 4 5 6", days=42.0,
        brakes=brakes, brakes_a_week=Rate(brakes / WEEKS, 0.0, brakes + 4.0), braked_s_a_week=figure(0.0),
        over_budget_s=0.0, trips=0, peak_ratio=0.987, mean_ratio=figure(0.85), high_p50=figure(0.0),
        high_p99=figure(0.0), low_p50=figure(0.0), low_p99=figure(0.0), high_tokens=figure(0.0),
        low_tokens=figure(0.0), energy=figure(0.0), high_capped=figure(0.0), low_capped=figure(0.0),
        commands_a_week=figure(0.0),
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def of_polca(**changes: Any) -> Summary:
    return summary(POLCA, **changes)


def the_fact(words: tuple[str, ...], polca: Summary, no_cap: Summary) -> Fact:
    """That whose name has all of these words."""
    found = [fact for fact in facts([polca, no_cap]) if all(word in fact.what for word in words)]
    assert len(found) == 1, f"{words}: {found}"
    return found[0]


@pytest.mark.parametrize(
    ("words", "within", "outside"),
    [
        (("P50", "high priority"), {"high_p50": figure(0.0099)}, {"high_p50": figure(0.0101)}),
        (("P99", "high priority"), {"high_p99": figure(0.049)}, {"high_p99": figure(0.051)}),
        (("P50", "low priority"), {"low_p50": figure(0.049)}, {"low_p50": figure(0.051)}),
        (("P99", "low priority"), {"low_p99": figure(0.49)}, {"low_p99": figure(0.51)}),
        (("throughput", "high priority"), {"high_tokens": figure(-0.0099)}, {"high_tokens": figure(-0.0101)}),
        (("throughput", "low priority"), {"low_tokens": figure(-0.0199)}, {"low_tokens": figure(-0.0201)}),
        (("brakes under POLCA",), {"brakes": 0}, {"brakes": 1}),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_a_fact_of_the_study_is_held_up_to_its_bound_and_missed_beyond(
    words: tuple[str, ...], within: dict[str, Any], outside: dict[str, Any]
) -> None:
    no_cap = summary(NO_CAP, brakes=60)
    assert the_fact(words, of_polca(**within), no_cap).verdict == "held"
    assert the_fact(words, of_polca(**outside), no_cap).verdict == "**missed**"


@pytest.mark.parametrize(
    ("words", "within", "outside"), [(("without caps brakes",), 1, 0), (("every baseline",), 10, 9)]
)
def test_a_row_that_needs_no_policy_is_no_evidence_for_one(
    words: tuple[str, ...], within: int, outside: int
) -> None:
    assert the_fact(words, of_polca(), summary(NO_CAP, brakes=within)).held
    assert not the_fact(words, of_polca(), summary(NO_CAP, brakes=outside)).held


@pytest.mark.parametrize(
    ("field", "within", "outside"),
    [
        ("high_p50", 0.0099, 0.0101),
        ("high_p99", 0.049, 0.051),
        ("low_p50", 0.049, 0.051),
        ("low_p99", 0.49, 0.51),
    ],
)
def test_the_objectives_are_kept_up_to_each_bound_and_missed_beyond(
    field: str, within: float, outside: float
) -> None:
    assert of_polca(**{field: figure(within)}).objectives == "met"
    assert of_polca(**{field: figure(outside)}).objectives == "missed"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`experiment polca --quick` where the runs came to this, POLCA and No-cap changed so; its status."""

    def quick_run(polca: dict[str, Any], no_cap: dict[str, Any], *tokens: str) -> int:
        came_to = {
            # Whatever is judged by others' figures, or lets theirs pass for POLCA's, is wrong.
            name: summary(name, brakes=99, over_budget_s=99.0, peak_ratio=1.3, high_p50=figure(0.3))
            for name in STUDIED
        }
        came_to[POLCA] = of_polca(**polca)
        came_to[NO_CAP] = msgspec.structs.replace(came_to[NO_CAP], **no_cap)

        def summarised(point: Point, results: object) -> Summary:
            return came_to[point.policy]

        monkeypatch.setattr(experimenting, "summarise", summarised)
        return run(["experiment", "polca", "--quick", "--out", str(tmp_path), *tokens])

    for name in ("run_all", "plot_added", "plot_paths"):
        monkeypatch.setattr(experimenting, name, lambda *_, **__: [])
    return quick_run


def test_quick_checks_pass_where_polca_holds_the_row_and_no_cap_does_not(
    quick: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Just within each bound; that the baselines brake is what they are for."""
    assert quick({"high_p50": figure(0.0099), "peak_ratio": 1.0}, {"brakes": 1}) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "checks passed" in printed.out


MISSES = pytest.mark.parametrize(
    ("polca", "no_cap", "words"),
    [
        ({"brakes": 1, "peak_ratio": 1.021}, {}, ("POLCA", "braked", "1.021")),
        ({"over_budget_s": 2.0, "peak_ratio": 1.001}, {}, ("POLCA", "1.001")),
        ({"high_p50": figure(0.01)}, {}, ("POLCA", "high priority", "1.0%")),
        ({}, {"brakes": 0, "peak_ratio": 0.962}, ("without caps", "never braked", "0.962")),
    ],
    ids=["braked", "over its budget", "high priority slower", "never needed"],
)
"""What came out, just outside one bound each, and what its miss names: who, what and how much."""


@MISSES
def test_a_quick_check_just_outside_its_bound_fails_the_command_in_words(
    polca: dict[str, Any],
    no_cap: dict[str, Any],
    words: tuple[str, ...],
    quick: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whoever checks an installation this way looks at the exit status; whoever it fails, at the words."""
    assert quick(polca, no_cap) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert all(word in line for word in words), line
    assert "passed" not in printed.out


@MISSES
def test_a_quick_check_fails_the_command_with_json_too(
    polca: dict[str, Any],
    no_cap: dict[str, Any],
    words: tuple[str, ...],
    quick: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert quick(polca, no_cap, "--json") == 1
    printed = capsys.readouterr()
    assert {row["policy"] for row in json.loads(printed.out)} == set(STUDIED)
    (line,) = printed.err.splitlines()
    assert all(word in line for word in words), line


def test_every_missed_quick_check_is_told(quick: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Of three that fail, the first alone would have two more found one by one."""
    assert quick({"brakes": 2, "high_p50": figure(0.05)}, {"brakes": 0}) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3
