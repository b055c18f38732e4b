"""The NVML stand-in answers the real pynvml as a driver would, and keeps its state as one does."""

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest
from support import nvml_shim
from support.nvml_fixtures import MakeNvmlState
from support.nvml_shim import (
    GPU_IS_LOST,
    NO_PERMISSION,
    NOT_SUPPORTED,
    REASON_HW_POWER_BRAKE,
    REASON_IDLE,
    REASON_SW_POWER_CAP,
    SUCCESS,
    TIMEOUT,
    ShimError,
    ShimState,
    Write,
    environment,
    installed,
    library,
)

# ---- what pynvml reads ----


def test_the_layout_in_python_is_the_layout_in_c(nvml_library: Path) -> None:
    size = ctypes.CDLL(str(nvml_library)).nvml_shim_size
    mirrored = (nvml_shim._State, nvml_shim.Gpu, nvml_shim._Fault, nvml_shim._Write)
    assert [size(i) for i in range(4)] == [ctypes.sizeof(structure) for structure in mirrored]


def test_devices_are_found_by_index_and_by_uuid(nvml: ModuleType, nvml_state: ShimState) -> None:
    assert nvml.nvmlDeviceGetCount() == 2
    assert nvml.nvmlSystemGetDriverVersion() == "590.48.01"
    assert nvml.nvmlSystemGetNVMLVersion() == "13.590.48.01"
    for index in range(2):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = nvml_state.gpu(index).uuid
        assert nvml.nvmlDeviceGetUUID(handle) == uuid
        assert nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetHandleByUUID(uuid)) == index
        assert nvml.nvmlDeviceGetName(handle) == "NVIDIA H100 80GB HBM3"
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetHandleByIndex(2)
    with pytest.raises(nvml.NVMLError_NotFound):
        nvml.nvmlDeviceGetHandleByUUID("GPU-none")


def test_each_quantity_is_read_from_its_own_place(nvml: ModuleType, nvml_state: ShimState) -> None:
    gpu = nvml_state.gpu(1)
    gpu.demand_mw, gpu.average_mw, gpu.module_mw, gpu.memory_mw = 501_000, 499_000, 620_000, 43_190
    gpu.utilisation, gpu.memory_utilisation, gpu.temp_c, gpu.mem_temp_c = 97, 31, 66, 81
    gpu.mem_mhz, gpu.energy_mj, gpu.persistence = 1593, 2**40 + 7, 0
    gpu.limit_min_mw, gpu.limit_default_mw, gpu.limit_max_mw, gpu.limit_mw = (
        150_000,
        650_000,
        710_000,
        640_000,
    )
    handle = nvml.nvmlDeviceGetHandleByIndex(1)

    assert nvml.nvmlDeviceGetPowerUsage(handle) == 499_000
    assert nvml.nvmlDeviceGetTotalEnergyConsumption(handle) == 2**40 + 7
    assert nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU) == 66
    assert nvml.nvmlDeviceGetTemperatureV(handle, nvml.NVML_TEMPERATURE_GPU) == 66
    assert nvml.nvmlDeviceGetMarginTemperature(handle) == 21
    assert [nvml.nvmlDeviceGetTemperatureThreshold(handle, i) for i in range(4)] == [95, 89, 95, 87]
    assert [nvml.nvmlDeviceGetClockInfo(handle, i) for i in range(3)] == [1980, 1980, 1593]
    assert [nvml.nvmlDeviceGetMaxClockInfo(handle, i) for i in range(3)] == [1980, 1980, 2619]
    assert nvml.nvmlDeviceGetSupportedMemoryClocks(handle) == [2619]
    assert nvml.nvmlDeviceGetSupportedGraphicsClocks(handle, 2619) == list(range(1980, 344, -15))
    utilisation = nvml.nvmlDeviceGetUtilizationRates(handle)
    assert (utilisation.gpu, utilisation.memory) == (97, 31)
    assert nvml.nvmlDeviceGetPerformanceState(handle) == 0
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == 0
    assert nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) == 0
    assert nvml.nvmlDeviceGetPowerManagementLimit(handle) == 640_000
    assert nvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 640_000
    assert nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) == 650_000
    assert nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle) == [150_000, 710_000]
    assert nvml.nvmlDeviceGetPersistenceMode(handle) == 0


