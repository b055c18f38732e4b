"""Any message's points are taken by the real server, and say there what the message said."""

from __future__ import annotations

import pathlib
import threading

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.messages import messages
from support.rigs import START, row_text, setup_of

from runtime.bus.settings import InfluxConfig
from runtime.clock import SystemClock
from runtime.sinks.influx import InfluxSink, client_of
from runtime.sinks.lines import Lines
from schemas.envelope import DeadLetter, Event
from schemas.operators import Pin
from schemas.outcomes import Outcome, Verified
from schemas.samples import FarmSample, UpsSample
from schemas.units import Reading

pytestmark = pytest.mark.counterpart

SITE = setup_of(row_text(4, budget_w=20_000.0)).site
HOST = "lab1/row-a/r01/h01"


def put(events: list[Event], config: InfluxConfig, folder: pathlib.Path) -> int:
    """Write the events' points; how many lines that was. None may be refused."""
    sink = InfluxSink(config, aside=folder / "aside", clock=SystemClock(), stop=threading.Event())
    maker = Lines(SITE)
    lines = [line for event in events for line in maker.of(event)]
    assert sink.put(lines)
    assert sink.state.refused == 0, (folder / "aside").read_text(encoding="utf-8")
    sink.close()
    return len(lines)


def fields_at(at: int, config: InfluxConfig, measurement: str) -> dict[str, object]:
    """The fields of the points of one millisecond."""
    client = client_of(config)
    try:
        tables = client.query_api().query(
            f'from(bucket: "{config.bucket}") '
            f"|> range(start: time(v: {at}000000), stop: time(v: {at + 1}000000)) "
            f'|> filter(fn: (r) => r._measurement == "{measurement}")'
        )
        return {r.values["_field"]: r.values["_value"] for table in tables for r in table.records}
    finally:
        client.close()  # type: ignore[no-untyped-call]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(messages(), min_size=30, max_size=60))
def test_no_message_has_points_that_are_refused(
    events: list[Event], influx: InfluxConfig, tmp_path: pathlib.Path
) -> None:
    put(
        [msgspec.structs.replace(event, at=event.at % 4_000_000_000_000) for event in events],
        influx,
        tmp_path,
    )


_AT = iter(range(START, START + 1_000_000_000, 1_000))
_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=40)
_FLOATS = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=_TEXTS,
    reading=_FLOATS,
    other=_FLOATS,
    flag=st.none() | st.booleans(),
    mhz=st.integers(-(2**63), 2**63),
)
def test_texts_and_numbers_come_back_as_they_were_said(
    text: str,
    reading: Reading,
    other: Reading,
    flag: bool | None,
    mhz: int,
    influx: InfluxConfig,
    tmp_path: pathlib.Path,
) -> None:
    at = next(_AT)
    said: list[tuple[str, Event, dict[str, object]]] = [
        (
            "outcome",
            Verified(
                at=at,
                source="s",
                subject=HOST,
                command=text,
                epoch=7,
                detail=text,
                observed=reading,
                effect_w=other,
            ),
            {"command": text, "detail": text, "epoch": 7, "observed": reading, "effect_w": other},
        ),
        (
            "ups",
            UpsSample(
                at=at, source="s", subject="lab1/ups-1", power_w=reading, load_ratio=other, on_battery=flag
            ),
            {"power_w": reading, "load_ratio": other, "on_battery": flag},
        ),
        (
            "dead_letter",
            DeadLetter(at=at, source="s", subject=text, topic=text, payload=b"12", reason=text),
            {"reason": text, "bytes": 2},
        ),
        (
            "operator",
            Pin(at=at, source="s", subject="lab1", max_mhz=mhz, by=text, reason=text, expires_at=at),
            {"by": text, "reason": text, "max_mhz": mhz if mhz < 2**63 else None, "expires_at": at},
        ),
        (
            "farm",
            FarmSample(at=at, source="s", subject=text, power_w=reading),
            {"power_w": reading, "quality": "good"},
        ),
    ]
    put([event for _, event, _ in said], influx, tmp_path)
    for measurement, event, fields in said:
        expected = {name: value for name, value in fields.items() if value is not None and value != ""}
        if isinstance(event, Outcome | DeadLetter | Pin):
            expected["id"] = event.id
        assert fields_at(at, influx, measurement) == expected
