"""`schemas/catalog` on disk: read it, or run this file to write it anew from the code.

`python tests/support/catalogue_files.py` refuses a change that would cut old readers or old recordings
off; with `--accept-breaks` it writes all the same. At a release,
`PYTHONPATH=tests python -m support.catalogue_files --freeze VERSION` keeps how that version writes its
messages and what it says in `tests/schemas/frozen`, and the tests hold every later version to it.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

from schemas.catalogue import breaks, catalogue

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / "schemas" / "catalog"
FROZEN = PROJECT / "tests" / "schemas" / "frozen"
REGENERATE = "run: python tests/support/catalogue_files.py"


class Release(NamedTuple):
    """How a version that people run writes: its catalogue, and messages that it wrote."""

    version: str
    catalogue: dict[str, bytes]
    messages: tuple[bytes, ...]
    """Of each type one that says only what it must, and one that says every field."""


def released() -> list[Release]:
    """Every release so far, oldest first by the name of its file."""
    found = []
    for file in sorted(FROZEN.glob("*.json")):
        held = json.loads(file.read_bytes())
        files = {name: json.dumps(content).encode() for name, content in held["catalogue"].items()}
        lines = tuple(line.encode() for line in held["messages"])
        found.append(Release(file.stem, files, lines))
    return found


def freeze(version: str) -> None:
    """Keep today's catalogue and messages as those of `version`. Raises FileExistsError: a release stands."""
    from support.messages import specimens

    from schemas.codec import encode
    from schemas.topics import TYPES

    content = {
        "catalogue": {name: json.loads(file) for name, file in catalogue().items()},
        "messages": [encode(event).decode() for kind in TYPES for event in specimens(kind)],
    }
    FROZEN.mkdir(exist_ok=True)
    with (FROZEN / f"{version}.json").open("x", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")


def committed() -> dict[str, bytes]:
    """The files as they are on disk, by name."""
    return {file.name: file.read_bytes() for file in sorted(FOLDER.glob("*.json"))}


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Make the folder hold these files and no other JSON."""
    folder.mkdir(exist_ok=True)
    for stale in {file.name for file in folder.glob("*.json")} - files.keys():
        (folder / stale).unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--freeze"]:
        freeze(*arguments[1:])
        return 0
    parted = breaks(committed(), catalogue())
    for trouble in parted:
        print(trouble, file=sys.stderr)
    if parted and arguments != ["--accept-breaks"]:
        print("nothing written; make the change compatible, or add --accept-breaks", file=sys.stderr)
        return 1
    write(FOLDER, catalogue())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
