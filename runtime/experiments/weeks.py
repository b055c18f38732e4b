"""A row over weeks under the real controller: plant, meter, loop and agents, step by step.

The loop is `RowLoop`, as everywhere else, and the row's meter is all it hears of power, as in the study. The
hosts' agents are the real ones. What is left out is what no decision rests on: the GPUs' own telemetry, the
ledger and the bus.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from runtime.config import Setup
from runtime.experiments.agents import BulkAgents
from runtime.row_loop import Beat, RowLoop
from schemas.envelope import Event, Tick
from schemas.forecasts import ForecastScore, PeakForecast
from schemas.instants import Instant, from_text
from schemas.outcomes import Outcome
from schemas.samples import FeedSample
from twin.bulk import STEP_MS, BulkRow, Totals

BEGIN: Instant = from_text("2026-03-02T00:00:00Z")
"""A Monday, as a week's shape begins."""


class Unasked:
    """A forecaster that says nothing, for policies that do not read what it says."""

    def initial(self) -> None:
        """There is nothing to remember."""

    def step(
        self, state: None, events: Sequence[Event]
    ) -> tuple[None, Sequence[PeakForecast | ForecastScore]]:
        return None, ()


class Said(msgspec.Struct, kw_only=True):
    """What the controller and the agents said over a run. `brakes` counts how often the row was braked,
    `modes_s` seconds in each mode, `commands` and `outcomes` their numbers by type."""

    brakes: int = 0
    modes_s: dict[str, float] = {}
    commands: dict[str, int] = {}
    outcomes: dict[str, int] = {}
    emergencies: dict[str, int] = {}


class Weeks:
    """One row, run step by step; `forecast` False leaves the forecaster out (see `Unasked`)."""

    def __init__(
        self,
        setup: Setup,
        plant: BulkRow,
        *,
        forecast: bool = True,
        patient: bool = True,
        observe: Callable[[Beat, Sequence[Outcome]], None] | None = None,
    ) -> None:
        row = setup.site.rows[0]
        self.plant = plant
        self.said = Said()
        self._row = row
        self._loop = RowLoop(row, setup.policy, epoch=1, forecaster=None if forecast else Unasked())
        self._state = self._loop.initial()
        self.agents = BulkAgents(plant, setup, BEGIN, patient=patient)
        self._heard: Sequence[Event] = self.agents.start(BEGIN)
        self._observe = observe
        self._mode = "U"
        self._steps = 0

    def forget(self) -> None:
        """Count from here on."""
        self.plant.forget()
        self.said = Said()

    def run(self, steps: int) -> None:
        """Go on by so many steps of the plant, a look of the controller after each."""
        plant, loop, agents, said = self.plant, self._loop, self.agents, self.said
        meter, path = self._row.meters[0], self._row.path
        modes = said.modes_s
        for step in range(self._steps, self._steps + steps):
            power_w = plant.power_w(step)
            now = BEGIN + (step + 1) * STEP_MS
            reading = FeedSample(
                at=now, source="twin/meter", subject=meter, power_w=round(power_w, 1), breaker_closed=True
            )
            tick = Tick(at=now, source="experiment", subject=path)
            self._state, (beat,) = loop.step(self._state, [*self._heard, reading, tick])
            self._heard = outcomes = agents.step(beat.commands, now)
            mode = beat.decision.mode
            modes[mode] = modes.get(mode, 0.0) + STEP_MS / 1000
            if mode != self._mode:
                said.brakes += mode == "B"
                self._mode = mode
            if beat.commands or outcomes or beat.emergencies:
                self._count(beat, outcomes)
            if self._observe is not None:
                self._observe(beat, outcomes)
        self._steps += steps

    def settle(self) -> Totals:
        """What the plant has come to."""
        return self.plant.settle()

    def _count(self, beat: Beat, outcomes: Sequence[Outcome]) -> None:
        said = self.said
        for emergency in beat.emergencies:
            if emergency.phase == "raised":
                said.emergencies[emergency.kind] = said.emergencies.get(emergency.kind, 0) + 1
        for counts, events in ((said.commands, beat.commands), (said.outcomes, outcomes)):
            for event in events:
                name = type(event).__name__
                counts[name] = counts.get(name, 0) + 1
