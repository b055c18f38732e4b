"""Bytes ↔ messages. JSON on the wire, so that any Kafka console shows what is being said.

A reader takes messages with fields it does not know (a newer writer) and messages without optional
fields it knows (an older writer). What it cannot take becomes a `DeadLetter` that keeps the bytes.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

import msgspec

from schemas.commands import Command
from schemas.envelope import DeadLetter, Event, Tick
from schemas.instants import HOUR, Instant
from schemas.operators import LONGEST_PIN, Pin
from schemas.outcomes import Outcome, Refused
from schemas.topics import TYPES

_UNION: Any = reduce(or_, TYPES)
_END: Instant = 253_402_300_800_000  # the year 10000: what no calendar here can tell
_COUNTED = 1 << 53  # what every reader of JSON holds exactly
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(_UNION)


class Malformed(ValueError):
    """The bytes are no message of ours; the text says where and why."""


def encode(event: Event) -> bytes:
    """One message as one line of JSON without the newline."""
    return _encoder.encode(event)


def decode(payload: bytes) -> Event:
    """The message in `payload`.

    Raises Malformed when it is no JSON, of no known type, lacks or mistypes a field, speaks of a time
    that no file, database or sentence takes, pins for longer than a pin may hold, or bears an epoch or an
    offset that cannot be counted on from.
    """
    try:
        event = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(str(error)) from error
    _hold_to_calendar("at", event.at)
    if isinstance(event, Command):
        _hold_to_calendar("issued_at", event.lease.issued_at)
        _hold_to_calendar("expires_at", event.lease.expires_at)
        _hold_to_count("epoch", event.lease.epoch)
    elif isinstance(event, Pin):
        _hold_to_calendar("expires_at", event.expires_at)
        if event.expires_at - event.at > LONGEST_PIN:
            raise Malformed(f"a pin holds for at most {LONGEST_PIN // (24 * HOUR)} days")
    elif isinstance(event, Tick):
        _hold_to_count("epoch", event.epoch)
        for topic, offset in event.upto.items():
            _hold_to_count(f"upto.{topic}", offset)
    elif isinstance(event, Outcome):
        _hold_to_count("epoch", event.epoch)
        if isinstance(event, Refused):
            _hold_to_count("fenced_by", event.fenced_by)
    return event


def decode_or_bury(payload: bytes, *, topic: str, source: str, subject: str, at: Instant) -> Event:
    """The message in `payload`, or the dead letter that keeps it whole and says why."""
    try:
        return decode(payload)
    except Malformed as error:
        return DeadLetter(
            at=at, source=source, subject=subject, topic=topic, payload=payload, reason=str(error)
        )


def _hold_to_calendar(name: str, at: Instant) -> None:
    if not 0 <= at < _END:
        raise Malformed(f"`{name}` must be in milliseconds from 1970 to the year 9999, and is {at}")


def _hold_to_count(name: str, count: int) -> None:
    if not 0 <= count < _COUNTED:
        raise Malformed(f"`{name}` must be from 0 to {_COUNTED - 1}, and is {count}")
