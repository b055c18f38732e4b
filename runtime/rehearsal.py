"""A rehearsal: a scenario on a simulated row under the real pipeline, and a verdict on each invariant.

Collectors, loop, agents with their leases, reflexes and ledger are those that run beside a real row; only
the plant behind them is the twin, and what the scenario breaks is broken there. The verdicts come from the
messages, the ledger and the plant's truth. No part of the pipeline is asked how it did.

The row is first let up to its highest clocks, at the demand that the scenario begins with: `SETTLE_MS`, which
comes before the scenario's minute 0. What is done meanwhile is judged too.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np

from controllers.policy import CappingPolicy
from runtime.config import Setup
from runtime.counting import counted
from runtime.judging import LAPSE_MS, BlindEye, Found, not_as_asked, obeyed_backwards, out_of_lease
from runtime.ledger.store import Ledger
from runtime.recorder import Recorder, header_of
from runtime.row_loop import Beat
from runtime.summary import Summary, Summing
from runtime.wiring import deadlines_of, on_twin, plant_of
from schemas.commands import Brake, Command, LockClocks
from schemas.instants import MINUTE, SECOND, Instant, Span, from_text
from schemas.outcomes import Accepted, Outcome
from schemas.topology import Row
from twin.demand import UNBREAKABLE, Drawn, drawn, highest, load_of
from twin.row import History, Statistics, TwinRow
from twin.scenario import GpusFail, PathDown, Scenario, UpsFailover
from twin.trouble import Spell, Trouble

START: Instant = from_text("2026-03-01T18:00:00Z")
SETTLE_MS: Span = 8 * MINUTE
"""Half a row may be loosened in five minutes (the blast-radius breaker): the other half follows then, and is
seen to obey within an out-of-band latency."""

FRAME_MS: Span = SECOND

Ruling: TypeAlias = Literal["passed", "failed", "not_applicable"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One invariant: what it came to (`figure`, and `value` as a number), what is allowed (`bound`, and
    `limit`), and what proves it: a moment, a command for `windrow audit why`, and words."""

    invariant: str
    ruling: Ruling
    figure: str
    bound: str
    value: float | None = None
    limit: float | None = None
    at: Instant | None = None
    command: str = ""
    proof: str = ""


class Rehearsed(msgspec.Struct, frozen=True, kw_only=True):
    """What a rehearsal on one row came to. `began` is the scenario's minute 0. `plant` is what the row did,
    `free` the same requests
    with nothing broken, held or able to trip, where latency is judged. `modes` are the policy's, with the
    moments at which they were entered. `remark` says what of the scenario the row could not play."""

    row: str
    scenario: str
    policy: str
    seed: int
    began: Instant
    ended: Instant
    verdicts: tuple[Verdict, ...]
    remark: str
    spells: tuple[Spell, ...]
    modes: tuple[tuple[Instant, str], ...]
    summary: Summary
    plant: Statistics
    free: Statistics | None

    @property
    def held(self) -> bool:
        """Whether no invariant failed."""
        return all(verdict.ruling != "failed" for verdict in self.verdicts)


class Clock(NamedTuple):
    """The highest clock that one of a host's boards may run at."""

    at: Instant
    host: str
    mhz: float


def alone(setup: Setup, row: Row) -> Setup:
    """The setup of one row of the site; its safe shares are those that fit beside the others'."""
    site = msgspec.structs.replace(setup.site, rows=(row,))
    shares = {host.path: setup.shares[host.path] for host in row.hosts}
    return msgspec.structs.replace(setup, site=site, shares=shares)


