"""The ledger as InfluxDB holds it: the same questions, the same answers, from any machine of the site.

A record lies there whole (`runtime/sinks/lines.py`). It is looked up by type, subject and time, which
are how InfluxDB keeps it, or by its id through an index: a 4096th of that is read for each id.

Whether a record was changed cannot be told here: the chain is in the SQLite index.
"""

from __future__ import annotations

import csv
import datetime as dt
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self
from urllib.parse import unquote

from runtime.bus.settings import InfluxConfig
from runtime.ledger.book import ENOUGH, LedgerUnreadable, the_one
from runtime.ledger.history import Curve, CurvePoint
from runtime.sinks.influx import client_of, in_words, request_errors
from runtime.sinks.lines import NO_HEX, begins, tag_value
from schemas import codec
from schemas.envelope import Event
from schemas.instants import MINUTE, Instant, Span
from schemas.topology import covers

_ALL_TIME = "start: 1677-09-22T00:00:00Z, stop: 2262-04-11T00:00:00Z"  # what InfluxDB can date
_NS = 1_000_000
_FIRST_LOOK: Span = 10 * MINUTE
_WIDER = 4  # each further look covers so many times as much
_TOGETHER: Span = MINUTE  # records asked for by time in one question
_HEX = re.compile(r"[0-9a-f]{0,3}")
_PLAIN = re.compile(r"[A-Za-z0-9/._ -]")


class _Stored(NamedTuple):
    """A record, and the six digits of its place in the ledger that its time holds."""

    event: Event
    place: int


class _Found(NamedTuple):
    """Where the record of an id lies: its instant, type and subject (as a tag)."""

    at: Instant
    place: int
    kind: str
    subject: str


