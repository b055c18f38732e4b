"""The archive: what was said on the bus, kept after Kafka lets go of it.

    windrow.ledger ─► index    the ledger's file, chained; `windrow audit verify` and all questions
    every topic    ─► series   points in InfluxDB, the ledger's records among them

Each part reads for itself on a thread of its own, so that a slow or absent InfluxDB holds no record up. What
a part has not kept yet lies on Kafka, for as long as the topic's retention says: that is the spool, and a
part that was away goes on from where it stood. How far the index came stands in its own file, written in one
transaction with the records; how far the series came in a small file, after InfluxDB has taken the points.
So a record stands in the index once, and a point may be written twice, which changes nothing.
"""

from __future__ import annotations

import logging
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime import whole_file
from runtime.bus.reader import Reader, Received
from runtime.bus.settings import InfluxConfig
from runtime.clock import Clock
from runtime.ledger.store import Ledger, LedgerUnwritable
from runtime.sinks.influx import InfluxSink
from runtime.sinks.lines import NO_SERIES, Lines, ledger_lines
from schemas import codec
from schemas.envelope import DeadLetter, Event
from schemas.instants import SECOND
from schemas.topics import BY_NAME, TOPICS
from schemas.topology import Site

_LOG = logging.getLogger(__name__)

LEDGER_TOPIC = BY_NAME["windrow.ledger"].name
SERIES_TOPICS: tuple[str, ...] = tuple(
    topic.name for topic in TOPICS if not NO_SERIES.issuperset(topic.types) or topic.name == LEDGER_TOPIC
)
"""The topics whose messages become points."""

_SOURCE = "runtime/archive"
_WAIT_S = 0.5  # for messages, and so for a part to notice that it is to stop
_MOST = 2_000  # messages at once: some thousand points a request
_AGAIN_S = 1.0
_LOOK_S = 5.0
_SAVE_S = 2.0
_LEAVING_S = 3.0


class Keeper(Protocol):
    """Where messages are kept."""

    unreadable: int

    def keep(self, received: Sequence[Received]) -> str:
        """Keep all of them; the same ones may come again. Why they are not kept yet, empty when they are:
        then they are handed in again."""

    def close(self) -> None:
        """Keep no more."""


class Part:
    """Reads topics and has them kept, in order, until told to stop. `run` is its thread's whole life; the
    rest may be read on any."""

    def __init__(
        self,
        name: str,
        reader: Reader,
        keeper: Keeper,
        *,
        stop: threading.Event,
        clock: Clock,
    ) -> None:
        self.name = name
        self.reader = reader
        self.keeper = keeper
        self.trouble = ""
        """Why what was read is not kept, in words."""
        self.kept = 0
        self.faults = 0
        self.turned: Callable[[], None] = lambda: None
        """Called at each turn: a sign of life."""
        self.positions: dict[tuple[str, int], int] = {}
        """Where reading goes on; what waits here is not yet kept."""
        self.waiting: Sequence[Received] = ()
        self._stop = stop
        self._clock = clock
        self._looked_at = -_LOOK_S

    def run(self) -> None:
        """Turn until told to stop. A mistake of ours is said and counted, and what was at hand is tried
        again: it must not be lost."""
        while not self._stop.is_set():
            try:
                self.turn()
            except Exception as error:
                _LOG.exception("%s: failed, and is tried again", self.name)
                self.faults += 1
                self.trouble = f"{type(error).__name__}: {error}"
            if self.trouble:
                self._stop.wait(_AGAIN_S)
        self.reader.close()
        self.keeper.close()

    def turn(self) -> None:
        """Read what there is, and have it kept."""
        if not self.waiting:
            self.waiting = self.reader.poll(_WAIT_S, _MOST)
            now = self._clock.monotonic()
            if not self.reader.away and now >= self._looked_at + _LOOK_S:
                self._looked_at = now
                found = {place: self.reader.position(*place) for place in self.reader.ends()}
                self.positions = {place: at for place, at in found.items() if at is not None}
        if self.waiting:
            self.trouble = self.keeper.keep(self.waiting)
            if not self.trouble:
                self.kept += len(self.waiting)
                self.waiting = ()
        self.turned()

    def lag(self, ends: Mapping[tuple[str, int], int]) -> int | None:
        """How many messages are not kept, of topics that end so; None while that is not known."""
        if not self.positions or not ends.keys() >= self.positions.keys():
            return None
        unread = sum(max(0, ends[place] - at) for place, at in self.positions.items())
        return unread + len(self.waiting)


