"""A host is healthy as long as its signs of life are fresh, and says which are not."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from runtime.clock import SimulatedClock
from runtime.health import Health, HealthServer
from runtime.row_loop import Beat
from schemas.decisions import Decision
from schemas.envelope import Event, Tick
from schemas.instants import SECOND, Instant
from schemas.samples import FeedSample, PowerRollup

T0: Instant = 1_772_366_400_000
ROW = "ams1/row-a"


def beat(at: Instant, inputs: Sequence[Event] = ()) -> Beat:
    rollup = PowerRollup(
        at=at, source="rollup", subject=ROW, power_w=1.0, upper_w=1.0, budget_w=2.0, coverage_ratio=1.0,
        known_at=at, basis="sum",
    )  # fmt: skip
    decision = Decision(
        at=at, source="c", subject=ROW, policy="polca", mode="U", since=at, desired=(), because="calm"
    )
    return Beat(Tick(at=at, source="t", subject=ROW), tuple(inputs), rollup, (), (), decision, ())


def reading(at: Instant) -> FeedSample:
    return FeedSample(at=at, source="s", subject="ams1/ups-1", power_w=1.0)


class Host:
    """A host's signs of life on a clock of its own, and its server."""

    def __init__(self) -> None:
        self.clock = SimulatedClock(T0)
        self.health = Health(self.clock)
        self.health.expect(f"beat {ROW}", within_s=10, vital=True)
        self.health.expect(f"samples {ROW}", within_s=15)
        self.health.expect("ledger", within_s=30)
        self.health.expect("lease timer", within_s=2, vital=True)
        self.waiting = 0
        self.health.ask(lambda: f"{self.waiting} records wait for the ledger" if self.waiting else "")
        self.server = HealthServer("127.0.0.1:0", self.health, lambda: b"# the metrics\n")

    def live(self, seconds: int, *, but: str = "") -> None:
        """Pass the time with every sign of life but one."""
        for _ in range(seconds):
            self.clock.sleep_until(self.clock.now() + SECOND)
            if but != "beat":
                self.health.observe(
                    beat(self.clock.now(), () if but == "samples" else [reading(self.clock.now())])
                )
            if but != "ledger":
                self.health.seen("ledger")
            if but != "lease timer":
                self.health.seen("lease timer")

    def get(self, page: str, method: str = "GET") -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection(self.server.address.removeprefix("http://"), timeout=10)
        try:
            connection.request(method, page)
            response = connection.getresponse()
            return response.status, response.headers["Content-Type"], response.read()
        finally:
            connection.close()

    def judged(self, page: str) -> tuple[int, dict[str, Any]]:
        status, kind, body = self.get(f"/health/{page}")
        assert kind == "application/json"
        return status, msgspec.json.decode(body)


@pytest.fixture
def host() -> Iterator[Host]:
    running = Host()
    with running.server:
        yield running


def test_a_host_with_fresh_signs_is_ready_and_tells_their_ages(host: Host) -> None:
    host.live(20)
    status, look = host.judged("ready")
    assert (status, look["ready"], look["reasons"]) == (200, True, [])
    assert look["signs"][f"beat {ROW}"] == {"age_s": 0.0, "within_s": 10.0, "vital": True}
    assert host.judged("live")[0] == 200


def test_a_host_that_has_just_started_is_alive_and_not_ready(host: Host) -> None:
    assert host.judged("live")[0] == 200
    status, look = host.judged("ready")
    assert status == 503
    assert f"beat {ROW}: not yet seen" in look["reasons"]
    host.clock.sleep_until(T0 + 11 * SECOND)
    assert host.judged("live")[0] == 503  # it never came to life


@pytest.mark.parametrize(
    ("sign", "seconds", "reason", "alive"),
    [
        ("beat", 11, f"beat {ROW}: last seen 11.0 s ago, expected within 10 s", 503),
        ("samples", 16, f"samples {ROW}: last seen 16.0 s ago, expected within 15 s", 200),
        ("ledger", 31, "ledger: last seen 31.0 s ago, expected within 30 s", 200),
        ("lease timer", 3, "lease timer: last seen 3.0 s ago, expected within 2 s", 503),
    ],
)
def test_a_host_whose_sign_stops_is_not_ready_says_why_and_recovers(
    host: Host, sign: str, seconds: int, reason: str, alive: int
) -> None:
    host.live(5)
    host.live(seconds, but=sign)
    status, look = host.judged("ready")
    assert status == 503
    assert reason in look["reasons"]
    assert len(look["reasons"]) == 1
    assert host.judged("live")[0] == alive  # a restart brings back neither a meter nor a disk
    host.live(1)
    assert host.judged("ready")[0] == 200
    assert host.judged("live")[0] == 200


def test_records_that_wait_make_a_host_unready_at_once(host: Host) -> None:
    host.live(5)
    host.waiting = 7
    status, look = host.judged("ready")
    assert (status, look["reasons"]) == (503, ["7 records wait for the ledger"])
    assert host.judged("live")[0] == 200
    host.waiting = 0
    assert host.judged("ready")[0] == 200


def test_a_clock_that_is_set_makes_nothing_stale() -> None:
    class Set(SimulatedClock):
        def now(self) -> Instant:
            return super().now() + offset

    offset = 0
    health = Health(Set(T0))
    health.expect(f"beat {ROW}", within_s=10)
    health.observe(beat(T0))
    offset = 3_600_000
    assert health.look().ready


def test_metrics_are_served_and_other_pages_are_not(host: Host) -> None:
    assert host.get("/metrics") == (200, "text/plain; version=0.0.4; charset=utf-8", b"# the metrics\n")
    assert host.get("/metrics?name=x")[0] == 200
    assert host.get("/metrics", "HEAD")[::2] == (200, b"")
    status, _, body = host.get("/etc/passwd")
    assert (status, body) == (404, b"/metrics\n/health/live\n/health/ready\n")
    assert host.get("/metrics", "POST")[0] == 501


def test_a_question_that_fails_is_an_error_and_no_all_clear(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> str:
        raise RuntimeError("gone")

    host.live(5)
    host.health.ask(broken)
    assert host.get("/health/ready")[0] == 500
    assert "/health/ready cannot be answered" in caplog.text


def test_a_client_that_says_nothing_holds_up_nobody(host: Host) -> None:
    name, _, port = host.server.address.removeprefix("http://").partition(":")
    with socket.create_connection((name, int(port))):
        assert host.get("/metrics")[0] == 200


def test_it_listens_on_the_loopback_and_lets_go_of_its_port(host: Host) -> None:
    assert host.server.address.startswith("http://127.0.0.1:")
    host.server.close()
    host.server.close()
    with HealthServer(host.server.address.removeprefix("http://"), host.health, lambda: b"") as again:
        assert again.address == host.server.address


def test_a_sign_that_is_forgotten_is_no_longer_waited_for() -> None:
    clock = SimulatedClock(T0)
    health = Health(clock)
    health.expect("beat ams1/row-a", within_s=10.0, vital=True)
    clock.sleep_until(T0 + 60 * SECOND)
    assert not health.look().live
    health.forget("beat ams1/row-a")
    health.forget("beat ams1/row-a")
    assert health.look().ready
