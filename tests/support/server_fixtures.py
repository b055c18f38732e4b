"""Fixtures over real servers: `pytest_plugins = ["support.server_fixtures"]` in the conftest.

| fixture | what |
|---|---|
| `kafka` | a `KafkaConfig` with a prefix of the test's own, on the run's one broker; no topics yet |
| `broker` | a broker of the test's own, to stop, kill, pause and start again |
| `brokers` | `brokers(3)`: a cluster of the test's own, for kills |
| `influx` | an `InfluxConfig` with a bucket of the test's own, on the run's one server |
| `influx_server` | a server of the test's own, to stop, kill, pause and start again |

Without the server a test that asks is skipped with the reason, and fails in CI. The end of pytest's report
names the servers that ran.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.cached import Unavailable
from support.counterparts import missing
from support.held import held
from support.influx_server import InfluxServer, ask
from support.kafka_broker import Cluster, Node

from runtime.bus.settings import InfluxConfig, KafkaConfig

_RAN = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RAN] = set()


def _ran(config: pytest.Config) -> set[str]:
    """The servers that this process has tested against."""
    return config.stash[_RAN]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # under xdist: told to the process that reports
        session.config.workeroutput["servers"] = sorted(_ran(session.config))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _ran(node.config).update(getattr(node, "workeroutput", {}).get("servers", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for what in sorted(_ran(config)):
        terminalreporter.write_line(f"tested against {what}")


def _shared(
    name: str, tmp_path_factory: pytest.TempPathFactory, config: pytest.Config
) -> Iterator[dict[str, str]]:
    """The server `name` of this run, the same for each of its processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(config, "workerinput") else base) / "servers"
    with ExitStack() as holding:
        try:
            told = holding.enter_context(held(name, folder))
        except Unavailable as error:
            missing(str(error))
        _ran(config).add(told["what"])
        yield told


@pytest.fixture(scope="session")
def kafka_servers(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[tuple[str, ...]]:
    """Addresses of the broker that the run shares."""
    for told in _shared("kafka", tmp_path_factory, pytestconfig):
        yield tuple(told["servers"].split(","))


@pytest.fixture
def kafka(kafka_servers: tuple[str, ...]) -> Iterator[KafkaConfig]:
    """The shared broker under a prefix of this test's own; its topics are removed at the end."""
    config = KafkaConfig(servers=kafka_servers, prefix=f"t{secrets.token_hex(4)}-")
    yield config
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": ",".join(kafka_servers), "log_level": 0})
    ours = [name for name in admin.list_topics(timeout=10).topics if name.startswith(config.prefix)]
    if ours:
        for removed in admin.delete_topics(ours).values():
            removed.result(10)


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[Callable[[int], Cluster]]:
    """Makes and starts a cluster of 1 to 3 brokers that only this test uses. Each takes 350 MB."""
    made: list[Cluster] = []

    def make(nodes: int) -> Cluster:
        try:
            made.append(Cluster(tmp_path / f"kafka-{len(made)}", nodes))
            made[-1].start()
        except Unavailable as error:
            missing(str(error))
        return made[-1]

    yield make
    for cluster in made:
        cluster.end()


@pytest.fixture
def broker(brokers: Callable[[int], Cluster]) -> Node:
    """A broker that only this test uses, running."""
    return brokers(1).nodes[0]


@pytest.fixture(scope="session")
def influx_account(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[dict[str, str]]:
    """`url`, `token` and `org` of the server that the run shares."""
    yield from _shared("influx", tmp_path_factory, pytestconfig)


@pytest.fixture
def influx(influx_account: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[InfluxConfig]:
    """The shared server with a bucket of this test's own, gone at the end; the environment has its token."""
    url, token, org = influx_account["url"], influx_account["token"], influx_account["org"]
    org_id = ask(url, token, f"/api/v2/orgs?org={org}")["orgs"][0]["id"]
    bucket = ask(url, token, "/api/v2/buckets", {"orgID": org_id, "name": f"t{secrets.token_hex(4)}"})
    config = InfluxConfig(url=url, org=org, bucket=bucket["name"])
    monkeypatch.setenv(config.token_env, token)
    yield config
    ask(url, token, f"/api/v2/buckets/{bucket['id']}", method="DELETE")


@pytest.fixture
def influx_server(tmp_path: Path) -> Iterator[InfluxServer]:
    """A server that only this test uses, running, with a bucket `windrow`."""
    try:
        server = InfluxServer(tmp_path / "influx")
        server.start()
    except Unavailable as error:
        missing(str(error))
    yield server
    server.kill()
