"""How the bus is reached is read in the operator's words, and a secret shows nowhere."""

from __future__ import annotations

import pathlib

import msgspec
import pytest
from support.cached import Unavailable
from support.counterparts import missing
from support.kafka_secure import openssl

from runtime.bus.settings import BusError, InfluxConfig, KafkaConfig, read_influx, read_kafka
from runtime.config import read_host_config
from runtime.state_dir import StateDir
from schemas.toml_tables import read_toml

SECRET = "hunter2-and-more"
HERE = pathlib.Path("/etc/windrow")


def kafka(text: str) -> KafkaConfig | list[str]:
    """What ``[kafka]`` with these lines is read as, or what is said of it."""
    root = read_toml("[kafka]\n" + text, "host.toml")
    config = read_kafka(root, HERE)
    root.close()
    assert config is not None
    return root.problems or config


def influx(text: str) -> InfluxConfig | list[str]:
    root = read_toml("[influx]\n" + text, "host.toml")
    config = read_influx(root)
    root.close()
    assert config is not None
    return root.problems or config


SERVERS = 'servers = ["k1:9093", "[::1]:9093"]\n'
LOGIN = SERVERS + 'security = "sasl_tls"\nusername = "windrow"\n'
DATABASE = 'url = "https://influx:8086"\norg = "ops"\nbucket = "windrow"\n'


# ---- what is read ----


def test_brokers_are_all_that_must_be_said() -> None:
    config = kafka(SERVERS)
    assert config == KafkaConfig(servers=("k1:9093", "[::1]:9093"))
    assert isinstance(config, KafkaConfig)
    assert config.topic("windrow.gpus") == "windrow.gpus"
    assert config.for_kafka_python() == {
        "bootstrap_servers": ["k1:9093", "[::1]:9093"],
        "security_protocol": "PLAINTEXT",
    }
    assert config.for_faust() == ("kafka://k1:9093;kafka://[::1]:9093", None)


def test_files_are_relative_to_the_configuration() -> None:
    config = kafka(
        LOGIN + 'prefix = "blue-"\nreplication = 3\nmechanism = "PLAIN"\npassword_env = "KAFKA_PW"\n'
        'ca = "ca.pem"\ncertificate = "/pki/me.pem"\nkey = "me.key"\n'
    )
    assert config == KafkaConfig(
        servers=("k1:9093", "[::1]:9093"),
        prefix="blue-",
        replication=3,
        security="sasl_tls",
        ca=HERE / "ca.pem",
        certificate=pathlib.Path("/pki/me.pem"),
        key=HERE / "me.key",
        mechanism="PLAIN",
        username="windrow",
        password_env="KAFKA_PW",
    )
    assert isinstance(config, KafkaConfig)
    assert config.topic("windrow.gpus") == "blue-windrow.gpus"


def test_a_database_is_read() -> None:
    assert influx(DATABASE + "timeout_ms = 2500\n") == InfluxConfig(
        url="https://influx:8086", org="ops", bucket="windrow", timeout_ms=2_500
    )


def test_a_configuration_holds_both_and_outlives_the_process(tmp_path: pathlib.Path) -> None:
    text = f'site = "s.toml"\nstate_dir = "st"\n[kafka]\n{LOGIN}ca = "ca.pem"\n[influx]\n{DATABASE}'
    (tmp_path / "host.toml").write_text(text, encoding="utf-8")
    config = read_host_config(tmp_path / "host.toml")
    assert config.bus().ca == tmp_path / "ca.pem"
    assert config.series().bucket == "windrow"
    state = StateDir.made(config.state_dir)
    state.keep_config(config)
    assert state.config().kafka == config.kafka
    assert state.config().influx == config.influx


# ---- what is refused ----


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", 'kafka.servers is missing: the brokers, each "host:port"'),
        (
            'servers = "k1:9092"',
            (
                'kafka.servers = "k1:9092": must be a list of texts in quotes, at least one '
                '(the brokers, each "host:port")'
            ),
        ),
        ('servers = ["k1"]', 'kafka.servers[0] = "k1": must be host:port, such as "kafka-1:9092"'),
        (SERVERS + 'prefix = "a/b"', 'kafka.prefix = "a/b": must be letters, digits and . _ -, 100 at most'),
        (
            SERVERS + "replication = 40000",
            "kafka.replication = 40000: must be at most 32767 (copies of each topic)",
        ),
        (
            SERVERS + 'security = "ssl"',
            ('kafka.security = "ssl": there is plaintext, tls, sasl_plaintext, sasl_tls'),
        ),
        (SERVERS + 'security = "sasl_tls"', "kafka.username is missing: whom the brokers know us as"),
        (
            SERVERS + 'username = "me"',
            ('kafka.username: security = "plaintext" makes no use of it; write sasl_tls or leave it out'),
        ),
        (
            SERVERS + 'ca = "ca.pem"',
            ('kafka.ca: security = "plaintext" makes no use of it; write tls or sasl_tls or leave it out'),
        ),
        (
            SERVERS + 'security = "tls"\ncertificate = "me.pem"',
            (
                "kafka.key is missing: a client's certificate and "
                "its key go together, and there is certificate"
            ),
        ),
        (
            LOGIN + 'mechanism = "GSSAPI"',
            ('kafka.mechanism = "GSSAPI": there is PLAIN, SCRAM-SHA-256, SCRAM-SHA-512'),
        ),
        (
            SERVERS + 'sever = "x"',
            (
                'kafka.sever = "x": no such key here; did you mean servers? there is servers, '
                "prefix, replication, security, ca, certificate, key, mechanism, username, password_env"
            ),
        ),
    ],
)
def test_a_broken_kafka_table_is_refused_in_words(text: str, said: str) -> None:
    assert kafka(text) == [f"host.toml: {said}"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            DATABASE.replace("https://", ""),
            (
                'influx.url = "influx:8086": must be http:// or https:// with a host, '
                'such as "https://influx:8086"'
            ),
        ),
        (
            DATABASE + "timeout_ms = 9000000",
            "influx.timeout_ms = 9000000: must be at most 600000 (milliseconds)",
        ),
        (DATABASE.replace('org = "ops"\n', ""), "influx.org is missing: the organisation"),
    ],
)
def test_a_broken_influx_table_is_refused_in_words(text: str, said: str) -> None:
    assert influx(text) == [f"host.toml: {said}"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f'{LOGIN}password = "{SECRET}"',
            (
                "kafka.password: no secret stands in a configuration; password_env "
                "names the environment variable that holds it"
            ),
        ),
        (
            f'{LOGIN}pass_word = "{SECRET}"',
            (
                "kafka.pass_word: no secret stands in a configuration; password_env "
                "names the environment variable that holds it"
            ),
        ),
        (
            f'{LOGIN}password_env = "{SECRET}"',
            (
                "kafka.password_env: must be the name of an environment variable, "
                "such as WINDROW_KAFKA_PASSWORD"
            ),
        ),
        (f'servers = ["me:{SECRET}@k1:9092"]', 'kafka.servers[0]: must be host:port, such as "kafka-1:9092"'),
    ],
)
def test_a_password_in_the_file_is_refused_and_not_repeated(text: str, said: str) -> None:
    assert kafka(text) == [f"host.toml: {said}"]


