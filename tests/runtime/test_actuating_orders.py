"""Which messages on a row's partitions are for the hosts kept here, and in which order they count."""

from __future__ import annotations

import itertools
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.agents import T0, brake, lock
from support.boards import make_host

from runtime.bus.reader import Received
from runtime.orders import COMMANDS, HEARD_MS, OPERATORS, Orders, Release, Taken
from schemas import codec
from schemas.commands import Command
from schemas.envelope import DeadLetter, Event, Tick
from schemas.instants import SECOND, Instant
from schemas.operators import Pin, ReleaseAll, Resume
from schemas.outcomes import Refused

HOST = make_host()
OTHER = msgspec.structs.replace(HOST, path="ams1/row-b/r01/h01", rack="ams1/row-b/r01", row="ams1/row-b")
OFFSETS = itertools.count()


def on_bus(
    event: Event | bytes, key: str = HOST.row, topic: str = "", came: Instant | None = None
) -> Received:
    """A message as it lies on Kafka, where it came 5 ms after it was said unless `came` says when."""
    payload = event if isinstance(event, bytes) else codec.encode(event)
    where = topic or (OPERATORS if isinstance(event, Pin | ReleaseAll | Resume) else COMMANDS)
    if came is None:
        came = 5 + (T0 if isinstance(event, bytes) else event.at)
    return Received(where, 3, next(OFFSETS), key.encode(), payload, came)


def take(orders: Orders, *messages: Received, now: Instant = T0) -> Taken:
    return orders.take(messages, now)


def release(at: Instant, subject: str = "ams1") -> ReleaseAll:
    return ReleaseAll(at=at, source="operator", subject=subject, by="ada", reason="maintenance")


def resume(at: Instant, subject: str = "ams1") -> Resume:
    return Resume(at=at, source="operator", subject=subject, by="ada")


def test_what_is_for_a_host_here_is_taken_and_what_is_for_others_passes_by() -> None:
    orders = Orders([HOST])
    mine, others = lock(1275, T0), lock(1275, T0, subject="ams1/row-a/r01/h02")
    orders_taken, said = take(
        orders, on_bus(mine), on_bus(others), on_bus(lock(900, T0, subject="x"), "ams1")
    )
    assert orders_taken == [mine]
    assert said == []
    assert orders.passed == 2


def test_a_command_under_the_key_of_another_row_is_kept_as_a_dead_letter() -> None:
    orders = Orders([HOST, OTHER])
    _, (letter,) = take(orders, on_bus(lock(1275, T0), key=OTHER.row))
    assert isinstance(letter, DeadLetter)
    assert letter.reason == f"a command for {HOST.path} does not belong under the key '{OTHER.row}'"
    assert orders.dead == {COMMANDS: 1}


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "truncated"),
        (b"\xff\x00{", "invalid"),
        (b'{"type":"LockClocks"}', "missing required field"),
        (codec.encode(lock(1275, T0)).replace(b":1275", b':"1275"'), "Expected `int`"),
        (
            codec.encode(Tick(at=T0, source="x", subject=HOST.row)),
            "a Tick does not belong on windrow.commands",
        ),
        (codec.encode(release(T0)), "a ReleaseAll does not belong on windrow.commands"),
    ],
)
def test_what_is_no_command_is_kept_whole_with_the_reason(payload: bytes, words: str) -> None:
    taken, (letter,) = take(Orders([HOST]), on_bus(payload))
    assert isinstance(letter, DeadLetter)
    assert taken == []
    assert words.lower() in letter.reason.lower()
    assert (letter.payload, letter.topic, letter.subject) == (payload, COMMANDS, HOST.row)
    assert letter.at == T0 + 5, "the same wherever and whenever it is read"


def test_a_key_that_is_no_text_harms_nobody() -> None:
    message = on_bus(lock(1275, T0))._replace(key=b"\xff\xfe")
    _, (letter,) = take(Orders([HOST]), message)
    assert isinstance(letter, DeadLetter)


def test_a_release_counts_after_what_was_commanded_before_it_wherever_it_is_read() -> None:
    before, word = lock(1275, T0), release(T0 + SECOND)
    taken, _ = take(Orders([HOST]), on_bus(word), on_bus(before))
    assert taken == [before, Release(frozenset([HOST.path]), word)]


def test_what_a_controller_commands_before_it_can_have_heard_of_a_release_is_refused_but_for_a_brake() -> (
    None
):
    orders, word = Orders([HOST]), release(T0)
    take(orders, on_bus(word))
    unheard, pulled = lock(1275, T0 + HEARD_MS - 1), brake(T0 + SECOND)
    taken, (refused,) = take(orders, on_bus(unheard), on_bus(pulled))
    assert taken == [pulled]
    assert isinstance(refused, Refused)
    assert (refused.command, refused.epoch, refused.subject) == (unheard.id, 1, HOST.path)
    assert refused.detail == (
        "released by ada at 2026-03-01T12:00:00.000Z (maintenance), which its controller had not heard"
    )
    heard = lock(1275, T0 + HEARD_MS)
    assert take(orders, on_bus(heard)).orders == [heard]


