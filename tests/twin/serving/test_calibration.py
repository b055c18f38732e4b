"""Fitting a board to runs, judging it on runs it has not seen, and what ships."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.counterparts import shared_data
from support.serving_runs import KNOWN, LAW, record_run

from twin.provenance import written
from twin.serving.calibration import FOLDS, Calibration, CalibrationError, calibrate, read, stored
from twin.serving.fidelity import GOALS, compare, report
from twin.serving.fit import H100_64GB, fit
from twin.serving.llm import LLMS
from twin.serving.recorded import RecordedRun, RunsError, read_runs

MANY = [
    (model, answers, chunked)
    for model in ("llama-2-7b", "llama-2-13b")
    for answers in (4, 16, 48)
    for chunked in (False, True)
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RecordedRun]:
    folder = tmp_path_factory.mktemp("runs")
    for place, (model, answers, chunked) in enumerate(MANY):
        idle_w = 115.0 * (0.94 + 0.01 * place)
        prompt, output = ((250, 131), (120, 320), (600, 90))[place % 3]
        record_run(
            folder, model, answers, chunked=chunked, prompt=prompt, output=output, idle_w=idle_w, requests=700
        )
    return read_runs(folder).runs


def test_a_fit_finds_the_coefficients_that_the_runs_were_made_with(runs: list[RecordedRun]) -> None:
    found = fit(runs, H100_64GB, seed=1)
    for name, model in KNOWN.models.items():
        pace = found.models[name].pace
        assert pace.decode_s == pytest.approx(model.pace.decode_s, rel=0.03)
        assert pace.prompt_token_s == pytest.approx(model.pace.prompt_token_s, rel=0.1)
        assert found.models[name].kv_tokens == pytest.approx(model.kv_tokens, rel=0.05)
    assert found.law.weights_byte_s == pytest.approx(LAW.weights_byte_s, rel=0.1)
    assert found.base_w == pytest.approx(KNOWN.base_w, rel=0.1)
    assert found.weights_w_per_tb_s == pytest.approx(KNOWN.weights_w_per_tb_s, rel=0.2)
    assert found.prompt_w_per_tflop_s == pytest.approx(KNOWN.prompt_w_per_tflop_s, rel=0.2)
    assert found.idle_exponent == pytest.approx(KNOWN.idle_exponent, abs=0.15)
    assert found.celsius_per_w == pytest.approx(KNOWN.celsius_per_w, rel=0.1)


def test_too_few_runs_are_refused_with_how_many_it_takes(runs: list[RecordedRun]) -> None:
    with pytest.raises(RunsError, match=r"3 runs have all requests from the start .*: a fit needs 8"):
        fit(runs[:3], H100_64GB, seed=1)


@pytest.fixture(scope="module")
def made(runs: list[RecordedRun]) -> Calibration:
    *said, calibration = calibrate(runs, H100_64GB, source="the twin", licence="CC0", command="test", seed=1)
    assert len(said) == 1 + FOLDS
    assert isinstance(calibration, Calibration)
    return calibration


def test_each_run_is_predicted_by_a_fit_that_did_not_see_it(
    runs: list[RecordedRun], made: Calibration
) -> None:
    for run in runs:
        assert made.fit_for(run) is made.folds[made.left_out[f"{run.name}.csv"]]
    elsewhere = msgspec.structs.replace(runs[0], name="elsewhere", digest="0" * 64)
    assert made.fit_for(elsewhere) is made.fit
    renamed = msgspec.structs.replace(runs[0], name="elsewhere")
    rewritten = msgspec.structs.replace(runs[0], digest="0" * 64)
    assert made.fit_for(renamed) == made.fit_for(rewritten) == made.fit_for(runs[0]) != made.fit
    fold = made.left_out[f"{runs[0].name}.csv"]
    others = [run for run in runs if made.left_out[f"{run.name}.csv"] != fold]
    assert made.fit_for(runs[0]) == fit(others, H100_64GB, seed=1)


def test_a_calibration_survives_its_file(made: Calibration) -> None:
    assert read(written(made)) == made
    with pytest.raises(CalibrationError, match="not a calibration"):
        read(b'{"fit": 3}')


def test_runs_of_the_twin_itself_are_predicted_closely(runs: list[RecordedRun], made: Calibration) -> None:
    found = report([compare(run, made, seed=1) for run in runs], made)
    assert all(run.fitted for run in found.runs)
    assert found.medians["energy_j"] < 0.015
    assert found.medians["tpot_mean_s"] < 0.02
    assert found.medians_unknown_board["mean_w"] > found.medians["mean_w"], "a board's rest tells of its gain"


def test_a_report_tells_too_low_from_too_high_and_crowded_runs_from_others(
    runs: list[RecordedRun], made: Calibration
) -> None:
    """A median of sizes hides that peaks are low, and where: in the batches that make a row's peaks."""
    one, _ = compare(runs[0], made, seed=1)
    pairs = []
    for answers, error in ((4, 0.01), (16, -0.02), (64, 0.01), (128, -0.08), (512, -0.12)):
        run = msgspec.structs.replace(
            one, max_answers=answers, model="mistral-7b", errors={**one.errors, "p99_w": error}
        )
        pairs.append((run, run))
    found = report(pairs, made)
    assert found.medians["p99_w"] == pytest.approx(0.02)
    assert found.signed["p99_w"] == pytest.approx(-0.02)
    assert found.medians_crowded["p99_w"] == pytest.approx(0.10)
    assert report(pairs[:3], made).medians_crowded == {}
    strange = [remark for remark in found.remarks if "mistral-7b" in remark]
    assert [remark.partition(":")[0] for remark in strange] == [
        "5 of 5 runs of models that were not fitted to (mistral-7b)"
    ]


