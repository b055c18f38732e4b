"""The publisher: what this process says, on its way to Kafka.

`send` takes events from any thread and returns at once, whatever the brokers, the network and the disk
do. One thread of the publisher's own brings each event under its keys onto its topic:

    send → queue → backlog of the topic ⇄ spool on disk
                        ↓ take                  ↑ what has waited half a second
                      line to Kafka → done, or rewind when the line ends

While Kafka takes what is said the disk is not touched. What has not been acknowledged half a second after
it was said is written to the topic's spool, what is in flight included, and stays there until it is: so a
broker that goes away loses nothing, and a process that is killed meanwhile loses the last half second at
most. Each topic has its own backlog, so that one that is missing or refused holds up no other. Within a
topic the order is that of `send`, across lines, spools and restarts; what was sent again after a line
ended may come twice (at least once: ids tell repeats apart).

A line that acknowledges nothing for `STALLED_S` is ended and another one opened, on a thread of its own.
"""

from __future__ import annotations

import logging
import pathlib
import threading
from collections import Counter, deque
from collections.abc import Iterable
from typing import Protocol

import msgspec

from runtime.bus.backlog import Backlog
from runtime.bus.line import Closed, Line, NotReady, usable
from runtime.bus.settings import BusError, KafkaConfig
from runtime.bus.spool import Record, Spool
from runtime.clock import Clock
from schemas import codec
from schemas.envelope import Event
from schemas.instants import HOUR, MINUTE, Span
from schemas.samples import (
    CoolingSample,
    FarmSample,
    FeedSample,
    GpuFrame,
    RackSample,
    ServingSample,
    UpsSample,
    WeatherSample,
)
from schemas.topics import BY_NAME, BY_TYPE

_LOG = logging.getLogger(__name__)

TELEMETRY_MS: Span = 5 * MINUTE
"""How long a sample is worth sending. A row of 100 hosts that comes back has 30,000 frames to catch up
with then, which is seconds of its control loop's time; before that its newest reading is an old one (our
choice)."""

WORDS_MS: Span = 7 * 24 * HOUR
"""How long anything else is: outcomes and alarms are what happened, and are asked for later (our choice)."""

DISK_BYTES = 64 * 1024 * 1024
"""Of each topic's spool: five hours of a host's frames, years of its outcomes (our choice)."""

MEMORY_BYTES = 16 * 1024 * 1024
"""Of what waits for the disk, or has none, of each topic (our choice)."""

QUEUE = 20_000
"""Events that may wait for the publisher's thread; beyond them the oldest are dropped (our choice)."""

STALLED_S = 15.0
"""After so long without an acknowledgement a line is given up. A broker's successor leads within a few
seconds (our choice)."""

_UNCERTAIN_S = 0.5  # unacknowledged for so long, a record belongs on disk
_AWAY_S = 2.0  # and for so long, Kafka counts as away
_IN_FLIGHT = 1_000  # records of a topic at once
_AT_ONCE = 100
_HANGS_S = 3.0  # a turn of the publisher takes milliseconds where its disk answers
_PAUSE_S = 2.0  # before a topic, a broker or a disk in trouble is tried again
_REFUSED_S = 10.0  # before a topic that ended a line gets another chance to
_GONE_S = 2.0  # for a line to end
_LOSING_S = 300.0  # after so long without another, losses are of the past
_LOOK_S = 0.1

_SAMPLES = (
    GpuFrame,
    RackSample,
    FeedSample,
    UpsSample,
    CoolingSample,
    ServingSample,
    FarmSample,
    WeatherSample,
)
_STALE = {BY_TYPE[kind].name for kind in _SAMPLES}


class HasKeys(Protocol):
    """Under which keys an event goes: `runtime.bus.keys.Keys`."""

    def message_keys(self, event: Event, /) -> tuple[bytes, ...]: ...


class TopicState(msgspec.Struct, frozen=True, kw_only=True):
    """How one topic fares: messages Kafka has (`sent`), those it may not have (`waiting`, of which
    `spooled` are on disk, in `spooled_bytes`), and those it never will, by reason (`lost`; of which
    `losing` are those reasons that were met in the last minutes)."""

    topic: str
    sent: int
    waiting: int
    spooled: int
    spooled_bytes: int
    lost: dict[str, int]
    losing: tuple[str, ...]


