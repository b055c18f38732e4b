"""The recorder: beats as lines of JSON, in the order they were folded.

A recording is a header line, then for each beat its inputs in total order, its Tick, and what the
loop said. Replay feeds each stretch up to a Tick to the row that the Tick names, and can hold what
it says against what was said then.
"""

from __future__ import annotations

import gzip
import logging
import pathlib

from runtime.config import ConfigError, Setup
from runtime.row_loop import Beat
from schemas import codec
from schemas.instants import Instant
from schemas.recordings import RecordingHeader, encode_header

_LOG = logging.getLogger(__name__)


def header_of(setup: Setup, epoch: int, started_at: Instant, made_by: str) -> RecordingHeader:
    """The header for a recording of this setup, with the texts it was set up from."""
    return RecordingHeader(
        site=setup.site_text, policy=setup.policy_text, epoch=epoch, started_at=started_at, made_by=made_by
    )


class Recorder:
    """Writes a recording; gzip when the name ends in ``.gz``. Use as a context manager. Making one raises
    ConfigError where the file cannot be had.

    Once the disk will not take a beat, what comes after is not written either: `trouble` says why. A row
    is not left alone for want of a recording.
    """

    def __init__(self, path: pathlib.Path, header: RecordingHeader) -> None:
        self.path = path
        self.trouble = ""
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise ConfigError(f"{path}: the recording cannot be written: {error.strerror}") from error
        # Neither the name nor the time of writing goes into the file: the same beats give the same bytes.
        self._zip = gzip.GzipFile("", "wb", fileobj=self._file, mtime=0) if path.suffix == ".gz" else None
        self._write(encode_header(header) + b"\n")

    def write(self, beat: Beat) -> None:
        """Append one beat whole."""
        lines = [codec.encode(event) for event in (*beat.inputs, beat.tick, *beat.outputs)]
        self._write(b"\n".join(lines) + b"\n")

    def close(self) -> None:
        """Flush and close; safe to repeat."""
        for part in (self._zip, self._file):
            try:
                if part is not None:
                    part.close()
            except OSError as error:
                self._stop(error)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, content: bytes) -> None:
        if self.trouble:
            return
        try:
            (self._zip or self._file).write(content)
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        if not self.trouble:
            self.trouble = f"{self.path}: the recording ends here: {error.strerror}"
            _LOG.error("%s", self.trouble)
