"""What a test may need from outside the checkout: the other side of an adapter, and recordings.

A counterpart is the real thing at the far end: a GPU driver, a broker, a router. Without it a test
proves nothing, so on a user's machine it is skipped with the reason, and in CI it fails: a green run
there means that every test ran.
"""

import os
from pathlib import Path
from typing import NoReturn

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SHARED = PROJECT.parent / "shared"


def in_ci() -> bool:
    """Whether this run answers for a merge: `CI=true`."""
    return os.environ.get("CI", "").lower() == "true"


def missing(reason: str) -> NoReturn:
    """Skip for want of a counterpart, or fail where `CI=true`. At module level too.

    `reason` says what is missing and how to provide it.
    """
    __tracebackhide__ = True
    if in_ci():
        pytest.fail(f"missing counterpart: {reason}", pytrace=False)
    pytest.skip(reason, allow_module_level=True)


def shared_data(path: str) -> Path:
    """The recording or data file (or folder) at `../shared/data/<path>`, beside the checkout.

    A checkout without `../shared` skips, in CI too: the recordings are not part of the project. Where
    the folder is there and the file is not, the test is asking for the wrong thing: `missing`.
    """
    __tracebackhide__ = True
    if not SHARED.is_dir():
        pytest.skip(
            f"no recordings beside this checkout: ../shared/data/{path} is absent", allow_module_level=True
        )
    found = SHARED / "data" / path
    if not found.exists():
        missing(f"../shared/data has no {path}")
    return found
