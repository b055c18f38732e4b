"""NVML as the boards of the simulated row answer it: the vendor's seam, where the twin begins.

A `TwinNvml` is one host by one path. It has the functions of the package `pynvml` that the NVML adapters
call, under their own names and with their return values, so that the adapters run against it unchanged.
Reads are immediate; a write is accepted at once and bites after the path's latency. Readings are lists
over all GPUs of the row, made anew whenever the plant has moved, so that a read is a look-up.

Faults are the board's: a lost one raises GPU_IS_LOST, a hung one TIMEOUT (what a caller with a deadline
sees of a call that does not return; nothing blocks in simulated time), a stuck one repeats its power,
a zero-filled one reads 0 throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

from schemas.commands import Path
from schemas.topology import Host

SUCCESS = 0
UNINITIALIZED = 1
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NOT_FOUND = 6
TIMEOUT = 10
GPU_IS_LOST = 15

_WORDS = {
    UNINITIALIZED: "Uninitialized",
    INVALID_ARGUMENT: "Invalid Argument",
    NOT_SUPPORTED: "Not Supported",
    NOT_FOUND: "Not Found",
    TIMEOUT: "Timeout",
    GPU_IS_LOST: "GPU is lost",
}

REASON_IDLE = 0x01
REASON_SW_POWER_CAP = 0x04
REASON_HW_POWER_BRAKE = 0x80

_UINT, _ULONGLONG = 1, 3  # nvmlValueType_t

# Field ids of nvml.h, and the column of `Readings` that answers each.
_FIELDS: dict[int, tuple[str, int]] = {
    82: ("memory_c", _UINT),
    83: ("energy_mj", _ULONGLONG),
    185: ("average_mw", _UINT),
    186: ("power_mw", _UINT),
    187: ("limit_min_mw", _UINT),
    188: ("limit_max_mw", _UINT),
    189: ("limit_default_mw", _UINT),
    190: ("limit_mw", _UINT),
}
_GA100 = "A100"  # no one-second average on this chip: field 185 is missing, PowerUsage is instantaneous

Setting: TypeAlias = Literal["lock", "unlock", "limit"]

Column: TypeAlias = list[int | None]
"""One reading per GPU of the row; None where the board does not answer."""


class NVMLError(Exception):
    """A return code other than success; `value` is the code, the text says it in words."""

    def __init__(self, value: int) -> None:
        super().__init__(_WORDS.get(value, f"NVML error {value}"))
        self.value = value


class Readings:
    """What the boards of a row show between two moves of the plant: a column per quantity."""

    __slots__ = (
        "asked_mw",
        "average_mw",
        "core_c",
        "energy_mj",
        "limit_default_mw",
        "limit_max_mw",
        "limit_min_mw",
        "limit_mw",
        "memory_c",
        "memory_mhz",
        "power_mw",
        "reasons",
        "refusals",
        "sm_mhz",
        "utilisation",
    )

    power_mw: Column
    average_mw: Column
    energy_mj: Column
    core_c: Column
    memory_c: Column
    sm_mhz: Column
    memory_mhz: Column
    utilisation: Column
    reasons: Column
    limit_mw: Column
    asked_mw: dict[Path, Column]
    """The limit asked for by each path; the lowest is in force."""
    limit_min_mw: Column
    limit_max_mw: Column
    limit_default_mw: Column
    refusals: dict[int, int]
    """Return codes of the GPUs that do not answer."""


def unanswered(gpus: int) -> Readings:
    """What a path shows of a row of so many GPUs while every call by it times out."""
    readings = Readings()
    for name in Readings.__slots__:
        setattr(readings, name, [None] * gpus)
    readings.asked_mw, readings.refusals = {}, dict.fromkeys(range(gpus), TIMEOUT)
    return readings


class Plant(Protocol):
    """The row behind the façades."""

    @property
    def readings(self) -> Readings:
        """One object for good, whose columns are replaced as the plant moves."""

    def write(self, path: Path, gpu: int, setting: Setting, low: float, high: float) -> None:
        """Accept a setting for a GPU (its place in the row); it bites after the path's latency."""


class Handle:
    """A device handle; `at` is the GPU's place in the row's columns."""

    __slots__ = ("at", "index", "uuid")

    def __init__(self, at: int, index: int, uuid: str) -> None:
        self.at, self.index, self.uuid = at, index, uuid


class Utilization(NamedTuple):
    """As `nvmlUtilization_t`: percent of the last sampling period."""

    gpu: int
    memory: int


class Value:
    """As the union `nvmlValue_t`: one number under every member's name."""

    __slots__ = ("uiVal",)
    uiVal: int  # noqa: N815 (NVML's own name)