class PublisherState(msgspec.Struct, frozen=True, kw_only=True):
    """How a publisher fares. `away` why Kafka takes nothing, `disk` why the spool does, in words, empty
    when they do; `queued` events that its thread has not yet seen."""

    connected: bool
    away: str
    disk: str
    queued: int
    topics: tuple[TopicState, ...]

    @property
    def sent(self) -> int:
        """Messages that Kafka has."""
        return sum(topic.sent for topic in self.topics)

    @property
    def waiting(self) -> int:
        """Messages that it may not have."""
        return self.queued + sum(topic.waiting for topic in self.topics)

    @property
    def spooled(self) -> int:
        """Those of them that are on disk."""
        return sum(topic.spooled for topic in self.topics)

    @property
    def lost(self) -> int:
        """Messages that it never will have."""
        return sum(sum(topic.lost.values()) for topic in self.topics)

    @property
    def trouble(self) -> str:
        """What an operator should know, in words; empty when all is well."""
        said = []
        if self.away:
            said.append(f"Kafka is away: {self.away}; {self.waiting} messages wait, {self.spooled} on disk")
        if self.disk:
            said.append(f"the spool takes nothing: {self.disk}")
        for topic in self.topics:
            said += (f"{topic.topic}: lost {topic.lost[why]} messages ({why})" for why in topic.losing)
        return "; ".join(said)


