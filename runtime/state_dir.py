"""The state directory of a host: what must outlive its process.

    ledger.sqlite      the record of what was decided and done
    hosts/…json        one small file per host agent: settings found, lease in force
    inbox/             what operators have said and the host has not yet taken
    epoch              the number of the last start; commands of an earlier one are fenced
    host.lock          held while a host runs here, so that two never command together
"""

from __future__ import annotations

import fcntl
import os
import pathlib
from typing import IO

from runtime.config import ConfigError


class Busy(ConfigError):
    """A host is running on this state directory already."""


class StateDir:
    """One host's state on disk. Making one makes the directory, readable by its owner only."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        try:
            (path / "hosts").mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path}: the state directory cannot be made: {error.strerror}") from error
        self._lock: IO[str] | None = None

    @property
    def ledger(self) -> pathlib.Path:
        """The ledger's file."""
        return self.path / "ledger.sqlite"

    def agent(self, host: str) -> pathlib.Path:
        """The state file of a host's agent."""
        return self.path / "hosts" / (host.replace("/", "__") + ".json")

    def lock(self) -> None:
        """Take the directory for this process; raises Busy when another has it. The lock goes with
        the process, however it ends."""
        file = (self.path / "host.lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise Busy(f"{self.path}: a host is running on this state directory") from None
        self._lock = file

    def unlock(self) -> None:
        """Give the directory back; safe to repeat."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def next_epoch(self) -> int:
        """A number higher than at any start before, on disk before it is used. Raises ConfigError
        when the file does not hold a number: guessing a lower one would unfence an older controller."""
        file = self.path / "epoch"
        try:
            last = int(file.read_text())
        except FileNotFoundError:
            last = 0
        except ValueError:
            raise ConfigError(f"{file}: must hold a whole number, the epoch of the last start") from None
        fresh = file.with_suffix(".new")
        with fresh.open("w") as stream:
            stream.write(f"{last + 1}\n")
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(file)
        return last + 1
