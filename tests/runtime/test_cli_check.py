"""`windrow check`: what a row is, what it falls to, and which open points are decided how."""

from __future__ import annotations

import json
import pathlib

import pytest
from support.machines import Machine
from support.sites import DEMO, ONE_HOST, PROJECT

from runtime.cli.app import run

POLICIES = PROJECT / "deploy" / "policies"


def test_an_oversubscribed_row_is_told_with_its_safe_share_and_every_switch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["check", str(DEMO)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == (
        "ams1/row-b: 52 hosts (26 of low priority), 416 GPUs; nameplate 338.0 kW on a budget of 260.0 kW, "
        "1.30×, oversubscribed"
    )
    share = "212 W per GPU and 900 MHz; the row is then at most 259.8 kW"
    assert told[1] == f"  safe share, once every lease has lapsed: {share}"
    assert told[2] == "  meters: ams1/ups-1/pdu-3/feed-a, ams1/ups-2/pdu-4/feed-b"
    assert told[3].startswith("policy built-in: polca, T1 0.8/0.75, T2 0.89/0.84, brake 1 of the budget")
    assert "  lock_range = [min,f]" in told
    assert "  hp_escalation = after_lp_effective" in told
    assert len(told) == 14, "four lines, and one for each of the ten open points"


@pytest.mark.parametrize("policy", sorted(POLICIES.glob("*.toml")), ids=lambda path: path.stem)
def test_each_policy_that_ships_can_run_the_row_that_ships(policy: pathlib.Path) -> None:
    assert run(["check", str(DEMO), "--policy", str(policy)]) == 0


def test_a_site_that_ships_without_a_clock_table_says_what_is_needed(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    assert run(["check", str(ONE_HOST)]) == 2
    assert capsys.readouterr().err.startswith(
        "the built-in policy has no clock table for H100-SXM5-80GB: sweep it and state "
        "[clocks.H100-SXM5-80GB] in a policy file (--policy FILE), or set allow_fraction_defaults = true"
    )
    policy = tmp_path / "policy.toml"
    policy.write_text('variant = "polca"\n', encoding="utf-8")
    assert run(["check", str(ONE_HOST), "--policy", str(policy)]) == 2
    assert capsys.readouterr().err.startswith(f"{policy}: no clock table for H100-SXM5-80GB: sweep it")
    policy.write_text("allow_fraction_defaults = true\n", encoding="utf-8")
    assert run(["check", str(ONE_HOST), "--policy", str(policy)]) == 0
    told = capsys.readouterr().out
    assert "not oversubscribed" in told
    assert ": 1 host (" in told


def test_a_host_s_configuration_is_checked_with_all_that_it_names(
    tmp_path: pathlib.Path, nvml_library: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path)
    assert run(["check", "--config", str(machine.config)]) == 0
    assert "2550 W on a budget of 2400 W, 1.06×, oversubscribed" in capsys.readouterr().out
    assert machine.state.init_calls == 0, "no device is touched"


def test_every_problem_is_told_at_once_and_as_json(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, policy = tmp_path / "site.toml", tmp_path / "policy.toml"
    site.write_text(
        DEMO.read_text(encoding="utf-8").replace("limit_w = 600_000", "limit_w = 0"), encoding="utf-8"
    )
    policy.write_text('variant = "polka"\n[t1]\nenter = 7\n', encoding="utf-8")

    assert run(["check", str(site), "--policy", str(policy)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    problems = captured.err.splitlines()
    assert len(problems) == 4
    assert f"{site}: pdus[0].limit_w = 0: must be above zero (breaker rating in watts)" in problems

    assert run(["check", str(site), "--policy", str(policy), "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {"ok": False, "problems": problems}
    assert run(["check", str(DEMO), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "problems": []}


def test_what_to_check_has_to_be_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check"]) == 2
    assert capsys.readouterr().err == "name a site file, or a host's configuration with --config\n"
    assert run(["check", str(DEMO), "--config", "host.toml"]) == 2
    assert capsys.readouterr().err == "--config names the site and the policy itself: leave them out\n"
