"""A host's GPUs set through NVML, the driver's own library: clock locks and power limits.

Writing needs root (or CAP_SYS_ADMIN). NVML has no getter for a clock lock, so a lock is read back as
the SM clock it leads to. A driver reload forgets locks and limits. Calls can hang in the driver:
`actuators.deadline` bounds them; this adapter is free of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from actuators.base import ActuatorError, Found, NotAttempted, Readback
from schemas.commands import Brake, GpuCommand, LimitPower, LockClocks, Path
from schemas.shares import SafeShare
from schemas.topology import Host
from schemas.units import Reading

# nvmlReturn_t, from nvml.h.
_NOT_FOUND = 6
_NO_PERMISSION = 4
_STRANGER = -2  # not NVML's: another board stands where the site file states one
# INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND: a retry cannot help.
_LASTING = frozenset({2, 3, 4, 12, 13, _STRANGER})
# UNINITIALIZED, DRIVER_NOT_LOADED, GPU_IS_LOST, RESET_REQUIRED, LIB_RM_VERSION_MISMATCH: handles are void.
_VOID = frozenset({1, 9, 15, 16, 18})

_CLOCK_SM = 1  # nvmlClockType_t
_READ_W = 0.5
"""Slack of a power limit's read-back: a driver may round the milliwatts it was given (our choice)."""


class Nvml(Protocol):
    """The NVML calls that writing makes, and those that check the write: the module `pynvml`, or a
    simulated board with its names. Calls raise `NVMLError`, whose `value` is the return code."""

    @property
    def NVMLError(self) -> type[Exception]: ...  # noqa: N802 (pynvml's own name)

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> Any: ...
    def nvmlDeviceGetHandleByUUID(self, uuid: str, /) -> Any: ...
    def nvmlDeviceGetUUID(self, handle: Any, /) -> str: ...
    def nvmlDeviceGetPowerManagementLimit(self, handle: Any, /) -> int: ...
    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: Any, /) -> int: ...
    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle: Any, /) -> Sequence[int]: ...
    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any, /) -> int: ...
    def nvmlDeviceGetPowerUsage(self, handle: Any, /) -> int: ...
    def nvmlDeviceGetClockInfo(self, handle: Any, clock: int, /) -> int: ...
    def nvmlDeviceSetGpuLockedClocks(self, handle: Any, min_mhz: int, max_mhz: int, /) -> None: ...
    def nvmlDeviceResetGpuLockedClocks(self, handle: Any, /) -> None: ...
    def nvmlDeviceSetPowerManagementLimit(self, handle: Any, limit_mw: int, /) -> None: ...


class _Board:
    """One GPU that answers: its handle, and the limits it takes, read once."""

    __slots__ = ("default_w", "handle", "max_w", "min_w", "name", "uuid")

    def __init__(self, nvml: Nvml, handle: Any, name: str) -> None:
        self.handle = handle
        self.uuid = nvml.nvmlDeviceGetUUID(handle)
        self.name = f"{name} ({self.uuid})"
        low, high = nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
        self.min_w, self.max_w = low / 1000, high / 1000
        self.default_w = nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1000

    def found_w(self, found: Found) -> float:
        """The power limit to give back: the one found, else the device's default."""
        known = dict(zip(found.uuids, found.limit_w, strict=True)).get(self.uuid)
        return self.default_w if known is None else known


class _Stranger(Exception):
    """Another board stands in the place of a stated one; the text names both."""


