"""The commands, put together, and how they fail."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError

from runtime.cli import asking, operating, replaying, running
from runtime.cli.demo import demo
from runtime.config import ConfigError
from runtime.distribution import ForeignPackage, check_distribution

app = App(
    name="windrow",
    help="Power control for LLM clusters: telemetry in, verified leased commands and an auditable ledger out.",
    version=version("windrow"),
)
app.command(running.run)
app.command(replaying.replay)
app.command(running.record)
app.command(operating.check)
app.command(replaying.explain)
app.command(asking.audit)
app.command(operating.pin)
app.command(operating.unpin)
app.command(operating.reset_blast_radius)
app.command(operating.release)
app.command(operating.resume)
app.command(demo)


def run(tokens: Sequence[str]) -> int:
    """Run one command line; its exit status. 0: done, 1: the answer is no, 2: it could not be asked."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        check_distribution()
        answer = app(tokens, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        return 2  # already said
    except (ConfigError, ForeignPackage, FileNotFoundError, LookupError) as error:
        print(error.args[0] if error.args else error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return answer if isinstance(answer, int) else 0
