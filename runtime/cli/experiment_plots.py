"""Pictures of an experiment: what more servers cost under each policy, and how POLCA bears a worse path."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import matplotlib as mpl

from runtime.counting import counted
from runtime.experiments.polca import NO_CAP, OBJECTIVES, OURS, POLCA, Figure, Rate, Summary

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_LOOKS = {
    POLCA: ("#1f5f8b", "o"),
    "POLCA with forecast": ("#16817a", "s"),
    "POLCA, own clocks": ("#8e44ad", "D"),
    OURS: ("#7cb342", "v"),
    "1-Thresh-Low-Pri": ("#c27c0e", "x"),
    "1-Thresh-All": ("#777777", "+"),
    NO_CAP: ("#b04a3a", "*"),
}
"""Colour and mark of each policy."""


def plot_added(summaries: Sequence[Summary], folder: pathlib.Path) -> list[tuple[str, str]]:
    """Brakes and latency against the servers added, a line for each policy; files and captions. Nothing
    where nothing was swept."""
    rows = [each for each in summaries if each.sweep == "added servers"]
    if not rows:
        return []
    figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    _lines(axes, rows, "brakes_a_week", 1.0, confidence=False)
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(-0.2, None)
    axes.set_ylabel("power brakes a week of such hours")
    axes.set_xlabel("servers added to a row provisioned for 40 (%)")
    hours = 24 * max(each.days / each.runs for each in rows)
    axes.set_title(f"How often the row was braked about the week's busiest {hours:.3g} hours", loc="left")
    axes.legend(frameon=False, ncols=2)
    figure.savefig(folder / "brakes.png", dpi=130)
    plt.close(figure)

    figure, grid = plt.subplots(2, 2, figsize=(11, 7.5), sharex=True, layout="constrained")
    for axes, (field, bound, source) in zip(grid.flat, OBJECTIVES, strict=True):
        priority, percentile = field.split("_")
        _lines(axes, rows, field, 100.0)
        highest = max(getattr(each, field).mean for each in rows if each.policy in (POLCA, OURS)) * 100
        top = max(bound * 115, highest * 1.3) if highest > bound * 25 else highest * 1.3
        axes.set_ylim(-0.04 * max(top, 0.1), max(top, 0.1))
        if bound * 100 < top:
            axes.axhline(bound * 100, color="black", lw=0.8, ls="--")
        axes.set_title(
            f"{priority} priority, {percentile.upper()}; objective: below {bound:.0%} ({source})",
            loc="left",
            fontsize=10,
        )
        axes.set_ylabel("longer than uncapped (%)")
    for axes in grid[1]:
        axes.set_xlabel("servers added (%)")
    grid[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(folder / "latency.png", dpi=130)
    plt.close(figure)
    return [
        (
            "brakes.png",
            (
                "Power brakes against servers added, by policy: as many as a week of the busiest "
                f"{hours:.3g} hours would have. Not the whole week's, whose other hours may brake a row that "
                "these leave alone: the tables of whole weeks decide"
            ),
        ),
        (
            "latency.png",
            "Latency against servers added, by policy and priority; 95 % intervals of POLCA and of ours",
        ),
    ]


def plot_paths(summaries: Sequence[Summary], folder: pathlib.Path) -> list[tuple[str, str]]:
    """How POLCA bears other thresholds, a slower or lossy path and more power: its peak and latency."""
    sweeps = ("thresholds", "out-of-band latency", "lost commands", "workload power")
    chosen = {
        sweep: [each for each in summaries if each.sweep == sweep and each.policy == POLCA]
        for sweep in sweeps
    }
    if not all(chosen.values()):
        return []
    figure, grid = plt.subplots(2, 4, figsize=(13, 5.6), sharey="row", layout="constrained")
    for column, sweep in enumerate(sweeps):
        rows = chosen[sweep]
        places = range(len(rows))
        peak, slow = grid[0, column], grid[1, column]
        # Steps of unlike kinds: no line leads from one to the next.
        peak.plot(places, [each.peak_ratio for each in rows], "o", color=_LOOKS[POLCA][0])
        peak.axhline(1.0, color="black", lw=0.8)
        for place, each in zip(places, rows, strict=True):
            word = counted(each.brakes, "brake")
            peak.annotate(
                word, (place, each.peak_ratio), (0, 7), textcoords="offset points", ha="center", fontsize=8
            )
        for field, name, colour in (
            ("low_p50", "low, P50", "#c27c0e"),
            ("high_p50", "high, P50", _LOOKS[POLCA][0]),
        ):
            values = [getattr(each, field) for each in rows]
            slow.errorbar(
                list(places), [v.mean * 100 for v in values], [(v.half or 0.0) * 100 for v in values],
                fmt="o", capsize=3, color=colour, label=name,
            )  # fmt: skip
        peak.set_title(sweep, loc="left")
        slow.set_xticks(list(places), [each.setting for each in rows], rotation=25, ha="right")
        peak.set_xticks([])
        peak.margins(x=0.15, y=0.25)
        slow.margins(x=0.15)
    grid[0, 0].set_ylabel("highest 2 s mean, of budget")
    grid[1, 0].set_ylabel("longer than uncapped (%)")
    grid[1, 0].legend(frameon=False)
    figure.savefig(folder / "paths.png", dpi=130)
    plt.close(figure)
    return [("paths.png", "POLCA at +30 %: peak and latency under other thresholds, paths and power")]


def _lines(axes: Axes, rows: Sequence[Summary], field: str, scale: float, *, confidence: bool = True) -> None:
    """A line for each policy, a little beside each other, since many lie on one another. The intervals of the
    study's baselines, which leave the panel where they fail, would hide the rest: they are in the tables."""
    policies = list(dict.fromkeys(each.policy for each in rows))
    for place, policy in enumerate(policies):
        aside = 0.25 * (place - (len(policies) - 1) / 2)
        colour, mark = _LOOKS[policy]
        mine = [each for each in rows if each.policy == policy]
        values: list[Figure | Rate] = [getattr(each, field) for each in mine]
        halves = [value.half or 0.0 if isinstance(value, Figure) else 0.0 for value in values]
        told = confidence and not policy.startswith(("1-Thresh", NO_CAP))
        axes.errorbar(
            [_added(each) + aside for each in mine],
            [value.mean * scale for value in values],
            [half * scale for half in halves] if told else None,
            label=policy,
            color=colour,
            marker=mark,
            ms=5,
            lw=1.5,
            elinewidth=0.7,
            capsize=2,
            alpha=0.85,
        )


def _added(each: Summary) -> float:
    return float(each.setting.strip("+ %"))
