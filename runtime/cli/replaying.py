"""`windrow replay` and `windrow explain`: recordings through the same loops, never an actuator."""

from __future__ import annotations

import contextlib
import itertools
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated

import msgspec
import numpy as np
from cyclopts import Parameter

from controllers.policy import DEFAULT_POLICY, CappingPolicy, read_policy
from runtime.cli.asking import instant
from runtime.cli.printing import Json, emit, print_decision, print_summaries, progress, say, share, watts
from runtime.clock import SystemClock
from runtime.config import ConfigError, load_policy, read_host_config
from runtime.control_loop import ControlLoop
from runtime.hosts.replay import as_recorded, on_the_grid
from runtime.hosts.snapshot import SnapshotRefused, thaw
from runtime.row_loop import Beat
from runtime.source import Source, open_source
from runtime.summary import Summary, Summing
from schemas import codec
from schemas.envelope import Event
from schemas.instants import Instant, to_text
from schemas.recordings import snapshots_of

ToKafka = Annotated[bool, Parameter(name="--to-kafka", negative="")]
Outputs = Annotated[bool, Parameter(name="--outputs", negative="")]


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
    """What a replay came to. `same` is whether it said what was expected or recorded: None where there is
    nothing to compare with (an import, or another policy). `note` is what is wrong with the file's end."""

    summaries: tuple[Summary, ...]
    same: bool | None
    dead_letters: int
    note: str = ""
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
        from runtime.cli.plots import plot_replay  # a plotting library is slow to load, and seldom wanted

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
    to_kafka: ToKafka = False,
    config: pathlib.Path | None = None,
    speed: str = "1",
    outputs: Outputs = False,
    json: Json = False,
) -> int:
    """Run a recording (our own, or one of the known formats of others) through the pipeline.

    No actuator is ever held. The recording does not answer to what is decided: power stays as it was.
    Exit status 1 when what was expected is not what was said.

    With --to-kafka nothing is decided here: a recording of our own is published, each row's inputs and
    ticks, for workers that follow its rows. It goes only into topics that have a prefix and have never
    held a message, so that no site is steered by it.

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
    to_kafka
        Publish the recording to the brokers of --config.
    config
        The configuration with the [kafka] to publish to.
    speed
        How fast to publish: 1 as it was, 10 ten times as fast, max as fast as the brokers take it.
    outputs
        Publish what was said then too, commands among it.
    json
        Print the answer as one line of JSON.
    """
    source = open_source(recording, site, budget_kw)
    chosen = policy_for(policy, source)
    if to_kafka:
        if against is not None or policy is not None or expect or output is not None or plot is not None:
            raise ConfigError("--to-kafka publishes and decides nothing: leave the policies and files out")
        return _publish(source, chosen, config, _speed(speed), outputs, json)
    if against is not None:
        if expect or output is not None:
            raise ConfigError("--against compares two policies: leave --expect and --output out")
        answer, course = compare(source, chosen, load_policy(against))
    else:
        answer, course = replay_source(source, chosen, policy is not None, expect, output)
    if plot is not None:
        row = source.site.rows[0]
        course.plot(row.path, row.budget_w, f"{recording.name}: {row.path} under {chosen.variant}", plot)
    if json:
        emit(answer)
    else:
        _print(recording, answer, chosen, plot)
    return 0 if answer.same is not False else 1


def _publish(
    source: Source,
    policy: CappingPolicy,
    config: pathlib.Path | None,
    speed: float | None,
    outputs: bool,
    json: bool,
) -> int:
    """Put a recording onto a bus."""
    from runtime.bus_replay import publish, restaged  # what it takes to reach a bus, nobody else needs

    if source.header is None:
        raise ConfigError(f"{source.path}: is an import: --to-kafka publishes recordings of our own")
    if config is None:
        raise ConfigError("--to-kafka publishes to the brokers of a configuration: name it with --config")
    kafka = read_host_config(config).bus()
    with progress("beats") as bar:
        task = bar.add_task("publishing", total=source.count_beats())
        done = publish(
            kafka,
            source.events,
            epoch=source.epoch,
            clock=SystemClock(),
            speed=speed,
            outputs=outputs,
            snapshots=restaged(source.header, source.site, policy),
            seen=lambda tick: bar.update(task, advance=1, description=f"published to {to_text(tick.at)}"),
        )
    if json:
        emit(done)
        return 0
    say(
        f"published {done.messages} messages, {done.beats} beats of {len(done.rows)} rows, as {kafka.prefix}…"
    )
    if source.note:
        say(source.note)
    return 0


