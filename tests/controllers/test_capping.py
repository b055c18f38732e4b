"""What a row's capping decides, why, and what it does not decide on."""

from __future__ import annotations

import math

import msgspec
import pytest
from support.capped_row import ROW, SOURCE, T0, Loop, capped_row, failover, reading, settled, word

from controllers.capping import decide
from controllers.policy import DEFAULT_POLICY, CappingPolicy, Switches
from controllers.view import ViewState, fold, view
from schemas.commands import LockClocks
from schemas.decisions import Decision
from schemas.forecasts import PeakForecast
from schemas.instants import SECOND
from schemas.operators import Resume
from schemas.outcomes import Failed, Lapsed
from schemas.samples import PowerRollup

ROW52 = capped_row()
PERIOD = DEFAULT_POLICY.period_ms


def running(policy: CappingPolicy = DEFAULT_POLICY, p: float = 0.5) -> Loop:
    loop = Loop(ROW52, policy)
    settled(loop, p)
    return loop


def clocks(decision: Decision) -> dict[str, set[int]]:
    """Priority → the clocks asked for."""
    out: dict[str, set[int]] = {"low": set(), "high": set()}
    for host, setting in zip(ROW52.hosts, decision.desired, strict=True):
        assert setting.target == host.path
        out[host.priority].add(setting.max_mhz)
    return out


def test_every_host_of_the_row_has_a_setting_and_uncapped_is_a_permission_with_an_end() -> None:
    decision, _ = running().tick(T0, [reading(ROW52, T0, 0.6)])
    assert decision.mode == "U"
    assert clocks(decision) == {"low": {1410}, "high": {1410}}
    assert {(s.path, s.on_expiry, s.brake, s.owner) for s in decision.desired} == {
        ("out_of_band", "safe_share", False, "capping/polca")
    }
    assert decision.because == "row at 0.600 of 260 kW: every host may run at its highest clock"


def test_the_steps_name_the_published_clocks_and_say_who_waits_for_whom() -> None:
    loop = running()
    decision, _ = loop.tick(T0, [reading(ROW52, T0, 0.82)])
    assert (decision.mode, clocks(decision)) == ("T1", {"low": {1275}, "high": {1410}})
    assert decision.because.startswith(
        "row at 0.820 of 260 kW, above T1 0.800: low priority (26 hosts) to 1275 MHz"
    )

    loop = running()
    decision, commands = loop.tick(T0, [reading(ROW52, T0, 0.912)])
    assert (decision.mode, clocks(decision)) == ("T2a", {"low": {1110}, "high": {1410}})
    assert decision.because == (
        "row at 0.912 of 260 kW, above T2 0.890: low priority (26 hosts) to 1110 MHz (0 of 26 verified); "
        "high priority waits until that has landed; "
        "the worst 40 s spike (×1.118) would pass the budget by 5.1 kW"
    )

    loop.obeyed(T0 + PERIOD, commands[:19])
    decision, _ = loop.tick(T0 + PERIOD, [reading(ROW52, T0 + PERIOD, 0.912)])
    assert decision.mode == "T2a"
    assert "(19 of 26 verified)" in decision.because

    loop.obeyed(T0 + 2 * PERIOD, commands[19:])
    decision, commands = loop.tick(T0 + 2 * PERIOD, [reading(ROW52, T0 + 2 * PERIOD, 0.912)])
    assert (decision.mode, clocks(decision)) == ("T2b", {"low": {1110}, "high": {1305}})
    assert {c.max_mhz for c in commands if isinstance(c, LockClocks)} == {1305}
    assert decision.shortfall_w == pytest.approx((0.912 - 0.89) * ROW52.budget_w)


def test_a_decision_names_the_readings_it_rests_on() -> None:
    loop, seen = running(), reading(ROW52, T0, 0.5)
    alarm = failover(T0)
    decision, _ = loop.tick(T0, [seen, alarm])
    assert decision.cause == (seen.id, alarm.id)
    assert decision.mode == "B"
    assert decision.because.startswith("a UPS is failing over, row at 0.500")