def test_a_resume_ends_a_release() -> None:
    orders, command = Orders([HOST]), lock(1275, T0 + 2)
    take(orders, on_bus(release(T0)), on_bus(resume(T0 + 1)))
    assert take(orders, on_bus(command)).orders == [command]


def test_a_release_that_is_read_late_does_not_undo_what_was_commanded_since() -> None:
    orders = Orders([HOST])
    take(orders, on_bus(lock(1275, T0 + HEARD_MS)))
    assert take(orders, on_bus(release(T0))).orders == []


@pytest.mark.parametrize("ahead", [-60 * SECOND, 60 * SECOND])
def test_a_release_counts_by_the_brokers_clock_whoever_s_own_is_wrong(ahead: int) -> None:
    """A controller a minute off does not undo a release, and a person a minute off does not outlast it."""
    orders, word = Orders([HOST]), release(T0 + 4 * SECOND)
    take(orders, on_bus(lock(1275, T0 + ahead), came=T0))
    assert take(orders, on_bus(word, came=T0 + 4 * SECOND)).orders == [Release(frozenset([HOST.path]), word)]
    unheard = take(orders, on_bus(lock(1290, T0 + 5 * SECOND + ahead), came=T0 + 5 * SECOND))
    assert [type(said) for said in unheard.said] == [Refused]
    heard = lock(1305, T0 + 20 * SECOND + ahead)
    assert take(orders, on_bus(heard, came=T0 + 20 * SECOND)).orders == [heard]


def test_a_release_that_is_read_again_after_a_restart_does_not_undo_what_the_host_obeys() -> None:
    orders, word, pulled = Orders([HOST]), release(T0), brake(T0 + SECOND)
    orders.obeyed(pulled, T0 + 60 * SECOND)
    assert take(orders, on_bus(word), on_bus(resume(T0 + 1))).orders == []
    assert take(orders, on_bus(pulled)).orders == [pulled]
    later = release(T0 + 2 * SECOND)
    assert take(orders, on_bus(later)).orders == [Release(frozenset([HOST.path]), later)]


def test_a_word_on_a_site_frees_under_each_row_s_key_the_hosts_of_that_row() -> None:
    orders, word = Orders([HOST, OTHER]), release(T0)
    taken, _ = take(orders, on_bus(word, HOST.row), on_bus(word, OTHER.row), on_bus(word, "ams1/row-c"))
    assert taken == [Release(frozenset([HOST.path]), word), Release(frozenset([OTHER.path]), word)]
    assert take(orders, on_bus(release(T0 + 1, OTHER.rack), HOST.row)).orders == []


def test_pins_are_the_controller_s_business() -> None:
    pin = Pin(
        at=T0,
        source="operator",
        subject=HOST.path,
        max_mhz=900,
        by="ada",
        reason="hot",
        expires_at=T0 + SECOND,
    )
    assert take(Orders([HOST]), on_bus(pin)) == ([], [])


Kind = Literal["lock", "brake", "release", "resume", "junk", "other"]

kinds: st.SearchStrategy[Kind] = st.sampled_from(["lock", "brake", "release", "resume", "junk", "other"])
said = st.lists(st.tuples(kinds, st.integers(0, 30)), unique_by=lambda pair: pair[1], max_size=12)


def message(kind: Kind, second: int) -> Received:
    """One of a kind, of that second."""
    at = T0 + second * SECOND
    events: dict[Kind, Event | bytes] = {
        "lock": lock(900 + 15 * second, at),
        "brake": brake(at),
        "release": release(at),
        "resume": resume(at),
        "junk": b"junk %d" % second,
        "other": lock(900, at, subject="ams1/row-a/r09/h09"),
    }
    return on_bus(events[kind])


@given(said.flatmap(lambda pairs: st.tuples(st.just(pairs), st.permutations(pairs))))
def test_in_whatever_order_a_batch_is_read_the_same_comes_of_it(
    both: tuple[list[tuple[Kind, int]], list[tuple[Kind, int]]],
) -> None:
    one, other = ([message(*pair) for pair in pairs] for pairs in both)
    first, second = Orders([HOST]).take(one, T0), Orders([HOST]).take(other, T0)
    assert first.orders == second.orders
    assert {event.id for event in first.said} == {event.id for event in second.said}
    instants = [order.at if isinstance(order, Command) else order.word.at for order in first.orders]
    assert instants == sorted(instants)
