"""Demand over weeks: the hours of a day, working days and weekends, wander, and bursts.

The shape of the week is a handful of parameters fitted to the public request rates of two LLM services
(`fit_week`; what ships is `coefficients/weekly_demand.json`, with its provenance). On it lie a slow wander
that all servers share, and bursts: a crowd that comes within seconds and stays for minutes. Requests are
drawn ten minutes at a time from generators that nothing else draws from, so that runs with one seed see
the same requests however their row is controlled, and memory does not grow with simulated time.
"""

from __future__ import annotations

import csv
import datetime
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
        volleys = self.volleys(index, float(ratio[0]))
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

    def volleys(self, index: int, ratio: float) -> tuple[FloatArray, IntArray]:
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
    """Requests as recorded arrivals have them: each server plays the recording from a place of its own.

    A server's requests are those of the recording from its place on, tiled over time, each as often as a
    Poisson draw with the demand of that second has it (most never: a server answers a small share of what a
    whole service was asked), within `spread_s` after its moment. Places are drawn at random and stay. So a
    server has the recording's crowds and lulls, and the row the week's shape, wander, bursts and volleys.

    The recordings name no priority, and their answers are a seventh as long as the study's: `in_the_mix`
    makes each request one of the mix's, and a server plays those of its own priority. What stays the
    recording's is when requests come, and which are the long ones.
    """

    def __init__(
        self,
        priorities: Sequence[Priority],
        at_s: FloatArray,
        prompt: FloatArray,
        output: FloatArray,
        demand: Demand,
        shape: WeekShape,
        *,
        seed: int,
        begin_s: float = 0.0,
        spread_s: float = 2.0,
        mix: Sequence[RequestKind] = MIX,
    ) -> None:
        """`priorities` are those of the row's hosts, in their order; `demand.requests_per_s` is the mean rate
        of one server at the highest hour. Raises ValueError, in words, for a recording with too few requests
        to give each priority its own."""
        # The course of demand is that of the random load; its requests are not asked for.
        self._course = WeeklyLoad(priorities, demand, shape, seed=seed, begin_s=begin_s, mix=mix)
        self._rng = rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[2])
        kind, prompt, output = in_the_mix(prompt, output, mix, rng)
        whose = np.array([each.priority for each in mix])[kind]
        places = rng.random(len(priorities))
        order = np.argsort(at_s, kind="stable")
        self._spread_s = spread_s
        self._parts: list[_Played] = []
        for priority in get_args(Priority):
            share = sum(kind.share_ratio for kind in mix if kind.priority == priority)
            members = np.flatnonzero(np.array([each == priority for each in priorities]))
            if not members.size or share == 0.0:
                continue
            mine = order[whose[order] == priority]
            if not mine.size:
                raise ValueError(f"{at_s.size} recorded arrivals: too few to give each priority its own")
            long_s = float(at_s[order[-1]] - at_s[order[0]]) + 1.0
            rate = demand.requests_per_s * len(priorities) * share / members.size
            self._parts.append(
                _Played(
                    members=members,
                    place_s=places[members] * long_s,
                    long_s=long_s,
                    copies=rate * long_s / mine.size,
                    at_s=at_s[mine] - at_s[order[0]],
                    prompt=prompt[mine],
                    output=output[mine],
                )
            )
        none = np.zeros(0)
        self._late = Arrivals(none, np.zeros(0, dtype=np.int64), none, none)

    def block(self, index: int) -> Arrivals:
        begin, end = index * BLOCK_S, (index + 1) * BLOCK_S
        ratio = self._course.ratio(index)
        met = self._course.volleys(index, float(ratio[0]))
        found = [self._late]
        for part in self._parts:
            found.append(part.played(begin, ratio, self._spread_s, self._rng))
            found.append(part.at_once(*met, self._rng))
        at, host, prompt, output = (np.concatenate(column) for column in zip(*found, strict=True))
        asked = Arrivals(at, host, prompt, output).part(np.argsort(at, kind="stable"))
        # What is spread past the end comes with the next block at its own moment, not in a crowd now.
        within = int(np.searchsorted(asked.at_s, end))
        self._late = asked.part(slice(within, None))
        return asked.part(slice(within))


