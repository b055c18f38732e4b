"""The capping policy: thresholds, open points, paths, leases and guardrails, as one value.

Defaults are POLCA's where it published them (thresholds 0.80 and 0.89, the 40 s and 5 s paths) and
say so; what the study leaves open is a switch, and `switches_in_words` reports which value is in
force. `read_policy` reads a TOML file and names every problem in it, in the operator's words.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from controllers.clock_table import PUBLISHED, Clocks, ClockTable, Uncalibrated, from_fractions, settle
from schemas.commands import Path
from schemas.instants import MINUTE, SECOND, Span
from schemas.skus import Sku
from schemas.toml_tables import NotToml, Table, read_toml
from schemas.topology import Host, Row

Variant: TypeAlias = Literal[
    "polca", "polca_forecast", "proportional", "one_threshold_low", "one_threshold_all", "no_cap", "off"
]  # fmt: skip
"""``polca`` the state table as published; ``polca_forecast`` the same, stepping up on the forecast peak
too; ``proportional`` climbs a ladder of finer caps, by as much as the power is above its threshold;
``one_threshold_low`` and ``one_threshold_all`` the study's baselines; ``no_cap`` the brake alone;
``off`` grants headroom to everyone, without brake and without guardrails: for comparison runs only."""

# A field's type carries what it takes in the operator's words.
_Share: TypeAlias = Annotated[
    float, Meta(gt=0, le=1.5, description="a share of the row's budget, above 0 and at most 1.5")
]
_Part: TypeAlias = Annotated[float, Meta(gt=0, le=1, description="a share above 0 and at most 1")]
_Chance: TypeAlias = Annotated[float, Meta(ge=0, lt=1, description="a probability, 0 or more and below 1")]
_Quantile: TypeAlias = Annotated[float, Meta(gt=0, lt=1, description="a quantile between 0 and 1")]
_Span: TypeAlias = Annotated[
    int, Meta(gt=0, le=86_400_000, description="whole milliseconds above 0, a day at most")
]
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=1000, description="a whole number from 0 to 1000")]
_Periods: TypeAlias = Annotated[
    int, Meta(ge=1, le=1000, description="a whole number of control periods, 1 to 1000")
]
_Clock: TypeAlias = Annotated[int, Meta(gt=0, le=10_000, description="a clock in whole MHz, 1 to 10000")]


UPS_DEADLINE_MS: Span = 10 * SECOND
"""How long a UPS carries another's share before it gives up, at least (secondary)."""


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """A threshold with hysteresis, shares of the row's budget: step up above `enter`, back below `leave`."""

    enter: _Share
    leave: _Share


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """How long a command takes to bite, at most, per path: 40 s out of band and 5 s by the brake are
    published, 1 s in band is our choice."""

    in_band: _Span = 1 * SECOND
    out_of_band: _Span = 40 * SECOND
    brake: _Span = 5 * SECOND

    def of(self, path: Path) -> Span:
        """The latency of a path."""
        return {"in_band": self.in_band, "out_of_band": self.out_of_band, "brake": self.brake}[path]


class Switches(msgspec.Struct, frozen=True, kw_only=True):
    """What the study leaves open, one field per open point; the default is our reading.

    `stale_hold_periods` and `stale_safe_periods` are the two bounds on the age of the row's power:
    past the first the caps hold and nothing loosens, past the second the row goes to its strictest
    caps with an alarm. `oob_latency` and `oob_loss` describe the out-of-band path to whoever models
    it; the controller needs only its bound, its retries and the read-back.
    """

    hp_escalation: Literal["after_lp_effective", "immediate"] = "after_lp_effective"
    uncap_rule: Literal["staged", "both_below_T2"] = "staged"
    brake_release: Literal["calm", "manual"] = "calm"
    brake_calm_ms: _Span = 40 * SECOND
    spike_model: Literal["multiplicative", "additive"] = "multiplicative"
    inflight: Literal["one_outstanding_latest_wins", "reissue"] = "one_outstanding_latest_wins"
    oob_latency: Literal["constant_40", "uniform_to_40"] = "constant_40"
    oob_loss: _Chance = 0.0
    lock_range: Literal["[min,f]", "[f,f]"] = "[min,f]"
    stale_hold_periods: _Periods = 5
    stale_safe_periods: _Periods = 10
    baseline_threshold: Literal["0.89", "0.80"] = "0.89"


