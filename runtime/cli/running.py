"""`windrow run` and `windrow record`: the pipeline on this machine; recordings off it, a twin or a bus."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Annotated

import msgspec
from cyclopts import Parameter

from runtime.cli.operating import STATE_DIR
from runtime.cli.printing import progress, say
from runtime.cli.seeds import Seed
from runtime.cli.stopping import until_stopped
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
from runtime.recorded import Place
from runtime.recorder import Recorder, header_of, unused
from runtime.row_loop import Beat
from runtime.state_dir import StateDir
from runtime.wiring import Unkept, on_this_machine, on_twin, plant_of, watching_this_machine
from schemas.instants import MINUTE, Instant, from_text, to_text
from twin.row import DEMO

Kafka = Annotated[bool, Parameter(name="--kafka", negative="")]

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
        Write a recording of every beat to this file; to one beside it, where it is there already.
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
    if record is not None:
        record = unused(record)
        say(f"recording to {record}")
    state = StateDir.made(chosen.state_dir)
    clock = SystemClock()
    with (
        until_stopped() as stop,
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
    kafka: Kafka = False,
    seed: Seed = 1,
    from_minute: float = 0.0,
    minutes: float | None = None,
) -> int:
    """Record this machine's telemetry and what would be decided on it. Nothing is commanded.

    With --twin a simulated row is recorded instead, under control, as an evening on it would have been.
    With --kafka every row of a site is, off its topics, beat by beat as its worker did them; exit status 1
    when that recording is not whole.

    Parameters
    ----------
    out
        The recording to write: .parquet for a columnar file, .jsonl.gz or .jsonl for lines of JSON. No file
        is written over.
    site
        The site file (TOML); without a configuration it must have a single host.
    config
        A host's configuration file instead.
    policy
        A policy file; without one the built-in defaults.
    twin
        The site file of a row to simulate.
    kafka
        Record the site of --config off its brokers.
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
        if kafka:
            raise ConfigError("--twin simulates a row and --kafka reads a site: leave one of them out")
        trouble = _record_twin(out, twin, policy, seed, from_minute, 60.0 if minutes is None else minutes)
    elif kafka:
        return _record_bus(out, config, minutes)
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
        until_stopped() as stop,
        Recorder(out, header_of(setup, 1, clock.now(), "windrow record")) as recorder,
        watching_this_machine(config, setup, clock, recorder) as host,
    ):
        say(f"recording {setup.site.name} to {out}")
        host.run(until=_end(clock, minutes), stop=stop.is_set)
    return recorder.trouble


def _record_bus(out: pathlib.Path, config: pathlib.Path | None, minutes: float | None) -> int:
    """Every row of a site, off its brokers, until stopped; 0 when the recording is whole."""
    from runtime.bus_recorder import BusRecorder  # what it takes to read a bus, nobody else needs

    if config is None:
        raise ConfigError("--kafka records the site of a configuration with [kafka]: name it with --config")
    chosen, clock = read_host_config(config), SystemClock()
    setup = load_setup(chosen.site, chosen.policy)
    with until_stopped() as stop:
        bus = BusRecorder(chosen.bus(), setup, clock)
        with Recorder(out, bus.header) as recorder, progress("beats") as bar:
            say(f"recording {setup.site.name} off {', '.join(chosen.bus().servers)} to {out}")
            task = bar.add_task("recording", total=None)

            def keep(beat: Beat, places: Mapping[str, Place]) -> None:
                recorder.write(beat, places)
                bar.update(task, advance=1, description=bus.away or f"recording, {to_text(beat.tick.at)}")

            bus.run(keep, until=_end(clock, minutes), stop=lambda: stop.is_set() or bool(recorder.trouble))
    rows = sum(1 for beats in bus.beats.values() if beats)
    say(f"recorded {sum(bus.beats.values())} beats of {rows} rows to {out}")
    say(f"{bus.witness.agreed} decisions were held against what was said, and are the same")
    troubles = [*bus.troubles, *filter(None, [bus.away, recorder.trouble])]
    for trouble in troubles:
        say(trouble)
    return 1 if troubles else 0


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
