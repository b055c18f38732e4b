"""The faults: how each is done to a running site, and undone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from faults.rig import Part, Rig
from faults.series import unarchived

from schemas.codec import encode
from schemas.instants import SECOND
from schemas.samples import GpuFrame
from schemas.topics import BY_NAME
from schemas.units import Grid

REPEATED = ("windrow.gpus", "windrow.power", "windrow.outcomes", "windrow.commands", "windrow.emergencies")
"""Topics whose messages are said again out of order: what a retry, a re-sent spool or a replay does."""


class Fault(NamedTuple):
    """Something done to a site. `strike` returns once it is over, or will end by itself.

    `short_s` and `full_s` say how long it lasts in a test and in a full run, where it lasts at all.
    """

    name: str
    strike: Callable[[Rig, float], None]
    short_s: float = 0.0
    full_s: float = 0.0
    nodes: int = 1
    """Brokers of the site."""
    prepare: Callable[[Rig], None] | None = None
    """What the site needs before, which is not part of the fault."""
    also_wrong: Callable[[Rig], Iterable[str]] = lambda _: ()
    """What else must not be afterwards, in words."""

    @property
    def what(self) -> str:
        """The fault in a sentence: the first line of what `strike` is documented to do."""
        return (self.strike.__doc__ or "").split("\n\n")[0].replace("\n    ", " ").strip()


def worker_killed(rig: Rig, _: float) -> None:
    """SIGKILL of the worker that beats a row, of two; it is started again after a second."""
    rig.owner(rig.site.rows[0].path).kill()


def all_workers_killed(rig: Rig, _: float) -> None:
    """SIGKILL of every worker at once: no controller is left until they are started again."""
    for name, part in rig.parts.items():
        if name.startswith("control"):
            part.kill()


def worker_hangs(rig: Rig, length_s: float) -> None:
    """The worker that beats a row is stopped in its tracks (SIGSTOP) and goes on later, unaware."""
    part = rig.owner(rig.site.rows[0].path)
    part.pause()
    rig.look(length_s)
    part.resume()


def partitions_moved(rig: Rig, length_s: float) -> None:
    """A third worker comes and takes rows over, and later goes in order: partitions move twice."""
    third = rig.worker(3)
    rig.look(length_s)
    third.stop()


def actuator_killed(rig: Rig, _: float) -> None:
    """SIGKILL of one host's actuator; it is started again after a second."""
    _one(rig, "actuate").kill()


def collector_killed(rig: Rig, _: float) -> None:
    """SIGKILL of one host's collector; it is started again after a second."""
    _one(rig, "collect").kill()


def _one(rig: Rig, kind: str) -> Part:
    return next(part for name, part in rig.parts.items() if name.startswith(kind))


def broker_restarted(rig: Rig, _: float) -> None:
    """The only broker is stopped in order and started again."""
    for node in rig.cluster.nodes:
        node.stop()
    rig.cluster.start()


def broker_away(rig: Rig, length_s: float) -> None:
    """The only broker is killed and stays away."""
    for node in rig.cluster.nodes:
        node.kill()
    rig.look(length_s)
    rig.cluster.start()


def one_broker_killed(rig: Rig, length_s: float) -> None:
    """SIGKILL of one broker of three, each with a copy of everything; it comes back later."""
    rig.cluster.nodes[0].kill()
    rig.look(length_s)
    rig.cluster.nodes[0].start()


def broker_hangs(rig: Rig, length_s: float) -> None:
    """The only broker keeps its connections and answers nothing (SIGSTOP)."""
    for node in rig.cluster.nodes:
        node.pause()
    rig.look(length_s)
    for node in rig.cluster.nodes:
        node.resume()


