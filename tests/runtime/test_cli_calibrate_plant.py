"""Calibrating training nodes and clock axes from the command line: what is written, and what a bad folder
says."""

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest

from runtime.cli.app import run
from runtime.cli.calibrating_plant import clocks, training
from runtime.config import ConfigError
from twin.clocks.axis import ClockCoefficients
from twin.clocks.fit import SWEEPS
from twin.training.fit import JOB, OTHER_JOB
from twin.training.nodes import TrainingCoefficients

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.parametrize(("command", "wanted"), [(training, (JOB, OTHER_JOB)), (clocks, SWEEPS.values())])
def test_a_folder_without_recordings_is_told_what_it_must_hold_and_nothing_is_written(
    command: Callable[..., int], wanted: Iterable[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        command(data=tmp_path, out=tmp_path / "out.json")
    assert str(error.value) == f"{tmp_path}: --data must be a folder that holds {', '.join(wanted)}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("command", "recordings"), [(training, (JOB, OTHER_JOB)), (clocks, SWEEPS.values())])
def test_a_recording_that_is_none_is_refused_with_its_name(
    command: Callable[..., int], recordings: Iterable[str], tmp_path: Path
) -> None:
    for name in recordings:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("time,power\n")
    with pytest.raises(ConfigError, match=r"gpu_power/\w+/\S+\.csv: "):
        command(data=tmp_path, out=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("command", ["training", "clocks"])
def test_help_says_that_large_errors_are_no_failure(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(["calibrate", command, "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "cannot be read, and then nothing is written; 0 else, however large the errors are." in told


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