def test_a_token_in_the_file_is_refused_and_not_repeated() -> None:
    assert influx(f'{DATABASE}token = "{SECRET}"') == [
        (
            "host.toml: influx.token: no secret stands in a configuration; token_env names the environment "
            "variable that holds it"
        )
    ]
    assert influx(DATABASE.replace("https://", f"https://me:{SECRET}@")) == [
        "host.toml: influx.url: must hold no name and no password"
    ]


# ---- secrets ----

WITH_LOGIN = KafkaConfig(servers=("k1:9092",), security="sasl_plaintext", username="windrow")
WITH_TOKEN = InfluxConfig(url="http://influx:8086", org="ops", bucket="windrow")


def test_the_password_is_read_when_it_is_used_and_shows_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDROW_KAFKA_PASSWORD", SECRET)
    arguments = WITH_LOGIN.for_kafka_python()
    assert arguments["sasl_plain_password"] == SECRET
    assert arguments["sasl_plain_username"] == "windrow"
    assert arguments["sasl_mechanism"] == "SCRAM-SHA-512"
    _, credentials = WITH_LOGIN.for_faust()
    assert getattr(credentials, "password", "") == SECRET
    shown = f"{WITH_LOGIN} {arguments} {credentials!r} {msgspec.json.encode(WITH_LOGIN)!r}"
    assert SECRET not in shown


def test_a_secret_may_stand_in_a_file_of_its_own(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(SECRET + "\n", encoding="utf-8")
    monkeypatch.setenv("WINDROW_INFLUX_TOKEN_FILE", str(file))
    assert WITH_TOKEN.token() == SECRET
    assert SECRET not in repr(WITH_TOKEN.token())


def test_a_secret_that_is_not_there_is_asked_for_by_its_variable(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WINDROW_KAFKA_PASSWORD", raising=False)
    asked = (
        "the password for Kafka is not there: set the environment variable WINDROW_KAFKA_PASSWORD or "
        "WINDROW_KAFKA_PASSWORD_FILE"
    )
    with pytest.raises(BusError, match=asked):
        WITH_LOGIN.for_kafka_python()
    with pytest.raises(BusError, match=asked):
        WITH_LOGIN.for_faust()
    file = tmp_path / "password"
    monkeypatch.setenv("WINDROW_KAFKA_PASSWORD_FILE", str(file))
    with pytest.raises(BusError, match=r"PASSWORD_FILE: .* cannot be read there: No such file or directory"):
        WITH_LOGIN.for_kafka_python()
    file.write_text("\n")
    with pytest.raises(
        BusError, match="PASSWORD_FILE: the password for Kafka is not there: the file is empty"
    ):
        WITH_LOGIN.for_kafka_python()
    file.write_bytes(SECRET.encode() + b"\xff")
    with pytest.raises(BusError, match="it is no UTF-8 text") as refused:
        WITH_LOGIN.for_kafka_python()
    assert SECRET not in str(refused.value)


# ---- certificates ----


def test_certificates_that_cannot_be_used_are_named(tmp_path: pathlib.Path) -> None:
    config = KafkaConfig(servers=("k1:9093",), security="tls", ca=tmp_path / "ca.pem")
    with pytest.raises(BusError) as refused:
        config.for_kafka_python()
    missing = "the certificates to trust cannot be read: No such file or directory"
    assert str(refused.value) == f"{tmp_path}/ca.pem: {missing}"
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(BusError, match="the certificates to trust cannot be read: "):
        config.for_kafka_python()


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(tmp_path: pathlib.Path) -> None:
    new = "-x509 -newkey rsa:2048 -subj /CN=me -days 1 -passout pass:x1y2"
    try:
        openssl(tmp_path, f"req {new} -keyout me.key -out me.pem")
    except Unavailable as error:
        missing(str(error))
    config = KafkaConfig(
        servers=("k1:9093",), security="tls", certificate=tmp_path / "me.pem", key=tmp_path / "me.key"
    )
    with pytest.raises(BusError, match=r"me\.pem with .*me\.key: the client's certificate cannot be used: "):
        config.for_kafka_python()