class Guardrails(msgspec.Struct, frozen=True, kw_only=True):
    """Limits on whatever a policy wishes. All are our choices, after the safety targets.

    `floor_ratio`: no policy sets a ceiling below this share of a board's highest clock; the brake
    and a person may. `dwell_ms`: between two loosening steps of a host, after an outage, and between
    two waves of hosts coming back from a brake, an outage or a start. `blast_ratio` of the row's
    hosts may be loosened within `blast_window_ms`, and come back in one wave.
    """

    floor_ratio: _Part = 0.5
    dwell_ms: _Span = 60 * SECOND
    blast_ratio: _Part = 0.5
    blast_window_ms: _Span = 5 * MINUTE


class ForecastUse(msgspec.Struct, frozen=True, kw_only=True):
    """Which forecast `polca_forecast` reads: this quantile of the peak, over the path's latency
    (the shortest horizon on offer that covers it)."""

    quantile: _Quantile = 0.95


BUILT_IN = "built-in"
"""Where a policy was read that is in no file."""


class CappingPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """One row's capping policy. `name` is where it was read; the rest is documented on its parts.

    A command is lost when nothing is heard of it `latency + verify_margin_ms` after it was asked. A
    host is asked again `retries` times, then counts as failed and is asked once per `retry_slow_ms`.
    `landed_ratio` of the low-priority hosts must be at their step before high priority is capped
    (our choice: few who do not answer are not to hold the row up).
    """

    name: str = BUILT_IN
    variant: Variant = "polca"
    path: Literal["in_band", "out_of_band"] = "out_of_band"
    period_ms: _Span = 2 * SECOND
    lease_ms: _Span = 90 * SECOND
    renew_ms: _Span = 45 * SECOND
    verify_margin_ms: _Span = 5 * SECOND
    retries: _Count = 2
    retry_slow_ms: _Span = 5 * MINUTE
    coverage_ratio: _Part = 0.8
    landed_ratio: _Part = 0.9
    brake: _Share = 1.0
    allow_fraction_defaults: bool = False
    allow_slow_brake: bool = False
    t1: Band = Band(enter=0.80, leave=0.75)
    t2: Band = Band(enter=0.89, leave=0.84)
    latency_ms: Latency = Latency()
    switches: Switches = Switches()
    guardrails: Guardrails = Guardrails()
    forecast: ForecastUse = ForecastUse()
    clocks: dict[str, ClockTable] = {}

    @property
    def baseline(self) -> Band:
        """The single threshold of the baselines, with the width of POLCA's own band at T2."""
        enter = float(self.switches.baseline_threshold)
        return Band(enter=enter, leave=round(enter - (self.t2.enter - self.t2.leave), 6))

    @property
    def hold_ms(self) -> Span:
        """The oldest reading that may be decided on."""
        return self.switches.stale_hold_periods * self.period_ms

    @property
    def safe_ms(self) -> Span:
        """The age of the last good reading past which the row goes to its strictest caps."""
        return self.switches.stale_safe_periods * self.period_ms

    def answer_ms(self, path: Path, *, renewal: bool = False) -> Span:
        """How long to wait for word of a command. A renewal needs no device, only its host's agent."""
        return self.verify_margin_ms + (0 if renewal else self.latency_ms.of(path))

    def path_to(self, host: Host, *, brake: bool) -> Path:
        """The path of a command to this host: the brake line where it has one, the policy's path where
        it offers that, else the fastest that it has."""
        first: Path = "brake" if brake else self.path
        wanted: tuple[Path, ...] = (first, "in_band", "out_of_band")
        return next((path for path in wanted if path in host.paths), self.path)

    def clocks_of(self, sku: Sku) -> Clocks:
        """The clocks of a board: the policy's own table, else the published one, else fractions of
        its highest clock where those are allowed. Raises Uncalibrated."""
        table = self.clocks.get(sku.name) or PUBLISHED.get(sku.name)
        if table is None:
            if not self.allow_fraction_defaults:
                built_in = self.name == BUILT_IN
                lacks = "the built-in policy has" if built_in else f"{self.name}:"
                where = " in a policy file (--policy FILE)" if built_in else ""
                raise Uncalibrated(
                    f"{lacks} no clock table for {sku.name}: sweep it and state [clocks.{sku.name}]{where},"
                    " or set allow_fraction_defaults = true there, to start from fractions of its highest"
                    " clock"
                )
            table = from_fractions(sku)
        return settle(table, sku)

    def unfit_for(self, row: Row) -> tuple[str, ...]:
        """Why this policy cannot run this row, in words; empty when it can. Asked before a start."""
        problems = []
        for sku in {host.sku.name: host.sku for host in row.hosts}.values():
            try:
                clocks = self.clocks_of(sku)
            except Uncalibrated as error:
                problems.append(str(error))
                continue
            floor = self.guardrails.floor_ratio * sku.max_mhz
            if clocks.low_t2 < floor:
                most = clocks.low_t2 / sku.max_mhz
                problems.append(
                    f"{self.name}: guardrails.floor_ratio = {self.guardrails.floor_ratio:g}: must be at most "
                    f"{most:.3f}, or it forbids the cap of {clocks.low_t2} MHz on {sku.name}"
                )
        slow = [
            host.path
            for host in row.hosts
            if self.latency_ms.of(self.path_to(host, brake=True)) > UPS_DEADLINE_MS
        ]
        may_brake = self.variant != "off" and row.rated_w > row.budget_w
        if slow and may_brake and not self.allow_slow_brake:
            names = ", ".join(slow[:3]) + (f" and {len(slow) - 3} more" if len(slow) > 3 else "")
            problems.append(
                f"{self.name}: {row.path} is oversubscribed ({row.rated_w / 1000:g} kW rated on "
                f"{row.budget_w / 1000:g} kW) and no path brakes {names} within the "
                f"{UPS_DEADLINE_MS / SECOND:g} s that a UPS carries another's load: give them brake or "
                "in_band, or set allow_slow_brake = true to run without that"
            )
        return tuple(problems)

    def switches_in_words(self) -> tuple[str, ...]:
        """Which value of each open point is in force, for the check command and the record."""
        s = self.switches
        calm = f" (p < {self.t2.leave:g} for {s.brake_calm_ms / SECOND:g} s)"
        hold = f"hold after {s.stale_hold_periods} periods ({self.hold_ms / SECOND:g} s)"
        safe = f"strictest caps after {s.stale_safe_periods} ({self.safe_ms / SECOND:g} s)"
        return (
            f"hp_escalation = {s.hp_escalation}",
            f"uncap_rule = {s.uncap_rule}",
            f"brake_release = {s.brake_release}{calm if s.brake_release == 'calm' else ''}",
            f"spike_model = {s.spike_model}",
            f"inflight = {s.inflight}",
            f"oob_latency = {s.oob_latency}",
            f"oob_loss = {s.oob_loss:g}",
            f"lock_range = {s.lock_range}",
            f"stale = {hold}, {safe}",
            f"baseline_threshold = {s.baseline_threshold}",
        )


