"""Where commands leave what they made: folders for simulated runs, files for coefficients and pictures."""

from __future__ import annotations

import pathlib
import tempfile

from runtime.config import ConfigError

_LEFT = ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "recording.jsonl.gz")


def emptied(out: pathlib.Path) -> pathlib.Path:
    """The folder, there, and without what an earlier run left. Raises ConfigError where it cannot be had, or
    where it is a host's: that ledger is nobody's to replace."""
    if (out / "host.lock").exists():
        raise ConfigError(f"{out}: is the state directory of a host; name another with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in _LEFT:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror}") from error
    return out


PICTURES = (".png", ".svg", ".pdf")
"""How a picture's file may end."""


def writable(out: pathlib.Path, endings: tuple[str, ...] = ()) -> None:
    """See, before the work of minutes, that its result can be put there, and make the folder. Raises
    ConfigError."""
    if endings and out.suffix.lower() not in endings:
        raise ConfigError(f"{out}: must end in {', '.join(endings)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out.parent}: cannot be made: {error.strerror}") from error
    if out.is_dir():
        raise ConfigError(f"{out}: cannot be written: it is a folder")
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass  # who may do anything, as root, finds out only so
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror}") from error
