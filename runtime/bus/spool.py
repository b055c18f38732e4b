"""A spool: records on disk in their order, for as long as nobody takes them.

A folder of segment files, each named by the number of its first record and written only at its end:

    00000000000000000417.spool      CRC-32 and length (32 bits each, big-endian), MessagePack; and again
    00000000000000000388.damaged    one that could not be read, kept whole for a person to look at
    lock                            held while a process has the spool

Segments rather than a database: the oldest goes by unlinking, which a full disk allows and which gives
room; damage stays within one file; and a record costs less than half of what a row of SQLite does
(measured: `benchmarks/publishing.py`).

Records are handed to the kernel at each `append` and never synced: they outlive the process, however it
ends, and a power cut takes what the kernel had not yet written, at most about 30 s. A machine whose power
was cut has no board left to be told of, and a sync on a disk in trouble can take seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pathlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from schemas.instants import Instant

SEGMENT_BYTES = 256 * 1024
"""Where the next segment begins: what is dropped, or set aside, at once (our choice)."""

_FRAME = struct.Struct(">II")
_LARGEST = 64 * 1024 * 1024  # bytes of a record; a length beyond it is damage
_ENDING = ".spool"


class Record(NamedTuple):
    """One message as Kafka takes it: `at` is when it was said, by the wall clock."""

    at: Instant
    key: bytes
    value: bytes


class Damaged(Exception):
    """The records from `first` up to, and not including, `end` cannot be read. Their segment was set
    aside; the text says where and why."""

    def __init__(self, why: str, first: int, end: int) -> None:
        super().__init__(why)
        self.first = first
        self.end = end


class _Segment:
    __slots__ = ("count", "first", "newest", "path", "size")

    def __init__(self, path: pathlib.Path, first: int) -> None:
        self.path = path
        self.first = first
        self.count = 0
        self.size = 0
        self.newest: Instant = 0

    @property
    def end(self) -> int:
        return self.first + self.count


class _Broken(Exception):
    """A segment holds something else from here on. `cut`: its last record is only begun."""

    def __init__(self, why: str, cut: bool = False) -> None:
        super().__init__(why)
        self.cut = cut


_decoder = msgspec.msgpack.Decoder(Record)


class Spool:
    """The records in `folder`, numbered from `first` up to, and not including, `end`.

    Opening raises OSError where the folder cannot be had, BlockingIOError where another process has it.
    What was damaged is set aside; `found` says in words what was met, and `lost` how many records that
    was, as far as can be told.
    """

    def __init__(self, folder: pathlib.Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.found: list[str] = []
        self.lost = 0
        self.trouble = ""
        self._folder = folder
        self._limit = segment_bytes
        self._segments: list[_Segment] = []
        self._writing: int | None = None  # the handle of the last segment, where it still grows
        self._read: tuple[int, list[Record]] = (-1, [])
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._open()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def first(self) -> int:
        """The number of the oldest record; `end` where there is none."""
        return self._segments[0].first if self._segments else 0

    @property
    def end(self) -> int:
        """The number that the next record will have; 0 where there is none."""
        return self._segments[-1].end if self._segments else 0

    @property
    def gaps(self) -> list[range]:
        """The numbers between `first` and `end` that no record has: what was set aside."""
        pairs = itertools.pairwise(self._segments)
        return [range(one.end, other.first) for one, other in pairs if one.end < other.first]

    @property
    def bytes(self) -> int:
        """What the segments take on disk."""
        return sum(segment.size for segment in self._segments)

    def __bool__(self) -> bool:
        return bool(self._segments)

    # ---- writing ----

    def append(self, number: int, records: Sequence[Record]) -> int:
        """Add records at the end; the first of them has `number`, which is `end` unless there is none.

        How many were taken. Fewer than given means that the disk takes no more just now, and `trouble`
        says why; what was taken is whole.
        """
        taken = 0
        try:
            while taken < len(records):
                if self._writing is None or self._segments[-1].size >= self._limit:
                    self._begin(number + taken)
                taken += self._write(records[taken:])
        except OSError as error:
            self.trouble = f"{self._folder}: {error.strerror}"
        else:
            self.trouble = ""
        return taken

    def _begin(self, number: int) -> None:
        self._seal()
        segment = _Segment(self._folder / f"{number:020}{_ENDING}", number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._writing = os.open(segment.path, flags, 0o600)
        self._segments.append(segment)

    def _write(self, records: Sequence[Record]) -> int:
        """Write what still belongs into this segment, all of it or nothing."""
        segment, handle = self._segments[-1], self._writing
        assert handle is not None
        frames: list[bytes] = []
        size = segment.size
        for record in records:
            body = msgspec.msgpack.encode(record)
            frames += (_FRAME.pack(zlib.crc32(body), len(body)), body)
            size += _FRAME.size + len(body)
            if size >= self._limit:
                break
        content = memoryview(b"".join(frames))
        try:
            while content:
                content = content[os.write(handle, content) :]
        except OSError:
            self._seal()  # were cutting it back to fail too, nothing more may be written behind
            with contextlib.suppress(OSError):
                os.truncate(segment.path, segment.size)
            if not segment.count:
                self._unlink(self._segments.pop())
            raise
        count = len(frames) // 2
        segment.count += count
        segment.size = size
        segment.newest = max(segment.newest, *(record.at for record in records[:count]))
        return count

    def _seal(self) -> None:
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None

    # ---- reading ----

    def read(self, number: int) -> Record:
        """The record of this number, from `first` to `end`. Raises Damaged, and then goes on behind it."""
        first, records = self._read
        if not first <= number < first + len(records):
            index = next(i for i, segment in enumerate(self._segments) if number < segment.end)
            segment = self._segments[index]
            if index == len(self._segments) - 1:
                self._seal()
            try:
                # Behind it may stand the rest of a write that failed and could not be cut off.
                records = [record for record, _ in _records(segment.path.read_bytes()[: segment.size])]
                if len(records) < segment.count:
                    raise _Broken(f"holds {len(records)} of {segment.count} records")
            except (OSError, _Broken) as error:
                del self._segments[index]
                raise Damaged(self._aside(segment, error), segment.first, segment.end) from error
            self._read = (first := segment.first, records)
        return records[number - first]

    # ---- letting go ----

    def forget(self, before: int) -> None:
        """Let go of the segments whose records all have a number below `before`."""
        while self._segments and self._segments[0].end <= before:
            self.drop_oldest()

    def drop_oldest(self) -> int:
        """Let go of the oldest segment; the number behind its last record."""
        segment = self._segments.pop(0)
        if not self._segments:
            self._seal()
        self._unlink(segment)
        return segment.end

    def older_than(self, at: Instant) -> bool:
        """Whether all of the oldest segment was said before."""
        return bool(self._segments) and self._segments[0].newest < at

    def close(self) -> None:
        """Leave it to the next process; safe to repeat."""
        self._seal()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @staticmethod
    def _unlink(segment: _Segment) -> None:
        with contextlib.suppress(OSError):  # then it is sent again after a restart, which harms nobody
            segment.path.unlink()

    # ---- opening ----

    def _open(self) -> None:
        paths = sorted(path for path in self._folder.iterdir() if path.suffix == _ENDING)
        segments = [_Segment(path, int(path.stem)) for path in paths if path.stem.isdecimal()]
        for index, segment in enumerate(segments):
            follows = segments[index + 1].first if index + 1 < len(segments) else None
            cut = False
            content = b""
            try:
                content = segment.path.read_bytes()
                for record, size in _records(content):
                    segment.count += 1
                    segment.size = size
                    segment.newest = max(segment.newest, record.at)
            except _Broken as error:
                # A process that was killed leaves the last record begun. Elsewhere it is damage.
                cut = error.cut and follows in (None, segment.end)
                if not cut:
                    self.lost += _count(content) if follows is None else follows - segment.first
                    self.found.append(self._aside(segment, error))
                    continue
            except OSError as error:
                self.lost += 1 if follows is None else follows - segment.first
                self.found.append(self._aside(segment, error))
                continue
            if cut:
                os.truncate(segment.path, segment.size)
                if follows is None:
                    self.lost += 1
                    self.found.append(f"{segment.path}: the last record was only begun")
            if segment.count:
                self._segments.append(segment)
            else:
                self._unlink(segment)

    def _aside(self, segment: _Segment, error: Exception) -> str:
        """Move a segment out of the way, whole, and say so."""
        why = error.strerror or "cannot be read" if isinstance(error, OSError) else str(error)
        number = 1
        while (kept := segment.path.with_suffix(f".damaged-{number}")).exists():
            number += 1
        try:
            segment.path.rename(kept)
        except OSError as refused:
            return f"{segment.path} {why}, and cannot be set aside: {refused.strerror}"
        return f"{segment.path} {why}; it was set aside as {kept.name}"


def _records(content: bytes) -> Iterator[tuple[Record, int]]:
    """The records of a segment, each with where it ends. Raises _Broken where something else stands."""
    at = 0
    while at < len(content):
        if len(content) - at < _FRAME.size:
            raise _Broken("ends within a record", cut=True)
        check, length = _FRAME.unpack_from(content, at)
        if not length and not content[at:].strip(b"\0"):  # a power cut took what was to stand there
            raise _Broken("ends within a record", cut=True)
        if length > _LARGEST:
            raise _Broken(f"says at byte {at} that a record has {length} bytes")
        body = content[at + _FRAME.size : at + _FRAME.size + length]
        if len(body) < length:
            raise _Broken("ends within a record", cut=True)
        if zlib.crc32(body) != check:
            raise _Broken(f"is damaged at byte {at}: the check sum is wrong")
        try:
            record = _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _Broken(f"is damaged at byte {at}: {error}") from error
        at += _FRAME.size + length
        yield record, at


def _count(content: bytes) -> int:
    """How many records a damaged segment seems to have had, one at least."""
    at = count = 0
    while at + _FRAME.size <= len(content):
        at += _FRAME.size + _FRAME.unpack_from(content, at)[1]
        count += 1
    return max(1, count)
