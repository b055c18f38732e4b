"""The head of a recording: what one must know to replay the messages that follow it.

A recording is this header, then every message of the control loop in the order it was processed, ticks
included: as lines of JSON, compressed where the name ends in ``.gz``, or as a columnar file (``.parquet``).
"""

from __future__ import annotations

import msgspec

from schemas.instants import Instant

FORMAT = 2
"""The newest format. A reader takes this and every earlier one; 2 has rows that begin with a snapshot, and
is written only where one does."""


class NotARecording(ValueError):
    """The first line is no header that this version can read; the text says what it is instead."""


class RecordingHeader(msgspec.Struct, frozen=True, kw_only=True, tag="windrow-recording"):
    """The first line of a recording.

    `site` and `policy` are the texts of the files that were in force, whole, so that a recording needs
    nothing beside it. `epoch` is the controller's, `started_at` the event time of the first message or
    just before it, `made_by` what wrote it (program and version, or the importer). `snapshots` holds, by
    row, the state before its first beat (`runtime.hosts.snapshot`), for rows that do not begin anew.
    """

    site: str
    policy: str
    epoch: int
    started_at: Instant
    made_by: str
    format: int = 1
    snapshots: dict[str, bytes] | msgspec.UnsetType = msgspec.UNSET


def snapshots_of(header: RecordingHeader) -> dict[str, bytes]:
    """By row, the states that rows go on from."""
    return {} if header.snapshots is msgspec.UNSET else header.snapshots


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(RecordingHeader)


def encode_header(header: RecordingHeader) -> bytes:
    """The header as one line of JSON without the newline."""
    return _encoder.encode(header)


def decode_header(line: bytes) -> RecordingHeader:
    """The header in the first line of a recording.

    Raises NotARecording for anything else, and for a format newer than this version reads.
    """
    try:
        header = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotARecording(f"the first line is no recording header: {error}") from error
    if not 1 <= header.format <= FORMAT:
        raise NotARecording(f"the recording has format {header.format}; this version reads up to {FORMAT}")
    return header
