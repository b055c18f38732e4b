"""How a command is told to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """Set by SIGTERM and SIGINT, so that a service ends what it is at and lets go in order."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def broken_off_in_order() -> Iterator[None]:
    """SIGTERM breaks off as Ctrl-C does, so that what a command has for the time being goes with it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
