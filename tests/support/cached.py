"""Things made once and kept: jars that were fetched, a server that was built.

They lie in `$XDG_CACHE_HOME/windrow` (`~/.cache/windrow`), each in a folder that its version names.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Unavailable(Exception):
    """Why a counterpart cannot be had here, and how to provide it, in words for `missing`."""


def cache() -> Path:
    """The folder of everything kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "windrow"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file lock at `path`, which other processes wait for. A process that dies lets go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, filled by `make` if it is not there.

    Whoever finds it finds it whole: `make` fills a folder beside it, which takes the name at the end. Of
    several processes one makes it and the others wait. What `make` raises is raised, and nothing is left.
    """
    folder = cache() / name
    if folder.is_dir():
        return folder
    with locked(cache() / f".{name}.lock"):
        if folder.is_dir():
            return folder
        making = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache()))
        try:
            make(making)
            making.chmod(0o755)
            making.rename(folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return folder
