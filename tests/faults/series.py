"""What InfluxDB holds of a site, asked of InfluxDB itself and compared with the bus."""

from __future__ import annotations

from collections.abc import Iterator

from faults.rig import Rig
from influxdb_client.client.influxdb_client import InfluxDBClient
from support.influx_server import ORG, InfluxServer

from schemas.commands import Command
from schemas.decisions import Decision
from schemas.envelope import Event
from schemas.outcomes import Outcome

_KINDS: dict[str, tuple[type[Event], str]] = {
    "decision": (Decision, "refusing"),
    "command": (Command, "epoch"),
    "outcome": (Outcome, "epoch"),
}
"""Measurement → the messages that it is of, and a field that each of its points has."""

_PATIENCE_S = 60.0


def unarchived(rig: Rig, server: InfluxServer) -> Iterator[str]:
    """What was said on the bus and does not come to be in InfluxDB, in words."""
    rig.until(lambda: not any(_short(rig, server)), _PATIENCE_S)
    yield from _short(rig, server)


def _short(rig: Rig, server: InfluxServer) -> Iterator[str]:
    for name, (kind, field) in _KINDS.items():
        said = {each.event.id for each in rig.witness.said if isinstance(each.event, kind)}
        held = _points(server, name, field)
        # What was said while InfluxDB was asked may be there already.
        if held < len(said):
            yield f"InfluxDB holds {held} of {len(said)} {name}s"


def _points(server: InfluxServer, measurement: str, field: str) -> int:
    asked = f"""from(bucket: "windrow") |> range(start: 0)
        |> filter(fn: (r) => r._measurement == "{measurement}" and r._field == "{field}")
        |> group() |> count()"""
    with InfluxDBClient(url=server.url, token=server.token, org=ORG) as client:
        tables = client.query_api().query(asked)
    return sum(int(record.get_value()) for table in tables for record in table.records)
