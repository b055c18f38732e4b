"""The demonstration keeps its word: the row is held, and its ledger tells why."""

from __future__ import annotations

import json
import pathlib

import msgspec
import pytest

from runtime.cli import demo
from runtime.cli.app import run
from runtime.ledger import audit
from runtime.ledger.store import Ledger
from runtime.wiring import Unkept, on_twin, plant_of
from schemas.commands import LockClocks
from schemas.instants import MINUTE
from schemas.outcomes import Verified


@pytest.mark.slow
def test_the_row_is_held_through_the_whole_evening_and_every_cap_can_be_walked_back(
    tmp_path: pathlib.Path,
) -> None:
    arm = demo.run_arm("POLCA", 60, 1, tmp_path, lambda word: None)
    assert arm.summary.brakes == 0
    assert arm.plant.tripped_at is None
    assert arm.plant.over_budget_s == 0
    assert {"U", "T1", "T2a", "T2b"} <= set(arm.summary.modes_s)
    assert arm.summary.peak_ratio is not None
    assert 0.89 < arm.summary.peak_ratio < 1.0
    with Ledger.reading(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.verify() == ""
        walked = 0
        for seen in ledger.of_type([Verified]):
            assert isinstance(seen, Verified)
            command = ledger.get(seen.command)
            if isinstance(command, LockClocks) and command.max_mhz < 1410:
                walk = audit.why(ledger, command.id)
                assert walk.rollup is not None
                assert walk.samples
                assert not walk.outside
                walked += 1
        assert walked > 26


def test_a_short_demo_answers_in_json_and_leaves_plot_ledger_and_recording(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo", "--minutes", "2", "--out", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"no control", "POLCA"}
    assert told["POLCA"]["plant"]["tripped_at"] is None
    for left in ("row.png", "ledger.sqlite", "recording.jsonl.gz"):
        assert (tmp_path / left).stat().st_size > 0
    assert run(["replay", str(tmp_path / "recording.jsonl.gz"), "--expect", "recorded", "--json"]) == 0


def test_a_lossy_slow_path_reaches_the_plant_and_the_row_is_held() -> None:
    setup = demo.demo_setup("polca")
    switches = msgspec.structs.replace(setup.policy.switches, oob_loss=0.2, oob_latency="uniform_to_40")
    policy = msgspec.structs.replace(setup.policy, switches=switches)
    setup = msgspec.structs.replace(setup, policy=policy)
    plant = plant_of(setup, seed=1, start=demo.START)
    on_twin(plant, setup, ledger=Unkept()).host.run(until=demo.START + 16 * MINUTE)
    assert plant.lost_writes > 0
    assert plant.tripped_at is None
