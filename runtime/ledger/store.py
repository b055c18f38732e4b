"""The ledger's store: one SQLite file in WAL mode, append-only, each record chained to the last.

A record's hash is SHA-256 over the hash before it and the record's own bytes, so that a record that
was changed, removed or slipped in breaks the chain at that place. Cutting records off the end
leaves a valid shorter chain: whoever must rule that out keeps the head that `head()` gives.

Appending is all or nothing and idempotent by id: a message that comes again is not written again.
"""

from __future__ import annotations

import hashlib
import pathlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from schemas import codec
from schemas.envelope import Event
from schemas.instants import Instant

_GENESIS = hashlib.sha256(b"windrow ledger 1").digest()

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    at INTEGER NOT NULL,
    subject TEXT NOT NULL,
    body BLOB NOT NULL,
    hash BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS records_by_subject ON records (subject, at);
CREATE INDEX IF NOT EXISTS records_by_type ON records (type, at);
CREATE TABLE IF NOT EXISTS links (cause TEXT NOT NULL, effect TEXT NOT NULL, PRIMARY KEY (cause, effect)) WITHOUT ROWID;
"""


class LedgerUnwritable(Exception):
    """The ledger cannot take records (disk full, read-only, damaged); the text is the operator's."""


class LedgerMissing(FileNotFoundError):
    """There is no ledger at the path that was to be read."""


class Record(msgspec.Struct, frozen=True):
    """One entry: its place, and the message it holds."""

    seq: int
    event: Event


class Ledger:
    """An open ledger. One process writes; any number may read.

    `durable` waits for the disk at each append (a power cut loses nothing that was acted on);
    without it a crash of the process loses nothing, a crash of the machine may lose the last
    records: right for simulated time only.
    """

    def __init__(self, path: pathlib.Path, *, durable: bool = True) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._db.executescript(_SCHEMA)
            self._seq, self._head = self._db.execute(
                "SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1"
            ).fetchone() or (0, _GENESIS)
        except sqlite3.Error as error:
            raise LedgerUnwritable(f"{path}: {error}") from error

    @classmethod
    def reading(cls, path: pathlib.Path) -> Ledger:
        """A ledger to query only. Raises LedgerMissing instead of making an empty one."""
        if not path.exists():
            raise LedgerMissing(f"{path}: there is no ledger here")
        ledger = cls.__new__(cls)
        ledger.path = path
        ledger._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=5.0)
        return ledger

    def append(self, events: Sequence[Event]) -> None:
        """Write the events in their order, all or none. Raises LedgerUnwritable."""
        seq, head = self._seq, self._head
        rows: list[tuple[int, str, str, int, str, bytes, bytes]] = []
        links: list[tuple[str, str]] = []
        fresh: set[str] = set()
        try:
            for event in events:
                if event.id in fresh or self._holds(event.id):
                    continue
                fresh.add(event.id)
                body = codec.encode(event)
                seq, head = seq + 1, hashlib.sha256(head + body).digest()
                rows.append((seq, event.id, type(event).__name__, event.at, event.subject, body, head))
                links.extend((cause, event.id) for cause in event.cause)
            if not rows:
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
                self._db.executemany("INSERT OR IGNORE INTO links VALUES (?, ?)", links)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise LedgerUnwritable(f"{self.path}: {error}") from error
        self._seq, self._head = seq, head

    def head(self) -> tuple[int, str]:
        """How many records there are, and the last one's hash in hex."""
        row = self._db.execute("SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1").fetchone()
        seq, digest = row or (0, _GENESIS)
        return int(seq), bytes(digest).hex()

    def get(self, identity: str) -> Event | None:
        """The message with this id (or the only one whose id begins so), None when there is none."""
        rows = self._db.execute(
            "SELECT body FROM records WHERE id >= ? AND id < ? LIMIT 2", (identity, identity + "\x7f")
        ).fetchall()
        return codec.decode(rows[0][0]) if len(rows) == 1 else None

    def effects(self, identity: str) -> list[Event]:
        """The messages that name this id among their causes, in ledger order."""
        rows = self._db.execute(
            "SELECT body FROM links JOIN records ON records.id = links.effect WHERE cause = ? ORDER BY seq", (identity,)
        )
        return [codec.decode(body) for (body,) in rows]

    def of_type(
        self, kinds: Iterable[type[Event]], *, since: Instant = 0, until: Instant | None = None, subject: str = ""
    ) -> Iterator[Event]:
        """Messages of these types from `since` up to and with `until`, in ledger order; `subject`
        narrows to a path and what lies below it."""
        names = [kind.__name__ for kind in kinds]
        query = f"SELECT body FROM records WHERE type IN ({','.join('?' * len(names))}) AND at >= ?"
        values: list[str | int] = [*names, since]
        if until is not None:
            query += " AND at <= ?"
            values.append(until)
        if subject:
            query += " AND (subject = ? OR subject >= ? AND subject < ?)"
            values += [subject, subject + "/", subject + "0"]  # "0" follows "/"
        for (body,) in self._db.execute(query + " ORDER BY seq", values):
            yield codec.decode(body)

    def verify(self) -> str:
        """Walk the chain from its beginning; what is wrong at the first break, empty when nothing is."""
        head = _GENESIS
        for place, (seq, identity, kind, at, subject, body, digest) in enumerate(
            self._db.execute("SELECT seq, id, type, at, subject, body, hash FROM records ORDER BY seq"), start=1
        ):
            if seq != place:
                return f"record {place} is missing: the next one there is number {seq}"
            head = hashlib.sha256(head + body).digest()
            if head != digest:
                return f"record {seq} ({kind} {identity}) does not fit the chain: it or one before it was changed"
            try:
                event = codec.decode(body)
            except codec.Malformed as error:
                return f"record {seq} ({kind} {identity}) cannot be read: {error}"
            if (event.id, type(event).__name__, event.at, event.subject) != (identity, kind, at, subject):
                return f"record {seq} ({kind} {identity}): its index columns were changed"
        return ""

    def close(self) -> None:
        """Close the file; safe to repeat."""
        self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _holds(self, identity: str) -> bool:
        return self._db.execute("SELECT 1 FROM records WHERE id = ?", (identity,)).fetchone() is not None
