"""What a stretch of time came to: time by mode, host-minutes under a cap by priority, brakes, emergencies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from support.rigs import row_text, setup_of

from runtime.row_loop import Beat
from runtime.summary import Summary, Summing
from schemas.commands import Brake, Command, FailDirection, Lease, LockClocks
from schemas.decisions import Decision, Setting
from schemas.emergencies import Emergency
from schemas.envelope import Event, Tick
from schemas.instants import MINUTE, SECOND, Instant
from schemas.outcomes import Failed, Lapsed, Outcome, Released, Renewed, Superseded, Verified
from schemas.samples import PowerRollup

ROW = setup_of(row_text(4, budget_w=20_000.0)).site.rows[0]
HIGH, LOW = ROW.hosts[0].path, ROW.hosts[1].path


def lock(host: str, mhz: int, at: Instant = 0) -> LockClocks:
    return LockClocks(at=at, source="c", subject=host, lease=_lease("safe_share"), max_mhz=mhz)


def brake(host: str, at: Instant = 0) -> Brake:
    return Brake(at=at, source="c", subject=host, lease=_lease("hold"), max_mhz=285)


def _lease(on_expiry: FailDirection) -> Lease:
    return Lease(epoch=1, issued_at=0, expires_at=90 * SECOND, on_expiry=on_expiry)


def became(kind: type[Outcome], command: Command, at: Instant = 0) -> Outcome:
    more: dict[str, Any] = {"observed": 0.0} if kind is Verified else {}
    return kind(at=at, source="a", subject=command.subject, command=command.id, epoch=1, **more)


class Night:
    """Beats one after another."""

    def __init__(self) -> None:
        self.summing = Summing(ROW, "polca")

    def beat(
        self,
        minute: float,
        *,
        inputs: Sequence[Event] = (),
        commands: Sequence[Command] = (),
        power_w: float | None = 10_000.0,
        mode: str = "U",
        braking: bool = False,
        refusal: str = "",
        emergencies: Sequence[Emergency] = (),
        subject: str = ROW.path,
    ) -> None:
        at = round(minute * MINUTE)
        setting = Setting(target=LOW, max_mhz=285, path="brake", on_expiry="hold", brake=braking)
        self.summing.observe(
            Beat(
                Tick(at=at, source="t", subject=subject),
                tuple(inputs),
                PowerRollup(
                    at=at, source="r", subject=subject, power_w=power_w, upper_w=0.0, budget_w=20_000.0,
                    coverage_ratio=1.0, known_at=at, basis="meter", verdicts={"stale": 2},
                ),
                (),
                tuple(emergencies),
                Decision(
                    at=at, source="c", subject=subject, policy="p", mode=mode, since=0, desired=(setting,),
                    because="", refusal=refusal,
                ),
                tuple(commands),
            )
        )  # fmt: skip

    @property
    def result(self) -> Summary:
        return self.summing.result()


@pytest.fixture
def night() -> Night:
    return Night()


def test_time_goes_to_what_held_during_it(night: Night) -> None:
    night.beat(0, mode="U")
    night.beat(2, mode="T1", power_w=21_000.0)
    night.beat(5, mode="T2a", power_w=None, refusal="unknown")
    night.beat(6, mode="T2a")
    found = night.result
    assert found.modes_s == {"U": 120.0, "T1": 180.0, "T2a": 60.0}
    assert (found.over_budget_s, found.unknown_s, found.refusals_s) == (180.0, 60.0, 60.0)
    assert (found.peak_w, found.peak_at, found.peak_ratio) == (21_000.0, 2 * MINUTE, 1.05)
    assert (found.start, found.end, found.beats) == (0, 6 * MINUTE, 4)
    assert found.verdicts == {"stale": 8}


def test_a_cap_counts_from_its_read_back_by_priority_until_it_is_lifted(night: Night) -> None:
    low, high, lifted = lock(LOW, 1110), lock(HIGH, 1305), lock(LOW, 1410, at=1)
    night.beat(0, commands=[low, high])
    night.beat(1, inputs=[became(Verified, low)])
    night.beat(3, inputs=[became(Verified, high)], commands=[lifted])
    night.beat(6, inputs=[became(Superseded, low), became(Verified, lifted)])
    night.beat(8)
    assert night.result.capped_minutes == {"high": 5.0, "low": 5.0}
    assert night.result.commands == {"LockClocks": 3}
    assert night.result.outcomes == {"Verified": 3, "Superseded": 1}


def test_a_renewed_cap_goes_on_and_a_lapsed_one_ends(night: Night) -> None:
    first, again = lock(LOW, 1110), lock(LOW, 1110, at=1)
    night.beat(0, commands=[first])
    night.beat(1, inputs=[became(Verified, first)], commands=[again])
    night.beat(2, inputs=[became(Renewed, again)])
    night.beat(3, inputs=[became(Lapsed, again)])
    night.beat(9)
    assert night.result.capped_minutes["low"] == 2.0


def test_a_lapse_or_failure_of_another_command_ends_nothing(night: Night) -> None:
    held, other = lock(LOW, 1110), lock(LOW, 1275, at=1)
    night.beat(0, commands=[held])
    night.beat(1, inputs=[became(Verified, held)], commands=[other])
    night.beat(2, inputs=[became(Failed, other), became(Lapsed, other)])
    night.beat(4)
    assert night.result.capped_minutes["low"] == 3.0


def test_a_brake_outlives_its_lease_and_the_lock_that_releases_it_stays(night: Night) -> None:
    stop, lock_ = brake(LOW), lock(LOW, 1110, at=1)
    night.beat(0, commands=[stop], mode="B", braking=True)
    night.beat(1, inputs=[became(Verified, stop)], mode="B", braking=True)
    night.beat(3, inputs=[became(Lapsed, stop)], commands=[lock_], mode="T2b")
    night.beat(5, inputs=[became(Verified, lock_), became(Released, stop)], mode="T2b")
    night.beat(8, mode="B", braking=True)
    assert night.result.capped_minutes["low"] == 7.0
    assert night.result.brakes == 2, "counted when it is reached for, not while it is held"


def test_emergencies_count_once_and_other_rows_not_at_all(night: Night) -> None:
    def emergency(phase: str) -> Emergency:
        return Emergency(at=0, source="d", subject=ROW.path, kind="overload", phase=phase, because="")  # type: ignore[arg-type]

    night.beat(0, emergencies=[emergency("raised")])
    night.beat(1, emergencies=[emergency("escalated")])
    night.beat(2, emergencies=[emergency("cleared")], subject="lab1/row-z", power_w=99_000.0)
    assert night.result.emergencies == {"overload": 1}
    assert (night.result.beats, night.result.peak_w) == (2, 10_000.0)


def test_nothing_comes_to_nothing(night: Night) -> None:
    assert (night.result.beats, night.result.peak_w, night.result.peak_ratio) == (0, None, None)
