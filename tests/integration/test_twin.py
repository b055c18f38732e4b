"""`windrow twin` on a real Kafka: a simulated site that can be read and commanded like any other."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.actuated import Controller
from support.machines import WINDROW, eventually
from support.processes import Server, free_ports

from runtime.bus.provision import ensure
from runtime.bus.reader import Reader
from runtime.bus.settings import KafkaConfig
from runtime.cli.app import run
from schemas import codec
from schemas.envelope import Event
from schemas.instants import Instant
from schemas.outcomes import Verified
from schemas.samples import FeedSample, GpuFrame

SITE = Path("twin/scenarios/small-row.toml").absolute()
HOST, ROW = "lab1/row-a/r01/h01", "lab1/row-a"

pytestmark = pytest.mark.counterpart


class Twin:
    """A `windrow twin` and what it says."""

    def __init__(self, folder: Path, kafka: KafkaConfig) -> None:
        (self.port,) = free_ports(1)
        config = folder / "windrow.toml"
        servers = ", ".join(f'"{server}"' for server in kafka.servers)
        config.write_text(
            f'site = "{SITE}"\nstate_dir = "state"\n[health]\nlisten = "127.0.0.1:{self.port}"\n'
            f'[kafka]\nservers = [{servers}]\nprefix = "{kafka.prefix}"\n'
        )
        topics = ("windrow.gpus", "windrow.power", "windrow.outcomes")
        self.reader = Reader(kafka, dict.fromkeys(topics), start="earliest")
        self.controller = Controller(kafka, SITE, epoch=1)
        self.said: list[Event] = []
        self.process = Server([str(WINDROW), "twin", "--config", str(config)], folder / "twin.log")

    def heard(self, kind: type[Event]) -> list[Event]:
        self.said += [codec.decode(message.value) for message in self.reader.poll(0.05)]
        return [event for event in self.said if isinstance(event, kind)]

    def metric(self, name: str) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        finally:
            connection.close()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def close(self) -> None:
        self.process.kill()
        self.controller.close()
        self.reader.close()


@pytest.fixture
def site(tmp_path: Path, kafka: KafkaConfig) -> Iterator[Twin]:
    ensure(kafka)
    made = Twin(tmp_path, kafka)
    yield made
    made.close()


def test_its_collectors_publish_its_agents_obey_and_its_metrics_tell_the_truth(site: Twin) -> None:
    eventually(lambda: len({e.subject for e in site.heard(GpuFrame)}) == 6, "every host says a frame", 30.0)
    command = site.controller.lock(1110, subject=HOST)
    eventually(
        lambda: any(o.cause == (command.id,) for o in site.heard(Verified)), "its agent obeys and says so"
    )
    eventually(lambda: bool(frames_after(site, command.at + 2_000)), "frames go on")
    assert all(max(mhz or 0 for mhz in f.sm_mhz[-1]) <= 1110 for f in frames_after(site, command.at + 2_000))
    eventually(lambda: len(site.heard(FeedSample)) >= 2, "its meters say what they read")
    metered = site.heard(FeedSample)[-1]
    assert isinstance(metered, FeedSample)
    assert metered.power_w == pytest.approx(site.metric("windrow_twin_row_power_watts"), rel=0.25)
    assert site.metric("windrow_twin_row_tripped") == 0.0
    site.process.stop()
    assert site.process.ended_with == 0


def frames_after(site: Twin, at: Instant) -> list[GpuFrame]:
    """The commanded host's frames since."""
    return [f for f in site.heard(GpuFrame) if isinstance(f, GpuFrame) and f.subject == HOST and f.at > at]


@pytest.mark.parametrize(("flag", "words"), [("--rows=9", "has 1"), ("--speed=0", "must be from 0.1 to 60")])
def test_what_cannot_be_simulated_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, words: str
) -> None:
    config = tmp_path / "windrow.toml"
    config.write_text(f'site = "{SITE}"\nstate_dir = "s"\n[kafka]\nservers = ["127.0.0.1:1"]\n')
    assert run(["twin", "--config", str(config), flag]) == 2
    assert words in capsys.readouterr().err
