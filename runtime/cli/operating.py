"""What people say to a running host: pin, unpin, reset, resume. Each is handed in at its state directory."""

from __future__ import annotations

import getpass
import pathlib
from typing import Annotated

from cyclopts import Parameter

from runtime.cli.printing import say, span
from runtime.clock import SystemClock
from runtime.config import ConfigError, load_site
from runtime.inbox import LONGEST_PIN, Inbox
from runtime.state_dir import StateDir
from schemas.envelope import Event
from schemas.instants import MINUTE, to_text
from schemas.operators import Pin, ResetBlastRadius, Resume, Unpin
from schemas.topology import Site

SOURCE = "operator"
"""Where the words of people come from, on the envelope."""

STATE_DIR = pathlib.Path("windrow-state")

State = Annotated[pathlib.Path, Parameter(name="--state-dir")]
By = Annotated[str, Parameter(name="--by")]


def pin(
    subject: str,
    /,
    *,
    max_mhz: int,
    minutes: float,
    reason: str,
    state_dir: State = STATE_DIR,
    by: By = "",
) -> int:
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
    state_dir
        The state directory of the host.
    by
        Who says so; the login name when left out.
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
        by=by or getpass.getuser(),
        reason=reason,
        expires_at=until,
    )
    hand_in(StateDir.found(state_dir), word)
    say(f"asked to hold {subject} at or below {max_mhz} MHz for {span(minutes * 60)}, until {to_text(until)}")
    return 0


def unpin(subject: str, /, *, state_dir: State = STATE_DIR, by: By = "") -> int:
    """Take the pins of a host, rack or row back before they expire.

    Parameters
    ----------
    subject
        The path that was pinned.
    state_dir
        The state directory of the host.
    by
        Who says so; the login name when left out.
    """
    word = Unpin(at=SystemClock().now(), source=SOURCE, subject=subject, by=by or getpass.getuser())
    hand_in(StateDir.found(state_dir), word)
    say(f"asked to take the pins of {subject} back")
    return 0


def reset_blast_radius(row: str, /, *, reason: str, state_dir: State = STATE_DIR, by: By = "") -> int:
    """Close the blast-radius breaker of a row again, after looking at what tripped it.

    Parameters
    ----------
    row
        The row's path.
    reason
        What was found; it stands in the ledger.
    state_dir
        The state directory of the host.
    by
        Who says so; the login name when left out.
    """
    now, who = SystemClock().now(), by or getpass.getuser()
    hand_in(
        StateDir.found(state_dir), ResetBlastRadius(at=now, source=SOURCE, subject=row, by=who, reason=reason)
    )
    say(f"asked to close the blast-radius breaker of {row}")
    return 0


def resume(subject: str, /, *, state_dir: State = STATE_DIR, by: By = "") -> int:
    """Command a host, rack, row or site again after a release.

    Parameters
    ----------
    subject
        The path that was released.
    state_dir
        The state directory of the host.
    by
        Who says so; the login name when left out.
    """
    word = Resume(at=SystemClock().now(), source=SOURCE, subject=subject, by=by or getpass.getuser())
    hand_in(StateDir.found(state_dir), word)
    say(f"asked to command {subject} again")
    return 0


def hand_in(state: StateDir, word: Event) -> None:
    """Leave a word for the host of a state directory, and say so when nobody is there to hear it yet.
    Raises ConfigError where the host's site has nothing of that path: it would be heard by nobody."""
    known(load_site(state.config().site), word.subject)
    Inbox(state.path).put(word)
    if not state.busy():
        say(f"no host is running on {state.path}: it will be heard at the next start")


def known(site: Site, subject: str) -> None:
    """Raises ConfigError unless the site has hosts at or below the path."""
    if not site.covered(subject):
        rows = ", ".join(row.path for row in site.rows)
        raise ConfigError(f"site {site.name} has no host at or below {subject!r}; its rows are {rows}")