def play(
    scenario: Scenario,
    setup: Setup,
    *,
    seed: int,
    folder: pathlib.Path,
    told: Callable[[int], None] = lambda minute: None,
) -> tuple[Rehearsed, History]:
    """Play the scenario on the setup's first row, and judge. Leaves ``ledger.sqlite`` and
    ``recording.jsonl.gz`` in `folder`, which must have neither. `told` is called after each simulated
    minute with the number of minutes done of `minutes_of`.

    Raises Unplayable for a row that has not what the scenario breaks.
    """
    row = setup.site.rows[0]
    draws = drawn(setup.site, row.path)
    began = START + SETTLE_MS
    ended = began + round(scenario.seconds * SECOND)
    load = load_of(scenario.demand, draws, scenario.seconds).later(-SETTLE_MS / SECOND)
    plant = plant_of(setup, seed=seed, start=START, load=load)
    trouble = Trouble(scenario, plant, seed, began)
    free = None
    if scenario.bounds.high_p99_ratio is not None:
        free = plant_of(setup, seed=seed, start=START, load=load, curve=UNBREAKABLE)
        free.advance(began)
        free.servers.forget_latencies()
        free.advance(ended)
    witness = Witness(plant, setup)
    summing = Summing(row, setup.policy.variant)
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger(folder / "ledger.sqlite", durable=False))
        header = header_of(setup, 1, START, "windrow rehearse")
        recorder = stack.enter_context(Recorder(folder / "recording.jsonl.gz", header))
        rig = on_twin(
            plant,
            setup,
            ledger=ledger,
            frame_ms=FRAME_MS,
            observe=[summing.observe, witness.observe, recorder.write],
            reflex=True,
            advance=trouble.advance,
        )
        for minute in range(1, minutes_of(scenario) + 1):
            rig.host.run(until=min(ended, START + minute * MINUTE))
            if START + minute * MINUTE == began:
                plant.servers.forget_latencies()
            told(minute)
        verdicts = tuple(judged(scenario, setup, witness, plant, free, ledger, (began, ended)))
    rehearsed = Rehearsed(
        row=row.path,
        scenario=scenario.name,
        policy=setup.policy.variant,
        seed=seed,
        began=began,
        ended=ended,
        verdicts=verdicts,
        remark=_remark(scenario, draws),
        spells=trouble.spells,
        modes=tuple(witness.modes),
        summary=summing.result(),
        plant=plant.statistics(),
        free=free.statistics() if free is not None else None,
    )
    return rehearsed, plant.history()


def minutes_of(scenario: Scenario) -> int:
    """The simulated minutes of a rehearsal, begun ones too."""
    return SETTLE_MS // MINUTE + math.ceil(scenario.seconds / 60)


def _remark(scenario: Scenario, draws: Drawn) -> str:
    asks = highest(scenario.demand, scenario.seconds)
    if asks <= draws.most:
        return ""
    return (
        f"the scenario asks for {asks:.2f} of the budget; with requests that it can serve this row draws "
        f"{draws.most:.2f} at most, and was asked for that"
    )


class Witness:
    """Hears every beat, and looks at the plant's truth at each."""

    def __init__(self, plant: TwinRow, setup: Setup) -> None:
        self.commands: dict[str, Command] = {}
        self.outcomes: list[Outcome] = []
        self.answered: dict[str, Instant] = {}
        self.clocks: list[Clock] = []
        self.modes: list[tuple[Instant, str]] = []
        self.held: list[tuple[Instant, str, int]] = []
        """At each beat a host that was not at its highest clock (empty: none), and how many were not."""
        self.blind = BlindEye(setup.policy.hold_ms)
        self.hottest = Found(0, "", "")
        self.hot_s = 0.0
        self._plant = plant
        self._slowdown_c = np.array([[host.sku.slowdown_c] for host in plant.hosts])
        self._hot_ms = np.zeros(plant.servers.core_c.shape)
        self._margin_c = math.inf
        self._at = plant.now

    def observe(self, beat: Beat) -> None:
        """Take one beat in."""
        now = beat.tick.at
        for event in beat.inputs:
            if isinstance(event, Outcome):
                self.outcomes.append(event)
                if not isinstance(event, Accepted):
                    self.answered.setdefault(event.command, event.at)
        self.commands.update((command.id, command) for command in beat.commands)
        self.blind.observe(beat)
        if not self.modes or self.modes[-1][1] != beat.decision.mode:
            self.modes.append((now, beat.decision.mode))
        self._look(now)

    def after(self, at: Instant, *kinds: type[Command]) -> Command | None:
        """The first command from `at` on, of these kinds if any are named."""
        return next(
            (each for each in self.commands.values() if each.at >= at and isinstance(each, kinds or Command)),
            None,
        )

    def _look(self, now: Instant) -> None:
        plant, servers = self._plant, self._plant.servers
        held = np.flatnonzero(plant.held)
        self.held.append((now, plant.hosts[held[0]].path if held.size else "", held.size))
        if plant.tripped:
            return
        highest_mhz = np.where(servers.present, servers.lock_mhz, 0.0).max(axis=1)
        self.clocks += [
            Clock(now, host.path, mhz) for host, mhz in zip(plant.hosts, highest_mhz, strict=True)
        ]
        margin_c = np.where(servers.present, self._slowdown_c - servers.core_c, math.inf)
        hot = margin_c <= 0.0
        self._hot_ms = np.where(hot, self._hot_ms + (now - self._at), 0.0)
        self.hot_s = max(self.hot_s, float(self._hot_ms.max()) / SECOND)
        self._at = now
        place, gpu = np.unravel_index(int(margin_c.argmin()), margin_c.shape)
        if margin_c[place, gpu] < self._margin_c:
            self._margin_c = float(margin_c[place, gpu])
            words = f"{plant.hosts[place].gpu_path(int(gpu))} at {servers.core_c[place, gpu]:.0f} °C"
            self.hottest = Found(now, "", f"{words}, its slowdown is at {self._slowdown_c[place, 0]:.0f} °C")


