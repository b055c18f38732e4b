"""`windrow calibrate` and `windrow twin fidelity`: coefficients from recorded runs, and how true they are."""

from __future__ import annotations

import json
import pathlib

import pytest
from rich.console import Console
from support.serving_runs import record_run

from runtime.cli import calibrating
from runtime.cli.app import run


@pytest.fixture
def runs(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    for answers in (2, 8, 16, 32, 64):
        for chunked in (False, True):
            output = 131 if answers < 32 else 320
            record_run(folder, "llama-2-7b", answers, chunked=chunked, requests=500, output=output)
    return folder


def test_runs_that_nobody_has_seen_are_judged_by_what_ships(
    runs: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "pictures" / "fidelity.png"
    assert run(["twin", "fidelity", "--runs", str(runs), "--plot", str(picture)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "advisor_llama-2-7b_64" in told
    assert "median error" in told
    assert "energy: median error" in told
    assert picture.stat().st_size > 10_000

    assert run(["twin", "fidelity", "--runs", str(runs), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["runs"]) == 10
    assert answer["sku"] == "H100-SXM5-64GB"
    assert answer["goals"]["energy_j"] == 0.02
    assert answer["problems"] == []
    one = answer["runs"][0]
    assert not one["fitted"]
    assert one["idle_w"] == pytest.approx(115.0, abs=2.0)
    assert one["errors"]["mean_w"] == pytest.approx(
        one["predicted"]["mean_w"] / one["recorded"]["mean_w"] - 1
    )
    for name in ("mean_w", "energy_j", "p50_w", "p95_w", "p99_w", "ramp_2s_w", "ramp_10s_w", "ramp_40s_w"):
        assert name in answer["medians"]


def test_a_fit_of_ones_own_runs_can_be_stored_and_judged(
    runs: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine" / "board.json"
    assert run(["calibrate", "serving", "--runs", str(runs), "--out", str(out), "--source", "our lab"]) == 0
    told = capsys.readouterr().out
    assert "llama-2-7b: step" in told
    assert "10 runs fitted" in told
    stored = json.loads(out.read_text())
    assert stored["provenance"]["source"] == "our lab"
    assert len(stored["folds"]) == 7
    assert run(["twin", "fidelity", "--runs", str(runs), "--calibration", str(out), "--json"]) == 0
    medians = json.loads(capsys.readouterr().out)["medians"]
    assert medians["energy_j"] < 0.03


def test_what_is_wrong_with_the_runs_is_said_a_line_each(
    runs: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "advisor_llama-2-7b_2.result.json").unlink()
    table = runs / "background_llama-2-7b_2.csv"
    table.write_text(table.read_text().replace("gpu_power_w", "watts", 1))
    assert run(["twin", "fidelity", "--runs", str(runs), "--json"]) == 1
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert len(answer["runs"]) == 8, "the rest is judged"
    told = said.err.splitlines()
    assert answer["problems"] == told
    assert told[0] == "advisor_llama-2-7b_2.csv: no advisor_llama-2-7b_2.result.json beside it"
    assert told[1].startswith("background_llama-2-7b_2.csv: no column gpu_power_w")
    out = tmp_path / "no.json"
    assert run(["calibrate", "serving", "--runs", str(runs), "--out", str(out)]) == 2
    assert capsys.readouterr().err.splitlines() == told
    assert not out.exists()
    assert run(["twin", "fidelity", "--runs", str(tmp_path)]) == 2
    assert "holds no run; a run is NAME.csv with NAME.result.json beside it" in capsys.readouterr().err


def test_a_run_that_the_board_cannot_have_served_leaves_the_others_judged(
    runs: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = runs / "background_llama-2-7b_2.result.json"
    result.write_text(result.read_text().replace("llama-2-7b", "opt-30b"))
    assert run(["twin", "fidelity", "--runs", str(runs), "--json"]) == 1
    said = capsys.readouterr()
    assert len(json.loads(said.out)["runs"]) == 9
    assert said.err.startswith("background_llama-2-7b_2.csv: one H100-SXM5-64GB cannot serve opt-30b")
    for path in runs.iterdir():
        if not path.name.startswith("background_llama-2-7b_2."):
            path.unlink()
    assert run(["twin", "fidelity", "--runs", str(runs), "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_where_nothing_can_be_written_is_said_before_the_work(
    runs: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["twin", "fidelity", "--runs", str(runs), "--plot", str(tmp_path / "x.txt")]) == 2
    assert "x.txt: must end in .png, .svg, .pdf" in capsys.readouterr().err
    assert run(["calibrate", "serving", "--runs", str(runs), "--out", str(tmp_path)]) == 2
    assert f"{tmp_path}: cannot be written: it is a folder" in capsys.readouterr().err
    nowhere = "/proc/coefficients.json"  # where not even root can put a file
    assert run(["calibrate", "serving", "--runs", str(runs), "--out", nowhere]) == 2
    assert capsys.readouterr().err.startswith(f"{nowhere}: cannot be written: ")
    assert run(["twin", "fidelity", "--runs", str(runs), "--seed", "-1"]) == 2
    assert capsys.readouterr().err == 'Invalid value "-1" for --seed. Must be >= 0.\n'
    (tmp_path / "file").write_text("")
    for part in ("training", "clocks"):
        out = tmp_path / "file" / "coefficients.json"
        assert run(["calibrate", part, "--data", str(tmp_path), "--out", str(out)]) == 2
        assert "file: cannot be made" in capsys.readouterr().err


def test_a_calibration_that_is_none_is_refused(
    runs: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    assert run(["twin", "fidelity", "--runs", str(runs), "--calibration", str(wrong)]) == 2
    assert f"{wrong}: not a calibration" in capsys.readouterr().err
    assert run(["twin", "fidelity", "--runs", str(runs), "--calibration", str(tmp_path / "no.json")]) == 2
    missing = tmp_path / "no.json"
    assert capsys.readouterr().err == f"{missing}: cannot be read: No such file or directory\n"


@pytest.mark.parametrize("width", [80, 120, 200])
def test_names_and_figures_are_whole_in_terminals_of_any_width(
    width: int, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = record_run(tmp_path, "llama-2-7b", 16)
    name = "advisor_output_length_130_llama-2-7b_16__2000"
    for ending in (".csv", ".result.json"):
        kept.with_name(f"{kept.stem}{ending}").rename(tmp_path / f"{name}{ending}")
    table = tmp_path / f"{name}.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    power = rows[0].index("gpu_power_w")
    for cells in rows[1:]:  # so that errors take as much room as they may
        cells[power] = f"{float(cells[power]) / 8:g}"
    table.write_text("\n".join(",".join(cells) for cells in rows))
    monkeypatch.setattr(calibrating, "console", Console(width=width, highlight=False))
    assert run(["twin", "fidelity", "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = next(i for i, line in enumerate(lines) if name in line)
    figures = lines[place].removeprefix(name).split() or lines[place + 1].split()
    assert len(figures) == 11
    assert all(figure[-1] == "%" and float(figure[:-1]) for figure in figures[1:])
    table_ends = next(i for i, line in enumerate(lines) if line.startswith("1 run, predicted"))
    assert max(len(line) for line in lines[:table_ends]) <= width


def test_signs_of_another_board_are_remarked_on_and_are_no_failure(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_run(tmp_path, "llama-2-7b", 3)
    assert run(["twin", "fidelity", "--runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["remarks"] == []
    faster = record_run(tmp_path, "llama-2-7b", 5)
    faster.write_text(faster.read_text().replace(",1980\n", ",2032\n"))
    record_run(tmp_path, "llama-2-7b", 7, idle_w=60.0)
    assert run(["twin", "fidelity", "--runs", str(tmp_path), "--json"]) == 0
    clock, rest = json.loads(capsys.readouterr().out)["remarks"]
    assert clock.startswith("1 of 3 runs at clocks up to 2,032 MHz (background_llama-2-7b_5), above")
    assert rest.startswith("1 of 3 runs with a power at rest (60 W, background_llama-2-7b_7) too far from")
    for remark in (clock, rest):
        assert "board fitted (H100-SXM5-64GB, " in remark
        assert "this may be another board" in remark
    assert run(["twin", "fidelity", "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert {clock, rest} <= set(said)
    assert any(", fitted to none of them" in line for line in said)


def test_help_says_what_the_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    run(["twin", "fidelity", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "Exit status 1 when some of what the folder holds could not be judged" in told
    assert "0 else, also where a goal is missed" in told
    run(["twin", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "fidelity Compare the twin of a serving GPU with recorded runs, run by run." in told


def test_too_few_runs_for_a_fit_are_refused(
    runs: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(runs.iterdir())[:8]:
        path.unlink()
    assert run(["calibrate", "serving", "--runs", str(runs), "--out", str(tmp_path / "no.json")]) == 2
    assert "a fit needs 8" in capsys.readouterr().err
    assert not (tmp_path / "no.json").exists()
