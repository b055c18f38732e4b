"""`windrow replay` and `windrow explain`: recordings through the same loops, never an actuator."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from controllers.policy import DEFAULT_POLICY, CappingPolicy, read_policy
from runtime.cli.asking import instant
from runtime.cli.plots import plot_replay
from runtime.cli.printing import Json, console, emit, print_decision, print_summaries, progress, share, watts
from runtime.config import ConfigError, read_text
from runtime.control_loop import ControlLoop
from runtime.hosts.replay import as_recorded, on_the_grid
from runtime.row_loop import Beat
from runtime.source import Source, open_source
from runtime.summary import Summary, Summing
from schemas import codec
from schemas.envelope import Event
from schemas.instants import Instant, to_text


class Difference(msgspec.Struct, frozen=True):
    """A stretch over which two policies decided differently, and what each would have done."""

    row: str
    since: Instant
    until: Instant
    mode: str
    because: str
    against_mode: str
    against_because: str


class Answer(msgspec.Struct, frozen=True):
    """What a replay came to. `same` is whether it said what the recording says was said: None where
    that cannot be compared (an import, or another policy)."""

    summaries: tuple[Summary, ...]
    same: bool | None
    dead_letters: int
    against: tuple[Summary, ...] = ()
    differences: tuple[Difference, ...] = ()


class Course:
    """What a replay leaves behind: summaries per row, and the lines that a plot needs."""

    def __init__(self, source: Source, policy: CappingPolicy) -> None:
        self._summing = {row.path: Summing(row, policy.variant) for row in source.site.rows}
        self.power: dict[str, list[tuple[Instant, float, str]]] = {row.path: [] for row in source.site.rows}

    def observe(self, beat: Beat) -> None:
        """Take one beat in."""
        row = beat.tick.subject
        self._summing[row].observe(beat)
        power = beat.rollup.power_w
        self.power[row].append((beat.tick.at, np.nan if power is None else power, beat.decision.mode))

    @property
    def summaries(self) -> tuple[Summary, ...]:
        """One summary a row, in site-file order."""
        return tuple(summing.result() for summing in self._summing.values())

    def plot(self, row: str, budget_w: float, title: str, path: pathlib.Path) -> pathlib.Path:
        """Draw a row's course."""
        at, power, modes = zip(*self.power[row], strict=True)
        at_s = (np.array(at, dtype=np.float64) - at[0]) / 1000
        return plot_replay(at_s, np.array(power), budget_w, modes, title, path)


def replay(
    recording: pathlib.Path,
    /,
    *,
    site: pathlib.Path | None = None,
    budget_kw: float | None = None,
    policy: pathlib.Path | None = None,
    against: pathlib.Path | None = None,
    expect: str = "",
    output: pathlib.Path | None = None,
    plot: pathlib.Path | None = None,
    json: Json = False,
) -> int:
    """Run a recording (our own, or one of the known formats of others) through the pipeline.

    No actuator is ever held. The recording does not answer to what is decided: power stays as it was.
    Exit status 1 when what was expected is not what was said.

    Parameters
    ----------
    recording
        The file to replay.
    site
        A site file for an import; without one a row of the hosts in the file is assumed.
    budget_kw
        The row's budget for an import without a site file.
    policy
        A policy to decide with; without one the recording's own.
    against
        A second policy: say which decisions differ and what each would have done.
    expect
        "recorded": what is said must be what the recording says was said, byte for byte; or a file
        that an earlier replay wrote with --output.
    output
        Write everything that was said to this file, a line of JSON each.
    plot
        Draw the first row's power and mode to this file (PNG).
    json
        Print the answer as one line of JSON.
    """
    source = open_source(recording, site, budget_kw)
    chosen = policy_for(policy, source)
    answer, course = replay_source(source, chosen, policy is not None, expect, output)
    if against is not None:
        other = read_policy(read_text(against, "the policy file"), str(against))
        answer = _compare(recording, site, budget_kw, source, chosen, other, answer)
    if plot is not None:
        row = source.site.rows[0]
        course.plot(row.path, row.budget_w, f"{recording.name}: {row.path} under {chosen.variant}", plot)
    if json:
        emit(answer)
    else:
        _print(recording, answer, chosen, plot)
    return 0 if answer.same is not False else 1


