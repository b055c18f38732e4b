"""`windrow rehearse`: a scenario played on a site's rows, simulated, under the real pipeline, and judged."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from runtime.cli.demo import SCENARIOS
from runtime.cli.out_folder import emptied
from runtime.cli.plots import plot_rehearsal
from runtime.cli.printing import Json, console, emit, progress, say, share, span, watts
from runtime.cli.seeds import Seed
from runtime.cli.stopping import broken_off_in_order
from runtime.clock import SystemClock
from runtime.config import ConfigError, Setup, load_setup, read_text
from runtime.counting import counted
from runtime.rehearsal import Rehearsed, alone, minutes_of, play
from runtime.workers import spread
from schemas.instants import MINUTE, Instant
from schemas.toml_tables import not_among
from schemas.topology import Row
from twin.scenario import Scenario, ScenarioError, read_scenario, shipped
from twin.trouble import unplayable

Listed = Annotated[bool, Parameter(name="--list", negative="")]

_INK = {"passed": "green", "failed": "bold red", "not_applicable": "dim"}
_SITE = re.compile(r"^\s*\[site\]", re.MULTILINE)
_WORD = {"passed": "passed", "failed": "FAILED", "not_applicable": "–"}


def rehearse(
    scenario: str = "",
    *,
    site: pathlib.Path | None = None,
    policy: pathlib.Path | None = None,
    row: str = "",
    seed: Seed = 1,
    out: pathlib.Path | None = None,
    listed: Listed = False,
    json: Json = False,
) -> int:
    """Play a scenario on a site, simulated, under the pipeline that would run it, and judge each invariant.

    Each row is played by itself. Exit status 1 when an invariant failed, 2 when the scenario could not be
    played.

    Parameters
    ----------
    scenario
        The name of one that ships (see --list), or a file of your own.
    site
        The site file; without one the demonstration's row.
    policy
        The policy to decide with; without one the built-in defaults.
    row
        Play this row alone.
    seed
        Of the requests, the boards, and of which hosts and sensors a share comes to.
    out
        Keep ledger, recording and a plot in this directory, for several rows in one each; what it held of an
        earlier rehearsal is replaced.
    listed
        Name the scenarios that ship.
    json
        Answer with one line of JSON.
    """
    if listed:
        return _list(json=json)
    if not scenario:
        raise ConfigError(f"name a scenario: there is {', '.join(shipped())}, or a file of your own")
    began = SystemClock().monotonic()
    played = load_scenario(scenario)
    setup = load_setup(site or SCENARIOS / "demo-row.toml", policy)
    rows = _rows(setup, row)
    problems = [problem for each in rows for problem in unplayable(played, setup.site, each)]
    if problems:
        raise ConfigError("\n".join(problems))
    with contextlib.ExitStack() as stack:
        stack.enter_context(broken_off_in_order())
        base = out or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="windrow-")))
        folders = {each.path: base / each.path.rpartition("/")[2] if len(rows) > 1 else base for each in rows}
        for folder in folders.values():
            emptied(folder)
        found = _played(played, setup, folders, seed, plot=out is not None)
    took_s = SystemClock().monotonic() - began
    if json:
        emit([{**msgspec.to_builtins(each), "held": each.held} for each in found])
    else:
        _tell(played, setup, found, took_s)
        if out is not None:
            _tell_files(found, folders)
    return 0 if all(each.held for each in found) else 1


def load_scenario(name: str) -> Scenario:
    """A scenario that ships, by its name, or one in a file. Raises ConfigError with every problem found."""
    known = shipped()
    path = known.get(name) or pathlib.Path(name)
    if name not in known and not path.exists():
        raise ConfigError(f"{name}: is no file, and no scenario that ships: {not_among(name, known)}")
    text = read_text(path, "the scenario")
    try:
        return read_scenario(text, path.name if name in known else name)
    except ScenarioError as error:
        site = f"{name}: this looks like a site file: use --site\n" if _SITE.search(text) else ""
        raise ConfigError(f"{site}{error}") from error


def _list(*, json: bool) -> int:
    scenarios = [load_scenario(name) for name in shipped()]
    if json:
        emit([{"name": each.name, "title": each.title, "seconds": each.seconds} for each in scenarios])
        return 0
    table = Table.grid(padding=(0, 3, 0, 0))
    for each in scenarios:
        table.add_row(Text(each.name, style="bold"), each.title)
    console.print(table)
    return 0


def _rows(setup: Setup, row: str) -> tuple[Row, ...]:
    paths = [each.path for each in setup.site.rows]
    if row and row not in paths:
        raise ConfigError(f"--row {row}: no such row in the site file; {not_among(row, paths)}")
    return tuple(each for each in setup.site.rows if not row or each.path == row)


# ---- playing ----


def _played(
    scenario: Scenario,
    setup: Setup,
    folders: Mapping[str, pathlib.Path],
    seed: int,
    *,
    plot: bool,
) -> list[Rehearsed]:
    """Each row that has a folder, in the site's order, with a bar for each; one a core at once."""
    rows = [row for row in setup.site.rows if row.path in folders]
    works = [
        functools.partial(_play, scenario, alone(setup, row), seed, folders[row.path], plot=plot)
        for row in rows
    ]
    with progress("simulated minutes") as bars:
        tasks = {row.path: bars.add_task(row.path, total=minutes_of(scenario)) for row in rows}

        def told(word: tuple[str, int]) -> None:
            path, minute = word
            bars.update(tasks[path], completed=minute)

        if len(works) == 1:  # no process of its own, which takes seconds to start
            return [works[0](told)]
        return spread(works, workers=os.cpu_count() or 1, told=told)


