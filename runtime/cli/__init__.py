"""The command line: `windrow`."""

from __future__ import annotations

import sys

from runtime.distribution import ForeignPackage, check_distribution


def main() -> None:
    """Entry point. Errors an operator can mend are said in words, with exit status 2."""
    try:
        check_distribution()  # before anything of a foreign package runs
    except ForeignPackage as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    from runtime.cli.app import run

    sys.exit(run(sys.argv[1:]))
