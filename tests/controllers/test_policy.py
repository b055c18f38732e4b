from __future__ import annotations

import pathlib

import msgspec
import pytest
from support.capped_row import capped_row

from controllers.policy import DEFAULT_POLICY, CappingPolicy, PolicyFileError, read_policy
from schemas.commands import Path
from schemas.topology import Row

POLICIES = pathlib.Path(__file__).parents[2] / "deploy" / "policies"


def problems(text: str) -> list[str]:
    with pytest.raises(PolicyFileError) as refusal:
        read_policy(text, "polca.toml")
    return str(refusal.value).splitlines()


def test_the_shipped_polca_file_spells_out_every_default() -> None:
    text = (POLICIES / "polca.toml").read_text()
    policy = read_policy(text, DEFAULT_POLICY.name)
    assert msgspec.structs.replace(policy, clocks={}) == DEFAULT_POLICY
    for field in msgspec.structs.fields(CappingPolicy):
        part = getattr(DEFAULT_POLICY, field.name)
        inner = [f.name for f in msgspec.structs.fields(part)] if isinstance(part, msgspec.Struct) else []
        for key in [field.name, *inner]:
            assert key == "name" or key in text, f"{key} is not spelled out"


@pytest.mark.parametrize("path", sorted(POLICIES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_policy_can_run_the_studys_row(path: pathlib.Path) -> None:
    policy = read_policy(path.read_text(), path.name)
    assert policy.variant == path.stem.replace("-", "_")
    assert policy.unfit_for(capped_row()) == ()


def test_an_empty_file_is_the_default_policy() -> None:
    assert read_policy("", DEFAULT_POLICY.name) == DEFAULT_POLICY


def test_every_problem_is_named_at_once_in_the_operators_words() -> None:
    found = problems(
        """
        variant = "polka"
        leese_ms = 3
        brake = nan
        period_ms = 2.5
        path = 4
        forecast = 7
        allow_fraction_defaults = "yes"
        [t1]
        enter = 80
        [switches]
        hp_escalation = "later"
        inflite = 3
        [clocks.H100]
        low_t1 = 1.5
        hi_t2 = 1830
        """
    )
    variants = (
        '"no_cap", "off", "one_threshold_all", "one_threshold_low", "polca", "polca_forecast", "proportional"'
    )
    assert [line.partition(" there is ")[0] for line in found] == [
        f'polca.toml: variant = "polka": must be one of {variants}',
        'polca.toml: path = 4: must be one of "in_band", "out_of_band"',
        "polca.toml: period_ms = 2.5: must be whole milliseconds above 0, a day at most",
        "polca.toml: brake = nan: must be a share of the row's budget, above 0 and at most 1.5",
        'polca.toml: allow_fraction_defaults = "yes": must be true or false',
        "polca.toml: t1.enter = 80: must be a share of the row's budget, above 0 and at most 1.5",
        'polca.toml: switches.hp_escalation = "later": must be one of "after_lp_effective", "immediate"',
        "polca.toml: switches.inflite = 3: no such key here; did you mean inflight?",
        "polca.toml: forecast = 7: must be a table, written [forecast]",
        "polca.toml: clocks.H100.high_t2 is missing: a board states low_t1, high_t2, low_t2, brake (MHz)",
        "polca.toml: clocks.H100.low_t2 is missing: a board states low_t1, high_t2, low_t2, brake (MHz)",
        "polca.toml: clocks.H100.brake is missing: a board states low_t1, high_t2, low_t2, brake (MHz)",
        "polca.toml: clocks.H100.low_t1 = 1.5: must be a clock in whole MHz, 1 to 10000",
        "polca.toml: clocks.H100.hi_t2 = 1830: no such key here; did you mean high_t2?",
        "polca.toml: leese_ms = 3: no such key here; did you mean lease_ms?",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("t1 = {enter = 0.8, leave = 0.8}", "t1.leave = 0.8: must be below t1.enter = 0.8"),
        ("t2 = {enter = 0.89, leave = 0.79}", "t2.leave = 0.79: must be at or above t1.enter = 0.8"),
        ("brake = 0.85", "brake = 0.85: must be above t2.enter = 0.89"),
        ("renew_ms = 90000", "renew_ms = 90000: must be below lease_ms = 90000"),
        ("renew_ms = 15000", "renew_ms = 15000: must be above switches.stale_safe_periods"),
        ("lease_ms = 44000\nrenew_ms = 40000", "lease_ms = 44000: must be above latency_ms.out_of_band"),
        ("switches = {stale_safe_periods = 5}", "switches.stale_safe_periods = 5: must be above"),
        (
            "[clocks.A]\nlow_t1=9\nhigh_t2=9\nlow_t2=9\nbrake=1",
            "must be in the order brake < low_t2",
        ),
        ("clocks = 3", "clocks = 3: must be a table, written [clocks]"),
        ("= 3", "line 1, column 1: Invalid statement (the file is not TOML)"),
    ],
)
def test_values_that_contradict_each_other_are_refused(text: str, said: str) -> None:
    (found,) = problems(text)
    assert found.startswith("polca.toml: ")
    assert said in found


def test_a_floor_above_the_policys_own_caps_is_said_before_the_start() -> None:
    policy = CappingPolicy(guardrails=msgspec.structs.replace(DEFAULT_POLICY.guardrails, floor_ratio=0.8))
    (problem,) = policy.unfit_for(capped_row(1, 1))
    assert "guardrails.floor_ratio = 0.8: must be at most 0.787" in problem


def paths_of(row: Row, *paths: Path) -> Row:
    """The row with hosts that offer these paths alone."""
    racks = tuple(
        msgspec.structs.replace(
            rack, hosts=tuple(msgspec.structs.replace(host, paths=paths) for host in rack.hosts)
        )
        for rack in row.racks
    )
    return msgspec.structs.replace(row, racks=racks)


def test_an_oversubscribed_row_that_cannot_brake_before_the_ups_deadline_is_refused() -> None:
    slow = paths_of(capped_row(4, 4, budget_w=40_000.0), "out_of_band")
    (problem,) = DEFAULT_POLICY.unfit_for(slow)
    assert "no path brakes ams1/row-b/r00/h00" in problem
    assert "and 5 more within the 10 s that a UPS carries another's load" in problem
    assert "allow_slow_brake = true" in problem
    assert CappingPolicy(allow_slow_brake=True).unfit_for(slow) == ()
    assert CappingPolicy(variant="off").unfit_for(slow) == (), "it never brakes"
    assert DEFAULT_POLICY.unfit_for(msgspec.structs.replace(slow, budget_w=slow.rated_w)) == ()
    for path in ("in_band", "brake"):
        fast: Path = path
        assert DEFAULT_POLICY.unfit_for(paths_of(slow, "out_of_band", fast)) == ()


def test_each_open_point_reports_the_value_in_force() -> None:
    words = DEFAULT_POLICY.switches_in_words()
    assert [word.split(" = ")[0] for word in words] == [
        "hp_escalation",
        "uncap_rule",
        "brake_release",
        "spike_model",
        "inflight",
        "oob_latency",
        "oob_loss",
        "lock_range",
        "stale",
        "baseline_threshold",
    ]
    assert words[2] == "brake_release = calm (p < 0.84 for 40 s)"
    assert words[8] == "stale = hold after 5 periods (10 s), strictest caps after 10 (20 s)"
    other = read_policy(
        'switches = {brake_release = "manual", inflight = "reissue"}', "x"
    ).switches_in_words()
    assert "brake_release = manual" in other
    assert "inflight = reissue" in other


def test_the_single_threshold_of_the_baselines_is_as_wide_as_polcas_own() -> None:
    assert DEFAULT_POLICY.baseline.enter == 0.89
    assert DEFAULT_POLICY.baseline.leave == pytest.approx(0.84)
    low = read_policy('switches = {baseline_threshold = "0.80"}', "x").baseline
    assert (low.enter, low.leave) == (0.80, 0.75)
