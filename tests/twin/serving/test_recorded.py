"""Folders of recorded runs: what is read, and what is said of one that cannot be."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from support.serving_runs import KNOWN, record_run

from twin.serving.recorded import COLUMNS, RunsError, read_run, read_runs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return record_run(tmp_path, "llama-2-7b", 16)


def test_a_run_is_its_load_and_not_the_quiet_around_it(run: Path) -> None:
    recorded = read_run(run)
    assert recorded.llm.name == "llama-2-7b"
    assert recorded.max_answers == 16
    assert not recorded.chunked
    assert recorded.power_w.min() > 1.5 * KNOWN.idle_w, "no second at rest is taken for load"
    assert abs(len(recorded.time_s) - recorded.result.duration) <= 2.0
    assert recorded.idle_w == pytest.approx(115.0, abs=2.0)


def test_requests_of_one_length_are_told_from_a_mixture(run: Path) -> None:
    recorded = read_run(run)
    assert recorded.fixed_lengths
    requests = recorded.request_list(np.ones(3), np.ones(3), seed=1)
    assert set(requests.prompt.tolist()) == {250.0}
    edit(run, total_input_tokens=100_001)
    shape = np.array([0.2, 1.0, 3.0])
    mixed = read_run(run).request_list(shape, shape, seed=1)
    assert mixed.prompt.sum() == pytest.approx(100_001, rel=0.01)
    assert mixed.prompt.max() > 2 * mixed.prompt.mean()
    assert (mixed.prompt == read_run(run).request_list(shape, shape, seed=1).prompt).all()


def test_requests_may_also_come_at_a_rate(run: Path) -> None:
    assert read_run(run).at_once
    edit(run, request_rate=4)
    recorded = read_run(run)
    assert not recorded.at_once
    at = recorded.request_list(np.ones(3), np.ones(3), seed=1).at_s
    assert at[-1] == pytest.approx(100.0, rel=0.2)


def edit(run: Path, **values: object) -> None:
    beside = run.with_name(f"{run.stem}.result.json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | values))


def lines(run: Path) -> list[str]:
    return run.read_text().splitlines()


def put(run: Path, number: int, column: str, cell: str) -> None:
    """Write a cell of a line of the file, counted from 1."""
    text = lines(run)
    cells = text[number - 1].split(",")
    cells[text[0].split(",").index(column)] = cell
    text[number - 1] = ",".join(cells)
    run.write_text("\n".join(text) + "\n")


def read_run_duration(run: Path) -> float:
    found: float = json.loads(run.with_name(f"{run.stem}.result.json").read_text())["duration"]
    return found


def said(run: Path) -> str:
    with pytest.raises(RunsError) as error:
        read_run(run)
    return str(error.value)


def test_what_is_wrong_with_a_run_is_said_in_words(run: Path) -> None:
    whole = run.read_text()
    name = run.name

    put(run, 12, "gpu_power_w", "n/a")
    assert said(run) == f"{name}: line 12: gpu_power_w = 'n/a': must be a finite number"
    run.write_text(whole)
    put(run, 12, "gpu_power_w", "nan")
    assert said(run) == f"{name}: line 12: gpu_power_w = 'nan': must be a finite number"
    run.write_text(whole)
    text = lines(run)
    run.write_text("\n".join([*text[:11], ",".join(text[11].split(",")[:5]), *text[12:]]))
    assert said(run) == f"{name}: line 12: ends before generation_tokens_total: it has 5 of 9 cells"
    run.write_text(whole)
    put(run, 12, "time_s", "0")
    assert "time_s: must rise from row to row" in said(run)
    run.write_text(whole)
    put(run, 12, "gpu_power_w", "-3")
    assert "gpu_power_w: must be at or above 0 W" in said(run)

    run.write_text(whole.replace("gpu_power_w", "watts"))
    assert said(run).startswith(f"{name}: no column gpu_power_w; columns read are time_s")
    run.write_text("\n".join(whole.splitlines()[1:]))
    assert said(run).startswith(f"{name}: its first line, '0.5,0,")
    assert said(run).endswith(", names none of time_s, " + ", ".join(COLUMNS[1:]))
    run.write_text("\n".join(whole.splitlines()[:12]))
    assert "seconds of load are recorded, 20 are needed" in said(run)
    run.write_text(whole)

    for column, cell, words in (
        ("gpu_power_w", "0", "gpu_power_w: is 0 at most, and a GPU at work reaches 20 to 2,000 W"),
        ("gpu_power_w", "312000", "gpu_power_w: is 312000 at most"),
        ("sm_clk_mhz", "0", "sm_clk_mhz: is 0 at most, and a GPU at work reaches 200 to 4,000 MHz"),
        ("sm_clk_mhz", "1.98", "sm_clk_mhz: is 1.98 at most"),
    ):
        for number in range(2, len(whole.splitlines()) + 1):
            put(run, number, column, cell)
        assert said(run).startswith(f"{name}: {words}")
        run.write_text(whole)

    edit(run, duration=1e6)
    assert said(run).endswith(f"{run.stem}.result.json says that the load took 1e+06 s")
    edit(run, duration=0.0)
    assert said(run) == f"{run.stem}.result.json: duration = 0.0: must be a number of seconds above zero"
    edit(run, duration=math.inf)
    assert "duration = inf: must be a number of seconds" in said(run)
    edit(run, duration=40.0, mean_ttft_ms=math.nan)
    assert "mean_ttft_ms = nan: must be a number of milliseconds, zero or above" in said(run)
    edit(run, mean_ttft_ms=1000.0, total_output_tokens=399)
    assert "total_output_tokens = 399: must be one a request (400) or more" in said(run)
    edit(run, total_output_tokens=52_400)
    edit(run, duration=40.0, request_rate="often")
    assert "Expected `float`, got `str` - at `$.request_rate`" in said(run)
    edit(run, request_rate=0)
    assert 'request_rate = 0.0: must be "inf" or requests per second' in said(run)
    edit(run, request_rate="inf", model_id="frob-9b")
    assert "model_id: model 'frob-9b': its shape is not known" in said(run)
    run.with_name(f"{run.stem}.result.json").write_text('{"duration": 3')
    assert said(run).startswith(f"{run.stem}.result.json: is no JSON: ")
    run.with_name(f"{run.stem}.result.json").write_text("\n")
    assert said(run) == f"{run.stem}.result.json: is empty"
    run.with_name(f"{run.stem}.result.json").unlink()
    assert said(run) == f"{name}: no {run.stem}.result.json beside it"


def test_a_file_that_is_no_table_at_all_is_said_to_be_none(run: Path) -> None:
    whole = run.read_text()
    for content in (b"", b"\n\n", b"\xef\xbb\xbf"):
        run.write_bytes(content)
        assert said(run) == f"{run.name}: is empty"
    noise = np.random.default_rng(1).integers(0, 256, 4_000).astype(np.uint8).tobytes()
    for content in (noise, whole.encode("utf-16"), b"\x89PNG\r\n\x1a\n" + noise):
        run.write_bytes(content)
        assert said(run) == f"{run.name}: is no CSV in UTF-8: its first line is no text"
    run.write_text(whole.replace(",", "\t"))
    assert "names none of time_s" in said(run)
    before = csv.field_size_limit(131_072)  # of the whole process, and a ledger's reader may have raised it
    try:
        run.write_text("x" * 200_000)
        assert said(run).startswith(f"{run.name}: is no CSV: ")
    finally:
        csv.field_size_limit(before)


def test_a_table_may_be_written_in_other_ways(run: Path) -> None:
    whole, read = run.read_text(), read_run(run)
    quoted = "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in whole.splitlines())
    further = "\n".join(f"{line},x" for line in whole.splitlines())
    for other in (whole.replace("\n", "\r\n"), "\ufeff" + whole, whole + "\n\n", quoted, further):
        run.write_bytes(other.encode())
        assert (read_run(run).power_w == read.power_w).all()
        assert read_run(run).idle_w == read.idle_w
    edit(run, completed=400.0, request_rate="Infinity", duration=round(read.result.duration, 1))
    assert read_run(run).result.completed == 400
    assert read_run(run).at_once


def test_rows_that_are_not_a_second_apart_are_refused(run: Path) -> None:
    text = lines(run)
    run.write_text("\n".join([text[0], *text[1::3]]))
    assert said(run) == f"{run.name}: time_s: rows are 3 s apart, and must be about 1 s"


@pytest.mark.parametrize(
    ("apart_s", "rows", "refused"), [(1.0, 55, False), (0.6, 95, False), (1.0, 90, True)]
)
def test_work_long_before_the_load_is_not_taken_for_trying_out(
    run: Path, apart_s: float, rows: int, refused: bool
) -> None:
    header, *lasting = lines(run)
    at, busy = header.split(",").index("time_s"), header.split(",").index("num_requests_running")
    working = next(row for row in lasting if float(row.split(",")[busy]) > 0).split(",")
    begin_s = float(lasting[0].split(",")[at])
    before = [
        ",".join([*working[:at], f"{begin_s - apart_s * i}", *working[at + 1 :]]) for i in range(rows, 0, -1)
    ]
    run.write_text("\n".join([header, *before, *lasting]))
    assert read_run_duration(run) < 60.0
    if refused:
        assert f"{run.name}: the engine is at work for 9" in said(run)
    else:
        read_run(run)


def test_a_recording_that_began_late_is_judged_by_most_of_its_load(run: Path) -> None:
    header, *rows = lines(run)
    run.write_text("\n".join([header, *rows[len(rows) // 10 :]]))
    read_run(run)
    edit(run, duration=1.5 * read_run_duration(run))
    assert "75% of it are needed" in said(run)


def test_a_hole_in_a_recording_is_not_recorded(run: Path) -> None:
    header, *rows = lines(run)
    middle = len(rows) // 2
    run.write_text("\n".join([header, *rows[: middle - 10], *rows[middle + 10 :]]))
    assert "s of the load are recorded, 75% of it are needed" in said(run)


def test_answers_at_once_are_those_of_the_name_where_it_says_them(run: Path) -> None:
    most = int(read_run(run).running.max())
    for stem, answers in (("background_llama-2-7b_64", 64), ("tuesday", most), ("tuesday_20250221", most)):
        other = run.with_name(f"{stem}.csv")
        other.write_text(run.read_text())
        result = run.with_name(f"{run.stem}.result.json").read_text()
        run.with_name(f"{stem}.result.json").write_text(result)
        assert read_run(other).max_answers == answers


def test_what_is_no_run_and_no_table_is_passed_over(run: Path) -> None:
    (run.parent / "._background_llama-2-7b_16.csv").write_bytes(b"\0\5")
    (run.parent / "old.csv").mkdir()
    assert read_runs(run.parent).problems == []


def test_a_run_without_load_is_refused(run: Path) -> None:
    text = lines(run)
    place = text[0].split(",").index("num_requests_running")
    rows = [line.split(",") for line in text[1:]]
    for cells in rows:
        cells[place] = "0"
    run.write_text("\n".join([text[0], *(",".join(cells) for cells in rows)]))
    assert "num_requests_running: never above 0, so nothing was served" in said(run)


def test_all_that_is_wrong_with_a_folder_is_said_at_once(tmp_path: Path) -> None:
    for answers in (4, 8, 16):
        record_run(tmp_path, "llama-2-7b", answers)
    (tmp_path / "background_llama-2-7b_4.csv").unlink()
    (tmp_path / "background_llama-2-7b_8.result.json").unlink()
    wrong = [
        "background_llama-2-7b_4.result.json: no background_llama-2-7b_4.csv beside it",
        "background_llama-2-7b_8.csv: no background_llama-2-7b_8.result.json beside it",
    ]
    runs, problems = read_runs(tmp_path)
    assert [run.name for run in runs] == ["background_llama-2-7b_16"]
    assert problems == wrong
    for path in tmp_path.glob("background_llama-2-7b_16*"):
        path.unlink()
    with pytest.raises(RunsError) as error:
        read_runs(tmp_path)
    assert str(error.value).splitlines() == wrong


def test_a_folder_without_runs_says_what_a_run_is(tmp_path: Path) -> None:
    with pytest.raises(
        RunsError, match=r"holds no run; a run is NAME\.csv with NAME\.result\.json beside it"
    ):
        read_runs(tmp_path)
    with pytest.raises(RunsError, match="no such folder of runs"):
        read_runs(tmp_path / "nowhere")
