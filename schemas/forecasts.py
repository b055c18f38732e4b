"""Forecasts: calibrated quantiles of what is to come, and how well they did."""

from __future__ import annotations

from schemas.envelope import Event


class Forecast(Event, frozen=True, kw_only=True):
    """Quantiles over horizons. `values[i][j]` is the `quantiles[j]` quantile over the next
    `horizons_s[i]` seconds. `model` names what made it; `fallback` says why the baseline stood in,
    empty when it did not."""

    model: str
    horizons_s: tuple[float, ...]
    quantiles: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    fallback: str = ""

    @property
    def told_apart_by(self) -> tuple[str, ...]:
        return (self.model,)

    def value(self, horizon_s: float, quantile: float) -> float:
        """The forecast at a horizon and a quantile that it has; KeyError in words otherwise."""
        try:
            return self.values[self.horizons_s.index(horizon_s)][self.quantiles.index(quantile)]
        except ValueError:
            raise KeyError(
                f"forecast has horizons {self.horizons_s} s and quantiles {self.quantiles}, "
                f"not {horizon_s} s at {quantile}"
            ) from None


class PeakForecast(Forecast, frozen=True, kw_only=True, tag=True):
    """The highest power of a row within each horizon, watts; subject is the row."""


class ThermalForecast(Forecast, frozen=True, kw_only=True, tag=True):
    """The highest temperature within each horizon, °C; subject is a GPU, a host or an aisle."""


class FarmForecast(Forecast, frozen=True, kw_only=True, tag=True):
    """A wind farm's lowest power within each horizon, watts; subject is the farm."""


class LoadForecast(Forecast, frozen=True, kw_only=True, tag=True):
    """Requests per second over each horizon; subject is a site or an endpoint."""


class ForecastScore(Event, frozen=True, kw_only=True, tag=True):
    """How a model's forecasts fared once their horizons had passed; subject is what it forecasts.

    `pinball_w` is the mean pinball loss per horizon; `coverage_ratio[i][j]` the share of outcomes at
    or below the forecast quantile; `lead_s` how long before a crossing it was foretold, None where
    nothing crossed. `trusted` is False when the model did worse than the baseline and stands aside.
    """

    model: str
    horizons_s: tuple[float, ...]
    quantiles: tuple[float, ...]
    samples: int
    pinball_w: tuple[float, ...]
    coverage_ratio: tuple[tuple[float, ...], ...]
    lead_s: float | None = None
    trusted: bool = True

    @property
    def told_apart_by(self) -> tuple[str, ...]:
        return (self.model,)
