"""How a process reaches Kafka and InfluxDB: two tables of its configuration, and the secrets beside it.

    [kafka]
    servers = ["kafka-1:9093", "kafka-2:9093"]
    prefix = ""                               # before every topic and group, where sites share a cluster
    replication = 3                           # copies of each topic; 1 where there is one broker
    security = "sasl_tls"                     # plaintext, tls, sasl_plaintext or sasl_tls
    ca = "kafka-ca.pem"                       # left out: the authorities this machine trusts
    certificate = "client.pem"                # only where the brokers ask for one, with its key
    key = "client.key"
    mechanism = "SCRAM-SHA-512"               # or SCRAM-SHA-256, PLAIN
    username = "windrow"
    password_env = "WINDROW_KAFKA_PASSWORD"   # the variable that holds the password

    [influx]
    url = "https://influx:8086"
    org = "ops"
    bucket = "windrow"
    token_env = "WINDROW_INFLUX_TOKEN"        # the variable that holds the token
    timeout_ms = 10000

A secret never stands in the file. It is in the environment variable that the file names or, where
that variable with ``_FILE`` after it is set, in the file whose path that one holds.
"""

from __future__ import annotations

import logging
import os
import pathlib
import re
import ssl
import urllib.parse
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from schemas.instants import MINUTE, SECOND, Span
from schemas.toml_tables import Table

Security: TypeAlias = Literal["plaintext", "tls", "sasl_plaintext", "sasl_tls"]
Mechanism: TypeAlias = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

