"""The way into InfluxDB: batches of lines, each written until it is settled.

A batch is written in one request by the vendor's client and waited for. With lines joined beforehand that
is five times as fast as through the client's own batching, and it says of each batch what became of it:

    taken               the points are in InfluxDB
    away, 429, 5xx      tried again, after pauses that grow
    401, 403, 404       so too, and without end: people mend tokens and buckets, and waiting loses nothing
    413, too slow       tried again in halves
    400                 InfluxDB cannot read a line, and takes none of the batch: tried again in halves,
                        until the line is found
    422                 InfluxDB takes what it can of the batch, and will never take the rest

What InfluxDB never takes is set aside in a file, whole and with the reason, and counted. Nothing is
kept back on disk while InfluxDB is away: whoever writes waits here, and its messages stay on Kafka, which
keeps them for days, on several disks. So this is for a process of its own, that holds nobody up.
"""

from __future__ import annotations

import logging
import pathlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.bus.settings import BusError, InfluxConfig
from runtime.clock import Clock
from schemas.instants import Instant, to_text

if TYPE_CHECKING:
    from influxdb_client.client.influxdb_client import InfluxDBClient

_LOG = logging.getLogger(__name__)

MOST_LINES = 5_000  # in a request: what the vendor recommends
_FEWEST_LINES = 50  # that a slow server is given at once
_LONGEST_PAUSE_S = 30.0  # between attempts; the first pause is _FIRST_PAUSE_S, and each is twice the last
_FIRST_PAUSE_S = 0.5
_TOLD_TO_WAIT_S = 300.0  # by Retry-After, and no longer than this
_ASIDE_BYTES = 64 * 1024 * 1024  # of refused lines are kept (our choice): a disk is not endless
_SHOWN = 300  # characters of InfluxDB's own words
_UNREADABLE, _TOO_LARGE, _PARTLY = 400, 413, 422
_NEVER = (_UNREADABLE, _TOO_LARGE, _PARTLY)


class SinkState(msgspec.Struct, frozen=True, kw_only=True):
    """How writing fares. `away` says why the last attempt failed, empty when it did not. Points are
    `written`, or `refused` by InfluxDB for good; of those, `lost` were not set aside, for want of disk.
    `attempts` counts requests, `failures` those to be tried again."""

    away: str = ""
    written: int = 0
    refused: int = 0
    lost: int = 0
    attempts: int = 0
    failures: int = 0
    written_at: Instant | None = None


def client_of(config: InfluxConfig) -> InfluxDBClient:
    """The vendor's client, with the token from the environment. Raises BusError where there is no token,
    or no client."""
    try:
        from influxdb_client.client.influxdb_client import InfluxDBClient
    except ImportError as error:
        raise BusError(
            "InfluxDB needs its client library: pip install -e '.[influx]' in Windrow's clone"
        ) from error
    # By keywords only: the third in place is `debug`, which prints each request with its body.
    return InfluxDBClient(
        url=config.url,
        token=config.token(),
        org=config.org,
        timeout=config.timeout_ms,
        retries=False,
    )


def in_words(error: Exception, config: InfluxConfig) -> str:
    """Why a request failed, for the operator."""
    status, said = _answer(error)
    match status:
        case 401 | 403:
            return f"InfluxDB at {config.url} refuses our token ({config.token_env}): {said}"
        case 404:
            return f"InfluxDB at {config.url}: {said}"
        case None | 0:
            return f"InfluxDB at {config.url} does not answer: {said}"
    return f"InfluxDB at {config.url} answers {status}: {said}"


def request_errors() -> tuple[type[Exception], ...]:
    """What a request to InfluxDB may raise."""
    from influxdb_client.client.exceptions import InfluxDBError
    from urllib3.exceptions import HTTPError

    return (InfluxDBError, HTTPError, OSError)


