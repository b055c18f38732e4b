"""A row's metrics: its series, and the fold that writes them beat by beat."""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from controllers.capping import LADDER
from schemas.commands import Brake, Command, LockClocks
from schemas.decisions import Decision
from schemas.emergencies import Emergency, EmergencyKind
from schemas.forecasts import ForecastScore, PeakForecast
from schemas.instants import Instant
from schemas.outcomes import Failed, Lapsed, Outcome, Released, Renewed, Superseded, Verified
from schemas.samples import PowerRollup
from schemas.topology import Row
from schemas.units import Reading

if TYPE_CHECKING:
    from runtime.row_loop import Beat

Setting = Literal["uncapped", "capped", "braked", "changing", "fallen_back", "unknown"]
"""What a host was last read back at. ``changing``: a newer command took the last one's place and was not
read back yet. ``fallen_back``: its lease lapsed or was released, so it is at its safe share or at what was
found. ``unknown``: nothing was read back yet, or the last command failed."""

_SETTINGS: tuple[Setting, ...] = get_args(Setting)
_MODES = ("U", "T1", "T2a", "T2b", *LADDER[1:], "B")
_KINDS: tuple[EmergencyKind, ...] = get_args(EmergencyKind)
_REMEMBERED = 4_096  # commands of a row without an answer; older ones are lost, and counted without a type


class RowSeries:
    """The metrics that rows share, each labelled by row."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, said: str, *labels: str) -> Gauge:
            made = Gauge(f"windrow_{name}", said, ("row", *labels), registry=registry)
            self._made.append(made)
            return made

        def counter(name: str, said: str, *labels: str) -> Counter:
            made = Counter(f"windrow_{name}", said, ("row", *labels), registry=registry)
            self._made.append(made)
            return made

        self._made: list[Gauge | Counter] = []
        horizon = ("model", "horizon_seconds")
        self.power = gauge("row_power_watts", "The row's power, best reading; NaN when too little is known.")
        self.upper = gauge("row_power_upper_watts", "Upper bound of the row's power.")
        self.budget = gauge("row_budget_watts", "What the row may draw for ever.")
        self.ratio = gauge("row_power_ratio", "The row's power over its budget.")
        self.coverage = gauge("row_coverage_ratio", "Share of the row's nameplate with a trusted reading.")
        self.known = gauge(
            "row_known_timestamp_seconds", "Event time of the oldest reading the power rests on."
        )
        self.hottest = gauge("row_hottest_celsius", "The hottest GPU of the row.")
        self.beat_at = gauge("row_beat_timestamp_seconds", "Event time of the row's last beat.")
        self.shortfall = gauge("row_shortfall_watts", "Power above what the policy can still bring down.")
        self.refusing = gauge("row_refusing", "1 while the policy refuses to decide.")
        self.overruled = gauge(
            "row_overruled_wishes", "Wishes of the last decision that lost to a stricter one."
        )
        self.mode = gauge("row_mode", "1 for the mode that the policy is in.", "mode")
        self.hosts = gauge("row_hosts", "Hosts by what they were last read back at.", "setting")
        self.wanted = gauge("row_hosts_wanted", "Hosts by what the last decision wants of them.", "setting")
        self.open = gauge("emergencies_open", "Emergencies not yet cleared.", "kind")
        self.peak = gauge(
            "row_peak_forecast_watts", "Quantiles of the peak within a horizon.", *horizon, "quantile"
        )
        self.fallback = gauge(
            "row_forecast_fallback", "1 while the baseline stands in for the forecast model."
        )
        self.trusted = gauge("forecast_trusted", "0 while a model did worse than the baseline.", "model")
        self.pinball = gauge("forecast_pinball_watts", "Mean pinball loss.", *horizon)
        self.emergencies = counter("emergencies_total", "Steps in emergencies' lives.", "kind", "phase")
        self.commands = counter("commands_total", "Commands sent.", "command")
        self.outcomes = counter("outcomes_total", "What became of commands.", "command", "outcome")
        self.lapses = counter("lease_lapses_total", "Leases that ran out.")
        self.brakes = counter("row_brakes_total", "Times the policy reached for the power brake.")
        self.withheld = counter("readings_withheld_total", "Readings not trusted, by reason.", "verdict")

    def forget(self, row: str) -> None:
        """The row is no longer this host's: what was last seen of it must not stand for what it does."""
        for made in self._made:
            made.remove_by_labels({"row": row})