class NvmlActuator:
    """Sets the GPUs of one host by one path.

    GPUs are held by UUID where the site file states them, else by index. Where another board stands in
    the place of a stated one a command is refused with both names, and nothing is written anywhere; the
    safe share and a release go on past it. `standing_lock_mhz` is the clock lock that the site keeps at
    all times (0: none), which NVML could not tell us.
    """

    def __init__(
        self, host: Host, path: Path, nvml: Nvml | None = None, *, standing_lock_mhz: int = 0
    ) -> None:
        """`nvml` None: the real library, by the package `pynvml`. Raises ActuatorError without it; the
        driver itself is first asked by a call."""
        self._host = host
        self._path: Path = path
        self._nvml: Nvml = _library() if nvml is None else nvml
        self._standing_lock_mhz = standing_lock_mhz
        self._open = False
        self._boards: dict[int, _Board] = {}
        self._missing: dict[int, tuple[str, int]] = {}  # why a GPU has no handle

    @property
    def path(self) -> Path:
        return self._path

    def inspect(self) -> Found:
        uuids: list[str] = []
        limits: list[Reading] = []

        def look(board: _Board) -> None:
            limit_w = self._nvml.nvmlDeviceGetPowerManagementLimit(board.handle) / 1000
            uuids.append(board.uuid)
            limits.append(limit_w)

        self._seat()
        troubles = self._each(look)
        if not uuids:
            raise _failure("no GPU could be read", troubles)
        return Found(uuids=tuple(uuids), limit_w=tuple(limits), lock_mhz=self._standing_lock_mhz)

    def apply(self, command: GpuCommand, found: Found) -> None:
        self._seat()
        strangers = [text for text, code in self._missing.values() if code == _STRANGER]
        if strangers and not isinstance(command, Brake):  # which cannot wait for somebody to see to them
            raise NotAttempted(f"nothing was written: {'; '.join(strangers)}")
        if isinstance(command, LimitPower):
            limit_w = command.limit_w
            for board in self._boards.values():
                if not board.min_w <= limit_w <= board.max_w:
                    raise NotAttempted(
                        f"{board.name} takes power limits from {board.min_w:g} to {board.max_w:g} W, "
                        f"not {limit_w:g} W: nothing was written"
                    )

            def limit(board: _Board) -> None:
                self._limit(board, min(limit_w, board.found_w(found)))
                self._unlock(board, found)

            self._write("limit power", limit)
            return
        max_mhz, min_mhz = command.max_mhz, self._host.sku.min_mhz
        if isinstance(command, LockClocks) and command.min_mhz is not None:
            min_mhz = command.min_mhz

        def lock(board: _Board) -> None:
            self._lock(board, min_mhz, max_mhz, found)
            if isinstance(command, LockClocks):  # the lock stands: the limit of a safe share may go
                self._limit(board, board.found_w(found))

        self._write("engage the brake" if isinstance(command, Brake) else "lock clocks", lock)

    def verify(self, command: GpuCommand) -> Readback:
        nvml, by_power = self._nvml, isinstance(command, LimitPower)
        cap = command.limit_w + _READ_W if isinstance(command, LimitPower) else command.max_mhz
        unit = "W" if by_power else "MHz"
        seen: list[float] = []
        power: list[float] = []
        over: list[str] = []

        def read(board: _Board) -> None:
            if by_power:
                value = nvml.nvmlDeviceGetEnforcedPowerLimit(board.handle) / 1000
            else:
                value = float(nvml.nvmlDeviceGetClockInfo(board.handle, _CLOCK_SM))
            seen.append(value)
            if value > cap:
                over.append(f"{board.name} reads {value:g} {unit}")
            power.append(nvml.nvmlDeviceGetPowerUsage(board.handle) / 1000)

        troubles = self._each(read)
        if not seen:
            raise _failure("no GPU could be read", troubles)
        permits = not by_power and cap >= self._host.sku.max_mhz  # a permission has nothing to be seen
        return Readback(
            in_force=False if over and not permits else None if troubles else True,
            observed=max(seen),
            lowest_mhz=None if by_power or troubles else min(seen),
            shown=by_power or permits or max(seen) > cap - 2 * self._host.sku.step_mhz,
            power_w=sum(power) if len(power) == self._host.gpu_count else None,
            detail="; ".join([*([] if permits else over), *(text for text, _ in troubles)]),
        )

    def fall_back(self, share: SafeShare, found: Found) -> None:
        def lock(board: _Board) -> None:
            self._lock(board, self._host.sku.min_mhz, share.max_mhz, found)

        def limit(board: _Board) -> None:
            self._limit(board, min(share.limit_w, board.found_w(found)))

        self._write("take the safe share", lock, limit)

    def release(self, found: Found) -> None:
        def limit(board: _Board) -> None:
            self._limit(board, board.found_w(found))

        def unlock(board: _Board) -> None:
            self._unlock(board, found)

        self._write("take back what was found", limit, unlock)

    def close(self) -> None:
        """Let go of the library. It counts its users: others in this process keep it."""
        self._boards, self._missing = {}, {}
        if self._open:
            self._open = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError:
                return  # a library that is gone needs no closing

    # ---- one board ----

    def _lock(self, board: _Board, min_mhz: int, max_mhz: int, found: Found) -> None:
        """Hold the clock at or below `max_mhz` and the standing lock; above all clocks is no lock."""
        highest = min(max_mhz, found.lock_mhz or max_mhz)
        if highest >= self._host.sku.max_mhz:
            self._nvml.nvmlDeviceResetGpuLockedClocks(board.handle)
        else:
            clock = self._host.sku.round_down(highest)
            self._nvml.nvmlDeviceSetGpuLockedClocks(board.handle, min(min_mhz, clock), clock)

    def _unlock(self, board: _Board, found: Found) -> None:
        self._lock(board, self._host.sku.min_mhz, self._host.sku.max_mhz, found)

    def _limit(self, board: _Board, limit_w: float) -> None:
        clamped_w = min(max(limit_w, board.min_w), board.max_w)
        self._nvml.nvmlDeviceSetPowerManagementLimit(board.handle, round(clamped_w * 1000))

    # ---- every board ----

    def _write(self, what: str, *writes: Callable[[_Board], None]) -> None:
        """Make each of `writes` on every GPU, whatever became of the ones before."""
        self._seat()
        troubles = {text: code for write in writes for text, code in self._each(write)}
        if troubles:
            raise _failure(f"{self._host.path}: not every GPU did {what}", list(troubles.items()))

    def _each(self, call: Callable[[_Board], None]) -> list[tuple[str, int]]:
        """Make `call` on every GPU that answers; what went wrong, as words and return codes."""
        if not self._boards:
            self._seat()
        troubles = list(self._missing.values())
        for index, board in list(self._boards.items()):
            try:
                call(board)
            except self._nvml.NVMLError as error:
                trouble = _trouble(board.name, error)
                troubles.append(trouble)
                if trouble[1] in _VOID:
                    del self._boards[index]
                    self._missing[index] = trouble
        return troubles

    def _seat(self) -> None:
        """Look for the GPUs that have no handle; the library is opened anew for it, since one that was
        lost comes back under another handle. Raises ActuatorError when the driver is away."""
        if len(self._boards) == self._host.gpu_count:
            return
        self.close()
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise _failure("no NVIDIA driver answers", [_trouble(self._host.path, error)]) from error
        self._open = True
        for index in range(self._host.gpu_count):
            name = self._host.gpu_path(index)
            try:
                self._boards[index] = _Board(self._nvml, self._handle(index), name)
            except self._nvml.NVMLError as error:
                self._missing[index] = _trouble(name, error)
            except _Stranger as error:
                self._missing[index] = (str(error), _STRANGER)

    def _handle(self, index: int) -> Any:
        if not self._host.uuids:
            return self._nvml.nvmlDeviceGetHandleByIndex(index)
        stated = self._host.uuids[index]
        try:
            return self._nvml.nvmlDeviceGetHandleByUUID(stated)
        except self._nvml.NVMLError as error:
            if getattr(error, "value", None) != _NOT_FOUND:
                raise
        # Not known here: silent and gone, or is another board in its place?
        instead = self._nvml.nvmlDeviceGetUUID(self._nvml.nvmlDeviceGetHandleByIndex(index))
        raise _Stranger(
            f"{self._host.gpu_path(index)}: the site file states {stated}, which the driver does not know; "
            f"in its place it has {instead}"
        )


def _trouble(name: str, error: Exception) -> tuple[str, int]:
    code = int(getattr(error, "value", -1))
    advice = ""
    if code == _NO_PERMISSION:
        advice = ": needs root: run the actuator unit as root or grant CAP_SYS_ADMIN"
    return f"{name}: {error}{advice}", code


def _failure(what: str, troubles: list[tuple[str, int]]) -> ActuatorError:
    """The error that names every GPU in trouble; lasting when a retry can help none of them."""
    lasting = all(code in _LASTING for _, code in troubles)
    return ActuatorError(f"{what}: {'; '.join(text for text, _ in troubles)}", lasting=lasting)


def _library() -> Nvml:
    """The real NVML. Raises ActuatorError naming the extra that brings it."""
    try:
        import pynvml
    except ImportError as error:
        raise ActuatorError(
            "setting GPUs needs the package nvidia-ml-py: pip install -e '.[gpu]' in Windrow's clone",
            lasting=True,
        ) from error
    return cast(Nvml, pynvml)
