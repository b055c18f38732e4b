"""Messages become points that tell what they told, once each, and nothing that is not known."""

from __future__ import annotations

import re
from urllib.parse import unquote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from influxdb_client.client.write.point import Point
from support.messages import messages, specimens
from support.rigs import START, row_text, setup_of
from support.sites import PROJECT

from runtime.sinks.lines import Lines, begins, ledger_lines, tag_value
from schemas import codec
from schemas.commands import Lease, LockClocks, SetShares
from schemas.decisions import Decision, Setting
from schemas.emergencies import Emergency
from schemas.envelope import DeadLetter, Event, Tick
from schemas.forecasts import ForecastScore, PeakForecast, ThermalForecast
from schemas.outcomes import Superseded, Verified
from schemas.samples import FarmSample, FeedSample, GpuFrame, PowerRollup, RackSample
from schemas.topics import TYPES

SITE = setup_of(row_text(4, budget_w=20_000.0)).site
ROW, RACK = "lab1/row-a", "lab1/row-a/r01"
HOST = f"{RACK}/h01"
AT_HOST = f"site=lab1,row={ROW},rack={RACK},host={HOST},priority=high"
EVERY_KIND = [event for kind in TYPES for event in specimens(kind)]
LEASE = Lease(epoch=3, issued_at=START, expires_at=START + 90_000, on_expiry="safe_share")


def lines(event: Event) -> list[str]:
    return Lines(SITE).of(event)


def time_of(line: str) -> int:
    return int(line.rpartition(" ")[2])


# ---- what is told ----


def test_a_rollup_is_a_point_of_its_row_and_one_of_each_rack() -> None:
    rollup = PowerRollup(
        at=START, source="s", subject=ROW, power_w=251_300.0, upper_w=260_000,
        budget_w=300_000.0,
        coverage_ratio=1.0, known_at=START - 40, basis="meter", verdicts={"stale": 2}, hosts_known=40,
        hosts_total=41, racks=(RACK, f"{ROW}/r02"), rack_w=(8_000.0, None),
    )  # fmt: skip
    row, rack = lines(rollup)
    assert row == (
        f"rollup,site=lab1,row={ROW} power_w=251300.0,upper_w=260000.0,budget_w=300000.0,coverage_ratio=1.0,"
        f'known_at={START - 40}i,basis="meter",estimated_w=0.0,hosts_known=40i,hosts_total=41i,'
        f"withheld_stale=2i {START}000000"
    )
    assert rack == f"rack,site=lab1,row={ROW},rack={RACK} power_w=8000.0 {START}000000"


def test_what_is_unknown_has_no_field_and_a_point_of_nothing_is_none() -> None:
    known = FeedSample(
        at=START, source="collector/feed-meter", subject="lab1/ups-1/pdu-1/feed-a", power_w=5.0
    )
    (line,) = lines(known)
    assert line.split()[0] == "feed,site=lab1,kind=feed,node=lab1/ups-1/pdu-1/feed-a,by=feed-meter"
    assert line.split()[1] == "power_w=5.0"
    assert lines(msgspec.structs.replace(known, power_w=None)) == []
    assert lines(msgspec.structs.replace(known, power_w=float("nan"))) == []


def test_a_hosts_gpus_are_summed_only_where_each_is_known() -> None:
    frame = GpuFrame(
        at=START, source=f"collector/gpu-nvml/{HOST}", subject=HOST, gpus=("a", "b"), offsets_ms=(-100, 0),
        power_w=((300.0, 310.0), (300.0, None)), core_c=(61.0, 64.0), faults=("", "lost"),
    )  # fmt: skip
    (line,) = lines(frame)
    assert line == (
        f"host,{AT_HOST},by=gpu-nvml gpus=2i,gpus_known=1i,power_max_w=610.0,core_max_c=64.0,faults=1i "
        f"{START}000000"
    )


def test_a_racks_wall_readings_are_points_of_its_hosts() -> None:
    sample = RackSample(
        at=START, source="collector/rack-redfish/x", subject=RACK, hosts=(HOST, f"{RACK}/h02"),
        power_w=(4_000.0, None), inlet_c=(24.0, 25.0),
    )  # fmt: skip
    first, second = lines(sample)
    assert first == f"wall,{AT_HOST},by=rack-redfish power_w=4000.0,inlet_c=24.0 {START}000000"
    assert "power_w" not in second