_PROTOCOLS: dict[Security, str] = {
    "plaintext": "PLAINTEXT",
    "tls": "SSL",
    "sasl_plaintext": "SASL_PLAINTEXT",
    "sasl_tls": "SASL_SSL",
}
_SERVER = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_TOPIC_WORD = re.compile(r"[A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRETIVE = re.compile(r"pass|secret|token|pwd", re.IGNORECASE)
_LONGEST_PREFIX = 100  # a topic's name has 249 characters at most, and Faust adds to ours
_MOST_COPIES = 32_767  # a 16-bit number in Kafka's protocol
_LONGEST: Span = 10 * MINUTE


class BusError(Exception):
    """Kafka or InfluxDB cannot be used as configured; the text is for the operator and holds no secret."""


class _Secret(str):
    """A text that is handed to a library and does not show in what the library prints."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'(secret)'"


class KafkaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The brokers of a site, and how they are spoken to. Holds the name of the password, not the password."""

    servers: tuple[str, ...]
    prefix: str = ""
    replication: int = 1
    security: Security = "plaintext"
    ca: pathlib.Path | None = None
    certificate: pathlib.Path | None = None
    key: pathlib.Path | None = None
    mechanism: Mechanism = "SCRAM-SHA-512"
    username: str = ""
    password_env: str = "WINDROW_KAFKA_PASSWORD"

    @property
    def tls(self) -> bool:
        """Whether what is said is encrypted."""
        return self.security in ("tls", "sasl_tls")

    @property
    def sasl(self) -> bool:
        """Whether one logs in with a name and a password."""
        return self.security in ("sasl_plaintext", "sasl_tls")

    def topic(self, name: str) -> str:
        """The name on these brokers of a topic, or of a consumer group."""
        return self.prefix + name

    def for_kafka_python(self) -> dict[str, Any]:
        """The keyword arguments with which any client of kafka-python reaches these brokers.

        Raises BusError where the secret or a certificate cannot be read.
        """
        arguments: dict[str, Any] = {
            "bootstrap_servers": list(self.servers),
            "security_protocol": _PROTOCOLS[self.security],
        }
        if self.tls:
            arguments["ssl_context"] = self._context()
        if self.sasl:
            arguments["sasl_mechanism"] = self.mechanism
            arguments["sasl_plain_username"] = self.username
            arguments["sasl_plain_password"] = secret(self.password_env, "the password for Kafka")
        return arguments

    def for_faust(self) -> tuple[str, object | None]:
        """Faust's `broker` and `broker_credentials`. Raises BusError as `for_kafka_python` does."""
        from faust.auth import SASLCredentials, SSLCredentials

        logging.getLogger("aiokafka.conn").setLevel(logging.INFO)  # its debug log tells a login's password
        broker = ";".join(f"kafka://{server}" for server in self.servers)
        context = self._context() if self.tls else None
        if self.sasl:
            password = secret(self.password_env, "the password for Kafka")
            return broker, SASLCredentials(
                username=self.username, password=password, mechanism=self.mechanism, ssl_context=context
            )
        return broker, SSLCredentials(context) if context is not None else None

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise BusError(f"{self.ca}: the certificates to trust cannot be read: {_why(error)}") from None
        if self.certificate is not None:
            try:
                # Left to itself OpenSSL asks at the terminal for an encrypted key's password, and waits.
                context.load_cert_chain(self.certificate, self.key, password="")
            except (OSError, ssl.SSLError) as error:
                both = f"{self.certificate} with {self.key}"
                raise BusError(f"{both}: the client's certificate cannot be used: {_why(error)}") from None
        return context


class InfluxConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The time-series database of a site. Holds the name of the token, not the token."""

    url: str
    org: str
    bucket: str
    token_env: str = "WINDROW_INFLUX_TOKEN"
    timeout_ms: Span = 10 * SECOND

    def token(self) -> str:
        """What InfluxDB knows us by. Raises BusError where it cannot be read."""
        return secret(self.token_env, "the token for InfluxDB")


def secret(variable: str, what: str) -> str:
    """The secret that an environment variable holds, or the file that ``{variable}_FILE`` names.

    Raises BusError in words where there is none.
    """
    place = os.environ.get(f"{variable}_FILE")
    if place is None:
        held = os.environ.get(variable, "")
        if not held:
            raise BusError(f"{what} is not there: set the environment variable {variable} or {variable}_FILE")
        return _Secret(held)
    try:
        held = pathlib.Path(place).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise BusError(f"{variable}_FILE: {what} cannot be read there: {_why(error)}") from None
    if not held:
        raise BusError(f"{variable}_FILE: {what} is not there: the file is empty")
    return _Secret(held)


def _why(error: Exception) -> str:
    """The reason alone: an error's whole text may quote what must not be shown."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "no certificate or key in PEM").replace("_", " ").lower()
    return error.strerror or "it cannot be opened" if isinstance(error, OSError) else "it is no UTF-8 text"


# ---- read from a configuration ----


def read_kafka(root: Table, folder: pathlib.Path) -> KafkaConfig | None:
    """The ``[kafka]`` table, where the file has one, its paths relative to `folder`. Notes problems."""
    table = root.table("kafka")
    if table is None:
        return None
    servers = _servers(table)
    prefix = (
        "" if table.raw.get("prefix") == "" else table.text("prefix", "text before each topic's name", "")
    )
    table.has("prefix")
    if not _TOPIC_WORD.fullmatch(prefix) or len(prefix) > _LONGEST_PREFIX:
        table.wrong("prefix", f"must be letters, digits and . _ -, {_LONGEST_PREFIX} at most")
    replication = table.whole("replication", "copies of each topic", 1)
    if replication > _MOST_COPIES:
        table.wrong("replication", f"must be at most {_MOST_COPIES} (copies of each topic)")
    security = table.choice("security", get_args(Security), "how the brokers are spoken to", "plaintext")
    tls = security in ("tls", "sasl_tls")
    sasl = security in ("sasl_plaintext", "sasl_tls")
    files = {key: _file(table, folder, key, tls or not security) for key in ("ca", "certificate", "key")}
    if (files["certificate"] is None) != (files["key"] is None):
        given, lacks = ("certificate", "key") if files["key"] is None else ("key", "certificate")
        table.missing(lacks, f"a client's certificate and its key go together, and there is {given}")
    mechanism = table.choice("mechanism", get_args(Mechanism), "how one logs in", "SCRAM-SHA-512")
    username = table.text("username", "whom the brokers know us as", None if sasl else "")
    if security and not sasl:
        for key in ("mechanism", "username", "password_env"):
            if key in table.raw:
                table.problems.append(f"{table.file}: {table.key(key)}: {_unused(security, 'sasl_tls')}")
    variable = _variable(table, "password_env", "WINDROW_KAFKA_PASSWORD")
    _close(table, "password_env")
    return KafkaConfig(
        servers=servers,
        prefix=prefix,
        replication=replication,
        security=msgspec.convert(security or "plaintext", Security),
        **files,
        mechanism=msgspec.convert(mechanism or "PLAIN", Mechanism),
        username=username,
        password_env=variable,
    )


def read_influx(root: Table) -> InfluxConfig | None:
    """The ``[influx]`` table, where the file has one. Problems are noted."""
    table = root.table("influx")
    if table is None:
        return None
    url = table.text("url", "where InfluxDB answers")
    if url and "@" in url:
        table.problems.append(f"{table.file}: {table.key('url')}: must hold no name and no password")
    elif url and not _is_url(url):
        table.wrong("url", 'must be http:// or https:// with a host, such as "https://influx:8086"')
    org, bucket = table.text("org", "the organisation"), table.text("bucket", "the bucket to write to")
    timeout = table.whole("timeout_ms", "milliseconds", 10 * SECOND)
    if timeout > _LONGEST:
        table.wrong("timeout_ms", f"must be at most {_LONGEST} (milliseconds)")
    variable = _variable(table, "token_env", "WINDROW_INFLUX_TOKEN")
    _close(table, "token_env")
    return InfluxConfig(url=url, org=org, bucket=bucket, token_env=variable, timeout_ms=timeout)


def _servers(table: Table) -> tuple[str, ...]:
    servers = table.texts("servers", 'the brokers, each "host:port"')
    for index, server in enumerate(servers):
        match = _SERVER.fullmatch(server)
        if match is None or not 0 < int(match[2]) < 1 << 16:
            shown = "" if "@" in server else f' = "{server}"'
            rule = 'must be host:port, such as "kafka-1:9092"'
            table.problems.append(f"{table.file}: {table.key('servers')}[{index}]{shown}: {rule}")
    return servers


def _file(table: Table, folder: pathlib.Path, key: str, used: bool) -> pathlib.Path | None:
    if not table.has(key):
        return None
    if not used:
        security = str(table.raw.get("security", "plaintext"))
        table.problems.append(f"{table.file}: {table.key(key)}: {_unused(security, 'tls or sasl_tls')}")
    name = table.text(key, "a file of certificates (PEM)" if key != "key" else "the file of its key (PEM)")
    return (folder / name).absolute() if name else None


def _unused(security: str, needs: str) -> str:
    return f'security = "{security}" makes no use of it; write {needs} or leave it out'


def _variable(table: Table, key: str, default: str) -> str:
    """The name of an environment variable. What stands there instead may be the secret, and is not shown."""
    name = table.raw.get(key, default) if table.has(key) else default
    if isinstance(name, str) and _VARIABLE.fullmatch(name):
        return name
    table.problems.append(
        f"{table.file}: {table.key(key)}: must be the name of an environment variable, such as {default}"
    )
    return default


def _is_url(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _close(table: Table, secret_goes: str) -> None:
    """Note the keys that nobody asked for, without the value where that may be a secret."""
    for key in table.raw:
        if _SECRETIVE.search(key) and key != secret_goes:
            table.has(key)
            table.problems.append(
                f"{table.file}: {table.key(key)}: no secret stands in a configuration; {secret_goes} names "
                "the environment variable that holds it"
            )
    table.close()
