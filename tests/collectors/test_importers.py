"""Other people's recordings: taken as they are, gaps, zeros and broken rows included."""

from itertools import pairwise
from pathlib import Path

import pytest
from support.counterparts import shared_data

from collectors.base import CollectorError
from collectors.import_vllm_h100 import START
from collectors.importers import IMPORTERS, detect
from schemas.codec import decode, encode
from schemas.envelope import DeadLetter, Event
from schemas.instants import SECOND
from schemas.samples import GpuFrame, RackSample, ServingSample
from schemas.site_file import read_site
from schemas.topics import topic_of
from schemas.topology import Site
from schemas.units import Reading

VLLM_HEADER = (
    "time_s,scheduler_total_time,gpu_cache_usage_perc,num_requests_running,num_requests_waiting,"
    "num_preemptions_total,prompt_tokens_total,generation_tokens_total,gpu_power_w,gpu_temp_c,mem_temp_c,"
    "sm_util_pct,mem_clk_mhz,sm_clk_mhz"
)
VLLM_ROW = "2.405,0.0036,0.25,3.0,1.0,2.0,250.0,54.0,249,43,64,98,1593,1605"


def file_of(folder: Path, *lines: str, name: str = "a.csv", end: str = "\n") -> Path:
    path = folder / name
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def proposed_site(path: Path, budget_w: float = 60_000.0) -> Site:
    importer = detect(path)
    return read_site(importer.site_for(importer.hosts_in(path), budget_w), "proposed.toml")


def imported(path: Path, site: Site | None = None) -> list[Event]:
    return list(detect(path).events(path, site or proposed_site(path)))


def racks_in(events: list[Event]) -> list[RackSample]:
    return [event for event in events if isinstance(event, RackSample)]


def known(*readings: Reading) -> list[float]:
    return [reading for reading in readings if reading is not None]


# ---- telling formats apart ----


def test_formats_are_told_by_their_first_line_whatever_the_file_is_called(tmp_path: Path) -> None:
    assert detect(file_of(tmp_path, "time_ms,host,watts", name="x")).name == "mlperf"
    assert detect(file_of(tmp_path, "\ufeffhost, watts ,time_ms,more", end="\r\n")).name == "mlperf"
    assert detect(file_of(tmp_path, VLLM_HEADER)).name == "vllm-h100"


@pytest.mark.parametrize("first", ["", "time,watts", "\x00\x01", '{"type":"windrow-recording"}'])
def test_an_unknown_format_is_refused_and_the_known_ones_are_listed(tmp_path: Path, first: str) -> None:
    with pytest.raises(CollectorError, match="no format that can be imported") as raised:
        detect(file_of(tmp_path, first))
    for importer in IMPORTERS:
        assert f"{importer.name}: {importer.what}" in str(raised.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CollectorError, match=r"gone\.csv: cannot be read: No such file"):
        detect(tmp_path / "gone.csv")


# ---- MLPerf ----

MLPERF = (
    "time_ms,host,watts",
    "1000,node_2,5572",
    "1000,node_1,0",
    "1000,node_10,6333.5",
    "1900,node_5,-",
    "23000,node_1,4297",
)


def test_a_rack_says_what_those_of_its_nodes_said_that_were_read_then(tmp_path: Path) -> None:
    events = imported(file_of(tmp_path, *MLPERF))
    said = [(each.at, each.subject, each.hosts, each.power_w) for each in racks_in(events)]
    assert len(said) == len(events)
    rack = "mlperf/row-a/r01"
    assert said == [
        (1_000, rack, (f"{rack}/node_1", f"{rack}/node_10", f"{rack}/node_2"), (0.0, 6_333.5, 5_572.0)),
        (1_900, rack, (f"{rack}/node_5",), (None,)),
        (23_000, rack, (f"{rack}/node_1",), (4_297.0,)),
    ]


