"""One message, sent and waited for: for who says something and goes away."""

from __future__ import annotations

from runtime.bus.clients import connect
from runtime.bus.keys import Keys
from runtime.bus.settings import BusError, KafkaConfig
from schemas import codec
from schemas.envelope import Event
from schemas.topics import topic_of
from schemas.topology import Site

_CONNECT_S = 3.0
_TOPIC_S = 3.0
_ACK_S = 10.0


def post(kafka: KafkaConfig, site: Site, event: Event) -> tuple[str, ...]:
    """Send a message under each of its keys and wait until every copy is on all the brokers that are to
    have it; the keys.

    Raises BusError with the reason where that was not acknowledged in time. Copies may have arrived then:
    a message that is said again is the same message.
    """
    topic, keys = kafka.topic(topic_of(event).name), Keys(site).message_keys(event)
    producer = connect(
        "KafkaProducer",
        kafka,
        _CONNECT_S,
        acks="all",
        max_block_ms=round(_TOPIC_S * 1000),
        request_timeout_ms=round(_ACK_S * 500),  # time for a second attempt
        delivery_timeout_ms=round(_ACK_S * 1000),
    ).client
    from kafka.errors import KafkaError, KafkaTimeoutError

    try:
        if not producer.partitions_for(topic):
            raise KafkaTimeoutError
        sent = [producer.send(topic, key=key, value=codec.encode(event)) for key in keys]
        for acknowledged in sent:
            acknowledged.get(_ACK_S)
    except KafkaTimeoutError:
        raise BusError(
            f"Kafka at {', '.join(kafka.servers)} did not take it for {topic} in time: see windrow topics"
        ) from None
    except KafkaError as error:
        raise BusError(f"Kafka at {', '.join(kafka.servers)} did not take it for {topic}: {error}") from None
    finally:
        producer.close(0)
    return tuple(key.decode() for key in keys)
