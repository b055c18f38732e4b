"""Every host of a site in one process, as far as commands go: the real orders, agents and publisher, over
devices that obey at once.

    python -m benchmarks.hosts CONFIG

What a device takes to obey is its own (milliseconds in band, seconds by the brake's line), and what an agent
takes to sync its state file is its host's disk's: both are left out.
"""

from __future__ import annotations

import pathlib
import sys

from actuators.base import Found, Readback
from actuators.lifecycle import HostAgent
from runtime.actuating import reader_of
from runtime.agents import InlineAgents, by_target
from runtime.bus.keys import Keys
from runtime.bus.publisher import Publisher
from runtime.cli.stopping import until_stopped
from runtime.clock import SystemClock
from runtime.config import load_host, read_host_config
from runtime.orders import Orders
from schemas.commands import Command, GpuCommand, LimitPower, Path
from schemas.shares import SafeShare

_STEP_S = 0.25  # as the lease timer's
_WAIT_S = 0.25


class Obedient:
    """One path to a host whose GPUs do at once as they are told."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def inspect(self) -> Found:
        """Nothing of anybody's is on it."""
        return Found()

    def apply(self, command: GpuCommand, found: Found) -> None:
        """Done."""

    def verify(self, command: GpuCommand) -> Readback:
        """As asked for."""
        asked = command.limit_w if isinstance(command, LimitPower) else float(command.max_mhz)
        return Readback(in_force=True, observed=asked)

    def fall_back(self, share: SafeShare, found: Found) -> None:
        """Done."""

    def release(self, found: Found) -> None:
        """Done."""

    def close(self) -> None:
        """Nothing is held."""


def main() -> None:
    """Obey until told to stop."""
    config = read_host_config(pathlib.Path(sys.argv[1]))
    setup, clock = load_host(config), SystemClock()
    hosts = list(setup.site.hosts.values())
    agents = {
        host.path: HostAgent(
            host,
            {path: Obedient(path) for path in host.paths},
            setup.shares[host.path],
            source=f"actuator/{host.path}",
        )
        for host in hosts
    }
    together = InlineAgents(agents, setup.oversubscribed)
    publisher = Publisher(config.bus(), Keys(setup.site), spool=None, clock=clock, client="hosts")
    reader, orders = reader_of(config, setup, hosts, clock), Orders(hosts)
    with until_stopped() as stop:
        publisher.send(together.start(clock.now()))
        print(f"{len(hosts)} hosts obey", flush=True)
        stepped = clock.monotonic()
        while not stop.is_set():
            taken = orders.take(reader.poll(_WAIT_S, 1_000), clock.now())
            publisher.send(taken.said)
            for host, commands in by_target([o for o in taken.orders if isinstance(o, Command)]).items():
                publisher.send(agents[host].step(commands, clock.now()))
            if clock.monotonic() - stepped >= _STEP_S:
                stepped = clock.monotonic()
                publisher.send(together.step((), clock.now()))
    reader.close()
    publisher.close(1.0)


if __name__ == "__main__":
    main()
