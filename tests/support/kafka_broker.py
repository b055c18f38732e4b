"""Apache Kafka's own server on this machine's Java, for tests and for `make kafka`.

The jars come from Maven Central once (`kafka_jars/pom.xml` names the version) and stay in the cache. A
broker needs Java 17 or newer, Maven for the first time, and is ready in about two seconds.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import docker_images
from support.cached import Unavailable, kept
from support.processes import Server, free_ports, until_told

POM = Path(__file__).with_name("kafka_jars") / "pom.xml"
VERSION = re.search(r"<artifactId>kafka_2.13</artifactId>\s*<version>(.+)</version>", POM.read_text())[1]  # type: ignore[index]  # our own file
IMAGE = "confluentinc/cp-kafka:7.6.0"
MOST_NODES = 3
_CLUSTER = "d2luZHJvdy1mb3ItdGVzdA"  # 22 characters of base64, as every cluster id
_READY = "Kafka Server started"
_START_S = 120.0  # two seconds on an idle machine


def java() -> str:
    """The `java` to run. Raises Unavailable without one of version 17 or newer."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin" if home else None)
    if found is None:
        raise Unavailable("no Java found; install Java 17 or newer (Debian: default-jre-headless)")
    said = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < 17:
        raise Unavailable(f"Kafka needs Java 17 or newer, and {found} says: {said.strip()}")
    return found


