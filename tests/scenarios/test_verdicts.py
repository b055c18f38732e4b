"""Where each verdict of a rehearsal turns: just inside its bound, and just outside."""

from __future__ import annotations

import math
import pathlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from scenarios.invariants import (
    ANSWERED,
    BACK,
    BLIND,
    BRAKES,
    BREAKER,
    HEAT,
    LATENCY,
    LEASED,
    LEDGER,
    OVER,
    UPS,
)
from support.rigs import START, row_text, setup_of

from controllers.policy import DEFAULT_POLICY, CappingPolicy
from runtime.config import Setup
from runtime.ledger.store import Ledger
from runtime.rehearsal import Clock, Verdict, Witness, judged
from runtime.row_loop import Beat
from runtime.wiring import plant_of
from schemas.commands import Brake, Command, Lease, LockClocks, Path
from schemas.decisions import Decision
from schemas.envelope import Event, Tick
from schemas.instants import MINUTE, SECOND, Instant, Span
from schemas.outcomes import Accepted, Failed, Superseded, Verified
from schemas.samples import PowerRollup
from twin.demand import UNBREAKABLE
from twin.row import TwinRow
from twin.scenario import Bounds, Demand, Fault, GpusFail, PathDown, Scenario, UpsFailover
from twin.workload import LoadProfile

SETUP: Setup = setup_of(row_text(2, budget_w=9_000.0, paths=("in_band", "out_of_band", "brake")))
ROW = SETUP.site.rows[0].path
HOST, OTHER = (host.path for host in SETUP.site.rows[0].hosts)
SHARE_MHZ, HIGHEST_MHZ = SETUP.shares[HOST].max_mhz, 1410
SECONDS = 20 * 60
END: Instant = START + SECONDS * SECOND
FULL = LoadProfile(requests_per_s=3.0, points=((0.0, 1.0),))
FAILOVER = UpsFailover(at_s=0.0, lasts_s=60.0, place="", ups="first", capacity_ratio=0.5)

Judge = Callable[..., Verdict]


@pytest.fixture(scope="module")
def plant() -> TwinRow:
    """A row at its highest clocks, which is not moved on; tests put what they claim in its place."""
    row = plant_of(SETUP, seed=1, start=START)
    row.advance(START + 2 * SECOND)
    return row


@pytest.fixture
def witness(plant: TwinRow) -> Witness:
    """One that has heard nothing yet."""
    return Witness(plant, SETUP)


@pytest.fixture
def ledger(tmp_path: pathlib.Path) -> Iterator[Ledger]:
    """An empty one."""
    with Ledger(tmp_path / "ledger.sqlite", durable=False) as opened:
        yield opened


@pytest.fixture
def judge(plant: TwinRow, witness: Witness, ledger: Ledger) -> Judge:
    """The verdict on one invariant; what is not named is a row where nothing went wrong."""

    def judge(
        invariant: str,
        *,
        plant: TwinRow = plant,
        free: TwinRow | None = None,
        policy: CappingPolicy = DEFAULT_POLICY,
        faults: Sequence[Fault] = (),
        **bounds: Any,
    ) -> Verdict:
        scenario = Scenario(
            name="made",
            title="",
            seconds=SECONDS,
            demand=Demand(course=((0.0, 0.5),)),
            faults=tuple(faults),
            bounds=Bounds(**bounds),
        )
        setup = msgspec.structs.replace(SETUP, policy=policy)
        verdicts = judged(scenario, setup, witness, plant, free, ledger, (START, END))
        return {verdict.invariant: verdict for verdict in verdicts}[invariant]

    return judge


def lock(at: Instant, mhz: int = HIGHEST_MHZ, *, path: Path = "out_of_band", host: str = HOST) -> LockClocks:
    lease = Lease(epoch=1, issued_at=at, expires_at=at + 90 * SECOND, on_expiry="safe_share")
    return LockClocks(at=at, source="loop", subject=host, lease=lease, max_mhz=mhz, path=path)


def pull(at: Instant) -> Brake:
    lease = Lease(epoch=1, issued_at=at, expires_at=at + 90 * SECOND, on_expiry="hold")
    return Brake(at=at, source="loop", subject=HOST, lease=lease, max_mhz=288)


def accepted(at: Instant, command: Command, *, epoch: int = 1) -> Accepted:
    return Accepted(at=at, source="agent", subject=command.subject, command=command.id, epoch=epoch)


def verified(at: Instant, command: Command, mhz: float) -> Verified:
    return Verified(at=at, source="agent", subject=command.subject, command=command.id, epoch=1, observed=mhz)


