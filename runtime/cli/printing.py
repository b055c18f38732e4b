"""Printing: answers for people (tables, trees) and for programs (JSON)."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from runtime.ledger.audit import Alert, Holding, Walk
from runtime.summary import Summary
from schemas.commands import Brake, Command, LimitPower, LockClocks
from schemas.decisions import Decision
from schemas.instants import to_text
from schemas.outcomes import Outcome, Verified
from schemas.samples import FeedSample, GpuFrame, RackSample

Json = Annotated[bool, Parameter(name="--json", negative="")]
"""The switch every answering command has."""

console = Console(highlight=False)


def emit(answer: Any) -> None:
    """One answer as one line of JSON on standard output."""
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")


def progress(unit: str) -> Progress:
    """A progress bar on standard error, silent where that is no terminal."""
    error = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        console=error,
        transient=True,
        disable=not error.is_terminal,
    )


def watts(value: float | None) -> str:
    """``251.3 kW``, ``402 W``, or ``unknown``."""
    if value is None:
        return "unknown"
    return f"{value / 1000:.1f} kW" if abs(value) >= 10_000 else f"{value:.0f} W"


def share(value: float | None) -> str:
    """A ratio with three decimals, or ``unknown``."""
    return "unknown" if value is None else f"{value:.3f}"


def span(seconds: float) -> str:
    """``42 s``, ``3.5 min``, ``2.1 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def asked(command: Command) -> str:
    """What a command asks for, in words."""
    match command:
        case LockClocks(max_mhz=mhz, path=path):
            return f"hold SM clocks at or below {mhz} MHz ({path.replace('_', ' ')})"
        case LimitPower(limit_w=limit, path=path):
            return f"hold GPU power at or below {limit:.0f} W ({path.replace('_', ' ')})"
        case Brake(max_mhz=mhz):
            return f"power brake, SM clocks at or below {mhz} MHz"
    return type(command).__name__


def print_walk(walk: Walk) -> None:
    """One command from the samples it rests on to its measured effect, as a tree to read downwards."""
    command, decision = walk.command, walk.decision
    tree = Tree(Text(f"{type(command).__name__} {command.id}", style="bold"))
    tree.add(f"[bold]asked[/]     {command.target}: {asked(command)}")
    lease = command.lease
    tree.add(
        f"          at {to_text(command.at)}, leased for {span((lease.expires_at - lease.issued_at) / 1000)}, "
        f"then {lease.on_expiry.replace('_', ' ')}; epoch {lease.epoch}"
        + (f"; with {walk.siblings} more commands of the same decision" if walk.siblings else "")
    )
    because = tree.add(f"[bold]decided[/]   {decision.policy}, mode {decision.mode}: {decision.because}")
    because.add(f"decision {decision.id} at {to_text(decision.at)}")
    for overruled in decision.overruled:
        because.add(f"overruled: {overruled}")
    for pin in walk.pins:
        because.add(f"pin by {pin.by} until {to_text(pin.expires_at)}: {pin.reason}")
    for emergency in walk.emergencies:
        because.add(f"emergency {emergency.kind} {emergency.phase} at {to_text(emergency.at)}: {emergency.because}")
    for forecast in walk.forecasts:
        last = forecast.values[-1]
        because.add(
            f"forecast ({forecast.model}): peak within {forecast.horizons_s[-1]:.0f} s "
            f"{watts(last[0])} at q{forecast.quantiles[0]:g}, {watts(last[-1])} at q{forecast.quantiles[-1]:g}"
        )
    if walk.rollup is not None:
        rollup = walk.rollup
        known = because.add(
            f"[bold]saw[/]       row at {watts(rollup.power_w)} of {watts(rollup.budget_w)} ({rollup.basis}, "
            f"{rollup.hosts_known} of {rollup.hosts_total} hosts known) at {to_text(rollup.at)}"
        )
        for sample in walk.samples[:6]:
            known.add(f"[bold]from[/]      {_sample(sample)}")
        more = len(walk.samples) - 6 if len(walk.samples) > 6 else 0
        if more or walk.outside:
            known.add(f"          and {more + walk.outside} more samples")
    became = tree.add("[bold]became[/]" if walk.outcomes else "[bold]became[/]    nothing yet: no outcome in the ledger")
    for outcome in walk.outcomes:
        became.add(f"{to_text(outcome.at)}  {_outcome(outcome)}")
    if walk.row_after is not None and walk.rollup is not None:
        before, after = walk.rollup.power_w, walk.row_after.power_w
        if before is not None and after is not None:
            tree.add(
                f"[bold]effect[/]    row {watts(before)} → {watts(after)} "
                f"({after - before:+,.0f} W over {span((walk.row_after.at - walk.rollup.at) / 1000)})"
            )
    console.print(tree)