class InfluxSink:
    """Writes lines to one bucket. Belongs to one thread, which waits in `put`; `state` may be read by any.

    `stop` ends the waiting. Refused lines go to the file `aside`, in line protocol, to be mended and
    written by hand. Opening raises BusError; an InfluxDB that is away raises nothing.
    """

    def __init__(
        self, config: InfluxConfig, *, aside: pathlib.Path, clock: Clock, stop: threading.Event
    ) -> None:
        from influxdb_client.client.write_api import SYNCHRONOUS

        self._config = config
        self._aside = aside
        self._clock = clock
        self._stop = stop
        self._client = client_of(config)
        self._api = self._client.write_api(write_options=SYNCHRONOUS)
        self._errors = request_errors()
        self._most = MOST_LINES
        self.state = SinkState()

    def put(self, lines: Sequence[str]) -> bool:
        """Write the lines; True once each is in InfluxDB or set aside, False when told to stop before.

        To put the same lines again writes the same points again, which changes nothing.
        """
        waiting = [list(lines)] if lines else []
        pause_s = _FIRST_PAUSE_S
        while waiting:
            if self._stop.is_set():
                return False
            batch = waiting.pop(0)
            half = (len(batch) + 1) // 2
            if len(batch) > self._most:
                waiting[:0] = [batch[: self._most], batch[self._most :]]
                continue
            error = self._attempt(batch)
            if error is None:
                pause_s = _FIRST_PAUSE_S
                self._most = min(MOST_LINES, self._most * 2)
                continue
            status, said = _answer(error)
            if status in (_UNREADABLE, _TOO_LARGE) and half < len(batch):
                waiting[:0] = [batch[:half], batch[half:]]
            elif status in _NEVER and _is_influx(error):
                self._set_aside(batch, f"{status}: {said}")
            else:
                waiting.insert(0, batch)
                self._failed(in_words(error, self._config))
                if _timed_out(error):
                    self._most = max(_FEWEST_LINES, min(self._most, half))
                self._stop.wait(max(pause_s, min(_TOLD_TO_WAIT_S, _retry_after_s(error))))
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
        return True

    def close(self) -> None:
        """Give the connection back. Nothing waits inside: `put` has said what became of every line."""
        self._api.close()  # type: ignore[no-untyped-call]
        self._client.close()  # type: ignore[no-untyped-call]

    def _attempt(self, batch: list[str]) -> Exception | None:
        """One request; what it failed by, None when it did not."""
        self._count(attempts=1)
        try:
            self._api.write(bucket=self._config.bucket, org=self._config.org, record="\n".join(batch))
        except self._errors as error:
            return error
        if self.state.away:
            _LOG.warning("InfluxDB at %s takes points again", self._config.url)
        self._count(written=len(batch))
        self.state = msgspec.structs.replace(self.state, away="", written_at=self._clock.now())
        return None

    def _failed(self, why: str) -> None:
        if why != self.state.away:  # said once, not at every attempt
            _LOG.error("%s", why)
        self.state = msgspec.structs.replace(self.state, away=why)
        self._count(failures=1)

    def _set_aside(self, batch: list[str], why: str) -> None:
        """Keep lines that InfluxDB will never take, with its reason as a comment of line protocol."""
        _LOG.error("InfluxDB refuses points, set aside in %s: %s", self._aside, why)
        self._count(refused=len(batch))
        head = f"# {to_text(self._clock.now())} {' '.join(why.split())}"
        content = ("\n".join([head, *batch]) + "\n").encode()
        try:
            with self._aside.open("ab") as file:
                if file.tell() + len(content) > _ASIDE_BYTES:
                    raise OSError(f"it holds {file.tell()} bytes, and gets no larger")
                file.write(content)
        except OSError as error:
            _LOG.error("%s: %d refused points are lost: %s", self._aside, len(batch), error)
            self._count(lost=len(batch))

    def _count(self, **more: int) -> None:
        counted = {name: getattr(self.state, name) + number for name, number in more.items()}
        self.state = msgspec.structs.replace(self.state, **counted)


def _answer(error: Exception) -> tuple[int | None, str]:
    """The status and the words of InfluxDB's answer; no status where there was none."""
    status: int | None = getattr(error, "status", None)
    message = _told(error).get("message")
    said = message if isinstance(message, str) else getattr(error, "reason", None) or str(error)
    return status, " ".join(str(said).split())[:_SHOWN]


def _told(error: Exception) -> dict[str, Any]:
    body = getattr(error, "body", None)
    try:
        told = msgspec.json.decode(body) if body else {}
    except msgspec.DecodeError:
        return {}
    return told if isinstance(told, dict) else {}


def _is_influx(error: Exception) -> bool:
    """Whether InfluxDB itself said so, not something between it and us."""
    return "code" in _told(error)


def _retry_after_s(error: Exception) -> float:
    headers = getattr(error, "headers", None) or {}
    try:
        return float(headers.get("Retry-After", 0))
    except ValueError:  # a date: our own pause does
        return 0.0


def _timed_out(error: Exception) -> bool:
    from urllib3.exceptions import ReadTimeoutError

    return isinstance(error, ReadTimeoutError | TimeoutError)
