"""Cost per event against the number of rows: it should stay flat."""

from __future__ import annotations

import gc
import time

from benchmarks.figure import Figure
from benchmarks.plant import moved, recorded, setup_for
from runtime.control_loop import ControlLoop
from schemas import codec
from schemas.envelope import Tick

SECONDS = 40
HOSTS = 40


def measure() -> list[Figure]:
    """One control loop over 1, 10 and 100 rows of 40 servers, events as objects (decoding apart)."""
    _, lines = recorded(HOSTS, SECONDS)
    events = [codec.decode(line) for line in lines]
    costs = []
    for rows in (1, 10, 100):
        setup = setup_for(HOSTS, rows)
        streams = [moved(events, row) for row in range(1, rows + 1)]
        loop = ControlLoop(setup.site, setup.policy, epoch=1)
        gc.collect()
        gc.freeze()  # the prepared messages: a live host never holds so many
        count, began = 0, time.perf_counter()
        for at in range(len(events)):
            if isinstance(events[at], Tick):
                for stream in streams:
                    loop.beat(stream[at].subject, stream[at].at)
            else:
                for stream in streams:
                    loop.offer([stream[at]])
                    count += 1
        costs.append((time.perf_counter() - began) / count * 1e6)
        gc.unfreeze()
    return [
        Figure(
            "cost per event, 1 / 10 / 100 rows",
            " / ".join(f"{cost:.1f}" for cost in costs) + " µs",
            "flat",
            f"100 rows cost {costs[2] / costs[0]:.2f}× one row's per event",
            costs[2] / costs[0],
        )
    ]