# ---- verdicts ----


def judged(
    scenario: Scenario,
    setup: Setup,
    witness: Witness,
    plant: TwinRow,
    free: TwinRow | None,
    ledger: Ledger,
    span: tuple[Instant, Instant],
) -> Iterator[Verdict]:
    """A verdict on each invariant, from what was seen: the messages (`witness`), the plant's totals, those of
    the row with nothing held (`free`, None where latency has no bound), and the ledger. `span` is the
    scenario's minute 0 and its end."""
    began, ended = span
    bounds, policy = scenario.bounds, setup.policy
    yield _breakers(plant)
    yield _ups_deadline(scenario, plant, witness, began)
    yield _over_budget(bounds.over_budget_s, plant, witness)
    yield _blind(witness)
    yield _commands(witness, policy, ended)
    yield _obedience(scenario, setup, witness)
    yield _brakes(bounds.brakes, witness)
    yield _back(bounds.back_min, witness, policy, began + round(scenario.over_s * SECOND))
    yield _latency(bounds.high_p99_ratio, plant, free)
    yield _heat(bounds.hot_s, witness)
    yield _ledger(ledger, witness)


def _ruled(ok: bool) -> Ruling:
    return "passed" if ok else "failed"


def _not_judged(invariant: str, figure: str, why: str, value: float | None = None) -> Verdict:
    return Verdict(invariant=invariant, ruling="not_applicable", figure=figure, bound=why, value=value)


_NO_BOUND = "the scenario sets no bound"


def _breakers(plant: TwinRow) -> Verdict:
    """A UPS that gave up is no breaker; the next verdict is about that."""
    opened = min(plant.opened.items(), key=lambda each: each[1], default=None)
    return Verdict(
        invariant="no breaker opened",
        ruling=_ruled(opened is None),
        figure=f"{len(plant.opened)} opened",
        bound="none",
        value=len(plant.opened),
        limit=0,
        at=opened[1] if opened else None,
        proof=", ".join(plant.opened),
    )


def _ups_deadline(scenario: Scenario, plant: TwinRow, witness: Witness, began: Instant) -> Verdict:
    name = "a UPS on battery was never overloaded for longer than it bears"
    failovers = [fault for fault in scenario.faults if isinstance(fault, UpsFailover)]
    if not failovers:
        return _not_judged(name, "no failover", "no UPS fails over")
    since = began + round(min(fault.at_s for fault in failovers) * SECOND)
    brake = witness.after(since, Brake)
    dropped = plant.trip_cause == "ups deadline"
    return Verdict(
        invariant=name,
        ruling=_ruled(not dropped),
        figure=f"{plant.over_on_battery_s:g} s above what was left",
        bound=f"below {plant.ups_deadline_s:g} s",
        value=plant.over_on_battery_s,
        limit=plant.ups_deadline_s,
        at=plant.tripped_at if dropped else brake.at if brake else since,
        command=brake.id if brake else "",
        proof="it dropped the row" if dropped else "",
    )


def _over_budget(bound_s: float | None, plant: TwinRow, witness: Witness) -> Verdict:
    name, statistics = "the row was above its budget for a bounded time", plant.statistics()
    over_s = statistics.over_budget_s
    history = plant.history()
    peak = int(np.argmax(history.power_w)) if history.power_w.size else 0
    at = START + round(float(history.at_s[peak]) * SECOND)
    above = np.flatnonzero(history.power_w > plant.row.budget_w)
    figure = f"{over_s:g} s, by half seconds"
    if bound_s is None:
        return _not_judged(name, figure, _NO_BOUND, over_s)
    answer = None
    if above.size:
        answer = witness.after(START + round(float(history.at_s[above[0]]) * SECOND))
    return Verdict(
        invariant=name,
        ruling=_ruled(over_s <= bound_s),
        figure=figure,
        bound=f"{bound_s:g} s at most",
        value=over_s,
        limit=bound_s,
        at=at,
        command=answer.id if answer else "",
        # Half a second above the budget need not show in it.
        proof=f"highest mean of 2 s: {statistics.peak_w / plant.row.budget_w:.3f} of the budget",
    )


