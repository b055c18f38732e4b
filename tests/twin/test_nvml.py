"""The simulated boards at the vendor's seam: what pynvml's callers see, and the real adapters on them."""

from collections.abc import Callable
from typing import get_args

import pynvml
import pytest

from actuators.base import ActuatorError
from actuators.gpu_nvml import NvmlActuator
from collectors.gpu_nvml import NvmlCollector
from schemas.commands import Lease, LockClocks, Path
from schemas.instants import SECOND
from schemas.samples import GpuFrame
from schemas.topology import Site
from twin.nvml import Handle, NVMLError, TwinNvml
from twin.row import GpuFault, OobLatency, TwinRow
from twin.workload import Load

LEASE = Lease(epoch=1, issued_at=0, expires_at=90_000, on_expiry="safe_share")


@pytest.fixture
def row(make_site: Callable[..., Site], flood: Callable[..., Load]) -> TwinRow:
    row = TwinRow(make_site(4), "lab/row-a", seed=1, load=flood())
    row.advance(2 * SECOND)
    return row


def opened(row: TwinRow, host: int = 0, path: Path = "in_band") -> tuple[TwinNvml, Handle]:
    nvml = row.nvml(row.hosts[host].path, path)
    nvml.nvmlInit()
    return nvml, nvml.nvmlDeviceGetHandleByIndex(0)


# ---- the names and shapes of pynvml ----


def test_every_function_and_constant_is_one_of_pynvml(row: TwinRow) -> None:
    names = [
        name for name in dir(row.nvml(row.hosts[0].path, "in_band")) if name.startswith(("nvml", "NVML_"))
    ]
    assert len(names) > 25
    assert [name for name in names if not hasattr(pynvml, name)] == []
    for name in names:
        if name.startswith("NVML_"):
            assert getattr(TwinRow.nvml(row, row.hosts[0].path, "in_band"), name) == getattr(pynvml, name)


def test_a_field_value_answers_under_every_name_of_the_union(row: TwinRow) -> None:
    nvml, gpu = opened(row)
    (answer,) = nvml.nvmlDeviceGetFieldValues(gpu, [pynvml.NVML_FI_DEV_POWER_INSTANT])
    assert answer.nvmlReturn == pynvml.NVML_SUCCESS
    members = [name for name, _ in pynvml.c_nvmlValue_t._fields_]
    assert {getattr(answer.value, name) for name in members} == {nvml.nvmlDeviceGetPowerUsage(gpu)}
    assert {name for name, _ in pynvml.c_nvmlFieldValue_t._fields_} >= {
        "fieldId",
        "nvmlReturn",
        "valueType",
        "value",
    }


def test_ga100_has_no_average_and_others_do(
    make_site: Callable[..., Site], flood: Callable[..., Load]
) -> None:
    codes = {}
    for sku in ("A100-SXM4-80GB", "H100-SXM5-80GB"):
        row = TwinRow(make_site(2, sku=sku), "lab/row-a", seed=1, load=flood(2))
        row.advance(5 * SECOND)
        nvml, gpu = opened(row)
        instant, average = nvml.nvmlDeviceGetFieldValues(gpu, (186, 185))
        assert instant.nvmlReturn == 0
        codes[sku] = average.nvmlReturn
        usage = nvml.nvmlDeviceGetPowerUsage(gpu)
        assert usage == (average if sku.startswith("H100") else instant).value.uiVal
    assert codes == {"A100-SXM4-80GB": pynvml.NVML_ERROR_NOT_SUPPORTED, "H100-SXM5-80GB": 0}


def test_errors_carry_the_return_code_and_say_it_as_pynvml_does(row: TwinRow) -> None:
    nvml, gpu = opened(row)
    with pytest.raises(NVMLError, match=str(pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT))) as refused:
        nvml.nvmlDeviceSetPowerManagementLimit(gpu, 99_000)
    assert refused.value.value == pynvml.NVML_ERROR_INVALID_ARGUMENT
    with pytest.raises(NVMLError, match=str(pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND))):
        nvml.nvmlDeviceGetHandleByUUID("GPU-of-another-host")
    with pytest.raises(NVMLError, match=str(pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED))):
        row.nvml(row.hosts[3].path, "in_band").nvmlDeviceGetCount()


def test_a_path_that_the_host_does_not_offer_is_refused_in_words(row: TwinRow) -> None:
    with pytest.raises(KeyError, match="offers no path 'sideways'"):
        row.nvml(row.hosts[0].path, "sideways")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="has no host 'lab/row-a/r1/h9'"):
        row.nvml("lab/row-a/r1/h9", "in_band")


# ---- when settings bite ----


