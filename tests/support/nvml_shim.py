"""A stand-in for NVIDIA's driver library, so that tests drive the real `pynvml` without a GPU.

`nvml_shim.c` is compiled to a `libnvidia-ml.so.1` whose device state lives in a file. Here that file is
made, read and changed: the test holds the truth from outside, as a driver does, and it outlives any
process that set a lock. It proves symbol names, struct layouts and error mapping; it proves nothing about
a real device.

    state = ShimState(tmp_path / "gpus", gpus=2)
    state.gpu(0).demand_mw = 690_000
    with installed(state) as pynvml:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000)
        assert pynvml.nvmlDeviceGetPowerUsage(handle) == 400_000

The defaults are one H100 80GB HBM3's, as nvidia-smi 590.48.01 prints them.
"""

import atexit
import ctypes
import functools
import importlib
import importlib.util
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import ClassVar, NamedTuple

SONAME = "libnvidia-ml.so.1"
STATE_VARIABLE = "NVML_SHIM_STATE"
SOURCE = Path(__file__).with_suffix(".c")

MAX_GPUS = 16
MAX_SCRIPT = 64
MAX_FAULTS = 64
MAX_WRITES = 256
FOREVER = -1
ANY_GPU = -1

# The codes that tests inject most, by the names of pynvml's constants.
SUCCESS = 0
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
TIMEOUT = 10
GPU_IS_LOST = 15
UNKNOWN = 999

REASON_IDLE = 0x1
REASON_SW_POWER_CAP = 0x4
REASON_HW_SLOWDOWN = 0x8
REASON_HW_POWER_BRAKE = 0x80

_MAGIC = 0x4C4D564E
_VERSION = 1
_CALL_NAME = 64


class ShimError(Exception):
    """The stand-in itself was used wrongly or could not be built."""