DEFAULT_POLICY = CappingPolicy()
"""POLCA with every open point at its default."""


class PolicyFileError(ValueError):
    """The policy file cannot be used: one line per problem, with file, key, value and what is allowed."""


def read_policy(text: str, name: str) -> CappingPolicy:
    """The policy that TOML `text` states; `name` is the file's name as the operator knows it.

    What is not stated keeps its default. Raises PolicyFileError with all problems, one a line.
    """
    try:
        root = read_toml(text, name)
    except NotToml as error:
        raise PolicyFileError(str(error)) from error
    policy: CappingPolicy = _read(CappingPolicy(name=name), root)
    # What one key's neighbours forbid is worth saying only once each key is sound by itself.
    problems = root.problems or [f"{name}: {text}" for text in _disagreements(policy)]
    if problems:
        raise PolicyFileError("\n".join(problems))
    return policy


def _read(default: Any, table: Table) -> Any:
    """`default` with what a TOML table states, key by key, so that one bad key hides no other."""
    good: dict[str, Any] = {}
    for field in msgspec.structs.fields(default):
        key, usual = field.name, getattr(default, field.name)
        if key == "name":
            continue
        if key == "clocks":
            good[key] = _read_clocks(table.table(key))
        elif isinstance(usual, msgspec.Struct):
            part = table.table(key)
            if part is not None:
                good[key] = _read(usual, part)
        elif table.has(key) and _sound(table, key, field.type):
            good[key] = msgspec.convert(table.raw[key], field.type)
    table.close()
    return msgspec.structs.replace(default, **good)


