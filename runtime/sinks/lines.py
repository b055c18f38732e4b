"""Messages as InfluxDB line protocol: what a site did, as points in time.

    rollup,site=ams1,row=ams1/row-b power_w=251300.0,coverage_ratio=1.0,hosts_known=40i 1772388000000000000

A measurement is a kind of message, its tags say where (`site`, `row`, `rack`, `host`, `node`) and which of
few kinds, its fields are the message's own with the unit in the name. What is unknown has no field: a gap,
never a zero. The same message always gives the same points, so that writing them again changes nothing.

Points are known by measurement, tags and time, and messages are dated by the millisecond. Where several
may be said of one subject in one millisecond (commands, outcomes, emergencies), the digits below it come
from the message's id; those of a ledger record from its place in the ledger.

The own writing of lines is for speed: it is twice what the vendor's `Point` does, and is held to its
escaping and to what the real server reads back by tests.
"""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

from msgspec import inspect

from schemas.commands import Command, SetShares
from schemas.decisions import Decision
from schemas.emergencies import Emergency, EmergencyKind
from schemas.envelope import DeadLetter, Event, Tick
from schemas.forecasts import (
    FarmForecast,
    Forecast,
    ForecastScore,
    LoadForecast,
    PeakForecast,
    ThermalForecast,
)
from schemas.operators import Pin, ReleaseAll, ResetBlastRadius, Resume, Unpin
from schemas.outcomes import Outcome
from schemas.samples import (
    CoolingSample,
    FarmSample,
    FeedSample,
    GpuFrame,
    PowerRollup,
    RackSample,
    RowSummary,
    ServingSample,
    SitePower,
    UpsSample,
    WeatherSample,
)
from schemas.topology import Site
from schemas.units import Grid, Reading

Value: TypeAlias = float | int | str | bool | None
Fields: TypeAlias = Iterable[tuple[str, Value]]

_NS = 1_000_000  # nanoseconds in a millisecond
_EARLIEST, _LATEST = -(2**63) // _NS + 1, 2**63 // _NS - 1  # what InfluxDB can date, in milliseconds
_INT64 = range(-(2**63), 2**63)
_STRANGERS = 1_000  # paths off the site that get series of their own (our choice): memory is not endless
_COLLECTOR = re.compile(r"collector/([a-z0-9_-]{1,32})(/|$)")
_HEX = re.compile(r"[0-9a-f]{3}")
NO_HEX = "other"
"""The tag of ids in `ledger_id` that do not begin with three hexadecimal digits: none of ours."""

_UNIT_OF: dict[type[Forecast], str] = {
    PeakForecast: "w",
    ThermalForecast: "c",
    FarmForecast: "w",
    LoadForecast: "requests_per_s",
}
_UNIT_OF_TROUBLE: dict[EmergencyKind, str] = {
    "overload": "w",
    "failover": "w",
    "supply_loss": "w",
    "overtemperature": "c",
    "cooling_loss": "c",
    "telemetry_loss": "ratio",
}


class Lines:
    """The points of a site's messages. Keeps what it worked out of the site; otherwise a pure function.

    `strangers` counts messages of paths that the site does not know, beyond the first `_STRANGERS` such
    paths: they get no points. `undatable` counts those whose time InfluxDB cannot hold.
    """

    def __init__(self, site: Site) -> None:
        self.strangers = 0
        self.undatable = 0
        self._uncapped_mhz = {host.path: host.sku.max_mhz for host in site.hosts.values()}
        self._places = _places(site)
        self._known = len(self._places)

    def of(self, event: Event) -> list[str]:
        """The lines of one message: none for a type that is no series, several where it speaks of several
        things."""
        kind = type(event)
        shape = _SHAPES.get(kind) or _shape_of_any(kind)
        if shape is None:
            return []
        place = self._place(event.subject)
        if place is None:
            self.strangers += 1
            return []
        if not _EARLIEST <= event.at <= _LATEST:
            self.undatable += 1
            return []
        time = event.at * _NS + (zlib.crc32(event.id.encode()) % _NS if shape.apart else 0)
        tags = place
        if shape.sampled and (match := _COLLECTOR.match(event.source)):
            tags += f",by={match[1]}"
        if shape.kind:
            tags += f",{shape.kind}={kind.__name__}"
        for name in shape.tags:
            tags += _tag(name, getattr(event, name, ""))
        if shape.special is not None:
            points = shape.special(self, event)
        else:
            points = [Point(shape.measurement, "", _scalars(event))]
        lines = []
        for point in points:
            # A point of a part of the subject (a host of a rack) stands at that part's place.
            where = self._place(point.subject) if point.subject else tags
            fields = _fields(point.fields)
            if where is not None and fields:
                if shape.apart:
                    fields += f',id="{_text(event.id)}"'
                lines.append(f"{point.measurement}{where}{point.tags} {fields} {time}")
        return lines

    def wanted(self, decision: Decision) -> Fields:
        """How many hosts a decision wants braked, held below their highest clock, and left at it."""
        braked = capped = uncapped = 0
        for setting in decision.desired:
            if setting.brake:
                braked += 1
            elif setting.max_mhz < self._uncapped_mhz.get(setting.target, 0):
                capped += 1
            else:
                uncapped += 1
        return (("hosts_braked", braked), ("hosts_capped", capped), ("hosts_uncapped", uncapped))

    def _place(self, subject: str) -> str | None:
        place = self._places.get(subject)
        if place is None:
            if len(self._places) >= self._known + _STRANGERS:
                return None
            place = self._places[subject] = self._nearest(subject)
        return place

    def _nearest(self, subject: str) -> str:
        """The place of the nearest known path above, and the rest as the tag `part`."""
        parts = subject.split("/")
        for cut in range(len(parts) - 1, 0, -1):
            place = self._places.get("/".join(parts[:cut]))
            if place is not None:
                return place + _tag("part", "/".join(parts[cut:]))
        return _tag("part", subject)


