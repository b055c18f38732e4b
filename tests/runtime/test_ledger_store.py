"""The ledger keeps everything it acknowledged, in one chain, and says where anybody touched it."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages import messages

from runtime.ledger.book import AmbiguousId, LedgerUnreadable, UnknownId
from runtime.ledger.store import Ledger, LedgerMissing, LedgerUnwritable
from schemas import codec
from schemas.commands import Lease, LockClocks
from schemas.emergencies import Emergency
from schemas.envelope import DeadLetter, Event
from schemas.samples import FeedSample, PowerRollup

ROW = "ams1/row-b"


def sample(at: int, subject: str = "ams1/ups-1/pdu-1/feed-a", **fields: object) -> FeedSample:
    return FeedSample(at=at, source="collector/feed", subject=subject, power_w=1000.0 + at, **fields)  # type: ignore[arg-type]


def samples(count: int, start: int = 0) -> list[Event]:
    return [sample(at) for at in range(start, start + count)]


def lock(at: int, host: str, cause: tuple[str, ...] = ()) -> LockClocks:
    lease = Lease(epoch=1, issued_at=at, expires_at=at + 90_000, on_expiry="safe_share")
    return LockClocks(at=at, source="controller", subject=host, cause=cause, lease=lease, max_mhz=1275)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path, durable=False) as opened:
        yield opened


def everything(ledger: Ledger) -> list[Event]:
    return list(ledger.of_type([FeedSample]))


# ---- appending --------------------------------------------------------------------------------


@given(batches=st.lists(st.lists(messages(), max_size=6), max_size=4))
def test_any_message_comes_back_as_it_went_in_and_the_chain_holds(batches: list[list[Event]]) -> None:
    with tempfile.TemporaryDirectory() as directory, Ledger(Path(directory) / "l", durable=False) as ledger:
        for batch in batches:
            ledger.append(batch)
        first = {event.id: event for batch in reversed(batches) for event in reversed(batch)}
        assert ledger.head()[0] == len(first)
        assert all(ledger.get(identity) == event for identity, event in first.items())
        assert ledger.verify() == ""


def test_a_message_that_comes_again_is_not_written_again(ledger: Ledger) -> None:
    batch = samples(5)
    ledger.append(batch)
    before = ledger.head()
    ledger.append([*batch, batch[0]])
    assert ledger.head() == before
    ledger.append([sample(9), sample(9)])
    assert ledger.head()[0] == 6
    assert ledger.verify() == ""


def test_another_message_under_a_recorded_id_is_left_out_and_said(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.append([sample(1)])
    impostor = FeedSample(at=1, source="x", subject="y", power_w=0.0, id=sample(1).id)
    ledger.append([impostor, sample(2)])
    assert ledger.get(impostor.id) == sample(1)
    assert ledger.head()[0] == 2
    assert "another message has its id" in caplog.text


def test_a_message_that_cannot_be_written_leaves_nothing_of_its_batch(ledger: Ledger) -> None:
    ledger.append(samples(3))
    before = ledger.head()
    beyond = sample(2**70)  # no SQLite integer
    with pytest.raises(OverflowError):
        ledger.append([sample(7), beyond])
    assert ledger.head() == before
    ledger.append([sample(7)])
    assert ledger.verify() == ""


def test_the_chain_goes_on_when_the_ledger_is_opened_again(path: Path) -> None:
    for start in range(0, 9, 3):
        with Ledger(path, durable=False) as ledger:
            ledger.append(samples(3, start))
    with Ledger.reading(path) as ledger:
        assert ledger.head()[0] == 9
        assert ledger.verify() == ""
        assert everything(ledger) == samples(9)


# ---- one writer, many readers -----------------------------------------------------------------


def test_a_second_writer_is_told_who_writes(ledger: Ledger, path: Path) -> None:
    with pytest.raises(LedgerUnwritable, match=f"process {os.getpid()} is writing this ledger"):
        Ledger(path)
    ledger.append(samples(1))  # and the first goes on


def test_a_ledger_that_was_closed_can_be_written_by_the_next(path: Path) -> None:
    Ledger(path).close()
    with Ledger(path) as ledger:
        ledger.append(samples(1))


def test_a_writer_that_got_around_the_lock_does_not_fork_the_chain(ledger: Ledger, path: Path) -> None:
    ledger.append(samples(3))
    path.with_name(path.name + ".lock").unlink()  # as somebody might who thinks it a leftover
    with Ledger(path, durable=False) as second:
        for start in range(3, 30, 3):
            (ledger if start % 2 else second).append(samples(3, start))
    assert ledger.head()[0] == 30
    assert ledger.verify() == ""


def test_a_reader_sees_whole_batches_while_a_host_writes(ledger: Ledger, path: Path) -> None:
    ledger.append(samples(10))
    with Ledger.reading(path) as reader:
        walk = reader.of_type([FeedSample])
        next(walk)
        for start in range(10, 200, 10):
            ledger.append(samples(10, start))
            assert reader.head()[0] % 10 == 0
        assert len(list(walk)) == 9  # what there was when the question was asked
        assert reader.head()[0] == 200
        assert reader.verify() == ""


def test_a_reader_cannot_write(ledger: Ledger, path: Path) -> None:
    ledger.append(samples(1))
    with Ledger.reading(path) as reader, pytest.raises(LedgerUnwritable, match="readonly"):
        reader.append(samples(2))


def test_somebody_else_s_lock_stops_an_append_within_a_second_and_in_words(
    ledger: Ledger, path: Path
) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnwritable, match="locked"):
        ledger.append(samples(1))
    other.execute("ROLLBACK")
    other.close()
    ledger.append(samples(1))
    assert ledger.head()[0] == 1


# ---- reading in awkward places ----------------------------------------------------------------


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """The directory may not be written by this process, root or not, for the time of the block."""
    shutil.chown(directory, os.getuid())
    directory.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        assert not os.access(directory, os.W_OK, effective_ids=True)
        yield
    finally:
        if root:
            os.seteuid(0)
        directory.chmod(0o755)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that other users can reach, which pytest's own is not."""
    directory = Path(tempfile.mkdtemp(prefix="windrow-ledger-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_a_missing_ledger_is_not_made_by_reading(path: Path) -> None:
    with pytest.raises(LedgerMissing, match="there is no ledger here"):
        Ledger.reading(path)
    assert not path.exists()


def test_a_cleanly_closed_ledger_reads_from_a_read_only_directory(public: Path) -> None:
    path = public / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.append(samples(5))
    assert not path.with_name(path.name + "-wal").exists()
    with read_only(public), Ledger.reading(path) as reader:
        assert everything(reader) == samples(5)
        assert reader.verify() == ""


def test_a_ledger_being_written_reads_from_a_read_only_directory(public: Path) -> None:
    path = public / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.append(samples(5))
        with read_only(public), Ledger.reading(path) as reader:
            assert everything(reader) == samples(5)


def test_records_that_cannot_be_reached_are_refused_rather_than_left_out(public: Path) -> None:
    path = public / "ledger.sqlite"
    copy = public / "copy"
    copy.mkdir()
    with Ledger(path) as ledger:
        ledger.append(samples(5))
        for name in ("ledger.sqlite", "ledger.sqlite-wal"):  # as a crash leaves them, without the -shm
            shutil.copy(public / name, copy / name)
    with read_only(copy), pytest.raises(LedgerUnreadable, match=r"ledger\.sqlite-wal.*copy both files"):
        Ledger.reading(copy / "ledger.sqlite")
    with Ledger.reading(copy / "ledger.sqlite") as reader:  # where it may write, nothing is missing
        assert everything(reader) == samples(5)


def test_a_file_that_is_no_ledger_is_refused_in_words(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerUnreadable, match="not a database"):
        Ledger.reading(path)
    with pytest.raises(LedgerUnwritable, match="not a database"):
        Ledger(path)


def test_another_program_s_database_is_refused_and_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA user_version=7")
    with pytest.raises(LedgerUnwritable, match="format is number 7"):
        Ledger(path)
    with pytest.raises(LedgerUnreadable, match="format is number 7"):
        Ledger.reading(path)


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnwritable, match="No such file or directory"):
        Ledger(tmp_path / "nowhere" / "ledger.sqlite")


# ---- a full disk ------------------------------------------------------------------------------


def test_a_full_ledger_says_so_writes_nothing_and_goes_on_when_there_is_space(ledger: Ledger) -> None:
    ledger.append(samples(10))
    before = ledger.head()
    (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
    ledger._db.execute(f"PRAGMA max_page_count={pages + 2}")  # SQLite's own SQLITE_FULL
    with pytest.raises(LedgerUnwritable, match="full"):
        ledger.append(samples(500, 10))
    assert ledger.head() == before
    assert ledger.verify() == ""
    ledger.append([sample(10)])  # a small record still fits
    ledger._db.execute("PRAGMA max_page_count=1073741823")
    ledger.append(samples(500, 10))
    assert everything(ledger) == samples(510)
    assert ledger.verify() == ""


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """The kernel lets no file of this process grow beyond `size` bytes: a write fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refusal(ledger: Ledger, events: list[Event]) -> str:
    """Why the ledger did not take the events; empty when it did."""
    try:
        ledger.append(events)
    except LedgerUnwritable as error:
        return str(error)
    return ""


@pytest.mark.parametrize("durable", [True, False])
def test_a_write_that_the_kernel_refuses_leaves_no_half_batch(path: Path, durable: bool) -> None:
    with Ledger(path, durable=durable) as ledger:
        ledger.append(samples(10))
        log = path.with_name(path.name + "-wal")
        done = 10
        refused = 0
        for room in range(0, 60_000, 7_000):  # the limit falls inside the batch at another page each time
            before = ledger.head()
            with files_limited_to(log.stat().st_size + room):
                said = refusal(ledger, samples(200, done))
            if said:
                refused += 1
                assert "disk" in said
                assert ledger.head() == before
            else:
                done += 200
        assert refused > 1
        assert ledger.verify() == ""
        ledger.append(samples(200, done))
        assert everything(ledger) == samples(done + 200)
        assert ledger.verify() == ""


# ---- tampering --------------------------------------------------------------------------------


TAMPERING = {
    "changed": (
        "UPDATE records SET body = replace(CAST(body AS TEXT), '1005.0', '905.0') WHERE seq = 6",
        r"record 6 \(FeedSample \w+\) does not fit the chain",
    ),
    "changed, with its hash": (
        "UPDATE records SET body = x'00', hash = zeroblob(32) WHERE seq = 6",
        r"record 6 \(FeedSample \w+\) does not fit the chain",
    ),
    "removed": ("DELETE FROM records WHERE seq = 6", "record 6 is missing: the next one there is number 7"),
    "removed, and renumbered": (
        "DELETE FROM records WHERE seq = 6; UPDATE records SET seq = seq - 1 WHERE seq > 6",
        r"record 6 \(FeedSample \w+\) does not fit the chain",
    ),
    "removed from the beginning": ("DELETE FROM records WHERE seq = 1", "record 1 is missing"),
    "slipped in": (
        "INSERT INTO records SELECT 99, 'made-up', type, at, subject, body, hash FROM records WHERE seq = 3",
        "record 13 is missing: the next one there is number 99",
    ),
    "slipped in at the end": (
        "INSERT INTO records SELECT 13, 'made-up', type, at, subject, body, hash FROM records WHERE seq = 3",
        r"record 13 \(FeedSample made-up\) does not fit the chain",
    ),
    "swapped": (
        """UPDATE records SET seq = 0 WHERE seq = 4; UPDATE records SET seq = 4 WHERE seq = 5;
        UPDATE records SET seq = 5 WHERE seq = 0""",
        r"record 4 \(FeedSample \w+\) does not fit the chain",
    ),
    "other subject": (
        "UPDATE records SET subject = 'ams1/row-a' WHERE seq = 11",
        r"record 11 \(PowerRollup \w+\): its index columns were changed",
    ),
    "other time": (
        "UPDATE records SET at = at + 1 WHERE seq = 11",
        "record 11 .* index columns were changed",
    ),
    "other type": (
        "UPDATE records SET type = 'Tick' WHERE seq = 11",
        "record 11 .* index columns were changed",
    ),
    "other id": ("UPDATE records SET id = 'gone' WHERE seq = 11", "record 11 .* index columns were changed"),
}


@pytest.mark.parametrize(("deed", "found"), TAMPERING.values(), ids=TAMPERING)
def test_tampering_is_found_and_named(path: Path, deed: str, found: str) -> None:
    readings = samples(10)
    rollup = PowerRollup(
        at=20, source="rollup", subject=ROW, cause=tuple(s.id for s in readings), power_w=1.0, upper_w=2.0,
        budget_w=3.0, coverage_ratio=1.0, known_at=1, basis="sum",
    )  # fmt: skip
    with Ledger(path, durable=False) as ledger:
        ledger.append([*readings, rollup, lock(20, f"{ROW}/r1/h1", (rollup.id,))])
        assert ledger.verify() == ""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as knife:
        knife.executescript(f"DROP TRIGGER no_update; DROP TRIGGER no_delete; {deed}")
        assert knife.total_changes > 0
    with Ledger.reading(path) as ledger:
        said = ledger.verify()
    assert pytest.raises(AssertionError, match=found).matches(AssertionError(said)), said


@pytest.mark.parametrize("deed", ["UPDATE records SET at = 0", "DELETE FROM records"])
def test_a_slip_of_the_hand_changes_nothing(ledger: Ledger, path: Path, deed: str) -> None:
    ledger.append(samples(3))
    with (
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as hand,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        hand.execute(deed)
    assert ledger.verify() == ""


def test_records_cut_off_the_end_are_missed_by_who_kept_the_head(path: Path) -> None:
    with Ledger(path, durable=False) as ledger:
        ledger.append(samples(5))
        early = ledger.head()[1]
        ledger.append(samples(5, 5))
        late = ledger.head()[1]
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as knife:
        knife.executescript("DROP TRIGGER no_delete; DELETE FROM records WHERE seq > 7")
    with Ledger.reading(path) as ledger:
        assert ledger.verify() == ""  # a shorter chain is a chain
        assert ledger.contains_hash(early)
        assert not ledger.contains_hash(late)
        assert not ledger.contains_hash("no hash")


def test_a_file_damaged_on_disk_is_found_by_verify_and_told_to_who_asks(path: Path) -> None:
    with Ledger(path, durable=False) as ledger:
        ledger.append(samples(2000))
    with path.open("r+b") as file:
        for page in range(2, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 100)
    with Ledger.reading(path) as ledger:
        assert ledger.verify().startswith("the file is damaged: ")
        with pytest.raises(LedgerUnreadable, match="malformed"):
            everything(ledger)


# ---- questions --------------------------------------------------------------------------------


def test_an_id_is_found_by_its_beginning_or_told_apart(ledger: Ledger) -> None:
    names = ["abcd", "abce", "abcf", "abcg", "abxx", "ab"]
    ledger.append([sample(n, id=name) for n, name in enumerate(names)])
    assert ledger.find("abx").id == "abxx"
    assert ledger.find("ab").id == "ab"  # an id in full is meant, whatever else begins so
    with pytest.raises(
        AmbiguousId, match=r"'abc' is ambiguous: abcd \(FeedSample .*\), abce .*, abcf .* and more"
    ):
        ledger.find("abc")
    with pytest.raises(UnknownId, match="begins with 'zz'"):
        ledger.find("zz")
    assert ledger.get("abx") is None
    assert ledger.holds("abxx")
    assert not ledger.holds("abx")


def test_messages_come_by_event_time_from_either_end_and_from_between(ledger: Ledger) -> None:
    late = [sample(30), sample(10), sample(20)]
    locks = [lock(at, "h1") for at in (15, 10, 25)]
    ledger.append([*late, *locks])
    kinds: list[type[Event]] = [FeedSample, LockClocks]
    forwards = list(ledger.of_type(kinds))
    assert [event.at for event in forwards] == [10, 10, 15, 20, 25, 30]
    assert [type(event) for event in forwards[:2]] == [FeedSample, LockClocks]  # a tie: as they were written
    assert list(ledger.of_type(kinds, newest_first=True)) == forwards[::-1]
    assert [event.at for event in ledger.of_type(kinds, since=15, until=25)] == [15, 20, 25]
    assert [event.at for event in ledger.of_type(kinds, subject="h1")] == [10, 15, 25]
    assert list(ledger.of_type([Emergency, DeadLetter])) == []


def test_subjects_below_a_path_are_those_below_it_and_no_namesakes(ledger: Ledger) -> None:
    paths = ["a", "a/b", "a/b/c", "a/b/d", "a/b-x", "a/b.y", "a/b0", "a/bc/d", "a/c", "b"]
    ledger.append([*(sample(n, path) for n, path in enumerate(paths * 3)), lock(1, "a/b/e")])
    assert ledger.subjects([FeedSample], "a/b") == ["a/b", "a/b/c", "a/b/d"]
    assert ledger.subjects([FeedSample, LockClocks], "a/b") == ["a/b", "a/b/c", "a/b/d", "a/b/e"]
    assert ledger.subjects([FeedSample], "a") == sorted(path for path in paths if path.startswith("a"))
    assert ledger.subjects([FeedSample], "nothing") == []


def test_questions_go_by_an_index_and_never_through_all_records(ledger: Ledger) -> None:
    ledger.append([lock(at, f"{ROW}/r1/h{at % 9}") for at in range(50)])
    asked: list[str] = []
    ledger._db.set_trace_callback(asked.append)
    list(ledger.of_type([LockClocks, FeedSample], subject=f"{ROW}/r1/h1", until=40, newest_first=True))
    list(ledger.of_type([LockClocks], since=3))
    ledger.subjects([LockClocks], ROW)
    ledger.holds("x")
    with pytest.raises(UnknownId):
        ledger.find("z")
    ledger._bodies(["1", "2"])
    ledger._db.set_trace_callback(None)
    assert len(asked) == 7
    for query in asked:
        plan = [detail for *_, detail in ledger._db.execute("EXPLAIN QUERY PLAN " + query)]
        lazy = [step for step in plan if step.startswith("SEARCH records USING")]
        sorted_or_scanned = [
            step for step in plan if step.startswith("SCAN records") or "FOR ORDER BY" in step
        ]
        assert lazy, (query, plan)
        assert not sorted_or_scanned, (query, plan)


def test_tidying_up_keeps_the_log_short_and_everything_in_its_place(tmp_path: Path) -> None:
    logs = {}
    for name in ("tidy", "untidy"):
        with Ledger(tmp_path / name, durable=False) as ledger:
            for start in range(0, 12_000, 400):
                ledger.append(samples(400, start))
                if name == "tidy":
                    ledger.tidy()
            logs[name] = (tmp_path / f"{name}-wal").stat().st_size
            assert ledger.head()[0] == 12_000
            assert ledger.verify() == ""
    assert logs["tidy"] < logs["untidy"] / 2


# ---- a ledger that is taken from another's records -------------------------------------------

SOME = samples(20)


def test_records_that_were_taken_give_the_same_chain_however_they_are_cut(tmp_path: Path) -> None:
    bodies = [codec.encode(event) for event in (*SOME, SOME[0])]  # one comes twice
    heads = set()
    for cut in (1, 2, 50):
        with Ledger(tmp_path / f"index-{cut}.sqlite", durable=False) as index:
            for start in range(0, len(bodies), cut):
                some = bodies[start : start + cut]
                index.take([(codec.decode(body), body) for body in some], upto=start + len(some))
            assert index.taken() == len(bodies)
            assert index.verify() == ""
            heads.add(index.head())
    with Ledger(tmp_path / "own.sqlite", durable=False) as own:
        own.append(SOME)
        assert own.taken() == 0
        assert heads == {own.head()}


def test_a_record_of_a_newer_writer_keeps_its_bytes(tmp_path: Path) -> None:
    body = codec.encode(SOME[0])[:-1] + b',"from_tomorrow":1}'
    with Ledger(tmp_path / "index.sqlite", durable=False) as index:
        index.take([(codec.decode(body), body)], upto=1)
        assert index.verify() == ""
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        assert db.execute("SELECT body FROM records").fetchone() == (body,)
    db.close()


def test_what_was_taken_and_how_far_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    body = codec.encode(SOME[0])
    with Ledger(tmp_path / "index.sqlite", durable=False) as index:
        index.take([], upto=7)
        with pytest.raises(OverflowError):  # a number that SQLite cannot hold
            index.take([(SOME[0], body)], upto=2**64)
        assert index.taken() == 7
        assert index.head()[0] == 0
    with Ledger.reading(tmp_path / "index.sqlite") as book:
        assert book.taken() == 7
