"""`windrow run` and `windrow record`: the pipeline on this machine."""

from __future__ import annotations

import logging
import pathlib
import signal
import threading

from runtime.cli.operating import StateDir
from runtime.cli.printing import console
from runtime.clock import SystemClock
from runtime.config import HostConfig, default_config, load_setup, read_host_config
from runtime.state_dir import StateDir as State
from runtime.wiring import on_this_machine, watching_this_machine
from schemas.instants import SECOND

_LOG = logging.getLogger(__name__)


def run(
    site: pathlib.Path | None = None,
    /,
    *,
    config: pathlib.Path | None = None,
    policy: pathlib.Path | None = None,
    state_dir: StateDir = pathlib.Path("windrow-state"),
    dry_run: bool = False,
    record: pathlib.Path | None = None,
    seconds: float | None = None,
) -> int:
    """Run the whole pipeline here: read this machine's GPUs, decide, and set them under leases.

    Without a configuration the site must have a single host, which is taken to be this machine.
    Stopping it (Ctrl-C, SIGTERM) gives every host to what its lease would have ended in.

    Parameters
    ----------
    site
        The site file (TOML).
    config
        A host's configuration file instead: its site, policy, adapters and state directory.
    policy
        A policy file; without one the built-in defaults.
    state_dir
        Where the ledger, the hosts' state and the inbox live.
    dry_run
        Decide and record, but hold no device.
    record
        Write a recording of every beat to this file.
    seconds
        Stop after so long.
    """
    chosen = _config(site, config, policy, state_dir, dry_run)
    setup = load_setup(pathlib.Path(chosen.site), pathlib.Path(chosen.policy) if chosen.policy else None)
    state = State(pathlib.Path(chosen.state_dir))
    state.lock()
    stop = _stop_on_signals()
    clock = SystemClock()
    until = None if seconds is None else clock.now() + round(seconds * SECOND)
    with on_this_machine(chosen, setup, state, clock, record=record) as host:
        console.print(f"running on {setup.site.name}; state in {state.path}; health on {chosen.health.listen or 'nothing'}")
        host.run(until=until, stop=stop.is_set)
    return 0


def record(
    out: pathlib.Path,
    /,
    *,
    site: pathlib.Path | None = None,
    config: pathlib.Path | None = None,
    policy: pathlib.Path | None = None,
    seconds: float | None = None,
) -> int:
    """Record this machine's telemetry and what would be decided on it. Nothing is commanded.

    Parameters
    ----------
    out
        The recording to write; gzip when the name ends in .gz.
    site
        The site file (TOML); without a configuration it must have a single host.
    config
        A host's configuration file instead.
    policy
        A policy file; without one the built-in defaults.
    seconds
        Stop after so long.
    """
    chosen = _config(site, config, policy, pathlib.Path(), dry_run=True)
    setup = load_setup(pathlib.Path(chosen.site), pathlib.Path(chosen.policy) if chosen.policy else None)
    stop = _stop_on_signals()
    clock = SystemClock()
    until = None if seconds is None else clock.now() + round(seconds * SECOND)
    with watching_this_machine(chosen, setup, clock, out) as host:
        host.run(until=until, stop=stop.is_set)
    console.print(f"recorded to {out}")
    return 0


def _config(
    site: pathlib.Path | None,
    config: pathlib.Path | None,
    policy: pathlib.Path | None,
    state_dir: pathlib.Path,
    dry_run: bool,
) -> HostConfig:
    if config is not None:
        return read_host_config(config, dry_run=dry_run)
    return default_config(site, policy, state_dir, dry_run=dry_run)


def _stop_on_signals() -> threading.Event:
    """Set by SIGTERM and SIGINT, so that the host ends its turn and stands its agents down."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
