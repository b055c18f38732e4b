"""What `docker compose config` says of a compose file: asked of docker compose or, without it, of the
library that it is made of, built once with Go."""

import hashlib
import shutil
import subprocess
from pathlib import Path

from support.cached import Unavailable, kept

SOURCE = Path(__file__).with_name("compose_check")


def problems_of(file: Path) -> str:
    """What is wrong with a compose file; empty when nothing is. Raises Unavailable."""
    if shutil.which("docker") and not _run(["docker", "compose", "version"]).returncode:
        return _run(["docker", "compose", "--file", str(file), "config", "--quiet"]).stderr
    return _run([str(_built() / "compose_check"), str(file)], file.parent).stderr


def _built() -> Path:
    go = shutil.which("go")
    if go is None:
        raise Unavailable("neither docker compose nor Go to build its file reader with: install one of them")

    def build(folder: Path) -> None:
        built = _run([go, "build", "-o", str(folder / "compose_check"), "."], SOURCE)
        if built.returncode:
            raise Unavailable(f"the reader of compose files cannot be built: {built.stderr.strip()}")

    sources = b"".join(file.read_bytes() for file in sorted(SOURCE.iterdir()))
    return kept(f"compose-check-{hashlib.sha256(sources).hexdigest()[:12]}", build)


def _run(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
