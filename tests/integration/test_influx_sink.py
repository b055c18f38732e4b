"""Points reach InfluxDB whatever it goes through, or are set aside and counted: never lost without a word."""

from __future__ import annotations

import http.server
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest
from support.influx_server import InfluxServer, ask

from runtime.bus.settings import BusError, InfluxConfig
from runtime.clock import SystemClock
from runtime.sinks import influx as sink_module
from runtime.sinks.influx import InfluxSink, client_of

T0 = 1_772_388_000_000_000_000


class Rig:
    """A sink with its file for what is refused, put to on a thread."""

    def __init__(self, config: InfluxConfig, folder: pathlib.Path) -> None:
        self.aside = folder / "refused.lp"
        self.stop = threading.Event()
        self.sink = InfluxSink(config, aside=self.aside, clock=SystemClock(), stop=self.stop)
        self.put: bool | None = None
        self._thread: threading.Thread | None = None

    def begin(self, lines: list[str]) -> None:
        def work() -> None:
            self.put = self.sink.put(lines)

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def end(self, within_s: float = 30.0) -> bool:
        assert self._thread is not None
        self._thread.join(within_s)
        assert not self._thread.is_alive(), self.sink.state
        assert self.put is not None
        return self.put

    def until(self, holds: Callable[[], object], within_s: float = 20.0) -> None:
        give_up = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < give_up, self.sink.state
            time.sleep(0.01)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for half a minute."""
    monkeypatch.setattr(sink_module, "_LONGEST_PAUSE_S", 0.3)
    monkeypatch.setattr(sink_module, "_FIRST_PAUSE_S", 0.05)


@pytest.fixture
def own(influx_server: InfluxServer, monkeypatch: pytest.MonkeyPatch) -> InfluxConfig:
    """A server to be maltreated."""
    monkeypatch.setenv("WINDROW_INFLUX_TOKEN", influx_server.token)
    return InfluxConfig(url=influx_server.url, org="windrow", bucket="windrow", timeout_ms=1_000)


def points(count: int, start: int = 0) -> list[str]:
    return [f"rollup,row=a power_w={n}.0 {T0 + n}" for n in range(start, start + count)]


def counted(config: InfluxConfig, measurement: str = "rollup") -> int:
    client = client_of(msgspec.structs.replace(config, timeout_ms=20_000))
    try:
        tables = client.query_api().query(
            f'from(bucket: "{config.bucket}") |> range(start: 0) '
            f'|> filter(fn: (r) => r._measurement == "{measurement}") |> group() |> count()'
        )
        return sum(record.values["_value"] for table in tables for record in table.records)
    finally:
        client.close()  # type: ignore[no-untyped-call]


@pytest.mark.counterpart
def test_what_was_put_is_there_once_however_often_it_was_put(
    influx: InfluxConfig, tmp_path: pathlib.Path
) -> None:
    rig = Rig(influx, tmp_path)
    assert rig.sink.put(points(12_000))
    assert rig.sink.put(points(12_000, start=6_000))
    assert rig.sink.put([])
    assert counted(influx) == 18_000
    assert (rig.sink.state.written, rig.sink.state.refused, rig.sink.state.away) == (24_000, 0, "")
    rig.sink.close()


@pytest.mark.counterpart
def test_an_influxdb_that_is_away_and_comes_back_gets_every_point(
    own: InfluxConfig, influx_server: InfluxServer, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    influx_server.stop()
    rig = Rig(own, tmp_path)
    rig.begin(points(7_000))
    rig.until(lambda: rig.sink.state.failures >= 3)
    assert rig.sink.state.away.startswith(f"InfluxDB at {own.url} does not answer: ")
    influx_server.start()
    assert rig.end()
    assert counted(own) == 7_000
    assert rig.sink.state.away == ""
    said = [record.message for record in caplog.records if record.name == "runtime.sinks.influx"]
    assert len(said) <= 3, "said once, not at each attempt"
    assert said[-1] == f"InfluxDB at {own.url} takes points again"


@pytest.mark.counterpart
def test_an_influxdb_that_is_killed_in_the_middle_gets_every_point(
    own: InfluxConfig, influx_server: InfluxServer, tmp_path: pathlib.Path
) -> None:
    rig = Rig(own, tmp_path)
    rig.begin(points(100_000))
    rig.until(lambda: rig.sink.state.written >= 20_000)
    influx_server.kill()
    rig.until(lambda: rig.sink.state.away)
    influx_server.start()
    assert rig.end()
    assert counted(own) == 100_000


@pytest.mark.counterpart
def test_an_influxdb_that_hangs_is_given_less_at_once_and_then_everything(
    own: InfluxConfig, influx_server: InfluxServer, tmp_path: pathlib.Path
) -> None:
    rig = Rig(own, tmp_path)
    influx_server.pause()
    rig.begin(points(9_000))
    rig.until(lambda: rig.sink.state.failures >= 2)
    assert "does not answer" in rig.sink.state.away
    influx_server.resume()
    assert rig.end()
    assert counted(own) == 9_000
    assert rig.sink.state.attempts > 2 + 9_000 // sink_module.MOST_LINES, "in smaller batches"


@pytest.mark.counterpart
def test_who_waits_for_influxdb_can_be_told_to_stop(
    own: InfluxConfig, influx_server: InfluxServer, tmp_path: pathlib.Path
) -> None:
    influx_server.kill()
    rig = Rig(own, tmp_path)
    rig.begin(points(10))
    rig.until(lambda: rig.sink.state.away)
    rig.stop.set()
    assert rig.end(within_s=2.0) is False
    assert rig.sink.put(points(10)) is False


@pytest.mark.counterpart
def test_a_bucket_that_is_missing_is_waited_for_and_named(
    own: InfluxConfig, influx_server: InfluxServer, tmp_path: pathlib.Path
) -> None:
    config = msgspec.structs.replace(own, bucket="later")
    rig = Rig(config, tmp_path)
    rig.begin(points(10))
    rig.until(lambda: rig.sink.state.failures >= 2)
    assert rig.sink.state.away == f'InfluxDB at {own.url}: bucket "later" not found'
    (org,) = ask(own.url, influx_server.token, "/api/v2/orgs?org=windrow")["orgs"]
    ask(own.url, influx_server.token, "/api/v2/buckets", {"orgID": org["id"], "name": "later"})
    assert rig.end()
    assert counted(config) == 10


@pytest.mark.counterpart
def test_a_token_that_is_refused_is_said_without_the_token(
    influx: InfluxConfig,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(influx.token_env, "s3cret-and-wrong")
    rig = Rig(influx, tmp_path)
    rig.begin(points(3))
    rig.until(lambda: rig.sink.state.failures >= 1)
    rig.stop.set()
    assert rig.end() is False
    assert rig.sink.state.away.startswith(
        f"InfluxDB at {influx.url} refuses our token (WINDROW_INFLUX_TOKEN): "
    )
    assert not rig.aside.exists(), "nothing is given up for a token"
    assert "s3cret" not in caplog.text + rig.sink.state.away + repr(rig.sink.state)
    monkeypatch.delenv(influx.token_env)
    with pytest.raises(BusError, match="WINDROW_INFLUX_TOKEN"):
        Rig(influx, tmp_path)


@pytest.mark.counterpart
def test_what_influxdb_never_takes_is_set_aside_whole_and_the_rest_is_written(
    influx: InfluxConfig, tmp_path: pathlib.Path
) -> None:
    rig = Rig(influx, tmp_path)
    assert rig.sink.put(points(100))
    conflict = [*points(50, start=100), f"rollup,row=a power_w=true {T0 + 999}"]
    assert rig.sink.put(conflict)
    assert counted(influx) == 150
    assert rig.sink.state.refused == len(conflict)
    first, *lines = rig.aside.read_text(encoding="utf-8").splitlines()
    assert first.startswith("# 2")
    assert "422: failure writing points to database: partial write: field type conflict" in first
    assert lines == conflict

    broken = [*points(200, start=200), "rollup,row= power_w=", *points(200, start=400)]
    assert rig.sink.put(broken)
    assert counted(influx) == 550, "one line that cannot be read takes no other with it"
    assert rig.sink.state.refused == len(conflict) + 1
    assert rig.aside.read_text(encoding="utf-8").splitlines()[-1] == "rollup,row= power_w="
    assert rig.sink.state.lost == 0


@pytest.mark.counterpart
def test_what_cannot_even_be_set_aside_is_counted_as_lost(
    influx: InfluxConfig, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "refused.lp").mkdir()
    rig = Rig(influx, tmp_path)
    assert rig.sink.put(["rollup,row= power_w=", *points(1)])
    assert (rig.sink.state.refused, rig.sink.state.lost, rig.sink.state.written) == (1, 1, 1)


# ---- answers that a healthy InfluxDB does not give --------------------------------------------


@contextmanager
def answering(answer: Callable[[int], tuple[int, dict[str, str], bytes]]) -> Iterator[InfluxConfig]:
    """An HTTP server that answers the nth request, with a body of so many bytes, as told."""
    sizes: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sizes.append(int(self.headers["Content-Length"]))
            self.rfile.read(sizes[-1])
            status, headers, body = answer(len(sizes))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield InfluxConfig(
            url=f"http://127.0.0.1:{server.server_address[1]}", org="o", bucket="b", timeout_ms=10_000
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDROW_INFLUX_TOKEN", "any")


def test_who_is_told_to_wait_waits_as_long(tmp_path: pathlib.Path) -> None:
    with answering(lambda n: (429, {"Retry-After": "1"}, b"") if n == 1 else (204, {}, b"")) as config:
        rig = Rig(config, tmp_path)
        began = time.monotonic()
        assert rig.sink.put(points(5))
        assert time.monotonic() - began >= 1.0
        assert (rig.sink.state.written, rig.sink.state.failures) == (5, 1)


def test_a_batch_too_large_for_what_stands_between_goes_in_halves(tmp_path: pathlib.Path) -> None:
    with answering(lambda n: (413, {}, b"<html>too large</html>") if n < 4 else (204, {}, b"")) as config:
        rig = Rig(config, tmp_path)
        assert rig.sink.put(points(1_000))
        assert (rig.sink.state.written, rig.sink.state.refused) == (1_000, 0)
        assert rig.sink.state.attempts == 3 + 4


def test_only_influxdb_itself_can_refuse_for_good(tmp_path: pathlib.Path) -> None:
    """A 400 of something between it and us is trouble of the way, and the points stay."""
    with answering(lambda n: (400, {}, b"<html>bad gateway</html>") if n < 3 else (204, {}, b"")) as config:
        rig = Rig(config, tmp_path)
        assert rig.sink.put(points(1))
        assert (rig.sink.state.written, rig.sink.state.refused, rig.sink.state.failures) == (1, 0, 2)


def test_a_server_that_takes_and_never_answers_is_tried_again(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        rig = Rig(InfluxConfig(url=url, org="o", bucket="b", timeout_ms=100), tmp_path)
        rig.begin(points(400))
        rig.until(lambda: rig.sink.state.failures >= 4)
        rig.stop.set()
        assert rig.end() is False
        assert rig.sink.state.written == 0