def ledger_lines(event: Event, body: bytes, place: int) -> list[str]:
    """A ledger record whole, and how to find it by its id. `body` is its bytes, `place` its place in the
    ledger's order: the later record has the higher one.

    The digits of the time below the millisecond are the place's last six: as long as no million records
    share a millisecond, none takes another's point and their order can be read from them.
    """
    if not _EARLIEST <= event.at <= _LATEST:
        return []
    kind = type(event).__name__
    time = event.at * _NS + place % _NS
    tags = _tag("type", kind) + _tag("subject", event.subject)
    found = _text(f"{kind}\t{tag_value(event.subject)}\t{tag_value(event.id)}")
    return [
        f'ledger{tags} body="{_text(body.decode())}" {time}',
        f'ledger_id,begins={begins(event.id)} record="{found}" {time}',
    ]


def begins(identity: str) -> str:
    """The tag under which an id is found: its first three digits, so that whoever looks for one reads a
    4096th of them."""
    return identity[:3] if _HEX.match(identity) else NO_HEX


class Point(NamedTuple):
    """A point before it is written; `subject` where it is not the message's own, `tags` besides."""

    measurement: str
    subject: str
    fields: Fields
    tags: str = ""


class _Shape(NamedTuple):
    """How a type of message becomes points: the measurement, which of its fields are tags, the tag that
    holds its type, whether several may be said of a subject at once, and whether collectors say it."""

    measurement: str
    tags: tuple[str, ...] = ()
    kind: str = ""
    apart: bool = False
    sampled: bool = False
    special: Callable[[Lines, Any], Iterable[Point]] | None = None


# ---- the kinds of messages ----


def _rollup(_: Lines, rollup: PowerRollup) -> Iterator[Point]:
    withheld = [(f"withheld_{reason}", count) for reason, count in rollup.verdicts.items()]
    yield Point("rollup", "", [*_scalars(rollup), *withheld])
    for rack, power_w in zip(rollup.racks, rollup.rack_w, strict=False):
        yield Point("rack", rack, [("power_w", power_w)])


def _site(_: Lines, site: SitePower) -> Iterator[Point]:
    modes = [(f"rows_{mode}", count) for mode, count in site.modes.items()]
    yield Point("site", "", [*_scalars(site), ("rows_silent", len(site.silent)), *modes])


def _frame(_: Lines, frame: GpuFrame) -> Iterator[Point]:
    """A host's GPUs in one point: a sum where each of them is known, else none."""
    sums = [whole for instant in frame.best_power_w if (whole := _sum(instant)) is not None]
    newest = frame.best_power_w[-1] if frame.best_power_w else ()
    yield Point(
        "host",
        "",
        [
            ("gpus", len(frame.gpus)),
            ("gpus_known", sum(reading is not None for reading in newest)),
            ("power_w", _sum(newest)),
            ("power_max_w", max(sums, default=None)),
            ("core_max_c", _highest(frame.core_c)),
            ("memory_max_c", _highest(frame.memory_c)),
            ("sm_max_mhz", _highest(_last(frame.sm_mhz))),
            ("utilisation_max_ratio", _highest(_last(frame.utilisation_ratio))),
            ("faults", sum(map(bool, frame.faults))),
        ],
    )


