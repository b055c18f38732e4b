"""The inbox: how people speak to a running host. One message is one file, in the state directory.

    inbox/0001772366400000-k3v….json     handed in whole (written aside, then renamed), taken by name
    inbox/rejected/…                     what could not be read, as it came

A file stays until the ledger holds what it said: a host that is killed in between takes it again,
and one that comes back after the ledger took it only clears it away. So each message counts once.
Whoever can write into the directory can command the row: it is made for its owner alone.
"""

from __future__ import annotations

import logging
import os
import pathlib
import stat
from collections.abc import Callable

from runtime import whole_file
from runtime.ledger.store import LedgerUnreadable
from schemas import codec
from schemas.envelope import DeadLetter, Event
from schemas.instants import Instant
from schemas.operators import Pin
from schemas.topics import BY_NAME, BY_TYPE
from schemas.topology import Site

_LOG = logging.getLogger(__name__)

_TOPIC = BY_TYPE[Pin]
_LARGEST = 64 * 1024  # bytes; a message has a few hundred


class InboxError(Exception):
    """A message could not be handed in; the text is the operator's."""


class Inbox:
    """The senders' side: puts messages where the host with this state directory finds them."""

    def __init__(self, state_dir: pathlib.Path) -> None:
        self.path = state_dir / "inbox"

    def put(self, message: Event) -> pathlib.Path:
        """Hand one message in, on disk when this returns. Raises InboxError.

        The file is readable to whom the directory is meant for: its owner, and its group where that
        may write into it.
        """
        name = f"{message.at:016d}-{message.id}.json"
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            content = codec.encode(message)
            whole_file.put(self.path / name, content, mode=0o600, given=self._hand_over)
        except OSError as error:
            raise InboxError(f"{self.path}: the message could not be handed in: {error.strerror}") from error
        return self.path / name

    def _hand_over(self, handle: int) -> None:
        """Make a file readable to whom the directory is meant for."""
        meant_for = self.path.stat()
        os.fchmod(handle, 0o660 if meant_for.st_mode & stat.S_IWGRP else 0o600)
        if os.geteuid() == 0:  # root speaks to a host that runs as somebody else
            os.fchown(handle, meant_for.st_uid, meant_for.st_gid)


class Operators:
    """The host's side: what people have handed in, as a host's loop asks for it.

    `recorded` tells whether the ledger holds a message. A message that names no host of `site`, and
    a file that is no message of an operator, come as a DeadLetter and go to `rejected/`.
    Raises InboxError when everybody may write into the directory.
    """

    def __init__(self, state_dir: pathlib.Path, site: Site, recorded: Callable[[str], bool]) -> None:
        self.path = state_dir / "inbox"
        self._rejected = self.path / "rejected"
        self._site = site
        self._recorded = recorded
        self._taken: dict[str, Event] = {}
        try:
            for directory in (self.path, self._rejected):
                directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise InboxError(f"{self.path}: cannot be made: {error.strerror}") from error
        if self.path.stat().st_mode & stat.S_IWOTH:
            raise InboxError(f"{self.path}: everybody may write here, and so command the row; chmod o-w it")

    def __call__(self, now: Instant) -> list[Event]:
        """What has been handed in since the last call, in the order of the files' names."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.path) if entry.name.endswith(".json"))
        except OSError as error:
            _LOG.error("%s: cannot be read: %s", self.path, error.strerror)
            return []
        said: list[Event] = []
        for name in names:
            event = self._taken.get(name) or self._read(name, now)
            if self._is_recorded(event):
                self._finish(name, event)
            elif name not in self._taken:
                if all(event.id != other.id for other in self._taken.values()):
                    said.append(event)
                self._taken[name] = event
        return said

    def _is_recorded(self, event: Event) -> bool:
        try:
            return self._recorded(event.id)
        except LedgerUnreadable as error:  # then the file stays, and the loop goes on
            _LOG.error("%s", error)
            return False

    def _finish(self, name: str, event: Event) -> None:
        """The ledger holds what the file said: clear it away, a rejected one whole."""
        file = self.path / name
        try:
            if isinstance(event, DeadLetter):
                file.replace(self._rejected / name)
            else:
                file.unlink(missing_ok=True)
        except OSError as error:
            _LOG.error("%s: cannot be cleared away: %s", file, error.strerror)
            return
        self._taken.pop(name, None)

    def _read(self, name: str, now: Instant) -> Event:
        payload, at, trouble = self._content(name, now)
        if not trouble:
            try:
                event = codec.decode(payload)
            except codec.Malformed as error:
                trouble = str(error)
            else:
                trouble = self._misfit(event)
                if not trouble:
                    return event
        _LOG.error("%s: rejected: %s", self.path / name, trouble)
        return DeadLetter(
            at=at,
            source=f"runtime/inbox/{name}",  # two files of one millisecond are two letters
            subject=self._site.name,
            topic=_TOPIC.name,
            payload=payload,
            reason=f"{name}: {trouble}",
        )

    def _misfit(self, event: Event) -> str:
        if not isinstance(event, BY_NAME[_TOPIC.name].types):
            return f"a {type(event).__name__} is nothing that an operator says"
        if not self._site.covered(event.subject):
            return f"site {self._site.name} has no host at or below {event.subject!r}"
        return ""

    def _content(self, name: str, now: Instant) -> tuple[bytes, Instant, str]:
        """The file's bytes, when it was written, and what is wrong with it in words.

        It may be anything, and nothing in it may stop the loop: no pipe is waited for, no link followed.
        """
        try:
            handle = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            return b"", now, f"cannot be read: {error.strerror}"
        try:
            found = os.fstat(handle)
            at = found.st_mtime_ns // 1_000_000  # not `now`: a host that takes it again says the same
            if not stat.S_ISREG(found.st_mode):
                return b"", at, "is no file"
            payload = os.read(handle, _LARGEST)
        except OSError as error:
            return b"", now, f"cannot be read: {error.strerror}"
        finally:
            os.close(handle)
        if found.st_size > _LARGEST:
            return payload, at, f"has {found.st_size} bytes, and a message at most {_LARGEST}"
        return payload, at, ""
