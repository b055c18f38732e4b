"""kcat, a Kafka client that is not ours: the one on the PATH or, on Debian and its kin, the distribution's
packages unpacked into the cache, which needs no root."""

import os
import shutil
import subprocess
from pathlib import Path

from support.cached import Unavailable, kept

_PACKAGES = ("kcat", "librdkafka1", "libyajl2")


def kcat(*arguments: str, said: bytes = b"") -> bytes:
    """What `kcat ARGUMENTS` prints, `said` on its standard input. Raises Unavailable where there is none
    to run, CalledProcessError where it fails."""
    command, environment = _found()
    done = subprocess.run(
        [command, *arguments], input=said, env=environment, capture_output=True, timeout=60, check=True
    )
    return done.stdout


def _found() -> tuple[str, dict[str, str]]:
    here = shutil.which("kcat") or shutil.which("kafkacat")
    if here is not None:
        return here, dict(os.environ)
    folder = kept("kcat-debian", _unpack)
    libraries = ":".join(str(path) for path in folder.glob("usr/lib/*") if path.is_dir())
    return str(folder / "usr" / "bin" / "kcat"), {**os.environ, "LD_LIBRARY_PATH": libraries}


def _unpack(folder: Path) -> None:
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
    if apt is None or dpkg is None:
        raise Unavailable("no kcat found; install it (Debian, Fedora, Homebrew: kcat)")
    got = subprocess.run(
        [apt, "--quiet", "--quiet", "download", *_PACKAGES],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if got.returncode:
        raise Unavailable(f"no kcat found, and its packages cannot be had: {got.stderr.strip()}")
    for package in folder.glob("*.deb"):
        subprocess.run([dpkg, "--extract", str(package), str(folder)], capture_output=True, check=True)
        package.unlink()
