"""`windrow history`: what a row drew, in which mode it was and what was held, over a stretch of time."""

from __future__ import annotations

import pathlib

import numpy as np

from runtime.cli.asking import SomeConfig, SomeLedger, instant, opened
from runtime.cli.printing import Json, emit, print_history, say, watts
from runtime.clock import SystemClock
from runtime.config import ConfigError
from runtime.ledger.history import Curve, History
from runtime.ledger.history import curve as curve_of
from runtime.ledger.history import history as history_of
from runtime.sinks.influx_ledger import InfluxLedger
from schemas.instants import HOUR, SECOND, Span, to_text

_POINTS = 500  # of a curve: as many as a picture shows


def history(
    row: str,
    /,
    *,
    ledger: SomeLedger = None,
    config: SomeConfig = None,
    since: str = "",
    until: str = "",
    plot: pathlib.Path | None = None,
    json: Json = False,
) -> int:
    """Tell a row's history: each decision that said something new, its power, its caps, its emergencies.

    Exit status 1 when nothing is known of that time.

    Parameters
    ----------
    row
        The row's path, such as ams1/row-b.
    ledger
        The ledger file of the host.
    config
        A configuration instead: its InfluxDB is asked, which has the power of every beat, or, without one,
        the ledger in its state directory, which has it where something happened.
    since
        The time from which on, such as 2026-03-01T12:00:00Z; an hour before the end when left out.
    until
        The time up to which; now when left out.
    plot
        Draw power and modes to this picture.
    json
        Print the history and the curve of power as one line of JSON.
    """
    end = instant(until) if until else SystemClock().now()
    begin = instant(since) if since else end - HOUR
    if begin > end:
        raise ConfigError(f"--since {to_text(begin)} is after --until {to_text(end)}")
    step = _step(end - begin)
    with opened(ledger, config) as book:
        told = history_of(book, row, begin, end)
        if isinstance(book, InfluxLedger):
            drawn = book.curve(row, begin, end, step)
        else:
            drawn = curve_of(book, row, begin, end, step)
    if plot is not None:
        _plot(told, drawn, plot)
    if json:
        emit({"history": told, "curve": drawn})
    elif told.moments or drawn.points:
        print_history(told)
        _tell(drawn)
    else:
        say(f"nothing is known of {row} from {to_text(begin)} to {to_text(end)}")
    return 0 if told.moments or drawn.points else 1


def _step(span: Span) -> Span:
    """Whole seconds, so that a curve has no more points than it should."""
    return max(SECOND, -(-span // _POINTS // SECOND) * SECOND)


def _tell(drawn: Curve) -> None:
    peaks = [point.peak_w for point in drawn.points if point.peak_w is not None]
    where = "every beat" if drawn.source == "series" else "the beats that the ledger holds"
    say(f"  highest power of {where}: {watts(max(peaks, default=None))}")


def _plot(told: History, drawn: Curve, path: pathlib.Path) -> None:
    budgets = [m.budget_w for m in (told.before, *told.moments) if m is not None and m.budget_w is not None]
    if not drawn.points or not budgets:
        raise ConfigError(f"{path}: there is nothing to draw of {told.row} at that time")
    from runtime.cli.plots import plot_replay  # brings matplotlib, for which few questions need wait

    at_s = np.array([(point.at - told.since) / SECOND for point in drawn.points])
    power_w = np.array([np.nan if point.peak_w is None else point.peak_w for point in drawn.points])
    modes = [told.mode_at(point.at) or "unknown" for point in drawn.points]
    title = f"{told.row} from {to_text(told.since)}"
    plot_replay(at_s, power_w, budgets[-1], modes, title, path)
    say(f"drawn to {path}")
