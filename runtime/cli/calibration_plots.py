"""Pictures of what the twin's training nodes and clock axes were learned from, and what they make of it."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np

from twin.clocks.axis import SYNTHETIC, ClockCoefficients
from twin.clocks.fit import Sweep, slowed, tell
from twin.training.fidelity import course, simulate
from twin.training.fit import SEED, TrainingFit
from twin.training.recorded import WallPower

mpl.use("Agg")

from matplotlib import pyplot as plt

_REAL, _MADE, _OTHER = "#777777", "#1f5f8b", "#b04a3a"


def plot_training(learned: TrainingFit, recording: WallPower, path: pathlib.Path) -> pathlib.Path:
    """The power of one meter and of all together, recorded and simulated, and how it is distributed.
    Returns the path written."""
    meters = list(range(len(recording.hosts)))
    made = simulate(
        learned.job,
        learned.spread,
        learned.meter,
        nodes=len(meters),
        seconds=900.0,
        seed=SEED,
        gain=learned.gain,
    )
    figure = plt.figure(figsize=(11, 7.5), layout="constrained")
    one, share, total = figure.subplot_mosaic(
        [["one", "share"], ["total", "total"]], width_ratios=(2, 1)
    ).values()
    # Around the second evaluation's begin, in both.
    shape = learned.job.iteration
    begins = float(learned.timetable.troughs[learned.timetable.last][1])
    twice = learned.job.ramp_s + 2.0 * shape.seconds * learned.timetable.every + learned.timetable.pause_s
    in_made = twice - shape.fill_s - shape.exchange_s / 2.0
    for data, colour, name, back in (
        (recording, _REAL, "recorded", begins),
        (made, _MADE, "simulated", in_made),
    ):
        ours = (data.at_s[0] > back - 60.0) & (data.at_s[0] < back + 60.0)
        one.plot(
            data.at_s[0][ours] - back,
            data.watts[0][ours] / 1000,
            ".-",
            ms=4,
            lw=1.0,
            color=colour,
            label=name,
        )
        power = course(data, meters) / 1000
        seconds = np.arange(power.size) * 2.0 - back
        window = (seconds > -60.0) & (seconds < 300.0)
        total.plot(seconds[window], power[window], lw=1.2, color=colour, label=name)
        singles = np.concatenate(data.watts) / 1000
        share.plot(np.sort(singles), np.linspace(0.0, 100.0, singles.size), color=colour, lw=1.4)
    one.set_title("one node's meter", loc="left")
    one.set_ylabel("wall power (kW)")
    one.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0, ncols=2)
    share.set_title("readings of all meters below", loc="left")
    share.set_xlabel("wall power (kW)")
    share.set_ylabel("share (%)")
    share.set_xlim(5.0, 7.6)
    total.set_title(f"{len(meters)} meters together", loc="left")
    total.set_ylabel("wall power (kW)")
    total.set_xlabel("seconds from the begin of an evaluation")
    for axes in (one, share, total):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def plot_clocks(coefficients: ClockCoefficients, sweeps: Sequence[Sweep], path: pathlib.Path) -> pathlib.Path:
    """What is left of the dynamic power at a clock: each board's axis, and the readings of workloads that it
    slowed down, beside the synthetic axis. Returns the path written."""
    shown = [sweep for sweep in sweeps if sweep.board in coefficients.boards]
    figure, panels = plt.subplots(
        1, len(shown), figsize=(11, 4.2), sharey=True, layout="constrained", squeeze=False
    )
    clocks = np.linspace(0.0, 1.0, 201)
    for axes, sweep in zip(panels[0], shown, strict=True):
        board = coefficients.boards[sweep.board]
        which = np.flatnonzero(slowed(sweep))
        part = sweep.of(which)
        told = tell(part, board.axis, board.static_w)
        seen = ~np.isnan(part.seconds) & (told.clock_ratio < 1.0)
        # What was measured, at the clock the model gives it: over what the model says at full clock.
        full = np.nanmax(told.watts, axis=1, keepdims=True) - board.static_w
        measured = (part.watts - board.static_w) / full
        axes.plot(told.clock_ratio[seen], measured[seen], ".", ms=3, color=_REAL, alpha=0.6)
        axes.plot(clocks, board.axis.power_left(clocks), color=_MADE, lw=1.8)
        axes.plot(clocks, SYNTHETIC.power_left(clocks), color=_OTHER, lw=1.4, ls="--")
        axes.set_title(f"{sweep.board.upper()}, {which.size} workloads", loc="left")
        axes.set_xlabel("clock, share of the highest")
        axes.set_xlim(0.0, 1.02)
        axes.set_ylim(0.0, 1.15)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("dynamic power left")
    panels[0][0].text(0.04, 1.06, "fitted", color=_MADE)
    panels[0][0].text(0.04, 0.98, "synthetic: 0.35 x + 0.65 x$^{2.5}$", color=_OTHER)
    panels[0][0].text(0.04, 0.90, "measured, at the fit's clock", color=_REAL)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