def _blind(witness: Witness) -> Verdict:
    found = witness.blind.found
    return _of_found(
        "nothing was loosened or renewed on unknown power",
        found,
        f"{counted(len(found), 'command')} in {counted(witness.blind.blind_beats, 'beat')} "
        "without a known power",
    )


def _of_found(invariant: str, found: Sequence[Found], figure: str, bound: str = "none") -> Verdict:
    """None may be found; the first one is the proof."""
    first = found[0] if found else None
    return Verdict(
        invariant=invariant,
        ruling=_ruled(not found),
        figure=figure,
        bound=bound,
        value=len(found),
        limit=0,
        at=first.at if first else None,
        command=first.command if first else "",
        proof=first.words if first else "",
    )


def _commands(witness: Witness, policy: CappingPolicy, ended: Instant) -> Verdict:
    """Each of an age to be answered was, by its path's deadline and two beats on the way."""
    deadlines, way_ms = deadlines_of(policy), 2 * policy.period_ms
    slowest: tuple[Span, Command | None] = (0, None)
    late: list[Found] = []
    due = 0
    for command in witness.commands.values():
        if not isinstance(command, LockClocks | Brake):
            continue
        allowed_ms = deadlines[command.path] + way_ms
        answered = witness.answered.get(command.id)
        if answered is None and command.at > ended - allowed_ms:
            continue
        due += 1
        took = (ended if answered is None else answered) - command.at
        slowest = max(slowest, (took, command), key=lambda each: each[0])
        if took > allowed_ms:
            what = "was not answered" if answered is None else f"was answered after {took / SECOND:g} s"
            late.append(
                Found(command.at, command.id, f"{type(command).__name__} for {command.subject} {what}")
            )
    kinds = Counter(type(outcome).__name__.lower() for outcome in witness.outcomes)
    del kinds["accepted"]
    words = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
    verdict = _of_found(
        "every command was verified, failed or overtaken by its deadline",
        late,
        f"{due - len(late):,} of {due:,}, the slowest {slowest[0] / SECOND:g} s",
        "none late or unanswered",
    )
    if late or slowest[1] is None:
        return verdict
    # One command has more than one: it is verified, then renewed, and in the end superseded.
    proof = f"{counted(kinds.total(), 'outcome')}, several for some: {words}"
    return msgspec.structs.replace(verdict, at=slowest[1].at, command=slowest[1].id, proof=proof)


def _obedience(scenario: Scenario, setup: Setup, witness: Witness) -> Verdict:
    """A host whose driver the scenario takes away falls to its share by the slow path, which may take as
    long as that path does."""
    undriven = any(
        (isinstance(fault, PathDown) and fault.path == "in_band")
        or (isinstance(fault, GpusFail) and fault.how in ("lost", "hung"))
        for fault in scenario.faults
    )
    lapse_ms = LAPSE_MS + (setup.policy.latency_ms.out_of_band if undriven else 0)
    found = [
        *obeyed_backwards(witness.outcomes),
        *not_as_asked(witness.outcomes, witness.commands),
        *out_of_lease(witness.outcomes, witness.clocks, witness.commands, setup.shares, lapse_ms),
    ]
    found.sort(key=lambda each: each.at)
    bound = f"none for longer than {lapse_ms / SECOND:g} s"
    return _of_found("no host ran looser than its lease allowed", found, counted(len(found), "case"), bound)


def _brakes(bound: int | None, witness: Witness) -> Verdict:
    entered = [at for at, mode in witness.modes if mode == "B"]
    name, figure = "the brake was pulled no oftener than allowed", counted(len(entered), "time")
    if bound is None:
        return _not_judged(name, figure, _NO_BOUND, len(entered))
    # The pull that was one too many, or the first.
    at = entered[min(bound, len(entered) - 1)] if entered else None
    brake = witness.after(at, Brake) if at is not None else None
    return Verdict(
        invariant=name,
        ruling=_ruled(len(entered) <= bound),
        figure=figure,
        bound=f"{bound} at most",
        value=len(entered),
        limit=bound,
        at=at,
        command=brake.id if brake else "",
    )