@pytest.mark.parametrize(("path", "late_ms"), [("in_band", 50), ("brake", 5_000), ("out_of_band", 40_000)])
def test_a_clock_lock_lowers_power_after_its_latency_and_not_before(
    make_site: Callable[..., Site], flood: Callable[..., Load], path: Path, late_ms: int
) -> None:
    row = TwinRow(make_site(4), "lab/row-a", seed=1, load=flood())
    row.advance(10 * SECOND)
    before = row.servers.gpu_w.sum(axis=1)
    for host in range(4):
        nvml, _ = opened(row, host, path)
        for index in range(8):
            nvml.nvmlDeviceSetGpuLockedClocks(nvml.nvmlDeviceGetHandleByIndex(index), 210, 288)
    row.advance(10 * SECOND + late_ms - 1)
    assert row.servers.gpu_w.sum(axis=1) == pytest.approx(before, rel=0.02)
    assert opened(row)[0].nvmlDeviceGetClockInfo(opened(row)[1], 1) == 1410
    row.advance(10 * SECOND + late_ms)
    assert opened(row)[0].nvmlDeviceGetClockInfo(opened(row)[1], 1) == 285
    row.advance(10 * SECOND + late_ms + 1 * SECOND)
    assert (row.servers.gpu_w.sum(axis=1) < 0.3 * before).all()


def test_out_of_band_writes_can_come_early_or_never(
    make_site: Callable[..., Site], flood: Callable[..., Load]
) -> None:
    def landed_at(oob_latency: OobLatency = "constant_40", oob_loss_ratio: float = 0.0) -> list[int | None]:
        row = TwinRow(
            make_site(4),
            "lab/row-a",
            seed=4,
            load=flood(),
            oob_latency=oob_latency,
            oob_loss_ratio=oob_loss_ratio,
        )
        for host in range(4):
            nvml, _ = opened(row, host, "out_of_band")
            for index in range(8):
                nvml.nvmlDeviceSetGpuLockedClocks(nvml.nvmlDeviceGetHandleByIndex(index), 210, 1110)
        seen: list[int | None] = [None] * 32
        for second in range(1, 46):
            row.advance(second * SECOND)
            for gpu, mhz in enumerate(row.readings.sm_mhz):
                if mhz == 1110 and seen[gpu] is None:
                    seen[gpu] = second
        return seen

    early = landed_at(oob_latency="uniform_to_40")
    assert all(second is not None and second <= 40 for second in early)
    assert len(set(early)) > 8
    lossy = landed_at(oob_loss_ratio=0.5)
    assert 6 <= lossy.count(None) <= 26
    assert set(lossy) == {None, 40}


def test_each_path_keeps_its_own_lock_and_the_tightest_is_in_force(row: TwinRow) -> None:
    brake, gpu = opened(row, path="brake")
    band, _ = opened(row)
    brake.nvmlDeviceSetGpuLockedClocks(gpu, 210, 288)
    row.advance(8 * SECOND)
    band.nvmlDeviceSetGpuLockedClocks(gpu, 210, 1110)
    row.advance(10 * SECOND)
    assert band.nvmlDeviceGetClockInfo(gpu, 1) == 285
    assert band.nvmlDeviceGetCurrentClocksEventReasons(gpu) & 0x80
    brake.nvmlDeviceResetGpuLockedClocks(gpu)
    row.advance(16 * SECOND)
    assert band.nvmlDeviceGetClockInfo(gpu, 1) == 1110
    assert not band.nvmlDeviceGetCurrentClocksEventReasons(gpu) & 0x80


def test_a_limit_is_shown_by_the_path_that_asked_and_enforced_for_all(row: TwinRow) -> None:
    band, gpu = opened(row)
    bmc, _ = opened(row, path="out_of_band")
    band.nvmlDeviceSetPowerManagementLimit(gpu, 250_000)
    row.advance(6 * SECOND)
    assert band.nvmlDeviceGetPowerManagementLimit(gpu) == 250_000
    assert bmc.nvmlDeviceGetPowerManagementLimit(gpu) == 400_000
    assert bmc.nvmlDeviceGetEnforcedPowerLimit(gpu) == 250_000
    assert bmc.nvmlDeviceGetCurrentClocksEventReasons(gpu) & 0x04
    assert bmc.nvmlDeviceGetPowerUsage(gpu) < 250_000 * 1.07


# ---- sensors ----


