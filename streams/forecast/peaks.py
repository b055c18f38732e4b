"""The highest power of a row in the next seconds, as quantiles that hold what they promise.

Two models run side by side at each rollup:

- the baseline: the level now, and the quantiles of how far the peak rose above the level over the
  trailing hour. While that history is short a prior stands in where it is higher: the published rise
  of an inference row, 11.8 % in 40 s, and 9 % in 2 s (recalled, weak);
- a linear quantile model (`learned`), if one is given, to which the quantiles of its own recent
  residuals are added, so that it is calibrated on the row it serves whatever it was fitted on.

Both are judged when their longest horizon has passed (`scoring`). The baseline is published until the
model has proved itself on this row, and again whenever it does worse; `fallback` says why.

Horizons are counted in ticks of `period_ms`. A rollup that is unknown, or comes at another time than
the next tick (also an earlier one: a clock was set back), ends the run of history: nothing is
interpolated, no outcome spans a gap, and nothing is forecast from an unknown level. What was learned
of rises before the gap is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from schemas.envelope import Event
from schemas.forecasts import ForecastScore, PeakForecast
from schemas.instants import SECOND, Instant, Span
from schemas.samples import PowerRollup
from schemas.units import FloatArray
from streams.forecast.fitted import PEAKS
from streams.forecast.learned import HISTORY, PeakModel, features
from streams.forecast.scoring import Scores, Trust, TrustRules
from streams.forecast.trailing import Trailing
from streams.quality import NEVER

HORIZONS_S = (2.0, 10.0, 40.0)
QUANTILES = (0.5, 0.9, 0.99)

BASELINE = "peaks/trailing-rise"

_HISTORY_TICKS = 1800  # rises remembered: an hour at 2 s
_ENOUGH = 150  # rises (5 min) before they stand without the prior; our choice
_SCORE_EVERY = 30  # moments between two published scores: a minute at 2 s; our choice

# Highest rise of an inference row, share of the level: 9 % in 2 s (recalled, weak), 11.8 % in 40 s
# (published); between them on a straight line over the logarithm of time, at 0.9 half of the
# highest and at 0.5 none (derived).
_PRIOR_RISE = np.outer((0.09, 0.105, 0.118), (0.0, 0.5, 1.0))


_EACH_QUANTILE = QUANTILES * len(HORIZONS_S)  # in the order of residuals


class Issued:
    """What was forecast at one tick: both models' values, and what their residuals are taken from."""

    __slots__ = ("centre_w", "forecasts_w", "level_w")

    def __init__(self, level_w: float, centre_w: FloatArray | None, forecasts_w: list[FloatArray]) -> None:
        self.level_w = level_w
        self.centre_w = centre_w
        self.forecasts_w = forecasts_w


class PeakState:
    """The run of powers, what was forecast over it, and what was learned of rises and residuals."""

    __slots__ = (
        "issued",
        "powers_w",
        "residuals_w",
        "rises_w",
        "rolled_at",
        "scores",
        "trust",
        "unpublished",
    )

    def __init__(self, longest: int, models: int, rules: TrustRules) -> None:
        shape = (len(HORIZONS_S), len(QUANTILES))
        self.rolled_at: Instant = NEVER
        self.powers_w: list[float] = []
        self.issued: deque[Issued] = deque(maxlen=longest)
        self.rises_w = [Trailing(_HISTORY_TICKS) for _ in HORIZONS_S]
        self.residuals_w = (
            [Trailing(_HISTORY_TICKS) for _ in range(shape[0] * shape[1])] if models > 1 else []
        )
        self.scores = Scores(rules.window, models, *shape)
        self.trust = Trust()
        self.unpublished = 0


