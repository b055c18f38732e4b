"""Bytes and messages: nothing is lost, nothing is misread, and what cannot be read is kept."""

import math
from typing import Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import message, messages, plain

from schemas.codec import Malformed, decode, decode_or_bury, encode
from schemas.commands import Lease, LockClocks
from schemas.envelope import DeadLetter, Event, Tick
from schemas.operators import LONGEST_PIN, Pin
from schemas.outcomes import Refused
from schemas.samples import FeedSample, GpuFrame
from schemas.topics import TYPES

LEASE = Lease(epoch=7, issued_at=1_000, expires_at=91_000, on_expiry="safe_share")
LOCK = LockClocks(
    at=1_000, source="controller/capping", subject="ams1/row-b/r01/h01", lease=LEASE, max_mhz=1_275
)


def names_of(kind: type[Event]) -> str:
    return kind.__name__


@pytest.mark.parametrize("kind", TYPES, ids=names_of)
@settings(max_examples=25)
@given(draws=st.data())
def test_every_message_comes_back_as_it_was_sent(kind: type[Event], draws: st.DataObject) -> None:
    event = draws.draw(message(kind))
    back = decode(encode(event))
    assert type(back) is kind
    assert back == event


@given(event=messages())
def test_a_message_is_one_line_and_encodes_the_same_twice(event: Event) -> None:
    line = encode(event)
    assert b"\n" not in line
    assert encode(decode(line)) == line


def test_the_wire_says_the_type_and_leaves_out_what_is_not_said() -> None:
    assert plain(LOCK) == {
        "type": "LockClocks",
        "at": 1_000,
        "source": "controller/capping",
        "subject": "ams1/row-b/r01/h01",
        "id": LOCK.id,
        "lease": {"epoch": 7, "issued_at": 1_000, "expires_at": 91_000, "on_expiry": "safe_share"},
        "max_mhz": 1_275,
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reading_that_is_no_number_reaches_the_reader_as_unknown(value: float) -> None:
    sample = FeedSample(at=1, source="collector/feed", subject="ams1/ups-1/pdu-3/feed-a", power_w=value)
    back = decode(encode(sample))
    assert isinstance(back, FeedSample)
    assert back.power_w is None


def test_unknown_stays_apart_from_zero_in_a_frame() -> None:
    frame = GpuFrame(at=1, source="c", subject="h", gpus=("a", "b", "c"), power_w=((0.0, None, 5.0),))
    back = decode(encode(frame))
    assert isinstance(back, GpuFrame)
    assert back.power_w == ((0.0, None, 5.0),)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"not json", "malformed"),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (b"{}", "missing required field `type`"),
        (b'{"type":"Tock","at":1,"source":"s","subject":"x"}', "Invalid value 'Tock' - at `$.type`"),
        (b'{"type":"Tick","source":"s","subject":"x"}', "missing required field `at`"),
        (b'{"type":"Tick","at":"1","source":"s","subject":"x"}', "Expected `int`, got `str` - at `$.at`"),
        (b'{"type":"Tick","at":1.5,"source":"s","subject":"x"}', "Expected `int`, got `float` - at `$.at`"),
        (b'{"type":"Tick","at":1,"source":"s","subject":"\xff"}', "invalid"),
        (b'{"type":"Tick","at":1,"source":"s","subject":"x","cause":"y"}', "at `$.cause`"),
        (b'{"type":"Tick","at":1,"source":"\\ud800","subject":"x"}', "surrogate"),
        (b'{"type":"Tick","at":NaN,"source":"s","subject":"x"}', "malformed"),
        (
            b'{"type":"Tick","at":9300000000000000000000,"source":"s","subject":"x"}',
            "`at` must be in milliseconds",
        ),
        (b'{"type":"Tick","at":-1,"source":"s","subject":"x"}', "`at` must be in milliseconds"),
        (
            encode(LOCK).replace(b"safe_share", b"let_go"),
            "Invalid enum value 'let_go' - at `$.lease.on_expiry`",
        ),
        (encode(LOCK) + b"}", "trailing characters"),
        (b'{"type":"Tick","unknown":' + b"[" * 100_000, "recursion"),
    ],
)
def test_bytes_that_are_no_message_are_refused_with_the_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(Malformed) as refused:
        decode(payload)
    assert reason.lower() in str(refused.value).lower()


@given(payload=st.binary(max_size=64))
def test_whatever_arrives_is_a_message_or_malformed(payload: bytes) -> None:
    with pytest.raises(Malformed):  # chance alone writes no message of ours in 64 bytes
        decode(payload)


@given(event=messages(), cut=st.integers(0, 10_000), other=st.binary(max_size=4))
def test_a_damaged_message_is_read_or_refused_and_nothing_else(event: Event, cut: int, other: bytes) -> None:
    whole = encode(event)
    damaged = whole[: cut % len(whole)] + other
    letter = decode_or_bury(damaged, topic="windrow.gpus", source="host", subject="ams1/row-b", at=5)
    if isinstance(letter, DeadLetter) and letter.source == "host":
        assert letter.payload == damaged
        assert letter.reason
    else:
        assert encode(letter)