class _Asked(NamedTuple):
    """A command without its final word."""

    command: Command
    known_at: Instant | None


class _Held(NamedTuple):
    """What a host was read back at, by which command, and whether that outlives its lease."""

    setting: Setting
    command: str = ""
    lasting: bool = False


class RowMetrics:
    """One row's series, and the little that must be remembered between beats to write them."""

    def __init__(self, series: RowSeries, row: Row, verified_event_s: Histogram) -> None:
        self._all = series
        self._row = row.path
        self._uncapped_mhz = {host.path: host.sku.max_mhz for host in row.hosts}
        self._verified_event_s = verified_event_s
        self._asked: dict[str, _Asked] = {}
        self._held = dict.fromkeys(self._uncapped_mhz, _Held("unknown"))
        self._open: set[tuple[str, str]] = set()
        self._last: Decision | None = None
        self._mode = ""

        path = row.path
        self._power = series.power.labels(path)
        self._upper = series.upper.labels(path)
        self._ratio = series.ratio.labels(path)
        self._coverage = series.coverage.labels(path)
        self._known = series.known.labels(path)
        self._hottest = series.hottest.labels(path)
        self._beat_at = series.beat_at.labels(path)
        self._shortfall = series.shortfall.labels(path)
        self._refusing = series.refusing.labels(path)
        self._overruled = series.overruled.labels(path)
        self._brakes, self._lapses = series.brakes.labels(path), series.lapses.labels(path)
        self._peaks: dict[tuple[str, float, float], Gauge] = {}
        series.budget.labels(path).set(row.budget_w)
        for gauge in (self._power, self._upper, self._ratio, self._known, self._hottest):
            gauge.set(math.nan)
        for mode in _MODES:
            series.mode.labels(path, mode)
        for kind in _KINDS:
            series.open.labels(path, kind)
            series.emergencies.labels(path, kind, "raised")
        for command in ("LockClocks", "Brake"):
            series.commands.labels(path, command)
            for outcome in Outcome.__subclasses__():
                series.outcomes.labels(path, command, outcome.__name__)
        self._count_hosts()
        self._count_wanted(())

    def fold(self, beat: Beat) -> None:
        """Fold one beat of this row."""
        self._beat_at.set(beat.tick.at / 1000)
        self._look(beat.rollup)
        self._decide(beat.decision)
        for forecast in beat.forecasts:
            self._foresee(forecast)
        for emergency in beat.emergencies:
            self._alarm(emergency)
        changed = False
        for event in beat.inputs:
            if isinstance(event, Outcome):
                changed |= self._hear(event)
            elif isinstance(event, Emergency):
                self._alarm(event)
        if changed:
            self._count_hosts()
        if beat.commands:
            self._ask(beat.commands, beat.rollup.known_at)

    def _look(self, rollup: PowerRollup) -> None:
        self._power.set(_number(rollup.power_w))
        self._upper.set(rollup.upper_w)
        self._ratio.set(_number(rollup.power_w) / rollup.budget_w)
        self._coverage.set(rollup.coverage_ratio)
        self._known.set(_number(rollup.known_at) / 1000)
        self._hottest.set(_number(rollup.hottest_c))
        for verdict, count in rollup.verdicts.items():
            self._all.withheld.labels(self._row, verdict).inc(count)

    def _decide(self, decision: Decision) -> None:
        self._shortfall.set(decision.shortfall_w)
        self._refusing.set(bool(decision.refusal))
        self._overruled.set(len(decision.overruled))
        if decision.mode != self._mode:
            if self._mode:
                self._all.mode.labels(self._row, self._mode).set(0)
            self._all.mode.labels(self._row, decision.mode).set(1)
            self._mode = decision.mode
        before, self._last = self._last, decision
        if before is None or before.desired != decision.desired:
            wanted = [self._setting(s.target, s.max_mhz, s.brake) for s in decision.desired]
            self._count_wanted(wanted)
            if "braked" in wanted and not any(s.brake for s in (before.desired if before else ())):
                self._brakes.inc()

    def _foresee(self, forecast: PeakForecast | ForecastScore) -> None:
        model = forecast.model
        if isinstance(forecast, ForecastScore):
            self._all.trusted.labels(self._row, model).set(forecast.trusted)
            for horizon_s, loss_w in zip(forecast.horizons_s, forecast.pinball_w, strict=True):
                self._all.pinball.labels(self._row, model, f"{horizon_s:g}").set(loss_w)
            return
        self._all.fallback.labels(self._row).set(bool(forecast.fallback))
        for horizon_s, values in zip(forecast.horizons_s, forecast.values, strict=True):
            for quantile, watts in zip(forecast.quantiles, values, strict=True):
                peak = self._peaks.get((model, horizon_s, quantile))
                if peak is None:
                    peak = self._all.peak.labels(self._row, model, f"{horizon_s:g}", f"{quantile:g}")
                    self._peaks[model, horizon_s, quantile] = peak
                peak.set(watts)

    def _alarm(self, emergency: Emergency) -> None:
        known = (emergency.kind, emergency.subject)
        (self._open.discard if emergency.phase == "cleared" else self._open.add)(known)
        self._all.emergencies.labels(self._row, emergency.kind, emergency.phase).inc()
        still = sum(kind == emergency.kind for kind, _ in self._open)
        self._all.open.labels(self._row, emergency.kind).set(still)

    def _ask(self, commands: tuple[Command, ...], known_at: Instant | None) -> None:
        for kind, count in Tally(type(command).__name__ for command in commands).items():
            self._all.commands.labels(self._row, kind).inc(count)
        for command in commands:
            self._asked[command.id] = _Asked(command, known_at)
        while len(self._asked) > _REMEMBERED:
            del self._asked[next(iter(self._asked))]

    def _hear(self, outcome: Outcome) -> bool:
        """Fold one outcome; whether it changed what the host is at."""
        asked = self._asked.get(outcome.command)
        name = type(asked.command).__name__ if asked else "unknown"
        self._all.outcomes.labels(self._row, name, type(outcome).__name__).inc()
        if isinstance(outcome, Lapsed) and outcome.command:  # without one: a host taken up at its safe share
            self._lapses.inc()
        held = self._held.get(outcome.subject)
        if held is None:
            return False
        if asked is not None and isinstance(outcome, Verified) and asked.known_at is not None:
            self._verified_event_s.observe(max(0.0, (outcome.at - asked.known_at) / 1000))
            self._asked[outcome.command] = _Asked(asked.command, None)  # a second read-back is no new delay
        now = self._after(outcome, held, asked)
        self._held[outcome.subject] = now
        if held.command != now.command:
            self._asked.pop(held.command, None)
        return now.setting != held.setting

    def _after(self, outcome: Outcome, held: _Held, asked: _Asked | None) -> _Held:
        """What the host is at after an outcome. The end of a command that is not the one read back last
        changes nothing: a brake is released after the lock that takes its place."""
        of_held = held.command in ("", outcome.command)
        match outcome:
            case Verified() | Renewed():
                if asked is None:
                    return _Held("unknown", outcome.command)
                command = asked.command
                mhz = command.max_mhz if isinstance(command, LockClocks | Brake) else 0
                setting = self._setting(outcome.subject, mhz, isinstance(command, Brake))
                return _Held(setting, command.id, command.lease.on_expiry == "hold")
            case Superseded() if of_held:
                return _Held("changing")
            case Failed() if of_held:
                return _Held("unknown")
            case Released() | Lapsed() if of_held and not (held.lasting and isinstance(outcome, Lapsed)):
                return _Held("fallen_back")
        return held

    def _setting(self, host: str, max_mhz: int, brake: bool) -> Setting:
        if brake:
            return "braked"
        return "uncapped" if max_mhz >= self._uncapped_mhz.get(host, 0) else "capped"

    def _count_hosts(self) -> None:
        found = Tally(held.setting for held in self._held.values())
        for setting in _SETTINGS:
            self._all.hosts.labels(self._row, setting).set(found[setting])

    def _count_wanted(self, wanted: Iterable[Setting]) -> None:
        found = Tally(wanted)
        for setting in _SETTINGS[:3]:
            self._all.wanted.labels(self._row, setting).set(found[setting])


def _number(reading: Reading) -> float:
    return math.nan if reading is None else reading
