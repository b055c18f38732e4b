"""Under which key a message goes on the bus, and on which partition that key lies."""

from __future__ import annotations

from runtime.control_loop import rows_by_subject
from schemas.envelope import DeadLetter, Event
from schemas.topics import topic_of
from schemas.topology import Site

_SEED = 0x9747B28C
_M = 0x5BD1E995
_R = 24
_U32 = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """MurmurHash2 with the seed of Kafka's Java client (org.apache.kafka.common.utils.Utils), 32 bits."""
    whole = len(data) & ~3
    hashed = _SEED ^ len(data)
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _U32
        k = (k ^ k >> _R) * _M & _U32
        hashed = (hashed * _M & _U32) ^ k
    if data[whole:]:
        hashed = (hashed ^ int.from_bytes(data[whole:], "little")) * _M & _U32
    hashed = (hashed ^ hashed >> 13) * _M & _U32
    return hashed ^ hashed >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key among so many, as Java's default partitioner chooses it."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


class Keys:
    """The keys of a site's messages: the paths of the rows that they concern.

    A message of several rows (a UPS, a word on the whole site) has several keys and is sent once under
    each, so that every row finds on its own partition all that concerns it. What is of the site, of no
    row, or of nothing that the site knows goes under the site's name.
    """

    def __init__(self, site: Site) -> None:
        self._site = site.name.encode()
        self._rows = rows_by_subject(site)

    def rows(self, event: Event) -> tuple[str, ...]:
        """The rows that a message concerns; none where its subject is on no row of the site."""
        return self._rows.get(event.subject, ())

    def message_keys(self, event: Event) -> tuple[bytes, ...]:
        """The keys to send a message under, one at least."""
        rows = self.rows(event)
        # A dead letter steers no row: one copy is all it takes.
        if not rows or topic_of(event).key == "site" or (isinstance(event, DeadLetter) and len(rows) > 1):
            return (self._site,)
        return tuple(row.encode() for row in rows)
