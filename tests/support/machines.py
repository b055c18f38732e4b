"""A machine with two H100s behind the stand-in driver, and the `windrow` host that runs on it."""

from __future__ import annotations

import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from support.nvml_shim import ShimState, environment

HOST = "lab/row-a/r01/h01"
WINDROW = Path(sys.executable).with_name("windrow")
UNCAPPED_MHZ, LOW_T1_MHZ, SAFE_MHZ = 1980, 1785, 1845
SAFE_W = 625.0
"""Of a budget of 2400 W: 1150 W for the rest of the server at its fullest, and 2 x 625 W for the boards."""

CALM_MW, OVER_T1_MW = 300_000, 520_000
"""What each board wants, for a row at 0.57 and at 0.84 of its budget."""

SITE = """
[site]
name = "lab"
[[ups]]
name = "ups-1"
limit_w = 20_000
[[pdus]]
name = "pdu-1"
ups = "ups-1"
limit_w = 20_000
[[feeds]]
name = "feed-a"
pdu = "pdu-1"
limit_w = 11_000
[[rows]]
name = "row-a"
budget_w = {budget_w}
[[racks]]
row = "row-a"
names = "r01"
feeds = ["feed-a"]
[[racks.hosts]]
names = "h01"
sku = "H100-SXM5-80GB"
gpus = 2
priority = "low"
paths = ["in_band"]
"""

CONFIG = f"""
site = "site.toml"
policy = "policy.toml"
state_dir = "state"
[health]
listen = "127.0.0.1:{{port}}"
[[collectors]]
kind = "gpu_nvml"
host = "{HOST}"
period_ms = 200
[[actuators]]
kind = "gpu_nvml"
host = "{HOST}"
"""


POLICY = """
allow_fraction_defaults = true
period_ms = 500
[guardrails]
dwell_ms = 2000
"""


class Machine:
    """The files of a machine that is its site's only host, and a host process on it.

    The row is oversubscribed (nameplate 2550 W) unless a larger budget is given. The policy looks twice a
    second, so that little time passes between a cause and its effect.
    """

    def __init__(self, folder: Path, *, budget_w: float = 2_400.0, uuids: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.state = ShimState(folder / "gpus", gpus=2)
        for gpu in self.state.gpus:
            gpu.demand_mw = CALM_MW
        self.port = _free_port()
        named = f'uuids = {{ "r01/h01" = [{", ".join(map(repr, uuids))}] }}\n' if uuids else ""
        self.site = self._file("site.toml", SITE.format(budget_w=budget_w) + named)
        self.policy = self._file(
            "policy.toml", "allow_fraction_defaults = true\nperiod_ms = 500\n[guardrails]\ndwell_ms = 2000\n"
        )
        self.config = self._file("host.toml", CONFIG.format(port=self.port))
        self.state_dir = folder / "state"
        self.ledger = self.state_dir / "ledger.sqlite"
        self.process: subprocess.Popen[bytes] | None = None

    def _file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    # ---- the boards ----

    def want(self, milliwatts: int) -> None:
        """What each board would draw unbridled."""
        for gpu in self.state.gpus:
            gpu.demand_mw = milliwatts

    @property
    def locks(self) -> list[int]:
        """The clock lock of each board, 0 where there is none."""
        return [gpu.lock_max_mhz for gpu in self.state.gpus]

    @property
    def limits(self) -> list[float]:
        """The power limit of each board, in watts."""
        return [gpu.limit_mw / 1000 for gpu in self.state.gpus]

    @property
    def at_safe_share(self) -> bool:
        """Whether both boards are held at what the row carries for ever."""
        return self.locks == [SAFE_MHZ] * 2 and self.limits == [SAFE_W] * 2

    # ---- the host ----

    def start(self, *arguments: str, command: str = "run", file_limit: int | None = None) -> None:
        """Start `windrow run`, or another service, and wait until it answers. `file_limit`: no file of it may
        be longer, as on a full disk; lifted by `make_room`."""
        with (self.folder / "said").open("ab") as said:
            self.process = subprocess.Popen(
                [str(WINDROW), command, "--config", str(self.config), *arguments],
                env={**os.environ, **environment(self.state)},
                stdout=said,
                stderr=said,
            )
        if file_limit is not None:
            _limit_files(self.process.pid, file_limit)
        eventually(lambda: self.ready() is not None, "the host serves its health")

    def make_room(self) -> None:
        """Lift the limit on the length of files."""
        assert self.process is not None
        _limit_files(self.process.pid, resource.RLIM_INFINITY)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(30)
        self.process = None
        return status

    def close(self) -> None:
        """Leave no process behind."""
        if self.process is not None:
            self.stop(signal.SIGKILL)

    def ready(self) -> dict[str, Any] | None:
        """What the host says of its readiness; None where nobody answers."""
        try:
            return dict(msgspec.json.decode(self.get("/health/ready")))
        except OSError:
            return None

    def get(self, page: str) -> bytes:
        """A page of the host's. Raises OSError where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", page)
            return connection.getresponse().read()
        finally:
            connection.close()


def eventually(check: Callable[[], bool], claim: str, within_s: float = 60.0) -> None:
    """Look until it is so; an assertion fails with the claim when it is not within the time."""
    until = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < until, f"not within {within_s:g} s: {claim}"
        time.sleep(0.02)


def _limit_files(process: int, length: int) -> None:
    _, hard = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (length, hard))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