class Gpu(ctypes.Structure):
    """One GPU's true state, live: reading and assigning go to the file, and so to every process.

    `lock_*`, `limit_mw` and `persistence` are what the calls under test have set; the `*_calls` count
    arrivals, whatever was answered. All else is the test's to write. Temperatures move no clock: say what
    the device would report with `extra_reasons`.
    """

    demand_mw: int  # draw of the workload at `sm_max_mhz` with no limit
    idle_mw: int
    utilisation: int  # percent; 0 is idle
    memory_utilisation: int
    temp_c: int
    mem_temp_c: int
    sm_max_mhz: int
    sm_min_mhz: int
    sm_step_mhz: int
    mem_mhz: int
    mem_max_mhz: int
    limit_min_mw: int
    limit_max_mw: int
    limit_default_mw: int
    shutdown_c: int
    slowdown_c: int
    mem_max_c: int
    gpu_max_c: int
    average_mw: int  # 0: the average equals the instant draw
    module_mw: int  # 0: the scope is not supported
    memory_mw: int  # 0: the scope is not supported
    lost: int
    no_permission: int
    brake: int
    extra_reasons: int
    script_length: int
    script_next: int
    lock_min_mhz: int  # 0: no lock
    lock_max_mhz: int
    limit_mw: int
    persistence: int
    set_limit_calls: int
    set_lock_calls: int
    reset_lock_calls: int
    power_reads: int
    energy_mj: int
    timestamp_offset_us: int  # added to the timestamps of field values

    _fields_: ClassVar = [
        ("_uuid", ctypes.c_char * 96),
        ("_name", ctypes.c_char * 96),
        ("demand_mw", ctypes.c_uint32),
        ("idle_mw", ctypes.c_uint32),
        ("utilisation", ctypes.c_uint32),
        ("memory_utilisation", ctypes.c_uint32),
        ("temp_c", ctypes.c_int32),
        ("mem_temp_c", ctypes.c_int32),
        ("sm_max_mhz", ctypes.c_uint32),
        ("sm_min_mhz", ctypes.c_uint32),
        ("sm_step_mhz", ctypes.c_uint32),
        ("mem_mhz", ctypes.c_uint32),
        ("mem_max_mhz", ctypes.c_uint32),
        ("limit_min_mw", ctypes.c_uint32),
        ("limit_max_mw", ctypes.c_uint32),
        ("limit_default_mw", ctypes.c_uint32),
        ("shutdown_c", ctypes.c_int32),
        ("slowdown_c", ctypes.c_int32),
        ("mem_max_c", ctypes.c_int32),
        ("gpu_max_c", ctypes.c_int32),
        ("average_mw", ctypes.c_uint32),
        ("module_mw", ctypes.c_uint32),
        ("memory_mw", ctypes.c_uint32),
        ("lost", ctypes.c_uint32),
        ("no_permission", ctypes.c_uint32),
        ("brake", ctypes.c_uint32),
        ("extra_reasons", ctypes.c_uint32),
        ("script_length", ctypes.c_uint32),
        ("script_next", ctypes.c_uint32),
        ("_script_mw", ctypes.c_uint32 * MAX_SCRIPT),
        ("lock_min_mhz", ctypes.c_uint32),
        ("lock_max_mhz", ctypes.c_uint32),
        ("limit_mw", ctypes.c_uint32),
        ("persistence", ctypes.c_uint32),
        ("set_limit_calls", ctypes.c_uint32),
        ("set_lock_calls", ctypes.c_uint32),
        ("reset_lock_calls", ctypes.c_uint32),
        ("power_reads", ctypes.c_uint32),
        ("_reserved", ctypes.c_uint32),
        ("energy_mj", ctypes.c_uint64),
        ("timestamp_offset_us", ctypes.c_int64),
    ]

    @property
    def uuid(self) -> str:
        return _text(self._uuid)

    @uuid.setter
    def uuid(self, value: str) -> None:
        self._uuid = _bytes(value, 96)

    @property
    def name(self) -> str:
        return _text(self._name)

    @name.setter
    def name(self, value: str) -> None:
        self._name = _bytes(value, 96)

    @property
    def locked(self) -> bool:
        """Whether a clock lock is in force."""
        return self.lock_max_mhz != 0

    def script_power(self, readings_mw: Sequence[int]) -> None:
        """Answer the coming power reads with these, one a call, then with the last; empty ends it."""
        if len(readings_mw) > MAX_SCRIPT:
            raise ShimError(f"a power script holds {MAX_SCRIPT} readings, not {len(readings_mw)}")
        self.script_length = 0
        for i, reading in enumerate(readings_mw):
            self._script_mw[i] = reading
        self.script_next = 0
        self.script_length = len(readings_mw)

    def expected_mhz(self) -> int:
        """The SM clock by the power model, computed apart from the C code."""
        return self._operating()[0]

    def expected_mw(self) -> int:
        """The draw by the power model, computed apart from the C code. Scripts are not consulted."""
        return self._operating()[1]

    def _quantised(self, mhz: float) -> int:
        inside = min(max(mhz, self.sm_min_mhz), self.sm_max_mhz)
        if inside == self.sm_max_mhz:
            return self.sm_max_mhz
        return self.sm_min_mhz + int((inside - self.sm_min_mhz) / self.sm_step_mhz) * self.sm_step_mhz

    def _operating(self) -> tuple[int, int]:
        if self.utilisation == 0:
            return self._quantised(self.lock_min_mhz), min(self.idle_mw, self.limit_mw)
        mhz = self._quantised(self.lock_max_mhz or self.sm_max_mhz)
        if self.brake:
            mhz = min(mhz, self._quantised(self.sm_max_mhz / 2))
        dynamic = max(0, self.demand_mw - self.idle_mw)
        wanted = self.idle_mw + dynamic * (mhz / self.sm_max_mhz) ** 2
        if wanted <= self.limit_mw:
            return mhz, int(wanted + 0.5)
        headroom = self.limit_mw - self.idle_mw
        capped = self.sm_max_mhz * (headroom / dynamic) ** 0.5 if headroom > 0 else self.sm_min_mhz
        return self._quantised(capped), self.limit_mw


class _Fault(ctypes.Structure):
    _fields_: ClassVar = [
        ("call", ctypes.c_char * _CALL_NAME),
        ("gpu", ctypes.c_int32),
        ("code", ctypes.c_int32),
        ("times", ctypes.c_int32),
        ("hang_ms", ctypes.c_int32),
        ("applies", ctypes.c_int32),
        ("hits", ctypes.c_uint32),
    ]


