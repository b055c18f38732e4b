"""The envelope: what every message on the bus says of itself, and how its id is derived.

Ids are derived from what a message *is* (type, source, subject, time, cause), never drawn at
random, so that a replay yields the same ids and a repeated message is known by its id.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from schemas.instants import Instant

_ID_BYTES = 10  # 80 bits: a collision among 10^9 messages has a chance of about 10^-6
_BLANK = blake2b(digest_size=_ID_BYTES)


def derive_id(kind: str, source: str, subject: str, at: Instant, cause: tuple[str, ...] = ()) -> str:
    """The id of a message: 20 lower-case hexadecimal characters, the same wherever it is worked out."""
    digest = _BLANK.copy()  # which costs less than a new one
    digest.update("\x1f".join((kind, source, subject, str(at), *cause)).encode())
    return digest.hexdigest()


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag_field="type"):
    """Anything said on the bus. Out of the garbage collector's sight: a frozen message holds no cycle,
    and a fleet's messages would keep it busy.

    `at` is event time. `source` is who says it, such as ``collector/gpu-nvml/ams1/row-b/r07/h03``.
    `subject` is the topology path it speaks of. `cause` holds the ids of the messages that led to it.
    `id` is derived when left empty; a reader takes the id it was sent.
    """

    at: Instant
    source: str
    subject: str
    cause: tuple[str, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            known_by = self.cause + self.told_apart_by
            derived = derive_id(type(self).__name__, self.source, self.subject, self.at, known_by)
            msgspec.structs.force_setattr(self, "id", derived)

    @property
    def told_apart_by(self) -> tuple[str, ...]:
        """What else the id rests on, for a type of which one source may say several of one subject at
        one time, for one cause."""
        return ()


class Tick(Event, frozen=True, kw_only=True, tag=True):
    """The control loop's beat for a row, itself an event: folds act on it, so that the same events
    and beats give the same results live, in replay and however they were cut into batches.

    On a bus it says besides what the beat takes in, so that whoever reads the row's partition can do
    the same beat again: `upto` is, by topic, the offset that the beat's inputs end before; `besides`
    are the messages (JSON) that came from no topic: the host's own alarms, what a restart remembers.
    `epoch` is that of the controller whose beat it is; 0 where the host has one epoch for all. `anew`:
    the controller remembered nothing of the row, which begins here as a new one.
    """

    epoch: int = 0
    anew: bool = False
    upto: dict[str, int] = {}
    besides: tuple[str, ...] = ()

    @property
    def told_apart_by(self) -> tuple[str, ...]:
        return (str(self.epoch),) if self.epoch else ()


class DeadLetter(Event, frozen=True, kw_only=True, tag=True):
    """A message that could not be read, kept whole: `payload` is its bytes (base64 on the wire),
    `topic` where it arrived, `reason` what is wrong with it in words."""

    topic: str
    payload: bytes
    reason: str

    @property
    def told_apart_by(self) -> tuple[str, ...]:
        return (blake2b(self.payload, digest_size=_ID_BYTES).hexdigest(),)
