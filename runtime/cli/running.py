"""`windrow run` and `windrow record`: the pipeline on this machine, or recorded off a simulated row."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import threading
from collections.abc import Iterator

import msgspec

from runtime.cli.operating import STATE_DIR
from runtime.cli.printing import progress, say
from runtime.clock import SystemClock
from runtime.config import (
    ADDRESS,
    ConfigError,
    HostConfig,
    is_address,
    load_host,
    load_setup,
    read_host_config,
    single_host,
)
from runtime.recorder import Recorder, header_of
from runtime.state_dir import StateDir
from runtime.wiring import Unkept, on_this_machine, on_twin, plant_of, watching_this_machine
from schemas.instants import MINUTE, Instant, from_text
from twin.row import DEMO

EVENING: Instant = from_text("2026-03-01T18:00:00Z")
"""When the simulated evening begins."""


def run(
    site: pathlib.Path | None = None,
    /,
    *,
    config: pathlib.Path | None = None,
    policy: pathlib.Path | None = None,
    state_dir: pathlib.Path | None = None,
    listen: str | None = None,
    dry_run: bool = False,
    record: pathlib.Path | None = None,
    minutes: float | None = None,
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
        Where the ledger, the hosts' state and the inbox live; windrow-state when left out.
    listen
        Where metrics and health are served, as host:port; "" serves none. 127.0.0.1:9464 when left out.
    dry_run
        Decide and record, but hold no device.
    record
        Write a recording of every beat to this file.
    minutes
        Stop after so long.
    """
    chosen = _chosen(site, config, policy, state_dir)
    if listen is not None:
        if not is_address(listen):
            raise ConfigError(f'--listen = "{listen}": must be {ADDRESS}')
        chosen = msgspec.structs.replace(chosen, listen=listen)
    if dry_run:
        chosen = chosen.dry()
    setup = load_host(chosen)
    state = StateDir.made(chosen.state_dir)
    clock = SystemClock()
    with (
        _until_stopped() as stop,
        state.locked(),
        on_this_machine(chosen, setup, state, clock, record=record) as host,
    ):
        say(
            f"running {setup.site.name} under {setup.policy.variant}{' (dry)' if dry_run else ''}; state in "
            f"{state.path}; health and metrics on {chosen.listen or 'nothing'}"
        )
        host.run(until=_end(clock, minutes), stop=stop.is_set)
    return 0


def record(
    out: pathlib.Path,
    /,
    *,
    site: pathlib.Path | None = None,
    config: pathlib.Path | None = None,
    policy: pathlib.Path | None = None,
    twin: pathlib.Path | None = None,
    seed: int = 1,
    from_minute: float = 0.0,
    minutes: float | None = None,
) -> int:
    """Record this machine's telemetry and what would be decided on it. Nothing is commanded.

    With --twin a simulated row is recorded instead, under control, as an evening on it would have been.

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
    twin
        The site file of a row to simulate.
    seed
        Of the simulated requests and boards; the same seed gives the same recording.
    from_minute
        How far into the simulated evening to begin.
    minutes
        Stop after so long. A simulated row stops after an hour when left out.
    """
    if twin is not None:
        if site is not None or config is not None:
            raise ConfigError("--twin names the site to simulate: leave --site and --config out")
        trouble = _record_twin(out, twin, policy, seed, from_minute, 60.0 if minutes is None else minutes)
    else:
        trouble = _record_machine(out, _chosen(site, config, policy, None), minutes)
    if trouble:
        raise ConfigError(trouble)
    say(f"recorded to {out}")
    return 0


def _record_machine(out: pathlib.Path, config: HostConfig, minutes: float | None) -> str:
    """This machine, until stopped; what was wrong with the recording, empty when nothing was."""
    setup, clock = load_host(config), SystemClock()
    with (
        _until_stopped() as stop,
        Recorder(out, header_of(setup, 1, clock.now(), "windrow record")) as recorder,
        watching_this_machine(config, setup, clock, recorder) as host,
    ):
        say(f"recording {setup.site.name} to {out}")
        host.run(until=_end(clock, minutes), stop=stop.is_set)
    return recorder.trouble


def _record_twin(
    out: pathlib.Path,
    site: pathlib.Path,
    policy: pathlib.Path | None,
    seed: int,
    from_minute: float,
    minutes: float,
) -> str:
    """The first row of a site, simulated and under control; what was wrong with the recording."""
    setup = load_setup(site, policy)
    start = EVENING + round(from_minute * MINUTE)
    load = DEMO.later(from_minute * 60.0)
    plant = plant_of(setup, seed=seed, start=start, load=load)
    header = header_of(setup, 1, start, "windrow record --twin")
    with Recorder(out, header) as recorder, progress("simulated minutes") as bar:
        task = bar.add_task("recording", total=minutes)
        rig = on_twin(plant, setup, ledger=Unkept(), observe=[recorder.write])
        end = start + round(minutes * MINUTE)
        for until in (*range(start + MINUTE, end, MINUTE), end):
            rig.host.run(until=until)
            bar.update(task, completed=(until - start) / MINUTE)
    return recorder.trouble


def _chosen(
    site: pathlib.Path | None,
    config: pathlib.Path | None,
    policy: pathlib.Path | None,
    state_dir: pathlib.Path | None,
) -> HostConfig:
    if config is not None:
        if site is not None or policy is not None or state_dir is not None:
            raise ConfigError("--config names the site, the policy and the state directory: leave them out")
        chosen = read_host_config(config)
        chosen.sources()  # without one nothing would ever be known
        return chosen
    if site is None:
        raise ConfigError("name a site file, or a host's configuration with --config")
    return single_host(site, policy, state_dir or STATE_DIR)


def _end(clock: SystemClock, minutes: float | None) -> Instant | None:
    return None if minutes is None else clock.now() + round(minutes * MINUTE)


@contextlib.contextmanager
def _until_stopped() -> Iterator[threading.Event]:
    """Set by SIGTERM and SIGINT, so that the host ends its turn and stands its agents down."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