def test_a_site_is_proposed_for_the_nodes_of_a_file(tmp_path: Path) -> None:
    path = file_of(tmp_path, "time_ms,host,watts", *(f"1000,node_{n},5000" for n in (10, 9, 2, 1, 3)))
    assert detect(path).hosts_in(path) == ("node_1", "node_2", "node_3", "node_9", "node_10")
    site = proposed_site(path, 33_000.5)
    (row,) = site.rows
    assert row.budget_w == 33_000.5
    assert [[host.path for host in rack.hosts] for rack in row.racks] == [
        [f"mlperf/row-a/r01/{name}" for name in ("node_1", "node_2", "node_3", "node_9")],
        ["mlperf/row-a/r02/node_10"],
    ]
    assert {(host.sku.name, host.gpu_count) for host in row.hosts} == {("H100-SXM5-80GB", 8)}


def test_rows_out_of_order_come_out_in_order(tmp_path: Path) -> None:
    events = imported(file_of(tmp_path, MLPERF[0], *reversed(MLPERF[1:])))
    assert events == imported(file_of(tmp_path, *MLPERF, name="b.csv"))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("1500,node_1", "has 2 cells, the header 3"),
        ("1500,node_1,5,6", "has 4 cells, the header 3"),
        ("1500,node_1,many", "watts = 'many': must be a number"),
        ("1500,node_1,nan", "watts = 'nan': must be a number"),
        ("soon,node_1,5", "time_ms = 'soon': must be a number"),
        ("inf,node_1,5", "time_ms = 'inf': must be a number"),
        ("1500,node_99,5", "host = 'node_99': the site mlperf has no host of that name"),
        ('1500,"node_1,5', "is no row of a CSV"),
    ],
)
def test_a_malformed_row_is_kept_whole_with_its_reason(tmp_path: Path, row: str, why: str) -> None:
    path = file_of(tmp_path, *MLPERF[:4], row, *MLPERF[4:])
    events = imported(path, proposed_site(file_of(tmp_path, *MLPERF, name="sound.csv")))
    (dead,) = (event for event in events if isinstance(event, DeadLetter))
    assert dead.payload == row.encode()
    assert dead.reason.startswith(f"line 5: {why}")
    assert (dead.at, dead.topic) == (1_000, "windrow.racks")
    assert len(events) == 4, "and every other row is taken"


def test_bytes_that_are_no_text_are_kept_whole(tmp_path: Path) -> None:
    path = file_of(tmp_path, *MLPERF)
    site = proposed_site(path)
    path.write_bytes(path.read_bytes() + b"24000,node_\xff,1\n")
    (dead,) = (event for event in imported(path, site) if isinstance(event, DeadLetter))
    assert dead.payload == b"24000,node_\xff,1"
    assert dead.reason == "line 7: is no UTF-8 text"


def test_a_site_of_other_hosts_is_refused_in_words(tmp_path: Path) -> None:
    path = file_of(tmp_path, *MLPERF)
    other = proposed_site(file_of(tmp_path, MLPERF[0], "1,elsewhere,2", name="b.csv"))
    with pytest.raises(CollectorError, match="nothing in it can be taken: line 2: host = 'node_2'"):
        imported(path, other)


# ---- vLLM ----


def test_a_vllm_row_is_a_frame_and_what_the_engine_served(tmp_path: Path) -> None:
    frame, serving = imported(file_of(tmp_path, VLLM_HEADER, VLLM_ROW))
    assert isinstance(frame, GpuFrame)
    assert isinstance(serving, ServingSample)
    assert (frame.at, frame.subject) == (START + 2_405, "vllm/row-a/r01/h01")
    assert (serving.at, serving.subject) == (frame.at, frame.subject)
    assert frame.power_average_w == ((249.0,),), "nvidia-smi reads the driver's average of a second"
    assert frame.power_w == ()
    assert (frame.sm_mhz, frame.utilisation_ratio) == (((1605.0,),), ((0.98,),))
    assert (frame.memory_mhz, frame.core_c, frame.memory_c) == ((1593.0,), (43.0,), (64.0,))
    assert (serving.running, serving.waiting, serving.kv_cache_ratio) == (3.0, 1.0, 0.25)
    assert (serving.prompt_tokens, serving.generation_tokens, serving.preemptions) == (250.0, 54.0, 2.0)