def test_a_forecast_is_a_point_for_each_horizon_in_the_unit_of_what_it_foretells() -> None:
    forecast = PeakForecast(
        at=START, source="s", subject=ROW, model="peaks/linear, v=2", horizons_s=(2.0, 10.0),
        quantiles=(0.5, 0.99), values=((1.0, 2.0), (3.0, 4.0)),
    )  # fmt: skip
    assert lines(forecast)[1] == (
        f"forecast,site=lab1,row={ROW},forecast=PeakForecast,model=peaks/linear\\,\\ v\\=2,horizon_s=10 "
        f"q0.5_w=3.0,q0.99_w=4.0,fallback=false {START}000000"
    )
    warm = ThermalForecast(
        at=START, source="s", subject=f"{HOST}/gpu2", model="m", horizons_s=(30.0,), quantiles=(0.9,),
        values=((81.0,),),
    )  # fmt: skip
    (line,) = lines(warm)
    assert f",{AT_HOST},part=gpu2," in line
    assert "q0.9_c=81.0" in line
    score = ForecastScore(
        at=START, source="s", subject=ROW, model="m", horizons_s=(2.0,), quantiles=(0.9,), samples=5,
        pinball_w=(12.0,), coverage_ratio=((0.88,),), trusted=False,
    )  # fmt: skip
    assert "samples=5i,trusted=false,pinball_w=12.0,covered_q0.9_ratio=0.88" in lines(score)[0]


def test_trouble_is_told_in_the_unit_of_its_kind() -> None:
    trouble = Emergency(
        at=START, source="s", subject=ROW, kind="telemetry_loss", phase="raised", because='row "a" is dark',
        value=0.25,
    )  # fmt: skip
    (line,) = lines(trouble)
    head, fields = line.split(" ", 1)
    assert head == f"emergency,site=lab1,row={ROW},kind=telemetry_loss,phase=raised"
    assert 'because="row \\"a\\" is dark",value_ratio=0.25' in fields


def test_a_decision_tells_how_many_hosts_it_wants_held() -> None:
    def wish(host: str, mhz: int, brake: bool = False) -> Setting:
        return Setting(
            target=f"{RACK}/{host}", max_mhz=mhz, path="in_band", on_expiry="safe_share", brake=brake
        )

    desired = (wish("h01", 1410), wish("h02", 1275), wish("h03", 288, brake=True))
    decision = Decision(
        at=START, source="s", subject=ROW, policy="capping/polca", mode="T1", since=START, desired=desired,
        because="row at 0.9", refusal="",
    )  # fmt: skip
    (line,) = lines(decision)
    assert 'mode="T1"' in line
    assert "refusing=false,overruled=0i,hosts_braked=1i,hosts_capped=1i,hosts_uncapped=1i" in line
    assert "refusal" not in line


def test_a_command_tells_its_lease_and_its_decision() -> None:
    command = LockClocks(
        at=START, source="s", subject=HOST, cause=("d1",), lease=LEASE, because="b", max_mhz=900
    )
    (line,) = lines(command)
    assert line.startswith(f"command,{AT_HOST},command=LockClocks,path=in_band,on_expiry=safe_share ")
    assert f'max_mhz=900i,epoch=3i,lease_s=90.0,decision="d1",id="{command.id}"' in line
    shares = SetShares(
        at=START, source="s", subject="lab1/pool", lease=LEASE, members=("a", "b"), shares_ratio=(0.25, 0.75)
    )
    assert [re.findall(r"member=(\w)|share_ratio=([\d.]+)", line) for line in lines(shares)] == [
        [("a", ""), ("", "0.25")],
        [("b", ""), ("", "0.75")],
    ]


def test_what_is_said_twice_in_a_millisecond_of_one_host_is_two_points() -> None:
    said = [
        Superseded(at=START, source="s", subject=HOST, command=command, epoch=1) for command in ("c1", "c2")
    ]
    (first,), (second,) = map(lines, said)
    assert first.split()[0] == second.split()[0]
    assert time_of(first) != time_of(second)
    assert time_of(first) // 1_000_000 == time_of(second) // 1_000_000 == START


def test_a_dead_letter_is_counted_under_its_topic() -> None:
    letter = DeadLetter(
        at=START, source="s", subject="lab1", topic="windrow.gpus", payload=b"\x00" * 9, reason="no JSON"
    )
    (line,) = lines(letter)
    assert line.startswith('dead_letter,site=lab1,topic=windrow.gpus bytes=9i,reason="no JSON",id="')


def test_a_tick_is_no_series() -> None:
    assert lines(Tick(at=START, source="s", subject=ROW)) == []


# ---- what cannot be told is counted ----


def test_paths_that_the_site_does_not_know_get_series_only_so_many() -> None:
    maker = Lines(SITE)
    farms = [FarmSample(at=START, source="s", subject=f"lab1/farm-{n}", power_w=1.0) for n in range(1_010)]
    told = [line for farm in farms for line in maker.of(farm)]
    assert told[7].startswith("farm,site=lab1,part=farm-7 ")
    assert (len(told), maker.strangers) == (1_000, 10)
    assert maker.of(farms[3]), "one that has its series keeps it"
    assert len(maker.of(FarmSample(at=START, source="s", subject=ROW, power_w=1.0))) == 1