def installed() -> Path:
    """The folder with the server: `lib`, its jars, and `node-1` … `node-3`, formatted log folders to copy.

    Fetched if it is not there. Raises Unavailable where it cannot be.
    """
    runs = java()

    def fetch(folder: Path) -> None:
        maven = shutil.which("mvn")
        if maven is None:
            raise Unavailable("no Maven found to fetch Kafka's jars with; install it (Debian: maven)")
        command = [maven, "-q", "-B", "--strict-checksums", "-f", str(POM), "dependency:copy-dependencies"]
        got = subprocess.run(
            [*command, f"-DoutputDirectory={folder / 'lib'}", f"-DbuildDirectory={folder / 'target'}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if got.returncode:
            raise Unavailable(f"Maven could not fetch Kafka's jars: {(got.stdout + got.stderr)[-2000:]}")
        for number in range(1, MOST_NODES + 1):
            node = folder / f"node-{number}"
            properties = folder / "format.properties"
            properties.write_text(_properties(number, node, {number: (0, 0)}, {number}))
            formats = ["kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", str(properties)]
            done = subprocess.run(
                [runs, "-cp", f"{folder}/lib/*", *formats], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise Unavailable(
                    f"Kafka could not format a log folder: {(done.stdout + done.stderr)[-2000:]}"
                )

    return kept(f"kafka-{VERSION}", fetch)


def _classes() -> Path:
    """The classes of a broker that has started, as Java keeps them for a start a third quicker. An archive
    of another Java is passed over by it."""

    def make(folder: Path) -> None:
        node = Cluster(folder / "broker").nodes[0]
        node.begin(f"-XX:ArchiveClassesAtExit={folder / 'classes.jsa'}")
        node.await_ready()
        node.stop()
        shutil.rmtree(folder / "broker")

    return kept(f"kafka-{VERSION}-classes", make) / "classes.jsa"


def _properties(number: int, logs: Path, ports: dict[int, tuple[int, int]], controllers: set[int]) -> str:
    """server.properties of node `number`; `ports` gives (broker, controller) of each node."""
    broker, controller = ports[number]
    leads = number in controllers
    copies = min(len(ports), 3)
    listeners = f"PLAINTEXT://127.0.0.1:{broker}"
    lines = {
        "process.roles": "broker,controller" if leads else "broker",
        "node.id": number,
        "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{ports[n][1]}" for n in sorted(controllers)),
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}" if leads else listeners,
        "advertised.listeners": listeners,
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": logs,
        # A site's broker: topics are made by whoever provisions it, never by a typing mistake.
        "auto.create.topics.enable": "false",
        "default.replication.factor": copies,
        "min.insync.replicas": max(1, copies - 1),
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": max(1, copies - 1),
        # Few and quick, for one machine and few clients.
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.num.partitions": 4,
        "group.initial.rebalance.delay.ms": 0,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


class Node:
    """One broker. It keeps its ports and its data from start to start."""

    def __init__(self, number: int, folder: Path, address: str) -> None:
        self.number = number
        self.address = address
        self._folder = folder
        self._log = folder / f"broker-{number}.log"
        self._server: Server | None = None

    def begin(self, *options: str) -> None:
        """Start the process, Java with these options besides, without waiting for it."""
        assert not self.running, f"broker {self.number} is running"
        self._since = self._log.stat().st_size if self._log.exists() else 0
        logging = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        logging += ["-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info"]  # says _READY
        quick = ["-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        serve = [
            "-cp",
            f"{installed()}/lib/*",
            "kafka.Kafka",
            str(self._folder / f"node-{self.number}.properties"),
        ]
        options = options or (f"-XX:SharedArchiveFile={_classes()}",)
        self._server = Server([java(), *options, *quick, *logging, *serve], self._log)

    def await_ready(self) -> None:
        """Wait until it serves. Raises Unavailable with the end of its log."""
        self._process.await_line(_READY, _START_S, self._since)

    def start(self) -> None:
        """Start it, again if need be, and wait until it serves."""
        self.begin()
        self.await_ready()

    def stop(self) -> None:
        """End it in order: it hands over what it leads first."""
        self._process.stop()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def pause(self) -> None:
        """Its connections stay open and nothing is answered, as behind a hung machine."""
        self._process.pause()

    def resume(self) -> None:
        """Let a paused one go on."""
        self._process.resume()

    @property
    def running(self) -> bool:
        return self._server is not None and self._server.running

    @property
    def _process(self) -> Server:
        assert self._server is not None, f"broker {self.number} was never started"
        return self._server


class Cluster:
    """Brokers of one test (or one person), with their data in `folder`.

    Of three nodes any one may be killed: each is a controller too. Of two only the second, because the
    first is the only controller. Made anew on a folder, a cluster finds its data but has other ports,
    unless `ports` says which (one broker).
    """

    def __init__(self, folder: Path, nodes: int = 1, port: int | None = None) -> None:
        assert 1 <= nodes <= MOST_NODES
        numbers = range(1, nodes + 1)
        free = free_ports(2 * nodes)
        ports = {n: (free[2 * n - 2], free[2 * n - 1]) for n in numbers}
        if port is not None:
            ports[1] = (port, ports[1][1])
        controllers = set(numbers) if nodes == MOST_NODES else {1}
        folder.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            logs = folder / f"node-{number}"
            if not logs.is_dir():
                shutil.copytree(installed() / f"node-{number}", logs)
            text = _properties(number, logs, ports, controllers)
            (folder / f"node-{number}.properties").write_text(text)
        self.nodes = [Node(n, folder, f"127.0.0.1:{ports[n][0]}") for n in numbers]
        self.servers = tuple(node.address for node in self.nodes)

    def start(self) -> None:
        """Start every node, at once. Raises Unavailable."""
        for node in self.nodes:
            node.begin()
        for node in self.nodes:
            node.await_ready()

    def end(self) -> None:
        """End every node at once, with no regard for its data."""
        for node in self.nodes:
            if node.running:
                node.kill()


def _container() -> Any:
    """A broker in docker, running. Raises Unavailable."""
    try:
        from docker.errors import DockerException  # type: ignore[import-untyped]
        from testcontainers.kafka import KafkaContainer
    except ImportError as error:
        raise Unavailable(str(error)) from None
    try:
        container = KafkaContainer(IMAGE).with_kraft()
        container.with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
        container.with_env("KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS", "0")
        return container.start()
    except (DockerException, TimeoutError) as error:
        raise Unavailable(str(error).splitlines()[0]) from None


@contextmanager
def provided(folder: Path) -> Iterator[dict[str, str]]:
    """A broker for tests to share, by the first way there is: `servers` (comma-separated) and `what`.

    Raises Unavailable with what was tried.
    """
    given = os.environ.get("WINDROW_TEST_KAFKA")
    if given:
        yield {"servers": given, "what": f"Kafka at {given} (WINDROW_TEST_KAFKA)"}
        return
    try:
        container = _container()
    except Unavailable as error:
        no_docker = str(error)
    else:
        try:
            servers = container.get_bootstrap_server()
            yield {"servers": servers, "what": f"Kafka in docker ({IMAGE}) at {servers}"}
        finally:
            container.stop()
        return
    try:
        cluster = Cluster(folder / "kafka")
    except Unavailable as error:
        raise Unavailable(
            f"no Kafka: WINDROW_TEST_KAFKA is not set; docker: {no_docker}; local server: {error}"
        ) from None
    try:
        cluster.start()
        servers = ",".join(cluster.servers)
        yield {"servers": servers, "what": f"Apache Kafka {VERSION} on local Java at {servers}"}
    finally:
        cluster.end()


def prepare() -> str:
    """Fetch what `provided` will need, so that no test waits for it. Says what there is.

    Raises Unavailable.
    """
    if os.environ.get("WINDROW_TEST_KAFKA"):
        return "the Kafka of WINDROW_TEST_KAFKA"
    in_docker = docker_images.ready(IMAGE)
    if in_docker is not None:
        return in_docker
    _classes()
    return f"Apache Kafka {VERSION} in {installed()}"


def serve(folder: Path, port: int) -> None:
    """Run one broker until Ctrl-C or SIGTERM. Its data stays in `folder`."""
    cluster = Cluster(folder, port=port)
    cluster.start()
    print(f"Apache Kafka {VERSION} at {cluster.servers[0]}, data in {folder}. Ctrl-C ends it.", flush=True)
    try:
        until_told()
    finally:
        for node in cluster.nodes:
            node.stop()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="support.kafka_broker", description=__doc__)
    parser.add_argument("do", choices=["prepare", "serve"])
    parser.add_argument("--folder", type=Path, default=Path("out/kafka"))
    parser.add_argument("--port", type=int, default=9092)
    chosen = parser.parse_args(arguments)
    try:
        if chosen.do == "prepare":
            print(prepare())
        else:
            serve(chosen.folder.resolve(), chosen.port)
    except Unavailable as error:
        print(f"windrow: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