def test_errors_are_of_what_was_recorded_and_signed(runs: list[RecordedRun], made: Calibration) -> None:
    run, _ = compare(runs[0], made, seed=1)
    wrong = (run.predicted.mean_w - run.recorded.mean_w) / run.recorded.mean_w
    assert run.errors["mean_w"] == pytest.approx(wrong)
    ramp = run.errors["ramp_2s_w"]
    assert run.recorded.ramp_2s_w is not None
    assert run.predicted.ramp_2s_w is not None
    assert ramp == pytest.approx((run.predicted.ramp_2s_w - run.recorded.ramp_2s_w) / KNOWN.limit_w)


def test_a_board_that_cannot_hold_the_model_says_so(runs: list[RecordedRun], made: Calibration) -> None:
    large = msgspec.structs.replace(runs[0], llm=LLMS["opt-30b"])
    with pytest.raises(
        RunsError, match=r"one H100-SXM5-64GB cannot serve opt-30b: .* the weights alone overfill"
    ):
        compare(large, made, seed=1)


def test_answers_of_one_token_have_no_time_between_tokens(tmp_path: Path, made: Calibration) -> None:
    path = record_run(tmp_path, "llama-2-7b", 8)
    beside = path.with_name(f"{path.stem}.result.json")
    result = msgspec.json.decode(beside.read_bytes())
    result |= {"total_output_tokens": result["completed"], "mean_tpot_ms": 0.0, "median_tpot_ms": 0.0}
    beside.write_bytes(msgspec.json.encode(result))
    run, _ = compare(read_runs(tmp_path).runs[0], made, seed=1)
    assert run.predicted.tpot_mean_s == run.predicted.tpot_median_s == 0.0
    assert run.errors["tpot_mean_s"] is None


# ---- what ships ----


def test_what_ships_says_where_it_came_from() -> None:
    shipped = stored()
    origin = shipped.provenance
    assert len(origin.files) == 70
    assert len(shipped.folds) == FOLDS
    assert origin.files.keys() == shipped.left_out.keys()
    assert set(shipped.left_out.values()) == set(range(FOLDS))
    assert origin.command.startswith("windrow calibrate serving")
    assert origin.licence == "Apache-2.0"


@pytest.mark.slow
def test_what_ships_is_what_the_command_makes_and_meets_its_goals_on_runs_left_out() -> None:
    recordings = read_runs(shared_data("gpu_power/vllm_h100")).runs
    shipped = stored()
    assert {run.digest for run in recordings} == set(shipped.provenance.files.values())
    again = fit(recordings, H100_64GB, seed=shipped.provenance.seed)
    for name, model in shipped.fit.models.items():
        for field in ("decode_s", "answer_s", "context_token_s", "prompt_token_s"):
            was, now = getattr(model.pace, field), getattr(again.models[name].pace, field)
            assert now == pytest.approx(was, rel=1e-3)
    assert again.base_w == pytest.approx(shipped.fit.base_w, rel=1e-3)
    found = report([compare(run, shipped, seed=1) for run in recordings], shipped)
    for name, goal in GOALS.items():
        assert found.medians[name] <= goal, name
    assert np.median([abs(run.errors["duration_s"] or 0.0) for run in found.runs]) < 0.02


@pytest.mark.slow
def test_a_model_whose_runs_were_all_left_out_is_told_from_its_shape() -> None:
    recordings = read_runs(shared_data("gpu_power/vllm_h100")).runs
    judged = [run for run in recordings if run.llm.name == "llama-2-7b"]
    blind = msgspec.structs.replace(
        stored(), fit=fit([run for run in recordings if run.llm.name != "llama-2-7b"], H100_64GB, seed=1)
    )
    strange = [msgspec.structs.replace(run, name="elsewhere", digest="0" * 64) for run in judged]
    found = report([compare(run, blind, seed=1) for run in strange], blind)
    assert not any(run.fitted for run in found.runs)
    assert found.medians["energy_j"] < 0.03
    assert found.medians["p99_w"] < 0.06
    assert found.medians["tpot_mean_s"] < 0.06


def test_the_three_locked_runs_agree_with_the_clock_axis() -> None:
    recordings = read_runs(shared_data("gpu_power/vllm_h100")).runs
    locked = [run for run in recordings if run.clock_mhz < 1700]
    assert len(locked) == 3
    found = report([compare(run, stored(), seed=1) for run in locked], stored())
    assert max(abs(run.errors["mean_w"] or 1.0) for run in found.runs) < 0.04
    assert max(abs(run.errors["duration_s"] or 1.0) for run in found.runs) < 0.05
