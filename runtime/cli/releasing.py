"""`windrow release`: give hosts back, through the host that runs here or, where none does, without it."""

from __future__ import annotations

import getpass
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from actuators.lifecycle import DEADLINES, KEEPERS, HostAgent
from runtime.agents import InlineAgents
from runtime.bus.settings import BusError, KafkaConfig
from runtime.cli.operating import SOURCE, STATE_DIR, By, State, known, publish
from runtime.cli.printing import Json, console, emit, progress, say, watts
from runtime.clock import SystemClock
from runtime.config import ActuatorConfig, ConfigError, HostConfig, Setup, load_host, read_host_config
from runtime.inbox import Inbox
from runtime.ledger.store import Ledger, LedgerUnwritable
from runtime.state_dir import Busy, StateDir
from runtime.wiring import agents_of, settled
from schemas.commands import Path
from schemas.envelope import Event
from schemas.instants import SECOND, Span
from schemas.operators import ReleaseAll
from schemas.topology import Site, covers


class GivenBack(msgspec.Struct, frozen=True):
    """What a host was seen to be at in the end; `ok` is False where that is not what was asked."""

    host: str
    ok: bool
    detail: str


def release(
    subject: str = "",
    /,
    *,
    everything: Annotated[bool, Parameter(name="--all", negative="")] = False,
    reason: str,
    state_dir: State = STATE_DIR,
    config: pathlib.Path | None = None,
    uncapped: Annotated[bool, Parameter(negative="")] = False,
    yes: Annotated[bool, Parameter(negative="")] = False,
    by: By = "",
    json: Json = False,
) -> int:
    """Give hosts back and command them no more, until they are resumed.

    A host goes back to the settings that were found on it. In an oversubscribed row it goes to its safe
    share, at which the row fits under its breaker whatever runs. Where a host process runs on the state
    directory it is asked to do so; where none does it is done here, needing nothing but the devices. With a
    configuration that has [kafka] the site's other processes are asked by it, wherever they run.
    Exit status 1 when a host was not seen to be given back.

    Parameters
    ----------
    subject
        The path of a host, rack or row.
    everything
        Every host of the site instead.
    reason
        Why; it stands in the ledger.
    state_dir
        The state directory of the host; it knows the configuration that the host last ran with.
    config
        That configuration, should the state directory be lost, or one of the site with [kafka].
    uncapped
        Give back what was found in an oversubscribed row too. Only without a running host.
    yes
        Yes, with nothing left that keeps the row under its budget.
    by
        Who says so; the login name when left out.
    json
        Print what became of the hosts as one line of JSON.
    """
    if everything == bool(subject):
        raise ConfigError("name a host, rack or row to release, or say --all")
    chosen = read_host_config(config) if config is not None else StateDir.found(state_dir).config()
    setup = load_host(chosen, decides=False)
    subject = subject or setup.site.name
    known(setup.site, subject)
    if uncapped and not yes:
        _warn(setup, subject)
    now, who = SystemClock().now(), by or getpass.getuser()
    word = ReleaseAll(at=now, source=SOURCE, subject=subject, by=who, reason=reason)
    if chosen.kafka is not None and not _here(chosen, subject):
        if uncapped:
            raise ConfigError(
                f"--uncapped is for the machine that sets the hosts, and {chosen.name} sets none"
            )
        return _asked(word, publish(chosen.kafka, setup.site, word), json=json)
    state = StateDir.made(chosen.state_dir)
    try:
        with state.locked():
            try:
                given = _give_back(chosen, setup, state, word, uncapped=uncapped)
            finally:  # the devices do not wait for a broker
                if chosen.kafka is not None:
                    _tell_the_site(chosen.kafka, setup.site, word)
    except Busy:
        if uncapped:
            raise ConfigError(
                f"a host is running on {state.path}, and gives back no more than safe shares: stop it first"
            ) from None
        if chosen.kafka is not None:
            return _asked(word, publish(chosen.kafka, setup.site, word), json=json)
        Inbox(state.path).put(word)
        return _asked(word, "", json=json)
    if json:
        emit({"release": word.id, "asked": False, "hosts": given})
    else:
        _print(given, subject)
    return 0 if all(each.ok for each in given) else 1


