"""The limit: a bare confluent-kafka consumer with msgspec, summing hosts to rows and comparing with a budget.

    bare.py SERVERS TOPIC MESSAGES BUDGET_W [whole]

Three fields are decoded; `whole` decodes messages as Windrow must, which keeps and checks them all. No loss
of any kind is looked for, nothing is kept, nothing is said but an alarm count. Prints the seconds from the
first message to the last, wall and CPU, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections import defaultdict

import msgspec
from confluent_kafka import Consumer


class Frame(msgspec.Struct, gc=False):
    """What a threshold needs of a frame, and no more."""

    at: int
    subject: str
    power_w: tuple[tuple[float, ...], ...]


class Rows:
    """Power of each row, from the newest frame of each host; alarms where a row is above its budget."""

    def __init__(self, budget_w: float) -> None:
        self.budget_w = budget_w
        self.alarms = 0
        self._host_w: dict[str, float] = {}
        self._row_w: dict[str, float] = defaultdict(float)

    def take(self, row: str, host: str, power_w: tuple[tuple[float, ...], ...]) -> None:
        """One frame: the mean of its readings stands for the host."""
        total = sum(map(sum, power_w)) / len(power_w)
        self._row_w[row] += total - self._host_w.get(host, 0.0)
        self._host_w[host] = total
        self.alarms += self._row_w[row] > self.budget_w


def main() -> None:
    """Read so many messages and say how long it took."""
    servers, topic, messages, budget_w, *whole = sys.argv[1:]
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"bare-{uuid.uuid4()}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topic])
    decode = msgspec.json.Decoder(Frame).decode
    if whole:
        from schemas.codec import decode  # type: ignore[assignment]
    rows, left, began, cpu = Rows(float(budget_w)), int(messages), 0.0, 0.0
    while left:
        batch = consumer.consume(500, timeout=10)
        if batch and not began:
            began, cpu = time.perf_counter(), time.process_time()
        for message in batch:
            frame = decode(message.value())
            rows.take(message.key().decode(), frame.subject, frame.power_w)
        left -= len(batch)
    print(
        json.dumps(
            {
                "wall_s": time.perf_counter() - began,
                "cpu_s": time.process_time() - cpu,
                "alarms": rows.alarms,
            }
        )
    )
    consumer.close()


if __name__ == "__main__":
    main()
