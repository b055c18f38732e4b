"""The service log tells each turn once, and what stands makes a host unready."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from support.rigs import START, in_band, rig_of, row_text, setup_of

from runtime.journal import Journal
from schemas.instants import SECOND
from schemas.operators import Pin


def test_modes_lost_gpus_words_and_emergencies_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="windrow")
    journal = Journal()
    rig = rig_of(setup_of(row_text(4, budget_w=26_000.0), in_band()), observe=[journal.observe])
    rig.plant.fail_gpu("lab1/row-a/r01/h01", 3, "lost")
    said: dict[str, Any] = {"at": START, "source": "operator", "subject": "lab1", "by": "ada"}
    pin = Pin(**said, max_mhz=1200, reason="heat", expires_at=START + 10**6)
    rig.host.loop.offer([pin])
    rig.host.run(until=START + 20 * SECOND)
    assert journal.standing == ""
    rig.plant.fail_ups()
    rig.host.run(until=START + 40 * SECOND)
    lines = [record.getMessage() for record in caplog.records if record.name == "windrow"]
    assert sum("is missing" in line for line in lines) == 1
    assert [line for line in lines if "by ada" in line] == ["lab1: Pin by ada"]
    assert sum(line.startswith("lab1/row-a: B: a UPS is failing over") for line in lines) == 1
    assert sum("failover: lab1/ups-1 is on battery" in line for line in lines) == 1
    assert "failover: lab1/ups-1 is on battery" in journal.standing
    rig.plant.restore_ups()
    rig.host.run(until=START + 80 * SECOND)
    assert journal.standing == ""
    assert any("over: failover" in record.getMessage() for record in caplog.records)


def test_the_trouble_of_a_row_that_is_anothers_is_not_told_of_here() -> None:
    journal = Journal()
    rig = rig_of(setup_of(row_text(4, budget_w=26_000.0), in_band()), observe=[journal.observe])
    rig.plant.fail_ups()
    rig.host.run(until=START + 20 * SECOND)
    assert "failover" in journal.standing
    journal.forget("lab1/row-b")
    assert "failover" in journal.standing
    journal.forget("lab1/row-a")
    assert journal.standing == ""
