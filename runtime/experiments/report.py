"""What an experiment came to, as files: a CSV of every figure, tables by sweep, a page beside the study."""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Sequence

import msgspec

from runtime.counting import counted
from runtime.experiments.polca import (
    BEYOND_SWEEP,
    HEADLINE_ADDED,
    NO_CAP,
    OBJECTIVES,
    POLCA,
    Figure,
    Rate,
    Summary,
    Verdict,
)
from runtime.experiments.row import STUDIED_WEEKS

_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("brakes a week", "brakes_a_week", ".1f"),
    ("HP P50", "high_p50", "+.2%"),
    ("HP P99", "high_p99", "+.2%"),
    ("LP P50", "low_p50", "+.2%"),
    ("LP P99", "low_p99", "+.2%"),
    ("HP tokens", "high_tokens", "+.2%"),
    ("LP tokens", "low_tokens", "+.2%"),
    ("energy", "energy", "+.2%"),
    ("HP capped", "high_capped", ".1%"),
    ("LP capped", "low_capped", ".1%"),
)


def table(summaries: Sequence[Summary]) -> str:
    """One sweep as a Markdown table: mean ± half of the 95 % interval over seeds."""
    lines = [
        "| setting | policy | servers | runs × days | brakes | s over budget | trips | peak | "
        + " | ".join(title for title, _, _ in _COLUMNS)
        + " | objectives |",
        "|---" * (9 + len(_COLUMNS)) + "|",
    ]
    for each in summaries:
        cells = [getattr(each, field).text(form) for _, field, form in _COLUMNS]
        lines.append(
            f"| {each.setting} | {each.policy} | {each.servers} | {each.runs} × {each.days / each.runs:g} "
            f"| {each.brakes} | {each.over_budget_s:.0f} | {each.trips} | {each.peak_ratio:.3f} | "
            + " | ".join(cells)
            + f" | {each.objectives} |"
        )
    return "\n".join(lines) + "\n"


def as_csv(summaries: Sequence[Summary]) -> str:
    """Every figure of every point, with its confidence in a column of its own."""
    out = io.StringIO()
    fields = [field.name for field in msgspec.structs.fields(Summary)]
    rows = []
    for each in summaries:
        row: dict[str, object] = {}
        for name in fields:
            value = getattr(each, name)
            if isinstance(value, Rate):
                row[name] = f"{value.mean:.6g}"
                row[f"{name}_low95"], row[f"{name}_high95"] = f"{value.low:.6g}", f"{value.high:.6g}"
            elif isinstance(value, Figure):
                row[name] = f"{value.mean:.6g}"
                row[f"{name}_ci95"] = "" if value.half is None else f"{value.half:.6g}"
            else:
                row[name] = value
        row["objectives"] = each.objectives
        rows.append(row)
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


class Fact(msgspec.Struct, frozen=True):
    """A figure of the study, how it is known, and what came out here. `source`: published (by its authors),
    secondary (a close reading), recalled (not checked again) or ours (derived, or a choice). `whole`: as
    much time was run as decides it, and no bound lies within the figure's interval."""

    what: str
    study: str
    source: str
    here: str
    held: bool
    whole: bool = True

    @property
    def verdict(self) -> str:
        """In the table's words."""
        if self.held:
            return "held" if self.whole else "held so far"
        return "**missed**" if self.whole else "open"


def _span(days: float) -> str:
    """Simulated time in words."""
    number, unit = (days / 7, "week") if days >= 7 else (days, "day") if days >= 1 else (days * 24, "hour")
    return f"{number:.3g} {unit}{'' if number == 1 else 's'}"


def _bounded(what: str, study: str, source: str, found: Figure, verdict: Verdict) -> Fact:
    """A figure that the study bounds, with its interval."""
    return Fact(what, study, source, found.text("+.2%"), verdict == "met", whole=verdict != "undecided")


def _latency(polca: Summary, field: str, bound: float, source: str) -> Fact:
    """An objective of the study's, such as ``high_p50``, and what came out."""
    priority, percentile = field.split("_")
    found: Figure = getattr(polca, field)
    what = f"{percentile.upper()} latency, {priority} priority"
    return _bounded(what, f"below +{bound * 100:g} %", source, found, found.below(bound))


def _throughput(polca: Summary, priority: str, loss: float) -> Fact:
    """Tokens of a priority, of which the study lost less than this share."""
    found: Figure = getattr(polca, f"{priority}_tokens")
    lost = Figure(-found.mean, found.half)
    what = f"throughput, {priority} priority"
    return _bounded(what, f"within {loss * 100:g} %", "secondary", found, lost.below(loss))


_BASELINE_BRAKES = 10
"""The least that the study's baselines are said to have been braked."""


def _in_weeks(a_week: Rate) -> Rate:
    """A rate over as many weeks as the study has."""
    return Rate(*(STUDIED_WEEKS * each for each in (a_week.mean, a_week.low, a_week.high)))


