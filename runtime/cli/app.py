"""The commands, put together, and how they fail.

Exit status 0: done; 1: the answer is no; 2: it could not be asked or done, said in one line or one line
for each problem.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError, Parameter

from actuators.base import ActuatorError
from collectors.base import CollectorError
from controllers.clock_table import Uncalibrated
from runtime.bus.settings import BusError
from runtime.config import ConfigError
from runtime.inbox import InboxError
from runtime.ledger.audit import UnknownCommand
from runtime.ledger.book import AmbiguousId, LedgerUnreadable, UnknownId
from runtime.ledger.store import LedgerMissing, LedgerUnwritable
from runtime.workers import WorkerLost

COMMANDS = {
    "demo": "runtime.cli.demo:demo",
    "run": "runtime.cli.running:run",
    "record": "runtime.cli.running:record",
    "collect": "runtime.cli.collecting:collect",
    "control": "runtime.cli.controlling:control",
    "actuate": "runtime.cli.actuating:actuate",
    "twin": "runtime.cli.simulating:twin",
    "rehearse": "runtime.cli.rehearsing:rehearse",
    "replay": "runtime.cli.replaying:replay",
    "explain": "runtime.cli.replaying:explain",
    "calibrate": "runtime.cli.calibrating:calibrating",
    "check": "runtime.cli.checking:check",
    "experiment": "runtime.cli.experimenting:experiment",
    "topics": "runtime.cli.topics:topics",
    "archive": "runtime.cli.archiving:archive",
    "audit": "runtime.cli.asking:audit",
    "history": "runtime.cli.history:history",
    "pin": "runtime.cli.operating:pin",
    "unpin": "runtime.cli.operating:unpin",
    "reset-blast-radius": "runtime.cli.operating:reset_blast_radius",
    "release": "runtime.cli.releasing:release",
    "resume": "runtime.cli.operating:resume",
}
"""Where each command is found. Imported when asked for: who pins a host at night need not wait for
plotting and forecasting libraries."""

_SERVICES = ("run", "collect", "control", "archive", "actuate", "twin")

app = App(
    name="windrow",
    help="Power control for LLM clusters: telemetry in, verified and leased commands and a ledger out.",
    version=version("windrow"),
    default_parameter=Parameter(show_default=lambda value: str(value) if value else None),
)
for name, place in COMMANDS.items():
    app.command(place, name=name)

_OPERATORS = (
    ConfigError,
    BusError,
    CollectorError,
    ActuatorError,
    InboxError,
    LedgerMissing,
    LedgerUnreadable,
    LedgerUnwritable,
    UnknownId,
    AmbiguousId,
    UnknownCommand,
    Uncalibrated,
    WorkerLost,
)
"""Errors whose text is for the operator. Any other is a fault of ours, and shows where it was."""


def run(tokens: Sequence[str]) -> int:
    """Run one command line; its exit status."""
    service = tokens and tokens[0] in _SERVICES and tokens[:2] != ["twin", "fidelity"]
    level = logging.INFO if service else logging.WARNING  # a service says what it does
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        if not tokens or tokens[0] not in COMMANDS:
            for command in COMMANDS:
                app[command]  # loaded, so that help and a mistyped name can tell of it
        answer = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except _OPERATORS as error:
        print(error.args[0], file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return answer if isinstance(answer, int) else 0
