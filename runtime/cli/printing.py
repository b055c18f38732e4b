"""Printing: answers for people (tables, trees) and for programs (JSON)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from runtime.counting import counted
from runtime.ledger.audit import Alert, Holding, Walk
from runtime.ledger.history import History
from schemas.commands import Brake, Command, LimitPower, LockClocks
from schemas.decisions import Decision
from schemas.envelope import Event
from schemas.instants import to_text
from schemas.outcomes import Outcome, Verified
from schemas.samples import FeedSample, GpuFrame, RackSample

if TYPE_CHECKING:  # it brings the whole loop, which who asks the ledger need not wait for
    from runtime.summary import Summary

Json = Annotated[bool, Parameter(name="--json", negative="")]
"""The switch every answering command has."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
"""Standard output. Where nobody is watching lines are long, so that a pipe gets ids whole."""


def say(text: str) -> None:
    """A sentence on a line of its own, however long; brackets in it are brackets."""
    console.print(text, markup=False, soft_wrap=True)


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
    command, decision, lease = walk.command, walk.decision, walk.command.lease
    tree = Tree(Text(f"{type(command).__name__} {command.id}", style="bold"))
    tree.add(_line("asked", f"{command.target}: {asked(command)}"))
    leased = span((lease.expires_at - lease.issued_at) / 1000)
    siblings = f"; with {walk.siblings} more commands of the same decision" if walk.siblings else ""
    tree.add(
        _line(
            "",
            f"at {to_text(command.at)}, leased for {leased}, then {_plain(lease.on_expiry)}; "
            f"epoch {lease.epoch}{siblings}",
        )
    )
    because = tree.add(_line("decided", f"{decision.policy}, mode {decision.mode}: {decision.because}"))
    because.add(Text(f"decision {decision.id} at {to_text(decision.at)}"))
    for overruled in decision.overruled:
        because.add(Text(f"overruled: {overruled}"))
    for pin in walk.pins:
        because.add(Text(f"pin by {pin.by} until {to_text(pin.expires_at)}: {pin.reason}"))
    for emergency in walk.emergencies:
        what = f"{_plain(emergency.kind)} {emergency.phase}"
        because.add(Text(f"emergency {what} at {to_text(emergency.at)}: {emergency.because}"))
    for forecast in walk.forecasts:
        low, high, last = forecast.quantiles[0], forecast.quantiles[-1], forecast.values[-1]
        because.add(
            Text(
                f"forecast ({forecast.model}): peak within {forecast.horizons_s[-1]:.0f} s "
                f"{watts(last[0])} at q{low:g}, {watts(last[-1])} at q{high:g}"
            )
        )
    if walk.rollup is not None:
        rollup = walk.rollup
        known = because.add(
            _line(
                "saw",
                f"row at {watts(rollup.power_w)} of {watts(rollup.budget_w)} ({rollup.basis}, "
                f"{rollup.hosts_known} of {counted(rollup.hosts_total, 'host')} known) "
                f"at {to_text(rollup.at)}",
            )
        )
        for sample in walk.samples[:_SHOWN]:
            known.add(_line("from", _sample(sample)))
        more = max(0, len(walk.samples) - _SHOWN) + walk.outside
        if more:
            known.add(_line("", f"and {more} more samples"))
    became = tree.add(_line("became", "" if walk.outcomes else "nothing yet: no outcome in the ledger"))
    for outcome in walk.outcomes:
        became.add(Text(f"{to_text(outcome.at)}  {_outcome(outcome)}"))
    if walk.row_after is not None and walk.rollup is not None:
        before, after = walk.rollup.power_w, walk.row_after.power_w
        if before is not None and after is not None:
            over = span((walk.row_after.at - walk.rollup.at) / 1000)
            tree.add(
                _line(
                    "effect", f"row {watts(before)} → {watts(after)} ({after - before:+,.0f} W over {over})"
                )
            )
    console.print(tree)


_SHOWN = 6  # samples of a walk that are told one by one


def _line(head: str, text: str) -> Text:
    """A line of the walk: its head in a column of its own."""
    return Text.assemble((f"{head:10}", "bold"), text)


def _plain(word: str) -> str:
    """``safe_share`` as people say it."""
    return word.replace("_", " ")


def _sample(sample: Event) -> str:
    match sample:
        case FeedSample(power_w=power):
            return f"{sample.subject}: {watts(power)} on the meter at {to_text(sample.at)} ({sample.source})"
        case GpuFrame():
            newest = sample.best_power_w[-1] if sample.best_power_w else ()
            known = [reading for reading in newest if reading is not None]
            total = watts(sum(known)) if known else "unknown"
            return (
                f"{sample.subject}: {total} over {len(known)} GPUs at {to_text(sample.at)} ({sample.source})"
            )
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
    """What held each host: in a line, and beneath it by which command and until when."""
    for holding in holdings:
        command = holding.first or holding.command
        lease = holding.command.lease if holding.command else None
        by = f" by {type(command).__name__} {command.id}" if command else ""
        until = f"; its lease ends {to_text(lease.expires_at)}" if lease else ""
        _entry(
            f"{holding.target}  {holding.state}{f'  {asked(command)}' if command else ''}",
            f"since {to_text(holding.since)}{by}{until}",
            holding.detail,
            *_besides(holding),
        )


