"""Training nodes: their swings add up, they wait for each other, and the fit finds what made a recording."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from twin.provenance import stored, written
from twin.training import fit as fitting
from twin.training.fidelity import lines, report, simulate
from twin.training.fit import JOB, OTHER_JOB, calibrate, fit, idle_power
from twin.training.nodes import (
    Iteration,
    NodeSpread,
    Pause,
    TrainingCoefficients,
    TrainingJob,
    TrainingNodes,
    WallMeter,
    WallMeters,
)
from twin.training.recorded import UnusableRecording, WallPower, read_wall_power

DATA = Path(__file__).parents[2].parent / "shared" / "data"
recorded = pytest.mark.skipif(
    not all((DATA / name).exists() for name in (JOB, OTHER_JOB)), reason=f"no recordings in {DATA}"
)

SHAPE = Iteration(work_s=7.0, drain_s=1.0, exchange_s=1.5, fill_s=1.0, drain_ratio=0.95, exchange_ratio=0.75)
EVALUATION = Pause(name="evaluation", every=10, seconds=14.0, ratio=0.88, entry_ratio=0.7)
EVEN = NodeSpread(
    idle_w=2500.0,
    gain_ratio=0.0,
    level_ratio=(1.0,) * 9,
    memory_ratio=0.0,
    exchange_ratio=0.0,
    straggle_s=0.0,
)
UNEVEN = NodeSpread(
    idle_w=2500.0,
    gain_ratio=0.01,
    level_ratio=(0.97, 0.975, 0.98, 0.99, 1.0, 1.01, 1.015, 1.02, 1.025),
    memory_ratio=0.7,
    exchange_ratio=0.02,
    straggle_s=0.3,
)


def job(**changed: object) -> TrainingJob:
    known = TrainingJob(busy_w=7000.0, iteration=SHAPE, ramp_s=0.0)
    return msgspec.structs.replace(known, **changed)


def nodes(count: int = 4, spread: NodeSpread = EVEN, seed: int = 1, **changed: object) -> TrainingNodes:
    return TrainingNodes(job(**changed), spread, count, np.random.default_rng(seed))


def run(row: TrainingNodes, seconds: float, dt_s: float = 0.5) -> np.ndarray:
    return np.array([row.step(dt_s) for _ in range(round(seconds / dt_s))])


# ---- what the nodes do ----


def test_all_nodes_dip_together_so_their_sum_swings_as_far_as_one_does() -> None:
    power = run(nodes(64), 105.0)
    total = power.sum(axis=1)
    assert (total.max() - total.min()) / total.max() == pytest.approx(1.0 - 0.75, abs=0.01)


def test_the_energy_of_an_iteration_is_the_same_at_every_step_length() -> None:
    # Ten whole iterations, so that none is cut.
    energies = [run(nodes(), 105.0, dt).mean() for dt in (0.1, 0.7, 2.1, 5.25, 21.0)]
    expected = 7000.0 * (7.0 + 2.0 * 0.95 + 1.5 * 0.75) / 10.5
    assert energies == pytest.approx([expected] * 5, rel=1e-9)


def test_the_same_seed_gives_the_same_course_and_another_one_another() -> None:
    first, again, other = (run(nodes(8, UNEVEN, seed), 100.0) for seed in (5, 5, 6))
    assert (first == again).all()
    assert not np.allclose(first, other)


@pytest.mark.parametrize("dip", [0.75, 0.5, 0.2])
def test_the_published_dips_of_an_iteration_can_be_told(dip: float) -> None:
    """POLCA: an iteration falls to 75 (RoBERTa), 50 (GPT-NeoX) or 20 % (Flan-T5) of TDP."""
    idle = msgspec.structs.replace(EVEN, idle_w=800.0)
    shape = msgspec.structs.replace(SHAPE, drain_ratio=1.0, exchange_ratio=dip)
    power = run(nodes(40, idle, iteration=shape), 105.0).sum(axis=1)
    assert power.min() / power.max() == pytest.approx(dip, abs=0.01)


def test_a_row_in_training_can_peak_at_97_percent_and_rise_by_the_published_37_percent_in_2_s() -> None:
    """POLCA's training row. Its rise is one from 62 % (its dip's depth) to all within the 2 s."""
    budget_w = 40 * 7000.0 / 0.97
    shape = msgspec.structs.replace(SHAPE, drain_s=0.0, fill_s=0.0, work_s=9.0, exchange_ratio=0.613)
    row = nodes(40, iteration=shape)
    power = run(row, 105.0, 2.0).sum(axis=1)
    assert power.max() / budget_w == pytest.approx(0.97, abs=0.002)
    fine = run(nodes(40, iteration=shape), 105.0, 0.5).sum(axis=1)
    rise = max(fine[i : i + 5].max() - fine[i] for i in range(len(fine) - 4)) / budget_w
    assert rise == pytest.approx(0.375, abs=0.002)


def test_one_slow_node_slows_all_and_the_others_wait_for_it() -> None:
    row = nodes(4)
    row.clock_ratio[0] = 0.5
    run(row, 210.0)
    assert row.iterations == pytest.approx(10, abs=1), "half of the clock, half of the pace"
    free = nodes(4)
    run(free, 210.0)
    assert free.iterations == pytest.approx(20, abs=1)
    assert row.wall_w[1] < free.wall_w.max(), "who waits draws less than at work"


def test_work_that_does_not_wait_for_the_clock_is_not_slowed_by_it() -> None:
    row = nodes(4, clock_share=0.0)
    row.clock_ratio[:] = 0.5
    power = run(row, 210.0)
    assert row.iterations == pytest.approx(20, abs=1)
    assert power.max() == pytest.approx(2500.0 + (7000.0 - 2500.0) * 0.5), "yet its power falls"


def test_an_evaluation_comes_after_every_tenth_iteration() -> None:
    power = run(nodes(1, pauses=(EVALUATION,)), 119.0, 0.5)[:, 0]
    assert power[-26:-1] == pytest.approx(0.88 * 7000.0), "14 s from the tenth's end on"
    assert power[:210].min() == pytest.approx(0.70 * 7000.0), "entered by a deeper exchange"


def test_a_failure_rests_all_nodes_and_loses_what_no_checkpoint_kept() -> None:
    checkpoint = Pause(name="checkpoint", every=5, seconds=10.0, ratio=0.6, entry_ratio=0.7)
    row = nodes(4, pauses=(checkpoint,), ramp_s=4.0)
    run(row, 4.0 + 7.5 * 10.5 + 10.0)
    assert row.iterations == 7
    row.fail(60.0)
    rest = run(row, 60.0)
    assert rest == pytest.approx(2500.0)
    assert row.iterations == 5, "two since the checkpoint"
    up = run(row, 4.0, 0.5)[:, 0]
    assert (np.diff(up) > 0.0).all(), "it starts as it did at first"
    run(row, 10.5)
    assert row.iterations == 6


def test_a_stall_puts_the_work_off_and_nothing_else() -> None:
    row = nodes(2)
    run(row, 15.0)
    row.stall(30.0, 0.4)
    assert run(row, 30.0) == pytest.approx(0.4 * 7000.0)
    run(row, 6.5)
    assert row.iterations == 2


def test_nodes_that_differ_keep_their_gains_and_their_iterations_levels_hang_together() -> None:
    row = nodes(200, UNEVEN)
    power = run(row, 105.0)[10::21]  # in the middle of each iteration's work
    means = power.mean(axis=0)
    assert np.std(means / means.mean()) == pytest.approx(0.01, rel=0.5)
    off = power / means - 1.0
    assert np.mean(off[1:] * off[:-1]) > 0.0


def test_a_job_of_no_nodes_or_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one node"):
        nodes(0)
    with pytest.raises(ValueError, match="takes time"):
        nodes(pauses=(msgspec.structs.replace(EVALUATION, every=0),))


# ---- what meters make of it ----


def readings(meter: WallMeter, seconds: float = 700.0) -> WallPower:
    return simulate(job(), UNEVEN, meter, nodes=6, seconds=seconds, seed=3)


def test_a_meter_reads_every_two_seconds_at_a_moment_of_its_own() -> None:
    seen = readings(WallMeter(period_s=2.0, jitter_s=0.02, noise_ratio=0.004))
    assert np.median(np.diff(seen.at_s[0])) == pytest.approx(2.0, abs=0.11)
    assert len({round(float(at[0]), 1) for at in seen.at_s}) > 1


def test_a_meter_with_gaps_and_zeros_has_them_and_zeros_are_no_readings() -> None:
    seen = readings(WallMeter(gap_ratio=0.02, gap_s=20.0, zero_ratio=0.01))
    longest = max(float(np.diff(at).max()) for at in seen.at_s)
    assert 10.0 < longest <= 22.2
    assert seen.no_readings > 0
    assert all((watts > 0.0).all() for watts in seen.watts)


def test_a_meter_with_a_longer_window_sees_shallower_dips() -> None:
    short, long = (readings(WallMeter(window_s=w)) for w in (0.2, 4.0))
    assert min(float(w.min()) for w in long.watts) > min(float(w.min()) for w in short.watts) + 200.0


def test_a_meter_repeats_itself_as_often_as_it_is_said_to() -> None:
    seen = readings(WallMeter(noise_ratio=0.004, repeat_ratio=0.1))
    same = np.concatenate([np.diff(watts) == 0.0 for watts in seen.watts])
    assert same.mean() == pytest.approx(0.1, abs=0.02)


def test_a_meter_has_said_nothing_before_its_first_reading() -> None:
    meters = WallMeters(WallMeter(), 3, 0.5, np.random.default_rng(1))
    assert np.isnan(meters.shown_w).all()


# ---- reading recordings ----


def test_readings_of_zero_are_left_out_and_counted_and_twins_share_a_meter(tmp_path: Path) -> None:
    rows = ["time_ms,host,watts"]
    for second in range(0, 60, 2):
        rows += [f"{1000 * second},a,{5000 + second}", f"{1000 * second},b,{5000 + second}"]
        rows += [f"{1000 * second + 300},c,{0 if second % 10 == 0 else 5100}"]
    (tmp_path / "job.csv").write_text("\n".join(rows))
    seen = read_wall_power(tmp_path / "job.csv")
    assert seen.hosts == (("a", "b"), ("c",))
    assert seen.no_readings == 6
    assert len(seen.at_s[1]) == 24


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("when,who,watts\n1,a,2", "columns are 'when,who,watts'"),
        ("time_ms,host,watts\n1,a,many", r"job.csv:2: no reading: '1,a,many'"),
        ("time_ms,host,watts\n1,a", "job.csv:2: no reading"),
        ("time_ms,host,watts\n1,a,inf", "job.csv:2: no reading"),
        ("time_ms,host,watts\n1,a,5000", "fewer than 20 readings of a"),
        ("time_ms,host,watts\n1,a,0", "holds no readings"),
    ],
)
def test_a_malformed_recording_is_refused_in_words(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "job.csv").write_text(text)
    with pytest.raises(UnusableRecording, match=said):
        read_wall_power(tmp_path / "job.csv")


def test_a_missing_recording_is_named() -> None:
    with pytest.raises(UnusableRecording, match=r"nowhere.*cannot be read: No such file"):
        calibrate(Path("nowhere"))


def test_nodes_that_never_rest_tell_no_power_at_rest() -> None:
    with pytest.raises(UnusableRecording, match="never rest"):
        idle_power(readings(WallMeter()))


def test_a_recording_without_iterations_is_refused_in_words() -> None:
    flat = msgspec.structs.replace(SHAPE, drain_ratio=1.0, exchange_ratio=1.0)
    seen = simulate(job(iteration=flat), UNEVEN, WallMeter(noise_ratio=0.02), nodes=6, seconds=600.0, seed=3)
    with pytest.raises(UnusableRecording, match="iterations"):
        fit(seen, idle_w=2500.0)


# ---- what the fit finds ----


@pytest.fixture(scope="module")
def found() -> fitting.TrainingFit:
    meter = WallMeter(window_s=0.8, noise_ratio=0.004, jitter_s=0.05, repeat_ratio=0.02)
    made = simulate(job(pauses=(EVALUATION,)), UNEVEN, meter, nodes=24, seconds=2500.0, seed=11)
    return fit(made, idle_w=2500.0)


def test_the_fit_finds_the_timetable(found: fitting.TrainingFit) -> None:
    assert found.job.iteration.seconds == pytest.approx(SHAPE.seconds, rel=0.002)
    assert found.timetable.every == 10
    (evaluation,) = found.job.pauses
    assert evaluation.seconds == pytest.approx(14.0, abs=0.3)
    assert evaluation.ratio == pytest.approx(0.88, abs=0.005)
    assert evaluation.entry_ratio == pytest.approx(0.70, abs=0.03)


def test_the_fit_finds_the_levels(found: fitting.TrainingFit) -> None:
    assert found.job.busy_w == pytest.approx(7000.0, rel=0.01)
    assert found.job.iteration.exchange_ratio == pytest.approx(0.75, abs=0.02)
    assert found.job.iteration.drain_ratio == pytest.approx(0.95, abs=0.015)
    assert found.job.iteration.exchange_s == pytest.approx(1.5, abs=0.4)


def test_the_fit_finds_how_nodes_differ(found: fitting.TrainingFit) -> None:
    assert found.spread.gain_ratio == pytest.approx(0.01, rel=0.4)
    assert found.spread.level_ratio == pytest.approx(UNEVEN.level_ratio, abs=0.006)
    assert found.spread.memory_ratio == pytest.approx(0.7, abs=0.15)


def test_the_fit_finds_the_meter(found: fitting.TrainingFit) -> None:
    assert found.meter.period_s == pytest.approx(2.0, abs=0.11)
    assert found.meter.noise_ratio == pytest.approx(0.004, rel=0.4)
    assert found.meter.repeat_ratio == pytest.approx(0.02, abs=0.01)


# ---- against the shared recordings ----


@recorded
def test_the_stored_coefficients_are_what_the_recordings_give() -> None:
    kept = stored("training", TrainingCoefficients)
    digests = {name: hashlib.sha256((DATA / name).read_bytes()).hexdigest() for name in (JOB, OTHER_JOB)}
    assert kept.provenance.files == digests
    again = calibrate(DATA, seed=kept.provenance.seed)
    assert again.job.busy_w == pytest.approx(kept.job.busy_w)
    assert again.spread.level_ratio == pytest.approx(kept.spread.level_ratio)
    shape, before = (msgspec.structs.astuple(each.job.iteration) for each in (again, kept))
    assert shape == pytest.approx(before, abs=0.02), "an optimiser's last digits differ between machines"


def test_the_stored_coefficients_are_read_and_written_alike() -> None:
    kept = stored("training", TrainingCoefficients)
    assert msgspec.json.decode(written(kept), type=TrainingCoefficients) == kept
    assert kept.provenance.licence == "Apache-2.0"


@recorded
@pytest.mark.slow
def test_nodes_and_times_left_out_are_met_to_half_a_percent_in_energy() -> None:
    told = {(line.what, line.figure): line for line in lines(report(DATA))}
    for what in ("nodes left out", "time left out"):
        assert told[what, "energy"].median < 0.005
        assert abs(told[what, "energy"].worst_sum) < 0.005
        assert told[what, "P99"].median < 0.005
        assert abs(told[what, "P99"].worst_sum) < 0.005
        assert told[what, "ramp 2 s"].median < 0.015
        assert abs(told[what, "ramp 40 s"].worst_sum) < 0.02


@recorded
def test_the_recorded_hosts_share_34_meters() -> None:
    """What the recording names 64 nodes are 34 courses: two hosts to a meter, mostly."""
    seen = read_wall_power(DATA / JOB)
    assert sum(len(hosts) for hosts in seen.hosts) == 64
    assert len(seen.hosts) == 34
