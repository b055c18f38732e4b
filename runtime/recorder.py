"""The recorder: beats as lines of JSON, in the order they were folded.

A recording is a header line, then for each beat its inputs in total order, its Tick, and what the
loop said. Replay feeds each stretch up to a Tick to the row that the Tick names, and can hold what
it says against what was said then.
"""

from __future__ import annotations

import gzip
import pathlib
from typing import IO

from runtime.config import Setup
from runtime.row_loop import Beat
from schemas import codec
from schemas.instants import Instant
from schemas.recordings import RecordingHeader, encode_header


def header_of(setup: Setup, epoch: int, started_at: Instant, made_by: str) -> RecordingHeader:
    """The header for a recording of this setup, with the texts it was set up from."""
    return RecordingHeader(
        site=setup.site_text, policy=setup.policy_text, epoch=epoch, started_at=started_at, made_by=made_by
    )


class Recorder:
    """Writes a recording; gzip when the name ends in ``.gz``. Use as a context manager."""

    def __init__(self, path: pathlib.Path, header: RecordingHeader) -> None:
        self.path = path
        self._file: IO[bytes] = gzip.open(path, "wb", compresslevel=4) if path.suffix == ".gz" else path.open("wb")
        self._file.write(encode_header(header) + b"\n")

    def write(self, beat: Beat) -> None:
        """Append one beat whole."""
        lines = [codec.encode(event) for event in (*beat.inputs, beat.tick, *beat.outputs)]
        self._file.write(b"\n".join(lines) + b"\n")

    def close(self) -> None:
        """Flush and close; safe to repeat."""
        self._file.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
