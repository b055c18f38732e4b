"""A broker and the processes of a site on it, as an operator starts them, to be measured from outside."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from confluent_kafka.admin import AdminClient
from support.cached import Unavailable
from support.kafka_broker import provided
from support.processes import Server

from runtime.bus.provision import ensure
from runtime.bus.settings import KafkaConfig
from runtime.config import Setup
from schemas.topics import TOPICS

_PREFIXES = (f"bench-{os.getpid()}-{n}-" for n in itertools.count(1))
_GIVEN = "WINDROW_TEST_KAFKA"
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def brokers() -> Iterator[tuple[str, ...]]:
    """The addresses of a Kafka: that of WINDROW_TEST_KAFKA, or one that lives as long as this, and is found
    there meanwhile.

    Raises Unavailable in words where none can be had.
    """
    given = os.environ.get(_GIVEN)
    with tempfile.TemporaryDirectory() as folder, provided(pathlib.Path(folder)) as kafka:
        os.environ[_GIVEN] = kafka["servers"]
        try:
            yield tuple(kafka["servers"].split(","))
        finally:
            if given is None:
                del os.environ[_GIVEN]


@contextlib.contextmanager
def topics(servers: tuple[str, ...]) -> Iterator[KafkaConfig]:
    """A site's topics on these brokers, empty, and gone again afterwards."""
    kafka = KafkaConfig(servers=servers, prefix=next(_PREFIXES))
    ensure(kafka)
    try:
        yield kafka
    finally:
        client = AdminClient({"bootstrap.servers": ",".join(servers)})
        for deleted in client.delete_topics([kafka.topic(topic.name) for topic in TOPICS]).values():
            deleted.result(60)


CONTROL = (str(pathlib.Path(sys.executable).with_name("windrow")), "control", "--config")
HOSTS = (sys.executable, "-m", "benchmarks.hosts")


class Process:
    """A part of a site as a process of its own, and what it takes of the machine. Its configuration goes to
    `folder`, and is told to `command` last."""

    def __init__(
        self, folder: pathlib.Path, setup: Setup, kafka: KafkaConfig, name: str, command: Sequence[str]
    ) -> None:
        (folder / "site.toml").write_text(setup.site_text)
        (folder / "policy.toml").write_text(setup.policy_text)
        config, self.log = folder / f"{name}.toml", folder / f"{name}.log"
        servers = ", ".join(f'"{server}"' for server in kafka.servers)
        config.write_text(
            f'site = "site.toml"\npolicy = "policy.toml"\nstate_dir = "{name}"\n[health]\nlisten = ""\n'
            f'[kafka]\nservers = [{servers}]\nprefix = "{kafka.prefix}"\n'
        )
        self._server = Server([*command, str(config)], self.log)

    def said(self, words: str) -> int:
        """How often its log says this. Raises Unavailable where it has ended."""
        if not self._server.running:
            raise Unavailable(f"{self.log.stem} ended; its log ends: {self.log.read_text()[-2000:]}")
        return self.log.read_text().count(words)

    def until_said(self, words: str, times: int = 1, *, within_s: float = 120.0) -> None:
        """Wait until its log says this so often. Raises Unavailable where it does not."""
        self.until(lambda: self.said(words) >= times, f"say {words!r} {times} times", within_s)

    def until(self, holds: Callable[[], bool], what: str, within_s: float) -> None:
        """Wait until something holds. Raises Unavailable where it does not."""
        give_up = time.monotonic() + within_s
        while not holds():
            if time.monotonic() > give_up:
                tail = self.log.read_text()[-2000:]
                raise Unavailable(
                    f"{self.log.stem} did not {what} within {within_s:g} s; its log ends: {tail}"
                )
            time.sleep(0.02)

    @property
    def cpu_s(self) -> float:
        """CPU seconds it has used, of all its threads (Linux)."""
        fields = pathlib.Path(f"/proc/{self._server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_S

    @property
    def resident_mb(self) -> float:
        """Memory it holds."""
        pages = int(pathlib.Path(f"/proc/{self._server.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def stop(self) -> None:
        """End it as a person would."""
        self._server.stop()


@contextlib.contextmanager
def site(setup: Setup, kafka: KafkaConfig) -> Iterator[Process]:
    """A worker that beats every row of a site, whose hosts all obey; the worker."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        hosts, control = (
            Process(pathlib.Path(folder), setup, kafka, name, command)
            for name, command in (("hosts", HOSTS), ("control", CONTROL))
        )
        stack.callback(hosts.stop)
        stack.callback(control.stop)
        hosts.until_said("hosts obey")
        control.until_said("is beaten here under epoch", len(setup.site.rows))
        yield control
