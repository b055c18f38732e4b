"""Plots: pictures that an SRE reads at a glance. Drawn off screen, with labels on the lines."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Protocol

import matplotlib as mpl
import numpy as np

from controllers.capping import LADDER
from controllers.policy import CappingPolicy
from runtime.rehearsal import Rehearsed
from schemas.instants import MINUTE
from schemas.topology import Row
from schemas.units import FloatArray
from twin.row import History, Statistics

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_INK = {"no control": "#b04a3a", "POLCA": "#1f5f8b"}
_GREY = "#777777"
_MODES = ("U", "T1", "T2a", "T2b", *LADDER[1:], "B")
_TROUBLE = ("#c27c0e", "#8e44ad", "#16817a")


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
    _legend_above(clocks)
    clocks.margins(y=0.15)
    for axes in (power, clocks):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def plot_rehearsal(rehearsed: Rehearsed, history: History, row: Row, path: pathlib.Path) -> pathlib.Path:
    """Row power of a rehearsal against the budget, what was wrong shaded; below it the policy's mode and the
    clock ceilings in force. Minutes count from the scenario's minute 0. Returns the path written."""
    figure, (power, mode, clocks) = plt.subplots(
        3, 1, figsize=(11, 7.5), sharex=True, height_ratios=(3, 0.9, 1.2), layout="constrained"
    )
    budget_kw = row.budget_w / 1000
    ends_min = (rehearsed.ended - rehearsed.began) / MINUTE
    minutes = history.at_s / 60 - float(history.at_s[-1]) / 60 + ends_min
    power.plot(minutes, history.peak_w / 1000, color="#1f5f8b", lw=1.0)
    power.axhline(budget_kw, color="black", lw=1.0)
    _beside(power, budget_kw, "budget")
    for number, spell in enumerate(rehearsed.spells):
        since, until = ((at - rehearsed.began) / MINUTE for at in (spell.since, spell.until))
        for axes in (power, mode, clocks):
            axes.axvspan(since, until, color=_TROUBLE[number % len(_TROUBLE)], alpha=0.12, lw=0)
        where = 0.03 + 0.06 * number
        power.annotate(
            spell.words,
            (since, where),
            (4, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=_TROUBLE[number % len(_TROUBLE)],
        )
    power.set_ylabel("row power, highest 2 s mean (kW)")
    failed = sum(verdict.ruling == "failed" for verdict in rehearsed.verdicts)
    word = f"{failed} invariants failed" if failed else "no invariant failed"
    power.set_title(f"{rehearsed.scenario} on {row.path} under {rehearsed.policy}: {word}", loc="left")
    power.set_ylim(0, max(budget_kw * 1.15, float(history.peak_w.max()) / 1000 * 1.05))

    entered = [((at - rehearsed.began) / MINUTE, name) for at, name in rehearsed.modes]
    at_min, names = zip(*entered, (ends_min, entered[-1][1]), strict=True)
    shown = [name for name in _MODES if name in names or name not in LADDER[1:]]
    mode.step(at_min, [shown.index(name) for name in names], where="post", color="#b04a3a", lw=1.2)
    mode.set_yticks(range(len(shown)), shown)
    mode.set_ylabel("mode")
    for column, name, ink in (
        (history.high_mhz, "high priority", "#1f5f8b"),
        (history.low_mhz, "low priority", "#6aa84f"),
    ):
        clocks.step(minutes, column, where="post", color=ink, lw=1.4, label=name)
    clocks.set_ylabel("SM clock ceiling (MHz)")
    clocks.set_xlabel("minutes")
    _legend_above(clocks)
    clocks.margins(y=0.15)
    for axes in (power, mode, clocks):
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
    order = [name for name in _MODES if name in names] + [name for name in names if name not in _MODES]
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


def _legend_above(axes: Axes) -> None:
    """Beside the panel and not in it, where ceilings lie at any height."""
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), frameon=False, ncols=2)


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
