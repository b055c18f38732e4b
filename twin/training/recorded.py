"""Recorded wall power of the nodes of a job: CSV files with the columns time_ms, host, watts.

Meters read at their own moments and leave gaps, so every node has its own times. A reading of 0 W, or less,
is no reading: it is left out and counted. Hosts whose readings agree in every time and value share one meter,
and count as one.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import msgspec
import numpy as np

from schemas.units import FloatArray

_COLUMNS = ("time_ms", "host", "watts")
_FEWEST = 20


class UnusableRecording(ValueError):
    """A recording that nothing can be learned from. Its text is for the operator."""


class WallPower(msgspec.Struct, frozen=True, kw_only=True):
    """One recording. `at_s` (from the first reading of all) and `watts` are per meter, in order of time."""

    name: str
    sha256: str
    hosts: tuple[tuple[str, ...], ...]
    """The hosts that each meter reads for."""
    at_s: tuple[FloatArray, ...]
    watts: tuple[FloatArray, ...]
    no_readings: int
    """Readings of zero or less, left out."""

    @property
    def seconds(self) -> float:
        """From the first reading to the last."""
        return max(float(at[-1]) for at in self.at_s)

    def of(self, meters: list[int]) -> WallPower:
        """The recording of these meters only."""
        return msgspec.structs.replace(
            self,
            hosts=tuple(self.hosts[m] for m in meters),
            at_s=tuple(self.at_s[m] for m in meters),
            watts=tuple(self.watts[m] for m in meters),
        )

    def between(self, begin_s: float, end_s: float) -> WallPower:
        """The readings from `begin_s` up to `end_s`, their times as they were."""
        inside = [(at >= begin_s) & (at < end_s) for at in self.at_s]
        return msgspec.structs.replace(
            self,
            at_s=tuple(at[part] for at, part in zip(self.at_s, inside, strict=True)),
            watts=tuple(watts[part] for watts, part in zip(self.watts, inside, strict=True)),
        )


def read_wall_power(path: Path) -> WallPower:
    """Read a recording. Raises UnusableRecording, with file and line, for one that is missing or
    malformed."""
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise UnusableRecording(f"{path}: cannot be read: {problem.strerror}") from problem
    rows = csv.reader(content.decode("utf-8", "replace").splitlines())
    if (found := tuple(next(rows, ()))) != _COLUMNS:
        raise UnusableRecording(f"{path}: its columns are {','.join(found)!r}, not {','.join(_COLUMNS)!r}")
    readings: dict[str, list[tuple[float, float]]] = {}
    nothing = 0
    for line, row in enumerate(rows, start=2):
        try:
            at, host, watts = float(row[0]) / 1000.0, row[1], float(row[2])
        except (IndexError, ValueError) as problem:
            raise UnusableRecording(f"{path}:{line}: no reading: {','.join(row)!r}") from problem
        if not np.isfinite(at) or not np.isfinite(watts):
            raise UnusableRecording(f"{path}:{line}: no reading: {','.join(row)!r}")
        if watts <= 0.0:
            nothing += 1
            continue
        readings.setdefault(host, []).append((at, watts))
    if few := sorted(host for host, those in readings.items() if len(those) < _FEWEST):
        raise UnusableRecording(f"{path}: fewer than {_FEWEST} readings of {', '.join(few)}")
    if not readings:
        raise UnusableRecording(f"{path}: holds no readings")
    meters: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for host, those in readings.items():
        meters.setdefault(tuple(sorted(those)), []).append(host)
    first = min(series[0][0] for series in meters)
    columns = [np.array(series).T for series in meters]
    return WallPower(
        name=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        hosts=tuple(tuple(hosts) for hosts in meters.values()),
        at_s=tuple(at - first for at, _ in columns),
        watts=tuple(watts for _, watts in columns),
        no_readings=nothing,
    )
