"""A host's GPUs read through NVML, the driver's own library: one `GpuFrame` per poll.

Reading needs no privilege. What a board or driver does not offer is found out once per device and
never asked again; a device that does not answer is unknown and says so in words, and those beside it
go on. NVML calls can hang in the driver, and nothing inside a process can end such a call: a host of
this collector runs `poll` with a deadline of its own and takes a missed one as unknown. The collector
itself is free of threads.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Protocol, cast

from collectors.base import CollectorError
from schemas.envelope import Event
from schemas.instants import SECOND, Instant, Span
from schemas.samples import GpuFrame
from schemas.topology import Host

_LOG = logging.getLogger(__name__)

RETRY_MS: Span = 10 * SECOND
"""How long a missing GPU is left alone before the library is opened anew to look for it. Opening NVML
can take seconds on a driver without persistence mode (our choice)."""

# nvmlReturn_t, from nvml.h.
_SUCCESS = 0
_LOST = frozenset({15, 16})  # GPU_IS_LOST, RESET_REQUIRED: the handle is of no more use
# UNINITIALIZED, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, LIB_RM_VERSION_MISMATCH: nobody is there to ask.
_AWAY = frozenset({1, 9, 12, 18})
# INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH: asking
# again cannot help. An older driver answers a field or struct version it does not know with 2 or 25.
_LACKING = frozenset({2, 3, 4, 13, 25})

_SENSOR_GPU = 0  # NVML_TEMPERATURE_GPU
_CLOCK_SM, _CLOCK_MEMORY = 1, 2  # nvmlClockType_t
_ARCH_AMPERE = 7  # NVML_DEVICE_ARCH_AMPERE
_GA100 = re.compile(r"\bA(100|800|30)X?\b")  # boards with a GA100 chip, as they stand in a device's name

# nvmlValueType_t: which member of the union holds a field's value.
_DECODE: dict[int, Callable[[Any], Any]] = {
    0: attrgetter("value.dVal"),
    1: attrgetter("value.uiVal"),
    2: attrgetter("value.ulVal"),
    3: attrgetter("value.ullVal"),
    4: attrgetter("value.sllVal"),
    5: attrgetter("value.siVal"),
    6: attrgetter("value.usVal"),
}


class FieldValue(Protocol):
    """One answer of `nvmlDeviceGetFieldValues`, which never raises for a single field: go by
    `nvmlReturn`, then by `valueType` (which member of the union `value` holds the number)."""

    nvmlReturn: int
    valueType: int  # noqa: N815 (NVML's own name)
    value: Any


class Nvml(Protocol):
    """The NVML calls that reading makes: the module `pynvml`, or a simulated board with its names.

    Handles are the library's own. Calls raise `NVMLError`, whose `value` is the return code and whose
    text says it in words; `NVMLError(code)` makes one.
    """

    @property
    def NVMLError(self) -> type[Exception]: ...  # noqa: N802 (pynvml's own name)

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> Any: ...
    def nvmlDeviceGetUUID(self, handle: Any, /) -> str: ...
    def nvmlDeviceGetFieldValues(self, handle: Any, fields: Any, /) -> Sequence[FieldValue]: ...
    def nvmlDeviceGetTemperatureV(self, handle: Any, sensor: int, /) -> int: ...
    def nvmlDeviceGetClockInfo(self, handle: Any, clock: int, /) -> int: ...
    def nvmlDeviceGetUtilizationRates(self, handle: Any, /) -> Any: ...
    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any, /) -> int: ...

    # Asked only where the call or field above is missing, so a simulated board may do without them:
    # nvmlDeviceGetTemperature, nvmlDeviceGetPowerUsage, nvmlDeviceGetTotalEnergyConsumption,
    # nvmlDeviceGetEnforcedPowerLimit, nvmlDeviceGetName and nvmlDeviceGetArchitecture.


def _thousandth(value: float) -> float:
    return value / 1000  # mW → W, mJ → J


def _share(rates: Any) -> float:
    return float(rates.gpu / 100)  # percent of the sampling period with a kernel running


# Columns of a reading, in the order a device's row holds them.
_COLUMNS = (
    "power_w",
    "power_average_w",
    "sm_mhz",
    "utilisation_ratio",
    "memory_mhz",
    "core_c",
    "memory_c",
    "energy_j",
    "limit_w",
    "event_reasons",
)
_POWER, _AVERAGE = _COLUMNS.index("power_w"), _COLUMNS.index("power_average_w")
_GRIDS = 4  # the first columns are grids: one row per sampling instant

# Column, field id of nvml.h, and what its number is divided by: mW → W, mJ → J. 190 is the limit in force;
# 192 would be the one asked for.
_FIELDS: tuple[tuple[str, int, int], ...] = (
    ("power_w", 186, 1000),
    ("power_average_w", 185, 1000),
    ("memory_c", 82, 1),
    ("energy_j", 83, 1000),
    ("limit_w", 190, 1000),
)

# Calls for what no field gives, tried in this order; a column already had is not asked for again.
_CALLS: tuple[tuple[str, str, tuple[int, ...], Callable[[Any], float]], ...] = (
    ("sm_mhz", "nvmlDeviceGetClockInfo", (_CLOCK_SM,), float),
    ("memory_mhz", "nvmlDeviceGetClockInfo", (_CLOCK_MEMORY,), float),
    ("core_c", "nvmlDeviceGetTemperatureV", (_SENSOR_GPU,), float),
    ("core_c", "nvmlDeviceGetTemperature", (_SENSOR_GPU,), float),
    ("utilisation_ratio", "nvmlDeviceGetUtilizationRates", (), _share),
    ("event_reasons", "nvmlDeviceGetCurrentClocksEventReasons", (), int),
    ("energy_j", "nvmlDeviceGetTotalEnergyConsumption", (), _thousandth),
    ("limit_w", "nvmlDeviceGetEnforcedPowerLimit", (), _thousandth),
)

_Values = list[Any]  # one reading per column of _COLUMNS, None unknown
_UNKNOWN: tuple[None, ...] = (None,) * len(_COLUMNS)


class _Gpu:
    """One place in the frame: the GPU that stands in it, and how it is read."""

    __slots__ = ("blind", "calls", "field_ids", "field_slots", "handle", "lacking", "note", "trouble", "uuid")

    def __init__(self, uuid: str, handle: Any, *, note: str = "", trouble: str = "") -> None:
        self.uuid = uuid
        self.handle = handle  # None: missing
        self.note = note  # a standing fault of a GPU that answers
        self.trouble = trouble  # why it is missing
        self.lacking: dict[str, str] | None = None  # column → why; None until the device was probed
        self.blind = ""  # the fault of one that answers and has no power reading at all
        self.field_ids: tuple[int, ...] = ()
        self.field_slots: tuple[tuple[int, int], ...] = ()
        self.calls: tuple[tuple[int, Callable[..., Any], tuple[Any, ...], Callable[[Any], float]], ...] = ()


class NvmlCollector:
    """Polls a host's GPUs into one `GpuFrame`.

    The frame lists GPUs in the order of the site file's UUIDs where it states them, else in the order
    they were first seen. A GPU found in the place of a stated one stands there under its own UUID, with a
    fault that names both; one the site file does not know stands at the end, likewise with a fault;
    their readings are passed on. A GPU that is gone keeps its place, unknown, and is looked for every
    `RETRY_MS`; without a UUID ever read its topology path stands in.

    Power is the instantaneous field and the one-second average, each in its own column; a column that no
    GPU of the host offers is left empty.
    """

    def __init__(self, host: Host, nvml: Nvml | None = None, *, period_ms: Span = SECOND) -> None:
        """`nvml` None: the real library, by the package `pynvml`. Raises CollectorError without it; the
        driver itself is first asked by `poll`."""
        self.name = f"collector/gpu-nvml/{host.path}"
        self.period_ms = period_ms
        self._host = host
        self._nvml: Nvml = _library() if nvml is None else nvml
        self._open = False
        self._gpus: list[_Gpu] = []
        self._absent: tuple[int, ...] = ()  # columns that no GPU of this host offers
        self._retry_at: Instant | None = None  # set while a GPU is missing

    def poll(self, now: Instant) -> Sequence[Event]:
        """One frame at `now`. Raises CollectorError when the driver as a whole is away; the next poll
        looks for it again."""
        if not self._open or (self._retry_at is not None and now >= self._retry_at):
            self._find()
            self._retry_at = None
        rows, faults = [], []
        for gpu in self._gpus:
            values, trouble = self._ask(gpu)
            rows.append(values)
            faults.append("; ".join(filter(None, (gpu.note, trouble))) if trouble or gpu.note else "")
            if gpu.handle is None and self._retry_at is None:
                self._retry_at = now + RETRY_MS
        return (self._frame(now, rows, tuple(faults)),)

    def close(self) -> None:
        """Let go of the library. It counts its users: others in this process keep it."""
        if self._open:
            self._open = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError as error:
                _LOG.warning("%s: NVML did not shut down: %s", self.name, error)

    def lacking(self) -> dict[str, int]:
        """Columns that a GPU cannot give for good, and on how many of the host's GPUs."""
        counts = {column: sum(column in (gpu.lacking or ()) for gpu in self._gpus) for column in _COLUMNS}
        return {column: count for column, count in counts.items() if count}

    # ---- finding devices ----

    def _find(self) -> None:
        """Open the library anew and give every GPU its place. Handles from before are void."""
        self.close()
        nvml = self._nvml
        try:
            nvml.nvmlInit()
            self._open = True
            count = nvml.nvmlDeviceGetCount()
            found: dict[str, Any] = {}
            silent: dict[int, str] = {}
            for index in range(count):
                try:
                    handle = nvml.nvmlDeviceGetHandleByIndex(index)
                    found[nvml.nvmlDeviceGetUUID(handle)] = handle
                except nvml.NVMLError as error:
                    if _code(error) in _AWAY:
                        raise
                    silent[index] = str(error)
        except nvml.NVMLError as error:
            self.close()
            raise CollectorError(f"{self._host.path}: no NVIDIA driver answers: {error}") from error
        if self._gpus or self._host.uuids:
            places = self._host.uuids or tuple(gpu.uuid for gpu in self._gpus)
        else:
            # Silent ones hold the place of their index; those never listed stand at the end.
            named = iter(found)
            width = max(count, self._host.gpu_count)
            places = tuple(
                self._host.gpu_path(i) if i in silent or i >= count else next(named, self._host.gpu_path(i))
                for i in range(width)
            )
        self._gpus = self._seat(places, found, silent, count)
        self._absent = self._never()

    def _seat(
        self, places: tuple[str, ...], found: Mapping[str, Any], silent: Mapping[int, str], count: int
    ) -> list[_Gpu]:
        stated = bool(self._host.uuids)
        strays = [uuid for uuid in found if uuid not in places]
        gpus = []
        for place in places:
            if place in found:
                gpus.append(_Gpu(place, found[place]))
            elif strays:
                uuid = strays.pop(0)
                note = f"found {uuid} where the site file states {place}" if stated else ""
                gpus.append(_Gpu(uuid, found[uuid], note=note))
            else:
                why = "; ".join(f"index {index} does not answer: {error}" for index, error in silent.items())
                why = why or f"the driver lists {count} of {len(places)} GPUs"
                gpus.append(_Gpu(place, None, trouble=f"{place} is missing: {why}"))
        for uuid in strays:
            note = f"found {uuid}, which the site file does not state for {self._host.path}" if stated else ""
            gpus.append(_Gpu(uuid, found[uuid], note=note))
        return gpus

    def _probe(self, gpu: _Gpu) -> None:
        """Find out what the device offers. Raises NVMLError when it does not answer at all."""
        nvml, handle = self._nvml, gpu.handle
        lacking: dict[str, str] = {}
        offered: list[tuple[str, int, int]] = []
        asked = tuple(field for _, field, _ in _FIELDS)
        try:
            codes = [value.nvmlReturn for value in nvml.nvmlDeviceGetFieldValues(handle, asked)]
        except nvml.NVMLError as error:
            if _code(error) not in _LACKING:
                raise
            codes = [_code(error)] * len(asked)
        for field, code in zip(_FIELDS, codes, strict=True):
            if code in _LACKING:
                lacking[field[0]] = str(nvml.NVMLError(code))
            else:  # one that merely failed this time is offered
                offered.append(field)
        had = {column for column, _, _ in offered}
        calls = []
        for column, name, arguments, convert in (*_CALLS, *self._power_usage(gpu, had)):
            if column in had:
                continue
            call = getattr(nvml, name, None)
            try:
                if call is None:
                    raise nvml.NVMLError(13)
                call(handle, *arguments)
            except nvml.NVMLError as error:
                if _code(error) not in _LACKING:
                    raise
                lacking[column] = str(error)
            else:
                had.add(column)
                lacking.pop(column, None)
                calls.append((_COLUMNS.index(column), call, (handle, *arguments), convert))
        gpu.field_ids = tuple(field for _, field, _ in offered)
        gpu.field_slots = tuple((_COLUMNS.index(column), divisor) for column, _, divisor in offered)
        gpu.calls = tuple(calls)
        gpu.lacking = lacking
        unpowered = {"power_w", "power_average_w"} <= lacking.keys()
        gpu.blind = f"{gpu.uuid} offers no power reading: {lacking['power_w']}" if unpowered else ""
        self._absent = self._never()
        if lacking:
            _LOG.info("%s: %s does not offer %s", self.name, gpu.uuid, lacking)

    def _power_usage(
        self, gpu: _Gpu, had: set[str]
    ) -> tuple[tuple[str, str, tuple[int, ...], Callable[[Any], float]], ...]:
        """Where neither power field is offered: `nvmlDeviceGetPowerUsage`, in the column it belongs to.

        NVML's documentation: a one-second average on Ampere and newer, except GA100; on GA100 and on
        everything older it is instantaneous. A board that does not say what it is is taken as new.
        """
        if "power_w" in had or "power_average_w" in had:
            return ()
        instant = (
            _GA100.search(self._optional(gpu, "nvmlDeviceGetName", "")) is not None
            or self._optional(gpu, "nvmlDeviceGetArchitecture", _ARCH_AMPERE) < _ARCH_AMPERE
        )
        column = "power_w" if instant else "power_average_w"
        return ((column, "nvmlDeviceGetPowerUsage", (), _thousandth),)

    def _optional(self, gpu: _Gpu, name: str, default: Any) -> Any:
        try:
            return getattr(self._nvml, name)(gpu.handle)
        except (self._nvml.NVMLError, AttributeError):
            return default

    # ---- reading ----

    def _ask(self, gpu: _Gpu) -> tuple[Sequence[Any], str]:
        """One device's readings and, where it did not answer, why. A loss takes its handle away."""
        if gpu.handle is None:
            return _UNKNOWN, gpu.trouble
        nvml = self._nvml
        try:
            if gpu.lacking is not None:
                try:
                    return self._read(gpu)
                except nvml.NVMLError as error:
                    if _code(error) not in _LACKING:
                        raise
            self._probe(gpu)  # new to us, or it no longer offers what it did
            return self._read(gpu)
        except nvml.NVMLError as error:
            code = _code(error)
            if code in _AWAY:
                self.close()
                raise CollectorError(f"{self._host.path}: the NVIDIA driver went away: {error}") from error
            if code in _LOST:
                gpu.handle, gpu.trouble = None, f"{gpu.uuid} does not answer: {error}"
                return _UNKNOWN, gpu.trouble
            return _UNKNOWN, f"{gpu.uuid} could not be read: {error}"

    def _read(self, gpu: _Gpu) -> tuple[Sequence[Any], str]:
        """As few calls as there are. The first call that fails ends the reading, since each further one
        could take as long to fail; a field that fails is alone unknown."""
        nvml = self._nvml
        decode = _DECODE
        values: _Values = list(_UNKNOWN)
        trouble = gpu.blind
        if gpu.field_ids:
            answers = nvml.nvmlDeviceGetFieldValues(gpu.handle, gpu.field_ids)
            for (slot, divisor), answer in zip(gpu.field_slots, answers, strict=True):
                if answer.nvmlReturn == _SUCCESS:
                    values[slot] = decode[answer.valueType](answer) / divisor
                else:
                    code = answer.nvmlReturn
                    if code in _LACKING or code in _LOST:
                        raise nvml.NVMLError(code)
                    trouble = f"{gpu.uuid} gave no {_COLUMNS[slot]}: {nvml.NVMLError(code)}"
        for slot, call, arguments, convert in gpu.calls:
            values[slot] = convert(call(*arguments))
        return values, trouble

    def _never(self) -> tuple[int, ...]:
        """The columns to leave empty: those that no probed GPU offers. One of all None is offered, and
        unknown today."""
        probed = [gpu.lacking for gpu in self._gpus if gpu.lacking is not None]
        return tuple(
            slot
            for slot, column in enumerate(_COLUMNS)
            if probed and all(column in lacking for lacking in probed)
        )

    def _frame(self, now: Instant, rows: Sequence[Sequence[Any]], faults: tuple[str, ...]) -> GpuFrame:
        columns: list[tuple[Any, ...]] = list(zip(*rows, strict=True)) or [()] * len(_COLUMNS)
        for slot in self._absent:
            columns[slot] = ()
        grids = [(column,) if column else () for column in columns[:_GRIDS]]
        if not grids[_POWER] and not grids[_AVERAGE]:
            grids[_POWER] = ((None,) * len(rows),)
        return GpuFrame(
            at=now,
            source=self.name,
            subject=self._host.path,
            gpus=tuple(gpu.uuid for gpu in self._gpus),
            power_w=grids[0],
            power_average_w=grids[1],
            sm_mhz=grids[2],
            utilisation_ratio=grids[3],
            memory_mhz=columns[4],
            core_c=columns[5],
            memory_c=columns[6],
            energy_j=columns[7],
            limit_w=columns[8],
            event_reasons=columns[9],
            faults=faults,
        )


def _library() -> Nvml:
    """The real NVML. Raises CollectorError naming the extra that brings it."""
    try:
        import pynvml
    except ImportError as error:
        raise CollectorError(
            "reading GPUs needs the package nvidia-ml-py: pip install -e '.[gpu]' in Windrow's clone"
        ) from error
    return cast(Nvml, pynvml)


def _code(error: Exception) -> int:
    """NVML's return code of a raised NVMLError."""
    return int(getattr(error, "value", -1))
