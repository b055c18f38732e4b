"""The ledger's store: one SQLite file in WAL mode, append-only, each record chained to the last.

A record's hash is SHA-256 over the hash before it and the record's own bytes, so that a record that
was changed, removed or slipped in breaks the chain at that place. Cutting records off the end
leaves a valid shorter chain: whoever must rule that out keeps the head that `head()` gives.

Appending is all or nothing and idempotent by id: a message that comes again is not written again.
A file has one writer at a time, held by a lock beside it (``….lock``), and any number of readers.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import heapq
import logging
import os
import pathlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Self

from runtime.ledger.book import ENOUGH, the_one
from runtime.ledger.book import LedgerUnreadable as LedgerUnreadable  # for whoever opens a file
from schemas import codec
from schemas.envelope import Event
from schemas.instants import Instant

_LOG = logging.getLogger(__name__)

_GENESIS = hashlib.sha256(b"windrow ledger 1").digest()
_FORMAT = 1
_AT_ONCE = 500  # ids asked for in one query; SQLite before 3.32 takes no more than 999
_MUCH = 1_000  # records: some 4 MB of log
_LOG_PAGES = 16_384  # 64 MB of log, beyond which SQLite tidies up by itself
_PATIENCE_S = 0.25  # for a lock: the control loop waits in `append`, and a brake has 5 s in all

_SCHEMA = """
CREATE TABLE records (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    at INTEGER NOT NULL,
    subject TEXT NOT NULL,
    body BLOB NOT NULL,
    hash BLOB NOT NULL
);
CREATE INDEX records_by_type ON records (type, at, subject);
CREATE TRIGGER no_update BEFORE UPDATE ON records
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON records
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
"""
_TAKEN = "CREATE TABLE IF NOT EXISTS taken (one INTEGER PRIMARY KEY CHECK (one = 1), upto INTEGER NOT NULL)"


class LedgerUnwritable(Exception):
    """The ledger cannot take records (disk full, read-only, damaged, held by another writer); the
    text is the operator's."""


class LedgerMissing(FileNotFoundError):
    """There is no ledger at the path that was to be read."""


