"""What a person says to a running host counts once, whatever dies in between, and nothing else counts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sites import ONE_HOST, site_from

from runtime.inbox import Inbox, InboxError, Operators
from runtime.ledger.store import Ledger, LedgerUnreadable
from schemas import codec
from schemas.envelope import DeadLetter, Event, Tick
from schemas.instants import MINUTE, Instant
from schemas.operators import Pin, ReleaseAll, Resume, Unpin

T0: Instant = 1_772_366_400_000
SITE = site_from(ONE_HOST)
(HOST,) = SITE.hosts


def pin(at: Instant = T0, subject: str = HOST) -> Pin:
    return Pin(
        at=at,
        source="operator",
        subject=subject,
        max_mhz=1200,
        by="ada",
        reason="fan",
        expires_at=at + MINUTE,
    )


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def ledger(state: Path) -> Iterator[Ledger]:
    with Ledger(state / "ledger.sqlite", durable=False) as opened:
        yield opened


def operators(state: Path, ledger: Ledger) -> Operators:
    return Operators(state, SITE, ledger.holds)


def left(state: Path) -> list[str]:
    return sorted(
        entry.name for entry in (state / "inbox").iterdir() if entry.is_file() or entry.is_symlink()
    )


def rejected(state: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in (state / "inbox" / "rejected").iterdir()}


def test_messages_are_taken_in_the_order_they_were_said_and_once(state: Path, ledger: Ledger) -> None:
    words: list[Event] = [
        ReleaseAll(at=T0 + 20, source="operator", subject=HOST, by="ada", reason="fire"),
        pin(T0 + 3),
        Resume(at=T0 + 100, source="operator", subject=SITE.name, by="ada"),
        Unpin(at=T0 + 9, source="operator", subject=HOST, by="ada"),
    ]
    for word in words:
        Inbox(state).put(word)
    take = operators(state, ledger)
    assert take(T0) == sorted(words, key=lambda word: word.at)
    assert take(T0 + 1) == []
    Inbox(state).put(pin(T0 + 200))
    assert take(T0 + 2) == [pin(T0 + 200)]


def test_a_file_goes_only_once_the_ledger_holds_what_it_said(state: Path, ledger: Ledger) -> None:
    Inbox(state).put(pin())
    take = operators(state, ledger)
    (word,) = take(T0)
    for now in range(T0, T0 + 50, 10):
        assert take(now) == []
        assert len(left(state)) == 1
    ledger.append([word])
    assert take(T0 + 60) == []
    assert left(state) == []


def test_a_message_taken_by_a_host_that_was_killed_is_taken_by_the_next(state: Path, ledger: Ledger) -> None:
    Inbox(state).put(pin())
    assert operators(state, ledger)(T0) == [pin()]  # and killed before the beat was recorded
    again = operators(state, ledger)
    assert again(T0 + MINUTE) == [pin()]
    ledger.append([pin()])  # recorded, and killed before the file was cleared away
    third = operators(state, ledger)
    assert third(T0 + 2 * MINUTE) == []
    assert left(state) == []
    assert ledger.head()[0] == 1


def test_a_message_handed_in_twice_counts_once(state: Path, ledger: Ledger) -> None:
    file = Inbox(state).put(pin())
    twin = file.with_name("again.json")
    twin.write_bytes(file.read_bytes())
    take = operators(state, ledger)
    assert take(T0) == [pin()]
    file.with_name("later.json").write_bytes(twin.read_bytes())
    assert take(T0) == []
    ledger.append([pin()])
    assert take(T0) == []
    assert left(state) == []


def test_a_ledger_that_cannot_be_asked_stops_no_message_and_loses_none(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def unreadable(identity: str) -> bool:
        raise LedgerUnreadable("ledger.sqlite: disk I/O error")

    Inbox(state).put(pin())
    take = Operators(state, SITE, unreadable)
    assert take(T0) == [pin()]
    assert take(T0) == []
    assert len(left(state)) == 1
    assert "disk I/O error" in caplog.text


def test_what_a_sender_left_half_written_is_not_read(state: Path, ledger: Ledger) -> None:
    file = Inbox(state).put(pin())
    file.with_name(f".{file.name}.77").write_bytes(file.read_bytes()[:20])
    take = operators(state, ledger)
    assert take(T0) == [pin()]


UNREADABLE = {
    "not-json.json": (b"{pin", "JSON is malformed"),
    "empty.json": (b"", "Input data was truncated"),
    "field-missing.json": (
        codec.encode(pin()).replace(b'"max_mhz"', b'"max_hz"'),
        "missing required field `max_mhz`",
    ),
    "wrong-type.json": (codec.encode(pin()).replace(b"1200", b'"low"'), "Expected `int`, got `str`"),
    "no-operator.json": (
        codec.encode(Tick(at=T0, source="x", subject=HOST)),
        "a Tick is nothing that an operator says",
    ),
    "stranger.json": (codec.encode(pin(subject="ams9/row-z")), "has no host at or below 'ams9/row-z'"),
    "vast.json": (b" " * 70_000, "has 70000 bytes, and a message at most 65536"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_is_no_operators_message_is_kept_whole_and_told(
    state: Path, ledger: Ledger, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    payload, reason = UNREADABLE[name]
    take = operators(state, ledger)
    (state / "inbox" / name).write_bytes(payload)
    Inbox(state).put(pin())
    told = take(T0)
    assert pin() in told  # a bad one holds no good one up
    (letter,) = (event for event in told if isinstance(event, DeadLetter))
    assert letter.payload == payload[:65536]
    assert letter.topic == "windrow.operators"
    assert letter.reason.startswith(f"{name}: ")
    assert reason in letter.reason
    assert reason in caplog.text
    assert name in left(state)  # until it is recorded

    again = operators(state, ledger)(T0 + MINUTE)
    assert letter in again  # the same, after a crash
    ledger.append([letter])
    assert take(T0) == []
    assert rejected(state) == {name: payload}


def test_nothing_in_the_inbox_can_stop_the_loop(state: Path, ledger: Ledger) -> None:
    take = operators(state, ledger)
    inbox = state / "inbox"
    os.mkfifo(inbox / "pipe.json")  # reading it would wait for ever
    (inbox / "folder.json").mkdir()
    (inbox / "link.json").symlink_to("/dev/zero")
    for path in (inbox / "pipe.json", inbox / "folder.json"):
        os.utime(path, (T0 / 1000, T0 / 1000))  # made in one millisecond, and yet two
    told = take(T0)
    reasons = [event.reason for event in told if isinstance(event, DeadLetter)]
    assert sorted(reasons) == [
        "folder.json: is no file",
        "link.json: cannot be read: Too many levels of symbolic links",
        "pipe.json: is no file",
    ]
    ledger.append(told)
    assert take(T0 + 1) == []
    assert sorted(entry.name for entry in (inbox / "rejected").iterdir()) == [
        "folder.json",
        "link.json",
        "pipe.json",
    ]


def test_the_inbox_is_its_owner_s_alone(state: Path) -> None:
    before = os.umask(0)
    try:
        file = Inbox(state).put(pin())
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_group_that_may_write_may_read_what_it_wrote(state: Path) -> None:
    (state / "inbox").mkdir()
    (state / "inbox").chmod(0o2770)
    file = Inbox(state).put(pin())
    assert stat.S_IMODE(file.stat().st_mode) == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand a file over to another user")
def test_what_root_says_can_be_read_by_the_host_s_own_user(state: Path) -> None:
    (state / "inbox").mkdir()
    os.chown(state / "inbox", 65534, 65534)
    file = Inbox(state).put(pin())
    assert (file.stat().st_uid, file.stat().st_gid) == (65534, 65534)


def test_an_inbox_that_everybody_may_write_is_refused(state: Path, ledger: Ledger) -> None:
    (state / "inbox").mkdir()
    (state / "inbox").chmod(0o777)
    with pytest.raises(InboxError, match="everybody may write here"):
        operators(state, ledger)


def test_a_message_that_cannot_be_handed_in_says_why(tmp_path: Path) -> None:
    with pytest.raises(InboxError, match="No such file or directory"):
        Inbox(tmp_path / "nowhere").put(pin())
