"""`windrow experiment …`: the study's row over weeks, under policy after policy."""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
from cyclopts import App, Parameter
from rich.progress import TaskID
from rich.table import Table

from runtime.cli.experiment_plots import plot_added, plot_paths
from runtime.cli.out_folder import writable
from runtime.cli.printing import Json, console, emit, progress, say
from runtime.cli.seeds import Seeds
from runtime.cli.stopping import broken_off_in_order
from runtime.config import ConfigError
from runtime.counting import counted
from runtime.experiments.cases import Case, Results, run_all
from runtime.experiments.polca import NO_CAP, POLCA, Scale, Summary, cases_of, plan, summarise
from runtime.experiments.report import write_report
from runtime.experiments.row import (
    CALIBRATION_SEEDS,
    PEAK_RATIO,
    PROVISIONED,
    RISE_2S_RATIO,
    RISE_40S_RATIO,
    STUDIED_WEEKS,
    RowCheck,
    row_check,
)
from runtime.whole_file import put
from runtime.workers import WorkerLost
from twin.weekly import fitted_on

Arrivals = Annotated[tuple[pathlib.Path, ...], Parameter(negative="")]
"""Files of recorded arrivals; none: random ones."""

FIRST_SEED = 11
"""Of the headline's weeks; those that the row was calibrated on are others."""

experiment = App(
    name="experiment", help="Run the study's row over weeks of simulated time, under the real controller."
)


@experiment.command(name="fit-week")
def fit_week(
    file: pathlib.Path, /, *, licence: str = "unstated", out: pathlib.Path | None = None, json: Json = False
) -> int:
    """Fit the shape of a week to hourly request rates: a CSV with hour_of_week and one …_rps per service.

    Parameters
    ----------
    file
        The hourly rates, hour 0 being Monday 00:00 UTC.
    licence
        Of the file; it is stored with the result.
    out
        Write the shape and its provenance here, as twin/coefficients/weekly_demand.json is.
    json
        Print the shape and its provenance as one line of JSON.
    """
    if out is not None:
        writable(out)
    with _for_operators(out or file):
        fitted = fitted_on(file, licence, f"windrow experiment fit-week {file}")
        if out is not None:
            put(out, msgspec.json.format(msgspec.json.encode(fitted), indent=2) + b"\n")
    if json:
        emit(fitted)
        return 0
    table = Table("", "fitted", box=None, padding=(0, 3, 0, 0))
    for name, value in msgspec.structs.asdict(fitted.shape).items():
        table.add_row(name, f"{value:g}")
    console.print(table)
    say(f"an hour is missed by {fitted.mean_error_ratio:.1%} of the week's mean, on average")
    return 0


@experiment.command(name="row-check")
def check_row(
    *,
    weeks: float = 6.0,
    seeds: Seeds = CALIBRATION_SEEDS,
    servers: int = PROVISIONED,
    arrivals: Arrivals = (),
    json: Json = False,
) -> int:
    """Run the study's row without any control and hold it to the study's facts: its peak and its spikes.

    Exit status 1 when it is not the study's row. A simulated week takes some six seconds of one core, the two
    seeds of six weeks a minute or two.

    Parameters
    ----------
    weeks
        Simulated weeks for each seed.
    seeds
        Of what is asked; the first two are those that the demand was set on.
    servers
        Servers in the row; the facts are those of 40.
    arrivals
        Recorded arrivals in the form of the public Azure traces, in place of random requests.
    json
        Print what it came to as one line of JSON; misses says for each seed where it is not the study's row:
        empty when it is, null for a row of other than 40 servers, which the study's facts do not judge.
    """
    if not 0 < weeks < math.inf:
        raise ConfigError(f"--weeks {weeks:g}: must be above 0, and finite")
    checks: list[RowCheck] = []
    with progress("weeks") as bars:
        for seed in seeds:
            bar = bars.add_task(f"seed {seed}", total=weeks)

            def told(done: float, bar: TaskID = bar) -> None:
                bars.update(bar, completed=round(done * weeks, 2))

            with _for_operators(arrivals[0] if arrivals else pathlib.Path()):
                checks.append(row_check(weeks, seed, servers=servers, arrivals=arrivals, told=told))
    if json:
        emit([{**msgspec.structs.asdict(check), "misses": _misses(check)} for check in checks])
    else:
        _print_checks(checks)
    return 1 if any(_misses(check) for check in checks) else 0


