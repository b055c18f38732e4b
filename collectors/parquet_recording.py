"""A recording as a columnar file (Parquet): a row for each message, in the recording's order.

The header is in the file's metadata, under `HEADER_KEY`. `body` is the message as it stands on a topic,
byte for byte; the other columns say the same for whoever queries:

=========  ====================================================================================
at         event time (UTC, milliseconds)
type       what is said: GpuFrame, Decision, LockClocks …
subject    the topology path that it speaks of
source     who says it
id         its id
topic      the topic it belongs on, without a prefix
key        the row whose beat it is part of, under which it goes on the bus
partition  where it stood on the bus, where that is known
offset     likewise
body       the message, JSON
=========  ====================================================================================

A Parquet file has no meaning until its end is written. So a recorder writes to a spool beside it, beat by
beat (an Arrow stream, `spool_of`), and makes the file from that when it ends. While there is a spool it is
what counts: it is read as far as it goes, and so loses no more than the beat that was being written.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from collectors.base import CollectorError

HEADER_KEY = b"windrow.recording"

_ROWS_AT_ONCE = 4_096


def is_one(path: pathlib.Path) -> bool:
    """Whether a file of this name is a columnar one, or the spool of one."""
    return path.name.endswith((".parquet", ".parquet.part"))


def spool_of(path: pathlib.Path) -> pathlib.Path:
    """Where a recorder keeps what is not in the file yet."""
    return path.with_name(f"{path.name}.part")


def arrow() -> Any:
    """The library that reads and writes these files. Raises CollectorError in words where it is missing."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise CollectorError(
            "a .parquet recording needs a library that is not installed: "
            "pip install -e '.[parquet]' in Windrow's clone"
        ) from error
    return pyarrow


def columns(pa: Any) -> Any:
    """The columns, as the library has them."""
    return pa.schema(
        [
            ("at", pa.timestamp("ms", "UTC")),
            *((name, pa.string()) for name in ("type", "subject", "source", "id", "topic", "key")),
            ("partition", pa.int32()),
            ("offset", pa.int64()),
            ("body", pa.string()),
        ]
    )


def lines(path: pathlib.Path) -> Iterator[tuple[bytes, bool]]:
    """The header, then each message's bytes, and whether they are whole; what follows the last whole one
    of a spool is an empty message that is not. Raises CollectorError in words."""
    pa = arrow()
    spool = path if path.suffix == ".part" else spool_of(path)
    spooled = spool.exists()
    try:
        yield from _spooled(pa, spool) if spooled else _filed(pa, path)
    except (OSError, pa.ArrowException) as error:
        raise CollectorError(f"{spool if spooled else path}: cannot be read: {error}") from error


def _filed(pa: Any, path: pathlib.Path) -> Iterator[tuple[bytes, bool]]:
    with path.open("rb") as stream, pa.parquet.ParquetFile(stream) as file:
        yield (file.metadata.metadata or {}).get(HEADER_KEY, b""), True
        if "body" in file.schema_arrow.names:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=["body"], use_threads=False):
                yield from _bodies(pa, batch)


def _spooled(pa: Any, spool: pathlib.Path) -> Iterator[tuple[bytes, bool]]:
    with spool.open("rb") as stream, pa.ipc.open_stream(stream) as batches:
        yield (batches.schema.metadata or {}).get(HEADER_KEY, b""), True
        for batch in whole_batches(pa, batches):
            yield from _bodies(pa, batch)
    yield b"", False


def whole_batches(pa: Any, batches: Any) -> Iterator[Any]:
    """What a spool's stream holds, up to where it was torn."""
    while True:
        try:
            batch = batches.read_next_batch()
        except (StopIteration, OSError, pa.ArrowInvalid):
            return
        yield batch


def _bodies(pa: Any, batch: Any) -> Iterator[tuple[bytes, bool]]:
    for body in batch.column("body").cast(pa.binary()).to_pylist():
        yield body or b"", True
