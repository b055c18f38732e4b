"""Recorded runs of a serving engine on one GPU, as a folder of pairs holds them.

`NAME.csv` has one row a second: the engine's counters beside what nvidia-smi showed. `NAME.result.json` is
what the load generator made of it. The name says what neither of them does: `background_MODEL_N` and
`advisor_..._MODEL_N__PROMPTS` are runs of up to N answers at once; those of the second family were prefilled
in chunks (their counters show it: answers go on while prompts are worked off). A name that says none, or more
than there were requests, leaves as many as ever ran at once.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from schemas.units import FloatArray
from twin.serving.engine import Requests
from twin.serving.llm import Llm, UnknownModel, llm_named

COLUMNS = (
    "time_s",
    "num_requests_running",
    "num_requests_waiting",
    "gpu_cache_usage_perc",
    "prompt_tokens_total",
    "generation_tokens_total",
    "gpu_power_w",
    "gpu_temp_c",
    "sm_clk_mhz",
)
"""What is read of a CSV; further columns pass by."""

CHUNKED = "advisor_"
"""How the names of runs begin whose prompts were prefilled in chunks."""

_RESULT = ".result.json"
_SHORTEST_S = 20.0
_APART_S = (0.5, 1.5)
_QUIET_AFTER_S = 4.0
_RECORDED_RATIO = 0.75
"""Share of a load that must be recorded (our choice); the shared runs have all of it."""
_BEFORE_S = 60.0
"""How long the engine may be at work before the load, where that is longer than the load itself (our
choice): else the load did not begin where the result file says. The shared runs have 10 s at most."""
_PEAK_W = (20.0, 2_000.0)
_PEAK_MHZ = (200.0, 4_000.0)
"""What the highest reading of a GPU at work lies between; beyond, it was written in another unit."""
_QUOTED = 40
"""How many letters of what stands in a file are told back."""
_ANSWERS = re.compile(r"_(\d+)(?:__\d+)?$")


class RunsError(ValueError):
    """A folder of runs that cannot be read; the text is for the operator, a line for each problem."""


class Result(msgspec.Struct, frozen=True):
    """What of a result file is used. Times in seconds or milliseconds, as their names say; `request_rate`
    is requests per second, infinite where all were there from the start."""

    model_id: str
    duration: float
    completed: int
    total_input_tokens: int
    total_output_tokens: int
    request_rate: float
    mean_ttft_ms: float
    median_ttft_ms: float
    mean_tpot_ms: float
    median_tpot_ms: float


class RecordedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Arrays have shape (seconds,) and begin with the load: the single request that a load
    generator sends ahead of it is left out, and so is the quiet after it. `power_w` is the mean of the
    second before its `time_s`. `idle_w` is what the board drew at rest; None: the run has no quiet second."""

    name: str
    digest: str
    llm: Llm
    result: Result
    max_answers: int
    chunked: bool
    time_s: FloatArray
    running: FloatArray
    cache_ratio: FloatArray
    prompt_tokens: FloatArray
    output_tokens: FloatArray
    power_w: FloatArray
    temperature_c: FloatArray
    clock_mhz: float
    idle_w: float | None

    @property
    def fixed_lengths(self) -> bool:
        """Whether all requests had the same lengths, which then are their means."""
        result = self.result
        return not (
            result.total_input_tokens % result.completed or result.total_output_tokens % result.completed
        )

    @property
    def at_once(self) -> bool:
        """Whether all requests were there from the start."""
        return self.result.request_rate == math.inf

    @property
    def mean_w(self) -> float:
        """Mean power over the seconds that the load filled."""
        return float(self.power_w.mean())

    @property
    def energy_j(self) -> float:
        """Energy of the load's whole duration."""
        return self.mean_w * self.result.duration

    def request_list(self, prompt_shape: FloatArray, output_shape: FloatArray, seed: int) -> Requests:
        """The requests that were asked. Where lengths differ, they have the shapes given (quantiles over
        the mean, at even steps) around the recorded means, in an order drawn from `seed`."""
        result, count = self.result, self.result.completed
        rng = np.random.default_rng(seed)
        columns = []
        for shape, total in (
            (prompt_shape, result.total_input_tokens),
            (output_shape, result.total_output_tokens),
        ):
            if self.fixed_lengths:
                columns.append(np.full(count, total / count))
                continue
            places = (np.arange(count) + 0.5) / count
            lengths = np.interp(places, np.linspace(0.0, 1.0, shape.size), shape)
            columns.append(np.maximum(1.0, np.round(rng.permutation(lengths) * total / lengths.sum())))
        at = np.zeros(count)
        if not self.at_once:
            at = np.cumsum(rng.exponential(1.0 / result.request_rate, count))
        return Requests(at, *columns)