def _misses(check: RowCheck) -> list[str] | None:
    """None for a row that the study says nothing of."""
    return check.misses() if check.servers == PROVISIONED else None


def _print_checks(checks: list[RowCheck]) -> None:
    table = Table(
        "", *(f"seed {check.seed}" for check in checks), "the study", box=None, padding=(0, 3, 0, 0)
    )

    def line(title: str, field: str, wanted: str = "") -> None:
        table.add_row(title, *(f"{getattr(check, field):.3f}" for check in checks), wanted)

    line("peak (mean of 2 s), of budget", "peak_ratio", f"{PEAK_RATIO:.2f}, published")
    line("highest rise in 2 s, of budget", "rise_2s_ratio", f"{RISE_2S_RATIO:.2f}, recalled")
    line("highest rise in 40 s, of budget", "rise_40s_ratio", f"{RISE_40S_RATIO:.3f}, published")
    line("mean power, of budget", "mean_ratio")
    line("1 % of the time below", "p01_ratio")
    line("99 % of the time below", "p99_ratio")
    line("requests per second", "requests_per_s")
    for priority in ("high", "low"):
        cells = (
            f"{check.latency_s[priority][0]:.1f}, {check.latency_s[priority][1]:.1f} s" for check in checks
        )
        table.add_row(f"latency P50, P99, {priority} priority", *cells, "")
    console.print(table)
    if checks[0].weeks < STUDIED_WEEKS:
        say(f"{checks[0].weeks:g} weeks of six: the peaks that the study states may be yet to come")
    if checks[0].servers != PROVISIONED:
        say(f"not held to the study, whose facts are those of {PROVISIONED} servers")
        return
    missed = [f"seed {check.seed}: the row {miss}" for check in checks for miss in _misses(check) or ()]
    for each in missed:
        say(each)
    if not missed:
        say(f"the row is the study's: its peak and its rises agree under {counted(len(checks), 'seed')}")


QUICK = Scale(
    headline_seeds=(28,),
    headline_days=0.125,
    beyond=False,
    sweep_seeds=(),
    begin_s=2 * 86_400 + 15 * 3600,
)
"""Wednesday afternoon, when the week's demand is highest, under a seed whose volleys take a row without caps
well over its budget."""


@experiment.command
def polca(
    *,
    out: pathlib.Path = pathlib.Path("windrow-polca"),
    quick: bool = False,
    seeds: int = 6,
    other_seeds: int = 2,
    sweep_seeds: int = 3,
    sweep_days: float = 0.25,
    jobs: int = 0,
    arrivals: Arrivals = (),
    json: Json = False,
) -> int:
    """Run POLCA's evaluation: its policy, its baselines and ours, with servers added, slower and lossy paths.

    Each finished run is kept in OUT/runs, and an interrupted experiment goes on from there. Exit status 1
    with --quick when POLCA brakes at +30 %, or the row without caps does not, or high priority pays for it.

    Parameters
    ----------
    out
        The directory to write to.
    quick
        A few hours of +30 % under each policy, to see that all of it works.
    seeds
        Weeks of the headline comparison, each under a seed of its own, and of ours at +40 %.
    other_seeds
        How many of these weeks the other policies run beyond the study.
    sweep_seeds
        Runs at each point of the sweeps, 0 for none.
    sweep_days
        Days of each of those, from Wednesday 13:00 on, about when the week is busiest.
    jobs
        Processes; 0, as when left out: one for each core.
    arrivals
        Recorded arrivals in the form of the public Azure traces, in place of random requests.
    json
        Print every figure as one line of JSON.
    """
    if min(seeds, other_seeds) <= 0 or not 0 < sweep_days < math.inf or min(sweep_seeds, jobs) < 0:
        raise ConfigError(
            "--seeds, --other-seeds and --sweep-days must be above 0 (and finite), "
            "--sweep-seeds and --jobs not below 0"
        )
    scale = QUICK
    if not quick:
        scale = Scale(
            headline_seeds=tuple(range(FIRST_SEED, FIRST_SEED + seeds)),
            other_seeds=other_seeds,
            sweep_seeds=tuple(range(FIRST_SEED + 100, FIRST_SEED + 100 + sweep_seeds)),
            sweep_days=sweep_days,
        )
    points = plan(scale, tuple(str(path) for path in arrivals))
    cases = cases_of(points)
    with _for_operators(out), _broken_off_in_words(out / "runs", cases):
        results = Results(out / "runs")
        unique = {case.key: case for case in cases}
        with progress("simulated hours") as bars:
            bar = bars.add_task("runs", total=round(24 * sum(case.days for case in unique.values())))
            found = run_all(
                cases,
                results,
                jobs=jobs or os.cpu_count() or 1,
                told=lambda days: bars.advance(bar, 24 * days),
            )
        summaries = [summarise(point, found) for point in points]
        pictures = [*plot_added(summaries, out), *plot_paths(summaries, out)]
        page = write_report(out, summaries, " ".join(["windrow", *sys.argv[1:]]), pictures)
    headline = [each for each in summaries if each.sweep == "headline"]
    if json:
        emit(summaries)
    else:
        _print_summaries(headline)
        say(f"page  {page}")
    if not quick:
        return 0
    wrong = _quick_misses(headline)
    for miss in wrong:
        print(miss, file=sys.stderr)
    if wrong:
        return 1
    if not json:
        say("checks passed: POLCA held the row, at no cost to high priority; without caps it was braked")
    return 0