def test_a_host_that_failed_its_retries_does_not_hold_up_the_escalation_for_ever() -> None:
    loop = running(CappingPolicy(landed_ratio=1.0))
    silent = next(host.path for host in ROW52.hosts if host.priority == "low")
    now, mode = T0, ""
    while mode != "T2b" and now < T0 + 10 * 60 * SECOND:
        decision, commands = loop.tick(now, [reading(ROW52, now, 0.90)])
        mode = decision.mode
        loop.obeyed(now, [c for c in commands if c.subject != silent])
        now += PERIOD
    assert now - T0 < 4 * 60 * SECOND
    assert f"not waited for after 3 attempts: {silent}" in loop.decisions[-1].because
    asked = [c for c in loop.commands if c.subject == silent and isinstance(c, LockClocks)]
    assert len(asked) == 1 + DEFAULT_POLICY.retries


def test_a_low_host_that_says_it_is_at_its_safe_share_counts_as_landed() -> None:
    loop = running(CappingPolicy(landed_ratio=1.0))
    _, commands = loop.tick(T0, [reading(ROW52, T0, 0.90)])
    loop.obeyed(T0, commands[1:])
    held = loop.state.hosts[commands[0].subject].lock
    assert held.in_force is not None
    lapsed = word(Lapsed, msgspec.structs.replace(commands[0], id=held.in_force.id), T0 + PERIOD)
    failed = word(Failed, commands[0], T0 + PERIOD)
    decision, _ = loop.tick(T0 + PERIOD, [failed, reading(ROW52, T0 + PERIOD, 0.90)])
    assert decision.mode == "T2a"
    decision, _ = loop.tick(T0 + 2 * PERIOD, [lapsed, reading(ROW52, T0 + 2 * PERIOD, 0.90)])
    assert decision.mode == "T2b"


def test_the_brake_goes_once_power_was_low_for_forty_seconds_on_end() -> None:
    loop = running()
    decision, commands = loop.tick(T0, [reading(ROW52, T0, 1.01)])
    assert decision.mode == "B"
    assert {(s.max_mhz, s.path, s.on_expiry, s.brake) for s in decision.desired} == {
        (285, "brake", "hold", True)
    }
    assert decision.shortfall_w == pytest.approx(0.01 * ROW52.budget_w)
    loop.obeyed(T0, commands)
    modes = {}
    for t in range(2, 90, 2):
        now = T0 + t * SECOND
        decision, _ = loop.tick(now, [reading(ROW52, now, 0.85 if t == 20 else 0.5)])
        modes[t] = decision.mode
    # Calm from 22 s on: the reading at 20 s began the 40 s anew.
    assert next(t for t, mode in modes.items() if mode != "B") == 62
    assert modes[62] == "T2b"


def test_the_brake_stays_while_a_ups_is_failing_over() -> None:
    loop = running()
    loop.tick(T0, [reading(ROW52, T0, 0.5), failover(T0), failover(T0, episode="ups-2")])
    for t in range(2, 200, 2):
        events = [failover(T0 + t * SECOND, "cleared")] if t == 50 else []
        decision, _ = loop.tick(T0 + t * SECOND, [reading(ROW52, T0 + t * SECOND, 0.5), *events])
        assert decision.mode == "B", "one UPS is well again, the other is not"
    now = T0 + 200 * SECOND
    loop.tick(now, [reading(ROW52, now, 0.5), failover(now, "cleared", "ups-2")])
    for t in range(2, 42, 2):  # the 40 s count from the end of the failover
        decision, _ = loop.tick(now + t * SECOND, [reading(ROW52, now + t * SECOND, 0.5)])
        assert decision.mode == ("B" if t < 40 else "T2b")


def test_a_brake_to_be_released_by_hand_waits_for_the_hand() -> None:
    loop = running(CappingPolicy(switches=Switches(brake_release="manual")))
    loop.tick(T0, [reading(ROW52, T0, 1.01)])
    for t in range(2, 300, 2):
        decision, _ = loop.tick(T0 + t * SECOND, [reading(ROW52, T0 + t * SECOND, 0.5)])
        assert decision.mode == "B"
    now = T0 + 300 * SECOND
    resume = Resume(at=now, source="cli", subject=ROW, by="ann")
    decision, _ = loop.tick(now, [resume, reading(ROW52, now, 0.9)])
    assert decision.mode == "B", "a person cannot release it into an overload"
    decision, _ = loop.tick(now + PERIOD, [reading(ROW52, now + PERIOD, 0.5)])
    assert decision.mode == "T2b"


