"""Scenarios: what a row is put through, as an operator writes it, in TOML.

    [scenario]
    title = "A crowd comes while a quarter of the BMCs lose commands"
    minutes = 20                        # simulated

    [demand]                            # what the row would draw if nothing held it, over its budget
    course = [[0, 0.65], [20, 0.7]]     # [minute, ratio], joined by straight lines
    wander_ratio = 0.02                 # a slow common wander on top; left out: none

    [[demand.bursts]]                   # on top of the course
    at_min = 5
    rise_s = 60                         # up, and down again as it rose
    hold_s = 180
    height_ratio = 0.4

    [[faults]]
    kind = "path_lossy"                 # each kind and what it asks for: KINDS below
    at_min = 4
    minutes = 10                        # left out: to the end
    path = "out_of_band"
    share = 0.25                        # of the row's hosts, drawn by the seed; left out: all
    loss_ratio = 0.5

    [judge]                             # bounds; an invariant without one here is not judged,
    over_budget_s = 30                  # but those of safety always are
    brakes = 1
    back_min = 10                       # every host at its highest clock again, after the last trouble
    high_p99_ratio = 1.5                # latency, over that of the same requests with nothing held down
    hot_s = 20                          # a GPU at or above its slowdown temperature

A scenario names nothing of a site. It speaks of parts by what they are (the row's meters, its first UPS, a
share of its hosts), which `twin.trouble` finds on the row that plays it.
"""

from __future__ import annotations

import importlib.resources
import math
import pathlib
from collections.abc import Collection, Sequence
from itertools import combinations, pairwise
from typing import Any, cast, get_args

import msgspec

from schemas.commands import Path
from schemas.toml_tables import NotToml, Table, read_toml
from twin.row import UPS_FAILOVER_RATIO, GpuFault, MeterFault
from twin.workload import Burst

_LONGEST_MIN = 7 * 24 * 60  # a week
_HIGHEST_RATIO = 3.0  # of a budget: no row holds as much
_RAMP_S = 60.0  # in which an inlet warms up where the file does not say (our choice)


