"""What workers of tests do: functions that a process of its own can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable


def count(number: int, told: Callable[[int], None]) -> int:
    """Tell as many words as it is asked for, the last just before it is done."""
    for word in range(number):
        told(word)
    return number


def stay(told: Callable[[int], None]) -> None:
    """Say that it is there, and work far longer than any test waits."""
    told(os.getpid())
    time.sleep(600.0)


def be_killed(told: Callable[[int], None]) -> None:
    """End as where memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(told: Callable[[int], None]) -> None:
    """Fail in its own words."""
    raise ValueError("no such row")
