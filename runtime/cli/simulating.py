"""`windrow twin`: a simulated site in real time, for whoever controls it over Kafka."""

from __future__ import annotations

import contextlib
import logging
import pathlib

import msgspec
from cyclopts import App

from runtime.actuating import reader_of
from runtime.bus.keys import Keys
from runtime.bus.publish_metrics import PublishMetrics
from runtime.bus.publisher import Publisher
from runtime.cli.printing import say
from runtime.cli.seeds import Seed
from runtime.cli.stopping import until_stopped
from runtime.clock import SystemClock
from runtime.config import ConfigError, load_setup, read_host_config
from runtime.health import Health, served
from runtime.simulating import SimulatedSite, TwinMetrics
from runtime.state_dir import StateDir
from schemas.instants import HOUR
from twin.row import DEMO, TwinRow

_WITHIN_S = 10.0  # a turn that takes longer hangs
_LEAVING_S = 3.0  # for the last messages to reach Kafka


twin = App(name="twin", help="The simulated plant: live on the brokers, or held against recorded hardware.")
twin.command(
    "runtime.cli.calibrating:fidelity",
    name="fidelity",
    help="""Compare the twin of a serving GPU with recorded runs, run by run.

    A run is predicted from what was asked, the engine's settings and what the board drew at rest. Runs that
    the coefficients were fitted to are predicted by coefficients fitted without them. Signs of another board
    than the one fitted are remarked on.

    Exit status 1 when some of what the folder holds could not be judged (the rest is), 2 when nothing could;
    0 else, also where a goal is missed.""",
)


@twin.default
def simulate(
    *, config: pathlib.Path, rows: int = 0, seed: Seed = 1, speed: float = 1.0, hours: float | None = None
) -> int:
    """Simulate the site's rows in real time: its collectors publish, its agents listen, its breakers open.

    The load is the demonstration's bad evening, again each hour. A row whose breaker opened stays dark. The
    metrics tell what is true, whatever the meters say.

    Parameters
    ----------
    config
        A configuration with the site and its brokers, [kafka]. Its collectors and actuators are ignored: the
        twin has its own. `fidelity` needs no configuration.
    rows
        Simulate the first so many rows; 0 simulates all.
    seed
        Of the requests and the boards.
    speed
        How much faster than in an evening the load goes up and down; the plant itself is as quick as ever.
    hours
        Stop after so long.
    """
    logging.getLogger("collectors.gpu_nvml").setLevel(
        logging.WARNING
    )  # what a simulated board lacks is no news
    chosen = read_host_config(config)
    kafka = chosen.bus()
    kafka.for_kafka_python()  # says now what of it cannot be used
    setup = load_setup(chosen.site, chosen.policy, decides=False)
    if rows < 0 or rows > len(setup.site.rows):
        raise ConfigError(f"--rows {rows}: {setup.site.name} has {len(setup.site.rows)}")
    if not 0.1 <= speed <= 60.0:
        raise ConfigError(f"--speed {speed:g}: must be from 0.1 to 60")
    clock, state = SystemClock(), StateDir.made(chosen.state_dir)
    load = msgspec.structs.replace(DEMO, again_s=HOUR / 1000).faster(speed)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(until_stopped())
        stack.enter_context(state.locked())
        switches = setup.policy.switches
        plants = [
            TwinRow(
                setup.site,
                row.path,
                seed=seed + number,
                start=clock.now(),
                load=load,
                oob_latency=switches.oob_latency,
                oob_loss_ratio=switches.oob_loss,
            )
            for number, row in enumerate(setup.site.rows[: rows or None])
        ]
        publisher = Publisher(
            kafka, Keys(setup.site), spool=state.path / "spool", clock=clock, client=f"twin/{setup.site.name}"
        )
        stack.callback(publisher.close, _LEAVING_S)
        hosts = [host for plant in plants for host in plant.hosts]
        reader = reader_of(chosen, setup, hosts, clock)
        stack.callback(reader.close)
        site = SimulatedSite(plants, setup, reader=reader, publisher=publisher, clock=clock)
        health, metrics = Health(clock), TwinMetrics(site)
        health.expect("turns", within_s=_WITHIN_S, vital=True)
        health.ask(lambda: f"orders are not read: {reader.away}" if reader.away else "")
        health.ask(lambda: publisher.state().trouble)
        site.turned = lambda: health.seen("turns")
        metrics.registry.register(PublishMetrics(publisher.state))
        if chosen.listen:
            stack.enter_context(served(chosen.listen, health, metrics.exposition))
        say(
            f"simulating {len(plants)} rows of {setup.site.name} with {len(hosts)} hosts; "
            f"health and metrics on {chosen.listen or 'nothing'}"
        )
        until = clock.monotonic() + hours * HOUR / 1000 if hours is not None else float("inf")
        site.run(lambda: stop.is_set() or clock.monotonic() >= until)
    return 0
