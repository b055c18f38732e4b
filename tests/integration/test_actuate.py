"""`windrow actuate` on the stand-in driver, commanded over a real Kafka: real processes, real signals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from support.actuated import ROW, USED, Actuated
from support.kafka_broker import Node
from support.machines import HOST, SAFE_MHZ, UNCAPPED_MHZ, eventually

from runtime.bus.clients import connect
from runtime.bus.provision import ensure
from runtime.bus.settings import KafkaConfig
from runtime.clock import SystemClock
from schemas import codec
from schemas.commands import Brake, Lease
from schemas.emergencies import Emergency
from schemas.envelope import Tick
from schemas.instants import SECOND
from schemas.operators import ReleaseAll, Resume
from schemas.outcomes import Accepted, Lapsed, Refused, Renewed, Verified
from schemas.topics import BY_NAME

pytestmark = [pytest.mark.counterpart, pytest.mark.usefixtures("nvml_library")]


@pytest.fixture
def host(tmp_path: Path, kafka: KafkaConfig) -> Iterator[Actuated]:
    """A machine that is set over Kafka; its topics are there, its process is not started."""
    ensure(kafka, USED)
    with Actuated(tmp_path, kafka) as made:
        yield made


def put(kafka: KafkaConfig, topic: str, key: bytes, value: bytes) -> None:
    """Put bytes of any kind on a topic."""
    producer = connect("KafkaProducer", kafka, 10.0).client
    producer.send(kafka.topic(topic), key=key, value=value).get(10)
    producer.close(1)


def test_a_command_over_kafka_is_written_read_back_and_told(host: Actuated) -> None:
    host.start()
    host.until_ready()
    assert host.machine.at_safe_share, "without a lease a host is at its safe share"
    controller = host.controller()
    uncapped = controller.lock(UNCAPPED_MHZ)
    assert host.verified(uncapped).detail == ""
    assert host.machine.locks == [0, 0]

    cap = controller.lock(1500)
    verified = host.verified(cap)
    assert host.machine.locks == [1500, 1500]
    writes = len(host.machine.state.writes())
    controller.say(cap, cap)  # as after a retry
    renewal = controller.lock(1500, ttl=80 * SECOND)
    host.await_outcome(renewal, Renewed)
    assert len(host.machine.state.writes()) == writes
    assert verified.observed == 1500
    assert verified.subject == HOST
    kinds = [type(o).__name__ for o in host.outcomes() if o.command == cap.id]
    assert kinds == ["Accepted", "Verified"]

    metrics = host.machine.get("/metrics").decode()
    assert "windrow_actuator_verified_seconds_count 2.0" in metrics
    assert 'windrow_publish_sent_messages_total{topic="windrow.outcomes"}' in metrics
    assert host.stop() == 0
    assert host.machine.at_safe_share, "nobody would be there to end the lease"
    (lapsed,) = [o for o in host.outcomes(Lapsed) if o.command == renewal.id]
    assert lapsed.detail.startswith("the agent stands down; safe share read back")


def test_what_was_said_while_it_was_down_is_looked_at_again(host: Actuated) -> None:
    now = SystemClock().now()
    controller = host.controller(epoch=3)
    late = controller.lock(1200, at=now - 20 * SECOND, ttl=10 * SECOND)
    alive = controller.lock(1500, at=now - 10 * SECOND)
    host.start()
    host.verified(alive)
    refused = host.await_outcome(late, Refused)
    assert refused.detail.startswith("expired on arrival: its lease ended at")
    assert host.machine.locks == [1500, 1500]
    writes = len(host.machine.state.writes())

    host.kill()
    host.start()
    host.until_ready()
    accepted = [o.detail for o in host.outcomes(Accepted) if o.command == alive.id]
    eventually(lambda: len([o for o in host.outcomes(Verified) if o.command == alive.id]) == 2, "goes on")
    assert host.machine.locks == [1500, 1500]
    assert len(accepted) <= 2, "what it reads again it does not take twice"
    assert len(host.machine.state.writes()) <= 2 * writes


def test_another_one_s_commands_malformed_ones_and_stray_ones_are_left_alone(host: Actuated) -> None:
    host.start()
    host.until_ready()
    writes = len(host.machine.state.writes())
    controller = host.controller()
    put(host.kafka, "windrow.commands", ROW.encode(), b"\xff{ this is no message")
    put(host.kafka, "windrow.commands", ROW.encode(), codec.encode(Tick(at=1, source="x", subject=ROW)))
    stray = msgspec.structs.replace(controller_lock(host), id="stray")
    # The same partition by chance of its key is not what makes a command ours.
    put(host.kafka, "windrow.commands", ROW.encode(), codec.encode(other(stray)))
    last = controller.lock(1500)
    host.verified(last)
    eventually(lambda: len(host.dead()) == 2, "what cannot be read is kept whole")
    broken, tick = sorted(host.dead(), key=lambda letter: letter.payload[:1] == b"{")
    assert broken.payload == b"\xff{ this is no message"
    assert "invalid" in broken.reason.lower()
    assert tick.reason == "a Tick does not belong on windrow.commands"
    assert {letter.topic for letter in host.dead()} == {"windrow.commands"}
    assert [o for o in host.outcomes() if o.command == "stray"] == []
    assert len(host.machine.state.writes()) <= writes + 4


def controller_lock(host: Actuated) -> Brake:
    """A brake that nobody has sent."""
    now = SystemClock().now()
    lease = Lease(epoch=1, issued_at=now, expires_at=now + 90 * SECOND, on_expiry="hold")
    return Brake(at=now, source="test", subject=HOST, lease=lease, max_mhz=600, path="in_band")


def other(brake: Brake) -> Brake:
    """The same for a host that is not kept here."""
    return msgspec.structs.replace(brake, subject=f"{ROW}/r01/h99")


def test_two_controllers_that_live_at_once_never_alternate_a_setting(host: Actuated) -> None:
    host.start()
    host.until_ready()
    old, new = host.controller(epoch=4), host.controller(epoch=5)
    first = old.lock(1500)
    host.verified(first)
    taken = new.lock(1200)
    host.verified(taken)
    stale = []
    for turn in range(10):
        stale.append(old.lock(1500 + 15 * (turn % 2)))
        taken = new.lock(1200)
        assert host.machine.locks == [1200, 1200]
    stale.append(old.lock(UNCAPPED_MHZ))
    refusals = [host.await_outcome(command, Refused) for command in stale]
    assert {refused.detail for refused in refusals} == {"epoch 4 is fenced: 5 has been seen"}
    locked = [
        write.arguments[1] for write in host.machine.state.writes(gpu=0) if "LockedClocks" in write.call
    ]
    assert locked[-2:] == [1500, 1200], "and nothing after the newer one's"

    host.kill()
    host.start()
    host.until_ready()
    again = old.lock(1500)
    assert host.await_outcome(again, Refused).detail == "epoch 4 is fenced: 5 has been seen"
    assert host.machine.locks == [1200, 1200]


def test_a_person_s_release_gives_the_host_back_and_a_controller_that_had_not_heard_does_not_take_it(
    host: Actuated,
) -> None:
    host.start()
    host.until_ready()
    controller = host.controller()
    host.verified(controller.lock(1200))
    now = SystemClock().now()
    word = ReleaseAll(at=now, source="operator", subject="lab", by="ada", reason="maintenance")
    controller.say(word)
    eventually(lambda: host.machine.at_safe_share, "in an oversubscribed row that is the safe share")
    unheard = controller.lock(1500)
    refused = host.await_outcome(unheard, Refused)
    assert "released by ada" in refused.detail
    assert "(maintenance), which its controller had not heard" in refused.detail
    assert host.machine.at_safe_share

    controller.say(Resume(at=SystemClock().now(), source="operator", subject="lab", by="ada"))
    host.verified(controller.lock(1500))
    assert host.machine.locks == [1500, 1500]


def test_a_host_says_that_its_orders_lie_on_another_partition_than_it_would_read(
    tmp_path: Path, kafka: KafkaConfig
) -> None:
    meant = BY_NAME["windrow.commands"].partitions
    ensure(kafka, [topic._replace(partitions=topic.partitions + 4) for topic in USED])
    with Actuated(tmp_path, kafka) as host:
        host.start()
        words = f"{kafka.topic('windrow.commands')} has {meant + 4} partitions and should have {meant}"
        eventually(lambda: words in str(host.machine.ready()), "deaf, and not silent")
        assert host.machine.at_safe_share


@pytest.mark.slow
def test_a_gpu_too_hot_is_held_and_let_go_again(host: Actuated) -> None:
    host.start()
    host.until_ready()
    controller = host.controller()
    host.verified(controller.lock(UNCAPPED_MHZ))
    began = time.monotonic()
    host.machine.state.gpu(1).temp_c = 93
    eventually(lambda: host.machine.locks == [1365, 1365], "both boards are at half of their power")
    assert time.monotonic() - began < 3.0
    assert host.machine.limits == [387.0, 387.0]
    eventually(lambda: [e.phase for e in emergencies(host)] == ["raised"], "it is told")
    assert emergencies(host)[0].because == "gpu1 at 93 °C, its slowdown temperature is 89 °C"
    assert any("the reflex holds it at or below" in why for why in (host.machine.ready() or {})["reasons"])

    looser = host.await_outcome(controller.lock(1500, ttl=60 * SECOND), Verified)
    assert "gpu1 at 93 °C" in looser.detail, "a cap is taken, and is in force as it asks, at or below"
    assert host.machine.locks == [1365, 1365]
    refused = host.await_outcome(controller.lock(UNCAPPED_MHZ), Refused)
    assert refused.detail.startswith("it would loosen, and the reflex holds it")

    host.kill()
    host.start()
    host.machine.state.gpu(1).temp_c = 60
    host.until_ready_but_held()
    assert host.machine.locks == [1365, 1365], "a restart does not forget it"
    eventually(
        lambda: host.machine.locks == [1500, 1500], "well for half a minute, and its command counts", 45.0
    )
    eventually(lambda: [e.phase for e in emergencies(host)] == ["raised", "cleared"], "that is told, too")


def emergencies(host: Actuated) -> list[Emergency]:
    return [event for event in host.heard() if isinstance(event, Emergency)]


@pytest.mark.slow
def test_without_kafka_leases_end_and_reflexes_hold_and_what_was_said_arrives_when_it_is_back(
    broker: Node, tmp_path: Path
) -> None:
    kafka = KafkaConfig(servers=(broker.address,))
    ensure(kafka, USED)
    with Actuated(tmp_path, kafka) as host:
        host.start()
        host.until_ready()
        controller = host.controller()
        uncapped = controller.lock(UNCAPPED_MHZ, ttl=6 * SECOND)
        host.verified(uncapped)
        broker.kill()
        eventually(lambda: host.machine.at_safe_share, "the lease ends though Kafka is gone")
        host.machine.state.gpu(0).temp_c = 93
        eventually(lambda: host.machine.locks == [1365, 1365], "the reflex needs no Kafka")
        for words in ("orders are not read", "Kafka is away"):
            eventually(lambda words=words: words in str(host.machine.ready()), "health says so")  # type: ignore[misc]
        host.machine.state.gpu(0).temp_c = 60

        broker.start()
        lapsed = host.await_outcome(uncapped, Lapsed, within_s=30.0)
        assert "safe share read back" in lapsed.detail
        eventually(
            lambda: [e.phase for e in emergencies(host)][:1] == ["raised"], "the alarm arrives too", 30.0
        )
        brake = controller_lock(host)
        controller.say(brake)
        host.verified(brake)
        assert host.machine.locks == [600, 600], "and orders are read again"


def test_a_host_that_starts_without_kafka_is_safe_and_is_commanded_when_it_comes(
    broker: Node, tmp_path: Path
) -> None:
    kafka = KafkaConfig(servers=(broker.address,))
    ensure(kafka, USED)
    with Actuated(tmp_path, kafka) as host:
        broker.kill()
        host.start()
        eventually(lambda: host.machine.at_safe_share, "it needs no Kafka to be safe")
        assert SAFE_MHZ < UNCAPPED_MHZ
        broker.start()
        host.until_ready()
        cap = host.controller().lock(1500)
        host.verified(cap)


def test_a_host_whose_state_directory_takes_no_file_is_taken_up_all_the_same(host: Actuated) -> None:
    host.start()
    host.until_ready()
    host.verified(host.controller().lock(UNCAPPED_MHZ, ttl=15 * SECOND))
    host.kill()
    state = host.folder / "state"
    files = [state / "host.json", *(state / "hosts").iterdir()]
    for file in files:  # what is no file can be neither replaced nor read, whoever runs this
        file.unlink()
        (file / "in the way").mkdir(parents=True)
    host.start()
    eventually(lambda: host.machine.at_safe_share, "nobody else would end the lease that a kill left behind")
    eventually(lambda: any("cannot be written" in o.detail for o in host.outcomes(Lapsed)), "it is told")
    cap = host.controller(epoch=2).lock(1005)
    assert "kept in memory only" in host.await_outcome(cap, Verified).detail
    looser = host.controller(epoch=3).lock(UNCAPPED_MHZ)
    assert host.await_outcome(looser, Refused).detail.startswith("it would loosen, and a killed agent could")
    assert "host.json: cannot be written" in (host.folder / "actuate.log").read_text()
