"""How many requests make a row draw so much: a scenario's demand, stated in watts, as a load.

A scenario says what a row would draw over its budget, so that it asks the same of any site, boards and
model. What a row draws at a rate of requests is measured on the row itself, held by nothing.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from schemas.instants import MINUTE, SECOND
from schemas.topology import Site
from schemas.units import FloatArray
from twin.breaker import TripCurve
from twin.row import TwinRow
from twin.scenario import Demand
from twin.workload import LoadProfile

UNBREAKABLE = TripCurve(pickup_ratio=math.inf, instant_ratio=math.inf)

_LOWEST_RATE = 0.005  # requests per second and host
_STEP = 1.5  # from one rate to the next
_STEPS = 20
_LOOK_MS = 5 * MINUTE
_STEP_MS = 2 * SECOND
_WAITING = 5.0  # requests a host, after the look: more come than the row can serve
_GRID_S = 10.0


class Drawn(msgspec.Struct, frozen=True):
    """What a row draws, over its budget, at these rates (requests per second and host), both rising;
    arrays of shape (rates,). The last is the highest that it can serve for long."""

    rates: FloatArray
    ratios: FloatArray

    @property
    def most(self) -> float:
        """The highest that the row can be made to draw for long."""
        return float(self.ratios[-1])

    def rate(self, ratio: FloatArray) -> FloatArray:
        """The rates that make the row draw these shares of its budget; below and above what was measured
        the lowest and the highest rate."""
        return np.interp(ratio, self.ratios, self.rates)


def drawn(site: Site, row_path: str, seed: int = 0) -> Drawn:
    """Measure it: each rate for some minutes, until more requests come than are served."""
    rates: list[float] = []
    ratios: list[float] = []
    for rate in (0.0, *(_LOWEST_RATE * _STEP**step for step in range(_STEPS))):
        load = LoadProfile(requests_per_s=rate, points=((0.0, 1.0),))
        plant = TwinRow(site, row_path, seed=seed, load=load, curve=UNBREAKABLE, step_ms=_STEP_MS)
        plant.advance(_LOOK_MS)
        done = plant.statistics()
        waiting = sum(requests.waiting for requests in done.requests.values())
        if waiting > _WAITING * len(plant.hosts):
            break
        rates.append(rate)
        ratios.append(done.energy_j / done.seconds / plant.row.budget_w)
    # More requests never draw less: where it seems so, that is the chance of a few minutes.
    rising = np.maximum.accumulate(np.array(ratios)) + 1e-9 * np.arange(len(ratios))
    return Drawn(np.array(rates), rising)


def load_of(demand: Demand, drawn: Drawn, seconds: float) -> LoadProfile:
    """The requests that make the row draw what the scenario says, as far as it can be made to."""
    asked = LoadProfile(requests_per_s=1.0, points=demand.course, bursts=demand.bursts)
    at_s = np.arange(0.0, seconds + _GRID_S, _GRID_S)
    points = zip(at_s.tolist(), drawn.rate(asked.ratio(at_s)).tolist(), strict=True)
    return LoadProfile(requests_per_s=1.0, points=tuple(points), wander_ratio=demand.wander_ratio)


def highest(demand: Demand, seconds: float) -> float:
    """The highest share of the budget that the scenario asks for."""
    asked = LoadProfile(requests_per_s=1.0, points=demand.course, bursts=demand.bursts)
    return float(asked.ratio(np.arange(0.0, seconds + _GRID_S, _GRID_S)).max())