class _Lane:
    """One topic: its backlog, when it may be tried again, and what the log was told of it."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.backlog = Backlog(
            keep_ms=TELEMETRY_MS if topic in _STALE else WORDS_MS,
            memory_bytes=MEMORY_BYTES,
            disk_bytes=DISK_BYTES,
        )
        self.unequipped = ""  # why it has no spool, though it should
        self.equip_at = 0.0
        self.not_ready = ""  # why Kafka does not take this topic
        self.try_at = 0.0
        self.moved_at = 0.0  # when Kafka last acknowledged, or had nothing left to
        self.lost: dict[str, int] = {}
        self.lost_at: dict[str, float] = {}

    def state(self) -> TopicState:
        backlog = self.backlog
        return TopicState(
            topic=self.topic,
            sent=backlog.sent,
            waiting=backlog.waiting,
            spooled=backlog.spooled,
            spooled_bytes=backlog.spooled_bytes,
            lost=dict(backlog.lost),
            losing=tuple(self.lost_at),
        )


class Publisher:
    """Publishes events; see the module's text.

    `spool` is the folder for what waits, None to keep it in memory alone. `client` names this part of
    the site to the brokers, and its share of the spool: the same at each start, and no other process's.
    Raises BusError where the library, a secret or a certificate is lacking; a broker is not waited for.
    """

    def __init__(
        self, kafka: KafkaConfig, keys: HasKeys, *, spool: pathlib.Path | None, clock: Clock, client: str
    ) -> None:
        usable(kafka)
        self._kafka = kafka
        self._keys = keys
        self._client = client
        self._clock = clock
        self._folder = spool / client.replace("/", "__") if spool is not None else None
        self._lock = threading.Lock()  # of the queue
        self._queue: deque[Event] = deque()
        self._overrun: Counter[str] = Counter()
        self._taking = 0  # events out of the queue and not yet in their backlogs
        self._wake = threading.Event()
        self._heard: deque[tuple[_Lane, int, str]] = deque()
        self._lanes: dict[str, _Lane] = {}
        self._line: Line | None = None
        self._ended: Line | None = None
        self._opened: Line | None = None
        self._opening: threading.Thread | None = None
        self._open_at = 0.0
        self._why = ""  # why there is no line
        self._was_away = False
        self._turned_at = clock.monotonic()
        self._told_at = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"publish {client}", daemon=True)
        self._thread.start()

    # ---- any thread ----

    def send(self, events: Iterable[Event]) -> None:
        """Publish events, in this order. Never waits and never raises: `state` says what became of them."""
        with self._lock:
            for event in events:
                if len(self._queue) >= QUEUE:
                    self._overrun[_topic_of(self._queue.popleft())] += 1
                self._queue.append(event)
        self._wake.set()

    def state(self) -> PublisherState:
        """How it fares just now."""
        now = self._clock.monotonic()
        lanes = list(self._lanes.values())
        return PublisherState(
            connected=not (away := self._away(lanes, now)),
            away=away,
            disk=self._disk_trouble(lanes, now),
            queued=len(self._queue) + self._taking,
            topics=tuple(lane.state() for lane in lanes),
        )

    def flush(self, timeout_s: float) -> bool:
        """Wait until Kafka has everything that was sent so far; whether it does."""
        until = self._clock.monotonic() + timeout_s
        while self.state().waiting:
            if self._clock.monotonic() >= until:
                return False
            threading.Event().wait(0.01)
        return True

    def close(self, timeout_s: float) -> None:
        """Send what can be sent within the time, leave the rest to the spool, and end; safe to repeat.
        Without a spool the rest is lost, and counted."""
        if not self._stopping:
            if self._line is not None:
                self.flush(timeout_s)
            self._stopping = True
            self._wake.set()
        self._thread.join(timeout_s + _GONE_S)
        if self._thread.is_alive():
            _LOG.error("%s: left hanging; %d messages may be lost", self._client, self.state().waiting)

    def _away(self, lanes: Iterable[_Lane], now: float) -> str:
        """Why Kafka takes nothing, or not everything, in words; empty when it does."""
        line = self._line
        if line is None:
            return self._why or "not yet reached"
        quiet = max((now - lane.moved_at for lane in lanes if lane.backlog.in_flight), default=0.0)
        if quiet > _AWAY_S:
            return f"nothing was acknowledged for {quiet:.0f} s"
        return line.ended or next((lane.not_ready for lane in lanes if lane.not_ready), "")

    def _disk_trouble(self, lanes: Iterable[_Lane], now: float) -> str:
        if not self._stopping and now - self._turned_at > _HANGS_S:
            return f"{self._folder or self._client} hangs for {now - self._turned_at:.0f} s"
        return next(filter(None, (lane.unequipped or lane.backlog.trouble for lane in lanes)), "")

    # ---- the publisher's thread ----

    def _run(self) -> None:
        for name in self._left_behind():
            self._equip(self._lane(name), 0.0)
        while not self._stopping:
            self._wake.wait(_LOOK_S)
            self._wake.clear()
            try:
                self._turn(self._clock.monotonic())
            except Exception:  # a fault of ours in one turn must not end them all
                _LOG.exception("%s: a turn failed", self._client)
                threading.Event().wait(_PAUSE_S)
        self._leave(self._clock.monotonic())

    def _left_behind(self) -> list[str]:
        """The topics of which something waits from before."""
        try:
            return (
                sorted(path.name for path in self._folder.iterdir() if path.name in BY_NAME)
                if self._folder
                else []
            )
        except FileNotFoundError:
            return []
        except OSError as error:
            _LOG.error("%s: %s cannot be read: %s", self._client, self._folder, error.strerror)
            return []

    def _turn(self, now: float) -> None:
        self._turned_at = now
        self._take_in(now)
        self._hear(now)
        for lane in self._lanes.values():
            if lane.backlog.overfull or lane.backlog.held_since < now - _UNCERTAIN_S:
                self._equip(lane, now)
                lane.backlog.spill(now - _UNCERTAIN_S)
            lane.backlog.trim(self._clock.now())
        self._connect(now)
        if self._feed(now):
            self._wake.set()  # and go on at once
        if now - self._told_at >= 1.0:
            self._told_at = now
            self._tell(now)

    def _take_in(self, now: float) -> None:
        """Bring the queue into the backlogs."""
        wall = self._clock.now()
        with self._lock:
            events, self._queue = self._queue, deque()
            overrun, self._overrun = self._overrun, Counter()
            self._taking = len(events)
        for topic, count in overrun.items():
            self._lane(topic).backlog.lost["overflow"] += count
        for event in events:
            backlog = self._lane(_topic_of(event)).backlog
            try:
                value = codec.encode(event)
                for key in self._keys.message_keys(event):
                    backlog.put(Record(wall, key, value), now)
            except Exception:  # whatever it is, it must not hold up the rest
                if not backlog.lost["unsayable"]:
                    _LOG.exception("%s: a %s cannot be said", self._client, type(event).__name__)
                backlog.lost["unsayable"] += 1
        self._taking = 0

    def _lane(self, topic: str) -> _Lane:
        lane = self._lanes.get(topic)
        if lane is None:
            lane = self._lanes[topic] = _Lane(topic)
        return lane

    def _equip(self, lane: _Lane, now: float) -> None:
        """See that a topic that has to wait has a spool."""
        if self._folder is None or lane.backlog.equipped or now < lane.equip_at:
            return
        try:
            lane.backlog.attach(Spool(self._folder / lane.topic))
            lane.unequipped = ""
        except BlockingIOError:
            lane.unequipped = f"{self._folder / lane.topic}: another process has it"
        except OSError as error:
            lane.unequipped = f"{self._folder / lane.topic}: {error.strerror}"
        if lane.unequipped:
            lane.equip_at = now + _PAUSE_S

    def _hear(self, now: float) -> None:
        """What became of records handed over."""
        while self._heard:
            lane, number, why = self._heard.popleft()
            lane.moved_at = now
            if not why:
                lane.backlog.done(number)
            else:
                if not lane.backlog.lost["refused"]:
                    _LOG.error("%s: Kafka refuses a message for %s: %s", self._client, lane.topic, why)
                lane.backlog.refuse(number)

    def _connect(self, now: float) -> None:
        """End a line that is no good, and see that there is another."""
        line = self._line
        if line is not None:
            lanes = self._lanes.values()
            if any(lane.backlog.in_flight and now - lane.moved_at > STALLED_S for lane in lanes):
                line.end(f"nothing was acknowledged for {STALLED_S:.0f} s")
            if not line.ended:
                return
            self._why = line.ended
            self._line, self._ended = None, line
            self._hear(now)  # the last that it told, before the rest is for the next one
            for lane in lanes:
                lane.backlog.rewind()
            if line.failed is not None:  # else the others would end with each line that this topic ends
                lane, _ = line.failed
                lane.not_ready, lane.try_at = line.ended, now + _REFUSED_S
        if self._opened is not None:
            self._line, self._opened = self._opened, None
        elif now >= self._open_at and not (self._opening and self._opening.is_alive()):
            self._open_at = now + _PAUSE_S
            self._opening = threading.Thread(
                target=self._open, name=f"reach Kafka {self._client}", daemon=True
            )
            self._opening.start()

    def _open(self) -> None:
        """On a thread of its own: reach Kafka, once the last line is gone."""
        if self._ended is not None and not self._ended.gone(_GONE_S):
            return
        self._ended = None
        try:
            line = Line.opened(self._kafka, self._client, self._told)
        except BusError as error:
            self._why = str(error)
            return
        except Exception as error:
            self._why = f"{type(error).__name__}: {error}"
            _LOG.exception("%s: Kafka cannot be reached", self._client)
            return
        self._opened = line
        if self._stopping:
            line.end("closed")
        self._wake.set()

    def _told(self, mark: tuple[_Lane, int], why: str) -> None:
        """On the library's thread."""
        self._heard.append((*mark, why))
        self._wake.set()

    def _feed(self, now: float) -> bool:
        """Hand over a little of each topic; whether there was anything."""
        line, given = self._line, False
        if line is None:
            return False
        for lane in self._lanes.values():
            backlog = lane.backlog
            room = min(_AT_ONCE, _IN_FLIGHT - len(backlog.in_flight))
            if room <= 0 or not backlog.untaken or now < lane.try_at:
                continue
            name = self._kafka.topic(lane.topic)
            try:
                line.ready(name)
                lane.not_ready = ""
                if not backlog.in_flight:
                    lane.moved_at = now
                for number, record in backlog.take(room, self._clock.now()):
                    line.send(name, record, (lane, number))
                    given = True
            except NotReady as error:
                lane.not_ready = str(error)
                lane.try_at = now + _PAUSE_S
            except Closed:
                return False
        return given

    def _tell(self, now: float) -> None:
        """Tell the log what has changed: once when it begins, once when it has ended."""
        state = self.state()
        if state.away and not self._was_away and (self._why or self._line):
            _LOG.error("%s: Kafka is away: %s; what is said waits", self._client, state.away)
            self._was_away = True
        elif self._was_away and not state.away:
            _LOG.warning("%s: Kafka takes messages again; %d wait", self._client, state.waiting)
            self._was_away = False
        self._tell_losses(now)

    def _tell_losses(self, now: float) -> None:
        for lane in self._lanes.values():
            for note in lane.backlog.notes:
                _LOG.error("%s: %s", self._client, note)
            lane.backlog.notes.clear()
            for why, count in lane.backlog.lost.items():
                if count > lane.lost.get(why, 0):
                    if why not in lane.lost_at:
                        _LOG.error("%s: messages for %s are lost: %s", self._client, lane.topic, why)
                    lane.lost[why], lane.lost_at[why] = count, now
                elif why in lane.lost_at and now - lane.lost_at[why] > _LOSING_S:
                    del lane.lost_at[why]
                    _LOG.warning("%s: %d messages for %s were lost: %s", self._client, count, lane.topic, why)

    def _leave(self, now: float) -> None:
        """Put away what was not sent."""
        line = self._line or self._opened
        if line is not None:
            line.end("closed")
            line.gone(_GONE_S)
        self._take_in(now)
        self._hear(now)
        for lane in self._lanes.values():
            if lane.backlog.waiting:
                self._equip(lane, float("inf"))
                lane.backlog.spill(float("inf"))
            lane.backlog.close()
            if left := lane.backlog.spooled:
                _LOG.warning("%s: %d messages for %s wait on disk", self._client, left, lane.topic)
        self._tell_losses(now)


def _topic_of(event: Event) -> str:
    topic = BY_TYPE.get(type(event))
    return topic.name if topic is not None else "none"
