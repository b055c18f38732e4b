"""The recorder: beats as they were folded, as lines of JSON or as a columnar file.

A recording is a header, then for each beat its inputs in total order, its Tick, and what the
loop said. Replay feeds each stretch up to a Tick to the row that the Tick names, and can hold what
it says against what was said then.
"""

from __future__ import annotations

import gzip
import itertools
import logging
import pathlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from collectors import parquet_recording
from collectors.parquet_recording import spool_of
from runtime.config import ConfigError, Setup
from runtime.parquet_recorder import ParquetForm
from runtime.recorded import Place, Recorded
from runtime.row_loop import Beat
from schemas import codec
from schemas.instants import SECOND, Instant, Span
from schemas.recordings import FORMAT, RecordingHeader, encode_header

_LOG = logging.getLogger(__name__)

_FLUSH_MS: Span = 5 * SECOND
"""How much of a recording a crash may cost: compressing anew for each beat would cost more than a tenth of
a small row's file (our choice)."""


def header_of(
    setup: Setup, epoch: int, started_at: Instant, made_by: str, snapshots: Mapping[str, bytes] | None = None
) -> RecordingHeader:
    """The header for a recording of this setup, with the texts it was set up from and, by row, the states
    that rows go on from."""
    return RecordingHeader(
        site=setup.site_text,
        policy=setup.policy_text,
        epoch=epoch,
        started_at=started_at,
        made_by=made_by,
        format=FORMAT if snapshots else 1,
        snapshots=dict(snapshots) if snapshots else msgspec.UNSET,
    )


def unused(path: pathlib.Path) -> pathlib.Path:
    """A name like this one that no recording has yet: ``night.jsonl.gz``, then ``night-2.jsonl.gz``. For a
    service that is started again, and must neither write over what it recorded nor stay away for it."""
    stem, *endings = path.name.split(".")
    names = itertools.chain([path.name], (".".join([f"{stem}-{n}", *endings]) for n in itertools.count(2)))
    found = (path.with_name(name) for name in names)
    return next(each for each in found if not (each.is_file() or spool_of(each).exists()))


class Form(Protocol):
    """How a recording stands on disk. Its calls raise OSError."""

    def begin(self) -> None:
        """Write the header."""

    def write(self, messages: Iterable[Recorded]) -> None:
        """Append messages. They may wait for a later write, seconds of event time at most."""

    def close(self) -> None:
        """Make the file whole."""


class Recorder:
    """Writes a recording; its form follows the name: ``.parquet``, ``.gz`` (compressed lines), else lines.
    Use as a context manager. Making one raises ConfigError where the file cannot be had, or is there
    already: a recording is evidence, and nothing writes over it.

    Once the disk will not take a beat, what comes after is not written either: `trouble` says why. A row
    is not left alone for want of a recording.
    """

    def __init__(self, path: pathlib.Path, header: RecordingHeader) -> None:
        self.path = path
        self.trouble = ""
        self._closed = False
        form = ParquetForm if parquet_recording.is_one(path) else LinesForm
        try:
            self._form: Form = form(path, header)
        except FileExistsError as error:
            raise ConfigError(
                f"{error.filename}: is there already, and no recording is written over: choose another name"
            ) from error
        except OSError as error:
            raise ConfigError(f"{path}: the recording cannot be written: {error.strerror}") from error
        self._try(self._form.begin)

    def write(self, beat: Beat, places: Mapping[str, Place] | None = None) -> None:
        """Append one beat whole. `places` has where its messages stood on a bus, by their ids."""
        places = places or {}
        row = beat.tick.subject
        said = [
            Recorded(event, row, places.get(event.id)) for event in (*beat.inputs, beat.tick, *beat.outputs)
        ]
        if not self.trouble:
            self._try(lambda: self._form.write(said))

    def close(self) -> None:
        """Make the file whole; safe to repeat."""
        if not self._closed:
            self._closed = True
            self._try(self._form.close)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _try(self, do: Callable[[], None]) -> None:
        try:
            do()
        except OSError as error:
            if not self.trouble:
                self.trouble = f"{self.path}: the recording ends here: {error.strerror or error}"
                _LOG.error("%s", self.trouble)


class LinesForm:
    """A message a line."""

    def __init__(self, path: pathlib.Path, header: RecordingHeader) -> None:
        # What is no file (a pipe, a device) is there already and holds no recording.
        self._file = path.open("wb" if path.exists() and not path.is_file() else "xb")
        # Neither the name nor the time of writing goes into the file: the same beats give the same bytes.
        self._zip = gzip.GzipFile("", "wb", fileobj=self._file, mtime=0) if path.suffix == ".gz" else None
        self._header = header
        self._flushed_at: Instant = header.started_at

    def begin(self) -> None:
        """Write the header."""
        self._append(encode_header(self._header) + b"\n")
        self._flush()

    def write(self, messages: Iterable[Recorded]) -> None:
        """Append messages; they are with the operating system a few seconds later."""
        at = self._flushed_at
        lines = []
        for message in messages:
            lines.append(codec.encode(message.event))
            at = message.event.at
        self._append(b"\n".join(lines) + b"\n")
        if abs(at - self._flushed_at) >= _FLUSH_MS:
            self._flushed_at = at
            self._flush()

    def close(self) -> None:
        """End the file, so far as the disk takes its end."""
        try:
            if self._zip is not None:
                self._zip.close()
        finally:
            self._file.close()

    def _append(self, content: bytes) -> None:
        (self._zip or self._file).write(content)

    def _flush(self) -> None:
        if self._zip is not None:
            self._zip.flush(zlib.Z_SYNC_FLUSH)
        self._file.flush()
