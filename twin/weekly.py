"""Demand over weeks: the hours of a day, working days and weekends, wander, and bursts.

The shape of the week is a handful of parameters fitted to the public request rates of two LLM services
(`fit_week`; what ships is `coefficients/weekly_demand.json`, with its provenance). On it lie a slow wander
that all servers share, and bursts: a crowd that comes within seconds and stays for minutes. Requests are
drawn ten minutes at a time from generators that nothing else draws from, so that runs with one seed see
the same requests however their row is controlled, and memory does not grow with simulated time.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.resources
import math
import pathlib
from collections.abc import Sequence
from typing import Protocol, get_args

import msgspec
import numpy as np
from scipy.optimize import least_squares
from scipy.signal import lfilter

from schemas.topology import Priority
from schemas.units import FloatArray
from twin.workload import MIX, Arrivals, IntArray, RequestKind

BLOCK_S = 600
"""Seconds per draw."""

WEEK_S = 7 * 24 * 3600
_DAY_S = 24 * 3600
_HOUR_S = 3600.0
_TURN_H = 6.0  # half of how long the change to the weekend and back takes, about midnight (our choice)
_SECONDS = np.arange(BLOCK_S, dtype=np.float64)


class WeekShape(msgspec.Struct, frozen=True, kw_only=True):
    """Mean demand over a week that begins on Monday 00:00 UTC, as a share of its highest hour.

    A day is level x (1 + swing x (cos once a day + `second` x cos twice a day)), with a level and a swing
    of working days and of the weekend; `peak_h` and `second_h` are the hours at which the waves are highest.
    """

    weekday_level: float
    weekend_level: float
    weekday_swing: float
    weekend_swing: float
    peak_h: float
    second: float
    second_h: float

    def ratio(self, at_s: FloatArray) -> FloatArray:
        """Demand at each of these seconds since Monday 00:00; begins anew each week."""
        hour = np.mod(at_s, WEEK_S) / _HOUR_S
        corners = (0.0, _TURN_H, 120.0 - _TURN_H, 120.0 + _TURN_H, 168.0 - _TURN_H, 168.0)
        weekend = np.interp(hour, corners, (0.5, 0.0, 0.0, 1.0, 1.0, 0.5))
        level = self.weekday_level + weekend * (self.weekend_level - self.weekday_level)
        swing = self.weekday_swing + weekend * (self.weekend_swing - self.weekday_swing)
        once = np.cos((hour - self.peak_h) * (math.pi / 12.0))
        twice = np.cos((hour - self.second_h) * (math.pi / 6.0))
        ratio: FloatArray = np.maximum(0.0, level * (1.0 + swing * (once + self.second * twice)))
        return ratio


class FittedWeek(msgspec.Struct, frozen=True, kw_only=True):
    """A week's shape and where it comes from. `mean_error_ratio` is the mean absolute error of an hour as a
    share of the week's mean."""

    shape: WeekShape
    mean_error_ratio: float
    fitted_on: str
    sha256: str
    licence: str
    command: str


def fit_week(hourly: FloatArray) -> tuple[WeekShape, float]:
    """The shape nearest (least squares) to 168 hourly means from Monday 00:00 on, and its mean absolute
    error as a share of their mean. Raises ValueError for anything else than such a week."""
    if hourly.shape != (168,) or not np.isfinite(hourly).all() or hourly.max() <= 0.0:
        raise ValueError(f"{hourly.size} hourly rates: a week has 168, finite and not all zero")
    wanted = hourly / hourly.max()
    middle_s = np.arange(0.5, 168.0) * _HOUR_S
    names = [field.name for field in msgspec.structs.fields(WeekShape)]

    def shape(values: FloatArray) -> WeekShape:
        return WeekShape(**dict(zip(names, values.tolist(), strict=True)))

    def miss(values: FloatArray) -> FloatArray:
        missed: FloatArray = shape(values).ratio(middle_s) - wanted
        return missed

    found = least_squares(miss, np.array([0.6, 0.4, 0.4, 0.4, 16.0, 0.2, 4.0]))
    fitted = shape(np.round(found.x, 4))
    error = float(np.abs(fitted.ratio(middle_s) - wanted).mean() / wanted.mean())
    return fitted, error


