"""The Faust host: the rows of a site on Kafka, shared among as many workers as there are.

A worker reads the partitions that its group gives it, keeps the log of each row on them (`RowLog`), beats
the rows that it owns by publishing their ticks, and says what their beats say (`Speaker`) once the ticks
come back. It holds nothing that the log cannot tell again:

    assigned ─► newest snapshots ─► seek ─► redo the recorded beats ─► claim ─► beat, say, keep snapshots
    revoked  ─► its rows are dropped at once; whoever has them next goes on from the last snapshot

Faust brings the group, its assignment, the fetching and the producer; `faust_transport` has it hand over
whole fetches. What was read is committed only where a snapshot covers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import faust
import msgspec
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from faust.exceptions import ProducerSendError
from faust.types import TP

from runtime.bus.keys import partition_of
from runtime.bus.metrics import BusMetrics
from runtime.bus.settings import BusError, KafkaConfig
from runtime.clock import Clock
from runtime.config import Setup
from runtime.hosts.faust_transport import Fetch, FetchConsumer, FetchSchema, fetching
from runtime.hosts.partition import TOPICS, Done, Partition, Unplaced
from runtime.hosts.placing import Bounds, begun, restored
from runtime.hosts.recall import SNAPSHOTS, newest_snapshots, words_of
from runtime.hosts.row_log import TICKS, RowLog, Snapshot
from runtime.hosts.site_fold import LOOK_BACK as SITE_LOOK_BACK
from runtime.hosts.site_fold import SUMMARIES, SiteFold
from runtime.hosts.speaker import Said, Speaker, Unsent
from runtime.hosts.watchdog import Watchdog
from runtime.row_loop import Beat, RowLoop
from schemas import codec
from schemas.envelope import DeadLetter, Event
from schemas.instants import MINUTE, SECOND, Span
from schemas.topics import BY_NAME, topic_of

_LOG = logging.getLogger(__name__)

GROUP = "windrow.control"
LEDGER = "windrow.ledger"

_LOOK_BACK: Span = 2 * MINUTE
"""How far back a row that begins anew reads its inputs: further than a reading is believed (our choice)."""

_SLICE = {TICKS: 4}
_FRAMES = 200
"""Records between two turns of the event loop: a beat takes milliseconds, a frame microseconds."""

_LONGEST_WAIT_S = 0.5
_LEAVING_S = 2.0
_SILENT_S = 5.0  # without a message, though ticks were sent, before people are told (our choice)


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How often a worker keeps its rows, and after what silence the group takes it for dead.

    A snapshot bounds what is redone at a takeover; `dead_after_s` is most of what a takeover takes, and no
    broker takes less than its ``group.min.session.timeout.ms`` (6 s unless changed).
    """

    snapshot_ms: Span = MINUTE
    commit_ms: Span = 5 * SECOND
    dead_after_s: float = 10.0


def made_app(kafka: KafkaConfig, worker: str, datadir: str, pace: Pace) -> faust.App:
    """Faust's app with every setting that matters said here, whatever its defaults become.

    Raises BusError where the secret or a certificate cannot be read.
    """
    broker, credentials = kafka.for_faust()
    return faust.App(
        kafka.topic(GROUP),
        broker=broker,
        broker_credentials=credentials,
        broker_client_id=worker,
        datadir=datadir,
        # Nothing of Faust's is kept: no tables, no leader topic, no web pages, no topics that it makes.
        store="memory://",
        cache="memory://",
        autodiscover=False,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=BY_NAME[TICKS].partitions,
        topic_replication_factor=kafka.replication,
        table_cleanup_interval=3600.0,
        # Above 0, else topics are dealt out without regard for what lies on the same partition.
        table_standby_replicas=1,
        # What is said is at least said once; handlers know what they have done.
        processing_guarantee="at_least_once",
        stream_wait_empty=False,
        stream_publish_on_commit=False,
        stream_recovery_delay=0.0,
        stream_buffer_maxsize=16,  # fetches
        # A worker that is silent for so long is dead; that it lives is said from a thread of its own.
        broker_session_timeout=pace.dead_after_s,
        broker_heartbeat_interval=pace.dead_after_s / 5,
        broker_rebalance_timeout=max(30.0, pace.dead_after_s),
        broker_max_poll_interval=300.0,
        broker_request_timeout=max(30.0, pace.dead_after_s),
        broker_max_poll_records=500,
        broker_check_crcs=True,
        broker_commit_every=1_000_000,  # there is nothing for it to commit
        broker_commit_interval=3600.0,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=1 << 20,
        consumer_metadata_max_age_ms=30_000,
        producer_acks=-1,
        producer_linger=0.0,
        producer_max_batch_size=1 << 18,
        producer_max_request_size=8 << 20,  # a snapshot; see the topic's own limit
        producer_compression_type=None,
        producer_request_timeout=10.0,  # then what was said is too old to matter, and is counted
        producer_metadata_max_age_ms=30_000,
        producer_threaded=False,
        worker_redirect_stdouts=False,
        # Tells the workers of a group apart; nobody calls it.
        canonical_url=f"http://{re.sub('[^a-z0-9]+', '-', worker.lower()).strip('-')}",
    )


