"""Orders: what of the messages on the rows' partitions is for the hosts kept here, in the order it was said.

Pure: bytes in, what is to be done out. A message is for a host here when it lies under the key of the host's
row and speaks of the host. What is for others passes by; what cannot be read is kept whole in a dead letter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from runtime.bus.reader import Received
from schemas import codec
from schemas.commands import Brake, Command
from schemas.envelope import DeadLetter, Event
from schemas.instants import SECOND, Instant, Span, to_text
from schemas.operators import Pin, ReleaseAll, Resume
from schemas.outcomes import Refused
from schemas.topics import BY_NAME, BY_TYPE
from schemas.topology import Host, covers

COMMANDS = BY_TYPE[Brake].name
OPERATORS = BY_TYPE[Pin].name

HEARD_MS: Span = 10 * SECOND
"""After so long a controller that lives has heard of a release (our choice): what it commanded before is not
for a host that a person has taken back."""

_SOURCE = "runtime/actuating"


class Release(NamedTuple):
    """Give these hosts back, because a person said so."""

    hosts: frozenset[str]
    word: ReleaseAll


Order: TypeAlias = Command | Release


class Taken(NamedTuple):
    """What came of some messages: what is to be done, in order, and what is to be said of the rest."""

    orders: list[Order]
    said: list[Event]


class Orders:
    """What is for `hosts`. `passed` counts what was for others, `dead` what could not be read."""

    def __init__(self, hosts: Iterable[Host]) -> None:
        self.passed = 0
        self.dead: Counter[str] = Counter()
        self._rows = {host.path: host.row for host in hosts}
        self._commanded: dict[str, Instant] = {}  # when the last command for a host came to Kafka
        self._released: dict[str, tuple[Instant, ReleaseAll]] = {}  # and when its release did

    def obeyed(self, command: Command, now: Instant) -> None:
        """What a host obeys since before this process. A release before it was done then: it is read again
        after a start, and the command, which its agent knows by its id, would not be done again behind it."""
        self._commanded[command.subject] = min(command.lease.issued_at, now) + HEARD_MS

    def take(self, received: Sequence[Received], now: Instant) -> Taken:
        """Read messages that came together. Topics have no order among them: what a person said and what was
        commanded count in the order in which they came to Kafka, by the brokers' clock. A person's and a
        controller's may be minutes apart, and no clock that runs ahead may undo a release."""
        taken = Taken([], [])
        events = [(message, self._read(message)) for message in received]
        for message, event in sorted(events, key=lambda pair: (pair[0].timestamp_ms, pair[1].at)):
            if isinstance(event, DeadLetter):
                self.dead[message.topic] += 1
                taken.said.append(event)
            elif isinstance(event, Command):
                self._command(event, message.timestamp_ms, now, taken)
            elif isinstance(event, ReleaseAll):
                self._release(event, message.timestamp_ms, message.key, taken)
            elif isinstance(event, Resume):
                for host in self._inside(event, message.key):
                    self._released.pop(host, None)
        return taken

    def _read(self, message: Received) -> Event:
        key = message.key.decode(errors="replace")
        event = codec.decode_or_bury(
            message.value,
            topic=message.topic,
            source=_SOURCE,
            subject=key or message.topic,
            at=message.timestamp_ms,
        )
        if isinstance(event, BY_NAME[message.topic].types):
            if not isinstance(event, Command) or self._rows.get(event.subject, key) == key:
                return event
            trouble = f"a command for {event.subject} does not belong under the key {key!r}"
        elif isinstance(event, DeadLetter):
            return event
        else:
            trouble = f"a {type(event).__name__} does not belong on {message.topic}"
        return DeadLetter(
            at=message.timestamp_ms,
            source=_SOURCE,
            subject=key or message.topic,
            topic=message.topic,
            payload=message.value,
            reason=trouble,
        )

    def _command(self, command: Command, came: Instant, now: Instant, taken: Taken) -> None:
        host = command.subject
        if host not in self._rows:
            self.passed += 1
            return
        if host in self._released and not isinstance(command, Brake):
            released_at, word = self._released[host]
            if came < released_at + HEARD_MS:
                taken.said.append(_unheard(command, word, now))
                return
        self._commanded[host] = max(came, self._commanded.get(host, 0))
        taken.orders.append(command)

    def _release(self, word: ReleaseAll, came: Instant, key: bytes, taken: Taken) -> None:
        hosts = frozenset(
            host for host in self._inside(word, key) if came + HEARD_MS > self._commanded.get(host, 0)
        )
        self._released.update(dict.fromkeys(hosts, (came, word)))
        if hosts:
            taken.orders.append(Release(hosts, word))

    def _inside(self, word: Event, key: bytes) -> list[str]:
        """The hosts here that a word under a row's key is about."""
        row = key.decode(errors="replace")
        return [path for path, home in self._rows.items() if home == row and covers(word.subject, path)]


def _unheard(command: Command, word: ReleaseAll, now: Instant) -> Refused:
    released = f"released by {word.by} at {to_text(word.at)} ({word.reason})"
    return Refused(
        at=now,
        source=f"actuator/{command.subject}",
        subject=command.subject,
        cause=(command.id,),
        command=command.id,
        epoch=command.lease.epoch,
        detail=f"{released}, which its controller had not heard",
    )
