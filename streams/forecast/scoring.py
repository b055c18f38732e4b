"""How forecasts fared once their horizons had passed, and whether a model may be believed.

A model is judged beside the baseline on the same moments of a trailing window. The two losses that
decide: the pinball loss, as a ratio to the baseline's, averaged over horizons and quantiles so that
none counts more for being larger; and the coverage of the highest quantile. It stands aside as soon
as it does worse than the baseline or covers too little, and comes back only after it has been clearly
better for a while: a model that hovers about the baseline does not flicker.
"""

from __future__ import annotations

from collections import deque

import msgspec
import numpy as np

from schemas.units import FloatArray


class TrustRules(msgspec.Struct, frozen=True, kw_only=True):
    """When a model is believed, all our choice. `window` judged moments make a score (30 min at 2 s),
    at least `enough` before anything is concluded. It stands aside above `worse_ratio` of the
    baseline's loss, or with less than `cover_least` at the highest quantile; it returns after
    `recover` moments in a row below `better_ratio` with at least `cover_again`."""

    window: int = 900
    enough: int = 150
    worse_ratio: float = 1.0
    better_ratio: float = 0.9
    cover_least: float = 0.95
    cover_again: float = 0.97
    recover: int = 150


class Scores:
    """Losses of models (the baseline first) over the trailing window; arrays end in (horizons, quantiles)."""

    __slots__ = ("_at", "_hits", "_hits_sum", "_loss", "_loss_sum", "leads_s", "samples")

    def __init__(self, window: int, models: int, horizons: int, quantiles: int) -> None:
        shape = (models, horizons, quantiles)
        self._loss: FloatArray = np.zeros((window, *shape))
        self._hits: FloatArray = np.zeros((window, *shape))
        self._loss_sum: FloatArray = np.zeros(shape)
        self._hits_sum: FloatArray = np.zeros(shape)
        self._at = 0
        self.samples = 0
        self.leads_s: list[deque[float]] = [deque(maxlen=16) for _ in range(models)]

    def judge(self, forecasts_w: FloatArray, peaks_w: FloatArray, quantiles: FloatArray) -> None:
        """Take the models' forecasts, (models, horizons, quantiles), and what came, (horizons,)."""
        missed = peaks_w[:, None] - forecasts_w
        loss = np.maximum(quantiles * missed, (quantiles - 1.0) * missed)
        hits = (missed <= 0.0).astype(np.float64)
        at = self._at
        self._loss_sum += loss - self._loss[at]
        self._hits_sum += hits - self._hits[at]
        self._loss[at], self._hits[at] = loss, hits
        self.samples = min(self.samples + 1, len(self._loss))
        self._at = (at + 1) % len(self._loss)
        if self._at == 0:  # running sums of fractions drift: begin each round with an exact one
            self._loss_sum = self._loss.sum(axis=0)

    def pinball_w(self, model: int) -> FloatArray:
        """Mean pinball loss, (horizons, quantiles), watts."""
        loss: FloatArray = self._loss_sum[model] / max(self.samples, 1)
        return loss

    def coverage_ratio(self, model: int) -> FloatArray:
        """Share of outcomes at or below the forecast, (horizons, quantiles)."""
        share: FloatArray = self._hits_sum[model] / max(self.samples, 1)
        return share

    def loss_ratio(self, model: int) -> float:
        """The model's loss as a share of the baseline's, the mean over horizons and quantiles."""
        tiny_w = 1e-6  # two models without any loss are alike
        ratio: FloatArray = (self._loss_sum[model] + tiny_w) / (self._loss_sum[0] + tiny_w)
        return float(ratio.sum()) / ratio.size

    def lead_s(self, model: int) -> float | None:
        """How long before a crossing it was foretold, the mean over the last ones; None without one."""
        leads = self.leads_s[model]
        return sum(leads) / len(leads) if leads else None


class Trust:
    """Whether the second model is believed now, and why not."""

    __slots__ = ("_run", "why_not")

    def __init__(self) -> None:
        self._run = 0
        self.why_not = "not yet scored on this row"

    def step(self, scores: Scores, rules: TrustRules) -> None:
        """Judge again after a moment was scored."""
        if scores.samples < rules.enough:
            return
        ratio, covered = scores.loss_ratio(1), float(scores.coverage_ratio(1)[:, -1].min())
        if not self.why_not:
            if ratio > rules.worse_ratio:
                self._run, self.why_not = 0, f"loss {ratio:.2f} of the baseline's"
            elif covered < rules.cover_least:
                self._run, self.why_not = 0, f"highest quantile covers only {covered:.1%}"
            return
        self._run = self._run + 1 if ratio < rules.better_ratio and covered >= rules.cover_again else 0
        if self._run >= rules.recover:
            self._run, self.why_not = 0, ""
        elif ratio > rules.worse_ratio or self._run == 0:
            self.why_not = f"loss {ratio:.2f} of the baseline's, highest quantile covers {covered:.1%}"
