"""The command line: `windrow`."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point. Errors an operator can mend are said in words, with exit status 2."""
    from runtime.cli.app import run  # so that `import runtime.cli` stays light

    sys.exit(run(sys.argv[1:]))