def test_field_values_carry_their_type_scope_and_own_return_code(
    nvml: ModuleType, nvml_state: ShimState
) -> None:
    gpu = nvml_state.gpu(0)
    gpu.average_mw, gpu.memory_mw, gpu.energy_mj = 600_000, 43_000, 2**40
    nvml_state.fail_field(187, TIMEOUT, times=1)
    asked = [82, 83, 185, 186, (185, 2), (186, 1), 187, 188, 189, 190, 192, 193, 194, 195, 196, 9999]
    values = nvml.nvmlDeviceGetFieldValues(nvml.nvmlDeviceGetHandleByIndex(0), asked)

    assert [value.nvmlReturn for value in values] == [0] * 5 + [NOT_SUPPORTED, TIMEOUT] + [0] * 8 + [
        NOT_SUPPORTED
    ]
    assert (values[0].value.uiVal, values[1].value.ullVal) == (48, 2**40)
    assert values[1].valueType == nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
    assert [value.value.uiVal for value in values[2:5]] == [600_000, 690_000, 43_000]
    assert [value.value.uiVal for value in values[7:11]] == [700_000] * 4
    assert [value.value.siVal for value in values[11:15]] == [-8, -2, 0, 0]
    assert values[11].valueType == nvml.NVML_VALUE_TYPE_SIGNED_INT
    assert values[0].timestamp == pytest.approx(time.time() * 1e6, abs=60e6)


def test_a_call_before_init_or_after_shutdown_is_uninitialised(nvml_state: ShimState) -> None:
    with installed(nvml_state) as nvml:
        with pytest.raises(nvml.NVMLError_Uninitialized):
            nvml.nvmlDeviceGetCount()
        nvml.nvmlInit()
        nvml.nvmlInit()
        nvml.nvmlShutdown()
        assert nvml.nvmlDeviceGetCount() == 2
        nvml.nvmlShutdown()
        with pytest.raises(nvml.NVMLError_Uninitialized):
            nvml.nvmlDeviceGetCount()
    assert nvml_state.init_calls == 2


def test_a_missing_state_file_is_a_driver_that_is_not_loaded(nvml_state: ShimState) -> None:
    nvml_state.path.unlink()
    with installed(nvml_state) as nvml, pytest.raises(nvml.NVMLError_DriverNotLoaded):
        nvml.nvmlInit()


# ---- the power model ----


def test_a_power_limit_holds_the_draw_and_is_named_as_the_reason(
    nvml: ModuleType, nvml_state: ShimState
) -> None:
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    assert nvml.nvmlDeviceGetPowerUsage(handle) == 690_000

    nvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000)

    assert nvml_state.gpu(0).limit_mw == 400_000
    assert nvml.nvmlDeviceGetPowerUsage(handle) == 400_000
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == REASON_SW_POWER_CAP
    assert nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) == 1440  # 1980 * sqrt(330/620), in steps
    assert nvml.nvmlDeviceGetPowerUsage(nvml.nvmlDeviceGetHandleByIndex(1)) == 690_000


def test_a_lock_limits_the_clock_and_the_draw(nvml: ModuleType, nvml_state: ShimState) -> None:
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    nvml.nvmlDeviceSetGpuLockedClocks(handle, 345, 1005)

    assert (nvml_state.gpu(0).lock_min_mhz, nvml_state.gpu(0).lock_max_mhz) == (345, 1005)
    assert nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) == 1005
    assert nvml.nvmlDeviceGetPowerUsage(handle) == pytest.approx(70_000 + 620_000 * (1005 / 1980) ** 2, abs=1)
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == 0

    nvml.nvmlDeviceResetGpuLockedClocks(handle)
    assert not nvml_state.gpu(0).locked
    assert nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) == 1980


