"""Hostlists: many names in one short line, written as Slurm and ClusterShell write them.

``r[01-13]`` is r01 to r13, ``h[1-2,4]`` is h1, h2 and h4, ``a1,b[2-3]`` is a1, b2 and b3, and
``r[1-2]h[1-2]`` is all four. Zeros in front are kept.
"""

from __future__ import annotations

import re
from itertools import product

MOST_NAMES = 10_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TERM = re.compile(r"(?:[^\[\],]|\[[^\[\]]*\])+")
_PART = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def is_name(text: str) -> bool:
    """Whether `text` can stand between the slashes of a topology path."""
    return _NAME.fullmatch(text) is not None


def expand(pattern: str) -> tuple[str, ...]:
    """The names that `pattern` stands for, in its order.

    Raises ValueError, in words that follow "is wrong because it …", when it is no pattern, names one
    thing twice, or stands for more than 10 000 names.
    """
    if pattern.count("[") != pattern.count("]"):
        raise ValueError("has a bracket without its partner")
    terms = _TERM.findall(pattern)
    if ",".join(terms) != pattern or not terms:
        raise ValueError("has an empty part or brackets inside brackets")
    names: list[str] = []
    for term in terms:
        parts = [_numbers(inside) if inside else (plain,) for inside, plain in _parts(term)]
        size = 1
        for part in parts:
            size *= len(part)
        if len(names) + size > MOST_NAMES:
            raise ValueError(f"stands for more than {MOST_NAMES} names")
        names += ["".join(chosen) for chosen in product(*parts)]
    for name in names:
        if not is_name(name):
            raise ValueError(f"gives the name {name!r}; names are letters, digits and . _ - after the first")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"names {twice} twice")
    return tuple(names)


def _parts(term: str) -> list[tuple[str, str]]:
    if "[]" in term:
        raise ValueError("has nothing between its brackets")
    return _PART.findall(term)


def _numbers(inside: str) -> tuple[str, ...]:
    """``01-03,7`` as 01, 02, 03, 7."""
    numbers: list[str] = []
    for text in inside.split(","):
        match = _RANGE.fullmatch(text)
        if match is None:
            raise ValueError(f"has {text!r} between brackets, where numbers and ranges like 01-13 stand")
        low, high = match[1], match[2] or match[1]
        if len(low) != len(high) and "0" in (low[0], high[0]) and low != "0":
            raise ValueError(
                f"has a range {text} whose ends differ in digits; write both with the same number"
            )
        if int(high) < int(low):
            raise ValueError(f"has a range {text} that runs backwards")
        if int(high) - int(low) >= MOST_NAMES:
            raise ValueError(f"stands for more than {MOST_NAMES} names")
        numbers += [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)]
    return tuple(numbers)