class ScenarioError(ValueError):
    """The scenario cannot be used: `problems` has a line for each thing wrong, str() all of them."""

    def __init__(self, problems: Collection[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What the row would draw if nothing held it, as a share of its budget: `course` is (second, ratio),
    joined by straight lines, and the height of the bursts is a share of the budget too."""

    course: tuple[tuple[float, float], ...]
    bursts: tuple[Burst, ...] = ()
    wander_ratio: float = 0.0


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that goes wrong at `at_s`, for `lasts_s`. `place` is where the file says so."""

    at_s: float
    lasts_s: float
    place: str

    @property
    def ends_s(self) -> float:
        """When it is over."""
        return self.at_s + self.lasts_s


class UpsFailover(Fault, frozen=True, kw_only=True):
    """A UPS loses its mains: on battery the row may draw `capacity_ratio` of its budget for ever, and more
    than that for as long as a UPS bears it. `ups` is ``first``, the row's first in the site file, or one's
    name."""

    ups: str
    capacity_ratio: float


class PathDown(Fault, frozen=True, kw_only=True):
    """Every call by this path of a share of the hosts times out. By `in_band` that is a driver that hangs:
    the readings of its GPUs are gone too."""

    path: Path
    share: float


class PathLossy(Fault, frozen=True, kw_only=True):
    """A share of what is written by this path never lands, without a word, on a share of the hosts."""

    path: Path
    share: float
    loss_ratio: float


class MetersFail(Fault, frozen=True, kw_only=True):
    """A share of the row's own meters is silent, repeats itself, reads zero, or `factor` times the power."""

    how: MeterFault
    share: float
    factor: float


class GpusFail(Fault, frozen=True, kw_only=True):
    """A share of the row's GPUs is lost, hangs, or reads a power that repeats itself, is zero or `factor`
    times the power."""

    how: GpuFault
    share: float
    factor: float


class InletRises(Fault, frozen=True, kw_only=True):
    """The air that a share of the hosts draws is warmer by `rise_c`: reached over the first `ramp_s`, left
    over the last."""

    rise_c: float
    ramp_s: float
    share: float


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What is allowed; None: not judged. See the module's head for each."""

    over_budget_s: float | None = None
    brakes: int | None = None
    back_min: float | None = None
    high_p99_ratio: float | None = None
    hot_s: float = 0.0


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario as it was written; `name` is its file's."""

    name: str
    title: str
    seconds: float
    demand: Demand
    faults: tuple[Fault, ...]
    bounds: Bounds

    @property
    def over_s(self) -> float:
        """When the last trouble is over: the last fault has ended, and the last burst has fallen."""
        bursts = map(_fallen_s, self.demand.bursts)
        return max((*bursts, *(fault.ends_s for fault in self.faults)), default=0.0)


KINDS: dict[str, str] = {
    "ups_failover": "ups, capacity_ratio",
    "path_down": "path, share",
    "path_lossy": "path, share, loss_ratio",
    "meters": "how, share, factor",
    "gpus": "how, share, factor",
    "inlet": "rise_c, ramp_s, share",
}
"""The kinds of faults, and the keys of each besides `at_min` and `minutes`."""


def shipped() -> dict[str, pathlib.Path]:
    """The scenarios that ship, by name. Site files and recordings lie beside them."""
    folder = pathlib.Path(str(importlib.resources.files("twin"))) / "scenarios"
    files = sorted(folder.glob("*.toml"))
    return {file.stem: file for file in files if "\n[scenario]\n" in file.read_text(encoding="utf-8")}


def read_scenario(text: str, name: str) -> Scenario:
    """The scenario that the TOML `text` states; `name` is the file's, for the problems' first words.

    Raises ScenarioError with every problem found, each as file, key, value and what is allowed. Items are
    counted from 0, as in ``faults[0]``.
    """
    try:
        root = read_toml(text, name)
    except NotToml as error:
        raise ScenarioError([str(error)]) from error
    head, title, minutes = root.table("scenario"), "", math.nan
    if head is None:
        if "scenario" not in root.raw:
            root.missing("scenario", "write [scenario] with title and minutes")
    else:
        title = head.text("title", "what it is for, in a line")
        minutes = _at_most(head, "minutes", "simulated minutes", _LONGEST_MIN)
        head.close()
    scenario = Scenario(
        name=pathlib.PurePath(name).name.removesuffix(".toml"),
        title=title,
        seconds=minutes * 60,
        demand=_demand(root, minutes),
        faults=_faults(root, minutes),
        bounds=_bounds(root.table("judge")),
    )
    _time_to_come_back(root, scenario)
    root.close()
    if root.problems:
        raise ScenarioError(root.problems)
    return scenario


def _at_most(table: Table, key: str, meaning: str, most: float, default: float | None = None) -> float:
    """A number above zero and at most `most`."""
    number = table.number(key, meaning, default)
    if number > most:
        table.wrong(key, f"must be at most {most:g} ({meaning})")
        return math.nan
    return number


def _share(table: Table, key: str, meaning: str, default: float | None = None) -> float:
    number = table.number(key, meaning, default)
    if number > 1:
        table.wrong(key, f"must be above 0 and at most 1 ({meaning})")
        return math.nan
    return number


def _moment(table: Table, minutes: float) -> float:
    """`at_min`, in seconds: within the scenario."""
    meaning = "minutes after the start"
    at = table.number("at_min", meaning, zero=True)
    if at >= minutes:
        table.wrong("at_min", f"must be before the scenario's end at minute {minutes:g} ({meaning})")
    return at * 60


# ---- demand ----


def _demand(root: Table, minutes: float) -> Demand:
    table = root.table("demand")
    if table is None:
        if "demand" not in root.raw:
            root.missing("demand", "write [demand] with course, what the row would draw over time")
        return Demand(course=())
    demand = Demand(
        course=_course(table, minutes),
        bursts=tuple(
            _burst(burst, minutes) for burst in table.tables("bursts", "the bursts of demand", needed=False)
        ),
        wander_ratio=_wander(table),
    )
    table.close()
    return demand


def _wander(table: Table) -> float:
    meaning = "share of the demand"
    wander = table.number("wander_ratio", meaning, 0.0, zero=True)
    if wander > 0.5:
        table.wrong("wander_ratio", f"must be at most 0.5 ({meaning})")
    return wander


def _course(table: Table, minutes: float) -> tuple[tuple[float, float], ...]:
    meaning = "[minute, share of the budget], the minutes rising"
    if not table.has("course"):
        table.missing("course", f"a list of {meaning}")
        return ()
    value = table.raw["course"]
    if not isinstance(value, list) or not value:
        table.wrong("course", f"must be a list of {meaning}")
        return ()
    points: list[tuple[float, float]] = []
    for index, item in enumerate(value):
        entry = Table({f"course[{index}]": item}, table.where, table.file, table.problems)
        if not (
            isinstance(item, list)
            and len(item) == 2
            and all(isinstance(each, int | float) and not isinstance(each, bool) for each in item)
        ):
            entry.wrong(f"course[{index}]", f"must be {meaning}")
        elif not 0 <= item[0] <= _LONGEST_MIN:
            entry.wrong(f"course[{index}]", "must be of a minute from 0 on, a week at most")
        elif item[0] > minutes:
            entry.wrong(f"course[{index}]", f"must be of a minute up to {minutes:g}, the scenario's end")
        elif not 0 < item[1] <= _HIGHEST_RATIO:
            entry.wrong(
                f"course[{index}]", f"must be of a share above 0 and at most {_HIGHEST_RATIO:g} of the budget"
            )
        else:
            points.append((item[0] * 60.0, float(item[1])))
    if any(one[0] >= two[0] for one, two in pairwise(points)):
        table.wrong("course", f"must be {meaning}")
    return tuple(points)


def _fallen_s(burst: Burst) -> float:
    return burst.at_s + 2 * burst.rise_s + burst.hold_s


def _burst(table: Table, minutes: float) -> Burst:
    burst = Burst(
        at_s=_moment(table, minutes),
        rise_s=table.number("rise_s", "seconds until it has risen, and again until it has fallen"),
        hold_s=table.number("hold_s", "seconds at its height", zero=True),
        height_ratio=_at_most(table, "height_ratio", "share of the budget", _HIGHEST_RATIO),
    )
    if _fallen_s(burst) > minutes * 60 + 1e-6:
        table.wrong("hold_s", f"must have fallen again by minute {minutes:g}, the scenario's end")
    table.close()
    return burst


# ---- faults ----


def _faults(root: Table, minutes: float) -> tuple[Fault, ...]:
    faults = []
    for table in root.tables("faults", "what goes wrong", needed=False):
        fault = _fault(table, minutes)
        table.close()
        if fault is not None:
            faults.append(fault)
    for one, two in combinations(faults, 2):
        alike = type(one) is type(two) and getattr(one, "path", "") == getattr(two, "path", "")
        if alike and one.at_s < two.ends_s and two.at_s < one.ends_s:
            why = "the end of one would mend what the other broke"
            root.problems.append(f"{root.file}: {two.place}: must not overlap {one.place}: {why}")
    return tuple(faults)


def _fault(table: Table, minutes: float) -> Fault | None:
    kind = table.choice("kind", KINDS, "what goes wrong")
    at_s = _moment(table, minutes)
    lasts_s = _at_most(table, "minutes", "how long it lasts", _LONGEST_MIN, minutes - at_s / 60) * 60
    if at_s + lasts_s > minutes * 60 + 1e-6:
        table.wrong("minutes", f"must end by minute {minutes:g}, with the scenario")
    place = table.where
    match kind:
        case "ups_failover":
            ups = table.text("ups", "first, or a UPS's name in the site file", "first")
            capacity = _share(table, "capacity_ratio", "share of the budget left", UPS_FAILOVER_RATIO)
            return UpsFailover(at_s=at_s, lasts_s=lasts_s, place=place, ups=ups, capacity_ratio=capacity)
        case "path_down":
            return PathDown(
                at_s=at_s, lasts_s=lasts_s, place=place, path=_path(table), share=_of(table, "hosts")
            )
        case "path_lossy":
            return PathLossy(
                at_s=at_s,
                lasts_s=lasts_s,
                place=place,
                path=_path(table),
                share=_of(table, "hosts"),
                loss_ratio=_share(table, "loss_ratio", "share of what is written that is lost"),
            )
        case "meters":
            sensors = _sensors(table, get_args(MeterFault), "row's meters")
            return MetersFail(at_s=at_s, lasts_s=lasts_s, place=place, **sensors)
        case "gpus":
            sensors = _sensors(table, get_args(GpuFault), "row's GPUs")
            return GpusFail(at_s=at_s, lasts_s=lasts_s, place=place, **sensors)
        case "inlet":
            ramp_s = table.number("ramp_s", "seconds", min(_RAMP_S, lasts_s / 2))
            if 2 * ramp_s > lasts_s:
                table.wrong("ramp_s", f"must be at most half of the {lasts_s:g} s that it lasts")
            return InletRises(
                at_s=at_s,
                lasts_s=lasts_s,
                place=place,
                rise_c=_at_most(table, "rise_c", "°C", 60.0),
                ramp_s=ramp_s,
                share=_of(table, "hosts"),
            )
    # Of a kind nobody knows, no key is known to be wrong.
    for key in table.raw:
        table.has(key)
    return None


def _of(table: Table, of: str) -> float:
    return _share(table, "share", f"share of the {of}", 1.0)


def _path(table: Table) -> Path:
    return cast("Path", table.choice("path", get_args(Path), "the command path"))


def _sensors(table: Table, known: Sequence[str], of: str) -> dict[str, Any]:
    """How sensors fail, which share of them, and by which factor those that lie do."""
    how, factor = table.choice("how", known, "how they fail"), 1.0
    if how == "lying":
        factor = _at_most(table, "factor", "what is read, over what is so", 10.0)
    elif table.has("factor"):
        table.wrong("factor", 'goes with how = "lying" alone')
    return {"how": how, "share": _of(table, of), "factor": factor}


# ---- bounds ----


def _time_to_come_back(root: Table, scenario: Scenario) -> None:
    """A bound that the scenario ends before would fail rows that have time left."""
    back_min, left_s = scenario.bounds.back_min, scenario.seconds - scenario.over_s
    if back_min is not None and back_min * 60 > left_s + 1e-6 and not root.problems:
        rule = f"must be at most {left_s / 60:g}, the minutes from the last trouble to the scenario's end"
        root.problems.append(f"{root.file}: judge.back_min = {back_min:g}: {rule}")


def _bounds(table: Table | None) -> Bounds:
    if table is None:
        return Bounds()

    def bound(key: str, meaning: str) -> float | None:
        return table.number(key, meaning, zero=True) if table.has(key) else None

    brakes = bound("brakes", "how often the brake may be pulled")
    if brakes is not None and brakes % 1 > 0:
        table.wrong("brakes", "must be a whole number (how often the brake may be pulled)")
    bounds = Bounds(
        over_budget_s=bound("over_budget_s", "seconds"),
        brakes=None if brakes is None or math.isnan(brakes) else int(brakes),
        back_min=bound("back_min", "minutes"),
        high_p99_ratio=bound("high_p99_ratio", "over the latency with nothing held down"),
        hot_s=bound("hot_s", "seconds") or 0.0,
    )
    table.close()
    return bounds