class PeakForecaster:
    """PowerRollup in; a PeakForecast for each one that is known, and a ForecastScore per model each
    minute. Without a model, or with one that was fitted for other ticks, the baseline runs alone."""

    def __init__(
        self,
        row_path: str,
        model: PeakModel | None = PEAKS,
        *,
        period_ms: Span = 2 * SECOND,
        rules: TrustRules | None = None,
    ) -> None:
        self._row_path = row_path
        self._source = f"streams/forecast/peaks/{row_path}"
        self._period_ms = period_ms
        self._rules = rules or TrustRules()
        self._ticks = [max(1, round(horizon_s * SECOND / period_ms)) for horizon_s in HORIZONS_S]
        self._quantiles = np.array(QUANTILES)
        self._unfit = ""
        if model is not None and (model.period_ms, model.horizons_s, model.quantiles) != (
            period_ms,
            HORIZONS_S,
            QUANTILES,
        ):
            self._unfit = (
                f"{model.name} was fitted for ticks of {model.period_ms} ms, other horizons or quantiles"
            )
            model = None
        self._models = (BASELINE,) if model is None else (BASELINE, model.name)
        self._coefficients = None if model is None else np.array(model.coefficients)

    def key(self, event: Event) -> str:
        """The row."""
        return self._row_path

    def initial(self) -> PeakState:
        """Nothing known of the row."""
        return PeakState(self._ticks[-1], len(self._models), self._rules)

    def step(
        self, state: PeakState, events: Sequence[Event]
    ) -> tuple[PeakState, list[PeakForecast | ForecastScore]]:
        """Take the rollups in; others pass unread."""
        out: list[PeakForecast | ForecastScore] = []
        for event in events:
            if not isinstance(event, PowerRollup) or event.subject != self._row_path:
                continue
            before, state.rolled_at = state.rolled_at, event.at
            if event.at == before:
                continue
            on_beat = abs(event.at - before - self._period_ms) <= self._period_ms // 2
            if event.power_w is None or not on_beat:
                state.powers_w.clear()
                state.issued.clear()
            if event.power_w is not None:
                self._take(state, event, event.power_w, out)
        return state, out

    def _take(
        self, state: PeakState, rollup: PowerRollup, level_w: float, out: list[PeakForecast | ForecastScore]
    ) -> None:
        powers_w = state.powers_w
        powers_w.append(level_w)
        if len(powers_w) > HISTORY:
            del powers_w[0]
        self._measure_lead(state, rollup)
        if len(state.issued) == self._ticks[-1] and self._judge(state):
            state.unpublished += 1
            if state.unpublished >= _SCORE_EVERY:
                state.unpublished = 0
                out.extend(self._scores(state, rollup))

        forecasts_w = [self._baseline(state, level_w)]
        centre_w: FloatArray | None = None
        if self._coefficients is None:
            why_not = self._unfit
        elif len(powers_w) < HISTORY:
            why_not = f"only {len(powers_w)} of {HISTORY} readings since the last gap"
        else:
            centre_w = level_w + self._coefficients @ features(powers_w)
            why_not = state.trust.why_not
            if len(state.residuals_w[0]) >= _ENOUGH:
                offsets_w = [r.quantile(q) for r, q in zip(state.residuals_w, _EACH_QUANTILE, strict=True)]
                forecasts_w.append(_in_order(centre_w + np.reshape(offsets_w, centre_w.shape)))
            else:
                why_not = f"only {len(state.residuals_w[0])} of {_ENOUGH} residuals on this row"
        state.issued.append(Issued(level_w, centre_w, forecasts_w))
        learned = len(forecasts_w) > 1 and not why_not
        out.append(
            PeakForecast(
                at=rollup.at,
                source=self._source,
                subject=self._row_path,
                cause=(rollup.id,),
                model=self._models[learned],
                horizons_s=HORIZONS_S,
                quantiles=QUANTILES,
                values=tuple(map(tuple, forecasts_w[learned].round(3).tolist())),
                fallback=why_not,
            )
        )

    def _baseline(self, state: PeakState, level_w: float) -> FloatArray:
        n = len(state.rises_w[0])
        if n == 0:
            return _in_order(level_w * (1.0 + _PRIOR_RISE))
        rises_w = np.array([rises.quantiles(QUANTILES) for rises in state.rises_w])
        if n < _ENOUGH:
            rises_w = np.maximum(rises_w, level_w * _PRIOR_RISE)
        return _in_order(level_w + rises_w)

    def _judge(self, state: PeakState) -> bool:
        """Hold the oldest forecast still open to what came, now that its longest horizon has passed.
        Whether all models had made one, so that they could be compared."""
        issued, powers_w, longest = state.issued[0], state.powers_w, self._ticks[-1]
        since_w = powers_w[-longest:]
        peaks_w = [max(since_w[:ticks]) for ticks in self._ticks]
        compared = len(issued.forecasts_w) == len(self._models)
        if compared:
            state.scores.judge(np.array(issued.forecasts_w), np.array(peaks_w), self._quantiles)
            if len(self._models) > 1:
                state.trust.step(state.scores, self._rules)
        for rises, peak_w in zip(state.rises_w, peaks_w, strict=True):
            rises.push(peak_w - issued.level_w)
        if issued.centre_w is not None:
            flat_w = issued.centre_w.ravel().tolist()
            for i, (residuals, centre_w) in enumerate(zip(state.residuals_w, flat_w, strict=True)):
                residuals.push(peaks_w[i // len(QUANTILES)] - centre_w)
        return compared

    def _measure_lead(self, state: PeakState, rollup: PowerRollup) -> None:
        """At a crossing of the budget: for how long before it each model had foretold it, without a
        break, with its highest quantile over its longest horizon."""
        powers_w, budget_w = state.powers_w, rollup.budget_w
        if len(powers_w) < 2 or not powers_w[-2] <= budget_w < powers_w[-1]:
            return
        for model, leads_s in enumerate(state.scores.leads_s):
            ticks = 0
            for issued in reversed(state.issued):
                if model >= len(issued.forecasts_w) or issued.forecasts_w[model][-1, -1] <= budget_w:
                    break
                ticks += 1
            leads_s.append(ticks * self._period_ms / SECOND)

    def _scores(self, state: PeakState, rollup: PowerRollup) -> list[ForecastScore]:
        scores = state.scores
        return [
            ForecastScore(
                at=rollup.at,
                source=self._source,
                subject=self._row_path,
                cause=(rollup.id,),
                model=name,
                horizons_s=HORIZONS_S,
                quantiles=QUANTILES,
                samples=scores.samples,
                pinball_w=tuple(scores.pinball_w(model).mean(axis=1).round(3).tolist()),
                coverage_ratio=tuple(map(tuple, scores.coverage_ratio(model).round(6).tolist())),
                lead_s=scores.lead_s(model),
                trusted=model == 0 or not state.trust.why_not,
            )
            for model, name in enumerate(self._models)
        ]


def _in_order(values_w: FloatArray) -> FloatArray:
    """Quantiles that rise with the quantile and with the horizon, and no power below zero: a longer
    look cannot have a lower peak. Rearranged upwards, the safe way."""
    rising = np.maximum.accumulate(np.maximum.accumulate(values_w, axis=0), axis=1)
    upwards: FloatArray = np.maximum(rising, 0.0)
    return upwards