def _play(
    scenario: Scenario,
    setup: Setup,
    seed: int,
    folder: pathlib.Path,
    told: Callable[[tuple[str, int]], None],
    *,
    plot: bool,
) -> Rehearsed:
    """One row, and its picture where one is wanted; `told` hears its path with each minute played."""
    row = setup.site.rows[0]
    rehearsed, history = play(
        scenario, setup, seed=seed, folder=folder, told=lambda minute: told((row.path, minute))
    )
    if plot:
        plot_rehearsal(rehearsed, history, row, folder / "row.png")
    return rehearsed


# ---- telling ----


def _tell(scenario: Scenario, setup: Setup, found: Sequence[Rehearsed], took_s: float) -> None:
    lasted = f"{scenario.seconds / 60:g} simulated minutes in {span(took_s)}"
    console.print(Text.assemble((f"{scenario.name}: ", "bold"), f"{scenario.title}; {lasted}"))
    for each in found:
        row = setup.site.row(each.row)
        console.print()
        console.print(
            Text.assemble(
                (f"Row {row.path}", "bold"),
                f": {counted(len(row.hosts), 'host')} on {watts(row.budget_w)} under {each.policy}, "
                f"seed {each.seed}; "
                f"peak (mean of 2 s) {share(each.plant.peak_w / row.budget_w)} of the budget",
            )
        )
        for spell in each.spells:
            say(f"  minute {_minute(each, spell.since)} to {_minute(each, spell.until)}  {spell.words}")
        modes = "  ".join(f"{mode} {_minute(each, max(at, each.began))}" for at, mode in _entered(each))
        say(f"  modes, with the minute each was entered: {modes}")
        if each.remark:
            say(f"  {each.remark}")
        console.print(_verdicts(each))
    console.print()
    say(_closing(found))


def _verdicts(each: Rehearsed) -> Table:
    """Each invariant with what it came to, and beneath it what proves that. Lines break between words: a
    host's name or a command's id is to be copied whole from a narrow terminal too."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for verdict in each.verdicts:
        judged = verdict.ruling != "not_applicable"
        bound = f"allowed: {verdict.bound}" if judged else verdict.bound
        at = _moment(each, verdict.at) if verdict.at is not None else ""
        command = f"command {verdict.command}" if verdict.command else ""
        proof = "; ".join(filter(None, (at, verdict.proof, command)))
        told = Text(f"{verdict.invariant}: {verdict.figure} ({bound})", style="" if judged else "dim")
        table.add_row(
            Text(_WORD[verdict.ruling], style=_INK[verdict.ruling]),
            told.append(f"\n{proof}" if proof else ""),
        )
    return table


def _closing(found: Sequence[Rehearsed]) -> str:
    """How many invariants failed, over all rows."""
    rulings = [verdict.ruling for each in found for verdict in each.verdicts]
    failed, unjudged = rulings.count("failed"), rulings.count("not_applicable")
    judged = counted(len(rulings) - unjudged, "invariant")
    where = f" on {', '.join(each.row for each in found if not each.held)}" if len(found) > 1 else ""
    told = f"{failed} of {judged} failed{where}" if failed else f"0 of {judged} failed: all held"
    return f"{told}; {unjudged} not judged" if unjudged else told


def _entered(each: Rehearsed) -> Sequence[tuple[Instant, str]]:
    """The modes entered since minute 0, and the one that it began in."""
    first = max((n for n, (at, _) in enumerate(each.modes) if at <= each.began), default=0)
    return each.modes[first:]


def _minute(each: Rehearsed, at: Instant) -> str:
    return f"{(at - each.began) / MINUTE:.1f}"


def _moment(each: Rehearsed, at: Instant) -> str:
    """The minute; before minute 0 the row is being let up, which is judged too."""
    return f"minute {_minute(each, at)}" if at >= each.began else "while it settled"


def _tell_files(found: Sequence[Rehearsed], folders: Mapping[str, pathlib.Path]) -> None:
    for each in found:
        folder = folders[each.row]
        ledger, recording = folder / "ledger.sqlite", folder / "recording.jsonl.gz"
        proof = next(
            (verdict.command for ruling in ("failed", "passed") for verdict in each.verdicts
             if verdict.command and verdict.ruling == ruling), "COMMAND",
        )  # fmt: skip
        say(f"plot       {folder / 'row.png'}")
        say(f"ledger     {ledger}, to ask: windrow audit why {proof} --ledger {ledger}")
        say(f"recording  {recording}, to replay: windrow replay {recording}")