def _read_clocks(boards: Table | None) -> dict[str, ClockTable]:
    """The board tables under [clocks.NAME]; each states all of its steps."""
    tables: dict[str, ClockTable] = {}
    steps = [field.name for field in msgspec.structs.fields(ClockTable)]
    for board in boards.raw if boards is not None else ():
        assert boards is not None
        stated = boards.table(board)
        if stated is None:
            continue
        missing = [step for step in steps if not stated.has(step)]
        for step in missing:
            stated.missing(step, f"a board states {', '.join(steps)} (MHz)")
        sound = [_sound(stated, step, _Clock) for step in steps if step not in missing]
        stated.close()
        if missing or not all(sound):
            continue
        table = tables[board] = msgspec.convert({step: stated.raw[step] for step in steps}, ClockTable)
        if not (table.brake < table.low_t2 < table.low_t1 and table.low_t2 < table.high_t2):
            boards.wrong(board, "must be in the order brake < low_t2 < low_t1 and low_t2 < high_t2")
    return tables


def _sound(table: Table, key: str, kind: Any) -> bool:
    """Whether the value of `key` is what its field takes; noted when it is not."""
    wrong = _wrong(table.raw[key], kind)
    if wrong is not None:
        table.wrong(key, f"must be {wrong}")
    return wrong is None


def _wrong(value: Any, kind: Any) -> str | None:
    """What `value` must be instead, in words; None when it is right."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return _allowed(kind)
    return _allowed(kind) if isinstance(value, float) and not math.isfinite(value) else None


def _allowed(kind: Any) -> str:
    """What a field takes, in words."""
    if kind is bool:
        return "true or false"
    described = msgspec.inspect.type_info(kind)
    if isinstance(described, msgspec.inspect.LiteralType):
        return "one of " + ", ".join(f'"{value}"' for value in described.values)
    return str(kind.__metadata__[0].description)


def _disagreements(policy: CappingPolicy) -> list[str]:
    """Where sound values contradict each other, in words."""
    found = []
    for key, band in (("t1", policy.t1), ("t2", policy.t2)):
        if band.leave >= band.enter:
            found.append(f"{key}.leave = {band.leave:g}: must be below {key}.enter = {band.enter:g}")
    if policy.t2.leave < policy.t1.enter:
        found.append(f"t2.leave = {policy.t2.leave:g}: must be at or above t1.enter = {policy.t1.enter:g}")
    if policy.brake <= policy.t2.enter:
        found.append(f"brake = {policy.brake:g}: must be above t2.enter = {policy.t2.enter:g}")
    if policy.renew_ms >= policy.lease_ms:
        found.append(f"renew_ms = {policy.renew_ms}: must be below lease_ms = {policy.lease_ms}")
    if policy.lease_ms <= policy.answer_ms(policy.path):
        found.append(
            f"lease_ms = {policy.lease_ms}: must be above latency_ms.{policy.path} + verify_margin_ms = "
            f"{policy.answer_ms(policy.path)}, or a lease ends before its command has landed"
        )
    if policy.renew_ms <= policy.safe_ms:
        found.append(
            f"renew_ms = {policy.renew_ms}: must be above switches.stale_safe_periods x period_ms = "
            f"{policy.safe_ms}, so that a short outage of the telemetry costs no lease"
        )
    if policy.switches.stale_safe_periods <= policy.switches.stale_hold_periods:
        found.append(
            f"switches.stale_safe_periods = {policy.switches.stale_safe_periods}: "
            f"must be above stale_hold_periods = {policy.switches.stale_hold_periods}"
        )
    return found