def _sample(sample: Any) -> str:
    match sample:
        case FeedSample(power_w=power):
            return f"{sample.subject}: {watts(power)} on the meter at {to_text(sample.at)} ({sample.source})"
        case GpuFrame():
            known = [reading for reading in (sample.best_power_w[-1] if sample.best_power_w else ()) if reading is not None]
            return f"{sample.subject}: {watts(sum(known)) if known else 'unknown'} over {len(known)} GPUs at {to_text(sample.at)}"
        case RackSample():
            return f"{sample.subject}: wall power of {len(sample.hosts)} hosts at {to_text(sample.at)}"
    return f"{type(sample).__name__} {sample.subject} at {to_text(sample.at)}"


def _outcome(outcome: Outcome) -> str:
    text = type(outcome).__name__.lower()
    if isinstance(outcome, Verified):
        if outcome.observed is not None:
            text += f", read back {outcome.observed:.0f}"
        if outcome.effect_w is not None:
            text += f", its GPUs {outcome.effect_w:+,.0f} W"
    return f"{text}: {outcome.detail}" if outcome.detail else text


def print_holdings(holdings: tuple[Holding, ...]) -> None:
    """Who held each host, one line a host."""
    table = Table("host", "state", "by", "since", "lease ends", box=None)
    for holding in holdings:
        command = holding.command
        table.add_row(
            holding.target,
            holding.state,
            f"{asked(command)}  [dim]{command.id}[/]" if command else "",
            to_text(command.at) if command else "",
            to_text(command.lease.expires_at) if command else "",
        )
    console.print(table)


def print_alerts(alerts: tuple[Alert, ...]) -> None:
    """Emergencies, one line each, by the time they were raised."""
    table = Table("raised", "where", "what", "now", "worst", "limit", "because", box=None)
    for alert in alerts:
        table.add_row(
            to_text(alert.raised_at),
            alert.subject,
            alert.kind,
            f"{alert.phase} {to_text(alert.at)[11:19]}",
            "" if alert.worst is None else f"{alert.worst:,.4g}",
            "" if alert.limit is None else f"{alert.limit:,.4g}",
            alert.because,
        )
    console.print(table)


def print_decision(decision: Decision) -> None:
    """One decision with what it wants in force, hosts of the same wish on one line."""
    console.print(Text(f"{decision.policy}, mode {decision.mode}", style="bold"))
    console.print(f"  {decision.because}")
    if decision.refusal:
        console.print(f"  refuses: {decision.refusal}")
    for overruled in decision.overruled:
        console.print(f"  overruled: {overruled}")
    wishes: dict[str, list[str]] = {}
    for setting in decision.desired:
        wish = f"{'brake to' if setting.brake else 'at or below'} {setting.max_mhz} MHz by {setting.path.replace('_', ' ')}"
        wishes.setdefault(f"{wish}, on expiry {setting.on_expiry.replace('_', ' ')} ({setting.owner})", []).append(setting.target)
    for wish, hosts in wishes.items():
        console.print(f"  {len(hosts):3d} hosts {wish}: {hosts[0]}{' …' if len(hosts) > 1 else ''}")


def print_summaries(summaries: list[tuple[str, Summary]]) -> None:
    """Stretches of time beside each other, one column each."""
    table = Table("", *(name for name, _ in summaries), box=None, header_style="bold", padding=(0, 2))
    for index in range(2, 1 + len(summaries)):
        table.columns[index].justify = "left"

    def line(title: str, *cells: str) -> None:
        table.add_row(title, *cells)

    results = [summary for _, summary in summaries]
    line("span", *(span((s.end - s.start) / 1000) for s in results))
    line("peak power", *(f"{watts(s.peak_w)}  ({share(s.peak_ratio)} of {watts(s.budget_w)})" for s in results))
    line("over budget", *(span(s.over_budget_s) for s in results))
    line("power unknown", *(span(s.unknown_s) for s in results))
    line("power brakes", *(str(s.brakes) for s in results))
    line("time in mode", *(", ".join(f"{m} {span(t)}" for m, t in s.modes_s.items()) for s in results))
    line(
        "capped host-minutes",
        *(f"low priority {s.capped_minutes['low']:.0f}, high {s.capped_minutes['high']:.0f}" for s in results),
    )
    line("commands", *(", ".join(f"{n} {k}" for k, n in sorted(s.commands.items())) or "none" for s in results))
    line("outcomes", *(", ".join(f"{n} {k}" for k, n in sorted(s.outcomes.items())) or "none" for s in results))
    line("emergencies", *(", ".join(f"{n} {k}" for k, n in sorted(s.emergencies.items())) or "none" for s in results))
    line("refused to decide", *(span(s.refusals_s) for s in results))
    line("readings withheld", *(", ".join(f"{n} {k}" for k, n in sorted(s.verdicts.items())) or "none" for s in results))
    console.print(table)