def test_what_nvidia_smi_did_not_read_is_unknown(tmp_path: Path) -> None:
    row = VLLM_ROW.replace(",249,43,64,", ",-,43,[N/A],")
    frame, _ = imported(file_of(tmp_path, VLLM_HEADER, row))
    assert isinstance(frame, GpuFrame)
    assert (frame.power_average_w, frame.core_c, frame.memory_c) == (((None,),), (43.0,), (None,))


def test_a_broken_vllm_row_is_kept_whole(tmp_path: Path) -> None:
    events = imported(file_of(tmp_path, VLLM_HEADER, VLLM_ROW, "2.9,?", VLLM_ROW.replace("2.405", "3.4")))
    assert [type(event) for event in events] == [
        GpuFrame,
        ServingSample,
        DeadLetter,
        GpuFrame,
        ServingSample,
    ]
    assert isinstance(events[2], DeadLetter)
    assert events[2].payload == b"2.9,?"
    assert events[2].at == events[0].at


def test_one_gpus_run_does_not_fit_a_site_of_several_hosts(tmp_path: Path) -> None:
    several = proposed_site(file_of(tmp_path, *MLPERF))
    with pytest.raises(CollectorError, match="was recorded on one host; the site mlperf has 4"):
        imported(file_of(tmp_path, VLLM_HEADER, VLLM_ROW, name="b.csv"), several)


# ---- the recordings themselves ----


def in_total_order(events: list[Event]) -> bool:
    keys = [(event.at, topic_of(event).rank, event.subject) for event in events]
    return keys == sorted(keys)


@pytest.mark.parametrize(
    ("name", "hosts", "rows", "first", "last", "longest_gap_ms"),
    [
        (
            "train_v4.0_smc-ac-power_64xH100node_gpt3_0.csv",
            64,
            108_916,
            1_715_960_307_185,
            1_715_963_719_632,
            2_536,
        ),
        (
            "train_v4.0_smc-ac-power_8xH100node_llama2_70b_lora_0.csv",
            8,
            1_272,
            1_715_898_650_120,
            1_715_898_967_425,
            2_092,
        ),
    ],
)
def test_a_real_training_run_is_taken_whole(
    name: str, hosts: int, rows: int, first: int, last: int, longest_gap_ms: int
) -> None:
    path = shared_data(f"gpu_power/mlperf/{name}")
    site = proposed_site(path, hosts * 8_000.0)
    events = imported(path, site)
    assert len(site.hosts) == hosts
    samples = racks_in(events)
    assert len(samples) == len(events), "no row is dead"
    assert sum(len(sample.hosts) for sample in samples) == rows
    assert (events[0].at, events[-1].at) == (first, last)
    assert in_total_order(events)
    times: dict[str, list[int]] = {}
    for sample in samples:
        for host in sample.hosts:
            times.setdefault(host, []).append(sample.at)
    gaps = [after - before for each in times.values() for before, after in pairwise(each)]
    assert max(gaps) == longest_gap_ms, "gaps are neither filled nor smoothed"
    watts = sum(sum(known(*sample.power_w)) for sample in samples)
    lines = path.read_text().splitlines()[1:]
    assert watts == sum(int(line.rpartition(",")[2]) for line in lines)
    assert decode(encode(events[-1])) == events[-1]


def test_real_vllm_runs_are_taken_whole() -> None:
    paths = sorted(shared_data("gpu_power/vllm_h100").glob("*.csv"))
    assert len(paths) == 70
    for path in paths[::10]:
        site = proposed_site(path, 1_400.0)
        events = imported(path, site)
        lines = path.read_text().splitlines()[1:]
        frames = [event for event in events if isinstance(event, GpuFrame)]
        assert len(frames) == len(lines)
        assert len(events) == 2 * len(lines)
        assert in_total_order(events)
        spent_s = float(lines[-1].partition(",")[0]) - float(lines[0].partition(",")[0])
        assert frames[-1].at - frames[0].at == pytest.approx(spent_s * SECOND, abs=1)
        watts = known(*(frame.power_average_w[0][0] for frame in frames))
        assert len(watts) == len(frames)
        assert 70 <= min(watts) < max(watts) <= 710, "a 700 W board"
        served = [event for event in events if isinstance(event, ServingSample)]
        assert max(known(*(sample.kv_cache_ratio for sample in served))) <= 1