class FaustHost:
    """The rows of a site, as far as this worker's group gives them to it.

    `worker` names this start of this process among all. `observe` is called with each beat of a row that
    is owned here, `said` after what it says was handed to the brokers, `buried` with what could not be
    read, and `rows` with the rows that are watched here, at each change.
    """

    def __init__(
        self,
        setup: Setup,
        kafka: KafkaConfig,
        app: faust.App,
        clock: Clock,
        *,
        worker: str,
        pace: Pace,
        watchdog: Watchdog,
        metrics: BusMetrics,
        observe: Callable[[Beat], None],
        said: Callable[[Said], None],
        buried: Callable[[Iterable[DeadLetter]], None],
        rows: Callable[[Iterable[str]], None],
    ) -> None:
        self.unplaced = Unplaced(row.path for row in setup.site.rows)
        self._setup = setup
        self._kafka = kafka
        self._app = app
        self._clock = clock
        self._worker = worker
        self._pace = pace
        self._watchdog = watchdog
        self._metrics = metrics
        self._observe = observe
        self._said = said
        self._buried = buried
        self._rows = rows
        self._site = setup.site.name
        self._fold = SiteFold(setup.site, setup.policy.period_ms)
        self._site_rows = {row.path: row for row in setup.site.rows}
        self._names = {kafka.topic(name): name for name in TOPICS}
        self._partitions: dict[int, Partition] = {}
        self._speaking: dict[str, tuple[Speaker, asyncio.Task[None]]] = {}
        self._placed_at: dict[str, float] = {}
        self._owned: dict[str, int] = {}  # and under which epoch
        self._losses = 0
        self.lag: dict[str, int] = {}
        """By topic, the messages that are still to be read."""
        self._paused: set[TP] = set()
        self._sending: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._heard_at = clock.monotonic()
        self._silent = False
        self._leaving = False
        fetching(app, self)
        schema = FetchSchema(key_type=bytes, value_type=bytes)
        rows_topic = app.topic(*self._names, schema=schema, acks=False)
        app.agent(rows_topic, name="rows", concurrency=1)(self._read)
        site_topic = app.topic(kafka.topic(SUMMARIES), schema=schema, acks=False)
        app.agent(site_topic, name="site", concurrency=1)(self._read)
        app.task(self._beat)
        app.task(self._cover)

    @property
    def trouble(self) -> str:
        """What is wrong with the rows here beside what their beats say, in words; any thread may ask."""
        trouble = [
            f"{row}: its loop failed: {error!r}"
            for partition in self._partitions.copy().values()
            for row, error in partition.failed.copy().items()
        ]
        trouble += [
            f"{topic}: {count} messages lie where their row does not: their sender does not partition by "
            "murmur2, as Kafka's own clients do"
            for topic, count in self.unplaced.misplaced.copy().items()
        ]
        if self._silent:
            trouble.append(f"Kafka has sent nothing for {self._clock.monotonic() - self._heard_at:.0f} s")
        return "; ".join(trouble)

    @property
    def strays(self) -> dict[str, tuple[int, int]]:
        """By row, the ticks that were passed over and the words in ticks that could not be read; any thread
        may ask."""
        return {
            row: (log.ignored, log.unread)
            for partition in self._partitions.copy().values()
            for row, log in partition.rows.copy().items()
        }

    # -- what is read -----------------------------------------------------------------------------

    def lose(self, revoked: set[TP]) -> None:
        """Partitions are taken away: their rows are another's from now on."""
        for number in {tp.partition for tp in revoked if tp.topic in self._names}:
            self._drop(number)
        self._fold.lose()
        self._metrics.sums_no_more()
        self._losses += 1
        self._paused -= revoked
        self._watchdog.settled(settled=False)
        self._rows(self._speaking)

    async def place(self, assigned: set[TP], consumer: FetchConsumer) -> Mapping[TP, int]:
        """Partitions are given: bring their rows back to where the log can be read on, and say where."""
        for number in list(self._partitions):
            self._drop(number)
        began, before = self._clock.monotonic(), self._losses
        try:
            placed = await self._placed(assigned, consumer)
            since = await self._since(assigned, consumer)
        except Exception as error:
            _LOG.exception("rows cannot be taken up")
            self._watchdog.fault(f"rows cannot be taken up: {error}")
            return {}
        if self._losses != before:  # what was given is taken away again, or will be given anew
            return {}
        places = dict(since)
        for partition, reads in placed:
            self._partitions[partition.number] = partition
            for topic, (at, end) in reads.items():
                places[TP(self._kafka.topic(topic), partition.number)] = at
                self._act(partition.begin(topic, at, end))
            for log in partition.rows.values():
                self._start(log, partition, began)
        if since:
            self._fold.begin()
        self._heard_at = self._clock.monotonic()
        self._watchdog.settled(settled=True)
        self._rows(self._speaking)
        rows = ", ".join(self._speaking) or "none of the site"
        _LOG.info("%s: %d partitions, rows: %s", self._worker, len(placed), rows)
        self._wake.set()
        return places

    async def _placed(
        self, assigned: set[TP], consumer: FetchConsumer
    ) -> list[tuple[Partition, dict[str, tuple[int, int]]]]:
        """The partitions with their rows as they are remembered and, by topic, the offset to read from and
        the one that the log ends before. Raises BusError, or KafkaError."""
        numbers = sorted({tp.partition for tp in assigned if tp.topic in self._names})
        tps = [TP(topic, number) for topic in self._names for number in numbers]
        if lacking := [tp for tp in tps if tp not in assigned]:
            raise BusError(f"{lacking[0].topic} has no partition {lacking[0].partition}, which others have")
        rows = [path for path in self._site_rows if _number(path) in numbers]
        begins, ends, recent, snapshots = await asyncio.gather(
            consumer.earliest_offsets(*tps),
            consumer.highwaters(*tps),
            consumer.at_time(tps, self._clock.now() - _LOOK_BACK),
            asyncio.to_thread(newest_snapshots, self._kafka, rows) if rows else _nothing(),
        )

        def bounds(number: int) -> dict[str, Bounds]:
            places = {topic: TP(self._kafka.topic(topic), number) for topic in TOPICS}
            return {
                topic: Bounds(begins[tp], ends[tp], recent.get(tp, ends[tp])) for topic, tp in places.items()
            }

        loops = {path: RowLoop(self._site_rows[path], self._setup.policy, epoch=0) for path in rows}
        logs = {
            path: restored(loop, self._worker, snapshots.get(path), bounds(_number(path)))
            for path, loop in loops.items()
        }
        cold = [path for path, (log, _) in logs.items() if log.cold]
        words = await asyncio.to_thread(words_of, self._kafka, cold, self._clock.now()) if cold else {}
        uptos = {
            path: upto if path not in words else begun(log, words[path], bounds(_number(path)))
            for path, (log, upto) in logs.items()
        }
        placed = []
        for number in numbers:
            here = [path for path in rows if _number(path) == number]
            reads = {}
            for topic, bound in bounds(number).items():
                committed = consumer.committed(TP(self._kafka.topic(topic), number), bound.begin)
                at = min((uptos[path].get(topic, bound.begin) for path in here), default=committed)
                reads[topic] = min(max(bound.begin, at), bound.end), bound.end
            placed.append((Partition(number, {path: logs[path][0] for path in here}, self.unplaced), reads))
        return placed

    async def _since(self, assigned: set[TP], consumer: FetchConsumer) -> Mapping[TP, int]:
        """Where to read the rows' summaries from, where the site is summed here."""
        summaries = TP(self._kafka.topic(SUMMARIES), self._fold.number)
        if summaries not in assigned:
            return {}
        since = await consumer.at_time([summaries], self._clock.now() - SITE_LOOK_BACK)
        return since or dict(await consumer.highwaters(summaries))

    async def _read(self, stream: Any) -> None:
        async for fetch in stream.noack():
            try:
                await self._take(fetch)
            except Exception as error:
                _LOG.exception("what was fetched of %s could not be taken in", fetch.topic)
                self._watchdog.fault(f"{fetch.topic} could not be taken in: {error!r}")

    async def _take(self, fetch: Fetch) -> None:
        if fetch.topic not in self._names:
            if fetch.partition == self._fold.number:
                self._bury(self._fold.take(fetch.records))
            return
        topic, partition = self._names[fetch.topic], self._partitions.get(fetch.partition)
        if partition is None:
            return
        self._heard_at = self._clock.monotonic()
        self._watchdog.read()
        self._metrics.read(topic, len(fetch.records))
        size = _SLICE.get(topic, _FRAMES)
        for start in range(0, len(fetch.records), size):
            if self._partitions.get(fetch.partition) is not partition:
                return
            done, letters = partition.take(topic, fetch.records[start : start + size])
            self._act(done)
            self._bury(letters)
            if start + size < len(fetch.records):
                await asyncio.sleep(0)
        self._mind(partition)
        if not partition.wants(topic):
            tp = TP(fetch.topic, fetch.partition)
            self._paused.add(tp)
            self._consumer.pause_partitions({tp})
        now = self._clock.now()
        if partition.ready and any(log.next_beat(now) <= now for log in partition.rows.values()):
            self._wake.set()

    def _act(self, done: Sequence[Done]) -> None:
        """Beats were done: say those that are this worker's own."""
        for log, beat in done:
            row = beat.tick.subject
            self._watchdog.beat(row)
            if row not in self._speaking:  # done while the row is being placed
                self._metrics.redone(row)
                continue
            speaker, _ = self._speaking[row]
            redone, log.redone = log.redone, ()
            if not log.mine(beat):
                speaker.ahead.pass_by(beat)
                self._metrics.redone(row)
                if self._owned.pop(row, None) is not None:
                    self._metrics.lost(row)
                    _LOG.warning("%s was claimed by %s under epoch %d", row, log.owner, log.epoch)
                continue
            for earlier in redone:
                speaker.add(earlier)
            speaker.add(beat)
            if row not in self._owned:
                beat = self._own(row, log, beat)
            elif beat.tick.epoch > self._owned[row]:
                self._metrics.claimed(row, beat.tick.epoch)
                _LOG.warning("%s: its hosts had obeyed a higher epoch; it is %d now", row, beat.tick.epoch)
            self._owned[row] = beat.tick.epoch
            self._observe(beat)

    def _own(self, row: str, log: RowLog, beat: Beat) -> Beat:
        """The first beat of a row that is this worker's; the same for whoever observes, with the trouble
        that stood before it."""
        seen = log.view(beat.tick.at)
        self._speaking[row][0].ahead.adopt(seen)
        took_s = self._clock.monotonic() - self._placed_at[row]
        self._metrics.owned(row, beat.tick.epoch, took_s)
        _LOG.info("%s is beaten here under epoch %d, %.1f s after it was assigned", row, log.epoch, took_s)
        stood = tuple(word for word in seen.emergencies if word.at < beat.tick.at)
        return msgspec.structs.replace(beat, inputs=(*stood, *beat.inputs))

    def _mind(self, partition: Partition) -> None:
        """A row whose loop failed is left alone: it would fail the same on every worker."""
        for row, error in partition.failed.items():
            if row in self._speaking:
                _LOG.error("%s: its loop failed, and it is beaten no more", row, exc_info=error)
                self._stop(row)

    # -- what is said -----------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Publish the ticks that are due, until the app stops."""
        while not self._app.should_stop:
            self._watchdog.turned()
            now = self._clock.now()
            wait_s = _LONGEST_WAIT_S
            for partition in self._partitions.values():
                if self._leaving or not partition.ready:
                    continue
                for path, log in partition.rows.items():
                    if path in self._speaking and self._speaking[path][0].idle:
                        if (tick := log.propose(now)) is not None:
                            self._send_soon(TICKS, path, codec.encode(tick))
                        wait_s = min(wait_s, max(0.001, (log.next_beat(now) - now) / 1000))
            if not self._leaving and (power := self._fold.tick(now)) is not None:
                self._send_soon(topic_of(power).name, self._site, codec.encode(power))
                self._metrics.summed(self._site_rows, power.silent)
            self._resume()
            self._listen()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait_s)
            self._wake.clear()

    def _listen(self) -> None:
        """Tell people when Kafka falls silent, and when it speaks again: a row's own ticks come back, so a
        worker that has one hears something."""
        silent_s = self._clock.monotonic() - self._heard_at
        silent = bool(self._speaking) and silent_s > _SILENT_S
        if silent and not self._silent:
            _LOG.error("Kafka has sent nothing for %.0f s, and no row is beaten meanwhile", silent_s)
        elif self._silent and not silent:
            _LOG.warning("Kafka speaks again")
        self._silent = silent

    async def _cover(self) -> None:
        """Commit what snapshots cover, and look how far reading is and what it waits for, until the app
        stops."""
        lacking: dict[str, str] = {}
        while not self._app.should_stop:
            await asyncio.sleep(self._pace.commit_ms / 1000)
            await self._commit()
            partitions = [(each, self._ends(each.number)) for each in self._partitions.values()]
            self.lag = {
                topic: sum(partition.lag(topic, ends.get(topic, 0)) for partition, ends in partitions)
                for topic in TOPICS
            }
            before, lacking = lacking, {}
            for partition, ends in partitions:
                for path, log in list(partition.rows.items()):
                    if why := log.lacks(ends):
                        lacking[path] = why
                        if before.get(path) == why:  # and not for a moment, as while a leader changes
                            await self._begin_anew(partition, path, why)

    def _ends(self, number: int) -> dict[str, int]:
        """Where a partition's log ends, by topic, where that is known."""
        consumer = self._consumer
        ends = {topic: consumer.end(TP(self._kafka.topic(topic), number)) for topic in TOPICS}
        return {topic: end for topic, end in ends.items() if end is not None}

    async def _begin_anew(self, partition: Partition, path: str, why: str) -> None:
        """A row whose recorded ticks name what is not in its log, and which would wait for ever."""
        try:
            words = (await asyncio.to_thread(words_of, self._kafka, [path], self._clock.now()))[path]
        except BusError as error:
            _LOG.warning("%s: what it is to be told cannot be read: %s", path, error)
            return
        log = partition.rows.get(path)
        if log is not None and path in self._speaking and why == log.lacks(self._ends(partition.number)):
            _LOG.error("%s begins anew: %s", path, why)
            log.forget()
            log.remind(words.told)
            log.above(words.epoch)
            self._wake.set()

    async def _commit(self) -> None:
        covered = {
            TP(self._kafka.topic(topic), partition.number): offset
            for partition in self._partitions.values()
            for topic, offset in partition.covered.items()
        }
        await self._consumer.cover(covered)

    # -- the bus of speakers ----------------------------------------------------------------------

    async def say(self, event: Event, key: str) -> asyncio.Future[None]:
        """A message to the topic of its type."""
        return await self._send(topic_of(event).name, key, codec.encode(event))

    async def record(self, event: Event, key: str) -> asyncio.Future[None]:
        """A message to the ledger."""
        return await self._send(LEDGER, self._site, codec.encode(event))

    async def keep(self, snapshot: bytes, key: str) -> asyncio.Future[None]:
        """A row's snapshot, in place of the one before."""
        return await self._send(SNAPSHOTS, key, snapshot)

    async def _send(self, topic: str, key: str, value: bytes) -> asyncio.Future[None]:
        try:
            answer = await self._app.producer.send(
                self._kafka.topic(topic), key.encode(), value, None, None, None
            )
        except (ProducerSendError, KafkaError) as error:
            self._metrics.send_failed(topic)
            raise Unsent(f"{topic}: {error}") from error
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def answered(future: asyncio.Future[Any]) -> None:
            if sent.done():
                return
            error = None if future.cancelled() else future.exception()
            if error is None and not future.cancelled():
                sent.set_result(None)
                return
            self._metrics.send_failed(topic)
            sent.set_exception(Unsent(f"{topic}: {error or 'given up'}"))
            sent.exception()  # whoever waits is told; where nobody waits, it is counted

        asyncio.ensure_future(answer).add_done_callback(answered)
        return sent

    def _send_soon(self, topic: str, key: str, value: bytes) -> None:
        async def send() -> None:
            try:
                await (await self._send(topic, key, value))
            except Unsent as error:
                _LOG.warning("not sent: %s", error)

        task = asyncio.create_task(send())
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def _bury(self, letters: Sequence[DeadLetter]) -> None:
        self._buried(letters)
        for letter in letters:
            key = letter.subject if letter.subject in self._speaking else self._site
            self._send_soon(topic_of(letter).name, key, codec.encode(letter))

    # -- rows -------------------------------------------------------------------------------------

    async def leave(self) -> None:
        """Beat no more, say what is still to be said, and keep every row as it is then, so that the next
        worker has nothing to redo."""
        self._leaving = True
        speakers = [speaker for speaker, _ in self._speaking.values()]
        until = self._clock.monotonic() + _LEAVING_S
        while not all(speaker.idle for speaker in speakers) and self._clock.monotonic() < until:
            await asyncio.sleep(0.02)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVING_S):
                await asyncio.gather(*(speaker.snapshot(self._clock.now()) for speaker in speakers))
                await self._commit()

    def _start(self, log: RowLog, partition: Partition, began: float) -> None:
        path = log.loop.row.path
        self._placed_at[path] = began

        def kept(row: str, snapshot: Snapshot) -> None:
            partition.keep(row, snapshot.covers)
            self._metrics.kept(len(snapshot.payload))

        def said(what: Said) -> None:
            self._said(what)
            self._wake.set()

        speaker = Speaker(
            log,
            self,
            self._clock,
            site=self._site,
            snapshot_ms=self._pace.snapshot_ms,
            said=said,
            kept=kept,
        )
        self._speaking[path] = speaker, asyncio.create_task(self._speak(speaker))
        self._watchdog.watch(path)

    async def _speak(self, speaker: Speaker) -> None:
        try:
            await speaker.run()
        except Exception as error:
            _LOG.exception("%s: what its beats say could not be said", speaker.row)
            self._watchdog.fault(f"{speaker.row}: what its beats say could not be said: {error!r}")

    def _stop(self, row: str) -> None:
        speaker, task = self._speaking.pop(row)
        task.cancel()
        speaker.close()
        for event in speaker.ahead.waiting:  # what was done stays done, and is proved
            self._send_soon(LEDGER, self._site, codec.encode(event))
        self._owned.pop(row, None)
        self._watchdog.forget(row)
        self._metrics.dropped(row)

    def _drop(self, number: int) -> None:
        partition = self._partitions.pop(number, None)
        for row in partition.rows if partition is not None else ():
            if row in self._speaking:
                self._stop(row)

    def _resume(self) -> None:
        """Fetch again what rows can take again."""
        for tp in list(self._paused):
            partition = self._partitions.get(tp.partition)
            if partition is None or partition.wants(self._names[tp.topic]):
                self._paused.discard(tp)
                self._consumer.resume_partitions({tp})

    @property
    def _consumer(self) -> FetchConsumer:
        consumer = self._app.consumer
        assert isinstance(consumer, FetchConsumer)
        return consumer


async def _nothing() -> dict[str, bytes]:
    return {}


def _number(path: str) -> int:
    """The partition that a row lies on, of every topic that it reads."""
    return partition_of(path.encode(), BY_NAME[TICKS].partitions)
