"""What a host's agent must still know after it was killed: a small file, written before the device is.

A file is replaced as a whole (write, fsync, rename, fsync of the folder), so that a kill or a power cut
at any point leaves the old one or the new one. One that cannot be understood is moved aside and kept.
"""

from __future__ import annotations

import os
import pathlib
from typing import Literal, TypeAlias

import msgspec

from actuators.base import Found
from actuators.reflex import Hold
from schemas.commands import Brake, GpuCommand, Path
from schemas.instants import Instant

VERSION = 1

RECENT = 64
"""As many command ids are remembered at least, and twice as many at most. An older repeat is known by its
lease, issued before that of the one obeyed."""

Intent: TypeAlias = Literal["obey", "safe_share", "restore", "release"]
"""What the agent wants of its host: ``obey`` the command, or, with no live lease, hold the safe share
or give back what was found (``restore`` when a lease ran out, ``release`` when a person asked)."""


class Kept(msgspec.Struct, kw_only=True):
    """What outlives the agent.

    `found` is what to give back; it is read from the device only while nothing of ours is on it.
    `epoch` is the highest ever seen. `command` is the one obeyed, or the last one whose lease ended.
    `settled` is True once what is wanted was read back. `brake` is a brake still engaged until the lock of a
    newer `command` is read back. `holding` are the paths by which something of ours stands on the
    device, or may be under way to it. `recent` and, from before those, `earlier` are the ids of the last
    commands, so that a repeat is known. `reflex` is what the host's own reflex holds it at, and `tighter`
    the command that came after it and asks for less. `saved_at` is the wall clock at the last save: an
    earlier one proves that the clock was set back.
    """

    host: str
    found: Found
    epoch: int = 0
    intent: Intent = "safe_share"
    settled: bool = False
    command: GpuCommand | None = None
    brake: Brake | None = None
    holding: tuple[Path, ...] = ()
    recent: set[str] = set()
    earlier: set[str] = set()
    reflex: Hold | None = None
    tighter: str = ""
    saved_at: Instant = 0
    version: int = VERSION

    def remember(self, command: str) -> bool:
        """Note the id of a command; whether it was not known yet."""
        if command in self.recent or command in self.earlier:
            return False
        if len(self.recent) >= RECENT:  # in two halves, so that none is looked through or moved
            self.earlier, self.recent = self.recent, set()
        self.recent.add(command)
        return True

    @property
    def wants(self) -> Intent:
        """What is to be brought about now: `intent` or, while a reflex holds the host, a share: its own."""
        if self.reflex is None:
            return self.intent
        obeys = self.intent == "obey" and self.command is not None and self.command.id == self.tighter
        return "obey" if obeys else "safe_share"


class Unreadable(Exception):
    """The file was there and told nothing; it was moved aside. The text is the alarm."""


class StateFile:
    """The state file of one host, at `path`."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def load(self, host: str) -> Kept | None:
        """What was kept for `host`, None when nothing ever was. Raises Unreadable."""
        try:
            payload = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unreadable(f"state file {self.path} cannot be read: {error.strerror}") from error
        try:
            kept = msgspec.json.decode(payload, type=Kept)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._aside(f"is damaged ({error})") from error
        if kept.version != VERSION:
            raise self._aside(f"is of version {kept.version}, and this agent knows version {VERSION}")
        if kept.host != host:
            raise self._aside(f"is that of {kept.host}, not of {host}")
        return kept

    def save(self, kept: Kept) -> None:
        """Replace the file. Raises OSError, and then the old file stands."""
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f".{self.path.name}.new"
        with fresh.open("wb") as file:
            file.write(msgspec.json.encode(kept, order="deterministic"))  # one state, one file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _aside(self, why: str) -> Unreadable:
        """Move the file out of the way under a name not yet taken."""
        number = 1
        while (kept_as := self.path.with_name(f"{self.path.name}.unreadable-{number}")).exists():
            number += 1
        try:
            self.path.rename(kept_as)
        except OSError as error:
            return Unreadable(f"state file {self.path} {why}, and cannot be moved aside: {error.strerror}")
        return Unreadable(f"state file {self.path} {why}; it was kept as {kept_as.name}")
