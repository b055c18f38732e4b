"""`windrow audit`: questions to the ledger."""

from __future__ import annotations

import pathlib
import sys
from typing import Annotated

from cyclopts import App, Parameter

from runtime.cli.printing import Json, emit, print_alerts, print_holdings, print_walk, say
from runtime.config import ConfigError, read_host_config
from runtime.ledger import audit as ledger_audit
from runtime.ledger.book import Book
from runtime.ledger.store import Ledger
from runtime.state_dir import StateDir
from schemas.instants import Instant, from_text, to_text

LedgerPath = Annotated[pathlib.Path, Parameter(name="--ledger")]
SomeLedger = Annotated[pathlib.Path | None, Parameter(name="--ledger")]
SomeConfig = Annotated[pathlib.Path | None, Parameter(name="--config")]

audit = App(name="audit", help="Ask the ledger: who was capped, when and why.")


def opened(ledger: pathlib.Path | None, config: pathlib.Path | None) -> Book:
    """The ledger to ask: a file or, by a configuration, the site's InfluxDB, else the file of that host.

    Raises ConfigError, LedgerMissing, LedgerUnreadable or BusError, in words.
    """
    if (ledger is None) == (config is None):
        raise ConfigError("name either a ledger's file with --ledger, or a configuration with --config")
    if ledger is not None:
        return Ledger.reading(ledger)
    assert config is not None
    chosen = read_host_config(config)
    if chosen.influx is None:
        return Ledger.reading(StateDir(chosen.state_dir).ledger)
    from runtime.sinks.influx_ledger import InfluxLedger

    return InfluxLedger(chosen.influx)


def instant(text: str) -> Instant:
    """A time on the command line. Raises ConfigError in words."""
    try:
        return from_text(text)
    except ValueError as error:
        raise ConfigError(str(error)) from error


@audit.command
def why(command: str, /, *, ledger: SomeLedger = None, config: SomeConfig = None, json: Json = False) -> int:
    """Walk one command back to the samples it rests on and on to its measured effect.

    Parameters
    ----------
    command
        The id of a command (or of one of its outcomes); the first characters will do.
    ledger
        The ledger file of the host.
    config
        A configuration instead: its InfluxDB is asked or, without one, the ledger in its state directory.
    json
        Print the walk as one line of JSON.
    """
    with opened(ledger, config) as book:
        walk = ledger_audit.why(book, command)
    if json:
        emit(walk)
    else:
        print_walk(walk)
    return 0


@audit.command
def who(
    *, target: str, at: str, ledger: SomeLedger = None, config: SomeConfig = None, json: Json = False
) -> int:
    """Say what held each host at or below a target at a time.

    Parameters
    ----------
    target
        A host, rack, row or site path, such as ams1/row-b/r07.
    at
        The time, such as 2026-03-01T12:00:00Z.
    ledger
        The ledger file of the host.
    config
        A configuration instead: its InfluxDB is asked or, without one, the ledger in its state directory.
    json
        Print the holdings as one line of JSON.
    """
    moment = instant(at)
    with opened(ledger, config) as book:
        holdings = ledger_audit.who(book, target, moment)
    if json:
        emit(holdings)
    elif holdings:
        print_holdings(holdings)
    else:
        say(f"nothing had been commanded at or below {target} by {to_text(moment)}")
    return 0 if holdings else 1


@audit.command
def alerts(
    *, ledger: SomeLedger = None, config: SomeConfig = None, since: str = "1970-01-01", json: Json = False
) -> int:
    """List emergencies that were open or ended since a time.

    Parameters
    ----------
    ledger
        The ledger file of the host.
    config
        A configuration instead: its InfluxDB is asked or, without one, the ledger in its state directory.
    since
        The time, such as 2026-03-01T12:00:00Z.
    json
        Print the alerts as one line of JSON.
    """
    with opened(ledger, config) as book:
        found = ledger_audit.alerts(book, instant(since))
    if json:
        emit(found)
    elif found:
        print_alerts(found)
    else:
        say("no emergency")
    return 0


@audit.command
def verify(*, ledger: LedgerPath, head: str = "", json: Json = False) -> int:
    """Check the ledger's chain from its beginning to its head. Exit status 1 when it is broken.

    Parameters
    ----------
    ledger
        The ledger file of the host.
    head
        A head noted earlier: the ledger must still contain it, so that nothing was cut off since.
    json
        Print the result as one line of JSON.
    """
    with Ledger.reading(ledger) as book:
        broken = book.verify()
        if not broken and head and not book.contains_hash(head):
            broken = f"the head {head} noted earlier is not in this ledger: records were cut off or replaced"
        count, newest = book.head()
    if json:
        emit({"records": count, "head": newest, "broken": broken})
    elif broken:
        print(f"{ledger}: {broken}", file=sys.stderr)
    else:
        say(f"{count} records, chain whole; head {newest}")
    return 1 if broken else 0
