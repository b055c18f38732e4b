"""A machine behind the stand-in driver whose `windrow actuate` is commanded over a real Kafka, by hand."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from support.machines import HOST, WINDROW, Machine, eventually
from support.nvml_shim import environment
from support.processes import Server

from runtime.bus.keys import Keys
from runtime.bus.publisher import Publisher
from runtime.bus.reader import Reader
from runtime.bus.settings import KafkaConfig
from runtime.clock import SystemClock
from schemas import codec
from schemas.commands import FailDirection, Lease, LockClocks
from schemas.envelope import DeadLetter, Event
from schemas.instants import SECOND, Instant, Span
from schemas.outcomes import Outcome, Verified
from schemas.site_file import read_site
from schemas.topics import BY_NAME

ROW = "lab/row-a"
SAID = ("windrow.outcomes", "windrow.emergencies", "windrow.dead-letters")
USED = [BY_NAME[name] for name in ("windrow.commands", "windrow.operators", *SAID)]
"""The topics of an actuator: a broker that was killed looks at all that it has before it serves again."""


class Controller:
    """Whoever commands the host, under one epoch."""

    def __init__(self, kafka: KafkaConfig, site: Path, epoch: int) -> None:
        self.epoch = epoch
        self._site = read_site(site.read_text(), site.name)
        name = f"controller-{epoch}"
        self._publisher = Publisher(kafka, Keys(self._site), spool=None, clock=SystemClock(), client=name)

    def lock(
        self,
        max_mhz: int,
        *,
        ttl: Span = 90 * SECOND,
        on_expiry: FailDirection = "safe_share",
        at: Instant | None = None,
        subject: str = HOST,
    ) -> LockClocks:
        """Say that the host is to be held at or below a clock."""
        at = SystemClock().now() if at is None else at
        lease = Lease(epoch=self.epoch, issued_at=at, expires_at=at + ttl, on_expiry=on_expiry)
        command = LockClocks(
            at=at,
            source=f"test/{self.epoch}",
            subject=subject,
            cause=(str(max_mhz),),
            lease=lease,
            max_mhz=max_mhz,
        )
        self.say(command)
        return command

    def say(self, *events: Event) -> None:
        """Publish anything, and wait until Kafka has it."""
        self._publisher.send(events)
        assert self._publisher.flush(15.0), self._publisher.state().trouble

    def close(self) -> None:
        self._publisher.close(1.0)


class Actuated:
    """Files, boards and process of a machine that is set over Kafka. As `Machine`: two H100s on an
    oversubscribed row, and no collectors. Use as a context manager."""

    def __init__(self, folder: Path, kafka: KafkaConfig) -> None:
        self.machine = Machine(folder)
        self.kafka = kafka
        self.folder = folder
        self.said: list[Event] = []
        self.process: Server | None = None
        servers = ", ".join(f'"{server}"' for server in kafka.servers)
        self.config = folder / "actuate.toml"
        self.config.write_text(
            f'site = "site.toml"\npolicy = "policy.toml"\nstate_dir = "state"\n'
            f'[health]\nlisten = "127.0.0.1:{self.machine.port}"\n'
            f'[kafka]\nservers = [{servers}]\nprefix = "{kafka.prefix}"\n'
            f'[[actuators]]\nkind = "gpu_nvml"\nhost = "{HOST}"\n',
            encoding="utf-8",
        )
        self._reader = Reader(kafka, dict.fromkeys(SAID), start="earliest")
        self._controllers: list[Controller] = []

    def __enter__(self) -> Actuated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.process.kill()
        for controller in self._controllers:
            controller.close()
        self._reader.close()

    # ---- the process ----

    def start(self, *arguments: str) -> None:
        """Start `windrow actuate`, and wait until its hosts are taken up."""
        command = [str(WINDROW), "actuate", "--config", str(self.config), *arguments]
        self.process = Server(command, self.folder / "actuate.log", environment(self.machine.state))
        eventually(lambda: self.machine.ready() is not None, "the actuator serves its health")

    def until_ready(self) -> None:
        eventually(lambda: (self.machine.ready() or {}).get("ready") is True, "every sign is there")

    def until_ready_but_held(self) -> None:
        """Ready, but for the reflex that holds the host."""

        def held() -> bool:
            reasons = (self.machine.ready() or {}).get("reasons", ())
            return len(reasons) == 1 and "the reflex holds it" in reasons[0]

        eventually(held, "every sign is there, and the host is held")

    def stop(self) -> int:
        """SIGTERM, and wait; the exit status."""
        assert self.process is not None
        self.process.stop(30.0)
        status = self.process.wait(1.0)
        self.process = None
        return status

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process = None

    # ---- the bus ----

    def controller(self, epoch: int = 1) -> Controller:
        """Somebody who commands, under an epoch."""
        made = Controller(self.kafka, self.machine.site, epoch)
        self._controllers.append(made)
        return made

    def heard(self) -> list[Event]:
        """All that was said so far."""
        for message in self._reader.poll(0.02):
            self.said.append(codec.decode(message.value))
        return self.said

    def outcomes(self, *kinds: type[Outcome]) -> list[Outcome]:
        """The outcomes so far, of some kinds or of all."""
        return [event for event in self.heard() if isinstance(event, kinds or Outcome)]

    def await_outcome(self, command: Event, *kinds: type[Outcome], within_s: float = 60.0) -> Outcome:
        """The first outcome of a command, of one of some kinds."""
        found: list[Outcome] = []

        def there() -> bool:
            found[:] = [o for o in self.outcomes(*kinds) if o.command == command.id]
            return bool(found)

        eventually(there, f"{[kind.__name__ for kind in kinds]} of {command}", within_s)
        return found[0]

    def verified(self, command: Event) -> Verified:
        """The read-back of a command."""
        outcome = self.await_outcome(command, Verified)
        assert isinstance(outcome, Verified)
        return outcome

    def dead(self) -> list[DeadLetter]:
        """What could not be read."""
        return [event for event in self.heard() if isinstance(event, DeadLetter)]
