"""Clients of kafka-python, connected or refused in words.

The library blocks while it connects, leaves a thread behind when it fails, keeps the reason to its log and
says every attempt there. Here it fails in a sentence for the operator and leaves nothing behind.
"""

from __future__ import annotations

import functools
import logging
import ssl
from typing import Any, Literal, NamedTuple, TypeAlias

from runtime.bus.settings import BusError, KafkaConfig

Kind: TypeAlias = Literal["KafkaConsumer", "KafkaProducer", "KafkaAdminClient"]

_RETRY_MS = 1_000  # at most so long between two attempts to reach a broker that is away
_KNOCK_S = 2.0  # for one broker to answer, when it is asked why it did not

# Each attempt at a broker that is away is an error to the library; what it means is told by who needs it.
logging.getLogger("kafka").setLevel(logging.CRITICAL)
for _name in ("kafka.net.connection", "kafka.protocol.parser"):  # whose debug log tells a login's password
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class Connection(NamedTuple):
    """A client that has reached a broker, and the connections it uses."""

    client: Any
    net: Any

    def reached(self) -> bool:
        """Whether any broker is connected just now."""
        return any(self.net.connected(broker.node_id) for broker in self.net.cluster.brokers())


def connect(kind: Kind, kafka: KafkaConfig, within_s: float, **settings: Any) -> Connection:
    """A client with these settings of its own, once a broker has answered it; blocks for `within_s` at most,
    and a little more where none did. Raises BusError with the reason."""
    try:
        import kafka as library
        from kafka.errors import KafkaError
        from kafka.net.compat import KafkaNetClient
    except ImportError as error:
        raise BusError(
            f"Kafka is not installed here ({error.name}): pip install -e '.[kafka]' in Windrow's clone"
        ) from None
    nets: list[Any] = []

    def opened(**configs: Any) -> Any:
        nets.append(KafkaNetClient(**configs))
        return nets[-1]

    try:
        client = getattr(library, kind)(
            **_arguments(kafka),
            kafka_client=opened,
            bootstrap_timeout_ms=round(within_s * 1000),
            reconnect_backoff_max_ms=_RETRY_MS,
            **settings,
        )
    except KafkaError:
        for net in nets:
            net.close()
        raise BusError(why_away(kafka)) from None
    return Connection(client, nets[-1])


def why_away(kafka: KafkaConfig) -> str:
    """Why no broker serves us, in words: each is asked once. Blocks for 2 s a broker at most."""
    reasons = {server: _knock(kafka, server) for server in kafka.servers}
    return "; ".join(f"Kafka at {server} {reason}" for server, reason in reasons.items())


def _knock(kafka: KafkaConfig, server: str) -> str:
    from kafka import errors
    from kafka.net.manager import KafkaConnectionManager
    from kafka.net.selector import NetworkSelector

    settings = {**_arguments(kafka), "bootstrap_servers": [server]}
    net = NetworkSelector(client_id="windrow")
    manager = KafkaConnectionManager(net, client_id="windrow", **settings)

    tried = list[Any]()

    async def answer() -> Any:
        (broker,) = manager.cluster.bootstrap_brokers()
        tried.append(manager.get_connection(broker.node_id, timeout_ms=_KNOCK_S * 1000))
        return await tried[0]

    try:
        net.run(answer)
    except (errors.UnsupportedSaslMechanismError, errors.IllegalSaslStateError):
        return f"takes no login by {kafka.mechanism} there"
    except errors.KafkaError as error:
        # Past the question for its version it is at the login; the library may lose the broker's answer to
        # that, and sees the end of the connection.
        known = [connection for connection in tried if connection.broker_version_data is not None]
        if kafka.sasl and known:
            return f"refuses the login of {kafka.username!r} by {kafka.mechanism}: is its password right?"
        return _plain(str(error))
    finally:
        manager.close()
        net.close()
    return "answers, and then does not serve us" + ("" if kafka.sasl else ": does it ask for a login?")


def _arguments(kafka: KafkaConfig) -> dict[str, Any]:
    """What every client needs to reach the brokers, by sockets that do not outlive a failed attempt: left
    to itself the library leaves one open for each."""
    arguments = kafka.for_kafka_python()
    if "ssl_context" in arguments:
        arguments["ssl_context"].sslsocket_class = _ClosingTls
    return arguments | {"proxy_url": _no_proxy()}


class _ClosingTls(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            self.close()
            raise


@functools.cache
def _no_proxy() -> str:
    """The name of the straight way to a broker among kafka-python's ways through proxies."""
    from kafka.net.inet import KafkaNetSocket

    class Closing(KafkaNetSocket):  # type: ignore[misc]  # no types shipped
        SCHEMES = ("windrow",)

        async def sock_connect(self, net: Any, sock: Any, *to: Any, **within: Any) -> Any:
            try:
                return await super().sock_connect(net, sock, *to, **within)
            except BaseException:
                sock.close()
                raise

    return f"{Closing.SCHEMES[0]}://"


def _plain(said: str) -> str:
    """What the library says of a connection that failed, for people."""
    if "ECONNREFUSED" in said:
        return "is not there (connection refused)"
    if "DNS" in said:
        return "is not there (no such name)"
    if "timed out" in said:
        return "does not answer in time"
    if "_ALERT_" in said:
        return f"does not take our certificate: {said}"
    if "Handshake failed" in said:
        return f"cannot be trusted or is no TLS listener: {said.partition('Handshake failed: ')[2]}"
    return f"does not answer ({said}); does it ask for TLS?"
