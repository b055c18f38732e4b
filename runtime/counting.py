"""Counts in words."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """``1 host``, ``1,204 hosts``: for a noun that takes an s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
