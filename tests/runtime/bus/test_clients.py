"""A broker that does not serve us is told of in a sentence, and nothing is left behind."""

from __future__ import annotations

import gc
import socket
import threading

import pytest

from runtime.bus.clients import connect, why_away
from runtime.bus.settings import BusError, KafkaConfig


def test_a_client_that_finds_no_broker_leaves_no_thread_and_no_socket() -> None:
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(BusError):
            connect("KafkaConsumer", KafkaConfig(servers=("127.0.0.1:1",)), 0.1)
    gc.collect()  # a socket left open would warn here, and fail
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ("127.0.0.1:1", "is not there (connection refused)"),
        ("no-such-host.invalid:9092", "is not there (no such name)"),
    ],
)
def test_who_is_not_there_is_told_by_name(server: str, said: str) -> None:
    assert why_away(KafkaConfig(servers=(server,))) == f"Kafka at {server} {said}"


def test_every_broker_is_told_of() -> None:
    assert why_away(KafkaConfig(servers=("127.0.0.1:1", "127.0.0.1:2"))) == (
        "Kafka at 127.0.0.1:1 is not there (connection refused); "
        "Kafka at 127.0.0.1:2 is not there (connection refused)"
    )


def test_one_who_listens_and_says_nothing_is_told_of() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"127.0.0.1:{silent.getsockname()[1]}"
        assert why_away(KafkaConfig(servers=(server,))) == f"Kafka at {server} does not answer in time"


@pytest.mark.counterpart
def test_who_asks_a_plain_listener_for_tls_or_a_login_is_told(
    kafka: KafkaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server,) = kafka.servers
    told = why_away(KafkaConfig(servers=kafka.servers, security="tls"))
    assert told.startswith(f"Kafka at {server} cannot be trusted or is no TLS listener: ")
    monkeypatch.setenv("WINDROW_KAFKA_PASSWORD", "x")
    login = KafkaConfig(servers=kafka.servers, security="sasl_plaintext", username="me")
    assert why_away(login) == f"Kafka at {server} takes no login by SCRAM-SHA-512 there"


@pytest.mark.counterpart
def test_a_client_that_asks_is_connected(kafka: KafkaConfig) -> None:
    connection = connect("KafkaConsumer", kafka, 10.0)
    connection.client.topics()
    assert connection.reached()
    connection.client.close()
    assert not connection.reached()
