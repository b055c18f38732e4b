"""Brokers that ask for TLS and a login are reached as a site's configuration says, by both clients we use;
who is refused is told why, and no secret shows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
from support.cached import Unavailable
from support.counterparts import missing
from support.kafka_secure import PASSWORD, SecureBroker

from runtime.bus.clients import connect, why_away
from runtime.bus.provision import ensure
from runtime.bus.reader import Reader
from runtime.bus.settings import BusError, KafkaConfig, Mechanism, Security
from schemas.topics import BY_NAME

pytestmark = pytest.mark.counterpart

TOPIC = BY_NAME["windrow.operators"]._replace(partitions=1)
VARIABLE = "WINDROW_KAFKA_PASSWORD"
WRONG = "wrong-horse-entirely"

WAYS: list[tuple[Security, Mechanism]] = [
    ("tls", "PLAIN"),
    ("sasl_plaintext", "SCRAM-SHA-256"),
    ("sasl_plaintext", "PLAIN"),
    ("sasl_tls", "SCRAM-SHA-512"),
]


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    try:
        with SecureBroker(tmp_path_factory.mktemp("secure")).serving() as broker:
            yield broker
    except Unavailable as error:
        missing(str(error))


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, PASSWORD)


@pytest.mark.parametrize(("security", "mechanism"), WAYS)
def test_what_is_written_by_faust_s_client_is_read_by_ours(
    secure: SecureBroker, security: Security, mechanism: Mechanism, caplog: pytest.LogCaptureFixture
) -> None:
    kafka = secure.config(security, mechanism=mechanism, prefix=f"{security}-{mechanism.lower()}-")
    assert ensure(kafka, [TOPIC]).ok
    with caplog.at_level(logging.DEBUG):
        asyncio.run(sent_as_faust_does(kafka, b"hello"))
    assert PASSWORD not in caplog.text
    reader = Reader(kafka, {TOPIC.name: [0]}, start="earliest")
    assert reader.ends() == {(TOPIC.name, 0): 1}, reader.away
    (received,) = reader.poll(5.0)
    assert received.value == b"hello"
    reader.close()


async def sent_as_faust_does(kafka: KafkaConfig, value: bytes) -> None:
    from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]  # no types shipped
    from faust.auth import Credentials
    from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
    from faust.utils.urls import urllist

    broker, credentials = kafka.for_faust()
    assert isinstance(credentials, Credentials)
    (url,) = urllist(broker)
    producer = AIOKafkaProducer(
        bootstrap_servers=f"{url.host}:{url.port}", **credentials_to_aiokafka_auth(credentials)
    )
    await producer.start()
    try:
        await producer.send_and_wait(kafka.topic(TOPIC.name), value)
    finally:
        await producer.stop()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_wrong_password_is_told_without_it(
    secure: SecureBroker,
    mechanism: Mechanism,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(VARIABLE, WRONG)
    kafka = secure.config("sasl_tls", mechanism=mechanism)
    with caplog.at_level(logging.DEBUG, logger="kafka"), pytest.raises(BusError) as refused:
        connect("KafkaAdminClient", kafka, 0.5)
    told = f"refuses the login of 'windrow' by {mechanism}: is its password right?"
    assert str(refused.value) == f"Kafka at {kafka.servers[0]} {told}"
    assert "Starting KafkaAdminClient with configuration" in caplog.text
    assert WRONG not in caplog.text
    assert refused.value.__cause__ is None


def test_a_reader_whose_password_is_put_right_reads(
    secure: SecureBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = secure.config("sasl_plaintext", prefix="put-right-")
    ensure(kafka, [TOPIC])
    monkeypatch.setenv(VARIABLE, WRONG)
    reader = Reader(kafka, {TOPIC.name: [0]}, start="earliest")
    for _ in range(50):
        if "refuses the login" in reader.away:
            break
        assert reader.poll(0.2) == []
    assert "refuses the login of 'windrow'" in reader.away
    monkeypatch.setenv(VARIABLE, PASSWORD)
    assert reader.ends() == {(TOPIC.name, 0): 0}
    assert reader.away == ""
    reader.close()


def test_a_broker_that_nobody_vouches_for_is_not_trusted(secure: SecureBroker) -> None:
    kafka = secure.config("sasl_tls", ca=secure.pki / "stranger.pem")
    told = f"Kafka at {kafka.servers[0]} cannot be trusted or is no TLS listener: "
    assert why_away(kafka).startswith(told)
    assert "certificate verify failed" in why_away(kafka)


def test_a_broker_under_another_name_is_not_trusted(secure: SecureBroker) -> None:
    listener = secure.config("sasl_tls").servers[0]
    kafka = secure.config("sasl_tls", servers=(listener.replace("127.0.0.1", "localhost"),))
    assert "certificate is not valid for 'localhost'" in why_away(kafka)


def test_who_shows_no_certificate_where_one_is_asked_for_is_refused(secure: SecureBroker) -> None:
    kafka = secure.config("tls", certificate=None, key=None)
    with pytest.raises(BusError, match=f"^Kafka at {kafka.servers[0]} does not take our certificate: "):
        connect("KafkaAdminClient", kafka, 0.5)


def test_who_does_not_log_in_where_one_must_is_told(secure: SecureBroker) -> None:
    kafka = KafkaConfig(servers=secure.config("sasl_plaintext").servers)
    with pytest.raises(BusError) as refused:
        connect("KafkaAdminClient", kafka, 0.5)
    told = "answers, and then does not serve us: does it ask for a login?"
    assert str(refused.value) == f"Kafka at {kafka.servers[0]} {told}"


def test_who_speaks_plainly_to_a_tls_listener_is_told(secure: SecureBroker) -> None:
    kafka = secure.config("sasl_plaintext", servers=secure.config("sasl_tls").servers)
    assert why_away(kafka).startswith(f"Kafka at {kafka.servers[0]} does not answer")


def test_a_login_that_a_listener_does_not_take_is_told(secure: SecureBroker) -> None:
    plain = secure.plain.servers
    kafka = KafkaConfig(servers=plain, security="sasl_plaintext", username="windrow")
    assert why_away(kafka) == f"Kafka at {plain[0]} takes no login by SCRAM-SHA-512 there"