def _speed(text: str) -> float | None:
    """How many times as fast as it was; None for as fast as can be. Raises ConfigError."""
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise ConfigError(f"--speed {text}: must be a number above zero (1 is as it was), or max")
    return speed


def replay_source(
    source: Source,
    policy: CappingPolicy,
    other_policy: bool,
    expect: str = "",
    output: pathlib.Path | None = None,
) -> tuple[Answer, Course]:
    """Replay a source whole. Raises ConfigError when `expect` cannot be met by this kind of source."""
    recorded = source.header is not None and not other_policy
    if expect == "recorded" and not recorded:
        raise ConfigError("--expect recorded: needs a recording of our own, under its own policy")
    golden = _lines(pathlib.Path(expect)) if expect not in ("", "recorded") else None
    course = Course(source, policy)
    same = True
    with _written(output) as written:
        for beat, then in _said(source, policy, recorded):
            course.observe(beat)
            lines = [codec.encode(event) for event in beat.outputs]
            written(lines)
            if recorded:
                before = [codec.encode(event) for event in then]
                # Where the recording was cut short, its last beat may say less than was said.
                same &= before == (lines[: len(before)] if source.note else lines)
            if golden is not None:
                same &= list(itertools.islice(golden, len(lines))) == lines
    if golden is not None:
        same &= next(golden, None) is None
    compared = recorded or golden is not None
    answer = Answer(course.summaries, same if compared else None, len(source.dead_letters), source.note)
    return answer, course


def compare(source: Source, policy: CappingPolicy, other: CappingPolicy) -> tuple[Answer, Course]:
    """Both policies over the same source, beat by beat, and where they decide differently."""
    if policy.period_ms != other.period_ms:
        raise ConfigError(
            f"{policy.name} looks every {policy.period_ms} ms and {other.name} every {other.period_ms} ms: "
            "policies are compared look by look"
        )
    ours, theirs = Course(source, policy), Course(source, other)
    arms = (_said(source, arm, recorded=False) for arm in (policy, other))
    open_: dict[str, Difference] = {}
    found: list[Difference] = []
    for (beat, _), (counter, _) in zip(*arms, strict=True):
        ours.observe(beat)
        theirs.observe(counter)
        row, now = beat.tick.subject, beat.tick.at
        known = open_.pop(row, None)
        if known is not None:
            known = msgspec.structs.replace(known, until=now)
        if _wishes(beat) == _wishes(counter):
            found += [known] if known is not None else []
        elif known is not None and (known.mode, known.against_mode) == (
            beat.decision.mode,
            counter.decision.mode,
        ):
            open_[row] = known
        else:
            found += [known] if known is not None else []
            said, against = beat.decision, counter.decision
            open_[row] = Difference(row, now, now, said.mode, said.because, against.mode, against.because)
    found += open_.values()
    found.sort(key=lambda difference: (difference.since, difference.row))
    answer = Answer(
        ours.summaries, None, len(source.dead_letters), source.note, theirs.summaries, tuple(found)
    )
    return answer, ours


def _said(source: Source, policy: CappingPolicy, recorded: bool) -> Iterator[tuple[Beat, tuple[Event, ...]]]:
    """Each beat of a replay, and what the recording says was said at it (nothing, where not `recorded`)."""
    loop = ControlLoop(source.site, policy, epoch=source.epoch)
    if recorded:
        _remember(source, loop)
    with progress("events") as bar:
        task = bar.add_task(f"replaying under {policy.variant}", total=None)

        def counted(events: Iterable[Event]) -> Iterator[Event]:
            for count, event in enumerate(events, start=1):
                if not count % 1_000:
                    bar.update(task, completed=count)
                yield event

        if recorded:
            yield from as_recorded(counted(source.events), loop)
        else:
            for beat in on_the_grid(counted(source.events), loop, policy):
                yield beat, ()


