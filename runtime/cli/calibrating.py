"""`windrow calibrate` fits the twin to recorded hardware; `windrow twin fidelity` says how close it comes."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Iterator, Sequence

from cyclopts import App
from rich.text import Text

from runtime.cli.calibrating_plant import clocks, training
from runtime.cli.fidelity_plot import plot_fidelity
from runtime.cli.out_folder import PICTURES, writable
from runtime.cli.printing import Json, console, emit, progress, say
from runtime.cli.seeds import Seed
from runtime.config import ConfigError
from runtime.counting import counted
from runtime.whole_file import put
from twin.provenance import written
from twin.serving.board import ServingFit
from twin.serving.calibration import Calibration, CalibrationError, calibrate, read, stored
from twin.serving.fidelity import CROWDED, GOALS, Report, RunFidelity, Served, compare, recorded, report
from twin.serving.fit import H100_64GB
from twin.serving.recorded import RecordedRun, RunsError, read_runs

calibrating = App(name="calibrate", help="Fit the twin to recorded hardware, and store what was found.")
calibrating.command(training)
calibrating.command(clocks)


@calibrating.command
def serving(
    *,
    runs: pathlib.Path,
    out: pathlib.Path,
    seed: Seed = 1,
    source: str = "own recordings",
    licence: str = "own",
) -> int:
    """Fit the pace and power of a serving GPU to recorded runs of vLLM on one H100.

    Fits all runs, and seven times all but a seventh, so that `windrow twin fidelity` can judge each run by
    coefficients that never saw it. Takes some minutes.

    Exit status 2 when a run cannot be read or there are too few, and then nothing is written; 0 else.

    Parameters
    ----------
    runs
        A folder of runs: NAME.csv with NAME.result.json beside it.
    out
        The file to write.
    seed
        Of the order in which requests of recorded lengths are taken to have come.
    source
        Whose recordings they are, for the record.
    licence
        Theirs.
    """
    with _for_operators():
        found = read_runs(runs)
        if found.problems:  # a fit to some of what was given would be taken for a fit to all of it
            raise RunsError("\n".join(found.problems))
        return _serving(found.runs, runs, out, seed, source, licence)


def _serving(
    recordings: Sequence[RecordedRun],
    runs: pathlib.Path,
    out: pathlib.Path,
    seed: int,
    source: str,
    licence: str,
) -> int:
    writable(out)
    made: Calibration | None = None
    with progress("fits") as bar:
        task = bar.add_task("reading", total=8)
        command = f"windrow calibrate serving --runs {runs.name} --seed {seed}"
        for word in calibrate(
            recordings, H100_64GB, command=command, source=source, licence=licence, seed=seed
        ):
            if isinstance(word, str):
                bar.update(task, description=word, advance=1)
            else:
                made = word
    assert made is not None
    put(out, written(made))
    for line in _in_words(made.fit):
        say(line)
    say(f"{len(recordings)} runs fitted; written to {out}")
    say(f"how close it comes: windrow twin fidelity --runs {runs} --calibration {out}")
    return 0


def _in_words(fit: ServingFit) -> list[str]:
    law = fit.law
    reads = f"{1e-12 / law.weights_byte_s:.2f} TB/s of weights, {1e-12 / law.cache_byte_s:.2f} of KV cache"
    works = f"{1e-12 / law.prompt_flop_s:.0f} TFLOP/s of prompts, {1e6 * law.layer_s:.0f} µs a layer"
    draws = f"{fit.base_w:.0f} W busy + {fit.weights_w_per_tb_s:.0f} per TB/s of weights"
    draws += (
        f" + {fit.cache_w_per_tb_s:.0f} of KV cache + {fit.prompt_w_per_tflop_s:.2f} per TFLOP/s of prompts"
    )
    said = [f"{fit.sku}: {reads}, {works}", f"{fit.sku}: {draws}"]
    for name, model in sorted(fit.models.items()):
        pace = model.pace
        step = f"step {1000 * pace.decode_s:.2f} ms + {1e6 * pace.answer_s:.0f} µs an answer"
        context = f"{1e6 * pace.context_token_s:.2f} µs a token of context"
        prompts = f"prompts {1000 * pace.prefill_s:.1f} ms + {1e6 * pace.prompt_token_s:.1f} µs a token"
        watts = f"{model.answer_w_per_tflop_s:.2f} W per TFLOP/s of answers"
        said.append(f"{name}: {step} + {context}; {prompts}; {model.kv_tokens} tokens of KV cache; {watts}")
    return said


def fidelity(
    *,
    runs: pathlib.Path,
    calibration: pathlib.Path | None = None,
    plot: pathlib.Path | None = None,
    seed: Seed = 1,
    json: Json = False,
) -> int:
    """Compare the twin of a serving GPU with recorded runs, run by run.

    Exit status 1 when some of what the folder holds could not be judged, 2 when nothing could. What people
    read of it is said in `runtime.cli.simulating`, which need not import the twin to say it.

    Parameters
    ----------
    runs
        A folder of runs: NAME.csv with NAME.result.json beside it.
    calibration
        Coefficients that `windrow calibrate serving` wrote; those that ship, where left out.
    plot
        Also draw a picture to this file.
    seed
        Of the order of requests and of the sensor's noise.
    json
        Print the answer as one line of JSON.
    """
    if plot is not None:
        writable(plot, PICTURES)
    coefficients = _calibration(calibration)
    with _for_operators():
        recordings, problems = read_runs(runs)
    judged, pairs = [], []
    with progress("runs") as bar:
        task = bar.add_task("serving", total=len(recordings))
        for run in recordings:
            try:
                pairs.append(compare(run, coefficients, seed=seed))
                judged.append(run)
            except RunsError as error:
                problems.append(str(error))
            bar.advance(task)
    if not pairs:
        raise ConfigError("\n".join(problems))
    for problem in problems:
        print(problem, file=sys.stderr)
    found = report(pairs, coefficients, problems)
    if plot is not None:
        shown = _most_telling(judged)
        predicted = Served.of(shown, coefficients.fit_for(shown), seed=seed).power(shown.idle_w)
        plot_fidelity(found, shown.name, recorded(shown).power_w, predicted.power_w, plot)
    if json:
        emit(found)
    else:
        _print(found)
        if plot is not None:
            say(f"plot: {plot}")
    return 1 if problems else 0


def _most_telling(recordings: Sequence[RecordedRun]) -> RecordedRun:
    """The run whose power moves most: a flat line proves little."""
    return max(recordings, key=lambda run: float(run.power_w.std()))


_SHOWN = (
    ("mean_w", "mean"),
    ("energy_j", "energy"),
    ("p50_w", "P50"),
    ("p95_w", "P95"),
    ("p99_w", "P99"),
    ("ramp_2s_w", "ramp 2 s"),
    ("ramp_10s_w", "ramp 10 s"),
    ("ramp_40s_w", "ramp 40 s"),
    ("ttft_mean_s", "TTFT"),
    ("tpot_mean_s", "TPOT"),
)

_FIGURE = 6  # letters of a figure; eleven of them, a space before each, are within a terminal of 80


def _print(found: Report) -> None:
    _print_figures(found)
    known = sum(run.fitted for run in found.runs)
    seen = f"{known} of them, each predicted by a fit without it" if known else "none of them"
    say(f"{counted(len(found.runs), 'run')}, predicted by the coefficients of {found.sku}, fitted to {seen}")
    for remark in found.remarks:
        say(remark)
    say("errors relative to what was recorded; ramps: as a share of the board's power limit")
    for name, goal in GOALS.items():
        title = dict(_SHOWN)[name]
        if name in found.medians:
            met = "met" if found.medians[name] <= goal else "MISSED"
            say(f"{title}: median error {found.medians[name]:.2%}, goal {goal:.0%}: {met}")
    worst = max(found.runs, key=lambda run: abs(run.errors["p99_w"] or 0.0))
    error = worst.errors["p99_w"]
    if error is not None and abs(error) > GOALS["p99_w"]:
        say(f"furthest off at its peaks: {worst.name}, P99 {error:+.1%}")


def _print_figures(found: Report) -> None:
    """A run's figures beside its name; beneath it, where the terminal is too narrow for both. Neither is ever
    cut."""
    titles = [title.partition(" ") for title in ("mean W", *(title for _, title in _SHOWN))]
    rows = [
        ("", [above if below else "" for above, _, below in titles], "bold"),
        ("", [below or above for above, _, below in titles], "bold"),
    ]
    rows += [(run.name, [f"{run.recorded.mean_w:.0f}", *_cells(run)], "") for run in found.runs]
    for title, over in (
        ("median error", found.medians),
        ("90th percentile", found.p90),
        (f"median, {CROWDED} at once and more", found.medians_crowded),
        ("median, boards' rest unknown", found.medians_unknown_board),
        ("median with its sign", found.signed),
    ):
        form = _signed if over is found.signed else "{:.1%}".format
        sizes = [form(over[name]) if name in over else "-" for name, _ in _SHOWN]
        if over:
            rows.append((title, ["", *sizes], "bold"))
    longest = max(len(name) for name, _, _ in rows)
    beside = longest + len(titles) * (_FIGURE + 1) <= console.width
    for name, cells, style in rows:
        figures = "".join(f" {cell:>{_FIGURE}}" for cell in cells)
        lines = [f"{name:<{longest}}{figures}"] if beside else [name, figures] if name else [figures]
        console.print(Text("\n".join(lines), style=style), soft_wrap=True)


def _cells(run: RunFidelity) -> list[str]:
    errors = [run.errors[name] for name, _ in _SHOWN]
    return ["-" if error is None else _signed(error) for error in errors]


def _signed(error: float) -> str:
    """An error in percent, with a decimal where there is room for one."""
    text = f"{error:+.1%}"
    return text if len(text) <= _FIGURE else f"{error:+.0%}"


@contextlib.contextmanager
def _for_operators() -> Iterator[None]:
    """What is wrong with recordings is for whoever gave them."""
    try:
        yield
    except RunsError as error:
        raise ConfigError(str(error)) from error


def _calibration(path: pathlib.Path | None) -> Calibration:
    if path is None:
        return stored()
    try:
        return read(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except CalibrationError as error:
        raise ConfigError(f"{path}: {error}") from error