class InfluxLedger:
    """The records in one bucket, to be asked; a `Book`. Opening raises BusError where there is no token."""

    def __init__(self, config: InfluxConfig) -> None:
        self._config = config
        self._client = client_of(config)
        self._api = self._client.query_api()
        self._errors = request_errors()
        csv.field_size_limit(sys.maxsize)  # a record may be longer than the 128 KiB of the csv module

    def close(self) -> None:
        """Give the connection back; safe to repeat."""
        self._client.close()  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- questions ----

    def get(self, identity: str) -> Event | None:
        """The message with this id, None when it is not here."""
        return self.many([identity]).get(identity)

    def many(self, identities: Sequence[str]) -> Mapping[str, Event]:
        """The messages with these ids, by id, without those that are not here."""
        wanted = set(identities)
        return self._records(
            {i: found for i, found in self._index(map(begins, wanted)).items() if i in wanted}
        )

    def find(self, prefix: str) -> Event:
        """The message whose id this is or begins with. Raises UnknownId or AmbiguousId."""
        tags = self._tags_of(prefix)
        index: dict[str, _Found] = {}
        while tags and len(index) < ENOUGH:
            some, tags = tags[:ENOUGH], tags[ENOUGH:]
            index |= {i: found for i, found in self._index(some).items() if i.startswith(prefix)}
        first = sorted(index)[:ENOUGH]
        events = self._records({identity: index[identity] for identity in first[:3]})
        return the_one(prefix, first, events.__getitem__)

    def of_type(
        self,
        kinds: Iterable[type[Event]],
        *,
        since: Instant = 0,
        until: Instant | None = None,
        subject: str = "",
        newest_first: bool = False,
    ) -> Iterator[Event]:
        """Messages of these types from `since` up to and with `until`, by event time and then by place
        in the ledger; of all subjects or of one. Read in ever wider looks, as they are asked for."""
        names = [kind.__name__ for kind in kinds]
        where = _any("type", names) + (_any("subject", [tag_value(subject)]) if subject else "")
        for start, stop in _looks(since, until, newest_first):
            stored = self._bodies(_range(start, stop), where)
            yield from _in_order(stored, newest_first)

    def subjects(self, kinds: Iterable[type[Event]], below: str) -> list[str]:
        """The subjects at or below a path that messages of these types speak of, sorted."""
        names = [kind.__name__ for kind in kinds]
        tags = self._ask(f"""
            import "influxdata/influxdb/schema"
            schema.tagValues(bucket: {quoted(self._config.bucket)}, tag: "subject", {_ALL_TIME},
                predicate: (r) => r._measurement == "ledger"{_any("type", names)})""")
        found = (unquote(value) for _, value in tags)
        return sorted(subject for subject in found if covers(below, subject))

    def curve(self, row: str, since: Instant, until: Instant, step_ms: Span) -> Curve:
        """The row's power from the time series, every beat of it."""
        columns: dict[str, dict[Instant, float]] = {}
        for name, field, of in (
            ("power_w", "power_w", "mean"),
            ("peak_w", "power_w", "max"),
            ("coverage_ratio", "coverage_ratio", "min"),
        ):
            rows = self._ask(f"""
                from(bucket: {quoted(self._config.bucket)}) |> range({_range(since, until)})
                |> filter(fn: (r) => r._measurement == "rollup" and r._field == "{field}"{_any("row", [row])})
                |> aggregateWindow(every: {step_ms}ms, fn: {of}, createEmpty: false, timeSrc: "_start")
                |> keep(columns: ["_time", "_value"])""")
            # A step that begins before the stretch does is told by where it would begin.
            columns[name] = {time // _NS - time // _NS % step_ms: float(value) for time, value in rows}
        points = tuple(
            CurvePoint(at, *(columns[name].get(at) for name in ("power_w", "peak_w", "coverage_ratio")))
            for at in sorted(columns["coverage_ratio"])
        )
        return Curve("series", step_ms, points)

    # ---- how they are put ----

    def _tags_of(self, prefix: str) -> list[str]:
        """The tags that ids with this prefix may lie under, in the order of the ids."""
        if len(prefix) >= 3:
            return [begins(prefix)]
        if not _HEX.fullmatch(prefix):
            return [NO_HEX]
        values = self._ask(f"""
            import "influxdata/influxdb/schema"
            schema.tagValues(bucket: {quoted(self._config.bucket)}, tag: "begins", {_ALL_TIME},
                predicate: (r) => r._measurement == "ledger_id")""")
        tags = sorted(tag for _, tag in values if tag.startswith(prefix))
        return [*(tag for tag in tags if tag != NO_HEX), NO_HEX]

    def _index(self, tags: Iterable[str]) -> dict[str, _Found]:
        """The index under these tags, by id. Of a record that was written twice the first one counts."""
        index: dict[str, _Found] = {}
        rows = self._ask(f"""
            from(bucket: {quoted(self._config.bucket)}) |> range({_ALL_TIME})
            |> filter(fn: (r) => r._measurement == "ledger_id"{_any("begins", sorted(set(tags)))})
            |> keep(columns: ["_time", "_value"])""")
        for time, value in rows:
            kind, subject, told = value.split("\t")
            identity, found = unquote(told), _Found(*divmod(time, _NS), kind, subject)
            index[identity] = min(index.get(identity, found), found)
        return index

    def _records(self, wanted: Mapping[str, _Found]) -> dict[str, Event]:
        """The records that the index told of, by id."""
        records: dict[str, Event] = {}
        by_time = sorted(wanted.values())
        while by_time:
            together = [found for found in by_time if found.at <= by_time[0].at + _TOGETHER]
            by_time = by_time[len(together) :]
            where = _any("type", sorted({found.kind for found in together}))
            where += _any("subject", sorted({found.subject for found in together}))
            for stored in self._bodies(_range(together[0].at, together[-1].at), where):
                found = wanted.get(stored.event.id)
                if found is not None and found.place == stored.place:
                    records[stored.event.id] = stored.event
        return records

    def _bodies(self, span: str, where: str) -> list[_Stored]:
        rows = self._ask(f"""
            from(bucket: {quoted(self._config.bucket)}) |> range({span})
            |> filter(fn: (r) => r._measurement == "ledger" and r._field == "body"{where})
            |> keep(columns: ["_time", "_value"])""")
        return [_Stored(self._decoded(body), time % _NS) for time, body in rows]

    def _ask(self, flux: str) -> Iterator[tuple[int, str]]:
        """The `_time` (nanoseconds, 0 where there is none) and `_value` of each row of the answer."""
        header: dict[str, int] = {}
        try:
            for row in self._api.query_csv(flux, org=self._config.org):
                if not row or row[0].startswith("#"):
                    continue
                if ("table" in row and "_value" in row) or row[1:] == ["error", "reference"]:
                    header = {name: place for place, name in enumerate(row)}
                    continue
                if "error" in header:  # said in the middle of an answer
                    raise LedgerUnreadable(f"InfluxDB at {self._config.url}: {row[header['error']]}")
                time = _nanoseconds(row[header["_time"]]) if "_time" in header else 0
                yield time, row[header["_value"]]
        except self._errors as error:
            raise LedgerUnreadable(in_words(error, self._config)) from None

    def _decoded(self, body: str) -> Event:
        try:
            return codec.decode(body.encode())
        except codec.Malformed as error:
            raise LedgerUnreadable(
                f"{self._config.url}: holds a record that this version cannot read: {error}"
            ) from error


def quoted(text: str) -> str:
    """A text as a literal of Flux. Whatever is not plainly harmless is written as bytes."""
    return (
        '"'
        + "".join(c if _PLAIN.match(c) else "".join(f"\\x{b:02x}" for b in c.encode()) for c in text)
        + '"'
    )


def _any(column: str, values: Sequence[str]) -> str:
    """A condition, to follow others: the column has one of the values; with no value nothing fits. A tag
    that would be empty is not there."""
    fitting = [f"r.{column} == {quoted(value)}" if value else f"not exists r.{column}" for value in values]
    return f" and ({' or '.join(fitting) or 'false'})"


_LAST: Instant = 9_223_286_400_000  # 2262-04-11: what InfluxDB can date, and as far before 1970


def _range(start: Instant, stop: Instant) -> str:
    """From `start` up to and with `stop`, as far as InfluxDB can date."""
    first, last = (max(-_LAST, min(_LAST, at)) for at in (start, stop))
    return f"start: time(v: {first * _NS}), stop: time(v: {(last + 1) * _NS})"


def _looks(since: Instant, until: Instant | None, newest_first: bool) -> Iterator[tuple[Instant, Instant]]:
    """The stretches of time to look at, one after the other. Whoever stops early has asked for little;
    without the end to begin from, one look covers all."""
    last = min(_LAST, until if until is not None else _LAST)
    begin = last if newest_first else since
    if since > last:
        return
    if (until is None) if newest_first else (since == 0):
        yield since, last
        return
    width = _FIRST_LOOK
    while since <= begin <= last:
        end = max(since, begin - width) if newest_first else min(last, begin + width)
        yield (end, begin) if newest_first else (begin, end)
        begin = end - 1 if newest_first else end + 1
        width *= _WIDER


def _in_order(stored: list[_Stored], newest_first: bool) -> Iterator[Event]:
    """Records by event time and then by place, each id once: of one that was written twice the first."""
    by_time: dict[Instant, list[_Stored]] = {}
    for each in stored:
        by_time.setdefault(each.event.at, []).append(each)
    for _, together in sorted(by_time.items(), reverse=newest_first):
        # Places are told by their last six digits: where they pass a million, the low ones are the later.
        turned = max(each.place for each in together) - min(each.place for each in together) > _NS // 2
        together.sort(key=lambda each: each.place + (_NS if turned and each.place < _NS // 2 else 0))
        once: dict[str, Event] = {}
        for each in together:
            once.setdefault(each.event.id, each.event)
        yield from reversed(once.values()) if newest_first else once.values()


def _nanoseconds(text: str) -> int:
    """``2026-03-01T12:00:00.250000017Z`` in nanoseconds since 1970."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    seconds = dt.datetime.fromisoformat(whole).replace(tzinfo=dt.UTC).timestamp()
    return int(seconds) * 1_000_000_000 + int(fraction.ljust(9, "0") or 0)