@contextlib.contextmanager
def _for_operators(place: pathlib.Path) -> Iterator[None]:
    """What is wrong with files is for whoever named them; `place` is one that an error does not name."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename or place}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except WorkerLost as error:
        raise ConfigError(
            f"{error}; what is finished is kept, and the same command goes on from there"
        ) from error


@contextlib.contextmanager
def _broken_off_in_words(folder: pathlib.Path, cases: Sequence[Case]) -> Iterator[None]:
    """Whoever breaks the experiment off, by Ctrl-C or by SIGTERM, at whatever moment, hears what is kept."""
    try:
        with broken_off_in_order():
            yield
    except KeyboardInterrupt:
        results = Results(folder)
        unique = {case.key: case for case in cases}
        kept = sum(results.get(case) is not None for case in unique.values())
        whole = f"{kept} of {len(unique)} runs are whole and kept in {folder}"
        print(f"broken off: {whole}; the same command goes on from there", file=sys.stderr)
        raise


def _print_summaries(summaries: list[Summary]) -> None:
    """Within 80 columns: of a figure with an interval, the interval has a line of its own."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("+30 %", no_wrap=True)
    for title in ("brakes", "peak", "HP\nP50", "HP\nP99", "LP\nP50", "LP\nP99", "LP\ncapped", "energy"):
        table.add_column(title, overflow="fold")
    for each in summaries:
        latencies = (each.high_p50, each.high_p99, each.low_p50, each.low_p99)
        table.add_row(
            each.policy,
            str(each.brakes),
            f"{each.peak_ratio:.3f}",
            *(_in_two_lines(latency.text("+.2%")) for latency in latencies),
            _in_two_lines(each.low_capped.text(".0%")),
            _in_two_lines(each.energy.text("+.1%")),
        )
    console.print(table)


def _in_two_lines(figure: str) -> str:
    return figure.replace(" ± ", "\n±")


def _quick_misses(headline: list[Summary]) -> list[str]:
    """What must come out of any few busy hours, and did not."""
    by_name = {each.policy: each for each in headline}
    polca, no_cap = by_name[POLCA], by_name[NO_CAP]
    misses = []
    if polca.brakes or polca.over_budget_s:
        misses.append(f"POLCA at +30 % was braked {polca.brakes} times and peaked at {polca.peak_ratio:.3f}")
    if not no_cap.brakes:
        misses.append(f"without caps the row was never braked, and peaked at {no_cap.peak_ratio:.3f}")
    if polca.high_p50.mean >= 0.01:
        misses.append(f"POLCA made the median of high priority {polca.high_p50.mean:.1%} longer")
    return misses
