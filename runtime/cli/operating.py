"""What people say to a running host: pin, unpin, reset, resume. Each is handed in at its state directory, or
sent to Kafka where the site's parts are processes of their own."""

from __future__ import annotations

import getpass
import pathlib
import sys
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from runtime.bus.settings import KafkaConfig
from runtime.cli.printing import Json, emit, say, span
from runtime.clock import SystemClock
from runtime.config import ConfigError, load_site, read_host_config
from runtime.inbox import Inbox
from runtime.state_dir import StateDir
from schemas.envelope import Event
from schemas.instants import MINUTE, to_text
from schemas.operators import LONGEST_PIN, Pin, ResetBlastRadius, Resume, Unpin
from schemas.topology import Site

SOURCE = "operator"
"""Where the words of people come from, on the envelope."""

STATE_DIR = pathlib.Path("windrow-state")

State = Annotated[pathlib.Path, Parameter(name="--state-dir")]
By = Annotated[str, Parameter(name="--by")]


@Parameter(name="*")
@dataclass(frozen=True)
class Saying:
    """How a word is said.

    Parameters
    ----------
    state_dir
        The state directory of the host. Where the host last ran with [kafka] the word is sent there.
    config
        Its configuration instead, or another one of the site with [kafka].
    by
        Who says so; the login name when left out.
    json
        Print what was said as one line of JSON.
    """

    state_dir: State = STATE_DIR
    config: pathlib.Path | None = None
    by: By = ""
    json: Json = False

    @property
    def who(self) -> str:
        """Who says so."""
        return self.by or getpass.getuser()

    def say(self, word: Event, asked: str) -> int:
        """Hand a word in, and tell what was asked. Raises ConfigError where the site has nothing of that
        path, because nobody would hear it; BusError and InboxError where it cannot be handed in."""
        if self.config is None:
            place, config = self.state_dir, StateDir.found(self.state_dir).config()
        else:
            config = read_host_config(self.config)
            place = config.state_dir
        site = load_site(config.site)
        note = publish(config.kafka, site, word) if config.kafka else _hand_in(place, site, word)
        if not self.json:
            say("\n".join(filter(None, (note, asked))))
            return 0
        emit(word)
        if note:
            print(note, file=sys.stderr)
        return 0


_AS_USUAL = Saying()


def pin(subject: str, /, *, max_mhz: int, minutes: float, reason: str, saying: Saying = _AS_USUAL) -> int:
    """Hold the clock ceiling of a host, rack or row for a while. It is never fought, and it expires.

    Parameters
    ----------
    subject
        The path of the host, rack or row.
    max_mhz
        The ceiling for SM clocks.
    minutes
        For how long.
    reason
        Why; it stands in the ledger.
    """
    if not (0 < minutes <= LONGEST_PIN / MINUTE and max_mhz > 0):
        most = LONGEST_PIN // MINUTE
        raise ConfigError(
            f"--minutes and --max-mhz must be above zero, and --minutes at most {most} (30 days)"
        )
    now = SystemClock().now()
    until = now + int(minutes * MINUTE)
    word = Pin(
        at=now,
        source=SOURCE,
        subject=subject,
        max_mhz=max_mhz,
        by=saying.who,
        reason=reason,
        expires_at=until,
    )
    return saying.say(
        word,
        f"asked to hold {subject} at or below {max_mhz} MHz for {span(minutes * 60)}, until {to_text(until)}",
    )


def unpin(subject: str, /, *, saying: Saying = _AS_USUAL) -> int:
    """Take the pins of a host, rack or row back before they expire.

    Parameters
    ----------
    subject
        The path that was pinned.
    """
    word = Unpin(at=SystemClock().now(), source=SOURCE, subject=subject, by=saying.who)
    return saying.say(word, f"asked to take the pins of {subject} back")


def reset_blast_radius(row: str, /, *, reason: str, saying: Saying = _AS_USUAL) -> int:
    """Close the blast-radius breaker of a row again, after looking at what tripped it.

    Parameters
    ----------
    row
        The row's path.
    reason
        What was found; it stands in the ledger.
    """
    now = SystemClock().now()
    word = ResetBlastRadius(at=now, source=SOURCE, subject=row, by=saying.who, reason=reason)
    return saying.say(word, f"asked to close the blast-radius breaker of {row}")


def resume(subject: str, /, *, saying: Saying = _AS_USUAL) -> int:
    """Command a host, rack, row or site again after a release.

    Parameters
    ----------
    subject
        The path that was released.
    """
    word = Resume(at=SystemClock().now(), source=SOURCE, subject=subject, by=saying.who)
    return saying.say(word, f"asked to command {subject} again")


def publish(kafka: KafkaConfig, site: Site, word: Event) -> str:
    """Send a word to the rows that it concerns; says that Kafka has it. Raises ConfigError, BusError."""
    from runtime.bus.posting import post  # it brings the loop, which the others need not wait for

    known(site, word.subject)
    rows = post(kafka, site, word)
    return f"Kafka has it for {rows[0] if len(rows) == 1 else f'{len(rows)} rows'}"


def _hand_in(place: pathlib.Path, site: Site, word: Event) -> str:
    """Leave a word for the host of a state directory; says so when nobody is there to hear it yet."""
    state = StateDir.found(place)
    known(site, word.subject)
    Inbox(state.path).put(word)
    return "" if state.busy() else f"no host is running on {state.path}: it will be heard at the next start"


def known(site: Site, subject: str) -> None:
    """Raises ConfigError unless the site has hosts at or below the path."""
    if not site.covered(subject):
        rows = ", ".join(row.path for row in site.rows)
        raise ConfigError(f"site {site.name} has no host at or below {subject!r}; its rows are {rows}")