def _back(bound_min: float | None, witness: Witness, policy: CappingPolicy, over: Instant) -> Verdict:
    """The first moment after the trouble from which no host is held for a lease of the policy, or for its
    dwell where that is longer, and `LAPSE_MS`: by then each permission was renewed or has run out, and a row
    that was let up too early is held again. What demand brings later is no part of the trouble. A row that
    was held, and is free for less than that as the rehearsal ends, was not seen to be back."""
    name = "every host was back at its highest clock in time"
    stays_ms = max(policy.lease_ms, policy.guardrails.dwell_ms) + LAPSE_MS
    after = [each for each in witness.held if each[0] >= over]
    back_at: Instant | None = None
    last: tuple[Instant, str] | None = None
    for at, host, count in after:
        if count:
            back_at, last = None, (at, host)
        elif back_at is None:
            back_at = at
        elif at - back_at >= stays_ms:
            break
    else:
        back_at = back_at if last is None else None
    minutes = None
    if back_at is not None:
        minutes = (back_at - over) / MINUTE
        figure = f"{minutes:.1f} min after the trouble"
    elif last is not None and not after[-1][2]:
        figure = f"held until {(after[-1][0] - last[0]) / SECOND:g} s before the end"
    else:
        figure = f"{counted(after[-1][2] if after else 0, 'host')} held at the end"
    if bound_min is None:
        return _not_judged(name, figure, _NO_BOUND, minutes)
    at, host = last or (over, "")
    told = [each for each in witness.commands.values() if each.subject == host and each.at <= at]
    return Verdict(
        invariant=name,
        ruling=_ruled(minutes is not None and minutes <= bound_min),
        figure=figure,
        bound=f"within {bound_min:g} min, to stay for {stays_ms / SECOND:g} s",
        value=minutes,
        limit=bound_min,
        at=at,
        command=told[-1].id if told else "",
        proof=f"{host} the last" if host else "none was held",
    )


def _latency(bound: float | None, plant: TwinRow, free: TwinRow | None) -> Verdict:
    name = "high priority's P99 latency stayed within its bound"
    ours = plant.statistics().latency_p99_s["high"]
    if bound is None or free is None:
        return _not_judged(name, f"{ours:.0f} s", _NO_BOUND)
    theirs = free.statistics().latency_p99_s["high"]
    ratio, dark = ours / theirs, plant.tripped
    if math.isnan(theirs) and not dark:
        return _not_judged(name, "no request of high priority was done", "nothing to compare")
    figure = f"×{ratio:.2f} ({ours:.0f} s, {theirs:.0f} s with nothing held)"
    if dark:
        figure = "the row went dark"
    elif math.isnan(ours):
        figure = f"no request of high priority was done ({theirs:.0f} s with nothing held)"
    return Verdict(
        invariant=name,
        ruling=_ruled(not dark and ratio <= bound),
        figure=figure,
        bound=f"×{bound:g} at most",
        value=None if dark or math.isnan(ratio) else ratio,
        limit=bound,
        at=plant.tripped_at,
    )


def _heat(bound_s: float, witness: Witness) -> Verdict:
    return Verdict(
        invariant="no GPU stayed at its slowdown temperature",
        ruling=_ruled(witness.hot_s <= bound_s),
        figure=f"{witness.hot_s:g} s at the longest",
        bound=f"{bound_s:g} s at most",
        value=witness.hot_s,
        limit=bound_s,
        at=witness.hottest.at or None,
        proof=witness.hottest.words,
    )


def _ledger(ledger: Ledger, witness: Witness) -> Verdict:
    broken = ledger.verify()
    missing = [command for command in witness.commands.values() if not ledger.holds(command.id)]
    count, head = ledger.head()
    proof = broken or (f"{missing[0].id} is not in it" if missing else f"head {head[:16]}")
    return Verdict(
        invariant="the ledger's chain verifies and has every command",
        ruling=_ruled(not broken and not missing),
        figure=f"{count:,} records, {counted(len(missing), 'command')} missing",
        bound="whole",
        value=len(missing),
        limit=0,
        command=missing[0].id if missing else "",
        at=missing[0].at if missing else None,
        proof=proof,
    )
