"""A whole site as real processes: broker, collectors, agents, controllers, to break on purpose.

For each host `windrow collect` and `windrow actuate` over the boards' own library, for the rows so many
`windrow control`: what an operator would start, started and restarted as a service manager would. Beside them
the twin simulates a row whole (`windrow twin`): the load.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from confluent_kafka import Producer
from faults.boards import Boards
from faults.judge import is_sign
from faults.witness import Said, Witness
from support.cached import Unavailable
from support.influx_server import ORG, InfluxServer
from support.kafka_broker import Cluster
from support.processes import Server, free_ports

from runtime.bus.settings import InfluxConfig, KafkaConfig
from runtime.clock import SystemClock
from schemas.decisions import Decision
from schemas.envelope import Tick
from schemas.instants import Instant
from schemas.shares import safe_shares
from schemas.site_file import read_site

HERE = Path(__file__).parent
SITE = HERE / "site.toml"
POLICY = HERE / "policy.toml"
_SIMULATED = 1  # rows that the twin simulates, the first of the site; the others have processes for each host
_TWIN_SPEED = 12  # an evening hour's load in five minutes
_UP_S = 120.0  # for a site to come up; 25 s on two idle cores
_RESTART_S = 1.0  # RestartSec of the units in deploy/systemd


class Part:
    """One process of the site, started again when it ends unasked, as a service manager does."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.restarts = 0
        self._command, self._log, self._environment = command, log, environment
        self._ended_at: float | None = None
        self._wanted = True
        self._server = self._start()

    def _start(self) -> Server:
        return Server(self._command, self._log, self._environment)

    @property
    def pid(self) -> int:
        return self._server.pid

    def tend(self) -> None:
        """Start it again where it has ended unasked, after a second."""
        if self._server.running or not self._wanted:
            return
        if self._ended_at is None:
            self._ended_at = time.monotonic()
        elif time.monotonic() - self._ended_at >= _RESTART_S:
            self._ended_at = None
            self.restarts += 1
            self._server = self._start()

    def kill(self) -> None:
        """SIGKILL; it is started again like any that ended."""
        self._server.kill()

    def pause(self) -> None:
        self._server.pause()

    def resume(self) -> None:
        self._server.resume()

    def stop(self) -> None:
        """SIGTERM, for good."""
        self._wanted = False
        self._server.stop()

    def end(self) -> None:
        """SIGKILL, for good."""
        self._wanted = False
        self._server.kill()


class Rig:
    """A site that runs in `folder`. `look` is how time passes: it reads the bus and restarts what ended."""

    def __init__(self, folder: Path, nodes: int = 1) -> None:
        self.folder = folder
        self.cluster = Cluster(folder / "kafka", nodes)
        self.kafka = KafkaConfig(servers=self.cluster.servers, replication=nodes)
        self.site = read_site(SITE.read_text(), SITE.name)
        self.shares = safe_shares(self.site)
        self.parts: dict[str, Part] = {}
        self.influx: InfluxConfig | None = None
        self.series: InfluxServer | None = None
        self.boards = Boards(self.site, self.site.rows[_SIMULATED:], folder / "boards")
        self.injected: set[tuple[str, int, int]] = set()
        self.now = SystemClock().now
        self._stack = contextlib.ExitStack()
        self._witness: Witness | None = None

    @property
    def witness(self) -> Witness:
        assert self._witness is not None, "the rig was not started"
        return self._witness

    def start(self, workers: int = 2) -> None:
        """Brokers, topics, plant and so many controllers."""
        self._stack.callback(self.cluster.end)
        self.cluster.start()
        self.part("topics", "topics", "--create")
        assert self.parts.pop("topics")._server.wait(60) == 0
        self._witness = Witness(self.kafka)
        self._stack.callback(self._witness.close)
        assert self._witness.await_groups(), "the broker does not coordinate groups"
        self.part("twin", "twin", "--rows", str(_SIMULATED), "--speed", str(_TWIN_SPEED))
        for host in self.boards.states:
            self.host(host, "collect", "actuate")
        for number in range(1, workers + 1):
            self.worker(number)

    def host(self, host: str, *does: Literal["collect", "actuate"], disk_bytes: int = 0) -> None:
        """Processes of a host: one reads its boards, the other sets them. Those that run are replaced. With
        `disk_bytes` their state is on an empty disk of that size, which is gone with them."""
        for command in does:
            name = f"{command}-{host.partition('/')[2].replace('/', '-')}"
            if name in self.parts:
                self.parts[name].stop()
            table = {"collect": "collectors", "actuate": "actuators"}[command]
            self.part(
                name,
                command,
                also=f'[[{table}]]\nkind = "gpu_nvml"\nhost = "{host}"\n',
                environment=self.boards.environment(host),
                wrap=small_disk(self.folder / name / "state", disk_bytes) if disk_bytes else (),
            )

    def worker(self, number: int) -> Part:
        """One more controller."""
        name = f"control-{number}"
        return self.part(name, "control", "--worker", name)

    def part(
        self,
        name: str,
        *command: str,
        also: str = "",
        environment: Mapping[str, str] | None = None,
        wrap: Sequence[str] = (),
    ) -> Part:
        """Start `windrow COMMAND --config …` under a name of its own. `also` is added to its configuration,
        and `wrap` comes before the command."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        config = folder / "windrow.toml"
        config.write_text(self._config(folder) + also)
        windrow = [str(Path(sys.executable).with_name("windrow")), *command, "--config", str(config)]
        part = Part([*wrap, *windrow], self.folder / f"{name}.log", environment or {})
        self._stack.callback(part.end)
        self.parts[name] = part
        return part

    def _config(self, folder: Path) -> str:
        servers = ", ".join(f'"{server}"' for server in self.kafka.servers)
        text = f"""