def _entry(head: str, *beneath: str) -> None:
    """A line, and what belongs to it beneath. Nothing is cut off, however narrow the terminal."""
    say(head)
    for text in filter(None, beneath):
        say(f"    {text}")


def _besides(holding: Holding) -> Iterator[str]:
    if holding.pending is not None:
        yield f"asked since and not in force yet: {asked(holding.pending)} ({holding.pending.id})"
    for pin in holding.pins:
        yield f"pinned at {pin.max_mhz} MHz by {pin.by} until {to_text(pin.expires_at)}: {pin.reason}"


def print_alerts(alerts: tuple[Alert, ...]) -> None:
    """Emergencies by the time they were raised: what became of each in a line, and beneath it why."""
    for alert in alerts:
        worst = "" if alert.worst is None else f", at worst {alert.worst:,.4g}"
        limit = "" if alert.limit is None else f" (limit {alert.limit:,.4g})"
        _entry(
            f"{to_text(alert.raised_at)}  {alert.subject}  {_plain(alert.kind)}, "
            f"{alert.phase} {to_text(alert.at)[11:19]}{worst}{limit}",
            alert.because,
        )


def print_history(told: History) -> None:
    """A row's moments in their order, and what stood and became of commands meanwhile."""
    say(f"{told.row} from {to_text(told.since)} to {to_text(told.until)}")
    if told.before is not None:
        say(f"  before: mode {told.before.mode} since {to_text(told.before.at)}")
    for moment in told.moments:
        sent = ", ".join(f"{count} {kind}" for kind, count in moment.commands.items())
        cover = "unknown" if moment.coverage_ratio is None else f"{moment.coverage_ratio:.0%}"
        _entry(
            f"{to_text(moment.at)}  {moment.mode:3}  {watts(moment.power_w)} of {watts(moment.budget_w)}, "
            f"{cover} read{f'; sent {sent}' if sent else ''}",
            moment.because,
            f"refused: {moment.refusal}" if moment.refusal else "",
            "; ".join(
                f"{counted(each.hosts, 'host')} {'braked to' if each.brake else 'at or below'} "
                f"{each.max_mhz} MHz"
                for each in moment.wanted
            ),
        )
    became = ", ".join(f"{count} {kind.lower()}" for kind, count in told.outcomes.items())
    say(f"  outcomes: {became or 'none'}")
    say(f"  emergencies: {len(told.troubles) or 'none'}")
    print_alerts(told.troubles)


def print_decision(decision: Decision) -> None:
    """One decision with what it wants in force, hosts of the same wish on one line."""
    console.print(Text(f"{decision.policy}, mode {decision.mode}", style="bold"))
    say(f"  {decision.because}")
    if decision.refusal:
        say(f"  refuses: {decision.refusal}")
    for overruled in decision.overruled:
        say(f"  overruled: {overruled}")
    wishes: dict[str, list[str]] = {}
    for setting in decision.desired:
        ceiling = f"{'brake to' if setting.brake else 'at or below'} {setting.max_mhz} MHz"
        wish = f"{ceiling} by {_plain(setting.path)}, on expiry {_plain(setting.on_expiry)} ({setting.owner})"
        wishes.setdefault(wish, []).append(setting.target)
    for wish, hosts in wishes.items():
        say(f"  {counted(len(hosts), 'host'):>9} {wish}: {hosts[0]}{' …' if len(hosts) > 1 else ''}")


def print_summaries(summaries: list[tuple[str, Summary]]) -> None:
    """Stretches of time beside each other, one column each."""
    table = Table("", *(name for name, _ in summaries), box=None, header_style="bold", padding=(0, 2))
    results = [summary for _, summary in summaries]

    def line(title: str, *cells: str) -> None:
        table.add_row(title, *cells)

    def tallied(counts: Iterable[dict[str, int]]) -> Iterator[str]:
        for each in counts:
            yield ", ".join(f"{number:,} {_plain(kind)}" for kind, number in sorted(each.items())) or "none"

    line("span", *(span((s.end - s.start) / 1000) for s in results))
    line(
        "peak power", *(f"{watts(s.peak_w)} ({share(s.peak_ratio)} of {watts(s.budget_w)})" for s in results)
    )
    line("over budget", *(span(s.over_budget_s) for s in results))
    line("power unknown", *(span(s.unknown_s) for s in results))
    line("power brakes", *(str(s.brakes) for s in results))
    line("time in mode", *(", ".join(f"{m} {span(t)}" for m, t in s.modes_s.items()) for s in results))
    for priority in ("low", "high"):
        line(f"capped host-minutes, {priority}", *(f"{s.capped_minutes[priority]:,.0f}" for s in results))
    line("commands", *tallied(s.commands for s in results))
    line("outcomes", *tallied(s.outcomes for s in results))
    line("emergencies", *tallied(s.emergencies for s in results))
    line("refused to decide", *(span(s.refusals_s) for s in results))
    line("readings withheld", *tallied(s.verdicts for s in results))
    console.print(table)
