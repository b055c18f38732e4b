"""A broker that asks who one is: listeners with TLS, with a client's certificate, with a login, with both.

Its certificate is good for 127.0.0.1 and signed by an authority of its own, as a site's is.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.cached import Unavailable
from support.kafka_broker import Cluster
from support.processes import free_ports

from runtime.bus.clients import connect
from runtime.bus.settings import KafkaConfig, Security

USER, PASSWORD = "windrow", "correct-horse-battery"
_NEW = "-newkey rsa:2048 -noenc -days 2"
_LISTENERS: dict[Security, str] = {
    "tls": "SSL",
    "sasl_plaintext": "SASL_PLAINTEXT",
    "sasl_tls": "SASL_SSL",
}


class SecureBroker:
    """One broker with every way in. `plain` is the way of its administrator."""

    def __init__(self, folder: Path) -> None:
        self.pki = folder / "pki"
        self.pki.mkdir(parents=True)
        _certificates(self.pki)
        self._cluster = Cluster(folder / "kafka")
        self.plain = KafkaConfig(servers=self._cluster.servers)
        self._ports = dict(zip(_LISTENERS, free_ports(len(_LISTENERS)), strict=True))
        properties = folder / "kafka" / "node-1.properties"
        properties.write_text(properties.read_text() + self._listeners(properties.read_text()))

    def config(self, security: Security, **settings: object) -> KafkaConfig:
        """The settings that one listener asks for, with some of them otherwise."""
        servers = (f"127.0.0.1:{self._ports[security]}",)
        asked: dict[str, object] = {"servers": servers, "security": security}
        if security != "sasl_plaintext":
            asked["ca"] = self.pki / "ca.pem"
        if security == "tls":
            asked |= {"certificate": self.pki / "client.pem", "key": self.pki / "client.key"}
        else:
            asked["username"] = USER
        return KafkaConfig(**asked | settings)  # type: ignore[arg-type]  # by name

    def _listeners(self, before: str) -> str:
        """What is added to the broker's properties; of two lines of one name the later counts."""
        was = dict(line.split("=", 1) for line in before.splitlines())
        ours = [f"{_LISTENERS[kind]}://127.0.0.1:{port}" for kind, port in self._ports.items()]
        logins = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        lines = {
            "listeners": ",".join([was["listeners"], *ours]),
            "advertised.listeners": ",".join([was["advertised.listeners"], *ours]),
            "listener.security.protocol.map": ",".join(
                [was["listener.security.protocol.map"], *(f"{name}:{name}" for name in _LISTENERS.values())]
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self.pki / "broker.pem",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.pki / "ca.pem",
            "listener.name.ssl.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        }
        for listener in ("sasl_plaintext", "sasl_ssl"):
            lines[f"listener.name.{listener}.plain.sasl.jaas.config"] = logins
            for mechanism in ("scram-sha-256", "scram-sha-512"):
                lines[f"listener.name.{listener}.{mechanism}.sasl.jaas.config"] = scram
        return "".join(f"{key}={value}\n" for key, value in lines.items())

    @contextmanager
    def serving(self) -> Iterator["SecureBroker"]:
        """The broker, up and with its user known to it. Raises Unavailable."""
        try:
            self._cluster.start()
            self._add_user()
            yield self
        finally:
            self._cluster.end()

    def _add_user(self) -> None:
        from kafka.admin import ScramMechanism, UserScramCredentialUpsertion

        admin = connect("KafkaAdminClient", self.plain, 10.0).client
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):  # one at a time
            told = admin.alter_user_scram_credentials(
                [UserScramCredentialUpsertion(USER, mechanism, PASSWORD)]
            )
            assert told == {USER: None}, told
        admin.close()


def _certificates(folder: Path) -> None:
    """An authority, the broker's and a client's certificate signed by it, and an authority of nobody."""
    for authority in ("ca", "stranger"):
        openssl(
            folder, f"req -x509 {_NEW} -subj /CN={authority} -keyout {authority}.key -out {authority}.pem"
        )
    for name, extension in (
        ("broker", "subjectAltName=IP:127.0.0.1"),
        ("client", "keyUsage=digitalSignature"),
    ):
        openssl(
            folder,
            f"req -x509 {_NEW} -CA ca.pem -CAkey ca.key -subj /CN={name} -addext {extension} "
            f"-addext basicConstraints=critical,CA:FALSE -keyout {name}.key -out {name}.pem",
        )
    both = (folder / "broker.key").read_text() + (folder / "broker.pem").read_text()
    (folder / "broker.pem").write_text(both)


def openssl(folder: Path, arguments: str) -> None:
    """Run openssl in a folder. Raises Unavailable without it."""
    try:
        subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        raise Unavailable("no openssl found to make certificates with; install it") from None