class _Write(ctypes.Structure):
    _fields_: ClassVar = [
        ("call", ctypes.c_char * _CALL_NAME),
        ("gpu", ctypes.c_int32),
        ("first", ctypes.c_uint32),
        ("second", ctypes.c_uint32),
        ("code", ctypes.c_int32),
    ]


class _State(ctypes.Structure):
    _fields_: ClassVar = [
        ("magic", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("gpu_count", ctypes.c_uint32),
        ("driver_version", ctypes.c_char * 80),
        ("write_count", ctypes.c_uint32),
        ("init_calls", ctypes.c_uint32),
        ("faults", _Fault * MAX_FAULTS),
        ("writes", _Write * MAX_WRITES),
        ("gpus", Gpu * MAX_GPUS),
    ]


class Write(NamedTuple):
    """One arrival at a setter: `arguments` as passed after the handle (0 where it takes fewer than two)."""

    call: str
    gpu: int
    arguments: tuple[int, int]
    code: int


class ShimState:
    """The devices behind the stand-in library, in a file at `path`; made new, or opened as they are.

    `gpus` devices are made, at most 16. Their uuids end in their index; `host` is in front, so that two hosts
    differ.
    """

    def __init__(self, path: Path, *, gpus: int | None = 1, host: int = 0) -> None:
        self.path = path.resolve()
        if gpus is not None:
            if not 0 <= gpus <= MAX_GPUS:
                raise ShimError(f"{gpus} GPUs: the stand-in holds 0 to {MAX_GPUS}")
            self.path.write_bytes(bytes(ctypes.sizeof(_State)))
        elif self.path.stat().st_size != ctypes.sizeof(_State):
            raise ShimError(f"{path} is not a state file of this version")
        with self.path.open("r+b") as file:
            self._state = _State.from_buffer(mmap.mmap(file.fileno(), 0))
        if gpus is None:
            if (self._state.magic, self._state.version) != (_MAGIC, _VERSION):
                raise ShimError(f"{path} is not a state file of this version")
            return
        self._state.driver_version = b"590.48.01"
        for index in range(gpus):
            gpu = self._state.gpus[index]
            gpu.uuid = f"GPU-{host:08x}-0000-4000-8000-{index:012x}"
            gpu.name = "NVIDIA H100 80GB HBM3"
            for name, value in _H100.items():
                setattr(gpu, name, value)
        self._state.gpu_count = gpus
        self._state.size = ctypes.sizeof(_State)
        self._state.version = _VERSION
        self._state.magic = _MAGIC

    @classmethod
    def opened(cls, path: Path) -> "ShimState":
        """The state another test process made at `path`."""
        return cls(path, gpus=None)

    @property
    def gpu_count(self) -> int:
        return int(self._state.gpu_count)

    @property
    def init_calls(self) -> int:
        """How often the library was initialised, by any process."""
        return int(self._state.init_calls)

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(self.gpu(i) for i in range(self.gpu_count))

    def gpu(self, index: int) -> Gpu:
        """A live view of one GPU."""
        if not 0 <= index < self.gpu_count:
            raise ShimError(f"no GPU {index}: there are {self.gpu_count}")
        gpu: Gpu = self._state.gpus[index]
        return gpu

    def lose(self, index: int) -> None:
        """The GPU falls off the bus: each call on it answers `GPU_IS_LOST`. Its settings stay, unseen."""
        self.gpu(index).lost = 1

    def find(self, index: int) -> None:
        """Undo `lose`."""
        self.gpu(index).lost = 0

    def deny(self, index: int | None = None) -> None:
        """Setters answer `NO_PERMISSION`, on one GPU or on all, as for a user who is not root."""
        for gpu in self.gpus if index is None else (self.gpu(index),):
            gpu.no_permission = 1

    def allow(self, index: int | None = None) -> None:
        """Undo `deny`."""
        for gpu in self.gpus if index is None else (self.gpu(index),):
            gpu.no_permission = 0

    def fail(
        self,
        call: str,
        code: int,
        times: int = FOREVER,
        *,
        gpu: int = ANY_GPU,
        applied: bool = False,
        hang_ms: int = 0,
    ) -> None:
        """Answer the next `times` arrivals at `call` with `code`; those declared first come first.

        `call` is a C symbol or pynvml's name for it. With `applied` a setter takes effect all the same, as
        when only the answer is lost; code 0 without `applied` is the setter that claims success and does
        nothing. A failing call can hang first.
        """
        self._add_fault(_symbol(call), code, times, gpu, applied, hang_ms)

    def fail_field(self, field: int, code: int, times: int = FOREVER, *, gpu: int = ANY_GPU) -> None:
        """Answer one field id of `nvmlDeviceGetFieldValues` with `code`, in its own `nvmlReturn`."""
        self._add_fault(f"nvmlDeviceGetFieldValues/{field}", code, times, gpu, False, 0)

    def hang(self, call: str, ms: int, times: int = FOREVER, *, gpu: int = ANY_GPU) -> None:
        """Hold `call` for `ms` (-1: until `clear_faults`) before it does what it does."""
        self._add_fault(_symbol(call), SUCCESS, times, gpu, True, ms)

    def hits(self, call: str) -> int:
        """How often a fault or hang declared for `call` has been met."""
        wanted = _bytes(_symbol(call), _CALL_NAME)
        return sum(fault.hits for fault in self._state.faults if fault.call == wanted)

    def clear_faults(self) -> None:
        """Forget every fault and its hits, and end every hang."""
        self._end_faults()
        for fault in self._state.faults:
            fault.call = b""
            fault.hits = 0

    def writes(self, gpu: int = ANY_GPU) -> list[Write]:
        """The last arrivals at the setters, in order: at most 256 over all GPUs."""
        count = self._state.write_count
        kept = (self._state.writes[n % MAX_WRITES] for n in range(max(0, count - MAX_WRITES), count))
        return [
            Write(_text(write.call), write.gpu, (write.first, write.second), write.code)
            for write in kept
            if gpu in (ANY_GPU, write.gpu)
        ]

    def advance(self, seconds: float) -> None:
        """Let time pass for the energy counters: each GPU draws what the model says."""
        for gpu in self.gpus:
            gpu.energy_mj += round(gpu.expected_mw() * seconds)

    def reload_driver(self) -> None:
        """What a driver reload does: locks gone, limits at their default, energy counters at zero."""
        for gpu in self.gpus:
            gpu.lock_min_mhz = gpu.lock_max_mhz = 0
            gpu.limit_mw = gpu.limit_default_mw
            gpu.persistence = 0
            gpu.energy_mj = 0

    def _end_faults(self) -> None:
        for fault in self._state.faults:
            fault.times = 0
            fault.hang_ms = 0

    def _add_fault(self, call: str, code: int, times: int, gpu: int, applies: bool, hang_ms: int) -> None:
        if times == 0 or times < FOREVER:
            raise ShimError(f"times = {times}: give a count, or FOREVER")
        if gpu != ANY_GPU:
            self.gpu(gpu)
        # A spent slot is not used again: a call may still be hanging on it.
        free = next((fault for fault in self._state.faults if not fault.call), None)
        if free is None:
            raise ShimError(f"all {MAX_FAULTS} faults are declared: clear_faults() first")
        free.call = _bytes(call, _CALL_NAME)
        free.gpu, free.code, free.applies, free.hang_ms = gpu, code, int(applies), hang_ms
        free.times = times  # last: from here on the fault is live


_H100 = {
    "demand_mw": 690_000,
    "idle_mw": 70_000,
    "utilisation": 100,
    "memory_utilisation": 40,
    "temp_c": 41,
    "mem_temp_c": 48,
    "sm_max_mhz": 1980,
    "sm_min_mhz": 345,
    "sm_step_mhz": 15,
    "mem_mhz": 2619,
    "mem_max_mhz": 2619,
    "limit_min_mw": 200_000,
    "limit_max_mw": 700_000,
    "limit_default_mw": 700_000,
    "limit_mw": 700_000,
    "shutdown_c": 95,
    "slowdown_c": 89,
    "mem_max_c": 95,
    "gpu_max_c": 87,
    "persistence": 1,
}


def compiler() -> str | None:
    """A C compiler on this machine: `CC`, else cc, gcc or clang; `None` without one."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def unavailable() -> str | None:
    """Why the stand-in cannot be used here, and what would help; `None` if it can."""
    if not sys.platform.startswith("linux"):
        return "the NVML stand-in is a Linux shared library"
    if importlib.util.find_spec("pynvml") is None:
        return "pynvml is not installed: pip install nvidia-ml-py"
    if compiler() is None:
        return "no C compiler (cc, gcc or clang) to build the NVML stand-in"
    return None


@functools.cache
def symbols() -> frozenset[str]:
    """The NVML calls that the stand-in offers."""
    return frozenset(re.findall(r"^NVML_CALL (nvml\w+)\(", SOURCE.read_text(), re.MULTILINE))


@functools.cache
def build(directory: Path, omit: tuple[str, ...] = ()) -> Path:
    """Compile the library into `directory`, once for each set of symbols left out.

    `omit` names calls this library lacks, as an older driver would: pynvml raises `FunctionNotFound`.
    Raises `ShimError` with the compiler's words if it does not build.
    """
    omitted = sorted({_symbol(name) for name in omit})
    folder = directory / ("-".join(["nvml", *(name.removeprefix("nvml") for name in omitted)])[:200])
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / SONAME
    found = compiler()
    if found is None:
        raise ShimError("no C compiler (cc, gcc or clang)")
    command = [found, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden", "-shared"]
    command += [f"-D{name}=omitted_{name}" for name in omitted]
    command += [f"-Wl,-soname,{SONAME}", str(SOURCE), "-o", str(library), "-lm", "-pthread"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        raise ShimError(f"{' '.join(command)}\n{built.stderr}")
    return library


def library(omit: Sequence[str] = ()) -> Path:
    """The library, built once in this process, in a folder that goes when the process ends."""
    return build(_folder(), tuple(sorted(omit)))


def environment(state: ShimState, omit: Sequence[str] = ()) -> dict[str, str]:
    """What a subprocess needs in its environment to find the stand-in and these devices."""
    path = [str(library(omit).parent), os.environ.get("LD_LIBRARY_PATH", "")]
    return {"LD_LIBRARY_PATH": ":".join(filter(None, path)), STATE_VARIABLE: str(state.path)}


@contextmanager
def installed(state: ShimState, omit: Sequence[str] = ()) -> Iterator[ModuleType]:
    """Make pynvml in this process use the stand-in over `state`, and put all back afterwards.

    Yields `pynvml`, not initialised: `nvmlInit` is the test's or the code's under test. One at a time.
    """
    if STATE_VARIABLE in os.environ:
        raise ShimError("the NVML stand-in is already installed in this process")
    pynvml = importlib.import_module("pynvml")
    shim = ctypes.CDLL(str(library(omit)))
    names = ("nvmlLib", "_nvmlGetFunctionPointer_cache", "_nvmlLib_refcount")
    saved = {name: getattr(pynvml, name) for name in names}
    os.environ[STATE_VARIABLE] = str(state.path)
    for name, value in zip(names, (shim, {}, 0), strict=True):
        setattr(pynvml, name, value)
    try:
        yield pynvml
    finally:
        state._end_faults()  # else a call that hangs holds its thread, and the process, for ever
        shim.nvml_shim_forget()
        del os.environ[STATE_VARIABLE]
        for name, value in saved.items():
            setattr(pynvml, name, value)


@functools.cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="nvml-shim-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _symbol(call: str) -> str:
    """The C symbol of a call: pynvml hides some versions (`nvmlDeviceGetCount` is `..._v2`)."""
    aliases = {"nvmlInit": "nvmlInitWithFlags"}
    for name in (call, aliases.get(call, ""), f"{call}_v2"):
        if name in symbols():
            return name
    raise ShimError(f"{call}: the stand-in has no such call")


def _text(value: bytes) -> str:
    return value.decode()


def _bytes(value: str, size: int) -> bytes:
    encoded = value.encode()
    if len(encoded) >= size:
        raise ShimError(f"{value!r} is longer than {size - 1} bytes")
    return encoded
