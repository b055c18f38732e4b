"""A simulated site whose time the test moves: what it says, what it does, what it knows to be true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from support.agents import T0, brake, lock

from runtime.bus.reader import Received
from runtime.config import Setup, load_setup
from runtime.simulating import FRAME_MS, SharedMeter, SimulatedSite, TwinMetrics
from runtime.wiring import METERS_MS
from schemas import codec
from schemas.commands import Command
from schemas.emergencies import Emergency
from schemas.envelope import Event
from schemas.instants import SECOND, Instant, Span
from schemas.operators import ReleaseAll
from schemas.outcomes import Lapsed, Outcome, Refused, Verified
from schemas.samples import FeedSample, GpuFrame, UpsSample
from schemas.shares import safe_shares
from schemas.site_file import read_site
from twin.row import MeterReading, TwinRow
from twin.workload import LoadProfile

STEADY = LoadProfile(requests_per_s=0.28, points=((0.0, 0.3),))
TWO_ROWS = """
[site]
name = "lab1"
[[ups]]
name = "ups-1"
limit_w = 90_000
[[pdus]]
name = "pdu-1"
ups = "ups-1"
limit_w = 80_000
[[feeds]]
name = "feed-a"
pdu = "pdu-1"
limit_w = 32_000
[[feeds]]
name = "feed-b"
pdu = "pdu-1"
limit_w = 32_000
[[rows]]
name = "row-a"
budget_w = 32_000
meters = ["feed-a"]
[[rows]]
name = "row-b"
budget_w = 32_000
meters = ["feed-b"]
[[racks]]
row = "row-a"
names = "r01"
feeds = ["feed-a"]
[[racks.hosts]]
names = "h[01-03]"
sku = "A100-SXM4-80GB"
gpus = 8
priority = "low"
paths = ["in_band", "brake"]
[[racks]]
row = "row-b"
names = "r01"
feeds = ["feed-b"]
[[racks.hosts]]
names = "h[01-02]"
sku = "A100-SXM4-80GB"
gpus = 8
priority = "low"
paths = ["in_band", "brake"]
"""


class HandClock:
    """Time that passes while somebody waits."""

    def __init__(self) -> None:
        self.at = T0

    def now(self) -> Instant:
        return self.at

    def monotonic(self) -> float:
        return self.at / 1000

    def sleep_until(self, at: Instant) -> None:
        raise NotImplementedError


class Bus:
    """Reader and publisher: what the test sends comes at its time, and what is said is kept."""

    away = ""

    def __init__(self, clock: HandClock) -> None:
        self.said: list[Event] = []
        self._clock = clock
        self._coming: list[tuple[Instant, Received]] = []

    def give(self, event: Event, key: str) -> None:
        topic = "windrow.commands" if isinstance(event, Command) else "windrow.operators"
        message = Received(topic, 0, len(self._coming), key.encode(), codec.encode(event), self._clock.at)
        self._coming.append((self._clock.at, message))

    def poll(self, timeout_s: float, most: int) -> list[Received]:
        there = [message for _, message in self._coming]
        self._coming = []
        if not there:
            self._clock.at += max(1, round(timeout_s * 1000))
        return there

    def send(self, events: Sequence[Event]) -> None:
        self.said += events


class Simulated:
    """Two small rows and the time that passes for them."""

    def __init__(self) -> None:
        site = read_site(TWO_ROWS, "two-rows")
        one = load_setup(Path("twin/scenarios/small-row.toml"), None)
        self.setup: Setup = msgspec.structs.replace(one, site=site, shares=safe_shares(site))
        self.clock = HandClock()
        self.bus = Bus(self.clock)
        plants = [TwinRow(site, row.path, seed=1, start=T0, load=STEADY) for row in site.rows]
        self.site = SimulatedSite(
            plants,
            self.setup,
            reader=self.bus,  # type: ignore[arg-type]
            publisher=self.bus,  # type: ignore[arg-type]
            clock=self.clock,
        )

    def live(self, span: Span) -> None:
        until = self.clock.at + span
        self.site.run(lambda: self.clock.at >= until)

    def go_on(self, span: Span) -> None:
        until = self.clock.at + span
        while self.clock.at < until:
            self.site.turn()

    def of(self, *kinds: type[Event]) -> list[Event]:
        return [event for event in self.bus.said if isinstance(event, kinds)]

    def outcomes(self, command: Event) -> list[Outcome]:
        return [e for e in self.bus.said if isinstance(e, Outcome) and e.command == command.id]


HOST = "lab1/row-a/r01/h01"


@pytest.fixture
def site() -> Simulated:
    return Simulated()


def test_every_host_says_a_frame_a_second_and_every_meter_a_sample_every_two(site: Simulated) -> None:
    site.live(10 * SECOND)
    frames = Counter(event.subject for event in site.of(GpuFrame))
    assert set(frames) == set(site.setup.site.hosts)
    assert set(frames.values()) <= {9, 10, 11}
    samples = Counter(event.subject for event in site.of(FeedSample, UpsSample))
    assert set(samples) == {"lab1/ups-1/pdu-1/feed-a", "lab1/ups-1/pdu-1/feed-b", "lab1/ups-1"}
    assert set(samples.values()) <= {4, 5, 6}
    assert (FRAME_MS, METERS_MS) == (SECOND, 2 * SECOND)


def test_a_ups_of_two_rows_reads_the_power_of_both(site: Simulated) -> None:
    site.live(10 * SECOND)
    (ups,) = site.of(UpsSample)[-1:]
    assert isinstance(ups, UpsSample)
    true_w = sum(row.plant.power_w for row in site.site.rows)
    assert ups.power_w == pytest.approx(true_w, rel=0.2)
    site.site.rows[1].plant.fail_ups()
    site.go_on(3 * SECOND)
    assert [e.on_battery for e in site.of(UpsSample) if isinstance(e, UpsSample)][-1] is True


def test_a_shared_meter_that_hears_nothing_of_one_part_does_not_answer() -> None:
    class Part:
        def __init__(self, reading: MeterReading | None) -> None:
            self.reading = reading

        def read(self) -> MeterReading:
            if self.reading is None:
                raise TimeoutError("silent")
            return self.reading

    parts = [Part(MeterReading(10.0, True, None)), Part(MeterReading(5.0, False, None))]
    assert SharedMeter(parts).read() == MeterReading(15.0, False, None)  # type: ignore[arg-type]
    with pytest.raises(TimeoutError):
        SharedMeter([*parts, Part(None)]).read()  # type: ignore[list-item]


def test_hosts_start_at_their_safe_shares_and_obey_what_is_commanded_within_a_tenth_of_a_second(
    site: Simulated,
) -> None:
    site.live(2 * SECOND)
    assert {event.subject for event in site.of(Lapsed)} == set(site.setup.site.hosts)
    given = site.clock.at
    command = lock(1110, given, subject=HOST)
    site.bus.give(command, "lab1/row-a")
    site.go_on(2 * SECOND)
    accepted, verified = site.outcomes(command)
    assert isinstance(verified, Verified)
    assert accepted.at - given <= 1
    assert verified.at - given <= 150
    assert verified.observed is not None
    assert verified.observed <= 1110


def test_an_older_controller_is_fenced_and_a_release_gives_back(site: Simulated) -> None:
    site.live(2 * SECOND)
    new = lock(1110, site.clock.at, subject=HOST, epoch=7)
    site.bus.give(new, "lab1/row-a")
    site.go_on(SECOND)
    old = lock(1410, site.clock.at, subject=HOST, epoch=6)
    site.bus.give(old, "lab1/row-a")
    site.go_on(SECOND)
    (refused,) = site.outcomes(old)
    assert isinstance(refused, Refused)
    word = ReleaseAll(at=site.clock.at, source="operator", subject="lab1/row-a", by="ada", reason="x")
    site.bus.give(word, "lab1/row-a")
    site.go_on(SECOND)
    agent = site.site.rows[0].agents[HOST]
    assert agent.kept is not None
    assert agent.kept.intent in ("safe_share", "release")


def test_a_lease_that_nobody_renews_ends_and_a_brake_holds(site: Simulated) -> None:
    site.live(2 * SECOND)
    command = lock(1410, site.clock.at, subject=HOST, ttl=5 * SECOND)
    pulled = msgspec.structs.replace(brake(site.clock.at), subject="lab1/row-b/r01/h01", id="brake")
    site.bus.give(command, "lab1/row-a")
    site.bus.give(pulled, "lab1/row-b")
    site.go_on(10 * SECOND)
    assert isinstance(site.outcomes(command)[-1], Lapsed)
    assert isinstance(site.outcomes(pulled)[-1], Verified)


def test_a_gpu_too_hot_makes_its_host_hold_itself(site: Simulated) -> None:
    site.live(2 * SECOND)
    site.bus.give(lock(1410, site.clock.at, subject=HOST), "lab1/row-a")
    site.go_on(SECOND)
    servers = site.site.rows[0].plant.servers
    servers._base_c[0] += 60.0  # the cooling of one host has failed
    site.go_on(20 * SECOND)
    (raised,) = [event for event in site.of(Emergency) if isinstance(event, Emergency)][:1]
    assert (raised.subject, raised.kind, raised.phase) == (HOST, "overtemperature", "raised")
    assert servers.lock_mhz[0].max() < 1410
    assert servers.lock_mhz[1].max() >= servers.lock_mhz[0].max()
    assert b'windrow_twin_row_reflex_held_hosts{row="lab1/row-a"} 1.0' in TwinMetrics(site.site).exposition()


def test_the_metrics_tell_the_truth_about_each_row(site: Simulated) -> None:
    site.live(3 * SECOND)
    plant = site.site.rows[0].plant
    text = TwinMetrics(site.site).exposition().decode()
    assert f'windrow_twin_row_power_watts{{row="lab1/row-a"}} {plant.power_w!r}' in text
    assert 'windrow_twin_row_tripped{row="lab1/row-b"} 0.0' in text
    assert 'windrow_twin_row_budget_watts{row="lab1/row-b"} 32000.0' in text


def test_a_machine_that_falls_behind_leaves_frames_out_and_says_so(site: Simulated) -> None:
    site.live(2 * SECOND)
    site.clock.at += 30 * SECOND  # the machine was away
    before = len(site.of(GpuFrame))
    site.site.turn()
    assert site.site.behind_ms >= 29 * SECOND
    site.go_on(3 * SECOND)
    hosts = len(site.setup.site.hosts)
    assert len(site.of(GpuFrame)) - before <= 5 * hosts
    assert site.site.behind_ms < SECOND
    assert site.site.rows[0].plant.now >= T0 + 34 * SECOND, "the plant itself misses nothing"