def test_a_time_that_influxdb_cannot_hold_is_counted() -> None:
    maker = Lines(SITE)
    sample = FarmSample(at=2**62, source="s", subject="lab1", power_w=1.0)
    assert (maker.of(sample), maker.undatable) == ([], 1)
    assert ledger_lines(sample, b"{}", 1) == []


# ---- of any message ----


@given(messages())
def test_a_message_always_gives_the_same_lines_and_each_is_one_line(event: Event) -> None:
    event = msgspec.structs.replace(event, at=event.at % 4_000_000_000_000)
    told = lines(event)
    assert told == lines(codec.decode(codec.encode(event)))
    for line in told:
        head = line.split(" ", 1)[0]
        assert "\n" not in head
        assert ",=" not in head
        assert not re.search(r"=(,|$)", head.replace("\\=", "").replace("\\,", "")), "an empty tag"


def test_a_field_has_one_type_in_all_messages_that_share_a_measurement() -> None:
    types: dict[tuple[str, str], str] = {}
    for event in EVERY_KIND:
        for line in lines(event):
            measurement = re.split("[, ]", line)[0]
            for name, value in re.findall(r'(?:^|,)([\w.]+)=(-?[\d.e+-]+i?|true|false|")', fields_of(line)):
                kind = "text" if value == '"' else "bool" if value in ("true", "false") else value[-1]
                kind = "whole" if kind == "i" else kind if kind in ("text", "bool") else "real"
                assert types.setdefault((measurement, name), kind) == kind, (measurement, name)
    assert len(types) > 120


def fields_of(line: str) -> str:
    """The field set of a line, its texts emptied."""
    _, fields = re.split(r"(?<!\\) ", line, maxsplit=1)
    return re.sub(r'"(?:[^"\\]|\\.)*"', '"', fields, flags=re.DOTALL)


@given(st.text(min_size=1))
def test_a_tag_holds_any_text_and_no_two_become_one(text: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        return
    told = tag_value(text)
    assert unquote(told) == text
    assert told.isprintable()


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\\%"), min_size=1))
def test_tags_and_texts_are_escaped_as_the_vendors_client_does(text: str) -> None:
    if not text.isprintable():
        return
    letter = DeadLetter(at=START, source="s", subject="lab1", topic=text, payload=b"", reason=text)
    point = Point("dead_letter")  # type: ignore[no-untyped-call]
    point.tag("site", "lab1").tag("topic", text).field("reason", text)  # type: ignore[no-untyped-call]
    head, _, fields = point.to_line_protocol().partition(" reason=")  # type: ignore[no-untyped-call]
    (line,) = lines(letter)
    assert line.startswith(f"{head} bytes=0i,reason={fields},id=")


# ---- the ledger ----


def test_a_record_is_told_whole_and_can_be_found_by_its_id() -> None:
    verified = Verified(at=START, source="s", subject=HOST, command="c", epoch=1, observed=900.0, id="0a1b2c")
    body = codec.encode(verified)
    record, index = ledger_lines(verified, body, 12_345_678)
    quoted = body.decode().replace('"', '\\"')
    assert record == f'ledger,type=Verified,subject={HOST} body="{quoted}" {START}345678'
    assert index == f'ledger_id,begins=0a1 record="Verified\t{HOST}\t0a1b2c" {START}345678'
    assert (begins("0a1b"), begins("XYZ"), begins("")) == ("0a1", "other", "other")


@given(st.lists(messages(), min_size=2, max_size=30))
def test_no_record_takes_anothers_point(events: list[Event]) -> None:
    records = [msgspec.structs.replace(event, at=START) for event in events]
    points = set()
    for place, event in enumerate(records):
        record, index = ledger_lines(event, codec.encode(event), 999_990 + place)
        points.add((record.rpartition(' body="')[0], time_of(record)))
        points.add((index.partition(" ")[0], time_of(index)))
    assert len(points) == 2 * len(records)


@pytest.mark.parametrize("subject", ["", "a\nb", "a,b c=d\\"])
def test_a_records_subject_may_be_any_text(subject: str) -> None:
    event = DeadLetter(at=START, source="s", subject=subject, topic="t", payload=b"", reason="")
    record, _ = ledger_lines(event, codec.encode(event), 1)
    assert "\n" not in record


def test_the_page_names_every_measurement() -> None:
    page = (PROJECT / "docs" / "time-series.md").read_text(encoding="utf-8")
    all_lines = [line for event in EVERY_KIND for line in lines(event) + ledger_lines(event, b"{}", 0)]
    told = {re.split("[, ]", line)[0] for line in all_lines}
    assert len(told) > 15
    assert {f"`{measurement}`" for measurement in told} <= set(re.findall(r"`\w+`", page))