@given(payload=st.binary(max_size=64))
def test_a_dead_letter_keeps_the_bytes_whole_and_can_itself_be_sent(payload: bytes) -> None:
    letter = decode_or_bury(payload, topic="windrow.gpus", source="runtime/row", subject="ams1/row-b", at=5)
    assert isinstance(letter, DeadLetter)
    assert (letter.payload, letter.topic, letter.at) == (payload, "windrow.gpus", 5)
    assert letter.reason
    assert decode(encode(letter)) == letter


@pytest.mark.parametrize("beyond", [-1, 253_402_300_800_000, 2**62])
def test_a_time_that_no_calendar_has_is_refused_wherever_it_stands(beyond: int) -> None:
    for name in (b"expires_at", b"issued_at"):
        value = b"91000" if name == b"expires_at" else b"1000"
        payload = encode(LOCK).replace(b'"%b":%b' % (name, value), b'"%b":%d' % (name, beyond))
        with pytest.raises(Malformed, match=f"`{name.decode()}` must be in milliseconds"):
            decode(payload)
    with pytest.raises(Malformed, match="`expires_at` must be in milliseconds"):
        decode(encode(pin(beyond)))


@pytest.mark.parametrize("count", [-1, 1 << 53, 1 << 80])
def test_an_epoch_or_offset_that_nobody_can_count_on_from_is_refused_wherever_it_stands(count: int) -> None:
    lease = Lease(epoch=count, issued_at=0, expires_at=1, on_expiry="hold")
    events: list[Event] = [
        Tick(at=1, source="x", subject="y", epoch=count),
        Tick(at=1, source="x", subject="y", upto={"windrow.gpus": count}),
        LockClocks(at=1, source="x", subject="y", lease=lease, max_mhz=1, because="b"),
        Refused(at=1, source="x", subject="y", command="c", epoch=count),
        Refused(at=1, source="x", subject="y", command="c", epoch=1, fenced_by=count),
    ]
    for event in events:
        with pytest.raises(Malformed, match=f"must be from 0 to 9007199254740991, and is {count}"):
            decode(encode(event))


def test_nobody_pins_for_longer_than_a_pin_may_hold() -> None:
    assert decode(encode(pin(1_000 + LONGEST_PIN))) == pin(1_000 + LONGEST_PIN)
    with pytest.raises(Malformed, match="a pin holds for at most 30 days"):
        decode(encode(pin(1_001 + LONGEST_PIN)))


def pin(until: int) -> Pin:
    return Pin(
        at=1_000,
        source="operator",
        subject="ams1/row-b",
        max_mhz=900,
        by="ada",
        reason="hot",
        expires_at=until,
    )


def test_a_message_that_can_be_read_is_not_buried() -> None:
    assert decode_or_bury(encode(LOCK), topic="windrow.commands", source="x", subject="y", at=9) == LOCK


# What the code of another release may look like: each class stands for `FeedSample` as it was or will be.


class OlderFeed(Event, frozen=True, kw_only=True, tag="FeedSample"):
    power_w: float | None


class NewerFeed(FeedSample, frozen=True, kw_only=True, tag="FeedSample"):
    phases_w: tuple[float | None, ...] = ()
    rating: Literal["continuous", "peak"] = "continuous"


OLDER = msgspec.json.Decoder(OlderFeed | Tick)
NEWER = msgspec.json.Decoder(NewerFeed | Tick)


def test_a_new_reader_takes_what_an_old_writer_recorded() -> None:
    old = OlderFeed(at=1, source="collector/feed", subject="ams1/ups-1/pdu-3/feed-a", power_w=250_000.0)
    back = decode(encode(old))
    assert isinstance(back, FeedSample)
    assert (back.power_w, back.apparent_va, back.breaker_closed) == (250_000.0, None, None)
    assert back.id == old.id


def test_an_old_reader_takes_what_a_new_writer_says_and_passes_over_the_fields_it_does_not_know() -> None:
    new = NewerFeed(at=1, source="c", subject="f", power_w=1.0, phases_w=(0.5, None), rating="peak")
    back = decode(encode(new))
    assert isinstance(back, FeedSample)
    assert (back.power_w, back.id) == (1.0, new.id)
    assert OLDER.decode(encode(new)) == OlderFeed(at=1, source="c", subject="f", power_w=1.0, id=new.id)


def test_a_recording_of_today_reads_the_same_in_a_release_with_more_fields() -> None:
    today = FeedSample(at=1, source="c", subject="f", power_w=None, voltage_v=400.0)
    tomorrow = NEWER.decode(encode(today))
    assert isinstance(tomorrow, NewerFeed)
    assert (tomorrow.power_w, tomorrow.voltage_v, tomorrow.phases_w) == (None, 400.0, ())
    assert tomorrow.id == today.id
