"""What a stretch of time came to, in an SRE's terms: folded from beats, live or replayed."""

from __future__ import annotations

import msgspec

from runtime.row_loop import Beat
from schemas.commands import Brake, Command, LockClocks
from schemas.instants import Instant, Span
from schemas.outcomes import Failed, Lapsed, Released, Renewed, Superseded, Verified
from schemas.topology import Row


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A row over a stretch of event time. Shares of time are in seconds; `capped_minutes` are
    host-minutes with a clock ceiling in force below the SKU's highest clock, by priority."""

    row: str
    policy: str
    start: Instant
    end: Instant
    beats: int
    budget_w: float
    peak_w: float | None
    peak_at: Instant | None
    over_budget_s: float
    unknown_s: float
    brakes: int
    modes_s: dict[str, float]
    commands: dict[str, int]
    outcomes: dict[str, int]
    capped_minutes: dict[str, float]
    emergencies: dict[str, int]
    refusals_s: float
    verdicts: dict[str, int]

    @property
    def peak_ratio(self) -> float | None:
        """The peak as a share of the budget."""
        return None if self.peak_w is None else self.peak_w / self.budget_w


class Summing:
    """Folds a row's beats into a Summary."""

    def __init__(self, row: Row, policy: str) -> None:
        self._row = row
        self._policy = policy
        self._hosts = {host.path: host for host in row.hosts}
        self._asked: dict[str, LockClocks | Brake] = {}
        self._in_force: dict[str, LockClocks | Brake] = {}
        self._start: Instant | None = None
        self._last: Instant | None = None
        self._mode = ""
        self._refused = False
        self._power_w: float | None = None
        self._peak_w: float | None = None
        self._peak_at: Instant | None = None
        self._over_ms: Span = 0
        self._unknown_ms: Span = 0
        self._refused_ms: Span = 0
        self._beats = 0
        self._braking = False
        self._brakes = 0
        self._modes: dict[str, Span] = {}
        self._commands: dict[str, int] = {}
        self._outcomes: dict[str, int] = {}
        self._capped: dict[str, float] = {"high": 0.0, "low": 0.0}
        self._emergencies: dict[str, int] = {}
        self._verdicts: dict[str, int] = {}

    def observe(self, beat: Beat) -> None:
        """Take one beat in."""
        if beat.tick.subject != self._row.path:
            return
        self._pass_time(beat.tick.at)
        self._beats += 1
        self._read(beat)
        self._settle(beat)
        for command in beat.commands:
            self._ask(command)
        for emergency in beat.emergencies:
            if emergency.phase == "raised":
                self._emergencies[emergency.kind] = self._emergencies.get(emergency.kind, 0) + 1

    def result(self) -> Summary:
        """What it came to so far."""
        return Summary(
            row=self._row.path,
            policy=self._policy,
            start=self._start or 0,
            end=self._last or 0,
            beats=self._beats,
            budget_w=self._row.budget_w,
            peak_w=self._peak_w,
            peak_at=self._peak_at,
            over_budget_s=self._over_ms / 1000,
            unknown_s=self._unknown_ms / 1000,
            brakes=self._brakes,
            modes_s={mode: span / 1000 for mode, span in self._modes.items()},
            commands=dict(self._commands),
            outcomes=dict(self._outcomes),
            capped_minutes=dict(self._capped),
            emergencies=dict(self._emergencies),
            refusals_s=self._refused_ms / 1000,
            verdicts=dict(self._verdicts),
        )

    def _pass_time(self, now: Instant) -> None:
        """Charge the time since the last beat to what held during it."""
        if self._start is None:
            self._start = now
        span = max(0, now - self._last) if self._last is not None else 0
        self._last = now
        if not span:
            return
        self._modes[self._mode] = self._modes.get(self._mode, 0) + span
        self._refused_ms += span if self._refused else 0
        if self._power_w is None:
            self._unknown_ms += span
        elif self._power_w > self._row.budget_w:
            self._over_ms += span
        for path, command in self._in_force.items():
            host = self._hosts[path]
            if command.max_mhz < host.sku.max_mhz:
                self._capped[host.priority] += span / 60_000

    def _read(self, beat: Beat) -> None:
        self._mode, self._refused = beat.decision.mode, bool(beat.decision.refusal)
        braking = any(setting.brake for setting in beat.decision.desired)
        self._brakes += braking and not self._braking
        self._braking = braking
        self._power_w = beat.rollup.power_w
        if self._power_w is not None and (self._peak_w is None or self._power_w > self._peak_w):
            self._peak_w, self._peak_at = self._power_w, beat.tick.at
        for verdict, count in beat.rollup.verdicts.items():
            self._verdicts[verdict] = self._verdicts.get(verdict, 0) + count

    def _settle(self, beat: Beat) -> None:
        for event in beat.inputs:
            if isinstance(event, Verified | Renewed):
                command = self._asked.pop(event.command, None)
                if command is not None:
                    self._in_force[event.subject] = command
            elif isinstance(event, Failed | Superseded):
                self._asked.pop(event.command, None)
            elif isinstance(event, Lapsed | Released):
                self._end(event)
            else:
                continue
            kind = type(event).__name__
            self._outcomes[kind] = self._outcomes.get(kind, 0) + 1

    def _end(self, outcome: Lapsed | Released) -> None:
        """A lease that ran out, or a setting given back. A brake outlives its lease, and is given back only
        once the lock that takes its place was read back: that lock stays in force."""
        held = self._in_force.get(outcome.subject)
        holds_on = isinstance(outcome, Lapsed) and held is not None and held.lease.on_expiry == "hold"
        if held is not None and outcome.command in ("", held.id) and not holds_on:
            del self._in_force[outcome.subject]

    def _ask(self, command: Command) -> None:
        kind = type(command).__name__
        self._commands[kind] = self._commands.get(kind, 0) + 1
        if isinstance(command, LockClocks | Brake):
            self._asked[command.id] = command