class Index:
    """The ledger topic as a file: the same records in the same order give the same chain, so that it can be
    made anew from nothing. What is no record is kept whole as a dead letter, in its place."""

    def __init__(self, ledger: Ledger, site: Site) -> None:
        self.ledger = ledger
        self.unreadable = 0
        self._site = site.name

    def keep(self, received: Sequence[Received]) -> str:
        """Append, and note how far the topic was read, in one transaction."""
        records = [_record(each, self._site) for each in received]
        try:
            self.ledger.take(records, upto=received[-1].offset + 1)
            self.ledger.tidy()
        except LedgerUnwritable as error:
            return str(error)
        self.unreadable += sum(body != each.value for (_, body), each in zip(records, received, strict=True))
        return ""

    def close(self) -> None:
        """Close the file."""
        self.ledger.close()


class Series:
    """Messages as points in InfluxDB."""

    def __init__(self, sink: InfluxSink, lines: Lines, progress: Progress, site: Site) -> None:
        self.sink = sink
        self.lines = lines
        self.unreadable = 0
        self._progress = progress
        self._site = site.name

    def keep(self, received: Sequence[Received]) -> str:
        """Write the points of these messages; returns when InfluxDB has them, or when told to stop."""
        lines: list[str] = []
        unreadable = 0
        for each in received:
            event, body = _record(each, self._site)
            unreadable += body != each.value
            lines += (
                self.lines.of(event) if each.topic != LEDGER_TOPIC else ledger_lines(event, body, each.offset)
            )
        if not self.sink.put(lines):
            return "told to stop before InfluxDB took what was read"
        self.unreadable += unreadable
        self._progress.note((each.topic, each.partition, each.offset + 1) for each in received)
        return ""

    def close(self) -> None:
        """Write down how far it came."""
        self._progress.save()
        self.sink.close()


def _record(received: Received, site: str) -> tuple[Event, bytes]:
    """A message and its bytes; a dead letter and its own where it cannot be read."""
    try:
        return codec.decode(received.value), received.value
    except codec.Malformed as error:
        why = str(error)
    letter = DeadLetter(
        at=received.timestamp_ms,
        source=_SOURCE,
        subject=site,
        topic=received.topic,
        payload=received.value,
        reason=why,
    )
    return letter, codec.encode(letter)


class Progress:
    """How far the series of one bucket came, in a small file that is replaced whole. A file that is gone, or
    is of another bucket, means from the beginning."""

    def __init__(self, path: pathlib.Path, config: InfluxConfig, clock: Clock) -> None:
        self._path = path
        self._bucket = f"{config.url} {config.org} {config.bucket}"
        self._clock = clock
        self._saved_at = clock.monotonic()
        self._offsets: dict[str, dict[int, int]] = {}
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_Saved)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            _LOG.error("%s cannot be read, so every topic is read from its beginning: %s", path, error)
            return
        if found.bucket == self._bucket:
            self._offsets = found.offsets

    @property
    def start(self) -> dict[tuple[str, int], int]:
        """Where reading goes on, for each partition that was read."""
        return {(topic, n): at for topic, offsets in self._offsets.items() for n, at in offsets.items()}

    def note(self, kept: Iterable[tuple[str, int, int]]) -> None:
        """Topics' partitions are kept up to, and without, these offsets."""
        for topic, partition, offset in kept:
            self._offsets.setdefault(topic, {})[partition] = offset
        if self._clock.monotonic() - self._saved_at >= _SAVE_S:
            self.save()

    def save(self) -> None:
        """Write it down. Where the disk does not take it, more is written again after a restart."""
        self._saved_at = self._clock.monotonic()
        try:
            whole_file.put(self._path, msgspec.json.encode(_Saved(self._bucket, self._offsets)))
        except OSError as error:
            _LOG.error("%s: %s", self._path, error)


class _Saved(msgspec.Struct):
    bucket: str
    offsets: dict[str, dict[int, int]]


