"""Plots: pictures that an SRE reads at a glance. Drawn off screen, with labels on the lines."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Protocol

import matplotlib as mpl
import numpy as np

from controllers.policy import CappingPolicy
from schemas.topology import Row
from schemas.units import FloatArray
from twin.row import History, Statistics

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_INK = {"no control": "#b04a3a", "POLCA": "#1f5f8b"}
_GREY = "#777777"


class Course(Protocol):
    """An arm of a comparison, as far as a plot needs it."""

    @property
    def name(self) -> str: ...

    @property
    def history(self) -> History: ...

    @property
    def plant(self) -> Statistics: ...


def plot_demo(arms: Sequence[Course], row: Row, policy: CappingPolicy, path: pathlib.Path) -> pathlib.Path:
    """Row power of each arm against the budget and the policy's thresholds, and below it the clock
    ceilings that POLCA held. Returns the path written."""
    figure, (power, clocks) = plt.subplots(
        2, 1, figsize=(11, 6.5), sharex=True, height_ratios=(3, 1.2), layout="constrained"
    )
    budget_kw = row.budget_w / 1000
    for arm in arms:
        minutes = arm.history.at_s / 60
        power.plot(minutes, arm.history.peak_w / 1000, color=_INK.get(arm.name), lw=1.0, label=arm.name)
    levels = (
        (1.0, "budget (breaker)", "-"),
        (policy.t2.enter, f"T2 {policy.t2.enter:.2f}", "--"),
        (policy.t1.enter, f"T1 {policy.t1.enter:.2f}", "--"),
    )
    for level, name, style in levels:
        power.axhline(level * budget_kw, color="black" if level == 1.0 else _GREY, lw=1.0, ls=style)
        _beside(power, level * budget_kw, name)
    for arm in arms:
        if arm.plant.tripped_at is not None:
            dark = float(arm.history.at_s[int(np.argmax(arm.history.power_w <= 0.0))]) / 60
            power.annotate(
                f"{arm.name}: breaker trips",
                (dark, budget_kw),
                (8, 14),
                textcoords="offset points",
                color=_INK.get(arm.name),
                arrowprops={"arrowstyle": "-", "color": _INK.get(arm.name)},
            )
    power.set_ylabel("row power, highest 2 s mean (kW)")
    power.set_title(f"{row.path}: {len(row.hosts)} servers on a budget of {budget_kw:.0f} kW", loc="left")
    power.legend(loc="lower left", frameon=False, ncols=len(arms))
    power.set_ylim(0, budget_kw * 1.15)

    held = arms[-1].history
    for column, name, ink in (
        (held.high_mhz, "high priority", "#1f5f8b"),
        (held.low_mhz, "low priority", "#6aa84f"),
    ):
        clocks.step(held.at_s / 60, column, where="post", color=ink, lw=1.4, label=name)
    clocks.set_ylabel("SM clock ceiling (MHz)")
    clocks.set_xlabel("simulated minutes")
    clocks.legend(loc="lower left", frameon=False, ncols=2)
    clocks.margins(y=0.15)
    for axes in (power, clocks):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def plot_replay(
    at_s: FloatArray,
    power_w: FloatArray,
    budget_w: float,
    modes: Sequence[str],
    title: str,
    path: pathlib.Path,
) -> pathlib.Path:
    """Row power of a replay (unknown left blank) against its budget, with the policy's mode below.
    Arrays of shape (beats,). Returns the path written."""
    figure, (power, mode) = plt.subplots(
        2, 1, figsize=(11, 5.5), sharex=True, height_ratios=(4, 1), layout="constrained"
    )
    power.plot(at_s / 60, power_w / 1000, color="#1f5f8b", lw=0.8)
    power.axhline(budget_w / 1000, color="black", lw=1.0)
    _beside(power, budget_w / 1000, "budget")
    power.set_ylabel("row power (kW)")
    power.set_title(title, loc="left")
    power.set_ylim(bottom=0)
    names = sorted(set(modes), key=list(modes).index)
    order = [name for name in ("U", "T1", "T2a", "T2b", "B") if name in names] + [
        name for name in names if name not in ("U", "T1", "T2a", "T2b", "B")
    ]
    mode.step(at_s / 60, [order.index(name) for name in modes], where="post", color="#b04a3a", lw=1.0)
    mode.set_yticks(range(len(order)), order)
    mode.set_ylabel("mode")
    mode.set_xlabel("minutes")
    for axes in (power, mode):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _beside(axes: Axes, level: float, text: str) -> None:
    """A level's name at the right end of its line."""
    axes.annotate(
        text,
        (1.0, level),
        (4, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
    )
