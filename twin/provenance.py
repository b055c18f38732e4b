"""Stored coefficients: where they come from, and the files that hold them.

They lie in `coefficients/` and ship. A recording itself never does.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TypeVar

import msgspec

T = TypeVar("T")


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where stored coefficients come from, and how to make them again."""

    files: dict[str, str]
    """SHA-256 of the recordings, by their paths below the data folder."""
    source: str
    licence: str
    command: str
    seed: int


def written(coefficients: msgspec.Struct) -> bytes:
    """Coefficients as their file holds them: one line per value, so that a change is seen."""
    return msgspec.json.format(msgspec.json.encode(coefficients), indent=1) + b"\n"


def stored(name: str, kind: type[T]) -> T:
    """Coefficients that ship, by the name of their file."""
    return msgspec.json.decode(files("twin").joinpath("coefficients", f"{name}.json").read_bytes(), type=kind)
