"""Fitting the linear quantile model to recorded power. Pure: arrays in, coefficients out.

Each series counts the same: it is scaled by the spread of its own rises, so that a training row whose
power swings by a fifth does not drown an inference row that moves by a hundredth. There is no
intercept: how far a peak usually rises is the row's own affair, added where the model is used.
Deterministic: the same series give the same coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from schemas.instants import SECOND, Span
from schemas.samples import PowerRollup
from schemas.units import FloatArray
from streams.forecast.learned import FEATURES, HISTORY, PeakModel, features
from streams.forecast.peaks import HORIZONS_S, QUANTILES

_EXAMPLES_AT_MOST = 1500  # of each series, evenly spread: the fit takes time of their square


def series_of(rollups: Sequence[PowerRollup], period_ms: Span = 2 * SECOND) -> FloatArray:
    """Rollups as evenly spaced watts, (ticks,), NaN where a tick is missing or unknown."""
    if not rollups:
        return np.zeros(0)
    ticks = [round((rollup.at - rollups[0].at) / period_ms) for rollup in rollups]
    powers_w = np.full(max(ticks) + 1, np.nan)
    for tick, rollup in zip(ticks, rollups, strict=True):
        if tick >= 0 and rollup.power_w is not None:
            powers_w[tick] = rollup.power_w
    return powers_w


def examples(powers_w: FloatArray, period_ms: Span = 2 * SECOND) -> tuple[FloatArray, FloatArray]:
    """What the model sees and what came of it: features (n, FEATURES) and rises (n, horizons), watts.

    One example per tick with HISTORY known powers before it and the longest horizon known after it.
    """
    ticks = [max(1, round(horizon_s * SECOND / period_ms)) for horizon_s in HORIZONS_S]
    seen, came = [], []
    known = np.isfinite(powers_w)
    for now in range(HISTORY - 1, len(powers_w) - ticks[-1]):
        if known[now - HISTORY + 1 : now + ticks[-1] + 1].all():
            seen.append(features(powers_w[now - HISTORY + 1 : now + 1].tolist()))
            came.append([powers_w[now + 1 : now + 1 + n].max() - powers_w[now] for n in ticks])
    return np.reshape(seen, (-1, len(FEATURES))), np.reshape(came, (-1, len(HORIZONS_S)))


def fit(
    series: Sequence[FloatArray],
    *,
    name: str,
    fitted_on: str,
    fitted_at: str,
    scores: str = "",
    period_ms: Span = 2 * SECOND,
    alpha: float = 1e-3,
) -> PeakModel:
    """The model fitted to evenly spaced power series, (ticks,) each, watts, NaN where unknown.

    `alpha` weighs the coefficients' absolute sum against the scaled pinball loss. Raises ValueError
    when no series has a stretch long enough to learn from.
    """
    from sklearn.linear_model import QuantileRegressor  # 0.8 s and 113 MB that only fitting needs

    seen, came = [], []
    for powers_w in series:
        x, y = examples(powers_w, period_ms)
        spread_w = float(y[:, -1].std()) if len(y) else 0.0
        if spread_w > 0.0:
            pick = np.linspace(0, len(x) - 1, min(len(x), _EXAMPLES_AT_MOST)).astype(np.int64)
            seen.append(x[pick] / spread_w)
            came.append(y[pick] / spread_w)
    if not seen:
        raise ValueError(
            f"no series has {HISTORY} known powers followed by {HORIZONS_S[-1]:g} s more that move"
        )
    x, y = np.concatenate(seen), np.concatenate(came)
    coefficients = tuple(
        tuple(
            tuple(
                QuantileRegressor(quantile=q, alpha=alpha, fit_intercept=False, solver="highs")
                .fit(x, y[:, horizon])
                .coef_.round(4)
                .tolist()
            )
            for q in QUANTILES
        )
        for horizon in range(len(HORIZONS_S))
    )
    return PeakModel(
        name=name,
        period_ms=period_ms,
        horizons_s=HORIZONS_S,
        quantiles=QUANTILES,
        coefficients=coefficients,
        fitted_on=fitted_on,
        fitted_at=fitted_at,
        scores=scores,
    )
