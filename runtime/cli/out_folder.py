"""The folder that a simulated run leaves its ledger, recording and pictures in."""

from __future__ import annotations

import pathlib

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