def replay_source(
    source: Source, policy: CappingPolicy, other_policy: bool, expect: str = "", output: pathlib.Path | None = None
) -> tuple[Answer, Course]:
    """Replay a source whole. Raises ConfigError when `expect` cannot be met by this kind of source."""
    recorded = source.header is not None and not other_policy
    if expect == "recorded" and not recorded:
        raise ConfigError("--expect recorded: needs a recording of our own, under its own policy")
    course = Course(source, policy)
    said = _said(source, policy, recorded)
    same = True
    golden = _lines(pathlib.Path(expect)) if expect and expect != "recorded" else None
    written = output.open("wb") if output is not None else None
    try:
        for beat, then in said:
            course.observe(beat)
            if recorded and same:
                same = beat.outputs == then
            if golden is None and written is None:
                continue
            for event in beat.outputs:
                line = codec.encode(event)
                if written is not None:
                    written.write(line + b"\n")
                if golden is not None and same:
                    same = next(golden, None) == line
    finally:
        if written is not None:
            written.close()
    if golden is not None and same:
        same = next(golden, None) is None
    compared = recorded or golden is not None
    return Answer(course.summaries, same if compared else None, len(source.dead_letters)), course


def _said(source: Source, policy: CappingPolicy, recorded: bool) -> Iterator[tuple[Beat, tuple[Event, ...]]]:
    loop = ControlLoop(source.site, policy, epoch=source.epoch)
    with progress("events") as bar:
        task = bar.add_task("replaying", total=None)

        def counted(events: Iterable[Event]) -> Iterator[Event]:
            for count, event in enumerate(events, start=1):
                if not count % 5_000:
                    bar.update(task, completed=count)
                yield event

        if recorded:
            yield from as_recorded(counted(source.events), loop)
        else:
            for beat in on_the_grid(counted(source.events), loop, policy):
                yield beat, ()


