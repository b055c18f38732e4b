"""A fleet's log on a real Kafka: what every contender of the throughput table reads.

A thousand hosts say one frame a second each, of one or ten readings. Rows' meters speak every two seconds,
and the ticks of an owner that is gone close a beat every two: so a worker that starts has all of it to do
again, as fast as it can, and from a snapshot, for it would not begin anew in the middle of a log.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Iterator

from confluent_kafka import Producer

from benchmarks.plant import START, setup_for
from runtime.bus.keys import partition_of
from runtime.bus.settings import KafkaConfig
from runtime.config import Setup
from runtime.control_loop import TICK_SOURCE
from runtime.hosts.recall import SNAPSHOTS
from runtime.hosts.row_log import INPUTS, TICKS
from runtime.hosts.snapshot import Mark, freeze
from runtime.row_loop import RowLoop
from schemas import codec
from schemas.envelope import Event, Tick
from schemas.instants import SECOND, Instant
from schemas.samples import FeedSample, GpuFrame
from schemas.topics import BY_NAME, topic_of
from schemas.topology import Host, Row

ROWS = 25
HOSTS = 40
"""To a row: a thousand hosts, eight GPUs each."""

_GONE = f"{TICK_SOURCE}/gone"


def fleet() -> Setup:
    """The site that the log speaks of."""
    return setup_for(HOSTS, ROWS)


class Log:
    """The log of a site's rows from its beginning, under one prefix, in the making."""

    def __init__(self, kafka: KafkaConfig) -> None:
        self.frames = 0
        self._kafka = kafka
        self._ends: Counter[tuple[str, int]] = Counter()
        servers = ",".join(kafka.servers)
        self._producer = Producer({"bootstrap.servers": servers, "linger.ms": 20, "enable.idempotence": True})

    def put(self, topic: str, row: str, payload: bytes) -> None:
        """A message under the row's key, on the row's partition."""
        key = row.encode()
        place = partition_of(key, BY_NAME[topic].partitions)
        self._ends[topic, place] += 1
        while True:
            try:
                return self._producer.produce(self._kafka.topic(topic), payload, key, place)
            except BufferError:
                self._producer.poll(0.1)

    def say(self, row: str, event: Event) -> None:
        """A message to its topic."""
        self.frames += isinstance(event, GpuFrame)
        self.put(topic_of(event).name, row, codec.encode(event))

    def beat(self, row: str, at: Instant) -> None:
        """The tick of a beat that takes in all that was said before."""
        places = {topic: partition_of(row.encode(), BY_NAME[topic].partitions) for topic in INPUTS}
        upto = {topic: self._ends[topic, place] for topic, place in places.items()}
        self.say(row, Tick(at=at, source=_GONE, subject=row, epoch=1, upto=upto))

    def close(self) -> None:
        """Wait until the broker has it all, and see that it lies where the ticks say."""
        assert self._producer.flush(60) == 0


def fill(kafka: KafkaConfig, setup: Setup, hz: int, seconds: int) -> int:
    """Put `seconds` of the fleet onto empty topics, `hz` readings of each GPU in a frame; how many frames.

    Powers wander, so that no reading repeats itself; rows stay below their thresholds.
    """
    log, draw = Log(kafka), random.Random(1)
    for row in setup.site.rows:
        loop = RowLoop(row, setup.policy, epoch=0)
        begun = Mark(upto=dict.fromkeys((*INPUTS, TICKS), 0), epoch=1, owner=_GONE)
        log.put(SNAPSHOTS, row.path, freeze(loop.initial(), loop, begun))
    for second in range(1, seconds + 1):
        at = START + second * SECOND
        for row in setup.site.rows:
            for host in row.hosts:
                log.say(row.path, frame_of(host, at, hz, draw))
            if second % 2 == 0:
                for meter in meters_of(row, at, draw):
                    log.say(row.path, meter)
                log.beat(row.path, at + 200)
    log.close()
    return log.frames


def meters_of(row: Row, at: Instant, draw: random.Random) -> Iterator[FeedSample]:
    for path in row.meters:
        power_w = round(row.budget_w * draw.uniform(0.66, 0.70) / len(row.meters), 1)
        yield FeedSample(at=at, source="collector/feed-meter", subject=path, power_w=power_w)


def frame_of(host: Host, at: Instant, hz: int, draw: random.Random) -> GpuFrame:
    gpus = host.gpu_count
    offsets = tuple(-SECOND // hz * back for back in range(hz - 1, -1, -1))

    def grid(low: float, high: float, digits: int) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(round(draw.uniform(low, high), digits) for _ in range(gpus)) for _ in offsets)

    return GpuFrame(
        at=at,
        source=f"collector/gpu-nvml/{host.path}",
        subject=host.path,
        gpus=tuple(f"GPU-{zlib.crc32(host.path.encode()):08x}-0000-4000-8000-{i:012x}" for i in range(gpus)),
        offsets_ms=offsets,
        power_w=grid(140, 240, 3),
        sm_mhz=grid(1200, 1410, 0),
        utilisation_ratio=grid(0.5, 1.0, 2),
        core_c=tuple(float(draw.randint(45, 70)) for _ in range(gpus)),
        memory_c=tuple(float(draw.randint(50, 80)) for _ in range(gpus)),
        energy_j=tuple(round(draw.uniform(1e6, 2e6), 3) for _ in range(gpus)),
        limit_w=(400.0,) * gpus,
        event_reasons=(0,) * gpus,
        faults=("",) * gpus,
    )