def out_of_order(rig: Rig, length_s: float) -> None:
    """Messages are said again, twice and shuffled; frames come that are a minute old, and frames from a
    minute ahead, which say that busy boards draw nothing."""
    chance = random.Random(1)
    for _ in range(max(1, round(length_s / 2))):
        recent = rig.heard(rig.now() - 60 * SECOND)
        again = [each for each in recent if each.topic in REPEATED]
        chosen = chance.sample(again, min(len(again), 200)) * 2
        frames = [each for each in recent if isinstance(each.event, GpuFrame)][-len(rig.site.hosts) :]
        rig.inject((each.topic, each.key, encode(each.event)) for each in chosen)
        for shift in (-60 * SECOND, 60 * SECOND):
            rig.inject((each.topic, each.key, encode(_idle(each.event, shift))) for each in frames)
        rig.look(2.0)


def _idle(frame: object, shift: int) -> GpuFrame:
    """The same boards at another time, all at rest."""
    assert isinstance(frame, GpuFrame)

    def zero(grid: Grid) -> Grid:
        return tuple(tuple(None if reading is None else 0.0 for reading in column) for column in grid)

    return msgspec.structs.replace(
        frame,
        at=frame.at + shift,
        id="",
        power_w=zero(frame.power_w),
        power_average_w=zero(frame.power_average_w),
    )


def snapshots_lost(rig: Rig, _: float) -> None:
    """The topic with what the workers keep of their rows is deleted, and a worker killed."""
    name = rig.kafka.topic("windrow.snapshots")
    admin = AdminClient({"bootstrap.servers": ",".join(rig.kafka.servers)})
    admin.delete_topics([name])[name].result(20)
    rig.look(1.0)
    partitions = BY_NAME["windrow.snapshots"].partitions
    again = NewTopic(name, partitions, rig.kafka.replication, config={"cleanup.policy": "compact"})
    admin.create_topics([again])[name].result(20)
    worker_killed(rig, 0.0)


def small_disks(rig: Rig) -> None:
    """Put what a host's two processes keep on disks of their own."""
    rig.host(next(iter(rig.boards.states)), "collect", "actuate", disk_bytes=1 << 20)
    since = rig.now()
    assert rig.until(lambda: rig.lives(since), 90.0), "the host did not come back with a disk of its own"


def disk_full(rig: Rig, length_s: float) -> None:
    """The disk with the spools and the state of a host's collector and actuator is full, and the only broker
    is killed and stays away, so that they would spool."""
    south = [name for name in rig.parts if name.endswith("south-r01-h01")]
    fillers = [rig.fill(name) for name in south]
    broker_away(rig, length_s)
    for filler in fillers:
        filler.unlink()


def influx_started(rig: Rig) -> None:
    """Have the site archived."""
    rig.archive()
    rig.look(5.0)


def influx_hangs(rig: Rig, length_s: float) -> None:
    """InfluxDB keeps its connections and answers nothing (SIGSTOP); everything must be in it afterwards."""
    assert rig.series is not None
    rig.series.pause()
    rig.look(length_s)
    rig.series.resume()


def influx_lacks(rig: Rig) -> Iterable[str]:
    """What the archive did not bring to InfluxDB."""
    assert rig.series is not None
    return unarchived(rig, rig.series)


FAULTS = (
    Fault("worker killed", worker_killed),
    Fault("every worker killed", all_workers_killed),
    Fault("worker hangs", worker_hangs, short_s=12, full_s=40),
    Fault("partitions moved", partitions_moved, short_s=10, full_s=40),
    Fault("actuator killed", actuator_killed),
    Fault("collector killed", collector_killed),
    Fault("broker restarted", broker_restarted),
    Fault("broker away", broker_away, short_s=5, full_s=60),
    Fault("broker hangs", broker_hangs, short_s=5, full_s=30),
    Fault("one broker of three killed", one_broker_killed, full_s=30, nodes=3),
    Fault("disk full", disk_full, short_s=5, full_s=60, prepare=small_disks),
    Fault(
        "InfluxDB hangs",
        influx_hangs,
        short_s=8,
        full_s=60,
        prepare=influx_started,
        also_wrong=influx_lacks,
    ),
    Fault("out of order", out_of_order, short_s=4, full_s=60),
    Fault("snapshots lost", snapshots_lost),
)
