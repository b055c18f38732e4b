"""`windrow demo`: an evening hour of an oversubscribed row, under POLCA beside no control.

The plant is simulated and sits at the vendors' seams; collectors, streams, controller, actuators and
ledger are the ones that run beside a real row. Both arms see the same requests.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import math
import pathlib
from collections.abc import Callable

import msgspec
from rich.table import Table

from runtime.cli.out_folder import emptied
from runtime.cli.plots import plot_demo
from runtime.cli.printing import Json, console, emit, print_walk, progress, share, span, watts
from runtime.cli.replaying import policy_for, replay_source
from runtime.cli.seeds import Seed
from runtime.cli.stopping import broken_off_in_order
from runtime.clock import SystemClock
from runtime.config import ConfigError, Setup, load_setup
from runtime.hosts.embedded import Records
from runtime.ledger import audit
from runtime.ledger.store import Ledger
from runtime.recorder import Recorder, header_of
from runtime.source import open_source
from runtime.summary import Summary, Summing
from runtime.wiring import Unkept, on_twin, plant_of
from runtime.workers import Work, spread
from schemas.commands import LockClocks
from schemas.instants import MINUTE, Instant, from_text, to_text
from schemas.outcomes import Verified
from twin.breaker import TripCurve
from twin.row import History, Statistics

START: Instant = from_text("2026-03-01T18:00:00Z")
ARMS = {"no control": "off", "POLCA": "polca"}
SCENARIOS = pathlib.Path(str(importlib.resources.files("twin"))) / "scenarios"
MLPERF = pathlib.Path("../shared/data/gpu_power/mlperf/train_v4.0_smc-ac-power_64xH100node_gpt3_0.csv")
_PLAIN_W = 200.0  # off a host's GPUs: what a reader takes for an effect
MLPERF_BUDGET_W = 450_000.0  # below the recording's peak: the row must be seen to exceed it


class Arm(msgspec.Struct, frozen=True):
    """One arm of the comparison: what the loop saw, what the plant knows, and its course."""

    name: str
    summary: Summary
    plant: Statistics
    history: History


def demo(
    *,
    minutes: int = 60,
    seed: Seed = 1,
    out: pathlib.Path = pathlib.Path("windrow-demo"),
    json: Json = False,
) -> int:
    """Run an hour of an oversubscribed row, POLCA beside no control, and show what an SRE wants to know.

    Writes a plot, a ledger to audit and a recording to replay. Exit status 1 when POLCA let the row
    down: a brake, a breaker or a time over budget.

    Parameters
    ----------
    minutes
        Simulated minutes.
    seed
        Of the requests and the boards; the same seed gives the same run.
    out
        The directory to write to; what it held of an earlier demo is replaced.
    json
        Print the comparison as one line of JSON.
    """
    began = SystemClock().monotonic()
    if minutes < 1:
        raise ConfigError(f"--minutes {minutes}: must be 1 or more")
    emptied(out)
    arms, uncapped = _run_arms(minutes, seed, out)
    setup = demo_setup("polca")
    picture = plot_demo(arms, setup.site.rows[0], setup.policy, out / "row.png")
    took = SystemClock().monotonic() - began
    if json:
        emit({arm.name: {"summary": arm.summary, "plant": arm.plant} for arm in arms})
    else:
        row = setup.site.rows[0]
        console.print(
            f"[bold]Row {row.path}[/]: provisioned for 40 servers, holding {len(row.hosts)} "
            f"on {watts(row.budget_w)}; {minutes} simulated minutes in {span(took)}."
        )
        console.print()
        _print_comparison(arms, uncapped)
        console.print()
        _show_walk(out / "ledger.sqlite")
        console.print()
        _replay_recordings(out)
        console.print()
        ledger, recording = out / "ledger.sqlite", out / "recording.jsonl.gz"
        console.print(f"plot       {picture}")
        ask = f"windrow audit who --target {row.path}/r01 --at {to_text(START + 38 * MINUTE)}"
        console.print(f"ledger     {ledger}, to ask: {ask} --ledger {ledger}", soft_wrap=True)
        console.print(f"recording  {recording}, to replay: windrow replay {recording}", soft_wrap=True)
    return 0 if _held(arms[-1]) else 1


def demo_setup(variant: str) -> Setup:
    """The demonstration row under a policy variant."""
    setup = load_setup(SCENARIOS / "demo-row.toml", None)
    return msgspec.structs.replace(
        setup,
        policy=msgspec.structs.replace(setup.policy, variant=variant),
        policy_text=f'variant = "{variant}"\n',
    )


def _run_arms(minutes: int, seed: int, out: pathlib.Path) -> tuple[list[Arm], Statistics]:
    """The arms, each in a process of its own, with one bar for each; and the plant alone."""
    works: list[Work[tuple[str, int], Arm | Statistics]] = [
        *(functools.partial(run_arm, name, minutes, seed, out) for name in ARMS),
        functools.partial(_run_uncapped, minutes, seed),
    ]
    with broken_off_in_order(), progress("simulated minutes") as bars:
        tasks = {name: bars.add_task(name, total=minutes) for name in ARMS}

        def told(word: tuple[str, int]) -> None:
            name, minute = word
            bars.update(tasks[name], completed=minute)

        found = spread(works, workers=len(ARMS), told=told)
    arms = [each for each in found if isinstance(each, Arm)]
    (uncapped,) = (each for each in found if isinstance(each, Statistics))
    return arms, uncapped


def run_arm(
    name: str, minutes: int, seed: int, out: pathlib.Path, told: Callable[[tuple[str, int]], None]
) -> Arm:
    """Run one arm; the one under POLCA leaves its ledger and its recording in `out`. `told` hears its name
    with each minute run."""
    setup = demo_setup(ARMS[name])
    row = setup.site.rows[0]
    plant = plant_of(setup, seed=seed, start=START)
    kept = ARMS[name] == "polca"
    summing = Summing(row, name)
    with contextlib.ExitStack() as stack:
        ledger: Records = Unkept()
        observers = [summing.observe]
        if kept:
            ledger = stack.enter_context(Ledger(out / "ledger.sqlite", durable=False))
            header = header_of(setup, 1, START, "windrow demo")
            observers.append(stack.enter_context(Recorder(out / "recording.jsonl.gz", header)).write)
        rig = on_twin(plant, setup, ledger=ledger, observe=observers)
        for minute in range(1, minutes + 1):
            rig.host.run(until=START + minute * MINUTE)
            told((name, minute))
    return Arm(name, summing.result(), plant.statistics(), plant.history())


def _run_uncapped(minutes: int, seed: int, _: Callable[[tuple[str, int]], None]) -> Statistics:
    """The plant with neither a cap nor a breaker: what latency would be if power were no object."""
    setup = demo_setup("off")
    never = TripCurve(pickup_ratio=math.inf, instant_ratio=math.inf)
    plant = plant_of(setup, seed=seed, start=START, curve=never)
    plant.advance(START + minutes * MINUTE)
    return plant.statistics()


def _held(arm: Arm) -> bool:
    return arm.summary.brakes == 0 and arm.plant.tripped_at is None and arm.plant.over_budget_s == 0


def _print_comparison(arms: list[Arm], uncapped: Statistics) -> None:
    table = Table("", *(arm.name for arm in arms), box=None, header_style="bold", padding=(0, 3, 0, 0))
    budget = arms[0].summary.budget_w

    def line(title: str, *cells: str) -> None:
        table.add_row(title, *cells)

    def latency(arm: Arm, priority: str, quantile: str) -> str:
        if arm.plant.tripped_at is not None:
            return "the row went dark"
        ours = getattr(arm.plant, f"latency_{quantile}_s")[priority]
        free = getattr(uncapped, f"latency_{quantile}_s")[priority]
        return f"{ours:.1f} s ({ours / free - 1:+.1%})"

    line(
        "peak power (2 s)",
        *(f"{watts(a.plant.peak_w)} = {share(a.plant.peak_w / budget)} of budget" for a in arms),
    )
    line("time over budget", *(span(a.plant.over_budget_s) for a in arms))
    line("power brakes", *(str(a.summary.brakes) for a in arms))
    line(
        "breaker",
        *(
            "held"
            if a.plant.tripped_at is None
            else f"TRIPPED after {span((a.plant.tripped_at - START) / 1000)}"
            for a in arms
        ),
    )
    for priority in ("low", "high"):
        line(f"capped host-min, {priority}", *(f"{a.summary.capped_minutes[priority]:,.0f}" for a in arms))
    for priority in ("high", "low"):
        for quantile in ("p50", "p99"):
            line(
                f"{quantile.upper()} latency, {priority}",
                *(latency(a, priority, quantile) for a in arms),
            )
    line(
        "requests served",
        *(f"{_requests(a, 'done'):,}, {_requests(a, 'lost'):,} lost" for a in arms),
    )
    line("energy", *(f"{a.plant.energy_j / 3.6e6:,.1f} kWh" for a in arms))
    line("clock commands", *(_commands(a.summary) for a in arms))
    console.print(table)
    console.print("[dim]in brackets: against the same requests with neither cap nor breaker[/]")


def _commands(summary: Summary) -> str:
    total, renewed = sum(summary.commands.values()), summary.outcomes.get("Renewed", 0)
    return f"{total:,} ({renewed:,} renewals)"


def _requests(arm: Arm, what: str) -> int:
    return sum(getattr(requests, what) for requests in arm.plant.requests.values())


def _show_walk(path: pathlib.Path) -> None:
    """One walk from the demo's own ledger: of the caps that were seen to hold a busy host, one after
    which the row fell most."""
    with Ledger.reading(path) as ledger:
        board = demo_setup("polca").site.rows[0].hosts[0].sku
        walks: list[audit.Walk] = []
        for seen in ledger.of_type([Verified]):
            assert isinstance(seen, Verified)
            command = ledger.get(seen.command)
            if isinstance(command, LockClocks) and seen.effect_w is not None and seen.observed is not None:
                at_its_lock = command.max_mhz - 2 * board.step_mhz < seen.observed < board.max_mhz
                took_power = seen.effect_w < -_PLAIN_W
                walks += [audit.why(ledger, command.id)] if at_its_lock and took_power else []
        if not walks:
            console.print("no cap held a busy host: there is no command to walk back")
            return
        walk = min(walks, key=_row_effect_w)
        console.print(f"[bold]$ windrow audit why {walk.command.id} --ledger {path}", soft_wrap=True)
        print_walk(walk)


def _row_effect_w(walk: audit.Walk) -> float:
    before = walk.rollup.power_w if walk.rollup else None
    after = walk.row_after.power_w if walk.row_after else None
    return 0.0 if before is None or after is None else after - before


def _replay_recordings(out: pathlib.Path) -> None:
    """Replay what is there to replay: the trace that ships with Windrow, and, beside a checkout that has
    it, a recorded training cluster."""
    traces: list[tuple[str, pathlib.Path, float | None]] = [
        ("a recorded row", SCENARIOS / "small-row.jsonl.gz", None)
    ]
    if MLPERF.exists():
        traces.append(("64 nodes of 8 H100 in training", MLPERF, MLPERF_BUDGET_W))
    here = pathlib.Path.cwd()
    for title, trace, budget_w in traces:
        path = trace.relative_to(here) if trace.is_relative_to(here) else trace
        began = SystemClock().monotonic()
        source = open_source(path, None, budget_w / 1000 if budget_w else None)
        policy = policy_for(None, source)
        answer, course = replay_source(source, policy, other_policy=False)
        took = SystemClock().monotonic() - began
        summary = answer.summaries[0]
        seconds = (summary.end - summary.start) / 1000
        budget = f" --budget-kw {budget_w / 1000:.0f}" if budget_w else ""
        console.print(f"[bold]$ windrow replay {path}{budget}", soft_wrap=True)
        console.print(
            f"{title}: {span(seconds)} replayed in {took:.1f} s ({seconds / took:,.0f}× real time); "
            f"peak {watts(summary.peak_w)} = {share(summary.peak_ratio)} of budget; "
            f"modes {', '.join(summary.modes_s)}; brakes {summary.brakes}; "
            f"power unknown {span(summary.unknown_s)}"
        )
        if summary.over_budget_s:
            console.print(
                f"over its budget for {span(summary.over_budget_s)}: a replay is open-loop, and what was "
                "recorded does not answer to a brake that nobody pulled then"
            )
        if answer.same is not None:
            console.print(
                "it says what was said when it was recorded, byte for byte"
                if answer.same
                else "[red]it DIFFERS"
            )
        row = source.site.rows[0]
        course.plot(
            row.path,
            row.budget_w,
            f"{title}: {row.path} replayed",
            out / f"replay-{path.name.split('.')[0]}.png",
        )
