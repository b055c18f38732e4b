"""Samples: what collectors read off the plant, the row's sum of it, and the site's.

A sample holds readings as they were taken, unknown as ``None``. Judging them (stale, stuck,
impossible) is the work of the streams; a collector only says what the device said.
"""

from __future__ import annotations

from schemas.envelope import Event
from schemas.units import Grid, Reading, Row


class GpuFrame(Event, frozen=True, kw_only=True, tag=True):
    """One host's GPUs over one publish tick; subject is the host.

    Grids have one row per sampling instant (`at` + `offsets_ms[i]`, offsets ≤ 0, oldest first, the
    last one usually 0) and one column per GPU in the order of `gpus` (GPU UUIDs). Rows hold one
    reading per GPU, taken at `at`. `power_w` is the instantaneous field, `power_average_w` the
    driver's one-second average: a source that has only one leaves the other empty, and readers
    never mix the two. `faults` has one entry per GPU, empty when it answered.
    """

    gpus: tuple[str, ...]
    offsets_ms: tuple[int, ...] = (0,)
    power_w: Grid = ()
    power_average_w: Grid = ()
    sm_mhz: Grid = ()
    utilisation_ratio: Grid = ()
    memory_mhz: Row = ()
    core_c: Row = ()
    memory_c: Row = ()
    energy_j: Row = ()
    limit_w: Row = ()
    event_reasons: tuple[int | None, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def best_power_w(self) -> Grid:
        """The instantaneous field where the source has it, else the averaged one; never a mix."""
        return self.power_w or self.power_average_w


class RackSample(Event, frozen=True, kw_only=True, tag=True):
    """Wall power and inlet temperature of a rack's hosts, as its BMCs or PDU outlets report them;
    subject is the rack, `hosts` are host paths."""

    hosts: tuple[str, ...]
    power_w: Row = ()
    inlet_c: Row = ()
    faults: tuple[str, ...] = ()


class FeedSample(Event, frozen=True, kw_only=True, tag=True):
    """A meter on a feed or a PDU; subject is its path in the power tree."""

    power_w: Reading
    apparent_va: Reading = None
    voltage_v: Reading = None
    current_a: Reading = None
    breaker_closed: bool | None = None


class UpsSample(Event, frozen=True, kw_only=True, tag=True):
    """A UPS; subject is its path in the power tree. `on_battery` starts the failover deadline."""

    power_w: Reading
    load_ratio: Reading = None
    on_battery: bool | None = None
    runtime_s: Reading = None
    healthy: bool | None = None


class CoolingSample(Event, frozen=True, kw_only=True, tag=True):
    """An air-handling unit or cooling loop; subject is its path in the location tree."""

    supply_c: Reading
    return_c: Reading = None
    airflow_cfm: Reading = None
    fan_ratio: Reading = None
    healthy: bool | None = None


class FarmSample(Event, frozen=True, kw_only=True, tag=True):
    """A wind farm; subject is the farm. `quality` is the protocol's own flag in lower case
    (``good``, ``uncertain``, ``invalid``): a value whose flag is not good is unknown to control."""

    power_w: Reading
    available_w: Reading = None
    curtailment_w: Reading = None
    wind_m_per_s: Reading = None
    quality: str = "good"


class ServingSample(Event, frozen=True, kw_only=True, tag=True):
    """An inference endpoint; subject is the host (or instance) it runs on. Token counts are
    counters since the engine started; latencies are of the last interval."""

    running: Reading = None
    waiting: Reading = None
    kv_cache_ratio: Reading = None
    prompt_tokens: Reading = None
    generation_tokens: Reading = None
    preemptions: Reading = None
    ttft_p50_ms: Reading = None
    ttft_p99_ms: Reading = None
    tbt_p50_ms: Reading = None
    tbt_p99_ms: Reading = None
    e2e_p50_ms: Reading = None
    e2e_p99_ms: Reading = None


class WeatherSample(Event, frozen=True, kw_only=True, tag=True):
    """Weather at a site."""

    outdoor_c: Reading
    wet_bulb_c: Reading = None
    humidity_ratio: Reading = None
    wind_m_per_s: Reading = None


class PowerRollup(Event, frozen=True, kw_only=True, tag=True):
    """A row's power at one tick, and how much of it is known; subject is the row.

    `power_w` is the best reading: the row's own meters where they are fresh, else the sum of hosts
    with the missing part estimated. None when too little is known. `upper_w` bounds it from above:
    what is missing counts at its nameplate. `metered_w` and `summed_w` are the two ways of knowing.
    `coverage_ratio` is the share of the row's nameplate power with a trusted reading. `known_at` is
    the age-deciding instant: the oldest reading the sum rests on. `verdicts` counts readings
    withheld, by reason (``stale``, ``stuck``, ``impossible``, ``future``, ``repeated``, ``lost`` …).
    `racks` and `rack_w` are the racks' sums, unknown where a rack is not covered.
    """

    power_w: Reading
    upper_w: float
    budget_w: float
    coverage_ratio: float
    known_at: int | None
    basis: str
    """``meter``, ``sum`` or ``unknown``: what `power_w` rests on."""
    metered_w: Reading = None
    summed_w: Reading = None
    estimated_w: float = 0.0
    """The part of `summed_w` that is an estimate for hosts without a trusted reading."""
    racks: tuple[str, ...] = ()
    rack_w: Row = ()
    verdicts: dict[str, int] = {}
    hottest_c: Reading = None
    hosts_known: int = 0
    hosts_total: int = 0


class RowSummary(Event, frozen=True, kw_only=True, tag=True):
    """One beat of a row as its site needs to know it; subject is the row, cause the rollup and the
    decision that it sums up.

    Power and coverage are the rollup's, mode, `shortfall_w` and `refusal` the decision's.
    """

    power_w: Reading
    upper_w: float
    coverage_ratio: float
    mode: str
    shortfall_w: float = 0.0
    refusal: str = ""
    hottest_c: Reading = None


class SitePower(Event, frozen=True, kw_only=True, tag=True):
    """A site's power at one tick, and how much of it is known; subject is the site.

    `power_w` is the sum of its rows, None where one of them is unknown; `known_w` is the sum of those
    that are known, so that the site draws at least that; `upper_w` bounds it from above: an unknown row
    counts as its own upper bound says, a silent one at its nameplate. `coverage_ratio` is the share of
    the site's nameplate power with a trusted reading. `modes` counts rows by the mode they are in.
    `silent` are the rows that have said nothing for too long, or never; their mode is not counted.
    `refusing` counts rows whose policy would not decide. `strangers` counts words since the last tick
    of rows that the site does not have.
    """

    power_w: Reading
    known_w: float
    upper_w: float
    budget_w: float
    coverage_ratio: float
    rows_total: int
    modes: dict[str, int] = {}
    silent: tuple[str, ...] = ()
    refusing: int = 0
    shortfall_w: float = 0.0
    hottest_c: Reading = None
    strangers: int = 0