def test_the_brake_halves_the_clock_and_idleness_is_a_reason(nvml: ModuleType, nvml_state: ShimState) -> None:
    braked, idle = (nvml.nvmlDeviceGetHandleByIndex(i) for i in range(2))
    nvml_state.gpu(0).brake = 1
    nvml_state.gpu(1).utilisation = 0

    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(braked) & REASON_HW_POWER_BRAKE
    assert nvml.nvmlDeviceGetClockInfo(braked, nvml.NVML_CLOCK_SM) == 990
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(idle) == REASON_IDLE
    assert nvml.nvmlDeviceGetClockInfo(idle, nvml.NVML_CLOCK_SM) == 345
    assert nvml.nvmlDeviceGetPowerUsage(idle) == 70_000


def test_the_model_in_python_agrees_with_the_model_in_c(nvml: ModuleType, nvml_state: ShimState) -> None:
    gpu, handle = nvml_state.gpu(0), nvml.nvmlDeviceGetHandleByIndex(0)
    cases = itertools.product(
        (40_000, 350_000, 690_000), (0, 100), (0, 700, 1410), (200_000, 450_000), (0, 1)
    )
    for gpu.demand_mw, gpu.utilisation, gpu.lock_max_mhz, gpu.limit_mw, gpu.brake in cases:
        assert nvml.nvmlDeviceGetPowerUsage(handle) == gpu.expected_mw()
        assert nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) == gpu.expected_mhz()


def test_scripted_power_is_returned_in_turn_and_then_stays(nvml: ModuleType, nvml_state: ShimState) -> None:
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    nvml_state.gpu(0).script_power([0, 4_294_967, 300_000])
    reads = [nvml.nvmlDeviceGetPowerUsage(handle)]
    average, instant = nvml.nvmlDeviceGetFieldValues(handle, [185, 186])  # one step a call
    reads += [average.value.uiVal, instant.value.uiVal]
    reads += [nvml.nvmlDeviceGetPowerUsage(handle) for _ in range(2)]
    assert reads == [0, 4_294_967, 4_294_967, 300_000, 300_000]
    nvml_state.gpu(0).script_power([])
    assert nvml.nvmlDeviceGetPowerUsage(handle) == 690_000


def test_energy_follows_the_draw(nvml: ModuleType, nvml_state: ShimState) -> None:
    nvml_state.advance(2.5)
    assert nvml.nvmlDeviceGetTotalEnergyConsumption(nvml.nvmlDeviceGetHandleByIndex(0)) == 1_725_000


# ---- refusals, faults, hangs ----


def test_a_setter_without_permission_changes_nothing(nvml: ModuleType, nvml_state: ShimState) -> None:
    nvml_state.deny(0)
    denied, allowed = (nvml.nvmlDeviceGetHandleByIndex(i) for i in range(2))
    with pytest.raises(nvml.NVMLError_NoPermission):
        nvml.nvmlDeviceSetGpuLockedClocks(denied, 345, 1005)
    with pytest.raises(nvml.NVMLError_NoPermission):
        nvml.nvmlDeviceSetPowerManagementLimit(denied, 400_000)
    with pytest.raises(nvml.NVMLError_NoPermission):
        nvml.nvmlDeviceResetGpuLockedClocks(denied)
    nvml.nvmlDeviceSetGpuLockedClocks(allowed, 345, 1005)

    gpu = nvml_state.gpu(0)
    assert (gpu.lock_max_mhz, gpu.limit_mw) == (0, 700_000)
    assert (gpu.set_lock_calls, gpu.set_limit_calls, gpu.reset_lock_calls) == (1, 1, 1)
    assert nvml_state.writes()[0] == Write("nvmlDeviceSetGpuLockedClocks", 0, (345, 1005), NO_PERMISSION)
    assert nvml_state.writes(gpu=1) == [Write("nvmlDeviceSetGpuLockedClocks", 1, (345, 1005), SUCCESS)]