def test_steps_to_a_looser_mode_are_a_dwell_apart() -> None:
    loop = running()
    _, commands = loop.tick(T0, [reading(ROW52, T0, 0.90)])
    loop.obeyed(T0, commands)
    modes = []
    for t in range(2, 130, 2):
        decision, commands = loop.tick(T0 + t * SECOND, [reading(ROW52, T0 + t * SECOND, 0.5)])
        loop.obeyed(T0 + t * SECOND, commands)
        modes.append((t, decision.mode))
    assert next(t for t, mode in modes if mode == "T1") == 2
    assert next(t for t, mode in modes if mode == "U") == 62
    assert "easing waits until 60 s after the last one" in loop.decisions[2].because


# ---- unknown power ----

UNUSABLE = {
    "missing": lambda now: reading(ROW52, now, None),
    "nan": lambda now: reading(ROW52, now, math.nan),
    "infinite": lambda now: reading(ROW52, now, math.inf),
    "negative": lambda now: reading(ROW52, now, -0.2),
    "zero": lambda now: reading(ROW52, now, 0.0),
    "stale": lambda now: msgspec.structs.replace(reading(ROW52, now, 0.3), known_at=now - 10 * SECOND - 1),
    "thin": lambda now: msgspec.structs.replace(reading(ROW52, now, 0.3), basis="sum", coverage_ratio=0.79),
    "from the future": lambda now: reading(ROW52, now + 60 * SECOND, 0.3),
}


@pytest.mark.parametrize("kind", UNUSABLE)
@pytest.mark.parametrize("mode_p", [0.5, 0.82, 0.90, 1.01])
def test_on_an_unusable_reading_the_caps_hold_and_then_tighten_with_an_alarm(
    kind: str, mode_p: float
) -> None:
    loop = running()
    before, commands = loop.tick(T0, [reading(ROW52, T0, mode_p)])
    loop.obeyed(T0, commands)
    for t in range(2, 60, 2):
        now = T0 + t * SECOND
        seen: PowerRollup = UNUSABLE[kind](now)
        decision, commands = loop.tick(now, [seen])
        assert decision.refusal
        assert decision.refusal in decision.because
        if t <= 10:
            assert decision.mode == before.mode, "held"
            assert commands == ()
        if t > 22:
            assert decision.mode == ("B" if before.mode == "B" else "T2b")
            assert "ALARM, no power reading for" in decision.because
        loop.obeyed(now, commands)


def test_silence_is_unknown_too() -> None:
    loop = running()
    loop.tick(T0, [reading(ROW52, T0, 0.5)])
    decision, _ = loop.tick(T0 + 12 * SECOND)
    assert decision.refusal == "the row's power was last known 12 s ago, the bound is 10 s"
    decision, _ = Loop(ROW52, DEFAULT_POLICY).tick(T0)
    assert decision.refusal == "no reading of the row's power has come yet"


def test_an_upper_bound_steps_the_caps_up_but_never_brakes_and_never_eases() -> None:
    loop = running()
    loop.tick(T0, [reading(ROW52, T0, 0.5)])
    modes = []
    for t in range(2, 20, 2):
        now = T0 + t * SECOND
        decision, _ = loop.tick(now, [reading(ROW52, now, None, upper=1.2, coverage=0.7)])
        modes.append(decision.mode)
    assert modes == ["U"] * 5 + ["T2a"] * 4

    loop = running()
    loop.tick(T0, [reading(ROW52, T0, 0.9)])
    for t in range(2, 18, 2):
        now = T0 + t * SECOND
        decision, _ = loop.tick(now, [reading(ROW52, now, None, upper=0.3, coverage=0.7)])
        assert decision.mode == "T2a"


def test_a_bound_over_too_few_readings_says_nothing() -> None:
    loop = running()
    loop.tick(T0, [reading(ROW52, T0, 0.5)])
    for t in range(2, 20, 2):
        decision, _ = loop.tick(
            T0 + t * SECOND, [reading(ROW52, T0 + t * SECOND, None, upper=1.3, coverage=0.4)]
        )
        assert decision.mode == "U"


def test_a_failing_ups_brakes_without_knowing_the_power() -> None:
    decision, _ = running().tick(T0, [reading(ROW52, T0, None), failover(T0)])
    assert decision.mode == "B"
    assert decision.refusal


