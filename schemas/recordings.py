"""The head of a recording: what one must know to replay the messages that follow it.

A recording is lines of JSON: this header, then every message of the control loop in the order it was
processed, ticks included. A name that ends in ``.gz`` says that the whole is gzip-compressed.
"""

from __future__ import annotations

import msgspec

from schemas.instants import Instant

FORMAT = 1
"""The format written. A reader takes this and every earlier one."""


class NotARecording(ValueError):
    """The first line is no header that this version can read; the text says what it is instead."""


class RecordingHeader(msgspec.Struct, frozen=True, kw_only=True, tag="windrow-recording"):
    """The first line of a recording.

    `site` and `policy` are the texts of the files that were in force, whole, so that a recording needs
    nothing beside it. `epoch` is the controller's, `started_at` the event time of the first message or
    just before it, `made_by` what wrote it (program and version, or the importer).
    """

    site: str
    policy: str
    epoch: int
    started_at: Instant
    made_by: str
    format: int = FORMAT


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