@pytest.mark.parametrize("limit_mw", [199_999, 700_001])
def test_a_limit_outside_the_constraints_is_an_invalid_argument(nvml: ModuleType, limit_mw: int) -> None:
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceSetPowerManagementLimit(nvml.nvmlDeviceGetHandleByIndex(0), limit_mw)


def test_a_lost_gpu_fails_alone(nvml: ModuleType, nvml_state: ShimState) -> None:
    lost, other = (nvml.nvmlDeviceGetHandleByIndex(i) for i in range(2))
    nvml_state.lose(0)
    for call in (nvml.nvmlDeviceGetPowerUsage, nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceResetGpuLockedClocks):
        with pytest.raises(nvml.NVMLError_GpuIsLost):
            call(lost)
    with pytest.raises(nvml.NVMLError_GpuIsLost):
        nvml.nvmlDeviceGetHandleByIndex(0)
    assert nvml.nvmlDeviceGetPowerUsage(other) == 690_000
    nvml_state.find(0)
    assert nvml.nvmlDeviceGetPowerUsage(lost) == 690_000


def test_an_injected_error_comes_as_often_as_asked(nvml: ModuleType, nvml_state: ShimState) -> None:
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    nvml_state.fail("nvmlDeviceSetGpuLockedClocks", TIMEOUT, times=1, gpu=0)
    nvml_state.fail("nvmlDeviceSetGpuLockedClocks", GPU_IS_LOST, times=1, gpu=0)
    with pytest.raises(nvml.NVMLError_Timeout):
        nvml.nvmlDeviceSetGpuLockedClocks(handle, 345, 1005)
    with pytest.raises(nvml.NVMLError_GpuIsLost):
        nvml.nvmlDeviceSetGpuLockedClocks(handle, 345, 1005)
    assert not nvml_state.gpu(0).locked
    nvml.nvmlDeviceSetGpuLockedClocks(handle, 345, 1005)
    assert nvml_state.gpu(0).locked
    assert nvml_state.hits("nvmlDeviceSetGpuLockedClocks") == 2

    nvml_state.fail("nvmlDeviceGetCount", GPU_IS_LOST)
    for _ in range(3):
        with pytest.raises(nvml.NVMLError_GpuIsLost):
            nvml.nvmlDeviceGetCount()
    nvml_state.clear_faults()
    assert nvml.nvmlDeviceGetCount() == 2


def test_a_setter_can_lie_either_way(nvml: ModuleType, nvml_state: ShimState) -> None:
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    nvml_state.fail("nvmlDeviceSetPowerManagementLimit", TIMEOUT, times=1, applied=True)
    with pytest.raises(nvml.NVMLError_Timeout):
        nvml.nvmlDeviceSetPowerManagementLimit(handle, 300_000)
    assert nvml_state.gpu(0).limit_mw == 300_000

    nvml_state.fail("nvmlDeviceSetPowerManagementLimit", SUCCESS, times=1, applied=False)
    nvml.nvmlDeviceSetPowerManagementLimit(handle, 500_000)
    assert nvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 300_000


def test_a_call_that_hangs_holds_its_thread_only_and_ends_when_cleared(
    nvml: ModuleType, nvml_state: ShimState
) -> None:
    stuck, other = (nvml.nvmlDeviceGetHandleByIndex(i) for i in range(2))
    nvml_state.hang("nvmlDeviceGetPowerUsage", ms=-1, gpu=0)
    read: list[int] = []
    thread = threading.Thread(target=lambda: read.append(nvml.nvmlDeviceGetPowerUsage(stuck)))
    thread.start()
    while not nvml_state.hits("nvmlDeviceGetPowerUsage"):
        time.sleep(0.001)
    assert nvml.nvmlDeviceGetPowerUsage(other) == 690_000
    assert thread.is_alive()
    assert not read
    nvml_state.clear_faults()
    thread.join(10)
    assert read == [690_000]


