"""What the importers of other people's recordings share: a CSV's rows, the site they imply, their order."""

from __future__ import annotations

import csv
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from collectors.base import CollectorError
from schemas.envelope import DeadLetter, Event
from schemas.instants import Instant
from schemas.topics import topic_of
from schemas.units import Reading

_UNKNOWN = frozenset({"", "-", "N/A", "[N/A]"})  # how nvidia-smi and spreadsheets write *no reading*

Parsed = TypeVar("Parsed")


class BadRow(ValueError):
    """A row that cannot be taken; the text says why."""


class Buried(NamedTuple):
    """A row that could not be taken: the line whole, and why."""

    payload: bytes
    reason: str

    def letter(self, at: Instant, *, source: str, subject: str, topic: str) -> DeadLetter:
        """The dead letter that keeps it."""
        return DeadLetter(
            at=at, source=source, subject=subject, topic=topic, payload=self.payload, reason=self.reason
        )


def header_of(path: pathlib.Path) -> tuple[str, ...]:
    """The column names in a CSV's first line; empty where that is no text.

    Raises CollectorError when the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _names(file.readline(1 << 16))
    except OSError as error:
        raise CollectorError(f"{path}: cannot be read: {error.strerror}") from error


def read_rows(
    path: pathlib.Path, columns: Sequence[str], parse: Callable[[Sequence[str]], Parsed]
) -> Iterator[Parsed | Buried]:
    """Each row through `parse`, which gets the cells of `columns` in that order and raises BadRow for
    what it cannot take. Rows stand one on a line; empty lines are passed over.

    Raises CollectorError when the file cannot be read or lacks one of the columns.
    """
    try:
        with path.open("rb") as file:
            header = _names(file.readline())
            if lacking := [column for column in columns if column not in header]:
                raise CollectorError(f"{path}: has no column {', '.join(lacking)}")
            places = [header.index(column) for column in columns]
            for number, line in enumerate(file, start=2):
                if line := line.rstrip(b"\r\n"):
                    try:
                        yield parse(_cells(line, places, len(header)))
                    except BadRow as error:
                        yield Buried(line, f"line {number}: {error}")
    except OSError as error:
        raise CollectorError(f"{path}: cannot be read: {error.strerror}") from error


def reading(text: str, column: str) -> Reading:
    """A number, or None where the cell says that there is none. Raises BadRow for anything else."""
    if text.strip() in _UNKNOWN:
        return None
    return number(text, column)


def number(text: str, column: str) -> float:
    """A finite number. Raises BadRow for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadRow(f"{column} = {text!r}: must be a number")
    return value


def in_order(events: Iterable[Event]) -> list[Event]:
    """Events in the total order of a recording: event time, topic rank, subject, id."""
    return sorted(events, key=lambda event: (event.at, topic_of(event).rank, event.subject, event.id))


def site_text(name: str, budget_w: float, racks: Mapping[str, Sequence[str]], *, sku: str, gpus: int) -> str:
    """A site file for the hosts of a recording: one row, `racks` with their hosts' names.

    A recording tells neither breakers nor priorities: every limit is the budget, and all work is of low
    priority, which may be capped first. For an operator to correct.
    """
    limit = f"limit_w = {budget_w!r}"
    lines = ["[site]", f'name = "{name}"', ""]
    lines += ["[[ups]]", 'name = "ups-1"', limit, ""]
    lines += ["[[pdus]]", 'name = "pdu-1"', 'ups = "ups-1"', limit, ""]
    lines += ["[[feeds]]", 'name = "feed-a"', 'pdu = "pdu-1"', limit, ""]
    lines += ["[[rows]]", 'name = "row-a"', f"budget_w = {budget_w!r}"]
    for rack, hosts in racks.items():
        lines += ["", "[[racks]]", 'row = "row-a"', f'names = "{rack}"', 'feeds = ["feed-a"]', ""]
        lines += ["[[racks.hosts]]", f'names = "{",".join(hosts)}"', f'sku = "{sku}"', f"gpus = {gpus}"]
        lines += ['priority = "low"', 'paths = ["out_of_band", "brake", "in_band"]']
    return "\n".join(lines) + "\n"


def _names(line: bytes) -> tuple[str, ...]:
    try:
        return tuple(name.strip() for name in next(csv.reader((line.decode("utf-8-sig"),)), ()))
    except (UnicodeDecodeError, csv.Error):
        return ()


def _cells(line: bytes, places: Sequence[int], width: int) -> list[str]:
    try:
        cells = next(csv.reader((line.decode(),), strict=True))
    except UnicodeDecodeError as error:
        raise BadRow("is no UTF-8 text") from error
    except csv.Error as error:
        raise BadRow(f"is no row of a CSV: {error}") from error
    if len(cells) != width:
        raise BadRow(f"has {len(cells)} cells, the header {width}")
    return [cells[place] for place in places]