class Folder(NamedTuple):
    """What a folder of runs holds: the runs, by name, and what is wrong with the rest, a line each."""

    runs: list[RecordedRun]
    problems: list[str]


def read_runs(folder: Path) -> Folder:
    """Every run of the folder. Raises RunsError, with all that is wrong, where there is none."""
    if not folder.is_dir():
        raise RunsError(f"{folder}: no such folder of runs")
    seen = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    tables = [path for path in seen if path.suffix == ".csv"]
    stems = {path.stem for path in tables}
    alone = {path.name.removesuffix(_RESULT) for path in seen if path.name.endswith(_RESULT)} - stems
    found = Folder([], [f"{name}{_RESULT}: no {name}.csv beside it" for name in sorted(alone)])
    for path in tables:
        try:
            found.runs.append(read_run(path))
        except RunsError as error:
            found.problems.append(str(error))
        except OSError as error:
            found.problems.append(f"{path.name}: cannot be read: {error.strerror}")
    if not tables:
        found.problems.append(f"{folder}: holds no run; a run is NAME.csv with NAME{_RESULT} beside it")
    if not found.runs:
        raise RunsError("\n".join(found.problems))
    return found


def read_run(path: Path) -> RecordedRun:
    """The run of one CSV and the result file beside it. Raises RunsError in words."""
    result, llm = _result(path)
    table = _table(path)
    busy = table["num_requests_running"] + table["num_requests_waiting"]
    working = np.flatnonzero(table["num_requests_running"] > 0)
    if not working.size:
        raise RunsError(f"{path.name}: num_requests_running: never above 0, so nothing was served")
    # The last second of work is cut short; the load began its duration before the end of that.
    time, last = table["time_s"], int(working[-1])
    begin = time[last] - result.duration
    inside = (time > begin + 1.0) & (np.arange(time.size) <= last) & (busy > 0)
    if inside.sum() < _SHORTEST_S:
        raise RunsError(
            f"{path.name}: {inside.sum()} seconds of load are recorded, {_SHORTEST_S:.0f} are needed "
            f"({path.stem}{_RESULT} says that it took {result.duration:g} s)"
        )
    row_s = np.minimum(np.diff(time, prepend=2 * time[0] - time[1]), _APART_S[1])  # no row speaks for a hole
    recorded_s = float(row_s[(time > begin) & (np.arange(time.size) <= last)].sum())
    before_s = float(row_s[(time <= begin) & (busy > 0)].sum())
    took = f"{path.stem}{_RESULT} says that the load took {result.duration:g} s"
    if recorded_s < _RECORDED_RATIO * result.duration:
        raise RunsError(
            f"{path.name}: {recorded_s:.0f} s of the load are recorded, "
            f"{_RECORDED_RATIO:.0%} of it are needed, and {took}"
        )
    if before_s > max(_BEFORE_S, result.duration):
        raise RunsError(
            f"{path.name}: the engine is at work for {before_s:.0f} s before the load and longer than in it: "
            f"{took}"
        )
    power = table["gpu_power_w"]
    quiet = (time > time[last] + _QUIET_AFTER_S) & (busy == 0)
    chunked = path.stem.startswith(CHUNKED)
    named = _ANSWERS.search(path.stem)
    stated = int(named[1]) if named else 0
    most = int(table["num_requests_running"].max())
    return RecordedRun(
        name=path.stem,
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        llm=llm,
        result=result,
        max_answers=max(most, stated) if stated <= result.completed else most,
        chunked=chunked,
        time_s=time[inside],
        running=table["num_requests_running"][inside],
        cache_ratio=table["gpu_cache_usage_perc"][inside],
        prompt_tokens=table["prompt_tokens_total"][inside],
        output_tokens=table["generation_tokens_total"][inside],
        power_w=power[inside],
        temperature_c=table["gpu_temp_c"][inside],
        clock_mhz=float(table["sm_clk_mhz"].max()),
        idle_w=float(np.median(power[quiet])) if quiet.any() else None,
    )