def test_a_missing_symbol_is_a_function_not_found(nvml_state: ShimState) -> None:
    with installed(nvml_state, omit=["nvmlDeviceGetFieldValues", "nvmlDeviceSetGpuLockedClocks"]) as nvml:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        with pytest.raises(nvml.NVMLError_FunctionNotFound):
            nvml.nvmlDeviceGetFieldValues(handle, [186])
        with pytest.raises(nvml.NVMLError_FunctionNotFound):
            nvml.nvmlDeviceSetGpuLockedClocks(handle, 345, 1005)
        assert nvml.nvmlDeviceGetPowerUsage(handle) == 690_000
    with installed(nvml_state) as nvml:
        nvml.nvmlInit()
        assert (
            nvml.nvmlDeviceGetFieldValues(nvml.nvmlDeviceGetHandleByIndex(0), [186])[0].value.uiVal == 690_000
        )


def test_a_misspelt_call_is_an_error_in_the_test(nvml_state: ShimState) -> None:
    with pytest.raises(ShimError, match="nvmlDeviceSetLockedClock"):
        nvml_state.fail("nvmlDeviceSetLockedClock", TIMEOUT)
    with pytest.raises(ShimError, match="nvmlDeviceGetFoo"):
        library(omit=["nvmlDeviceGetFoo"])


def test_pynvml_is_put_back_as_it_was(make_nvml_state: MakeNvmlState) -> None:
    first, second = make_nvml_state(gpus=1), make_nvml_state(gpus=3)
    with installed(first) as nvml:
        before = nvml.nvmlLib
        nvml.nvmlInit()
        with pytest.raises(ShimError, match="already"), installed(second):
            pass
        assert nvml.nvmlLib is before
    assert nvml.nvmlLib is not before
    assert nvml._nvmlLib_refcount == 0
    with installed(second) as nvml:
        nvml.nvmlInit()
        assert nvml.nvmlDeviceGetCount() == 3
        assert first.gpu(0).uuid != second.gpu(0).uuid


# ---- the state is the driver's, not the process's ----

LOCK_AND_WAIT = """
import sys, pynvml
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(1)
pynvml.nvmlDeviceSetGpuLockedClocks(handle, 345, 1200)
pynvml.nvmlDeviceSetPowerManagementLimit(handle, 350_000)
print("locked", flush=True)
sys.stdin.read()
"""


def test_locks_and_limits_survive_a_killed_process(nvml_state: ShimState) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LOCK_AND_WAIT],
        env={**os.environ, **environment(nvml_state)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL

    assert (nvml_state.gpu(1).lock_max_mhz, nvml_state.gpu(1).limit_mw) == (1200, 350_000)
    assert ShimState.opened(nvml_state.path).gpu(1).lock_max_mhz == 1200
    with installed(nvml_state) as nvml:
        nvml.nvmlInit()
        assert nvml.nvmlDeviceGetClockInfo(nvml.nvmlDeviceGetHandleByIndex(1), nvml.NVML_CLOCK_SM) == 1200


def test_a_driver_reload_forgets_them(nvml: ModuleType, nvml_state: ShimState) -> None:
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    nvml.nvmlDeviceSetGpuLockedClocks(handle, 345, 1200)
    nvml.nvmlDeviceSetPowerManagementLimit(handle, 350_000)
    nvml_state.advance(1)
    nvml_state.reload_driver()
    assert nvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 700_000
    assert nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) == 1980
    assert nvml.nvmlDeviceGetTotalEnergyConsumption(handle) == 0
