"""TOML as operators write it: tables read key by key, and every mistake named in their words.

A problem is one line: the file, the key with its whole path, the value as written, and what is allowed.
One bad key hides no other.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Collection, Mapping

from schemas.hostlist import expand, is_name

_HIGHEST = 1e12  # no quantity of ours comes near: a terawatt
_LISTED = 20  # names in one line at most


class NotToml(ValueError):
    """The text is no TOML; the sentence says where it stops being so."""


def read_toml(text: str, file: str) -> Table:
    """The root table of a file's text; `file` is its name, for the problems' first words. Raises NotToml."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = re.fullmatch(r"(?s)(.*) \(at (line \d+, column \d+|end of document)\)", str(error))
        said = f"{where[2]}: {where[1]}" if where else str(error)
        raise NotToml(f"{file}: {said} (the file is not TOML)") from error
    return Table(raw, "", file, [])


class Table:
    """One table of a file. Hands out its keys checked, and notes in `problems` what is wrong with them.

    What a broken key hands out keeps the checks that follow quiet: NaN, 0 or an empty text.
    """

    def __init__(self, raw: Mapping[str, object], where: str, file: str, problems: list[str]) -> None:
        self.raw, self.where, self.file, self.problems = raw, where, file, problems
        self._known: list[str] = []

    def key(self, key: str) -> str:
        """The whole path of a key of this table, as in ``feeds[3].limit_w``."""
        return f"{self.where}.{key}" if self.where else key

    def wrong(self, key: str, rule: str) -> None:
        """Note that the value of `key` breaks `rule`."""
        self.problems.append(f"{self.file}: {self.key(key)} = {shown(self.raw.get(key))}: {rule}")

    def missing(self, key: str, meaning: str) -> None:
        """Note that `key` must be given."""
        self.problems.append(f"{self.file}: {self.key(key)} is missing: {meaning}")

    def has(self, key: str) -> bool:
        """Whether the file gives `key`."""
        self._known.append(key)
        return key in self.raw

    def text(self, key: str, meaning: str, default: str | None = None) -> str:
        """A text in quotes, which must be given where there is no default."""
        if not self.has(key):
            if default is None:
                self.missing(key, meaning)
            return default or ""
        value = self.raw[key]
        if isinstance(value, str) and value:
            return value
        self.wrong(key, f"must be a text in quotes ({meaning})")
        return ""

    def name(self, taken: dict[str, str], meaning: str) -> str:
        """The table's own name, which no other in `taken` (name → where it stands) may have."""
        name = self.text("name", meaning)
        if name and not is_name(name):
            self.wrong("name", "must be letters, digits and . _ - after the first")
        elif name in taken:
            self.wrong("name", f"must be unique; {taken[name]} has it too")
        elif name:
            taken[name] = self.where
        return name

    def choice(self, key: str, known: Collection[str], meaning: str, default: str | None = None) -> str:
        """A text that must be one of `known`."""
        text = self.text(key, meaning, default)
        if text and text not in known:
            self.wrong(key, not_among(text, known))
            return ""
        return text

    def texts(self, key: str, meaning: str) -> tuple[str, ...]:
        """A list of texts in quotes, at least one."""
        value = self.raw[key] if self.has(key) else None
        if value is None:
            self.missing(key, meaning)
        elif isinstance(value, list) and value and all(isinstance(item, str) and item for item in value):
            return tuple(value)
        else:
            self.wrong(key, f"must be a list of texts in quotes, at least one ({meaning})")
        return ()

    def choices(self, key: str, known: Collection[str], meaning: str) -> tuple[str, ...]:
        """A list of texts of `known`, each once."""
        value = self.raw[key] if self.has(key) else []
        if not isinstance(value, list):
            self.wrong(key, f"must be a list of texts ({meaning})")
            return ()
        found: list[str] = []
        for index, item in enumerate(value):
            entry = Table({f"{key}[{index}]": item}, self.where, self.file, self.problems)
            text = entry.choice(f"{key}[{index}]", known, meaning)
            if text in found:
                entry.wrong(f"{key}[{index}]", "stands in this list twice")
            elif text:
                found.append(text)
        return tuple(found)

    def number(self, key: str, meaning: str, default: float | None = None, *, zero: bool = False) -> float:
        """A finite number above zero (`zero`: or zero itself); NaN when it is none."""
        if not self.has(key):
            if default is None:
                self.missing(key, meaning)
                return math.nan
            return default
        value = self.raw[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.wrong(key, f"must be a number ({meaning})")
        elif math.isnan(value):
            self.wrong(key, f"must be a number, and nan is none ({meaning})")
        elif abs(value) >= _HIGHEST:
            self.wrong(key, f"must be below {_HIGHEST:.10g} ({meaning})")
        elif value < 0 or (value == 0 and not zero):
            self.wrong(key, f"must be {'zero or above' if zero else 'above zero'} ({meaning})")
        else:
            return float(value)
        return math.nan

    def whole(self, key: str, meaning: str, default: int | None = None) -> int:
        """A whole number above zero; 0 when it is none."""
        number = self.number(key, meaning, default)
        if number % 1 > 0:
            self.wrong(key, f"must be a whole number ({meaning})")
        return 0 if math.isnan(number) else int(number)

    def pattern(self, key: str, meaning: str) -> tuple[str, ...]:
        """The names that a hostlist pattern stands for."""
        text = self.text(key, meaning)
        try:
            return expand(text) if text else ()
        except ValueError as error:
            self.wrong(key, f"{error} (a hostlist pattern such as r[01-13])")
            return ()

    def tables(self, key: str, meaning: str, *, needed: bool = True) -> list[Table]:
        """The ``[[key]]`` tables, in order."""
        title = f"[[{self.title(key)}]]"
        if not self.has(key):
            if needed:
                self.missing(key, f"write {title}, once for each of {meaning}")
            return []
        value = self.raw[key]
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.wrong(key, f"must be written {title}, once for each of {meaning}")
            return []
        if needed and not value:
            self.wrong(key, f"must have at least one of {meaning}")
        at = self.key(key)
        return [Table(item, f"{at}[{i}]", self.file, self.problems) for i, item in enumerate(value)]

    def title(self, key: str) -> str:
        """A sub-table's TOML header: the path without the indices."""
        return re.sub(r"\[\d+\]", "", self.key(key))

    def table(self, key: str) -> Table | None:
        """The ``[key]`` table where the file has one."""
        value = self.raw[key] if self.has(key) else None
        if isinstance(value, dict):
            return Table(value, self.key(key), self.file, self.problems)
        if value is not None:
            self.wrong(key, f"must be a table, written [{self.title(key)}]")
        return None

    def close(self) -> None:
        """Note the keys that nobody asked for. Call it when everything has been asked."""
        for key in self.raw:
            if key not in self._known:
                self.wrong(key, f"no such key here; {not_among(key, self._known)}")


def not_among(text: str, known: Collection[str]) -> str:
    """What to write instead of `text`: the nearest of `known`, and which there are."""
    folded = {each.lower(): each for each in known}
    close = difflib.get_close_matches(text.lower(), folded, n=1)
    hint = f"did you mean {folded[close[0]]}? " if close else ""
    names = list(dict.fromkeys(known))
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{hint}there is {', '.join(names[:_LISTED]) or 'none'}{more}"


def shown(value: object) -> str:
    """A value as it stands in the file, near enough, and never long."""
    text = repr(value) if isinstance(value, float) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