def _remember(source: Source, loop: ControlLoop) -> None:
    """Give the rows the states that the recording says they go on from. Raises ConfigError."""
    assert source.header is not None
    for row, payload in snapshots_of(source.header).items():
        try:
            loop.states[row], _ = thaw(payload, loop.loops[row])
        except SnapshotRefused as refused:
            raise ConfigError(
                f"{source.path}: {row} cannot go on from where the recording begins: {refused}; "
                "with --policy its samples are replayed alone"
            ) from refused


@contextlib.contextmanager
def _written(path: pathlib.Path | None) -> Iterator[Callable[[list[bytes]], None]]:
    """Somewhere to write lines to: a file, or nowhere. Raises ConfigError."""
    if path is None:
        yield lambda lines: None
        return
    try:
        with path.open("wb") as stream:
            yield lambda lines: stream.writelines(line + b"\n" for line in lines)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


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
    to start an uncalibrated board from fractions (an import acts on nothing). Raises ConfigError."""
    if path is None and source.header is None:
        return msgspec.structs.replace(DEFAULT_POLICY, allow_fraction_defaults=True)
    try:
        if path is not None:
            policy = load_policy(path)
        else:
            assert source.header is not None
            policy = read_policy(source.header.policy, f"{source.path}, its policy")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    unfit = dict.fromkeys(problem for row in source.site.rows for problem in policy.unfit_for(row))
    if unfit:
        raise ConfigError("\n".join(unfit))
    return policy


def _wishes(beat: Beat) -> list[tuple[str, int, bool]]:
    return [(setting.target, setting.max_mhz, setting.brake) for setting in beat.decision.desired]


def _print(recording: pathlib.Path, answer: Answer, policy: CappingPolicy, plot: pathlib.Path | None) -> None:
    for index, summary in enumerate(answer.summaries):
        say(
            f"{recording.name}: {summary.row}, {to_text(summary.start)} to {to_text(summary.end)}, "
            f"{summary.beats} beats, policy {policy.variant}"
        )
        columns = [(summary.policy, summary)]
        if answer.against:
            columns.append((f"against {answer.against[index].policy}", answer.against[index]))
        print_summaries(columns)
    if answer.note:
        say(answer.note)
    if answer.dead_letters:
        say(f"{answer.dead_letters} lines could not be read and were kept whole as dead letters")
    for difference in answer.differences[:_SHOWN]:
        say(f"{to_text(difference.since)} to {to_text(difference.until)[11:]} {difference.row}")
        say(f"  {difference.mode}: {difference.because}")
        say(f"  against {difference.against_mode}: {difference.against_because}")
    if len(answer.differences) > _SHOWN:
        say(f"and {len(answer.differences) - _SHOWN} more stretches (all of them with --json)")
    if answer.against and not answer.differences:
        say("both policies decide alike")
    if answer.same is not None:
        say("said the same as expected, byte for byte" if answer.same else "DIFFERS from what was expected")
    if plot is not None:
        say(f"plot: {plot}")


_SHOWN = 40  # differences told one by one


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
    wanted = row or source.site.rows[0].path
    if wanted not in [each.path for each in source.site.rows]:
        rows = ", ".join(each.path for each in source.site.rows)
        raise ConfigError(f"{recording}: has no row {wanted!r}; it has {rows}")
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
    ratio = None if rollup.power_w is None else rollup.power_w / rollup.budget_w
    say(
        f"{wanted} at {to_text(last.tick.at)}: {watts(rollup.power_w)} of {watts(rollup.budget_w)} "
        f"({share(ratio)}), known by {rollup.basis}, at most {watts(rollup.upper_w)}; "
        f"{rollup.hosts_known} of {rollup.hosts_total} hosts known"
    )
    print_decision(last.decision)
    say(f"  {len(last.commands)} commands would go out now")
    return 0