for _member in ("dVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal"):
    setattr(Value, _member, Value.__dict__["uiVal"])


class FieldValue:
    """As `c_nvmlFieldValue_t`. The answers of one list of fields are reused by the next call for it."""

    __slots__ = ("fieldId", "nvmlReturn", "value", "valueType")

    def __init__(self, field: int, kind: int, code: int) -> None:
        self.fieldId = field
        self.valueType = kind
        self.nvmlReturn = code
        self.value = Value()
        self.value.uiVal = 0


class TwinNvml:
    """One simulated host's GPUs by one path, under pynvml's function names."""

    NVMLError = NVMLError
    NVML_SUCCESS = SUCCESS
    NVML_ERROR_INVALID_ARGUMENT = INVALID_ARGUMENT
    NVML_ERROR_NOT_SUPPORTED = NOT_SUPPORTED
    NVML_ERROR_TIMEOUT = TIMEOUT
    NVML_ERROR_GPU_IS_LOST = GPU_IS_LOST
    NVML_CLOCK_GRAPHICS = 0
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0
    NVML_FI_DEV_MEMORY_TEMP = 82
    NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION = 83
    NVML_FI_DEV_POWER_AVERAGE = 185
    NVML_FI_DEV_POWER_INSTANT = 186
    NVML_FI_DEV_POWER_CURRENT_LIMIT = 190

    def __init__(self, plant: Plant, host: Host, path: Path, first: int, uuids: Sequence[str]) -> None:
        """`first` is the place of the host's first GPU in the row's columns."""
        self._plant = plant
        self._readings = plant.readings
        self._host = host
        self._path: Path = path
        self._handles = [Handle(first + index, index, uuid) for index, uuid in enumerate(uuids)]
        self._users = 0
        self._average = _GA100 not in host.sku.name
        self._answers: dict[
            tuple[int, ...], tuple[tuple[FieldValue, ...], tuple[tuple[Value, str], ...]]
        ] = {}

    def show(self, readings: Readings) -> None:
        """Answer from these readings from now on: the plant's, or `unanswered`."""
        self._readings = readings

    # ---- library and handles ----

    def nvmlInit(self) -> None:
        """Open the library; counted, as NVML counts."""
        self._users += 1

    def nvmlShutdown(self) -> None:
        """Close it once. Raises UNINITIALIZED when it is not open."""
        self._open()
        self._users -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        """A version that no real driver has."""
        self._open()
        return "twin"

    def nvmlDeviceGetCount(self) -> int:
        """GPUs of the host, lost ones included (they stay listed until the driver is reloaded)."""
        self._open()
        return len(self._handles)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Handle:
        """Raises INVALID_ARGUMENT for no such GPU, GPU_IS_LOST or TIMEOUT for one that does not answer."""
        self._open()
        if not 0 <= index < len(self._handles):
            raise NVMLError(INVALID_ARGUMENT)
        return self._answering(self._handles[index])

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Handle:
        """Raises NOT_FOUND for a UUID that is not this host's."""
        self._open()
        for handle in self._handles:
            if handle.uuid == uuid:
                return self._answering(handle)
        raise NVMLError(NOT_FOUND)

    def nvmlDeviceGetIndex(self, handle: Handle) -> int:
        """The GPU's index on its host."""
        return self._answering(handle).index

    def nvmlDeviceGetUUID(self, handle: Handle) -> str:
        """The GPU's UUID."""
        return self._answering(handle).uuid

    def nvmlDeviceGetName(self, handle: Handle) -> str:
        """The board's name, as drivers give it."""
        self._answering(handle)
        return f"NVIDIA {self._host.sku.name}"

    # ---- readings ----

    def nvmlDeviceGetPowerUsage(self, handle: Handle) -> int:
        """mW: instantaneous on GA100, else the average of a second."""
        readings = self._readings
        value = (readings.average_mw if self._average else readings.power_mw)[handle.at]
        if value is None:
            raise self._refusal(handle)
        return value

    def nvmlDeviceGetFieldValues(self, handle: Handle, fields: Sequence[int]) -> Sequence[FieldValue]:
        """Never raises for one field; raises for a board that does not answer."""
        asked = tuple(fields)
        answers, members = self._answers.get(asked) or self._plan(asked)
        self._answering(handle)
        readings, at = self._readings, handle.at
        for value, column in members:
            value.uiVal = getattr(readings, column)[at]
        return answers

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Handle) -> int:
        """mJ since the plant began."""
        value = self._readings.energy_mj[handle.at]
        if value is None:
            raise self._refusal(handle)
        return value

    def nvmlDeviceGetTemperatureV(self, handle: Handle, sensor: int) -> int:
        """°C of the core; it has no other sensor."""
        if sensor != self.NVML_TEMPERATURE_GPU:
            raise NVMLError(INVALID_ARGUMENT)
        value = self._readings.core_c[handle.at]
        if value is None:
            raise self._refusal(handle)
        return value

    nvmlDeviceGetTemperature = nvmlDeviceGetTemperatureV

    def nvmlDeviceGetClockInfo(self, handle: Handle, clock: int) -> int:
        """MHz now. The graphics clock is the SM clock."""
        readings = self._readings
        value = (readings.memory_mhz if clock == self.NVML_CLOCK_MEM else readings.sm_mhz)[handle.at]
        if value is None:
            raise self._refusal(handle)
        return value

    def nvmlDeviceGetMaxClockInfo(self, handle: Handle, clock: int) -> int:
        """The highest MHz of the SM clock."""
        self._answering(handle)
        if clock == self.NVML_CLOCK_MEM:
            raise NVMLError(NOT_SUPPORTED)
        return self._host.sku.max_mhz

    def nvmlDeviceGetUtilizationRates(self, handle: Handle) -> Utilization:
        """Percent of the last step with work."""
        value = self._readings.utilisation[handle.at]
        if value is None:
            raise self._refusal(handle)
        return Utilization(value, value)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Handle) -> int:
        """Bits: 0x01 idle, 0x04 software power cap, 0x80 hardware power brake. A clock lock shows in none."""
        value = self._readings.reasons[handle.at]
        if value is None:
            raise self._refusal(handle)
        return value

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Handle) -> int:
        """mW: the lowest limit that any path asks for."""
        self._answering(handle)
        return self._readings.limit_mw[handle.at] or 0

    def nvmlDeviceGetPowerManagementLimit(self, handle: Handle) -> int:
        """mW: the limit that this path asks for."""
        self._answering(handle)
        return self._readings.asked_mw[self._path][handle.at] or 0

    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle: Handle) -> list[int]:
        """Lowest and highest settable limit, mW."""
        self._answering(handle)
        return [round(self._host.sku.limit_min_w * 1000), round(self._host.sku.limit_max_w * 1000)]

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: Handle) -> int:
        """mW: the board's TDP."""
        self._answering(handle)
        return round(self._host.sku.tdp_w * 1000)

    # ---- settings ----

    def nvmlDeviceSetPowerManagementLimit(self, handle: Handle, limit_mw: int) -> None:
        """Raises INVALID_ARGUMENT outside the constraints."""
        low, high = self.nvmlDeviceGetPowerManagementLimitConstraints(handle)
        if not low <= limit_mw <= high:
            raise NVMLError(INVALID_ARGUMENT)
        self._plant.write(self._path, handle.at, "limit", 0.0, limit_mw / 1000)

    def nvmlDeviceSetGpuLockedClocks(self, handle: Handle, low_mhz: int, high_mhz: int) -> None:
        """Raises INVALID_ARGUMENT for an empty range. By the path `brake` this is the power-brake line."""
        self._answering(handle)
        if not 0 <= low_mhz <= high_mhz:
            raise NVMLError(INVALID_ARGUMENT)
        self._plant.write(self._path, handle.at, "lock", low_mhz, high_mhz)

    def nvmlDeviceResetGpuLockedClocks(self, handle: Handle) -> None:
        """Free the clock; by the path `brake`, release the brake."""
        self._answering(handle)
        self._plant.write(self._path, handle.at, "unlock", 0.0, 0.0)

    # ---- inside ----

    def _open(self) -> None:
        if not self._users:
            raise NVMLError(UNINITIALIZED)

    def _answering(self, handle: Handle) -> Handle:
        if handle.at in self._readings.refusals:
            raise self._refusal(handle)
        return handle

    def _refusal(self, handle: Handle) -> Exception:
        return NVMLError(self._readings.refusals[handle.at])

    def _plan(self, asked: tuple[int, ...]) -> tuple[tuple[FieldValue, ...], tuple[tuple[Value, str], ...]]:
        answers, members = [], []
        for field in asked:
            column, kind = _FIELDS.get(field, ("", _UINT))
            offered = bool(column) and (self._average or column != "average_mw")
            answers.append(FieldValue(field, kind, SUCCESS if offered else NOT_SUPPORTED))
            if offered:
                members.append((answers[-1].value, column))
        plan = tuple(answers), tuple(members)
        self._answers[asked] = plan
        return plan
