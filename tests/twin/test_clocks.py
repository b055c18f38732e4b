"""Clock axes: a limit acts by the clock, the fit finds what made a sweep, and an unsafe axis is found out."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from schemas.skus import SKUS
from twin.clocks import fidelity
from twin.clocks.axis import SYNTHETIC, ClockAxis, ClockCoefficients, slowdown
from twin.clocks.fit import SWEEPS, Sweep, UnusableSweep, calibrate, fit, read_sweep, slowed, tell
from twin.provenance import stored, written

DATA = Path(__file__).parents[2].parent / "shared" / "data"
recorded = pytest.mark.skipif(
    not all((DATA / name).exists() for name in SWEEPS.values()), reason=f"no sweeps in {DATA}"
)

LIMITS = np.arange(100.0, 301.0, 25.0)


def made(
    axis: ClockAxis, static_w: float, *, workloads: int = 24, seed: int = 4, noise: float = 0.0
) -> Sweep:
    """A sweep of workloads that ask for more than most limits, a sixth of which follow the clock fully."""
    rng = np.random.default_rng(seed)
    share = np.where(np.arange(workloads) % 6 == 0, 1.0, rng.uniform(0.3, 1.0, workloads))
    asked = rng.uniform(200.0, 320.0, workloads) - static_w
    asked[1] = 5.0  # one hardly uses the board
    epoch = rng.uniform(10.0, 1000.0, workloads)
    clock = axis.clock_ratio(np.clip((LIMITS - static_w) / asked[:, None], 0.0, 1.0))
    stray = 1.0 + noise * rng.standard_normal((2, workloads, LIMITS.size))
    return Sweep(
        board="made",
        sha256="",
        workloads=tuple(f"w{n}" for n in range(workloads)),
        limit_w=LIMITS,
        seconds=epoch[:, None] * slowdown(clock, share[:, None]) * stray[0],
        watts=(static_w + asked[:, None] * axis.power_left(clock)) * stray[1],
    )


def test_the_synthetic_axis_is_the_one_that_boards_state() -> None:
    sku = SKUS["H100-SXM5-80GB"]
    clocks = np.arange(sku.min_mhz, sku.max_mhz + 1, sku.step_mhz)
    expected = [sku.power_fraction(float(mhz)) for mhz in clocks]
    assert SYNTHETIC.power_left(clocks / sku.max_mhz) == pytest.approx(expected)


def test_the_clock_for_a_power_and_the_power_at_a_clock_undo_each_other() -> None:
    axis = ClockAxis(linear=0.6, power=8.0)
    clocks = np.linspace(0.1, 1.0, 10)
    assert axis.clock_ratio(axis.power_left(clocks)) == pytest.approx(clocks, abs=1e-3)


@pytest.mark.parametrize(("linear", "power", "static_w"), [(0.35, 2.5, 30.0), (0.65, 8.0, 50.0)])
def test_the_fit_finds_the_axis_that_made_a_sweep(linear: float, power: float, static_w: float) -> None:
    axis = ClockAxis(linear=linear, power=power)
    found = fit(made(axis, static_w, noise=0.005))
    clocks = np.linspace(0.3, 1.0, 15)
    assert found.axis.power_left(clocks) == pytest.approx(axis.power_left(clocks), abs=0.05)
    assert found.workloads == 24


def test_a_limit_that_nothing_reaches_changes_nothing() -> None:
    sweep = made(SYNTHETIC, 30.0)
    idle = sweep._replace(watts=np.full_like(sweep.watts, 60.0), seconds=np.full_like(sweep.seconds, 7.0))
    told = tell(idle, SYNTHETIC, 30.0)
    assert told.seconds == pytest.approx(7.0)
    assert not slowed(idle).any()


def test_an_axis_that_promises_too_little_power_is_found_out_without_a_fit() -> None:
    """The board's power falls in proportion to the clock; the synthetic axis says it falls faster."""
    flat = made(ClockAxis(linear=1.0, power=1.0), 30.0)
    bands = fidelity.power_left(flat)
    low = [band for band in bands if 0.3 < band.clock_from < 0.7]
    assert low
    assert all(band.too_low > 0.0 and band.worst > 0.05 for band in low)


def test_an_axis_is_not_blamed_for_the_board_that_it_describes() -> None:
    sweep = made(SYNTHETIC, 30.0)
    assert all(band.worst < 0.02 for band in fidelity.power_left(sweep))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dataset,network\n", "has no column batch_size, optimizer, power_limit"),
        ("{head}\na,b,1,c,100,slow,90\n", ":2: limit, time and power must be numbers"),
        ("{head}\na,b,1,c,100,7\n", ":2: limit, time and power must be numbers"),
        ("{head}\na,b,1,c,100,0,90\n", ":2: limit, time and power must be above zero"),
        ("{head}\na,b,1,c,100,7,90\n", "0 workloads at 5 limits or more; 8 are needed"),
    ],
)
def test_a_malformed_sweep_is_refused_in_words(tmp_path: Path, text: str, said: str) -> None:
    head = "dataset,network,batch_size,optimizer,power_limit,time_per_epoch,average_power"
    (tmp_path / "sweep.csv").write_text(text.format(head=head))
    with pytest.raises(UnusableSweep, match=said):
        read_sweep(tmp_path / "sweep.csv", "a40")


def test_a_missing_sweep_is_named() -> None:
    with pytest.raises(UnusableSweep, match=r"nowhere.*cannot be read: No such file"):
        calibrate(Path("nowhere"))


# ---- against the shared recordings ----


def test_the_stored_coefficients_are_read_and_written_alike() -> None:
    kept = stored("clocks", ClockCoefficients)
    assert msgspec.json.decode(written(kept), type=ClockCoefficients) == kept
    assert kept.boards.keys() == {"a40", "v100", "rtx6000"}, "the P100's sweep slows nothing down"


@recorded
def test_the_stored_coefficients_are_what_the_sweeps_give() -> None:
    kept = stored("clocks", ClockCoefficients)
    digests = {name: hashlib.sha256((DATA / name).read_bytes()).hexdigest() for name in SWEEPS.values()}
    assert kept.provenance.files == digests
    again = calibrate(DATA)
    clocks = np.linspace(0.2, 1.0, 17)
    for board, found in again.boards.items():
        assert found.axis.power_left(clocks) == pytest.approx(
            kept.boards[board].axis.power_left(clocks), abs=0.02
        )


@recorded
@pytest.mark.parametrize("board", ["a40", "v100", "rtx6000"])
def test_workloads_left_out_are_met_better_by_the_boards_own_axis_than_by_the_synthetic_one(
    board: str,
) -> None:
    sweep = read_sweep(DATA / SWEEPS[board], board)
    own, other = (fidelity.leave_workloads_out(sweep, axis=axis) for axis in (None, SYNTHETIC))
    assert np.mean([limit.seconds for limit in own]) < np.mean([limit.seconds for limit in other])
    assert all(limit.watts < 0.04 for limit in own if limit.limit_w > 100.0)


@recorded
def test_the_synthetic_axis_is_safe_from_seven_tenths_of_the_clock_and_not_below_six() -> None:
    """Where it puts the power left too low, however kindly one reads the sweeps; see docs/calibration.md."""
    bands = [
        band
        for board in ("a40", "v100", "rtx6000")
        for band in fidelity.power_left(read_sweep(DATA / SWEEPS[board], board))
    ]
    assert all(band.worst < 0.0 for band in bands if 0.7 <= band.clock_from < 0.9)
    assert max(band.worst for band in bands if band.clock_to <= 0.5) > 0.1
