"""Device calls that come back in time: a hung driver makes a setting unknown, and stops nothing else.

Nothing inside a process can end a call that hangs in the driver. So it is made on a thread of its own
and left there; until it has come back, further calls are refused at once instead of queueing behind it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from actuators.base import Actuator, ActuatorError, Found, Readback
from schemas.commands import GpuCommand, Path
from schemas.shares import SafeShare

LIMIT_S = 2.0
"""How long a call may take (our choice): a set of 8 GPUs takes milliseconds, opening the library without
persistence mode a second or more."""


class _Call:
    """One call on its way: what it gave or raised, once `done`."""

    def __init__(self, name: str, work: Callable[[], Any]) -> None:
        self.name = name
        self.work = work
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None


class Bounded:
    """`actuator`, each call of which ends within `limit_s`, with an ActuatorError if it must.

    A write that was given up may still land when the driver wakes. The lifecycle copes: no other write
    of this path can have come after it, and what was wanted meanwhile is written again.
    """

    def __init__(self, actuator: Actuator, limit_s: float = LIMIT_S) -> None:
        self._actuator = actuator
        self._limit_s = limit_s
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._hung: _Call | None = None
        # A daemon: a call that never comes back must not hold up the end of the process.
        self._thread = threading.Thread(target=self._work, name=f"device-{actuator.path}", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        return self._actuator.path

    def inspect(self) -> Found:
        found: Found = self._call("inspect", self._actuator.inspect)
        return found

    def apply(self, command: GpuCommand, found: Found) -> None:
        self._call("apply", lambda: self._actuator.apply(command, found))

    def verify(self, command: GpuCommand) -> Readback:
        seen: Readback = self._call("verify", lambda: self._actuator.verify(command))
        return seen

    def fall_back(self, share: SafeShare, found: Found) -> None:
        self._call("fall back", lambda: self._actuator.fall_back(share, found))

    def release(self, found: Found) -> None:
        self._call("release", lambda: self._actuator.release(found))

    def close(self) -> None:
        """Let go of the device, and of the thread when it comes back."""
        try:
            self._call("close", self._actuator.close)
        except ActuatorError:
            return  # it hangs: its thread goes with the process
        finally:
            self._calls.put(None)

    def _call(self, name: str, work: Callable[[], Any]) -> Any:
        if self._hung is not None and not self._hung.done.is_set():
            raise ActuatorError(f"the device has not come back from {self._hung.name}: {name} was not tried")
        self._hung = None
        call = _Call(name, work)
        self._calls.put(call)
        if not call.done.wait(self._limit_s):
            self._hung = call
            raise ActuatorError(f"the device did not come back from {name} within {self._limit_s:g} s")
        if call.error is not None:
            raise call.error
        return call.result

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call.result = call.work()
            except BaseException as error:  # handed to the caller, who knows what it means
                call.error = error
            call.done.set()
