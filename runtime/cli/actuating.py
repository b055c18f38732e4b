"""`windrow actuate`: sets the GPUs of hosts as their rows' controllers command over Kafka."""

from __future__ import annotations

import pathlib

from runtime.actuating import actuating
from runtime.cli.printing import say
from runtime.cli.stopping import until_stopped
from runtime.clock import SystemClock
from runtime.config import load_host, read_host_config
from runtime.state_dir import StateDir


def actuate(*, config: pathlib.Path, dry_run: bool = False) -> int:
    """Set this machine's GPUs as its row's controller commands, under leases that need no network.

    While Kafka is away leases end as they say, and the GPUs' own heat and power are watched. Stopping it
    (Ctrl-C, SIGTERM) takes every host to what its lease would have ended in.

    Parameters
    ----------
    config
        A host's configuration with its site, its [[actuators]] and its brokers, [kafka].
    dry_run
        Hold no device: answer every command in words.
    """
    chosen = read_host_config(config)
    if dry_run:
        chosen = chosen.dry()
    setup = load_host(chosen, decides=False)
    state = StateDir.made(chosen.state_dir)
    with until_stopped() as stop, state.locked(), actuating(chosen, setup, state, SystemClock()) as run:
        hosts = sorted({actuator.host for actuator in chosen.actuators})
        say(
            f"setting {', '.join(hosts)}{' (dry)' if dry_run else ''} as commanded; state in {state.path}; "
            f"health and metrics on {chosen.listen or 'nothing'}"
        )
        run(stop.is_set)
    return 0