def hear(
    witness: Witness,
    at: Instant,
    *commands: Command,
    inputs: Sequence[Event] = (),
    mode: str = "U",
    power_w: float | None = 5_000.0,
    age_ms: Span = 0,
) -> None:
    """One beat: what came in, how old the row's power was, and what was decided."""
    rollup = PowerRollup(
        at=at,
        source="rollup",
        subject=ROW,
        power_w=power_w,
        upper_w=9_000.0,
        budget_w=9_000.0,
        coverage_ratio=1.0,
        known_at=at - age_ms,
        basis="meter",
    )
    decision = Decision(
        at=at, source="loop", subject=ROW, policy="made", mode=mode, since=at, desired=(), because=""
    )
    tick = Tick(at=at, source="loop", subject=ROW)
    witness.observe(Beat(tick, tuple(inputs), rollup, (), (), decision, tuple(commands)))


# ---- the plant's totals ----


def test_one_open_breaker_is_failed_and_the_first_to_open_is_the_moment(
    judge: Judge, plant: TwinRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judge(BREAKER).ruling == "passed"
    monkeypatch.setattr(plant, "opened", {"feed-b": START + 2, "feed-a": START + 1})
    found = judge(BREAKER)
    assert (found.ruling, found.at, found.value) == ("failed", START + 1, 2)


@pytest.mark.parametrize(("over_s", "ruling"), [(9.5, "passed"), (10.0, "failed")])
def test_a_ups_bears_an_overload_up_to_its_deadline_and_no_longer(
    judge: Judge, over_s: float, ruling: str
) -> None:
    row = plant_of(SETUP, seed=1, start=START, load=FULL, curve=UNBREAKABLE)
    row.fail_ups(0.5)
    row.advance(START + round(over_s * SECOND))
    row.restore_ups()
    found = judge(UPS, plant=row, faults=[FAILOVER])
    assert (found.ruling, found.value, found.limit) == (ruling, over_s, 10.0)
    assert judge(UPS, plant=row).ruling == "not_applicable", "no UPS of the scenario fails"


@pytest.mark.parametrize(("bound_s", "ruling"), [(5.0, "passed"), (4.5, "failed")])
def test_half_a_second_too_long_above_the_budget_is_failed(judge: Judge, bound_s: float, ruling: str) -> None:
    row = plant_of(SETUP, seed=1, start=START, load=FULL, curve=UNBREAKABLE)
    row.advance(START + 5 * SECOND)
    found = judge(OVER, plant=row, over_budget_s=bound_s)
    assert (found.ruling, found.value, found.limit) == (ruling, 5.0, bound_s)


def _totals(row: TwinRow, monkeypatch: pytest.MonkeyPatch, high_s: float, low_s: float = 9.0) -> None:
    """The row's P99 latencies."""
    totals = msgspec.structs.replace(row.statistics(), latency_p99_s={"high": high_s, "low": low_s})
    monkeypatch.setattr(row, "statistics", lambda: totals)


@pytest.mark.parametrize(
    ("ours_s", "free_s", "ruling"),
    [
        (15.0, 10.0, "passed"),
        (15.1, 10.0, "failed"),
        (math.nan, 10.0, "failed"),
        (math.nan, math.nan, "not_applicable"),
    ],
    ids=["at the bound", "above it", "high priority was starved", "none was asked for"],
)
def test_high_priority_is_judged_by_how_much_longer_it_took_than_with_nothing_held(
    judge: Judge,
    plant: TwinRow,
    monkeypatch: pytest.MonkeyPatch,
    ours_s: float,
    free_s: float,
    ruling: str,
) -> None:
    free = plant_of(SETUP, seed=1, start=START)
    _totals(plant, monkeypatch, ours_s, low_s=90.0)
    _totals(free, monkeypatch, free_s)
    found = judge(LATENCY, free=free, high_p99_ratio=1.5)
    assert found.ruling == ruling
    assert judge(LATENCY, free=free).ruling == "not_applicable", "the scenario sets no bound"


def test_a_dark_row_fails_high_priority_however_quick_its_requests_were(
    judge: Judge, plant: TwinRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = plant_of(SETUP, seed=1, start=START)
    _totals(plant, monkeypatch, 10.0)
    _totals(free, monkeypatch, 10.0)
    assert judge(LATENCY, free=free, high_p99_ratio=1.5).ruling == "passed"
    monkeypatch.setattr(plant.servers, "alive", np.zeros(2, dtype=bool))
    assert judge(LATENCY, free=free, high_p99_ratio=1.5).ruling == "failed"


@pytest.mark.parametrize(
    ("below_c", "bound_s", "ruling"),
    [(0.0, 4.0, "passed"), (0.0, 3.9, "failed"), (0.1, 0.0, "passed")],
    ids=["for as long as allowed", "for longer", "just below"],
)
def test_heat_is_failed_by_a_gpu_that_is_at_its_slowdown_for_longer_than_allowed(
    judge: Judge,
    plant: TwinRow,
    witness: Witness,
    monkeypatch: pytest.MonkeyPatch,
    below_c: float,
    bound_s: float,
    ruling: str,
) -> None:
    hot_c = plant.servers.core_c.copy()
    hot_c[1, 3] = plant.hosts[1].sku.slowdown_c - below_c
    monkeypatch.setattr(plant.servers, "core_c", hot_c)
    for second in (2, 4):
        hear(witness, plant.now + second * SECOND)
    found = judge(HEAT, hot_s=bound_s)
    assert found.ruling == ruling
    assert found.proof.startswith(plant.hosts[1].gpu_path(3))


def test_two_short_heats_are_not_one_long_one(
    judge: Judge, plant: TwinRow, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    cool_c = plant.servers.core_c
    hot_c = np.full_like(cool_c, plant.hosts[0].sku.slowdown_c)
    for second, core_c in ((2, hot_c), (4, cool_c), (6, hot_c)):
        monkeypatch.setattr(plant.servers, "core_c", core_c)
        hear(witness, plant.now + second * SECOND)
    assert judge(HEAT, hot_s=2.0).ruling == "passed"
    assert judge(HEAT, hot_s=1.9).ruling == "failed"


# ---- decisions and commands ----


@pytest.mark.parametrize(
    ("age_ms", "power_w", "mhz", "ruling"),
    [
        (10_000, 5_000.0, HIGHEST_MHZ, "passed"),
        (10_001, 5_000.0, HIGHEST_MHZ, "failed"),
        (0, None, HIGHEST_MHZ, "failed"),
        (0, 0.0, HIGHEST_MHZ, "failed"),
        (10_001, 5_000.0, HIGHEST_MHZ - 15, "passed"),
    ],
    ids=["old, and known", "a renewal on older", "on no power", "on a power of zero", "a tighter lock"],
)
def test_what_is_not_tighter_wants_a_power_no_older_than_the_policy_decides_on(
    judge: Judge, witness: Witness, age_ms: Span, power_w: float | None, mhz: int, ruling: str
) -> None:
    first = lock(START)
    hear(witness, START, first)
    hear(witness, START + 2 * SECOND, inputs=[verified(START + SECOND, first, HIGHEST_MHZ)])
    at = START + 45 * SECOND
    second = lock(at, mhz)
    hear(witness, at, second, power_w=power_w, age_ms=age_ms)
    found = judge(BLIND)
    assert found.ruling == ruling
    assert found.command == (second.id if ruling == "failed" else "")


ALLOWED: dict[Path, Span] = {"in_band": 7 * SECOND, "out_of_band": 54 * SECOND, "brake": 12 * SECOND}
"""The path's deadline and two beats of 2 s on the way."""


@pytest.mark.parametrize("path", ALLOWED)
@pytest.mark.parametrize("kind", [Failed, Superseded])
def test_an_answer_is_late_a_millisecond_after_its_paths_deadline_and_two_beats(
    judge: Judge, witness: Witness, path: Path, kind: type[Failed | Superseded]
) -> None:
    def answer(at: Instant, command: Command) -> Failed | Superseded:
        return kind(at=at, source="agent", subject=command.subject, command=command.id, epoch=1)

    in_time, late = lock(START, path=path), lock(START, path=path, host=OTHER)
    hear(witness, START, in_time)
    hear(witness, START + MINUTE, inputs=[answer(START + ALLOWED[path], in_time)])
    assert judge(ANSWERED).ruling == "passed"
    hear(witness, START + MINUTE, late, inputs=[answer(START + ALLOWED[path] + 1, late)])
    found = judge(ANSWERED)
    assert (found.ruling, found.value, found.command) == ("failed", 1, late.id)


def test_a_brake_has_the_deadline_of_its_line(judge: Judge, witness: Witness) -> None:
    brake = pull(START)
    hear(witness, START, brake)
    hear(witness, START + 20 * SECOND, inputs=[verified(START + 12 * SECOND + 1, brake, 288)])
    assert judge(ANSWERED).ruling == "failed"


@pytest.mark.parametrize(("left_ms", "ruling"), [(53_999, "passed"), (54_001, "failed")])
def test_a_command_without_an_answer_is_failed_once_one_was_due(
    judge: Judge, witness: Witness, left_ms: Span, ruling: str
) -> None:
    asked = lock(END - left_ms)
    hear(witness, asked.at, asked)
    hear(witness, END, inputs=[accepted(asked.at + SECOND, asked)])
    assert judge(ANSWERED).ruling == ruling, "to be written is no answer"


@pytest.mark.parametrize(("bound", "ruling"), [(2, "passed"), (1, "failed")])
def test_the_brake_is_counted_each_time_it_is_pulled_and_the_one_too_many_is_named(
    judge: Judge, witness: Witness, bound: int, ruling: str
) -> None:
    pulls = [pull(START + 4 * SECOND), pull(START + 10 * SECOND)]
    for second, mode in enumerate(("U", "U", "B", "B", "T1", "B", "B")):
        at = START + 2 * second * SECOND
        hear(witness, at, *(each for each in pulls if each.at == at), mode=mode)
    found = judge(BRAKES, brakes=bound)
    assert (found.ruling, found.value, found.command) == (ruling, 2, pulls[1].id)


# ---- the boards ----

DRIVER_GONE = PathDown(at_s=0.0, lasts_s=60.0, place="", path="in_band", share=1.0)
BMC_GONE = msgspec.structs.replace(DRIVER_GONE, path="out_of_band")
GPUS_HUNG = GpusFail(at_s=0.0, lasts_s=60.0, place="", how="hung", share=1.0, factor=1.0)


@pytest.mark.parametrize(
    ("faults", "allowed_s"),
    [([], 5), ([BMC_GONE], 5), ([DRIVER_GONE], 45), ([GPUS_HUNG], 45)],
    ids=["as a rule", "without its BMC", "without its driver", "with hung GPUs"],
)
def test_a_host_is_at_its_share_in_time_after_its_lease(
    judge: Judge, witness: Witness, faults: Sequence[Fault], allowed_s: int
) -> None:
    asked = lock(START)
    hear(witness, START, asked)
    hear(witness, START + 2 * SECOND, inputs=[accepted(START + SECOND, asked)])
    last = asked.lease.expires_at + allowed_s * SECOND
    witness.clocks = [Clock(last, HOST, HIGHEST_MHZ), Clock(last + 1, HOST, SHARE_MHZ)]
    assert judge(LEASED, faults=faults).ruling == "passed"
    witness.clocks = [Clock(last + 1, HOST, HIGHEST_MHZ)]
    found = judge(LEASED, faults=faults)
    assert (found.ruling, found.command) == ("failed", asked.id)


@pytest.mark.parametrize(
    ("outcome", "ruling"),
    [
        (lambda asked: verified(asked.at + SECOND, asked, 1275 + 15), "passed"),
        (lambda asked: verified(asked.at + SECOND, asked, 1275 + 30), "failed"),
        (lambda asked: accepted(asked.lease.expires_at - 1, asked, epoch=3), "passed"),
        (lambda asked: accepted(asked.lease.expires_at, asked, epoch=3), "failed"),
        (lambda asked: accepted(asked.at + SECOND, asked, epoch=3), "passed"),
        (lambda asked: accepted(asked.at + SECOND, asked, epoch=2), "failed"),
    ],
    ids=[
        "a clock step above",
        "two steps above",
        "taken up as its lease ended",
        "taken up after its lease",
        "of the same controller",
        "of an older controller",
    ],
)
def test_what_is_obeyed_is_what_was_asked_in_its_time_by_whom_is_in_charge(
    judge: Judge, witness: Witness, outcome: Callable[[LockClocks], Event], ruling: str
) -> None:
    before, asked = lock(START), lock(START + 2 * SECOND, 1275)
    hear(witness, START, before)
    hear(witness, START + 2 * SECOND, asked, inputs=[accepted(START + SECOND, before, epoch=3)])
    hear(witness, START + 2 * MINUTE, inputs=[outcome(asked)])
    witness.clocks = []
    assert judge(LEASED).ruling == ruling


OVER_S = 60.0
STAYS_S = 95
"""A lease of the default policy, and what a host may take to fall at its end."""


def back(
    judge: Judge, witness: Witness, *stretches: tuple[float, int], policy: CappingPolicy = DEFAULT_POLICY
) -> Verdict:
    """The verdict with a bound of 5 min; `stretches` are seconds, and how many hosts are held in them, one
    after the other from the end of the trouble on. A beat each second."""
    counts = [count for seconds, count in stretches for _ in range(round(seconds))]
    over = START + round(OVER_S * SECOND)
    witness.held = [
        (START, OTHER, 2),
        *((over + second * SECOND, HOST if count else "", count) for second, count in enumerate(counts)),
    ]
    return judge(BACK, faults=[FAILOVER], policy=policy, back_min=5.0)


@pytest.mark.parametrize(("held_s", "ruling"), [(300, "passed"), (301, "failed")])
def test_the_last_host_is_back_within_the_bound(
    judge: Judge, witness: Witness, held_s: int, ruling: str
) -> None:
    asked = lock(START)
    witness.commands[asked.id] = asked
    found = back(judge, witness, (10, 2), (held_s - 10, 1), (600, 0))
    assert found.ruling == ruling
    assert found.value == pytest.approx(held_s / 60)
    assert (found.command, found.proof) == (asked.id, f"{HOST} the last")


def test_a_row_that_is_held_again_at_once_is_not_back(judge: Judge, witness: Witness) -> None:
    found = back(judge, witness, (120, 2), (2, 0), (400, 2), (600, 0))
    assert found.ruling == "failed"
    assert found.value == pytest.approx(522 / 60)


@pytest.mark.parametrize(
    ("free_s", "minutes"),
    [(STAYS_S, (2 + 2 * STAYS_S) / 60 + 1), (STAYS_S + 1, 1.0)],
    ids=["less", "so long"],
)
def test_a_row_is_back_that_no_host_of_is_held_for_a_lease_and_its_lapse(
    judge: Judge, witness: Witness, free_s: int, minutes: float
) -> None:
    """What is held later is none of the trouble's."""
    again = 2 + 2 * STAYS_S - free_s
    found = back(judge, witness, (60, 1), (free_s, 0), (again, 1), (600, 0))
    assert found.value == pytest.approx(minutes)


def test_a_policy_that_dwells_longer_than_a_lease_is_watched_for_as_long(
    judge: Judge, witness: Witness
) -> None:
    guardrails = msgspec.structs.replace(DEFAULT_POLICY.guardrails, dwell_ms=4 * MINUTE)
    policy = msgspec.structs.replace(DEFAULT_POLICY, guardrails=guardrails)
    course = ((60, 1), (120, 0), (200, 1), (600, 0))
    assert back(judge, witness, *course).ruling == "passed"
    assert back(judge, witness, *course, policy=policy).ruling == "failed"


@pytest.mark.parametrize(("free_s", "ruling"), [(STAYS_S + 1, "passed"), (STAYS_S, "failed")])
def test_a_row_let_up_just_before_the_end_was_not_seen_to_stay_so(
    judge: Judge, witness: Witness, free_s: int, ruling: str
) -> None:
    found = back(judge, witness, (60, 1), (free_s, 0))
    assert found.ruling == ruling
    assert found.figure == {
        "passed": "1.0 min after the trouble", "failed": f"held until {STAYS_S} s before the end"
    }[ruling]  # fmt: skip


def test_a_host_held_to_the_end_is_failed_and_none_held_at_all_is_not(judge: Judge, witness: Witness) -> None:
    found = back(judge, witness, (100, 0), (60, 0), (200, 0), (1, 1))
    assert found.ruling == "passed", "what demand brings later is none of the trouble's"
    found = back(judge, witness, (100, 1))
    assert (found.ruling, found.value, found.figure) == ("failed", None, "1 host held at the end")
    found = back(judge, witness, (20, 0))
    assert (found.ruling, found.value, found.proof) == ("passed", 0.0, "none was held")


# ---- the ledger ----


def test_a_ledger_without_one_of_the_commands_is_failed_with_that_command(
    judge: Judge, witness: Witness, ledger: Ledger
) -> None:
    booked, missing = lock(START), lock(START + 1)
    hear(witness, START, booked)
    ledger.append([booked])
    assert judge(LEDGER).ruling == "passed"
    hear(witness, START + 1, missing)
    found = judge(LEDGER)
    assert (found.ruling, found.command) == ("failed", missing.id)


def test_a_ledger_with_every_command_and_a_broken_chain_is_failed(
    judge: Judge, witness: Witness, ledger: Ledger
) -> None:
    first, second = lock(START), lock(START + 1)
    hear(witness, START, first, second)
    ledger.append([first, second])
    assert judge(LEDGER).ruling == "passed"
    with sqlite3.connect(ledger.path) as knife:
        knife.executescript("DROP TRIGGER no_update; UPDATE records SET body = body || ' ' WHERE seq = 1")
    knife.close()
    found = judge(LEDGER)
    assert (found.ruling, found.value) == ("failed", 0)
    assert "does not fit the chain" in found.proof
