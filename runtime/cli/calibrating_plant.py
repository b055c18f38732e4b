"""`windrow calibrate training` and `windrow calibrate clocks`: what the twin learns from recorded training
nodes and from sweeps of power limits, and how close it comes on what it was not shown."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from runtime.cli.calibration_plots import plot_clocks, plot_training
from runtime.cli.out_folder import PICTURES, writable
from runtime.cli.printing import console, emit, progress, say
from runtime.config import ConfigError
from runtime.counting import counted
from runtime.whole_file import put
from twin.clocks import fidelity as clock_fidelity
from twin.clocks import fit as clock_fit
from twin.provenance import written
from twin.training import fidelity as training_fidelity
from twin.training import fit as training_fit
from twin.training.recorded import UnusableRecording, read_wall_power

_Out = Annotated[pathlib.Path, Parameter(help="The file to write.")]
_Plot = Annotated[pathlib.Path | None, Parameter(help="Also draw a picture to this file.")]
_Errors = Annotated[bool, Parameter(name="--json", negative="", help="Print the errors as one line of JSON.")]


def _places(out: pathlib.Path, plot: pathlib.Path | None) -> None:
    writable(out)
    if plot is not None:
        writable(plot, PICTURES)


def _holds(data: pathlib.Path, recordings: Iterable[str]) -> None:
    """See that the recordings are there. Raises ConfigError, naming those that are not."""
    missing = [name for name in recordings if not (data / name).is_file()]
    if missing:
        raise ConfigError(f"{data}: --data must be a folder that holds {', '.join(missing)}")


@contextlib.contextmanager
def _steps(total: int) -> Iterator[Callable[[], None]]:
    """A bar over so many steps; what is yielded is to be called when one is done."""
    with progress("steps") as bar:
        task = bar.add_task("fitting and judging", total=total)
        yield lambda: bar.advance(task)


def training(*, data: pathlib.Path, out: _Out, plot: _Plot = None, json: _Errors = False) -> int:
    """Fit training nodes to the recorded wall power of a job, and judge them on what was left out.

    Takes a minute. Exit status 2 when a recording cannot be read, and then nothing is written; 0 else,
    however large the errors are.

    Parameters
    ----------
    data
        The folder of recordings: it holds gpu_power/mlperf/, with the job of 64 nodes and the one of 8.
    """
    _places(out, plot)
    _holds(data, (training_fit.JOB, training_fit.OTHER_JOB))
    try:
        with _steps(2 + training_fidelity.FOLDS) as done:
            made = training_fit.calibrate(data)
            done()
            found = training_fidelity.report(data, judged=done)
        if plot is not None:
            job = read_wall_power(data / training_fit.JOB)
            plot_training(training_fit.fit(job, idle_w=made.spread.idle_w), job, plot)
    except UnusableRecording as error:
        raise ConfigError(str(error)) from error
    put(out, written(made))
    if json:
        emit(found)
        return 0
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("judged on", "figure", "median of meters", "worst", "sum, furthest off"):
        table.add_column(title, justify="left" if title in ("judged on", "figure") else "right")
    for line in training_fidelity.lines(found):
        table.add_row(
            line.what, line.figure, f"{line.median:.2%}", f"{line.worst:.2%}", f"{line.worst_sum:+.2%}"
        )
    console.print(table)
    say("errors relative to what was recorded; ramps: as a share of its P99 power")
    say(f"written to {out}")
    return 0


def clocks(*, data: pathlib.Path, out: _Out, plot: _Plot = None, json: _Errors = False) -> int:
    """Fit boards' clock axes to sweeps of their power limits, judge them on workloads left out, and ask
    whether the axis that safe shares are worked out with is safe on them.

    Takes a minute. Exit status 2 when a sweep cannot be read, and then nothing is written; 0 else, however
    large the errors are.

    Parameters
    ----------
    data
        The folder of recordings: it holds gpu_power/zeus/, with a sweep per board.
    """
    _places(out, plot)
    _holds(data, clock_fit.SWEEPS.values())
    found: list[clock_fidelity.BoardReport] = []
    try:
        with _steps(1 + len(clock_fit.SWEEPS)) as done:
            made = clock_fit.calibrate(data)
            done()
            for board in clock_fidelity.report(data):
                found.append(board)
                done()
        if plot is not None:
            sweeps = [clock_fit.read_sweep(data / path, board) for board, path in clock_fit.SWEEPS.items()]
            plot_clocks(made, sweeps, plot)
    except clock_fit.UnusableSweep as error:
        raise ConfigError(str(error)) from error
    put(out, written(made))
    if json:
        emit(found)
        return 0
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("board", "limit", "time", "power", "time, synthetic axis", "power, synthetic axis"):
        table.add_column(title, justify="left" if title == "board" else "right")
    for board in found:
        for own, other in zip(board.fitted, board.synthetic, strict=True):
            errors = (own.seconds, own.watts, other.seconds, other.watts)
            table.add_row(board.board, f"{own.limit_w:.0f} W", *(f"{error:.1%}" for error in errors))
    console.print(table)
    say("median errors on workloads left out, at limits left out")
    for board in found:
        for band in board.left:
            if band.worst > 0.0:
                clocks_from, to = f"{band.clock_from:.1f}", f"{band.clock_to:.1f}"
                say(
                    f"{board.board}: at {clocks_from} to {to} of the clock the synthetic axis puts the power "
                    f"left too low in {band.too_low:.0%} of {counted(band.readings, 'reading')}, by up to "
                    f"{band.worst:.2f} of the dynamic power"
                )
    say(f"written to {out}")
    return 0
