"""Calibrating training nodes and clock axes from the command line: what is written, and what a bad folder
says."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from runtime.cli.calibrating_plant import clocks, training
from runtime.config import ConfigError
from twin.clocks.axis import ClockCoefficients
from twin.clocks.fit import SWEEPS
from twin.training.fit import JOB
from twin.training.nodes import TrainingCoefficients

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.parametrize("command", [training, clocks])
def test_a_folder_without_recordings_is_refused_in_words_and_writes_nothing(
    command: Callable[..., int], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        command(data=tmp_path, out=tmp_path / "out.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / JOB).exists(), reason=f"no recordings in {DATA}")
def test_training_is_calibrated_judged_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert training(data=DATA, out=tmp_path / "training.json", plot=tmp_path / "training.png") == 0
    made = msgspec.json.decode((tmp_path / "training.json").read_bytes(), type=TrainingCoefficients)
    assert JOB in made.provenance.files
    assert (tmp_path / "training.png").stat().st_size > 10_000
    assert "time left out" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / SWEEPS["v100"]).exists(), reason=f"no sweeps in {DATA}")
def test_clocks_are_calibrated_judged_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clocks(data=DATA, out=tmp_path / "clocks.json", plot=tmp_path / "clocks.png") == 0
    made = msgspec.json.decode((tmp_path / "clocks.json").read_bytes(), type=ClockCoefficients)
    assert made.provenance.licence == "Apache-2.0"
    assert (tmp_path / "clocks.png").stat().st_size > 10_000
    assert "too low in 64% of 14 readings" in capsys.readouterr().out
