"""What a run tests against is found in a stated order, and in CI nothing is left out for want of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import influx_server, kafka_broker
from support.cached import Unavailable
from support.counterparts import missing


def lacks(why: str) -> Any:
    def raises(*_: object) -> None:
        raise Unavailable(why)

    return raises


class Container:
    """As testcontainers has one, which `ended` says was stopped."""

    def __init__(self) -> None:
        self.ended = False

    def get_bootstrap_server(self) -> str:
        return "docker:9093"

    def get_container_host_ip(self) -> str:
        return "docker"

    def get_exposed_port(self, port: int) -> int:
        return port

    def stop(self) -> None:
        self.ended = True


@pytest.fixture(autouse=True)
def _nothing_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WINDROW_TEST_KAFKA", "WINDROW_TEST_INFLUX"):
        monkeypatch.delenv(name, raising=False)


def test_what_is_missing_is_skipped_with_the_reason_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no broker here"):
        missing("no broker here")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no broker here"):
        missing("no broker here")


def test_a_kafka_is_the_one_given_else_in_docker_else_on_the_local_java(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    local = SimpleNamespace(servers=("local:1",), start=lambda: None, end=lambda: ended.append("local"))
    docker = Container()
    monkeypatch.setattr(kafka_broker, "Cluster", lambda folder: local)
    monkeypatch.setattr(kafka_broker, "_container", lambda: docker)
    monkeypatch.setenv("WINDROW_TEST_KAFKA", "given:9092")
    with kafka_broker.provided(tmp_path) as told:
        assert told["servers"] == "given:9092"
    monkeypatch.delenv("WINDROW_TEST_KAFKA")
    with kafka_broker.provided(tmp_path) as told:
        assert told["servers"] == "docker:9093"
    assert docker.ended
    monkeypatch.setattr(kafka_broker, "_container", lacks("no daemon"))
    with kafka_broker.provided(tmp_path) as told:
        assert told["servers"] == "local:1"
    assert ended == ["local"]
    monkeypatch.setattr(kafka_broker, "Cluster", lacks("no Java"))
    with (
        pytest.raises(Unavailable, match=r"WINDROW_TEST_KAFKA is not set; docker: no daemon; .*no Java"),
        kafka_broker.provided(tmp_path),
    ):
        pass


def test_an_influxdb_is_the_one_given_else_in_docker_else_the_one_built_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = Container()
    built = SimpleNamespace(url="http://local:1", token="t", start=lambda: None, kill=lambda: None)
    monkeypatch.setattr(influx_server, "InfluxServer", lambda folder: built)
    monkeypatch.setattr(influx_server, "cache", lambda: tmp_path)
    monkeypatch.setattr(influx_server, "_container", lambda token: docker)
    monkeypatch.setenv("WINDROW_TEST_INFLUX", "http://given:8086/")
    with influx_server.provided(tmp_path) as told:
        assert told["url"] == "http://given:8086"
    monkeypatch.delenv("WINDROW_TEST_INFLUX")
    with influx_server.provided(tmp_path) as told:
        assert told["url"] == "http://docker:8086"
    assert docker.ended
    monkeypatch.setattr(influx_server, "_container", lacks("no daemon"))
    with (
        pytest.raises(Unavailable, match=r"docker: no daemon; influxd is not built: `make test` builds it"),
        influx_server.provided(tmp_path),
    ):
        pass
    (tmp_path / f"influxd-{influx_server.VERSION}").mkdir()
    with influx_server.provided(tmp_path) as told:
        assert told["url"] == "http://local:1"
