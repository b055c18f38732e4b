"""Health: whether a host lives and can be relied on, judged by how fresh its own signs of life are.

A sign is something that must come again and again: a row's beats, its samples, the ledger's
all-clear, the lease timer's steps. Nothing is healthy because it once said so.

    GET /metrics        the metrics, in Prometheus' text format
    GET /health/live    503 when a vital sign has stopped: a restart may help
    GET /health/ready   503 when any sign has stopped, or trouble stands: the body says which and why
"""

from __future__ import annotations

import http.server
import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.clock import Clock
from runtime.config import ConfigError
from schemas.samples import CoolingSample, FarmSample, FeedSample, GpuFrame, RackSample, UpsSample

if TYPE_CHECKING:
    from runtime.row_loop import Beat

_LOG = logging.getLogger(__name__)

_SAMPLES = (GpuFrame, RackSample, FeedSample, UpsSample, CoolingSample, FarmSample)
_CLIENT_S = 5.0  # a client that sends nothing is let go of
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Sign(msgspec.Struct, frozen=True, kw_only=True):
    """A sign of life as a look finds it: seconds since it was last seen, and how many it may take.
    `age_s` None: never seen."""

    age_s: float | None
    within_s: float
    vital: bool


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a host's health. `reasons` why it is not ready, in words, empty when it is; `live` is
    False when one of them is a vital sign's."""

    live: bool
    ready: bool
    reasons: tuple[str, ...]
    signs: dict[str, Sign]


class _Expected(msgspec.Struct):
    within_s: float
    vital: bool
    since: float
    seen: float | None = None


class Health:
    """What is known of a host's health; signs may come from any thread, and looks be taken on any.

    Ages are measured on the clock that never steps, so setting the machine's clock makes nothing stale.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._signs: dict[str, _Expected] = {}
        self._questions: list[Callable[[], str]] = []

    def expect(self, sign: str, *, within_s: float, vital: bool = False) -> None:
        """From now on `sign` must be seen at least every `within_s` seconds. Until it is first seen the
        host is not ready; it is not taken for dead before that time has passed."""
        self._signs[sign] = _Expected(within_s, vital, self._clock.monotonic())

    def forget(self, sign: str) -> None:
        """The sign is no longer expected of this host."""
        self._signs.pop(sign, None)

    def seen(self, sign: str) -> None:
        """A sign of life; one that nobody expects is none."""
        expected = self._signs.get(sign)
        if expected is not None:
            expected.seen = self._clock.monotonic()

    def ask(self, question: Callable[[], str]) -> None:
        """Ask this at every look: trouble that stands, in words, empty when there is none. It is asked
        on the server's threads, so it must only read."""
        self._questions.append(question)

    def observe(self, beat: Beat) -> None:
        """A row's beat, and the samples in it, as the signs ``beat ROW`` and ``samples ROW``."""
        row = beat.tick.subject
        self.seen(f"beat {row}")
        if any(isinstance(event, _SAMPLES) for event in beat.inputs):
            self.seen(f"samples {row}")

    def look(self) -> Look:
        """How the host fares now."""
        now = self._clock.monotonic()
        signs: dict[str, Sign] = {}
        reasons: list[str] = []
        live = True
        for name, expected in self._signs.copy().items():
            age_s = None if expected.seen is None else round(now - expected.seen, 3)
            signs[name] = Sign(age_s=age_s, within_s=expected.within_s, vital=expected.vital)
            late = now - (expected.since if expected.seen is None else expected.seen) > expected.within_s
            if age_s is None:
                reasons.append(f"{name}: not yet seen")
            elif late:
                reasons.append(
                    f"{name}: last seen {age_s:.1f} s ago, expected within {expected.within_s:g} s"
                )
            live = live and not (late and expected.vital)
        reasons += filter(None, (question() for question in self._questions))
        return Look(live=live, ready=not reasons, reasons=tuple(reasons), signs=signs)


def served(listen: str, health: Health, exposition: Callable[[], bytes]) -> HealthServer:
    """Health and metrics, served at `listen`. Raises ConfigError where they cannot be."""
    try:
        return HealthServer(listen, health, exposition)
    except OSError as error:
        raise ConfigError(f"health and metrics cannot be served on {listen}: {error.strerror}") from error


class HealthServer:
    """Serves metrics and health over HTTP at `listen` (``host:port``; port 0 takes a free one).

    Use as a context manager. Starting raises OSError where the address cannot be had. It holds no
    secret and takes no command, and still: keep it on the loopback or a network of your own.
    """

    def __init__(self, listen: str, health: Health, exposition: Callable[[], bytes]) -> None:
        host, _, port = listen.rpartition(":")
        self._server = _Server((host.strip("[]"), int(port)), _handler(health, exposition))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="health", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """Where it listens: ``http://127.0.0.1:9464``."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def close(self) -> None:
        """Stop serving; safe to repeat."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> HealthServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is no trouble of ours."""
        _LOG.debug("request of %s failed", client_address, exc_info=True)


def _handler(health: Health, exposition: Callable[[], bytes]) -> type[http.server.BaseHTTPRequestHandler]:
    def judged(healthy: Callable[[Look], bool]) -> tuple[int, str, bytes]:
        look = health.look()
        return 200 if healthy(look) else 503, "application/json", msgspec.json.encode(look) + b"\n"

    pages: Mapping[str, Callable[[], tuple[int, str, bytes]]] = {
        "/metrics": lambda: (200, METRICS_TYPE, exposition()),
        "/health/live": lambda: judged(lambda look: look.live),
        "/health/ready": lambda: judged(lambda look: look.ready),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _CLIENT_S
        server_version = "windrow"
        sys_version = ""

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            if page is None:
                status, kind, body = 404, "text/plain", ("\n".join(pages) + "\n").encode()
            else:
                try:
                    status, kind, body = page()
                except Exception:
                    _LOG.exception("%s cannot be answered", self.path)
                    status, kind, body = 500, "text/plain", b"this cannot be answered; the log says why\n"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815  the library's name

        def log_message(self, format: str, *args: Any) -> None:
            _LOG.debug("%s %s", self.address_string(), format % args)

    return Handler
