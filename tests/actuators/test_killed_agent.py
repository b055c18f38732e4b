"""Agents killed at any point leave nothing behind that the next one does not put right.

See `support/killed_agents.py` for a trial: the real pynvml over the stand-in driver, SIGKILL before a
line of the actuators' code, and a last agent long after every lease has run out.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support.agents import IN_MEMORY
from support.counterparts import PROJECT
from support.nvml_shim import ShimState, environment

pytestmark = pytest.mark.slow

TRIALS = 600


@pytest.fixture(scope="module")
def trials(nvml_library: Path) -> list[dict[str, Any]]:
    """What became of each seed."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        state = ShimState(Path(folder) / "gpus", gpus=3)
        kept = Path(folder) / "kept"
        kept.mkdir()
        python_path = {"PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])}
        ran = subprocess.run(
            [sys.executable, PROJECT / "tests/support/killed_agents.py", kept, "0", str(TRIALS)],
            env=os.environ | environment(state) | python_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_no_kill_leaves_a_cap_behind_or_makes_it_what_was_found(trials: list[dict[str, Any]]) -> None:
    """Restored to the milliwatt, at the safe share, or held by the brake, as the last lease said; and in
    each case a release still gives back exactly what was there before the first agent."""
    assert [trial for trial in trials if trial["problems"]] == []


def test_enough_agents_were_killed_at_work_for_that_to_mean_something(trials: list[dict[str, Any]]) -> None:
    assert len(trials) == TRIALS
    assert sum(trial["kills"] for trial in trials) >= 1000
    for ends in ("restore", "safe_share", "hold"):
        ended = [trial for trial in trials if trial["ends"] == ends and trial["kills"]]
        assert sum(trial["obeyed"] for trial in ended) >= 10
        assert any(not trial["obeyed"] for trial in ended)  # killed before the first command was taken
