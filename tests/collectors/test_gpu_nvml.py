"""The NVML collector over the real pynvml and a stand-in for the driver's library."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from support import nvml_shim
from support.nvml_fixtures import MakeNvmlState
from support.nvml_shim import ShimState, installed

from collectors.base import CollectorError
from collectors.gpu_nvml import RETRY_MS, NvmlCollector
from schemas.samples import GpuFrame
from schemas.topology import Host

MakeHost = Callable[..., Host]
Open = Callable[..., NvmlCollector]
NOT_LOADED = 9


@pytest.fixture
def watch() -> Iterator[Open]:
    """A collector over a state's devices, through a library that lacks the calls in `omit`."""
    with ExitStack() as stack:

        def opened(host: Host, state: ShimState, *, omit: tuple[str, ...] = ()) -> NvmlCollector:
            stack.enter_context(installed(state, omit))
            collector = NvmlCollector(host, period_ms=1_000)
            stack.callback(collector.close)
            return collector

        yield opened


def frame_of(collector: NvmlCollector, now: int = 0) -> GpuFrame:
    (frame,) = collector.poll(now)
    assert isinstance(frame, GpuFrame)
    return frame


def test_a_frame_says_what_each_board_said(make_host: MakeHost, watch: Open, nvml_state: ShimState) -> None:
    nvml_state.gpu(0).demand_mw = 512_250
    nvml_state.gpu(0).average_mw = 480_500
    nvml_state.gpu(0).energy_mj = 7_000_001
    nvml_state.gpu(1).utilisation = 0
    nvml_state.gpu(1).temp_c = 33
    nvml_state.gpu(1).limit_mw = 650_000
    frame = frame_of(watch(make_host(), nvml_state), 1_500)
    assert (frame.at, frame.subject) == (1_500, "ams1/row-b/r07/h03")
    assert frame.source == "collector/gpu-nvml/ams1/row-b/r07/h03"
    assert frame.gpus == tuple(gpu.uuid for gpu in nvml_state.gpus)
    assert frame.power_w == ((512.25, 70.0),)
    assert frame.power_average_w == ((480.5, 70.0),)
    assert frame.sm_mhz == ((1980.0, 345.0),)
    assert frame.utilisation_ratio == ((1.0, 0.0),)
    assert frame.memory_mhz == (2619.0, 2619.0)
    assert frame.core_c == (41.0, 33.0)
    assert frame.memory_c == (48.0, 48.0)
    assert frame.energy_j == (7_000.001, 0.0)
    assert frame.limit_w == (700.0, 650.0)
    assert frame.event_reasons == (0, nvml_shim.REASON_IDLE)
    assert frame.faults == ("", "")


def test_each_poll_reads_the_boards_anew(make_host: MakeHost, watch: Open, nvml_state: ShimState) -> None:
    nvml_state.gpu(0).script_power([111_000, 222_000, 333_000])  # the first goes to the probe
    collector = watch(make_host(), nvml_state)
    readings = [frame_of(collector, now).power_w[0][0] for now in (0, 1_000)]
    assert readings == [222.0, 333.0]
    assert nvml_state.init_calls == 1


def test_a_frame_survives_the_wire_unchanged(make_host: MakeHost, watch: Open, nvml_state: ShimState) -> None:
    from schemas.codec import decode, encode

    nvml_state.lose(1)
    frame = frame_of(watch(make_host(), nvml_state))
    assert decode(encode(frame)) == frame
    assert encode(decode(encode(frame))) == encode(frame)


# ---- devices that fail ----


def test_a_lost_gpu_is_unknown_and_its_neighbours_go_on(
    make_host: MakeHost, watch: Open, make_nvml_state: MakeNvmlState
) -> None:
    state = make_nvml_state(gpus=3)
    collector = watch(make_host(3), state)
    frame_of(collector)
    state.lose(1)
    frame = frame_of(collector, 1_000)
    assert frame.power_w == ((690.0, None, 690.0),)
    assert (frame.core_c, frame.energy_j[1], frame.event_reasons) == ((41.0, None, 41.0), None, (0, None, 0))
    assert frame.faults == ("", f"{state.gpu(1).uuid} does not answer: GPU is lost", "")
    assert frame.gpus == tuple(gpu.uuid for gpu in state.gpus)


