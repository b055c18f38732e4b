"""Servers as child processes that do not outlive whoever started them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.cached import Unavailable

# Asks the kernel (Linux) to end the process with its parent, however the parent ends, then becomes the
# command. A process of its own, because code between fork and exec is unsafe where threads run.
_DIES_WITH_PARENT = """
import os, sys
parent, command = int(sys.argv[1]), sys.argv[2:]
if sys.platform == "linux":
    import ctypes, signal
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != parent:
    sys.exit("its parent is gone already")
os.execvp(command[0], command)
"""


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago, no two the same."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def until_told() -> None:
    """Return at Ctrl-C or SIGTERM."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, previous)


class Server:
    """One child process that writes to a log file, in a process group of its own (a Ctrl-C at the
    terminal is its owner's to handle) and ended with its owner, even one that is killed."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-c", _DIES_WITH_PARENT, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **(environment or {})},
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def ended_with(self) -> int | None:
        """The exit status, None while it runs."""
        return self._process.poll()

    def await_line(self, text: str, timeout_s: float, since: int = 0) -> None:
        """Wait until the log says `text` after byte `since`. Raises Unavailable with the log's end."""
        give_up = time.monotonic() + timeout_s
        while text.encode() not in self.log.read_bytes()[since:]:
            if not self.running or time.monotonic() > give_up:
                was = "ended" if not self.running else f"did not say {text!r} within {timeout_s:.0f} s"
                self.kill()
                tail = self.log.read_text(errors="replace")[-2000:]
                raise Unavailable(f"{self.log.stem} {was}; its log ends: {tail}")
            time.sleep(0.02)

    def stop(self, patience_s: float = 15.0) -> None:
        """End it as a person would (SIGTERM), and kill it after `patience_s`."""
        if not self.running:
            return
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Harmless on one that has ended."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: it holds its connections and answers nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def wait(self, timeout_s: float | None = None) -> int:
        """Its exit status once it has ended. Raises subprocess.TimeoutExpired."""
        return self._process.wait(timeout_s)
