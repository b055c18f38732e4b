"""The one table of topics: what is said where, under which key, kept how long.

A topic's key is a power domain (the row's path; a site-wide topic has the site's), so that one
row's events meet on one partition. `rank` orders messages of the same event time in a recording:
causes before effects.
"""

from __future__ import annotations

from typing import NamedTuple

from schemas import commands, decisions, emergencies, envelope, forecasts, operators, outcomes, samples
from schemas.instants import HOUR, Span


class Topic(NamedTuple):
    """One row of the table. `compact` keeps the last message per key instead of deleting by age.

    A topic without types of its own holds what another part of the pipeline says of them: the ledger's
    records are messages of any type, a snapshot is no message at all.
    """

    name: str
    types: tuple[type[envelope.Event], ...]
    key: str
    partitions: int
    retention_ms: Span
    rank: int
    compact: bool = False


DAY: Span = 24 * HOUR

TOPICS: tuple[Topic, ...] = (
    Topic(
        "windrow.operators",
        (operators.Pin, operators.Unpin, operators.ResetBlastRadius, operators.ReleaseAll, operators.Resume),
        "row",
        32,
        90 * DAY,
        0,
    ),
    Topic("windrow.gpus", (samples.GpuFrame,), "row", 32, 2 * DAY, 1),
    Topic("windrow.racks", (samples.RackSample,), "row", 32, 7 * DAY, 2),
    Topic("windrow.power", (samples.FeedSample, samples.UpsSample), "row", 32, 7 * DAY, 3),
    Topic("windrow.cooling", (samples.CoolingSample,), "row", 32, 7 * DAY, 4),
    Topic("windrow.serving", (samples.ServingSample,), "row", 32, 2 * DAY, 5),
    Topic("windrow.farms", (samples.FarmSample,), "site", 8, 30 * DAY, 6),
    Topic("windrow.weather", (samples.WeatherSample,), "site", 8, 30 * DAY, 7),
    Topic(
        "windrow.outcomes",
        (
            outcomes.Accepted,
            outcomes.Verified,
            outcomes.Renewed,
            outcomes.Released,
            outcomes.Lapsed,
            outcomes.Refused,
            outcomes.Failed,
            outcomes.Superseded,
        ),
        "row",
        32,
        30 * DAY,
        8,
    ),
    Topic("windrow.ticks", (envelope.Tick,), "row", 32, 2 * DAY, 9),
    Topic("windrow.rollups", (samples.PowerRollup,), "row", 32, 30 * DAY, 10),
    Topic(
        "windrow.forecasts",
        (
            forecasts.PeakForecast,
            forecasts.ThermalForecast,
            forecasts.FarmForecast,
            forecasts.LoadForecast,
            forecasts.ForecastScore,
        ),
        "row",
        32,
        7 * DAY,
        11,
    ),
    Topic("windrow.emergencies", (emergencies.Emergency,), "row", 32, 90 * DAY, 12),
    Topic("windrow.decisions", (decisions.Decision,), "row", 32, 90 * DAY, 13),
    Topic(
        "windrow.commands",
        (
            commands.LockClocks,
            commands.LimitPower,
            commands.Brake,
            commands.SetShares,
            commands.AdmitRate,
            commands.Drain,
            commands.Park,
            commands.Reconfigure,
            commands.SetReplicas,
        ),
        "row",
        32,
        30 * DAY,
        14,
    ),
    Topic("windrow.dead-letters", (envelope.DeadLetter,), "row", 8, 30 * DAY, 15),
    # One partition: the order of the record is the order of its hash chain, the same for whoever rebuilds it.
    Topic("windrow.ledger", (), "site", 1, 400 * DAY, 16),
    Topic("windrow.snapshots", (), "row", 32, 7 * DAY, 17, compact=True),
    Topic("windrow.summaries", (samples.RowSummary,), "site", 8, 2 * DAY, 18),
    Topic("windrow.sites", (samples.SitePower,), "site", 8, 30 * DAY, 19),
)

BY_TYPE: dict[type[envelope.Event], Topic] = {kind: topic for topic in TOPICS for kind in topic.types}
BY_NAME: dict[str, Topic] = {topic.name: topic for topic in TOPICS}
TYPES: tuple[type[envelope.Event], ...] = tuple(BY_TYPE)
"""Every message type that may stand on the bus."""


def topic_of(event: envelope.Event) -> Topic:
    """The topic an event belongs on."""
    return BY_TYPE[type(event)]
