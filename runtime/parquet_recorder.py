"""A recording written as a columnar file (Parquet); what its columns are: `collectors.parquet_recording`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from collectors.base import CollectorError
from collectors.parquet_recording import HEADER_KEY, arrow, columns, spool_of, whole_batches
from runtime.config import ConfigError
from runtime.recorded import Recorded
from schemas import codec
from schemas.recordings import RecordingHeader, encode_header
from schemas.topics import topic_of

_GROUP_BYTES = 16 << 20
"""Messages of a row group, uncompressed: little memory for who reads one, and enough to compress well."""

_REPEATING = ["type", "subject", "source", "topic", "key", "partition"]


class ParquetForm:
    """Takes messages into the spool, and makes the file of it at the end."""

    def __init__(self, path: pathlib.Path, header: RecordingHeader) -> None:
        try:
            self._pa = arrow()
        except CollectorError as error:
            raise ConfigError(f"{path}: {error}") from error
        self._path = path
        self._header = encode_header(header)
        self._spool = spool_of(path)
        path.open("xb").close()  # so that nobody else takes the name
        try:
            self._stream: Any = self._spool.open("xb")
        except OSError:
            path.unlink()
            raise
        self._batches: Any = None

    def begin(self) -> None:
        """Write the header into the spool."""
        schema = columns(self._pa).with_metadata({HEADER_KEY: self._header})
        packed = self._pa.ipc.IpcWriteOptions(compression="zstd")
        self._batches = self._pa.ipc.new_stream(self._stream, schema, options=packed)
        self._stream.flush()

    def write(self, messages: Iterable[Recorded]) -> None:
        """Append messages; they are with the operating system when this returns."""
        rows = [
            (
                event.at,
                type(event).__name__,
                event.subject,
                event.source,
                event.id,
                topic_of(event).name,
                key,
                place[0] if place else None,
                place[1] if place else None,
                codec.encode(event),
            )
            for event, key, place in messages
        ]
        schema = columns(self._pa)
        arrays = [
            self._pa.array(values, kind)
            for values, kind in zip(zip(*rows, strict=True), schema.types, strict=True)
        ]
        self._batches.write_batch(self._pa.record_batch(arrays, schema=schema))
        self._stream.flush()

    def close(self) -> None:
        """Make the file of what the spool holds whole. The spool goes only after that."""
        try:
            if self._batches is not None:
                self._batches.close()
        finally:
            self._stream.close()
        with self._path.open("wb") as file:
            with self._spool.open("rb") as stream, self._pa.ipc.open_stream(stream) as batches:
                self._fill(file, whole_batches(self._pa, batches))
            file.flush()
            os.fsync(file.fileno())
        self._spool.unlink()

    def _fill(self, file: BinaryIO, batches: Iterator[Any]) -> None:
        schema = columns(self._pa)
        with self._pa.parquet.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=_REPEATING,
            write_statistics=["at", "offset", *_REPEATING],
            store_schema=False,
        ) as writer:
            writer.add_key_value_metadata({HEADER_KEY: self._header})
            for group in _groups(batches):
                writer.write_table(self._pa.Table.from_batches(group, schema))


def _groups(batches: Iterable[Any]) -> Iterator[list[Any]]:
    """Batches by the row group."""
    group: list[Any] = []
    size = 0
    for batch in batches:
        group.append(batch.replace_schema_metadata(None))  # the header stands in the file once
        size += batch.nbytes
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
