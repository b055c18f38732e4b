"""The state directory of a host: what must outlive its process.

    ledger.sqlite      the record of what was decided and done
    hosts/….json       one small file per host agent: settings found, lease in force
    inbox/             what operators have said and the host has not yet taken
    host.json          the configuration it last ran with, so that an operator need not name it again
    epoch              the number of the last start; commands of an earlier one are fenced
    host.lock          held while a host runs here, so that two never command together

The small files are replaced whole: a kill or a power cut leaves the old one or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import pathlib
from collections.abc import Iterator

import msgspec

from runtime import whole_file
from runtime.config import ConfigError, HostConfig


class Busy(ConfigError):
    """A host is running on this state directory already."""


class StateDir:
    """One host's state on disk."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    @classmethod
    def made(cls, path: pathlib.Path) -> StateDir:
        """The directory, made where it is not there yet, readable by its owner only. Raises ConfigError."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (path / "hosts").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path}: the state directory cannot be made: {error.strerror}") from error
        return cls(path)

    @classmethod
    def found(cls, path: pathlib.Path) -> StateDir:
        """The directory of a host that runs or has run. Raises ConfigError where there is none: what is
        said to a mistyped path would never be heard."""
        if not (path / "hosts").is_dir():
            raise ConfigError(f"{path}: no host has run on this state directory")
        return cls(path)

    @property
    def ledger(self) -> pathlib.Path:
        """The ledger's file."""
        return self.path / "ledger.sqlite"

    def agent(self, host: str) -> pathlib.Path:
        """The state file of a host's agent."""
        return self.path / "hosts" / (host.replace("/", "__") + ".json")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Have the directory to oneself; raises Busy when another has it, ConfigError when it cannot be
        had at all. The lock goes with the process, however it ends."""
        lock = self.path / "host.lock"
        try:
            try:
                file = lock.open("a+")
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
                file = lock.open()  # a disk gone read-only keeps no host from being taken up again
        except OSError as error:
            raise ConfigError(f"{self.path}: the state directory cannot be used: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"{self.path}: a host is running on this state directory") from None
            yield

    def busy(self) -> bool:
        """Whether a host is running here just now, as far as can be told from here."""
        try:
            with self.locked():
                return False
        except ConfigError:
            return True

    def next_epoch(self) -> int:
        """A number higher than at any start before, on disk before it is used. Raises ConfigError
        when the file does not hold a number: guessing a lower one would unfence an older controller."""
        file = self.path / "epoch"
        try:
            last = int(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            last = 0
        except (ValueError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else "it holds something else"
            raise ConfigError(
                f"{file}: must hold a whole number, the epoch of the last start ({why}); write one above "
                "every epoch in the ledger"
            ) from error
        self._replace(file, f"{last + 1}\n".encode())
        return last + 1

    def keep_config(self, config: HostConfig) -> None:
        """Note what the host runs with. Raises ConfigError."""
        kept = msgspec.structs.replace(
            config,
            site=config.site.absolute(),
            policy=config.policy.absolute() if config.policy else None,
            state_dir=config.state_dir.absolute(),
        )
        self._replace(self.path / "host.json", msgspec.json.encode(kept, enc_hook=str))

    def config(self) -> HostConfig:
        """What the host last ran with. Raises ConfigError."""
        file = self.path / "host.json"
        try:
            kept: HostConfig = msgspec.json.decode(
                file.read_bytes(), type=HostConfig, dec_hook=lambda kind, value: kind(value)
            )
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(
                f"{file}: does not say what the host last ran with ({error}): name its --config"
            ) from error
        return kept

    def _replace(self, file: pathlib.Path, content: bytes) -> None:
        """Put a file in place whole. Raises ConfigError."""
        try:
            whole_file.put(file, content)
        except OSError as error:
            raise ConfigError(f"{file}: cannot be written: {error.strerror}") from error
