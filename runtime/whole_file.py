"""A file put in place whole: a kill or a power cut at any point leaves the old one or the new one."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable


def put(
    file: pathlib.Path, content: bytes, *, mode: int = 0o666, given: Callable[[int], None] | None = None
) -> None:
    """Write a file beside its place and then rename it there, on disk when this returns.

    `mode` is what the umask is taken from; `given` may change whose it is, by the open file's descriptor,
    before it is in its place. Raises OSError, and then nothing was put.
    """
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        aside.unlink()  # left by a process that was killed
    try:
        # One that stands there all the same is not ours, and may lead elsewhere.
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as stream:
            if given is not None:
                given(handle)
            stream.write(content)
            stream.flush()
            os.fsync(handle)
        aside.replace(file)
        sync(file.parent)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def sync(folder: pathlib.Path) -> None:
    """See that what was renamed in a folder is so on disk. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