class _Played(msgspec.Struct, frozen=True, kw_only=True):
    """The recorded requests of one priority, in order, and its servers' places in them; each request comes
    `copies` times at each server whenever it is played, on average at the highest hour."""

    members: IntArray
    place_s: FloatArray
    long_s: float
    copies: float
    at_s: FloatArray
    prompt: FloatArray
    output: FloatArray

    def played(self, begin: float, ratio: FloatArray, spread_s: float, rng: np.random.Generator) -> Arrivals:
        """What the servers play in a block. Drawn by how many and then which, so that it costs by what comes
        and not by what was recorded."""
        first = self._before(self.place_s + begin)
        many = self._before(self.place_s + begin + BLOCK_S) - first
        top = float(ratio.max())
        who = np.repeat(np.arange(self.members.size), rng.poisson(self.copies * top * many))
        which, chance, later = rng.random((3, who.size))
        turn, place = np.divmod(first[who] + (which * many[who]).astype(np.int64), self.at_s.size)
        at = turn * self.long_s + self.at_s[place] - self.place_s[who]
        second = np.clip(at - begin, 0, BLOCK_S - 1).astype(np.int64)  # rounding may pass a border
        comes = chance * top < ratio[second]
        at, who, place = np.maximum(at, begin)[comes], who[comes], place[comes]
        return Arrivals(
            at + spread_s * later[comes], self.members[who], self.prompt[place], self.output[place]
        )

    def at_once(self, at: FloatArray, host: IntArray, rng: np.random.Generator) -> Arrivals:
        """What volleys, at these moments and hosts, ask of these servers: any of the recorded requests."""
        mine = np.isin(host, self.members)
        place = rng.integers(0, self.at_s.size, int(mine.sum()))
        return Arrivals(at[mine], host[mine], self.prompt[place], self.output[place])

    def _before(self, moment: FloatArray) -> IntArray:
        """How many requests come before these moments of the recording, played again and again from 0 on."""
        turn, within = np.divmod(moment, self.long_s)
        before: IntArray = turn.astype(np.int64) * self.at_s.size + np.searchsorted(self.at_s, within)
        return before


def in_the_mix(
    prompt: FloatArray, output: FloatArray, mix: Sequence[RequestKind], rng: np.random.Generator
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Recorded requests as the mix's: the place of each one's kind in `mix`, its prompt and its answer.

    By the lengths of their prompts requests are divided among the kinds, each its share, the longest prompts
    to the kind of the longest; kinds that do not differ in it (the chats) divide theirs at random. Within its
    kind a request has the place of its length, of prompt and answer each, in the kind's range.
    """
    middle = np.array([sum(kind.prompt_tokens) for kind in mix])
    share = np.array([kind.share_ratio for kind in mix])
    level, of_level = np.unique(middle, return_inverse=True)
    upto = np.cumsum([share[of_level == each].sum() for each in range(level.size)]) / share.sum()
    at = np.searchsorted(upto[:-1], _rank(prompt, rng), side="right")
    kind = np.empty(prompt.size, dtype=np.int64)
    for each in range(level.size):
        kinds, here = np.flatnonzero(of_level == each), at == each
        kind[here] = rng.choice(kinds, int(here.sum()), p=share[kinds] / share[kinds].sum())
    prompt, output = prompt.copy(), output.copy()
    for place, its in enumerate(mix):
        here = kind == place
        for tokens, (low, high) in ((prompt, its.prompt_tokens), (output, its.output_tokens)):
            tokens[here] = np.floor(low + _rank(tokens[here], rng) * (high - low + 1.0))
    return kind, prompt, output


def _rank(values: FloatArray, rng: np.random.Generator) -> FloatArray:
    """The place of each value among them in order, from 0 to 1; equal ones at random."""
    rank = np.empty(values.size)
    rank[np.lexsort((rng.random(values.size), values))] = (np.arange(values.size) + 0.5) / values.size
    return rank


MOST_TOKENS = 10_000_000
"""No request has more, of either kind: more is a slip in a file."""


def read_arrivals(paths: Sequence[pathlib.Path]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Seconds, prompt tokens and answer tokens of the requests of some files in the form of the public Azure
    traces (TIMESTAMP, ContextTokens, GeneratedTokens), laid over each other from their first requests on.
    Raises ValueError in words, with file and line."""
    columns = []
    for path in paths:
        at, prompt, output = np.array(_requests(path)).T
        columns.append((at - at.min(), prompt, output))
    at_s, prompt, output = (np.concatenate(column) for column in zip(*columns, strict=True))
    return at_s, prompt, output


def _requests(path: pathlib.Path) -> list[tuple[float, float, float]]:
    """Moment (seconds since 1970; UTC where the file says no zone), prompt and answer of each request."""
    requests = []
    with path.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            missing = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} - set(reader.fieldnames or ())
            if missing:
                empty = "" if reader.fieldnames else "is empty: "
                lacks = f"has no column {', '.join(sorted(missing))}"
                raise ValueError(f"{path}: {empty}{lacks}; its form is that of the public Azure LLM traces")
            for row in reader:
                try:
                    requests.append(
                        (
                            _moment(row["TIMESTAMP"]),
                            _tokens("ContextTokens", row["ContextTokens"]),
                            _tokens("GeneratedTokens", row["GeneratedTokens"]),
                        )
                    )
                except ValueError as error:
                    raise ValueError(f"{path}: line {reader.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: is no text in UTF-8") from error
        except csv.Error as error:
            raise ValueError(f"{path}: line {reader.line_num + 1}: {error}") from error
    if not requests:
        raise ValueError(f"{path}: has no requests")
    return requests


def _moment(text: str | None) -> float:
    if not text:
        raise ValueError("TIMESTAMP is missing")
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"TIMESTAMP {text[:40]!r}: must be a date and a time") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _tokens(name: str, text: str | None) -> float:
    if not text:
        raise ValueError(f"{name} is missing")
    try:
        tokens = float(text)
    except ValueError:
        tokens = math.nan
    if not 0.0 <= tokens <= MOST_TOKENS:
        raise ValueError(f"{name} {text[:40]!r}: must be a number of tokens from 0 to {MOST_TOKENS:,}")
    return tokens