# ---- the forecast ----

FORECAST = CappingPolicy(variant="polca_forecast")


def forecast(at: int, peak: float, *, fallback: str = "") -> PeakForecast:
    w = ROW52.budget_w
    return PeakForecast(
        at=at,
        source="stream/forecast",
        subject=ROW,
        model="test",
        horizons_s=(2.0, 10.0, 40.0),
        quantiles=(0.5, 0.95),
        values=((0.1 * w, 9 * w), (0.1 * w, 9 * w), (0.1 * w, peak * w)),
        fallback=fallback,
    )


def test_a_forecast_peak_over_the_paths_latency_steps_up_ahead_of_the_power() -> None:
    loop = running(FORECAST)
    foretold = forecast(T0, 0.91, fallback="the model did worse than the baseline")
    decision, _ = loop.tick(T0, [reading(ROW52, T0, 0.7), foretold])
    assert decision.mode == "T2a"
    assert foretold.id in decision.cause
    assert decision.because.startswith("row at 0.700 of 260 kW, forecast to peak at 0.910, above T2 0.890")
    plain, _ = running().tick(T0, [reading(ROW52, T0, 0.7), foretold])
    assert plain.mode == "U", "plain POLCA does not look at it"
    assert foretold.id not in plain.cause


def test_a_step_down_waits_until_the_forecast_has_cleared_too() -> None:
    loop = running(FORECAST)
    loop.tick(T0, [reading(ROW52, T0, 0.82), forecast(T0, 0.82)])
    now = T0 + PERIOD
    decision, _ = loop.tick(now, [reading(ROW52, now, 0.70), forecast(now, 0.76)])
    assert decision.mode == "T1"
    decision, _ = loop.tick(now + PERIOD, [reading(ROW52, now + PERIOD, 0.70), forecast(now + PERIOD, 0.74)])
    assert decision.mode == "U"


def test_a_forecast_alone_never_brakes_and_an_old_or_unsound_one_is_not_read() -> None:
    decision, _ = running(FORECAST).tick(T0, [reading(ROW52, T0, 0.7), forecast(T0, 1.2)])
    assert decision.mode == "T2a"
    for unsound in (forecast(T0 - 11 * SECOND, 1.2), forecast(T0, math.nan)):
        decision, _ = running(FORECAST).tick(T0, [reading(ROW52, T0, 0.7), unsound])
        assert decision.mode == "U"


# ---- switches that show in the decision ----


def test_the_spike_model_is_reported_where_the_worst_spike_would_pass_the_budget() -> None:
    additive = CappingPolicy(switches=Switches(spike_model="additive"))
    decision, _ = running().tick(T0, [reading(ROW52, T0, 0.89)])
    assert "spike" not in decision.because, "0.89 × 1.118 = 0.995"
    decision, _ = running(additive).tick(T0, [reading(ROW52, T0, 0.89)])
    assert "the worst 40 s spike (+0.118) would pass the budget by 2.1 kW" in decision.because


def test_the_path_is_the_policys_where_the_host_offers_it_and_else_one_it_has() -> None:
    rack = ROW52.racks[0]
    bare = msgspec.structs.replace(rack.hosts[0], paths=("in_band",))
    row = msgspec.structs.replace(ROW52, racks=(msgspec.structs.replace(rack, hosts=(bare,)),))
    seen = view(fold(ViewState(), [reading(row, T0, 1.01)]), row, T0)
    (setting,) = decide(seen, DEFAULT_POLICY, T0, source=SOURCE).desired
    assert (setting.brake, setting.path) == (True, "in_band")
    seen = view(fold(ViewState(), [reading(row, T0, 0.5)]), row, T0)
    (setting,) = decide(seen, DEFAULT_POLICY, T0, source=SOURCE).desired
    assert setting.path == "in_band"


def test_deciding_changes_nothing_and_is_the_same_each_time() -> None:
    loop = running()
    loop.state = fold(loop.state, [reading(ROW52, T0, 0.9)])
    before = msgspec.json.encode(loop.state.last)
    one = decide(loop.look(T0), DEFAULT_POLICY, T0, source=SOURCE)
    assert one == decide(loop.look(T0), DEFAULT_POLICY, T0, source=SOURCE)
    assert msgspec.json.encode(loop.state.last) == before
    assert one.mode == "T2a"