def read_hourly(path: pathlib.Path) -> FloatArray:
    """The requests per second of each hour of a week, all services of the file added up: a CSV with the
    columns hour_of_week and one `…_rps` per service; lines that begin with # are remarks. Raises ValueError
    in words for anything else."""
    with path.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(line for line in lines if not line.startswith("#"))
        services = [name for name in reader.fieldnames or () if name.endswith("_rps")]
        if not services or "hour_of_week" not in (reader.fieldnames or ()):
            raise ValueError(f"{path}: has no columns hour_of_week and …_rps")
        try:
            rows = {int(row["hour_of_week"]): sum(float(row[name]) for name in services) for row in reader}
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: line {reader.line_num}: {error}") from error
    if sorted(rows) != list(range(168)):
        raise ValueError(f"{path}: has {len(rows)} hours; a week has the hours 0 to 167, each once")
    return np.array([rows[hour] for hour in range(168)])


def fitted_on(path: pathlib.Path, licence: str, command: str) -> FittedWeek:
    """The week fitted to a file of hourly rates, with its provenance. Raises ValueError in words."""
    shape, error = fit_week(read_hourly(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return FittedWeek(
        shape=shape,
        mean_error_ratio=round(error, 4),
        fitted_on=path.name,
        sha256=digest,
        licence=licence,
        command=command,
    )


def shipped_week() -> FittedWeek:
    """The week that ships."""
    text = importlib.resources.files("twin").joinpath("coefficients/weekly_demand.json").read_bytes()
    return msgspec.json.decode(text, type=FittedWeek)


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What comes to a row on top of the week's shape.

    `requests_per_s` is the mean rate of one server in the week's highest hour. `day_ratio` is the standard
    deviation from day to day, `wander_ratio` that of a wander all servers share, with time constant
    `wander_s`. Bursts come `bursts_a_day` at random, rise within `rise_s` at most, stay for `hold_s` on
    average, and add `burst_ratio` of the rate of the hour on average, at most `burst_most_ratio`. Volleys,
    a program that asks many servers at one instant, come `volleys_a_day` and meet up to `volley_ratio` of
    the servers, fewer in hours of less demand. All of these are our choice (see `STUDY_DEMAND`).
    """

    requests_per_s: float
    day_ratio: float = 0.0
    wander_ratio: float = 0.0
    wander_s: float = 600.0
    bursts_a_day: float = 0.0
    burst_ratio: float = 0.0
    burst_most_ratio: float = 1.0
    rise_s: float = 20.0
    hold_s: float = 120.0
    volleys_a_day: float = 0.0
    volley_ratio: float = 0.0


class Load(Protocol):
    """Where requests come from. Asked for each block once, in order, from 0 on."""

    def block(self, index: int) -> Arrivals:
        """The requests that arrive in the block of `BLOCK_S` seconds, `at_s` since the start of the run,
        in the order they arrive."""


class WeeklyLoad:
    """Random requests after a week's shape: a Poisson process per priority, spread evenly over its hosts.

    What comes to the row as a whole (days, wander, bursts) is drawn from one generator and the requests from
    another, so that rows of different size under one seed live through the same weeks.
    """

    def __init__(
        self,
        priorities: Sequence[Priority],
        demand: Demand,
        shape: WeekShape,
        *,
        seed: int,
        begin_s: float = 0.0,
        mix: Sequence[RequestKind] = MIX,
    ) -> None:
        """`priorities` are those of the row's hosts, in their order; the run begins `begin_s` into a week."""
        self._demand, self._shape, self._begin_s = demand, shape, begin_s
        course, requests = np.random.SeedSequence(seed).spawn(2)
        self._course, self._rng = np.random.default_rng(course), np.random.default_rng(requests)
        self._wander = 0.0
        self._keep = math.exp(-1.0 / demand.wander_s)
        self._day, self._today, self._tomorrow = -1, 1.0, self._a_day()
        self._bursts: list[tuple[float, float, float, float]] = []  # from, rise, hold, height
        self._hosts = len(priorities)
        self._of = np.zeros(self._hosts, dtype=np.int64)  # each host's place in `_parts`
        self._parts: list[tuple[float, IntArray, FloatArray, FloatArray]] = []
        for priority in get_args(Priority):
            kinds = [kind for kind in mix if kind.priority == priority]
            members = np.flatnonzero(np.array([each == priority for each in priorities]))
            if kinds and members.size:
                shares = np.array([kind.share_ratio for kind in kinds])
                lengths = np.array([(kind.prompt_tokens, kind.output_tokens) for kind in kinds], dtype=float)
                rate = demand.requests_per_s * len(priorities) * float(shares.sum())
                self._of[members] = len(self._parts)
                self._parts.append((rate, members, np.cumsum(shares / shares.sum()), lengths))

    def ratio(self, index: int) -> FloatArray:
        """Demand in each second of a block, as a share of the week's highest hour; in order, each once."""
        at = _SECONDS + index * BLOCK_S
        day = int(at[0] // _DAY_S)
        if day != self._day:
            self._day, self._today, self._tomorrow = day, self._tomorrow, self._a_day()
        level = self._today + (self._tomorrow - self._today) * (at % _DAY_S) / _DAY_S
        more = 1.0 + self._wandering() + self._burst(at)
        ratio: FloatArray = np.maximum(0.0, self._shape.ratio(at + self._begin_s) * level * more)
        return ratio

    def block(self, index: int) -> Arrivals:
        rng, ratio = self._rng, self.ratio(index)
        seconds = _SECONDS + index * BLOCK_S
        volleys = self._volleys(index, float(ratio[0]))
        columns = []
        for part, (rate, members, upto, lengths) in enumerate(self._parts):
            at = np.repeat(seconds, rng.poisson(ratio * rate))
            at += rng.random(at.size)
            host = members[rng.integers(0, members.size, at.size)]
            mine = self._of[volleys[1]] == part
            at, host = np.concatenate((at, volleys[0][mine])), np.concatenate((host, volleys[1][mine]))
            which, *chance = rng.random((3, at.size))
            low, high = lengths[np.searchsorted(upto[:-1], which, side="right")].transpose(2, 1, 0)
            columns.append((at, host, *np.floor(low + np.stack(chance) * (high - low + 1.0))))
        at, host, prompt, output = (np.concatenate(column) for column in zip(*columns, strict=True))
        return Arrivals(at, host, prompt, output).part(np.argsort(at, kind="stable"))

    def _volleys(self, index: int, ratio: float) -> tuple[FloatArray, IntArray]:
        """The moments and hosts of what volleys ask in a block. How many come, when and how large is drawn
        with the course, so that rows of any size live through the same ones."""
        times = self._course.poisson(self._demand.volleys_a_day * BLOCK_S / _DAY_S)
        moments, shares = self._course.random((2, times))
        most = self._demand.volley_ratio * min(1.0, ratio)
        hosts = [
            self._rng.permutation(self._hosts)[: round(share * most * self._hosts)]
            for share in shares.tolist()
        ]
        at = np.repeat((index + moments) * BLOCK_S, [len(each) for each in hosts])
        return at, np.concatenate((np.zeros(0, dtype=np.int64), *hosts))

    def _a_day(self) -> float:
        return max(0.0, 1.0 + self._demand.day_ratio * float(self._course.standard_normal()))

    def _wandering(self) -> FloatArray:
        """A block of a first-order wander, one value per second."""
        push = self._course.standard_normal(BLOCK_S)
        push *= self._demand.wander_ratio * math.sqrt(1.0 - self._keep**2)
        values, _ = lfilter((1.0,), (1.0, -self._keep), push, zi=np.array([self._keep * self._wander]))
        self._wander = float(values[-1])
        wander: FloatArray = values
        return wander

    def _burst(self, at: FloatArray) -> FloatArray:
        """What bursts add in each second of a block."""
        demand, rng = self._demand, self._course
        for _ in range(rng.poisson(demand.bursts_a_day * BLOCK_S / _DAY_S)):
            begin, rise, hold, height = rng.random(4).tolist()
            self._bursts.append(
                (
                    float(at[0]) + begin * BLOCK_S,
                    1.0 + rise * (demand.rise_s - 1.0),
                    -demand.hold_s * math.log1p(-hold),
                    min(demand.burst_most_ratio, -demand.burst_ratio * math.log1p(-height)),
                )
            )
        added = np.zeros(BLOCK_S)
        for begin, rise, hold, height in self._bursts:
            corners = (begin, begin + rise, begin + rise + hold, begin + 2.0 * rise + hold)
            added += np.interp(at, corners, (0.0, height, height, 0.0))
        self._bursts = [b for b in self._bursts if b[0] + 2.0 * b[1] + b[2] > at[-1]]
        return added


class TracedLoad:
    """Requests as recorded arrivals have them, tiled over time, under a week's shape, wander and bursts.

    Each request of the recording comes, each time it is played again, a Poisson number of times with mean
    `copies` per server x the demand of that second, within `spread_s` of its own moment, at a server drawn
    at random: the recordings name neither server nor priority. `copies` is the mean at the highest hour.
    """

    def __init__(
        self,
        hosts: int,
        at_s: FloatArray,
        prompt: FloatArray,
        output: FloatArray,
        demand: Demand,
        shape: WeekShape,
        *,
        seed: int,
        begin_s: float = 0.0,
        spread_s: float = 2.0,
    ) -> None:
        """`demand.requests_per_s` is the mean rate of one server at the highest hour. Raises ValueError for
        a recording without requests."""
        if not at_s.size:
            raise ValueError("the recorded arrivals are none")
        order = np.argsort(at_s, kind="stable")
        self._at = at_s[order] - at_s[order[0]]
        self._prompt = np.maximum(1.0, prompt[order])
        self._output = np.maximum(1.0, output[order])
        self._long_s = float(self._at[-1]) + 1.0
        self._hosts, self._spread_s = hosts, spread_s
        self._copies = demand.requests_per_s * hosts * self._long_s / at_s.size
        # The course of demand is that of the random load; its requests are not asked for.
        self._course = WeeklyLoad((), demand, shape, seed=seed, begin_s=begin_s)
        self._rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[2])

    def block(self, index: int) -> Arrivals:
        rng, ratio, begin = self._rng, self._course.ratio(index), index * BLOCK_S
        places, moments = [], []
        for turn in range(int(begin // self._long_s), int((begin + BLOCK_S) // self._long_s) + 1):
            at = self._at + turn * self._long_s
            part = np.flatnonzero((at >= begin) & (at < begin + BLOCK_S))
            places.append(part)
            moments.append(at[part])
        place, at = np.concatenate(places), np.concatenate(moments)
        times = rng.poisson(self._copies * ratio[(at - begin).astype(np.int64)])
        place, at = np.repeat(place, times), np.repeat(at, times)
        at = np.clip(at + self._spread_s * (rng.random(at.size) - 0.5), begin, begin + BLOCK_S - 1e-6)
        host = rng.integers(0, self._hosts, at.size)
        order = np.argsort(at, kind="stable")
        return Arrivals(at[order], host[order], self._prompt[place[order]], self._output[place[order]])


def read_arrivals(paths: Sequence[pathlib.Path]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Seconds, prompt tokens and answer tokens of the requests of some files in the form of the public Azure
    traces (TIMESTAMP, ContextTokens, GeneratedTokens), laid over each other from their first requests on.
    Raises ValueError in words."""
    columns: list[tuple[FloatArray, FloatArray, FloatArray]] = []
    for path in paths:
        with path.open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            missing = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} - set(reader.fieldnames or ())
            if missing:
                raise ValueError(f"{path}: has no column {', '.join(sorted(missing))}")
            rows = [(row["TIMESTAMP"], row["ContextTokens"], row["GeneratedTokens"]) for row in reader]
        if not rows:
            raise ValueError(f"{path}: has no requests")
        moments, prompts, outputs = zip(*rows, strict=True)
        try:
            at = np.array([moment.replace(" ", "T") for moment in moments], dtype="datetime64[us]")
            tokens = np.array((prompts, outputs), dtype=np.float64)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        columns.append(((at - at.min()) / np.timedelta64(1, "s"), *tokens))
    at_s, prompt, output = (np.concatenate(column) for column in zip(*columns, strict=True))
    return at_s, prompt, output
