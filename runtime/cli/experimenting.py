"""`windrow experiment …`: the study's row over weeks, under policy after policy."""

from __future__ import annotations

import pathlib

import msgspec
from cyclopts import App
from rich.progress import TaskID
from rich.table import Table

from runtime.cli.printing import Json, console, emit, progress, say
from runtime.config import ConfigError
from runtime.experiments.row import (
    CALIBRATION_SEEDS,
    PEAK_RATIO,
    PROVISIONED,
    RISE_2S_RATIO,
    RISE_40S_RATIO,
    RowCheck,
    row_check,
)
from twin.weekly import fitted_on

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
    try:
        fitted = fitted_on(file, licence, f"windrow experiment fit-week {file}")
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if out is not None:
        out.write_bytes(msgspec.json.format(msgspec.json.encode(fitted), indent=2) + b"\n")
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
    seeds: tuple[int, ...] = CALIBRATION_SEEDS,
    servers: int = PROVISIONED,
    arrivals: tuple[pathlib.Path, ...] = (),
    json: Json = False,
) -> int:
    """Run the study's row without any control and hold it to the study's facts: its peak and its spikes.

    Exit status 1 when it is not the study's row.

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
        Print what it came to as one line of JSON.
    """
    if weeks <= 0:
        raise ConfigError(f"--weeks {weeks:g}: must be above 0")
    checks: list[RowCheck] = []
    with progress("weeks") as bars:
        for seed in seeds:
            bar = bars.add_task(f"seed {seed}", total=weeks)

            def told(done: float, bar: TaskID = bar) -> None:
                bars.update(bar, completed=round(done * weeks, 2))

            try:
                checks.append(row_check(weeks, seed, servers=servers, arrivals=arrivals, told=told))
            except (OSError, ValueError) as error:
                raise ConfigError(str(error)) from error
    if json:
        emit(checks)
    else:
        _print_checks(checks)
    return 1 if servers == PROVISIONED and any(check.misses() for check in checks) else 0


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
    for check in checks:
        for miss in check.misses() if check.servers == PROVISIONED else ():
            say(f"seed {check.seed}: the row {miss}")
