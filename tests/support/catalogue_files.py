"""`schemas/catalog` on disk: read it, or run this file to write it anew from the code.

`python tests/support/catalogue_files.py` refuses a change that would cut old readers or old recordings
off; with `--accept-breaks` it writes all the same.
"""

import sys
from pathlib import Path

from schemas.catalogue import breaks, catalogue

FOLDER = Path(__file__).resolve().parents[2] / "schemas" / "catalog"
REGENERATE = "run: python tests/support/catalogue_files.py"


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
