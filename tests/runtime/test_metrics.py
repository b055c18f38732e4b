"""What a scrape says is what the row did, in names that Prometheus expects."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from support.rigs import START, Memory, in_band, rig_of, row_text, setup_of

from controllers.policy import DEFAULT_POLICY
from runtime.ledger.audit import who
from runtime.ledger.store import Ledger, LedgerUnwritable
from runtime.measured import Measured
from runtime.metrics import Metrics
from runtime.polling import SourceState
from runtime.row_loop import Beat
from schemas import codec
from schemas.commands import Brake, Command, Lease, LockClocks
from schemas.decisions import Decision, Setting
from schemas.emergencies import Emergency, EmergencyKind, Phase
from schemas.envelope import DeadLetter, Event, Tick
from schemas.forecasts import ForecastScore
from schemas.instants import SECOND, Instant
from schemas.outcomes import Failed, Lapsed, Outcome, Released, Renewed, Superseded, Verified
from schemas.samples import PowerRollup
from schemas.units import Reading
from twin.workload import LoadProfile

BUDGET_W = 42_000.0
SETUP = setup_of(
    row_text(8, budget_w=BUDGET_W),
    msgspec.structs.replace(
        in_band(), guardrails=msgspec.structs.replace(DEFAULT_POLICY.guardrails, dwell_ms=10 * SECOND)
    ),
)
(ROW,) = (row.path for row in SETUP.site.rows)
HOSTS = [host.path for host in SETUP.site.rows[0].hosts]
BUSY = LoadProfile(
    requests_per_s=0.35,
    points=((0.0, 0.01), (30.0, 0.02), (60.0, 0.5), (90.0, 1.0), (150.0, 1.0), (170.0, 0.8)),
)


def scraped(metrics: Metrics) -> dict[str, float]:
    """What Prometheus would read: sample with its labels → value."""
    found: dict[str, float] = {}
    for family in families(metrics):
        for sample in family.samples:
            labels = ",".join(
                f"{name}={value}" for name, value in sorted(sample.labels.items()) if name != "row"
            )
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def families(metrics: Metrics) -> list[Metric]:
    return list(text_string_to_metric_families(metrics.exposition().decode()))


def beat(
    at: Instant,
    inputs: Sequence[Event] = (),
    commands: Sequence[Command] = (),
    *,
    power_w: Reading = 20_000.0,
    mode: str = "U",
    desired: tuple[Setting, ...] = (),
    emergencies: Sequence[Emergency] = (),
    forecasts: Sequence[ForecastScore] = (),
) -> Beat:
    rollup = PowerRollup(
        at=at, source="rollup", subject=ROW, power_w=power_w, upper_w=40_000.0, budget_w=BUDGET_W,
        coverage_ratio=0.5, known_at=None if power_w is None else at - 500, basis="sum",
        verdicts={"stale": 2},
    )  # fmt: skip
    decision = Decision(
        at=at, source="c", subject=ROW, policy="polca", mode=mode, since=at, desired=desired, because="so",
        refusal="unknown power" if power_w is None else "",
    )  # fmt: skip
    tick = Tick(at=at, source="t", subject=ROW)
    return Beat(tick, tuple(inputs), rollup, tuple(forecasts), tuple(emergencies), decision, tuple(commands))


def lock(at: Instant, max_mhz: int, host: str = HOSTS[0]) -> LockClocks:
    lease = Lease(epoch=1, issued_at=at, expires_at=at + 90_000, on_expiry="safe_share")
    return LockClocks(at=at, source="c", subject=host, lease=lease, max_mhz=max_mhz)


def brake(at: Instant, host: str = HOSTS[0]) -> Brake:
    lease = Lease(epoch=1, issued_at=at, expires_at=at + 90_000, on_expiry="hold")
    return Brake(at=at, source="c", subject=host, lease=lease, max_mhz=288)


def said(kind: type[Outcome], command: Command, at: Instant) -> Outcome:
    more: Any = {"observed": 1.0} if kind is Verified else {}
    return kind(at=at, source="a", subject=command.target, command=command.id, epoch=1, **more)


# ---- a real run -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Metrics, list[Beat], Path]:
    """Three minutes of a busy row under the embedded host, measured, with its ledger."""
    path = tmp_path_factory.mktemp("run") / "ledger.sqlite"
    metrics = Metrics(SETUP.site)
    metrics.configured(site="lab1", policy="polca")
    beats: list[Beat] = []
    with Ledger(path, durable=False) as ledger:
        rig = rig_of(SETUP, load=BUSY, ledger=ledger, observe=[beats.append])
        host = rig.host
        measured = Measured(metrics, host.clock)
        metrics.watch(host.samples.states, host.loop.strangers)  # type: ignore[attr-defined]
        host.samples, host.agents, host.ledger = (
            measured.samples(host.samples),
            measured.agents(host.agents),
            measured.ledger(host.ledger),
        )
        host.observers = (*host.observers, measured.observe)
        host.run(until=START + 170 * SECOND)
    return metrics, beats, path


def test_a_scrape_agrees_with_the_beats_of_the_run(run: tuple[Metrics, list[Beat], Path]) -> None:
    metrics, beats, _ = run
    now, last = scraped(metrics), beats[-1]
    assert last.rollup.power_w is not None
    assert now["windrow_row_power_watts"] == last.rollup.power_w
    assert now["windrow_row_budget_watts"] == BUDGET_W
    assert now["windrow_row_power_ratio"] == last.rollup.power_w / BUDGET_W
    assert now["windrow_row_beat_timestamp_seconds"] == last.tick.at / 1000
    assert now[f"windrow_row_mode{{mode={last.decision.mode}}}"] == 1
    assert sum(value for name, value in now.items() if name.startswith("windrow_row_mode{")) == 1

    sent = Counter(type(command).__name__ for b in beats for command in b.commands)
    assert sent["LockClocks"] > len(HOSTS)
    assert now["windrow_commands_total{command=LockClocks}"] == sent["LockClocks"]
    ended = Counter(type(event).__name__ for b in beats for event in b.inputs if isinstance(event, Outcome))
    for outcome, count in ended.items():
        told = [
            v
            for n, v in now.items()
            if n.startswith("windrow_outcomes_total") and f"outcome={outcome}}}" in n
        ]
        assert sum(told) == count, outcome
    last_peak = next(f for f in reversed(last.forecasts) if not isinstance(f, ForecastScore))
    peak = f"windrow_row_peak_forecast_watts{{horizon_seconds=40,model={last_peak.model},quantile=0.99}}"
    assert now[peak] == last_peak.value(40.0, 0.99)


def test_hosts_by_setting_are_what_the_ledger_says_held_them(run: tuple[Metrics, list[Beat], Path]) -> None:
    metrics, beats, path = run
    with Ledger.reading(path) as ledger:
        holdings = who(ledger, ROW, beats[-1].tick.at)
    held = Counter(
        "uncapped" if holding.command.max_mhz == 1410 else "capped"
        for holding in holdings
        if holding.state == "in force" and isinstance(holding.command, LockClocks)
    )
    assert held["capped"] > 0
    now = scraped(metrics)
    assert now["windrow_row_hosts{setting=capped}"] == held["capped"]
    assert now["windrow_row_hosts{setting=uncapped}"] == held["uncapped"]
    assert sum(value for name, value in now.items() if name.startswith("windrow_row_hosts{")) == len(HOSTS)


def test_each_turn_and_each_first_read_back_is_timed_once(run: tuple[Metrics, list[Beat], Path]) -> None:
    metrics, beats, _ = run
    now = scraped(metrics)
    outcomes = [event for b in beats for event in b.inputs if isinstance(event, Verified)]
    commands = {event.command for event in outcomes}
    assert now["windrow_beat_seconds_count"] == len(beats)
    assert now["windrow_command_verified_event_seconds_count"] == len(commands)
    assert now["windrow_command_verified_event_seconds_sum"] > 0
    assert now["windrow_command_verified_seconds_count"] >= len(commands)
    assert now["windrow_ledger_append_seconds_count"] > 0
    assert now["windrow_ledger_waiting_records"] == 0
    assert [v for n, v in now.items() if n.startswith("windrow_collector_failures_total")] == [0] * (
        len(HOSTS) + 1
    )


UNITS = {"seconds", "watts", "celsius", "ratio"}  # Prometheus' base units, as far as they are used here
NOT_UNITS = {"ms", "milliseconds", "minutes", "kw", "kilowatts", "mhz", "percent", "fahrenheit", "w", "s"}


def test_names_keep_to_prometheus_rules(run: tuple[Metrics, list[Beat], Path]) -> None:
    found = families(run[0])
    assert len(found) > 25
    for family in found:
        name = family.name
        words = name.split("_")
        assert re.fullmatch(r"windrow(_[a-z]+)+", name), name
        assert words[1] != "windrow"
        assert not NOT_UNITS & set(words), name
        assert not {"gauge", "counter", "histogram", "total", "count", "sum", "bucket"} & set(words), name
        # The unit comes last: for a counter the parser has taken `_total` off already.
        assert not UNITS & set(words[:-1]), name
        assert family.documentation.endswith("."), name
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample
            assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", label) for label in sample.labels), sample
            assert "quantile" not in sample.labels or family.type == "gauge"
            assert not set(sample.labels) & {"job", "instance"}, "Prometheus sets these itself"
            assert not sample.name.endswith("_created")


def test_series_stand_at_nought_before_anything_has_happened() -> None:
    now = scraped(Metrics(SETUP.site))
    assert now["windrow_commands_total{command=Brake}"] == 0
    assert now["windrow_outcomes_total{command=LockClocks,outcome=Failed}"] == 0
    assert now["windrow_emergencies_open{kind=overload}"] == 0
    assert now["windrow_row_brakes_total"] == 0
    assert now["windrow_row_mode{mode=T2b}"] == 0
    assert now["windrow_row_hosts{setting=unknown}"] == len(HOSTS)
    assert now["windrow_row_budget_watts"] == BUDGET_W
    assert math.isnan(now["windrow_row_power_watts"])


# ---- single claims ----------------------------------------------------------------------------


def test_unknown_power_is_no_number_and_never_nought() -> None:
    metrics = Metrics(SETUP.site)
    metrics.observe(beat(START))
    metrics.observe(beat(START + 2000, power_w=None))
    now = scraped(metrics)
    for name in ("power_watts", "power_ratio", "known_timestamp_seconds"):
        assert math.isnan(now[f"windrow_row_{name}"]), name
    assert now["windrow_row_refusing"] == 1
    assert now["windrow_row_coverage_ratio"] == 0.5
    assert now["windrow_readings_withheld_total{verdict=stale}"] == 4


def test_a_host_is_where_it_was_last_read_back() -> None:
    metrics = Metrics(SETUP.site)
    cap, renewal, engaged, free = lock(1, 1275), lock(2, 1275), brake(3), lock(4, 1410)
    story: list[tuple[Sequence[Outcome], Sequence[Command], str]] = [
        ([], [cap], "unknown"),
        ([said(Verified, cap, 10)], [renewal], "capped"),
        ([said(Renewed, renewal, 20)], [engaged], "capped"),
        ([said(Superseded, renewal, 30)], [], "changing"),
        ([said(Verified, engaged, 40)], [], "braked"),
        ([said(Lapsed, engaged, 50)], [free], "braked"),  # held beyond its lease
        ([said(Verified, free, 60), said(Released, engaged, 60)], [], "uncapped"),
        ([said(Failed, lock(9, 900), 65)], [], "uncapped"),  # of a command that is not the one in force
        ([said(Lapsed, free, 70)], [], "fallen_back"),
    ]
    now: dict[str, float] = {}
    for n, (outcomes, commands, setting) in enumerate(story):
        metrics.observe(beat(START + n * 2000, outcomes, commands))
        now = scraped(metrics)
        at = [name for name, value in now.items() if name.startswith("windrow_row_hosts{") and value == 1]
        assert at == ([] if setting == "unknown" else [f"windrow_row_hosts{{setting={setting}}}"]), setting
    assert now["windrow_lease_lapses_total"] == 2
    assert now["windrow_outcomes_total{command=unknown,outcome=Failed}"] == 1
    assert now["windrow_outcomes_total{command=Brake,outcome=Lapsed}"] == 1


def test_a_brake_is_counted_when_it_is_reached_for_and_not_while_it_is_held() -> None:
    metrics = Metrics(SETUP.site)
    engage = tuple(
        Setting(target=host, max_mhz=288, path="brake", on_expiry="hold", brake=True) for host in HOSTS
    )
    ease = tuple(Setting(target=host, max_mhz=1410, path="in_band", on_expiry="safe_share") for host in HOSTS)
    for n, desired in enumerate([ease, engage, engage, engage[:4], ease, engage]):
        metrics.observe(beat(START + n * 2000, desired=desired, mode="U" if desired is ease else "B"))
    now = scraped(metrics)
    assert now["windrow_row_brakes_total"] == 2
    assert now["windrow_row_hosts_wanted{setting=braked}"] == len(HOSTS)
    assert now["windrow_row_hosts_wanted{setting=uncapped}"] == 0
    assert (now["windrow_row_mode{mode=B}"], now["windrow_row_mode{mode=U}"]) == (1, 0)


def test_emergencies_are_open_from_raised_to_cleared() -> None:
    def step(kind: EmergencyKind, phase: Phase, at: Instant, subject: str = ROW) -> Emergency:
        return Emergency(at=at, source="d", subject=subject, kind=kind, phase=phase, because="so")

    metrics = Metrics(SETUP.site)
    metrics.observe(beat(START, emergencies=[step("overload", "raised", 1)]))
    metrics.observe(
        beat(START + 1, [step("failover", "raised", 2, "lab1/ups-1"), step("failover", "raised", 2, "b")])
    )
    metrics.observe(beat(START + 2, emergencies=[step("overload", "escalated", 3)]))
    now = scraped(metrics)
    assert now["windrow_emergencies_open{kind=overload}"] == 1
    assert now["windrow_emergencies_open{kind=failover}"] == 2
    metrics.observe(
        beat(START + 3, emergencies=[step("overload", "cleared", 4), step("failover", "cleared", 4, "b")])
    )
    now = scraped(metrics)
    assert now["windrow_emergencies_open{kind=overload}"] == 0
    assert now["windrow_emergencies_open{kind=failover}"] == 1
    assert now["windrow_emergencies_total{kind=overload,phase=escalated}"] == 1


def test_a_model_that_lost_its_trust_is_seen() -> None:
    metrics = Metrics(SETUP.site)
    score = ForecastScore(
        at=START, source="f", subject=ROW, model="better", horizons_s=(2.0, 40.0), quantiles=(0.5,),
        samples=9,
        pinball_w=(120.0, 900.0), coverage_ratio=((0.5,), (0.4,)), trusted=False,
    )  # fmt: skip
    metrics.observe(beat(START, forecasts=[score]))
    now = scraped(metrics)
    assert now["windrow_forecast_trusted{model=better}"] == 0
    assert now["windrow_forecast_pinball_watts{horizon_seconds=40,model=better}"] == 900.0


BROKEN = {
    b"{": "malformed",
    b"": "malformed",
    b"\xff\xfe": "malformed",
    b'{"type":"Tick","at":1,"source":"s","subject":"x"} {}': "malformed",
    b'{"type":"Tick","at":1,"source":"s"}': "missing_field",
    b'{"type":"Tock","at":1}': "unknown_type",
    b'{"type":"Tick","at":"noon","source":"s","subject":"x"}': "wrong_type",
}


@pytest.mark.parametrize("payload", BROKEN)
def test_dead_letters_are_counted_by_class_of_reason(payload: bytes) -> None:
    letter = codec.decode_or_bury(payload, topic="windrow.gpus", source="s", subject="x", at=1)
    assert isinstance(letter, DeadLetter)
    metrics = Metrics(SETUP.site)
    metrics.buried([letter, letter])
    assert scraped(metrics)[f"windrow_dead_letters_total{{reason={BROKEN[payload]},topic=windrow.gpus}}"] == 2


def test_an_endless_variety_of_reasons_makes_no_endless_variety_of_series() -> None:
    metrics = Metrics(SETUP.site)
    metrics.buried(
        DeadLetter(at=n, source="s", subject="x", topic="t", payload=b"", reason=f"{n}.json: is no file")
        for n in range(50)
    )
    assert scraped(metrics)["windrow_dead_letters_total{reason=other,topic=t}"] == 50


def test_sources_and_strangers_are_read_when_metrics_are() -> None:
    states = [SourceState("meter", 5000, None, "", 0), SourceState("gpu", None, 7000, "no driver", 3, 11)]
    strangers: dict[str, int] = {}
    metrics = Metrics(SETUP.site)
    metrics.watch(lambda: states, strangers)
    strangers["GpuFrame"] = 4
    now = scraped(metrics)
    assert now["windrow_strangers_total{type=GpuFrame}"] == 4
    assert now["windrow_collector_failures_total{collector=gpu}"] == 3
    assert now["windrow_collector_dropped_messages_total{collector=gpu}"] == 11
    assert (now["windrow_collector_away{collector=gpu}"], now["windrow_collector_away{collector=meter}"]) == (
        1,
        0,
    )
    assert now["windrow_collector_answer_timestamp_seconds{collector=meter}"] == 5
    assert now["windrow_collector_answer_timestamp_seconds{collector=gpu}"] == 0


def test_a_ledger_that_does_not_take_records_is_seen_until_it_does() -> None:
    class Full(Memory):
        full = True

        def append(self, events: Sequence[Event]) -> None:
            if self.full:
                raise LedgerUnwritable("database or disk is full")
            super().append(events)

    rig = rig_of(SETUP)
    metrics, book, good = Metrics(SETUP.site), Full(), []
    measured = Measured(metrics, rig.host.clock, recorded=lambda: good.append(True))
    ledger = measured.ledger(book)
    records = [lock(n, 1275) for n in range(5)]
    for count in (3, 5):
        with pytest.raises(LedgerUnwritable, match="full"):
            ledger.append(records[:count])
    now = scraped(metrics)
    assert (now["windrow_ledger_waiting_records"], measured.waiting) == (5, 5)
    assert now["windrow_ledger_append_failures_total"] == 2
    assert not good
    book.full = False
    ledger.append(records)
    assert (scraped(metrics)["windrow_ledger_waiting_records"], measured.waiting, len(good)) == (0, 0, 1)
    assert book.events == records


def test_what_runs_is_told() -> None:
    metrics = Metrics(SETUP.site)
    metrics.configured(site="lab1", policy="polca", epoch="7")
    assert scraped(metrics)["windrow_config_info{epoch=7,policy=polca,site=lab1}"] == 1


def test_dead_letters_are_counted_where_they_pass(tmp_path: Path) -> None:
    letter = DeadLetter(
        at=1, source="s", subject="x", topic="windrow.operators", payload=b"", reason="malformed"
    )
    metrics = Metrics(SETUP.site)
    measured = Measured(metrics, rig_of(SETUP).host.clock)
    take = measured.operators(lambda now: [letter, lock(now, 1275)])
    assert take(5) == [letter, lock(5, 1275)]
    measured.gathered([letter])
    assert scraped(metrics)["windrow_dead_letters_total{reason=malformed,topic=windrow.operators}"] == 2


def test_a_row_that_is_anothers_has_no_series_here() -> None:
    metrics = Metrics(SETUP.site, rows=())
    assert not any("row" in sample.labels for family in families(metrics) for sample in family.samples)
    metrics.take_up(ROW)
    rig_of(SETUP, load=BUSY, observe=[metrics.observe]).host.run(until=START + 10 * SECOND)
    assert scraped(metrics)["windrow_row_power_watts"] > 0
    metrics.forget(ROW)
    metrics.forget(ROW)
    assert not any("row" in sample.labels for family in families(metrics) for sample in family.samples)