def _wall(_: Lines, sample: RackSample) -> Iterator[Point]:
    by = match[1] if (match := _COLLECTOR.match(sample.source)) else ""
    for index, host in enumerate(sample.hosts):
        columns = (("power_w", sample.power_w), ("inlet_c", sample.inlet_c))
        fields = [(name, column[index]) for name, column in columns if index < len(column)]
        yield Point("wall", host, fields, _tag("by", by))


def _forecast(_: Lines, forecast: Forecast) -> Iterator[Point]:
    """A point for each horizon, a field for each quantile."""
    unit = _UNIT_OF[type(forecast)]
    for horizon_s, values in zip(forecast.horizons_s, forecast.values, strict=False):
        fields: list[tuple[str, Value]] = [
            (f"q{quantile:g}_{unit}", value)
            for quantile, value in zip(forecast.quantiles, values, strict=False)
        ]
        fields.append(("fallback", bool(forecast.fallback)))
        yield Point("forecast", "", fields, f",horizon_s={horizon_s:g}")


def _score(_: Lines, score: ForecastScore) -> Iterator[Point]:
    for index, horizon_s in enumerate(score.horizons_s):
        fields: list[tuple[str, Value]] = [("samples", score.samples), ("trusted", score.trusted)]
        fields.append(("lead_s", score.lead_s))
        if index < len(score.pinball_w):
            fields.append(("pinball_w", score.pinball_w[index]))
        if index < len(score.coverage_ratio):
            fields += [
                (f"covered_q{quantile:g}_ratio", share)
                for quantile, share in zip(score.quantiles, score.coverage_ratio[index], strict=False)
            ]
        yield Point("forecast_score", "", fields, f",horizon_s={horizon_s:g}")


def _emergency(_: Lines, trouble: Emergency) -> Iterator[Point]:
    unit = _UNIT_OF_TROUBLE.get(trouble.kind)
    fields: list[tuple[str, Value]] = [("episode", trouble.episode), ("because", trouble.because)]
    if unit is not None:
        fields += [(f"value_{unit}", trouble.value), (f"limit_{unit}", trouble.limit)]
    yield Point("emergency", "", fields)


def _decision(lines: Lines, decision: Decision) -> Iterator[Point]:
    more = [("refusing", bool(decision.refusal)), ("overruled", len(decision.overruled))]
    yield Point("decision", "", [*_scalars(decision), *more, *lines.wanted(decision)])


def _command(_: Lines, command: Command) -> Iterator[Point]:
    lease = command.lease
    fields: list[tuple[str, Value]] = [
        *_scalars(command),
        ("epoch", lease.epoch),
        ("lease_s", (lease.expires_at - lease.issued_at) / 1000),
        ("decision", command.cause[0] if command.cause else None),
    ]
    on_expiry = _tag("on_expiry", lease.on_expiry)
    if isinstance(command, SetShares):
        for member, share in zip(command.members, command.shares_ratio, strict=False):
            yield Point("command", "", [*fields, ("share_ratio", share)], on_expiry + _tag("member", member))
    else:
        yield Point("command", "", fields, on_expiry)


def _dead(_: Lines, letter: DeadLetter) -> Iterator[Point]:
    yield Point("dead_letter", "", [("bytes", len(letter.payload)), ("reason", letter.reason)])


def _sum(readings: Iterable[Reading]) -> Reading:
    """What the readings come to, None where there is none or one is unknown."""
    total, none = 0.0, True
    for reading in readings:
        if reading is None:
            return None
        total, none = total + reading, False
    return None if none else total


def _highest(readings: Iterable[Reading]) -> Reading:
    """The highest that is known."""
    return max((reading for reading in readings if reading is not None), default=None)


def _last(grid: Grid) -> tuple[Reading, ...]:
    return grid[-1] if grid else ()


