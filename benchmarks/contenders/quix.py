"""A Quix Streams application doing the same rollup and threshold; runs in an environment of its own.

    quix.py SERVERS TOPIC MESSAGES BUDGET_W

Prints the seconds from the first message to the last, wall and CPU, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from typing import Any

import msgspec
from bare import Frame, Rows
from quixstreams import Application


def main() -> None:
    """Read so many messages and say how long it took."""
    servers, topic, messages, budget_w = sys.argv[1:]
    app = Application(
        broker_address=servers,
        consumer_group=f"quix-{uuid.uuid4()}",
        auto_offset_reset="earliest",
        auto_create_topics=False,
        loglevel="ERROR",
    )
    decode = msgspec.json.Decoder(Frame).decode
    rows, began, cpu = Rows(float(budget_w)), 0.0, 0.0

    def take(value: bytes, key: bytes, timestamp: int, headers: Any) -> None:
        nonlocal began, cpu
        if not began:
            began, cpu = time.perf_counter(), time.process_time()
        frame = decode(value)
        rows.take(key.decode(), frame.subject, frame.power_w)

    frames = app.dataframe(app.topic(topic, value_deserializer="bytes", key_deserializer="bytes"))
    frames.update(take, metadata=True)
    app.run(count=int(messages), collect=False)
    print(
        json.dumps(
            {
                "wall_s": time.perf_counter() - began,
                "cpu_s": time.process_time() - cpu,
                "alarms": rows.alarms,
            }
        )
    )


if __name__ == "__main__":
    main()