class Ledger:
    """An open ledger. One process writes; any number may read. Calls must not overlap.

    `durable` waits for the disk at each append (a power cut loses nothing that was acted on);
    without it a crash of the process loses nothing, a crash of the machine may lose the last
    records: right for simulated time only.

    Opening raises LedgerUnwritable. Questions raise LedgerUnreadable.
    """

    def __init__(self, path: pathlib.Path, *, durable: bool = True) -> None:
        self.path = path
        self._untidy = 0
        self._lock: IO[str] | None = _only_writer(path)
        try:
            self._db = sqlite3.connect(
                path, isolation_level=None, timeout=_PATIENCE_S, check_same_thread=False
            )
        except sqlite3.Error as error:
            self._lock.close()
            raise LedgerUnwritable(f"{path}: {error}") from error
        try:
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
            if found not in (0, _FORMAT):
                raise LedgerUnwritable(f"{path}: its format is number {found}; this version writes {_FORMAT}")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._db.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
            if not found:
                self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_FORMAT}; COMMIT;")
        except sqlite3.Error as error:
            self.close()
            raise LedgerUnwritable(f"{path}: {error}") from error
        except LedgerUnwritable:
            self.close()
            raise

    @classmethod
    def reading(cls, path: pathlib.Path) -> Ledger:
        """A ledger to query only, also while a host writes it, or where the directory is read-only.

        Raises LedgerMissing instead of making an empty one, and LedgerUnreadable.
        """
        if not path.exists():
            raise LedgerMissing(f"{path}: there is no ledger here")
        ledger = cls.__new__(cls)
        ledger.path = path
        ledger._lock = None
        ledger._db = _open_to_read(path)
        return ledger

    def append(self, events: Sequence[Event]) -> None:
        """Write the events in their order, all or none. Raises LedgerUnwritable."""
        self._write([(event, codec.encode(event)) for event in events])

    def take(self, records: Sequence[tuple[Event, bytes]], *, upto: int) -> None:
        """Write records of another's ledger in its order, each with the bytes that it has there, and note
        how far that one was read: all or none. Raises LedgerUnwritable.

        The same records in the same order give the same chain, however they are cut.
        """
        self._write(records, upto)

    def taken(self) -> int:
        """How far the ledger that this one takes from was read: what the last `take` noted, 0 at first."""
        if not self._ask("SELECT 1 FROM sqlite_master WHERE name = 'taken'"):
            return 0
        ((upto,),) = self._ask("SELECT upto FROM taken")
        return int(upto)

    def _write(self, records: Sequence[tuple[Event, bytes]], upto: int | None = None) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._insert(records)
                if upto is not None:
                    self._db.execute(_TAKEN)
                    self._db.execute("INSERT OR REPLACE INTO taken VALUES (1, ?)", (upto,))
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # the first error is the one to tell
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise LedgerUnwritable(f"{self.path}: {error}") from error

    def _insert(self, records: Sequence[tuple[Event, bytes]]) -> None:
        # The head is read inside the transaction: no other writer can come between it and the chain.
        seq, head = self._tip()
        known = self._bodies([event.id for event, _ in records])
        rows: list[tuple[int, str, str, int, str, bytes, bytes]] = []
        for event, body in records:
            if event.id in known:
                if known[event.id] != body:
                    _LOG.error("%s: left out, as another message has its id: %s", self.path, body.decode())
                continue
            known[event.id] = body
            seq, head = seq + 1, hashlib.sha256(head + body).digest()
            rows.append((seq, event.id, type(event).__name__, event.at, event.subject, body, head))
        self._db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self._untidy += len(rows)

    def _bodies(self, identities: Sequence[str]) -> dict[str, bytes]:
        """What is recorded under these ids."""
        found: dict[str, bytes] = {}
        for start in range(0, len(identities), _AT_ONCE):
            some = identities[start : start + _AT_ONCE]
            query = f"SELECT id, body FROM records WHERE id IN ({','.join('?' * len(some))})"
            found.update(self._db.execute(query, some))
        return found

    def tidy(self) -> None:
        """Move what has been appended into the main file, once it is much: SQLite would do so within
        some later `append`, where a command waits. Call it when nobody does. Raises LedgerUnwritable."""
        if self._untidy < _MUCH:
            return
        self._untidy = 0
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            raise LedgerUnwritable(f"{self.path}: {error}") from error

    def holds(self, identity: str) -> bool:
        """Whether a message with this id has been recorded."""
        return bool(self._ask("SELECT 1 FROM records WHERE id = ?", identity))

    def head(self) -> tuple[int, str]:
        """How many records there are, and the last one's hash in hex."""
        try:
            seq, digest = self._tip()
        except sqlite3.Error as error:
            raise LedgerUnreadable(f"{self.path}: {error}") from error
        return seq, digest.hex()

    def contains_hash(self, digest: str) -> bool:
        """Whether a record has this hash: a head noted earlier must still be part of the chain."""
        try:
            wanted = bytes.fromhex(digest)
        except ValueError:
            return False
        return wanted == _GENESIS or bool(self._ask("SELECT 1 FROM records WHERE hash = ? LIMIT 1", wanted))

    def get(self, identity: str) -> Event | None:
        """The message with this id, None when it is not here."""
        rows = self._ask("SELECT body FROM records WHERE id = ?", identity)
        return self._decoded(rows[0][0]) if rows else None

    def many(self, identities: Sequence[str]) -> Mapping[str, Event]:
        """The messages with these ids, by id, without those that are not here."""
        try:
            bodies = self._bodies(identities)
        except sqlite3.Error as error:
            raise LedgerUnreadable(f"{self.path}: {error}") from error
        return {identity: self._decoded(body) for identity, body in bodies.items()}

    def find(self, prefix: str) -> Event:
        """The message whose id this is or begins with. Raises UnknownId or AmbiguousId."""
        query = f"SELECT id, body FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT {ENOUGH}"
        found = dict(self._ask(query, prefix, prefix + "\U0010ffff"))
        return the_one(prefix, list(found), lambda identity: self._decoded(found[identity]))

    def of_type(
        self,
        kinds: Iterable[type[Event]],
        *,
        since: Instant = 0,
        until: Instant | None = None,
        subject: str = "",
        newest_first: bool = False,
    ) -> Iterator[Event]:
        """Messages of these types from `since` up to and with `until`, by event time and then by place
        in the ledger; of all subjects or of one. Read as they are asked for: to stop early is cheap."""
        order = "DESC" if newest_first else "ASC"
        # One index range per type, merged: no range is sorted, or read further than it is asked for.
        query = (
            f"SELECT at, seq, body FROM records WHERE type = ? AND at BETWEEN ? AND ?"
            f"{' AND subject = ?' if subject else ''} ORDER BY at {order}, seq {order}"
        )
        last = until if until is not None else 2**63 - 1
        try:
            streams = [
                self._db.execute(query, (kind.__name__, since, last, *([subject] if subject else [])))
                for kind in kinds
            ]
            for _, _, body in heapq.merge(*streams, key=lambda row: row[:2], reverse=newest_first):
                yield self._decoded(body)
        except sqlite3.Error as error:
            raise LedgerUnreadable(f"{self.path}: {error}") from error

    def subjects(self, kinds: Iterable[type[Event]], below: str) -> list[str]:
        """The subjects at or below a path that messages of these types speak of, sorted."""
        found: set[str] = set()
        for kind in kinds:
            query = (
                "SELECT DISTINCT subject FROM records "
                "WHERE type = ? AND (subject = ? OR subject BETWEEN ? AND ?)"
            )
            rows = self._ask(query, kind.__name__, below, below + "/", below + "/\U0010ffff")
            found.update(subject for (subject,) in rows)
        return sorted(found)

    def verify(self) -> str:
        """Walk the chain from its beginning, and hold the index columns against the records' own bytes.

        What is wrong at the first place where something is; empty when nothing is.
        """
        try:
            for (word,) in self._db.execute("PRAGMA integrity_check(1)"):
                if word != "ok":
                    return f"the file is damaged: {word}"
            return self._first_break()
        except sqlite3.Error as error:
            return f"the file is damaged: {error}"

    def _first_break(self) -> str:
        head = _GENESIS
        # SQLite keeps whatever type it is given: bytes that were changed into a text are read as bytes.
        records = self._db.execute(
            "SELECT seq, id, type, at, subject, CAST(body AS BLOB), hash FROM records ORDER BY seq"
        )
        for place, (seq, identity, kind, at, subject, body, digest) in enumerate(records, start=1):
            named = f"record {seq} ({kind} {identity})"
            if seq != place:
                return f"record {place} is missing: the next one there is number {seq}"
            head = hashlib.sha256(head + body).digest()
            if head != digest:
                return f"{named} does not fit the chain: it or one before it was changed"
            try:
                event = codec.decode(body)
            except codec.Malformed as error:
                return f"{named} cannot be read: {error}"
            if (event.id, type(event).__name__, event.at, event.subject) != (identity, kind, at, subject):
                return f"{named}: its index columns were changed"
        return ""

    def close(self) -> None:
        """Close the file and let another write it; safe to repeat."""
        self._db.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tip(self) -> tuple[int, bytes]:
        row = self._db.execute(
            "SELECT seq, CAST(hash AS BLOB) FROM records ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        return row or (0, _GENESIS)

    def _ask(self, query: str, *values: str | bytes) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise LedgerUnreadable(f"{self.path}: {error}") from error

    def _decoded(self, body: bytes) -> Event:
        try:
            return codec.decode(body)
        except codec.Malformed as error:
            raise LedgerUnreadable(
                f"{self.path}: holds a message this version cannot read: {error}"
            ) from error


def _only_writer(path: pathlib.Path) -> IO[str]:
    """The writer's lock, held as long as the file is open; it goes with the process, however it ends.

    Beside the ledger and not on it: closing any handle of the database file would drop SQLite's own locks.
    """
    beside = path.with_name(path.name + ".lock")
    try:
        file = beside.open("a+")
    except OSError as error:
        raise LedgerUnwritable(f"{path}: {error.strerror}: {beside}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise LedgerUnwritable(f"{path}: process {holder or 'unknown'} is writing this ledger") from None
    with contextlib.suppress(OSError):  # on a full disk the lock still holds, only its holder's name is lost
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
    return file


def _open_to_read(path: pathlib.Path) -> sqlite3.Connection:
    """A read-only connection.

    SQLite reads a WAL database through two files beside it. A reader that may not make them can
    still read a ledger that was closed cleanly, which holds everything in the one file; one whose
    last records are in the ``-wal`` alone cannot be read so, and is refused rather than cut short.
    """
    try:
        return _connect_to_read(path, "mode=ro")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname not in ("SQLITE_CANTOPEN", "SQLITE_READONLY_DIRECTORY"):
            raise LedgerUnreadable(f"{path}: {error}") from error
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size:
            raise LedgerUnreadable(
                f"{path}: its last records are in {log.name}, which cannot be read from here ({error}); "
                "copy both files to a directory that you may write"
            ) from error
    except sqlite3.Error as error:
        raise LedgerUnreadable(f"{path}: {error}") from error
    try:
        return _connect_to_read(path, "mode=ro&immutable=1")
    except sqlite3.Error as error:
        raise LedgerUnreadable(f"{path}: {error}") from error


def _connect_to_read(path: pathlib.Path, flags: str) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"{path.resolve().as_uri()}?{flags}", uri=True, isolation_level=None, timeout=_PATIENCE_S
    )
    try:
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found != _FORMAT:
            raise LedgerUnreadable(f"{path}: is no ledger of this version (its format is number {found})")
    except BaseException:
        db.close()
        raise
    return db