_COMMAND = _Shape("command", ("path",), kind="command", apart=True, special=_command)
_OUTCOME = _Shape("outcome", kind="outcome", apart=True)
_SHAPES: dict[type[Event], _Shape | None] = {
    GpuFrame: _Shape("host", sampled=True, special=_frame),
    RackSample: _Shape("wall", special=_wall),
    FeedSample: _Shape("feed", sampled=True),
    UpsSample: _Shape("ups", sampled=True),
    CoolingSample: _Shape("cooling", sampled=True),
    FarmSample: _Shape("farm", sampled=True),
    WeatherSample: _Shape("weather", sampled=True),
    ServingSample: _Shape("serving", sampled=True),
    PowerRollup: _Shape("rollup", special=_rollup),
    SitePower: _Shape("site", special=_site),
    **{kind: _Shape("forecast", ("model",), kind="forecast", special=_forecast) for kind in _UNIT_OF},
    ForecastScore: _Shape("forecast_score", ("model",), special=_score),
    Emergency: _Shape("emergency", ("kind", "phase"), apart=True, special=_emergency),
    Decision: _Shape("decision", ("policy",), apart=True, special=_decision),
    **dict.fromkeys(Command.__subclasses__(), _COMMAND),
    **dict.fromkeys(Outcome.__subclasses__(), _OUTCOME),
    **{
        kind: _Shape("operator", kind="word", apart=True)
        for kind in (Pin, Unpin, ResetBlastRadius, ReleaseAll, Resume)
    },
    DeadLetter: _Shape("dead_letter", ("topic",), apart=True, special=_dead),
}


NO_SERIES: frozenset[type[Event]] = frozenset({Tick, RowSummary})
"""What these say of a time, the beat's rollup and decision say too."""


@functools.cache
def _shape_of_any(kind: type[Event]) -> _Shape | None:
    """A type that has no shape of its own is written with its single values, under its own name."""
    if kind in NO_SERIES:
        return None
    return _Shape(re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower())


# ---- fields ----


@functools.cache
def _single(kind: type[Event]) -> tuple[tuple[str, bool], ...]:
    """The fields of a type that hold one value, and whether it is a real number: those are points' fields,
    unless they are its tags or the envelope's. A field has one type for ever, or InfluxDB refuses it."""
    shape = _SHAPES.get(kind)
    besides = {*Event.__struct_fields__, *(shape.tags if shape is not None else ())}
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    found = []
    for field in info.fields:
        types = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
        types = tuple(each for each in types if not isinstance(each, inspect.NoneType))
        if field.name not in besides and all(isinstance(each, _SINGLE) for each in types):
            found.append((field.name, any(isinstance(each, inspect.FloatType) for each in types)))
    return tuple(found)


_SINGLE = (inspect.FloatType, inspect.IntType, inspect.BoolType, inspect.StrType, inspect.LiteralType)


def _scalars(event: Event) -> list[tuple[str, Value]]:
    return [
        (name, float(value) if real and value is not None else value)
        for name, real in _single(type(event))
        if (value := getattr(event, name)) is not None
    ]


def _fields(fields: Fields) -> str:
    """The field set of a line, empty where nothing is known."""
    written = []
    for name, value in fields:
        if isinstance(value, float):
            if math.isfinite(value):
                written.append(f"{_key(name)}={value!r}")
        elif isinstance(value, bool):
            written.append(f"{_key(name)}={'true' if value else 'false'}")
        elif isinstance(value, int):
            if value in _INT64:
                written.append(f"{_key(name)}={value}i")
        elif value:
            written.append(f'{_key(name)}="{_text(value)}"')
    return ",".join(written)


# ---- escaping ----

_SPECIAL = str.maketrans({",": "\\,", "=": "\\=", " ": "\\ "})
_PERCENT = {"%": "%25", "\\": "%5C"}


def tag_value(text: str) -> str:
    """A text as the value of a tag, before the line's own escaping: what a tag cannot hold (control
    characters, a backslash at the wrong place) is written as in a URL, so that no two texts become one."""
    if text.isprintable() and not ("%" in text or "\\" in text):
        return text
    return "".join(
        _PERCENT[c] if c in _PERCENT else c if c.isprintable() else "".join(f"%{b:02X}" for b in c.encode())
        for c in text
    )


@functools.lru_cache(maxsize=65_536)
def _key(text: str) -> str:
    """A tag's value or a field's name on a line."""
    return tag_value(text).translate(_SPECIAL)


def _tag(name: str, value: str) -> str:
    """A tag with the comma before it; an empty one cannot be said."""
    return f",{name}={_key(value)}" if value else ""


def _text(value: str) -> str:
    """The inside of a text field's quotes."""
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _places(site: Site) -> dict[str, str]:
    """Every path of a site → its tags."""
    places = {site.name: _tag("site", site.name)}
    for row in site.rows:
        in_row = places[row.path] = places[site.name] + _tag("row", row.path)
        for rack in row.racks:
            in_rack = places[rack.path] = in_row + _tag("rack", rack.path)
            for host in rack.hosts:
                places[host.path] = in_rack + _tag("host", host.path) + _tag("priority", host.priority)
    for node in site.power:
        places[node.path] = places[site.name] + _tag("kind", node.kind) + _tag("node", node.path)
    return places
