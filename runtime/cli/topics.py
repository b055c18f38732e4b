"""`windrow topics`: the site's topics on its brokers, compared with what they should be, or made."""

from __future__ import annotations

import pathlib
from typing import Annotated

from cyclopts import Parameter

from runtime.bus.provision import compare, ensure
from runtime.cli.printing import Json, emit, say
from runtime.config import read_host_config


def topics(
    *, config: pathlib.Path, create: Annotated[bool, Parameter(negative="")] = False, json: Json = False
) -> int:
    """Compare the site's topics on its brokers with what they should be. None is ever changed.

    Exit status 1 when one is missing or differs.

    Parameters
    ----------
    config
        A configuration with the site's brokers, [kafka].
    create
        Make those that are missing.
    json
        Print the answer as one line of JSON.
    """
    kafka = read_host_config(config).bus()
    report = ensure(kafka) if create else compare(kafka)
    if json:
        emit(report)
        return 0 if report.ok else 1
    for name in report.created:
        say(f"{name}: made")
    for name in report.missing:
        say(f"{name}: missing; windrow topics --create makes it")
    for difference in report.differing:
        say(str(difference))
    if report.differing:
        say("what differs is left as it is: change it with Kafka's own tools, or the configuration")
    if report.ok:
        say(f"{len(report.sound) + len(report.created)} topics are as they should be")
    return 0 if report.ok else 1