site = "{SITE}"
policy = "{POLICY}"
state_dir = "{folder / "state"}"

[health]
listen = "127.0.0.1:{free_ports(1)[0]}"

[kafka]
servers = [{servers}]
replication = {self.kafka.replication}
"""
        if self.influx is not None:
            text += f"""
[influx]
url = "{self.influx.url}"
org = "{self.influx.org}"
bucket = "{self.influx.bucket}"
"""
        return text

    def look(self, seconds: float) -> None:
        """Let so many seconds pass."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for part in self.parts.values():
                part.tend()
            self.boards.advance(self.now())
            self.witness.look(min(0.2, max(0.0, until - time.monotonic())))

    def until(self, holds: Callable[[], bool], within_s: float) -> bool:
        """Let time pass until something holds; whether it came to hold in time."""
        give_up = time.monotonic() + within_s
        while not holds():
            if time.monotonic() > give_up:
                return False
            self.look(0.2)
        return True

    def archive(self) -> None:
        """Start an InfluxDB (`series`) and the archive that feeds it."""
        self.series = series = InfluxServer(self.folder / "influx")
        self._stack.callback(series.kill)
        series.start()
        self.influx = InfluxConfig(url=series.url, org=ORG, bucket="windrow")
        self.part("archive", "archive", environment={self.influx.token_env: series.token})

    def fill(self, name: str) -> Path:
        """Fill the disk of a part that has one of its own, to the last byte; the file to delete for room."""
        filler = Path(f"/proc/{self.parts[name].pid}/root") / (
            self.folder / name / "state/filler"
        ).relative_to("/")
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(512))
        return filler

    def lives(self, since: Instant) -> bool:
        """Whether every row was beaten and every host's device seen to obey, after `since`."""
        said = self.heard(since + 1)
        beaten = {each.event.subject for each in said if isinstance(each.event, Decision)}
        obeying = {each.event.subject for each in said if is_sign(each.event) and each.event.at > since}
        return {row.path for row in self.site.rows} <= beaten and self.site.hosts.keys() <= obeying

    def owner(self, row: str) -> Part:
        """The controller whose tick is the row's last."""
        ticks = [e.event for e in self.witness.said if isinstance(e.event, Tick) and e.event.subject == row]
        return next(part for name, part in self.parts.items() if name in ticks[-1].source.split("/"))

    def inject(self, said: Iterable[tuple[str, bytes, bytes]]) -> None:
        """Put (topic, key, value)s onto the bus behind everybody's back; the witness is told to leave them
        out of what it judges."""
        servers = {"bootstrap.servers": ",".join(self.kafka.servers), "partitioner": "murmur2_random"}
        producer = Producer(servers)
        for topic, key, value in said:
            producer.produce(self.kafka.topic(topic), value, key, on_delivery=self._injected)
        assert producer.flush(20) == 0

    def _injected(self, error: object, message: Any) -> None:
        assert error is None, error
        topic = message.topic().removeprefix(self.kafka.prefix)
        self.injected.add((topic, message.partition(), message.offset()))

    def heard(self, since: Instant) -> list[Said]:
        """What the site itself said from `since` on, as the broker's clock has it."""
        return [each for each in self.witness.since(since) if each[:3] not in self.injected]

    def end(self) -> None:
        """End everything, in the reverse order of its start."""
        self._stack.close()


def small_disk(folder: Path, size_bytes: int) -> list[str]:
    """What comes before a command to run it with `folder` on a disk of its own. Raises Unavailable where
    this user may not mount one."""
    apart = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    mounted = f'mount -t tmpfs -o size={size_bytes} none "$0" && exec "$@"'
    wrap = [*apart, "sh", "-c", mounted, str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.which("unshare") is None or subprocess.run([*wrap, "true"], check=False).returncode:
        raise Unavailable(
            "no small disk can be mounted here: that needs Linux with unshare and mount, as root"
        )
    return wrap


@contextlib.contextmanager
def running(folder: Path, *, nodes: int = 1, workers: int = 2) -> Iterator[Rig]:
    """A rig that runs, every row beaten and every host obeying."""
    rig = Rig(folder, nodes)
    try:
        rig.start(workers)
        assert rig.until(lambda: rig.lives(0), _UP_S), f"the site did not come up; see the logs in {folder}"
        yield rig
    finally:
        rig.end()
