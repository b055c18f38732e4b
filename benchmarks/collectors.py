"""What the collectors of a site say, published as they would: each host and meter at a moment of its own."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from functools import partial

from benchmarks.frames import frame_of, meters_of
from runtime.bus.keys import Keys
from runtime.bus.publisher import Publisher
from runtime.bus.settings import KafkaConfig
from runtime.clock import SystemClock
from runtime.config import Setup
from schemas.envelope import Event
from schemas.instants import SECOND, Instant, Span
from schemas.samples import FeedSample, UpsSample
from schemas.topology import Host, Row

_SOURCE = "collector/feed-meter"


class Collectors:
    """A frame a second of each host, a word every two seconds of each meter and of the UPS of them all;
    everything below its thresholds but what it is told to say."""

    def __init__(self, setup: Setup, kafka: KafkaConfig, clock: SystemClock) -> None:
        self._setup = setup
        self._clock = clock
        self._publisher = Publisher(kafka, Keys(setup.site), spool=None, clock=clock, client="collectors")
        self._draw = random.Random(1)
        self._says: list[tuple[Span, Callable[[Instant], Iterable[Event]]]] = []
        self._due: list[tuple[Instant, int]] = []
        for host in setup.site.hosts.values():
            self._every(SECOND, partial(self._frames, host))
        for row in setup.site.rows:
            self._every(2 * SECOND, partial(self._meters, row))
        self._every(2 * SECOND, lambda at: [self._ups(at, on_battery=False)])

    def until(self, until: Instant) -> None:
        """Publish what is due until then."""
        while (now := self._clock.now()) < until:
            at, n = self._due[0]
            if at > now:
                self._clock.sleep_until(min(at, until))
                continue
            period, says = self._says[n]
            heapq.heapreplace(self._due, (at + period, n))
            self._publisher.send(says(now))

    def above_budget(self, row: Row) -> Instant:
        """One reading of the row's meters above its budget; when."""
        at, power_w = self._clock.now(), row.budget_w * 1.05 / len(row.meters)
        self._publisher.send(
            FeedSample(at=at, source=_SOURCE, subject=path, power_w=power_w) for path in row.meters
        )
        return at

    def on_battery(self) -> Instant:
        """The UPS says once that it is on battery, and within two seconds that it is not; when."""
        at = self._clock.now()
        self._publisher.send([self._ups(at, on_battery=True)])
        return at

    def close(self) -> None:
        """Let go."""
        self._publisher.close(1.0)

    def _every(self, period: Span, says: Callable[[Instant], Iterable[Event]]) -> None:
        self._says.append((period, says))
        heapq.heappush(self._due, (self._clock.now() + self._draw.randrange(period), len(self._says) - 1))

    def _frames(self, host: Host, at: Instant) -> Iterable[Event]:
        return [frame_of(host, at, 1, self._draw)]

    def _meters(self, row: Row, at: Instant) -> Iterable[Event]:
        return meters_of(row, at, self._draw)

    def _ups(self, at: Instant, *, on_battery: bool) -> UpsSample:
        power_w = 0.5 * sum(row.budget_w for row in self._setup.site.rows)
        path = f"{self._setup.site.name}/ups-1"
        return UpsSample(at=at, source=_SOURCE, subject=path, power_w=power_w, on_battery=on_battery)