class Archive:
    """The parts on their threads. Use as a context manager: leaving ends them within seconds, also one that
    hangs in a request; what that had at hand is read again at the next start."""

    def __init__(self, parts: Sequence[Part], meter: Reader, stop: threading.Event) -> None:
        self.parts = parts
        self.ends: Mapping[tuple[str, int], int] = {}
        self._meter = meter
        self._stop = stop
        self._threads = [
            threading.Thread(target=part.run, name=f"archive-{part.name}", daemon=True) for part in parts
        ]

    def __enter__(self) -> Archive:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_LEAVING_S)
            if thread.is_alive():
                _LOG.warning("%s: left in the middle of a request", thread.name)
        self._meter.close()

    def watch(self) -> None:
        """Look at how far Kafka's topics have come, now and then, until told to stop, and tell people when
        something keeps messages from being kept, and when nothing does any more."""
        told: set[str] = set()
        while not self._stop.is_set():
            self.ends = self._meter.ends()
            found = {text.partition(": ")[0]: text for text in self.troubles()}
            for name in found.keys() - told:
                _LOG.error("%s", found[name])
            for name in told - found.keys():
                _LOG.warning("%s: goes on", name)
            told = set(found)
            self._stop.wait(_LOOK_S)

    def troubles(self) -> Iterator[str]:
        """What keeps messages from being kept, in words."""
        for part in self.parts:
            if why := part.reader.away or part.trouble:
                yield f"{part.name}: {why}"
            if isinstance(part.keeper, Series) and (away := part.keeper.sink.state.away):
                yield f"{part.name}: {away}"


class ArchiveMetrics(Collector):
    """How the archive fares, read when metrics are."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def collect(self) -> Iterator[Metric]:
        """The metrics just now."""
        lag = GaugeMetricFamily(
            "windrow_archive_lag_messages", "Messages on Kafka that are not kept yet.", labels=["part"]
        )
        away = GaugeMetricFamily("windrow_archive_away", "1 while Kafka cannot be read.", labels=["part"])
        trouble = GaugeMetricFamily(
            "windrow_archive_failing", "1 while what was read cannot be kept.", labels=["part"]
        )
        counters = {
            name: CounterMetricFamily(f"windrow_archive_{name}", said, labels=["part"])
            for name, said in (
                ("kept_messages", "Messages that are kept."),
                ("skipped_messages", "Messages that Kafka deleted before they were read: lost here."),
                ("unreadable_messages", "Messages that are none of ours, or cannot be dated."),
                ("faults", "Mistakes of the archive itself."),
            )
        }
        for part in self._archive.parts:
            known = part.lag(self._archive.ends)
            lag.add_metric([part.name], float("nan") if known is None else known)
            away.add_metric([part.name], bool(part.reader.away))
            counters["kept_messages"].add_metric([part.name], part.kept)
            counters["skipped_messages"].add_metric([part.name], part.reader.skipped)
            counters["unreadable_messages"].add_metric([part.name], part.keeper.unreadable)
            counters["faults"].add_metric([part.name], part.faults)
            failing = bool(part.trouble)
            if isinstance(part.keeper, Series):
                failing = failing or bool(part.keeper.sink.state.away)
                yield from _of_influx(part.keeper)
            trouble.add_metric([part.name], failing)
        yield from (lag, away, trouble, *counters.values())


def _of_influx(series: Series) -> Iterator[Metric]:
    state = series.sink.state
    for name, said, count in (
        ("written_points", "Points that InfluxDB has.", state.written),
        ("refused_points", "Points that InfluxDB will never take, most of them set aside.", state.refused),
        ("lost_points", "Refused points that were not set aside either.", state.lost),
        ("strange_messages", "Messages of unknown paths, too many to get series.", series.lines.strangers),
        ("undatable_messages", "Messages whose time InfluxDB cannot hold.", series.lines.undatable),
        ("requests", "Writes tried.", state.attempts),
        ("request_failures", "Writes that failed and were tried again.", state.failures),
    ):
        yield CounterMetricFamily(f"windrow_influx_{name}", said, value=count)
    yield GaugeMetricFamily(
        "windrow_influx_written_timestamp_seconds",
        "When InfluxDB last took points; 0: never.",
        value=(state.written_at or 0) / SECOND,
    )