def _result(path: Path) -> tuple[Result, Llm]:
    beside = path.with_name(f"{path.stem}{_RESULT}")
    if not beside.exists():
        raise RunsError(f"{path.name}: no {beside.name} beside it")
    content = beside.read_bytes()
    if not content.strip():
        raise RunsError(f"{beside.name}: is empty")
    try:
        # Not strict: counts may be written as whole floats, and rates as text ("inf").
        result = msgspec.convert(json.loads(content), Result, strict=False)
    except msgspec.ValidationError as error:
        raise RunsError(f"{beside.name}: {error}") from error
    except ValueError as error:
        raise RunsError(f"{beside.name}: is no JSON: {error}") from error

    def holds(field: str, right: bool, must: str) -> None:
        if not right:
            raise RunsError(f"{beside.name}: {field} = {getattr(result, field)}: must be {must}")

    holds("duration", 0.0 < result.duration < math.inf, "a number of seconds above zero")
    holds("completed", result.completed > 0, "above zero")
    for field in ("total_input_tokens", "total_output_tokens"):
        holds(
            field, getattr(result, field) >= result.completed, f"one a request ({result.completed}) or more"
        )
    holds("request_rate", result.request_rate > 0.0, '"inf" or requests per second')
    for field in ("mean_ttft_ms", "median_ttft_ms", "mean_tpot_ms", "median_tpot_ms"):
        holds(field, 0.0 <= getattr(result, field) < math.inf, "a number of milliseconds, zero or above")
    try:
        return result, llm_named(result.model_id)
    except UnknownModel as error:
        raise RunsError(f"{beside.name}: model_id: {error}") from error


def _is_text(line: str) -> bool:
    """Whether a line, read with errors replaced, is one that people wrote."""
    return line.replace("\t", " ").isprintable() and "\ufffd" not in line


def _table(path: Path) -> Mapping[str, FloatArray]:
    """The columns of a CSV that are used, each finite and as long as the others."""
    text = path.read_text(encoding="utf-8-sig", errors="replace").rstrip()
    if not text:
        raise RunsError(f"{path.name}: is empty")
    try:
        lines = list(csv.reader(text.splitlines()))
    except csv.Error as error:
        raise RunsError(f"{path.name}: is no CSV: {error}") from error
    header = [cell.strip() for cell in lines[0]]
    missing = [name for name in COLUMNS if name not in header]
    if missing and not _is_text(",".join(header)):
        raise RunsError(f"{path.name}: is no CSV in UTF-8: its first line is no text")
    if len(missing) == len(COLUMNS):
        first = ",".join(header)[:_QUOTED]
        raise RunsError(f"{path.name}: its first line, {first!r}, names none of {', '.join(COLUMNS)}")
    if missing:
        raise RunsError(f"{path.name}: no column {', '.join(missing)}; columns read are {', '.join(COLUMNS)}")
    places = [header.index(name) for name in COLUMNS]
    rows = np.empty((len(lines) - 1, len(COLUMNS)))
    for number, cells in enumerate(lines[1:]):
        if len(cells) <= max(places):
            raise RunsError(
                f"{path.name}: line {number + 2}: ends before {header[len(cells)]}: it has {len(cells)} of "
                f"{len(header)} cells"
            )
        for index, place in enumerate(places):
            try:
                value = float(cells[place])
            except ValueError:
                value = math.nan
            rows[number, index] = value
            if not math.isfinite(value):
                raise RunsError(
                    f"{path.name}: line {number + 2}: {COLUMNS[index]} = {cells[place][:_QUOTED]!r}: "
                    "must be a finite number"
                )
    table = dict(zip(COLUMNS, rows.T, strict=True))
    if rows.shape[0] < 2 or (np.diff(table["time_s"]) <= 0).any():
        raise RunsError(f"{path.name}: time_s: must rise from row to row, over at least two rows")
    apart = float(np.median(np.diff(table["time_s"])))
    if not _APART_S[0] <= apart <= _APART_S[1]:
        raise RunsError(f"{path.name}: time_s: rows are {apart:g} s apart, and must be about 1 s")
    if not (table["gpu_power_w"] >= 0).all():
        raise RunsError(f"{path.name}: gpu_power_w: must be at or above 0 W")
    for column, unit, (least, most) in (("gpu_power_w", "W", _PEAK_W), ("sm_clk_mhz", "MHz", _PEAK_MHZ)):
        peak = table[column].max()
        if not least <= peak <= most:
            raise RunsError(
                f"{path.name}: {column}: is {peak:g} at most, and a GPU at work reaches {least:g} to "
                f"{most:,.0f} {unit}"
            )
    return table