def _lines(path: pathlib.Path) -> Iterator[bytes]:
    """A file's lines without their ends. Raises ConfigError in words when it cannot be read."""
    try:
        with path.open("rb") as stream:
            for line in stream:
                yield line.rstrip(b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: what was expected cannot be read: {error.strerror}") from error


def policy_for(path: pathlib.Path | None, source: Source) -> CappingPolicy:
    """The policy to decide with: the file's, the recording's own, or the built-in defaults with leave
    to start an uncalibrated board from fractions (an import acts on nothing)."""
    if path is not None:
        return read_policy(read_text(path, "the policy file"), str(path))
    if source.header is not None:
        return read_policy(source.header.policy, "the recording's policy")
    return msgspec.structs.replace(DEFAULT_POLICY, allow_fraction_defaults=True)


def _compare(
    recording: pathlib.Path,
    site: pathlib.Path | None,
    budget_kw: float | None,
    source: Source,
    policy: CappingPolicy,
    other: CappingPolicy,
    answer: Answer,
) -> Answer:
    """Both policies on the same grid, beat by beat."""
    arms = [
        _said(open_source(recording, site, budget_kw), arm, recorded=False)
        for arm in (policy, other)
    ]
    courses = [Course(source, policy), Course(source, other)]
    open_: dict[str, Difference] = {}
    found: list[Difference] = []
    for (ours, _), (theirs, _) in zip(*arms, strict=True):
        courses[0].observe(ours)
        courses[1].observe(theirs)
        row, now = ours.tick.subject, ours.tick.at
        known = open_.get(row)
        if _wishes(ours) == _wishes(theirs):
            if known is not None:
                found.append(msgspec.structs.replace(known, until=now))
                del open_[row]
        elif known is None or (known.mode, known.against_mode) != (ours.decision.mode, theirs.decision.mode):
            if known is not None:
                found.append(msgspec.structs.replace(known, until=now))
            open_[row] = Difference(
                row, now, now, ours.decision.mode, ours.decision.because, theirs.decision.mode, theirs.decision.because
            )
        else:
            open_[row] = msgspec.structs.replace(known, until=now)
    found += open_.values()
    found.sort(key=lambda difference: (difference.since, difference.row))
    return msgspec.structs.replace(
        answer, summaries=courses[0].summaries, against=courses[1].summaries, differences=tuple(found)
    )


def _wishes(beat: Beat) -> list[tuple[str, int, bool]]:
    return [(setting.target, setting.max_mhz, setting.brake) for setting in beat.decision.desired]


def _print(recording: pathlib.Path, answer: Answer, policy: CappingPolicy, plot: pathlib.Path | None) -> None:
    for index, summary in enumerate(answer.summaries):
        console.print(
            f"[bold]{recording.name}[/]: {summary.row}, {to_text(summary.start)} to {to_text(summary.end)}, "
            f"{summary.beats} beats, policy {policy.variant}"
        )
        columns = [(summary.policy, summary)]
        if answer.against:
            columns.append((f"against {answer.against[index].policy}", answer.against[index]))
        print_summaries(columns)
    if answer.dead_letters:
        console.print(f"{answer.dead_letters} lines could not be read and were kept whole as dead letters")
    for difference in answer.differences[:40]:
        console.print(
            f"{to_text(difference.since)} to {to_text(difference.until)[11:]} {difference.row}\n"
            f"  {difference.mode}: {difference.because}\n  {difference.against_mode}: {difference.against_because}"
        )
    if len(answer.differences) > 40:
        console.print(f"and {len(answer.differences) - 40} more stretches (all of them with --json)")
    if answer.against and not answer.differences:
        console.print("both policies decide alike")
    if answer.same is not None:
        console.print("said the same as expected, byte for byte" if answer.same else "[red]DIFFERS from what was expected")
    if plot is not None:
        console.print(f"plot: {plot}")


def explain(
    recording: pathlib.Path,
    /,
    *,
    at: str = "",
    row: str = "",
    site: pathlib.Path | None = None,
    budget_kw: float | None = None,
    policy: pathlib.Path | None = None,
    json: Json = False,
) -> int:
    """Say what would be decided on the row as a recording shows it at a time, and why.

    Parameters
    ----------
    recording
        The file to look into.
    at
        The time; the end of the recording when left out.
    row
        The row's path; the first row when left out.
    site
        A site file for an import.
    budget_kw
        The row's budget for an import without a site file.
    policy
        A policy to decide with; without one the recording's own.
    json
        Print the decision as one line of JSON.
    """
    source = open_source(recording, site, budget_kw)
    chosen = policy_for(policy, source)
    until = instant(at) if at else None
    wanted = source.site.row(row).path if row else source.site.rows[0].path
    beats = (beat for beat, _ in _said(source, chosen, source.header is not None and policy is None))
    seen = (beat for beat in beats if beat.tick.subject == wanted)
    last: Beat | None = None
    for beat in itertools.takewhile(lambda beat: until is None or beat.tick.at <= until, seen):
        last = beat
    if last is None:
        raise ConfigError(f"{recording}: holds no beat of {wanted}" + (f" by {at}" if at else ""))
    if json:
        emit({"rollup": last.rollup, "decision": last.decision, "commands": last.commands})
        return 0
    rollup = last.rollup
    console.print(
        f"{wanted} at {to_text(last.tick.at)}: {watts(rollup.power_w)} of {watts(rollup.budget_w)} "
        f"({share(None if rollup.power_w is None else rollup.power_w / rollup.budget_w)}), known by {rollup.basis}, "
        f"at most {watts(rollup.upper_w)}; {rollup.hosts_known} of {rollup.hosts_total} hosts"
    )
    print_decision(last.decision)
    console.print(f"  {len(last.commands)} commands would go out now")
    return 0