def test_a_gpu_that_comes_back_is_picked_up_again(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    collector = watch(make_host(), nvml_state)
    frame_of(collector)
    nvml_state.lose(0)
    frame_of(collector, 1_000)
    nvml_state.find(0)
    assert frame_of(collector, 1_000 + RETRY_MS - 1).power_w == ((None, 690.0),), "left alone for a while"
    frame = frame_of(collector, 1_000 + RETRY_MS)
    assert frame.power_w == ((690.0, 690.0),)
    assert frame.faults == ("", "")
    assert nvml_state.init_calls == 2, "a driver forgets a lost device only when its library is opened anew"


def test_a_gpu_that_returns_with_less_is_asked_what_it_offers_again(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    collector = watch(make_host(), nvml_state)
    frame_of(collector)
    nvml_state.lose(0)
    frame_of(collector, 0)
    nvml_state.find(0)
    nvml_state.fail_field(82, nvml_shim.NOT_SUPPORTED, gpu=0)
    assert frame_of(collector, RETRY_MS).memory_c == (None, 48.0)
    assert collector.lacking() == {"memory_c": 1}


def test_a_gpu_lost_from_the_start_has_a_place_and_no_name(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    nvml_state.lose(0)
    collector = watch(make_host(), nvml_state)
    frame = frame_of(collector)
    assert frame.gpus == ("ams1/row-b/r07/h03/gpu0", nvml_state.gpu(1).uuid)
    assert frame.power_w == ((None, 690.0),)
    assert frame.faults[0] == "ams1/row-b/r07/h03/gpu0 is missing: index 0 does not answer: GPU is lost"
    nvml_state.find(0)
    frame = frame_of(collector, RETRY_MS)
    assert frame.gpus == tuple(gpu.uuid for gpu in nvml_state.gpus)
    assert frame.power_w == ((690.0, 690.0),)


def test_all_gpus_lost_is_a_frame_of_unknowns(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    nvml_state.lose(0)
    nvml_state.lose(1)
    frame = frame_of(watch(make_host(), nvml_state))
    assert frame.best_power_w == ((None, None),)
    assert all(frame.faults)


def test_a_gpu_the_driver_does_not_list_is_missed(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    frame = frame_of(watch(make_host(4), nvml_state))
    assert frame.power_w == ((690.0, 690.0, None, None),)
    assert frame.faults[3] == "ams1/row-b/r07/h03/gpu3 is missing: the driver lists 2 of 4 GPUs"


def test_a_call_that_fails_once_is_unknown_once(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    collector = watch(make_host(), nvml_state)
    frame_of(collector)
    nvml_state.fail("nvmlDeviceGetClockInfo", nvml_shim.TIMEOUT, 1, gpu=1)
    frame = frame_of(collector, 1_000)
    assert frame.power_w == ((690.0, None),)
    assert frame.faults == ("", f"{nvml_state.gpu(1).uuid} could not be read: Timeout")
    assert frame_of(collector, 2_000).power_w == ((690.0, 690.0),), "and at once known again"


def test_a_field_that_fails_is_alone_unknown(make_host: MakeHost, watch: Open, nvml_state: ShimState) -> None:
    collector = watch(make_host(), nvml_state)
    frame_of(collector)
    nvml_state.fail_field(186, nvml_shim.UNKNOWN, 1, gpu=0)
    frame = frame_of(collector, 1_000)
    assert frame.power_w == ((None, 690.0),)
    assert frame.power_average_w == ((690.0, 690.0),), "and nothing is moved between the columns"
    assert frame.faults == (f"{nvml_state.gpu(0).uuid} gave no power_w: Unknown Error", "")


def test_a_field_that_says_lost_loses_the_gpu(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    collector = watch(make_host(), nvml_state)
    frame_of(collector)
    nvml_state.fail_field(186, nvml_shim.GPU_IS_LOST, 1, gpu=0)
    frame = frame_of(collector, 1_000)
    assert (frame.power_w, frame.core_c) == (((None, 690.0),), (None, 41.0))
    assert "GPU is lost" in frame.faults[0]


@pytest.mark.parametrize("code", [nvml_shim.UNKNOWN, nvml_shim.TIMEOUT, nvml_shim.GPU_IS_LOST])
@pytest.mark.parametrize(
    "call",
    [
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetHandleByIndex",
    ],
)
def test_whatever_fails_on_one_gpu_is_never_a_zero_and_never_an_exception(
    make_host: MakeHost, watch: Open, nvml_state: ShimState, call: str, code: int
) -> None:
    nvml_state.fail(call, code, gpu=0)
    collector = watch(make_host(), nvml_state)
    for now in (0, 1_000, RETRY_MS):
        frame = frame_of(collector, now)
        assert frame.power_w == ((None, 690.0),)
        assert frame.core_c == (None, 41.0)
        assert frame.faults[0]
        assert not frame.faults[1]


# ---- drivers and boards that offer less ----


def test_a_driver_without_fields_gives_the_average_by_the_older_call(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    nvml_state.gpu(0).average_mw = 480_500
    collector = watch(make_host(), nvml_state, omit=("nvmlDeviceGetFieldValues",))
    frame = frame_of(collector)
    assert frame.power_average_w == ((480.5, 690.0),)
    assert frame.power_w == (), "an average never stands in the instantaneous column"
    assert frame.best_power_w == frame.power_average_w
    assert frame.energy_j == (0.0, 0.0)
    assert frame.limit_w == (700.0, 700.0)
    assert frame.memory_c == ()
    assert frame.faults == ("", "")
    assert collector.lacking() == {"power_w": 2, "memory_c": 2}


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM4-80GB", "NVIDIA A800-SXM4-80GB", "NVIDIA A30"])
def test_on_ga100_the_older_call_is_instantaneous(
    make_host: MakeHost, watch: Open, nvml_state: ShimState, name: str
) -> None:
    for gpu in nvml_state.gpus:
        gpu.name = name
    frame = frame_of(watch(make_host(), nvml_state, omit=("nvmlDeviceGetFieldValues",)))
    assert frame.power_w == ((690.0, 690.0),)
    assert frame.power_average_w == ()


@pytest.mark.parametrize("name", ["NVIDIA A10", "NVIDIA A40", "NVIDIA RTX A3000", "NVIDIA H100 80GB HBM3"])
def test_on_other_boards_the_older_call_is_an_average(
    make_host: MakeHost, watch: Open, nvml_state: ShimState, name: str
) -> None:
    for gpu in nvml_state.gpus:
        gpu.name = name
    frame = frame_of(watch(make_host(), nvml_state, omit=("nvmlDeviceGetFieldValues",)))
    assert frame.power_w == ()
    assert frame.power_average_w == ((690.0, 690.0),)


def test_an_a100_has_no_averaged_field_and_leaves_that_column_empty(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    nvml_state.fail_field(185, nvml_shim.NOT_SUPPORTED)
    frame = frame_of(watch(make_host(), nvml_state))
    assert frame.power_w == ((690.0, 690.0),)
    assert frame.power_average_w == ()
    assert frame.faults == ("", "")


def test_mixed_boards_keep_each_reading_in_its_own_column(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    nvml_state.fail_field(186, nvml_shim.NOT_SUPPORTED, gpu=0)
    nvml_state.fail_field(185, nvml_shim.NOT_SUPPORTED, gpu=1)
    frame = frame_of(watch(make_host(), nvml_state))
    assert frame.power_w == ((None, 690.0),)
    assert frame.power_average_w == ((690.0, None),)


@pytest.mark.parametrize(
    ("call", "column"),
    [
        ("nvmlDeviceGetClockInfo", "sm_mhz"),
        ("nvmlDeviceGetUtilizationRates", "utilisation_ratio"),
        ("nvmlDeviceGetCurrentClocksEventReasons", "event_reasons"),
    ],
)
def test_a_missing_symbol_leaves_its_column_empty(
    make_host: MakeHost, watch: Open, nvml_state: ShimState, call: str, column: str
) -> None:
    collector = watch(make_host(), nvml_state, omit=(call,))
    frame = frame_of(collector)
    assert getattr(frame, column) == ()
    assert collector.lacking()[column] == 2
    assert frame.power_w == ((690.0, 690.0),)
    assert frame.faults == ("", "")


def test_a_driver_without_the_newer_temperature_call_gives_it_by_the_older(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    collector = watch(make_host(), nvml_state, omit=("nvmlDeviceGetTemperatureV",))
    assert frame_of(collector).core_c == (41.0, 41.0)
    assert collector.lacking() == {}


def test_what_a_board_does_not_offer_is_not_asked_again(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    nvml_state.fail("nvmlDeviceGetUtilizationRates", nvml_shim.NOT_SUPPORTED)
    collector = watch(make_host(), nvml_state)
    for now in range(5):
        frame_of(collector, now)
    assert nvml_state.hits("nvmlDeviceGetUtilizationRates") == 2, "once per GPU"


def test_a_reading_that_needs_a_permission_is_unknown_and_the_rest_goes_on(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    nvml_state.fail("nvmlDeviceGetCurrentClocksEventReasons", nvml_shim.NO_PERMISSION)
    nvml_state.deny()  # a collector writes nothing, so denied setters mean nothing to it
    collector = watch(make_host(), nvml_state)
    frame = frame_of(collector)
    assert frame.event_reasons == ()
    assert frame.power_w == ((690.0, 690.0),)
    assert nvml_state.writes() == []


def test_a_gpu_without_any_power_reading_says_so(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    for field in (185, 186):
        nvml_state.fail_field(field, nvml_shim.NOT_SUPPORTED)
    nvml_state.fail("nvmlDeviceGetPowerUsage", nvml_shim.NO_PERMISSION)
    frame = frame_of(watch(make_host(), nvml_state))
    assert frame.best_power_w == ((None, None),)
    assert frame.core_c == (41.0, 41.0)
    assert "offers no power reading" in frame.faults[0]


def test_what_a_board_stops_offering_is_found_out(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    collector = watch(make_host(), nvml_state)
    frame_of(collector)
    nvml_state.fail("nvmlDeviceGetUtilizationRates", nvml_shim.NOT_SUPPORTED, gpu=0)
    frame = frame_of(collector, 1_000)
    assert frame.utilisation_ratio == ((None, 1.0),)
    assert frame.power_w == ((690.0, 690.0),)
    assert frame.faults == ("", "")


# ---- which GPU stands where ----


def test_gpus_stand_in_the_order_the_site_file_states(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    nvml_state.gpu(0).temp_c, nvml_state.gpu(1).temp_c = 30, 31
    uuids = [gpu.uuid for gpu in reversed(nvml_state.gpus)]
    frame = frame_of(watch(make_host(uuids=uuids), nvml_state))
    assert frame.gpus == tuple(uuids)
    assert frame.core_c == (31.0, 30.0)
    assert frame.faults == ("", "")


def test_a_uuid_that_moved_is_read_under_its_own_name_and_both_are_named(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    here, other = (gpu.uuid for gpu in nvml_state.gpus)
    frame = frame_of(watch(make_host(uuids=[here, "GPU-stated"]), nvml_state))
    assert frame.gpus == (here, other)
    assert frame.power_w == ((690.0, 690.0),)
    assert frame.faults == ("", f"found {other} where the site file states GPU-stated")


def test_a_gpu_the_site_file_does_not_know_is_read_and_named(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    here, other = (gpu.uuid for gpu in nvml_state.gpus)
    frame = frame_of(watch(make_host(1, uuids=[here]), nvml_state))
    assert frame.gpus == (here, other)
    assert frame.power_w == ((690.0, 690.0),)
    assert frame.faults[0] == ""
    assert frame.faults[1].startswith(f"found {other}, which the site file does not state")


def test_a_stated_gpu_that_is_absent_keeps_its_place(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    here, other = (gpu.uuid for gpu in nvml_state.gpus)
    frame = frame_of(watch(make_host(3, uuids=[here, "GPU-stated", other]), nvml_state))
    assert frame.gpus == (here, "GPU-stated", other)
    assert frame.power_w == ((690.0, None, 690.0),)
    assert frame.faults[1] == "GPU-stated is missing: the driver lists 2 of 3 GPUs"


def test_gpus_keep_their_places_when_the_driver_counts_them_differently(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    collector = watch(make_host(), nvml_state)
    first = frame_of(collector)
    nvml_state.lose(0)
    frame_of(collector)
    nvml_state.find(0)
    swapped = [gpu.uuid for gpu in reversed(nvml_state.gpus)]
    for gpu, uuid in zip(nvml_state.gpus, swapped, strict=True):
        gpu.uuid = uuid
    assert frame_of(collector, RETRY_MS).gpus == first.gpus


# ---- no driver ----


def test_without_the_package_the_extra_is_named(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(CollectorError, match=r"nvidia-ml-py: pip install -e '\.\[gpu\]'"):
        NvmlCollector(make_host())


def test_without_a_driver_each_poll_looks_for_it_again(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    nvml_state.fail("nvmlInit", NOT_LOADED, 2)
    collector = watch(make_host(), nvml_state)
    for now in (0, 1_000):
        with pytest.raises(
            CollectorError, match="ams1/row-b/r07/h03: no NVIDIA driver answers: Driver Not Loaded"
        ):
            collector.poll(now)
    assert frame_of(collector, 2_000).power_w == ((690.0, 690.0),)


def test_a_driver_that_goes_away_is_the_whole_source_away_until_it_returns(
    make_host: MakeHost, watch: Open, nvml_state: ShimState
) -> None:
    collector = watch(make_host(), nvml_state)
    frame_of(collector)
    nvml_state.fail("nvmlDeviceGetClockInfo", 1, 1)  # UNINITIALIZED, as after a driver reload
    with pytest.raises(CollectorError, match="the NVIDIA driver went away: Uninitialized"):
        collector.poll(1_000)
    assert frame_of(collector, 2_000).power_w == ((690.0, 690.0),)


def test_the_library_is_let_go_of_once(make_host: MakeHost, make_nvml_state: MakeNvmlState) -> None:
    state = make_nvml_state()
    with installed(state) as pynvml:
        collector = NvmlCollector(make_host(1))
        frame_of(collector)
        collector.close()
        collector.close()
        with pytest.raises(pynvml.NVMLError_Uninitialized):
            pynvml.nvmlDeviceGetCount()