def _asked(word: ReleaseAll, note: str, *, json: bool) -> int:
    """Tell that others were asked to give hosts back."""
    if json:
        emit({"release": word.id, "asked": True, "hosts": []})
        return 0
    if note:
        say(note)
    say(f"asked the running host to give {word.subject} back; if it does not: stop it and say this again")
    return 0


def _tell_the_site(kafka: KafkaConfig, site: Site, word: ReleaseAll) -> None:
    """Tell the site's processes what was done here: until they know, they command these hosts in vain."""
    try:
        note = publish(kafka, site, word)
    except BusError as error:
        note = f"the site's controllers were not told: {error}"
    print(note, file=sys.stderr)


def _here(config: HostConfig, subject: str) -> tuple[ActuatorConfig, ...]:
    """What is set here at or below a path."""
    return tuple(entry for entry in config.actuators if covers(subject, entry.host))


def _warn(setup: Setup, subject: str) -> None:
    """Raises ConfigError where giving back what was found takes the only thing away that keeps a row safe."""
    rows = [
        f"{row.path} could then draw {watts(row.rated_w)} on a budget of {watts(row.budget_w)}"
        for row in setup.site.rows
        if any(covers(subject, host.path) and host.path in setup.oversubscribed for host in row.hosts)
    ]
    if rows:
        raise ConfigError(
            f"--uncapped lifts the safe shares too, and nothing but the load keeps the breaker closed: "
            f"{'; '.join(rows)}. If that is meant, say --yes as well"
        )


def _give_back(
    config: HostConfig, setup: Setup, state: StateDir, word: ReleaseAll, *, uncapped: bool
) -> list[GivenBack]:
    """Do what a running host would. The ledger is told as far as it can be: a full disk keeps no host
    from being given back."""
    here = _here(config, word.subject)
    if not here:
        raise ConfigError(f"{config.name}: sets no host at or below {word.subject}")
    hosts = agents_of(msgspec.structs.replace(config, actuators=here), setup, state)
    agents = InlineAgents(hosts, frozenset() if uncapped else setup.oversubscribed)
    _record(state, [word])
    clock = SystemClock()
    until = clock.now() + _patience(here)
    try:
        outcomes = [*agents.start(clock.now()), *agents.release(word.subject, clock.now())]
        with progress("hosts given back") as bar:
            task = bar.add_task("releasing", total=len(hosts))
            while not settled(hosts) and clock.now() < until:
                clock.sleep_until(clock.now() + 100)
                outcomes += agents.step([], clock.now())
                bar.update(task, completed=sum(settled({path: agent}) for path, agent in hosts.items()))
    finally:
        agents.close()
    _record(state, outcomes)
    last = {outcome.subject: getattr(outcome, "detail", "") for outcome in outcomes}
    return [_became(path, agent, last.get(path, "")) for path, agent in hosts.items()]


def _patience(actuators: Sequence[ActuatorConfig]) -> Span:
    """How long to wait for the read-backs: as long as the slowest host's agent does, and then some."""
    paths: dict[str, set[Path]] = {}
    for actuator in actuators:
        paths.setdefault(actuator.host, set()).add(actuator.path)
    keepers = [next(path for path in KEEPERS if path in offered) for offered in paths.values()]
    return max(DEADLINES[keeper] for keeper in keepers) + 2 * SECOND


def _became(path: str, agent: HostAgent, said: str) -> GivenBack:
    kept = agent.kept
    if kept is None:
        return GivenBack(path, False, said or "its settings cannot be read")
    if not kept.settled:
        return GivenBack(path, False, said or "not seen to be given back")
    return GivenBack(path, True, "at its safe share" if kept.intent == "safe_share" else "as it was found")


def _record(state: StateDir, events: Sequence[Event]) -> None:
    try:
        with Ledger(state.ledger) as ledger:
            ledger.append(events)
    except LedgerUnwritable as error:
        print(f"not in the ledger: {error}", file=sys.stderr)


def _print(given: Sequence[GivenBack], subject: str) -> None:
    table = Table("host", "now", box=None)
    for each in given:
        table.add_row(each.host, Text(each.detail if each.ok else f"NOT given back: {each.detail}"))
    console.print(table)
    say(f"a host that starts here leaves them so until: windrow resume {subject}")