def test_a_boards_gain_is_its_own_and_constant(
    make_site: Callable[..., Site], flood: Callable[..., Load]
) -> None:
    row = TwinRow(make_site(4), "lab/row-a", seed=1, load=flood())
    ratios = []
    for second in range(10, 40):
        row.advance(second * SECOND)
        if (row.servers.prefilling == 1.0).all():
            read = [mw / 1000 for mw in row.readings.power_mw if mw is not None]
            ratios.append([r / t for r, t in zip(read, row.servers.gpu_w.ravel().tolist(), strict=True)])
    assert len(ratios) > 15
    gains = [sum(column) / len(column) for column in zip(*ratios, strict=True)]
    assert all(0.945 < gain < 1.055 for gain in gains)
    assert max(gains) - min(gains) > 0.05
    for column, gain in zip(zip(*ratios, strict=True), gains, strict=True):
        assert all(abs(value / gain - 1) < 0.02 for value in column)


def test_a_short_spike_can_be_missed_and_is_in_the_energy_all_the_same(
    make_site: Callable[..., Site], timetable: Callable[..., Load]
) -> None:
    """A prompt of 128 tokens lasts 80 ms of each half second: about one reading in six meets it."""
    row = TwinRow(
        make_site(1, gpus=1),
        "lab/row-a",
        seed=2,
        load=timetable([(s / 2, 0, 128, 1) for s in range(-20, 400)]),
    )
    nvml, gpu = opened(row)
    readings = []
    began = nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    for half in range(1, 361):
        row.advance(half * 500)
        readings.append(nvml.nvmlDeviceGetPowerUsage(gpu) / 1000)
    met = sum(watts > 255 for watts in readings) / len(readings)
    assert 0.08 < met < 0.25
    mean_w = (nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) - began) / 1000 / 180
    gain = float(row._gain[0, 0])
    assert mean_w / gain == pytest.approx(0.16 * 276.4 + 0.84 * 63, rel=0.02)


def test_a_faulty_board_fails_in_its_own_way_and_alone(row: TwinRow) -> None:
    host = row.hosts[0].path
    for index, fault in enumerate(get_args(GpuFault)):
        row.fail_gpu(host, index, fault)
    stuck = row.readings.power_mw[2]
    assert stuck is not None
    frames = []
    collector = NvmlCollector(row.hosts[0], row.nvml(host, "in_band"))
    for second in range(3, 8):
        row.advance(second * SECOND)
        frames += [frame for frame in collector.poll(row.now) if isinstance(frame, GpuFrame)]
    power = [frame.power_w[0] for frame in frames]
    assert all(p[0] is None and p[1] is None for p in power)
    assert all("GPU is lost" in frame.faults[0] and "Timeout" in frame.faults[1] for frame in frames)
    assert {p[2] for p in power} == {stuck / 1000}
    assert {p[3] for p in power} == {0.0}
    assert len({p[4] for p in power}) == 5
    assert all(p[4] is not None and p[4] > 200 for p in power)
    row.mend_gpu(host, 2)
    row.advance(9 * SECOND)
    assert row.readings.power_mw[2] != stuck


# ---- the real adapters ----


def test_the_collector_reads_what_the_plant_does(row: TwinRow) -> None:
    collector = NvmlCollector(row.hosts[1], row.nvml(row.hosts[1].path, "in_band"))
    row.advance(20 * SECOND)
    (frame,) = collector.poll(row.now)
    assert isinstance(frame, GpuFrame)
    assert frame.faults == ("",) * 8
    assert collector.lacking() == {"power_average_w": 8}
    assert sum(w for w in frame.power_w[0] if w is not None) == pytest.approx(
        row.servers.prefill_w[1].sum(), rel=0.05
    )
    assert frame.sm_mhz[0] == (1410.0,) * 8
    assert frame.core_c == pytest.approx(row.servers.core_c[1].tolist(), abs=1.0)
    assert frame.limit_w == (400.0,) * 8


def test_the_actuator_sees_its_lock_in_force_once_it_has_landed(row: TwinRow) -> None:
    host = row.hosts[0]
    actuator = NvmlActuator(host, "out_of_band", row.nvml(host.path, "out_of_band"))
    found = actuator.inspect()
    assert found.limit_w == (400.0,) * 8
    lock = LockClocks(
        at=row.now, source="test", subject=host.path, lease=LEASE, max_mhz=1110, path="out_of_band"
    )
    actuator.apply(lock, found)
    row.advance(41 * SECOND)
    assert actuator.verify(lock).in_force is False
    row.advance(43 * SECOND)
    seen = actuator.verify(lock)
    assert (seen.in_force, seen.observed) == (True, 1110.0)


def test_the_actuator_hears_of_a_dark_host(row: TwinRow) -> None:
    host = row.hosts[0]
    actuator = NvmlActuator(host, "in_band", row.nvml(host.path, "in_band"))
    row.fail_ups(0.001)
    row.advance(13 * SECOND)
    assert row.tripped
    with pytest.raises(ActuatorError, match="GPU is lost"):
        actuator.inspect()
