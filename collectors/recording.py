"""Windrow's own recordings, read back: the header, then every message in the order it was processed.

Lines of JSON, compressed or not, or a columnar file (`collectors.parquet_recording`): the name says which.
A line that is no message becomes a `DeadLetter` in its place, bytes and all. A recording whose writer
was stopped in mid-line ends at its last whole line, and says so.
"""

from __future__ import annotations

import pathlib
import zlib
from collections.abc import Iterator

from collectors import parquet_recording
from collectors.base import CollectorError
from schemas.codec import Malformed, decode
from schemas.envelope import DeadLetter, Event
from schemas.instants import Instant
from schemas.recordings import NotARecording, RecordingHeader, decode_header

_TICK = b'{"type":"Tick"'
_CHUNK = 1 << 18
_GZIP = zlib.MAX_WBITS | 16  # expect gzip's header and trailer
_HEADER_AT_MOST = 1 << 26  # bytes: far above any site and policy text, so that no foreign file is read whole


class Recording:
    """A recording on disk. It may be read several times, each from its start.

    `dead` counts the lines of the last reading that were no message, and `note` says in words what is
    wrong with the end of the recording; both are whole once `events` is exhausted.
    """

    def __init__(self, path: pathlib.Path, header: RecordingHeader) -> None:
        self.path = path
        self.header = header
        self.dead = 0
        self.note = ""

    @property
    def events(self) -> Iterator[Event]:
        """The messages, read as they are asked for. Raises CollectorError where the file breaks off for
        another reason than being cut short."""
        return self._events()

    def _events(self) -> Iterator[Event]:
        self.dead, self.note = 0, ""
        at = self.header.started_at
        lines = _lines(self.path)
        next(lines, None)
        for number, (line, whole) in enumerate(lines, start=2):
            try:
                event = decode(line)
            except Malformed as error:
                if not (whole or line):
                    self.note = (
                        f"{self.path}: the recorder has not ended this file, which is read as far as it "
                        f"goes: {number - 2} messages"
                    )
                elif not whole:
                    self.note = (
                        f"{self.path}: the recording was cut short in line {number}, which is left out"
                    )
                elif line:
                    self.dead += 1
                    yield self._bury(line, at, f"line {number}: {error}")
            else:
                at = event.at
                yield event

    def count_beats(self) -> int:
        """How many ticks there are, without reading the messages. Raises CollectorError as `events` does."""
        return sum(line.startswith(_TICK) for line, _ in _lines(self.path))

    def _bury(self, line: bytes, at: Instant, reason: str) -> DeadLetter:
        return DeadLetter(
            at=at,
            source="collector/recording",
            subject=self.path.name,
            topic="recording",
            payload=line,
            reason=reason,
        )


def read_recording(path: pathlib.Path) -> Recording:
    """The recording at `path`, its header read and its messages not yet.

    Raises CollectorError, in words, when it cannot be read or is no recording of ours.
    """
    line, _ = next(_lines(path), (b"", False))
    try:
        return Recording(path, decode_header(line))
    except NotARecording as error:
        raise CollectorError(f"{path}: {error}") from error


def _lines(path: pathlib.Path) -> Iterator[tuple[bytes, bool]]:
    """Lines without their newline, and whether they are whole."""
    if parquet_recording.is_one(path):
        yield from parquet_recording.lines(path)
        return
    tail = b""
    first = True
    for chunk in _chunks(path):
        *lines, tail = (tail + chunk).split(b"\n")
        for line in lines:
            yield line, True
            first = False
        if first and len(tail) > _HEADER_AT_MOST:
            raise CollectorError(f"{path}: no recording: its first line does not end")
    if tail:
        yield tail, False


def _chunks(path: pathlib.Path) -> Iterator[bytes]:
    """The file's bytes, decompressed where the name ends in ``.gz``. Ends without a word where a
    compressed file was cut short: what came before it is whole."""
    try:
        with path.open("rb") as file:
            if path.suffix != ".gz":
                while chunk := file.read(_CHUNK):
                    yield chunk
                return
            gunzip = zlib.decompressobj(_GZIP)
            while chunk := file.read(_CHUNK):
                while chunk:  # a file may hold several compressed parts, one after another
                    yield gunzip.decompress(chunk)
                    chunk = gunzip.unused_data
                    if gunzip.eof:
                        gunzip = zlib.decompressobj(_GZIP)
            yield gunzip.flush()
    except (OSError, zlib.error) as error:
        raise CollectorError(f"{path}: cannot be read: {error}") from error