def facts(headline: Sequence[Summary]) -> list[Fact]:
    """The study's figures for +30 % beside those of the headline runs."""
    by_name = {each.policy: each for each in headline}
    polca, no_cap = by_name[POLCA], by_name[NO_CAP]
    baselines = [each for name, each in by_name.items() if not name.startswith(POLCA)]
    whole_weeks = all(each.days >= 7 for each in baselines)  # a few busy hours are not like the rest
    in_six = {each.policy: _in_weeks(each.brakes_a_week) for each in baselines}
    said = "; ".join(
        f"{each.policy} {each.brakes} in {_span(each.days)}"
        + (f": {in_six[each.policy].text('.0f')} in six" if whole_weeks else "")
        for each in baselines
    )
    # By the limits of each one's rate: few brakes in part of the time may decide it too.
    few = any(each.high < _BASELINE_BRAKES for each in in_six.values())
    many = all(each.low >= _BASELINE_BRAKES for each in in_six.values()) and whole_weeks
    return [
        Fact("power brakes under POLCA in six weeks", "0", "secondary",
             f"{polca.brakes} in {_span(polca.days)}", polca.brakes == 0,
             whole=polca.brakes > 0 or polca.days >= 7 * STUDIED_WEEKS),
        *(_latency(polca, *objective) for objective in OBJECTIVES),
        _throughput(polca, "high", 0.01),
        _throughput(polca, "low", 0.02),
        Fact("a row without caps brakes", "at least once (0.79 × 1.30 = 1.027)", "ours",
             f"{counted(no_cap.brakes, 'time')} in {_span(no_cap.days)}, peak {no_cap.peak_ratio:.3f}",
             no_cap.brakes > 0, whole=no_cap.brakes > 0 or no_cap.days >= 7 * STUDIED_WEEKS),
        Fact("every baseline brakes, in six weeks", f"{_BASELINE_BRAKES} to 10,000 times", "secondary", said,
             all(each.mean >= _BASELINE_BRAKES for each in in_six.values()), whole=many or few),
    ]  # fmt: skip


def fact_table(found: Sequence[Fact]) -> str:
    """The study's figures beside those found, as Markdown."""
    lines = ["| at +30 % servers | the study | known how | here | |", "|---|---|---|---|---|"]
    lines += [
        f"| {fact.what} | {fact.study} | {fact.source} | {fact.here} | {fact.verdict} |" for fact in found
    ]
    return "\n".join(lines) + "\n"


_ABOUT = """Made by `{command}`; every figure, with its seeds, is in
[results.csv](results.csv). The plant is simulated and calibrated on few published facts (docs/experiments.md
of the project); the controller, its leases and the hosts' agents are the real code. Latency and throughput
are changes against a run of the same requests with neither cap nor breaker; ± is half of the 95 % confidence
interval over seeds, and behind brakes a week stand the 95 % limits of a Poisson count. HP and LP are high and
low priority, *capped* is the share of host-time below the highest clock, *trips* how often a thermal breaker
of our choice would have opened. *Objectives*: no brake, HP P50 below 1 % (published), and, recalled, HP P99
below 5 %, LP P50 below 5 %, LP P99 below 50 %; *undecided* where a bound lies within an interval.

What a clock costs in time is a synthetic curve, set such that the study's lowest clock for low priority costs
about what it reports. While no row is braked, latency cannot grow by much more than that: what is found out
here is how often each clock is needed, and when caps come too late.
"""

_BUSIEST = """Runs of {span} about the week's busiest: *a week* in a title is one of nothing but such hours.
"""

_SOURCES = """*Published*: by the study's authors. *Secondary*: from close readings of it. *Recalled*: not
checked again, and not to be quoted as theirs. *Ours*: derived here.
"""


_MEANS = """*In band*: caps reach a host through its driver in 50 ms (the controller allows 1 s), not through
its BMC in 40 s. *Ladder*: eight caps in place of three, climbed by as much as the power is over its
threshold. *Nearer*: thresholds of 86 and 92 %, as far under the budget as the study's row of 40 servers rises
within 2 s; larger rows rise by more. *Own clocks*: 1185 MHz for low priority and 1335 MHz for high, chosen as
the lowest that keep the objectives on this row however long they are held (see the sweep of clocks).
"""


def most_held(rows: Sequence[Summary]) -> str:
    """Which of these policies kept the objectives at the most servers, in a sentence."""
    met = [each for each in rows if each.objectives == "met"]
    if not met:
        return "None of what was run here keeps the objectives.\n"
    most = max(each.servers for each in met)
    last = [each for each in met if each.servers == most]
    runs = "; ".join(f"{each.policy} in {_span(each.days)}" for each in last)
    return f"The most servers at which all objectives were kept: {most} ({last[0].setting}), by {runs}.\n"


def _section(title: str, rows: Sequence[Summary]) -> str:
    span = max(each.days / each.runs for each in rows)
    told = _MEANS + "\n" + most_held(rows) + "\n" if rows[0].sweep == BEYOND_SWEEP else ""
    told += "" if span >= 7 else _BUSIEST.format(span=_span(span)) + "\n"
    return f"## {title}, {_span(span)} for each seed\n\n{told}{table(rows)}"


def write_report(
    out: pathlib.Path, summaries: Sequence[Summary], command: str, pictures: Sequence[tuple[str, str]]
) -> pathlib.Path:
    """The page with its tables, and the CSV. `pictures` are (file, caption). Raises OSError."""
    (out / "results.csv").write_text(as_csv(summaries), encoding="utf-8")
    by_sweep: dict[str, list[Summary]] = {}
    for each in summaries:
        by_sweep.setdefault(each.sweep, []).append(each)
    headline = by_sweep.pop("headline")
    parts = [
        f"# POLCA's evaluation on the simulated row\n\n{_ABOUT.format(command=command)}",
        f"## Beside the study\n\n{fact_table(facts(headline))}\n{_SOURCES}",
        _section(f"+{HEADLINE_ADDED} % servers", headline),
    ]
    for file, caption in pictures:
        parts.append(f"\n![{caption}]({file})\n")
    for sweep, rows in by_sweep.items():
        parts.append("\n" + _section(sweep.capitalize(), rows))
        (out / f"{sweep.replace(' ', '-')}.md").write_text(table(rows), encoding="utf-8")
    (out / "headline.md").write_text(table(headline), encoding="utf-8")
    page = out / "README.md"
    page.write_text("\n".join(parts), encoding="utf-8")
    return page
