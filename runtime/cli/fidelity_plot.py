"""The picture of a serving GPU's fidelity: what the twin predicted against what was recorded."""

from __future__ import annotations

import pathlib

import matplotlib as mpl

from runtime.counting import counted
from schemas.units import FloatArray
from twin.serving.fidelity import Report

mpl.use("Agg")

from matplotlib import pyplot as plt

_RECORDED, _PREDICTED, _PEAK = "#777777", "#1f5f8b", "#b04a3a"


def plot_fidelity(
    report: Report, shown: str, recorded_w: FloatArray, predicted_w: FloatArray, path: pathlib.Path
) -> pathlib.Path:
    """Predicted against recorded power of each run, the spread of each figure's errors, and the course of
    one run, `shown`, a reading a second. Returns the path written."""
    figure = plt.figure(figsize=(11, 7.5), layout="constrained")
    against, errors, course = figure.subplot_mosaic([["against", "errors"], ["course", "course"]]).values()
    ink = {"p50_w": _PREDICTED, "p99_w": _PEAK}
    for name, colour in ink.items():
        true = [getattr(run.recorded, name) for run in report.runs]
        guess = [getattr(run.predicted, name) for run in report.runs]
        against.plot(true, guess, "o", ms=4, alpha=0.7, color=colour, label=name[:3].upper())
    ends = against.get_xlim()
    against.plot(ends, ends, color=_RECORDED, lw=1.0)
    against.set_xlabel("recorded (W)")
    against.set_ylabel("predicted (W)")
    against.set_title(counted(len(report.runs), "run"), loc="left")
    against.legend(frameon=False, loc="upper left")
    names = [
        ("mean_w", "mean W"),
        ("energy_j", "energy"),
        ("p50_w", "P50"),
        ("p95_w", "P95"),
        ("p99_w", "P99"),
    ]
    names += [("ttft_mean_s", "TTFT"), ("tpot_mean_s", "TPOT")]
    spread = [[100 * e for run in report.runs if (e := run.errors[name]) is not None] for name, _ in names]
    errors.axhspan(-2, 2, color="#e8e8e8", lw=0)
    errors.boxplot(
        spread,
        tick_labels=[title for _, title in names],
        whis=(5, 95),
        sym="",
        medianprops={"color": _PEAK},
    )
    errors.set_ylabel("error (%)")
    errors.set_title("box: quartiles, whiskers: 5 to 95 %; grey: ±2 %", loc="left", fontsize=9)
    seconds = min(recorded_w.size, predicted_w.size, 180)
    course.plot(recorded_w[:seconds], color=_RECORDED, lw=1.2, label="recorded")
    course.plot(predicted_w[:seconds], color=_PREDICTED, lw=1.0, label="predicted")
    course.set_xlabel(f"seconds into {shown}")
    course.set_ylabel("board power (W)")
    course.set_ylim(bottom=0)
    course.legend(frameon=False, loc="lower left", ncols=2)
    for axes in (against, errors, course):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
