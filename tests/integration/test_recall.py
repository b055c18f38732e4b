"""What a real bus remembers of rows: their newest snapshots, and what outlives a row's memory."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer
from support.two_rows import TWO_ROWS

from controllers.policy import DEFAULT_POLICY
from runtime.bus.keys import partition_of
from runtime.bus.provision import ensure
from runtime.bus.settings import KafkaConfig
from runtime.hosts.recall import SNAPSHOTS, newest_snapshots, words_of
from runtime.hosts.snapshot import Mark, freeze
from runtime.row_loop import RowLoop
from schemas import codec
from schemas.commands import Lease, LockClocks
from schemas.decisions import Decision
from schemas.emergencies import Emergency
from schemas.envelope import Event, Tick
from schemas.instants import MINUTE, SECOND, Instant
from schemas.operators import Pin, Unpin
from schemas.samples import UpsSample
from schemas.site_file import read_site
from schemas.topics import BY_NAME, topic_of

pytestmark = pytest.mark.counterpart

SITE = read_site(TWO_ROWS, "two-rows")
A, B = (row.path for row in SITE.rows)
HOST = SITE.row(A).hosts[0].path
T0: Instant = 1_700_000_000_000


class Past:
    """What lies on the bus when a host starts."""

    def __init__(self, kafka: KafkaConfig) -> None:
        ensure(kafka)
        self._kafka = kafka
        servers = ",".join(kafka.servers)
        self._producer = Producer({"bootstrap.servers": servers, "log_level": 0, "enable.idempotence": True})

    def put(self, topic: str, row: str, payload: bytes) -> None:
        number = partition_of(row.encode(), BY_NAME[topic].partitions)
        self._producer.produce(self._kafka.topic(topic), payload, row.encode(), number)
        self._producer.poll(0)

    def say(self, row: str, *events: Event) -> None:
        for event in events:
            self.put(topic_of(event).name, row, codec.encode(event))

    def kept(self, row: str, epoch: int, at: Instant) -> bytes:
        loop = RowLoop(SITE.row(row), DEFAULT_POLICY, epoch=epoch)
        payload = freeze(loop.initial(), loop, Mark(epoch=epoch, owner="x", at=at))
        self.put(SNAPSHOTS, row, payload)
        return payload

    def settle(self) -> None:
        assert self._producer.flush(20) == 0


def test_the_newest_snapshot_is_that_of_the_highest_epoch_wherever_it_stands(kafka: KafkaConfig) -> None:
    past = Past(kafka)
    for second in range(300):  # more than is looked at first
        past.kept(A, 1, T0 + second)
    newest = past.kept(A, 2, T0 + 100)
    past.kept(A, 1, T0 + 10_000)  # of a host that has lost the row and does not know yet
    past.put(SNAPSHOTS, A, b"damaged")
    past.put(SNAPSHOTS, "ams9/row-x", newest)
    past.settle()
    assert newest_snapshots(kafka, [A, B]) == {A: newest}


def test_a_row_that_begins_anew_is_told_what_holds_and_commands_above_every_epoch(kafka: KafkaConfig) -> None:
    past = Past(kafka)
    pin = Pin(
        at=T0, source="operator", subject=A, by="ada", reason="heat", max_mhz=900, expires_at=T0 + 60 * MINUTE
    )
    gone = Pin(
        at=T0, source="operator", subject=HOST, by="ada", reason="x", max_mhz=900, expires_at=T0 + 60 * MINUTE
    )
    failing = UpsSample(
        at=T0 + 5, source="meter", subject=f"{SITE.name}/ups-1", power_w=None, on_battery=True
    )
    failover = Emergency(
        at=T0 + 6,
        source="detect",
        subject=A,
        kind="failover",
        phase="raised",
        because="b",
        cause=(failing.id,),
    )
    decision = Decision(
        at=T0 + 10, source="c", subject=A, policy="polca", mode="B", since=T0 + 6, desired=(), because="b"
    )
    lease = Lease(epoch=7, issued_at=T0, expires_at=T0 + 90 * SECOND, on_expiry="safe_share")
    command = LockClocks(at=T0 + 11, source="c", subject=HOST, lease=lease, max_mhz=900, because="b")
    tick = Tick(at=T0 + 10, source="runtime/control-loop/x", subject=A, epoch=5, upto={"windrow.gpus": 12})
    past.say(A, pin, gone, Unpin(at=T0 + 1, source="operator", subject=HOST, by="ada"))
    past.say(A, failing, failover, decision, command, tick)
    past.say(B, Tick(at=T0, source="runtime/control-loop/x", subject=B, epoch=3))
    past.put("windrow.ticks", A, b"damaged")
    past.settle()

    words = words_of(kafka, [A, B], T0 + MINUTE)
    told = words[A].told
    assert [type(word) for word in told] == [Pin, UpsSample, Decision]
    assert told[0] == pin
    again = told[1]
    assert isinstance(again, UpsSample)
    assert (again.on_battery, again.cause) == (True, (failing.id,))
    said = told[2]
    assert isinstance(said, Decision)
    assert (said.mode, said.source) == ("B", "runtime/restart")
    assert words[A].epoch == 7
    assert words[A].upto == {"windrow.gpus": 12}
    assert words[B] == ((), 3, {})
