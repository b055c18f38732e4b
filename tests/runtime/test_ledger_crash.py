"""A host may be killed at any instant: what its ledger acknowledged is there, in a chain that holds."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

from runtime.ledger.store import Ledger
from schemas.samples import FeedSample

WRITER = """
import sys
from pathlib import Path
from runtime.ledger.store import Ledger
from schemas.samples import FeedSample

ledger = Ledger(Path(sys.argv[1]), durable=sys.argv[2] == "durable")
at = int(sys.argv[3])
while True:
    batch = [
        FeedSample(at=at + n, source="collector", subject="ams1/ups-1", power_w=1.0) for n in range(1, 8)
    ]
    ledger.append(batch)
    at += len(batch)
    print(at, flush=True)
    ledger.tidy()
"""

PROJECT = Path(__file__).resolve().parents[2]
KILLS = 16


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    chance = random.Random(20260301)
    recorded = 0
    for kill in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), "durable" if kill % 2 else "fast", str(recorded)],
            stdout=subprocess.PIPE,
            cwd=PROJECT,
        )
        assert writer.stdout is not None
        with writer.stdout:
            acknowledged = 0
            # The writer does not wait for us: the kill falls anywhere in an append that we know nothing of.
            for _ in range(chance.randint(1, 200)):
                acknowledged = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            acknowledged = max([acknowledged, *map(int, writer.stdout.read().splitlines(keepends=False))])
        assert writer.wait() == -signal.SIGKILL

        with Ledger.reading(path) as ledger:
            assert ledger.verify() == ""
            recorded, _ = ledger.head()
            assert recorded >= acknowledged
            assert recorded - acknowledged in (0, 7)  # the batch under way is there whole, or not at all
            assert [event.at for event in ledger.of_type([FeedSample])] == list(range(1, recorded + 1))
    assert recorded > KILLS * 7
