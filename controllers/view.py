"""The view: everything a controller may look at, folded from events.

`fold` keeps the state of one row; `view` is one look at it. Events may repeat, come late or speak of
commands nobody remembers: the newest word per subject stands, an outcome counts only for the command
that a host was last asked or now obeys, and the rest is harmless.

What a host's clock *is* follows from what was verified, never from what was sent:

=====================================  =======================================================
word                                   what the view takes the host to be at
=====================================  =======================================================
Verified, Renewed                      the ceiling of that command, until its lease ends
the lease ended, or Lapsed, Released   unknown: its safe share, or whatever a dead agent left
=====================================  =======================================================

Unknown is read the worse way by whoever asks: it does not count as landed when a step waits for an
earlier one, and giving it headroom counts as loosening.

The loop's own words (rollup, forecast, decision) stand in the order they come, one of each per beat.
A rollup older than the last decision says that the clock was set back: everything remembered is then
moved back by as much, so that orders and ages are what they were and nothing lies in the future.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from schemas.commands import Brake, FailDirection, LockClocks, Path
from schemas.decisions import Decision, Setting
from schemas.emergencies import Emergency
from schemas.envelope import Event
from schemas.forecasts import PeakForecast
from schemas.instants import HOUR, Instant, Span
from schemas.operators import Pin, ReleaseAll, ResetBlastRadius, Resume, Unpin
from schemas.outcomes import (
    Accepted,
    Failed,
    Lapsed,
    Outcome,
    Refused,
    Released,
    Renewed,
    Superseded,
    Verified,
)
from schemas.samples import PowerRollup
from schemas.topology import Host, Row, covers


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A command as the controller remembers it. `attempt` counts how often in a row the same ceiling
    was asked without being seen in force; `renews` says that it was in force already; `failed` is the
    word that it will not come, in the actuator's sentence."""

    id: str
    at: Instant
    max_mhz: int
    path: Path
    expires_at: Instant
    on_expiry: FailDirection
    attempt: int = 1
    renews: bool = False
    failed: str = ""

    def lives(self, now: Instant) -> bool:
        """Whether its setting still holds, once it was verified."""
        return self.on_expiry == "hold" or now < self.expires_at


class Control(msgspec.Struct, kw_only=True):
    """One control of a host, its clock lock or its brake: what was last verified in force, and what
    was asked since and is not seen in force (under way, lost or failed)."""

    in_force: Asked | None = None
    asked: Asked | None = None
    newest_at: Instant = 0


class HostControl(msgspec.Struct, kw_only=True):
    """The two controls of a host, and when it was last loosened: `stepped_at` from one cap to a looser
    one, `returned_at` from a brake or from its safe share. `unanswered`: the most attempts at one lock
    that came to nothing since the host was last seen to obey anything."""

    lock: Control = msgspec.field(default_factory=Control)
    brake: Control = msgspec.field(default_factory=Control)
    stepped_at: Instant = 0
    returned_at: Instant = 0
    unanswered: int = 0
    lapsed: bool = False
    """The host itself said that it is at its safe share."""

    @property
    def braked(self) -> bool:
        """Whether a brake was asked or is in force, and no newer lock was verified since."""
        return self.brake.in_force is not None or self.brake.asked is not None

    @property
    def unheard(self) -> bool:
        """Whether it was never asked anything, as far as this view goes back."""
        return self.lock.newest_at == 0 and self.brake.newest_at == 0

    @property
    def brake_at(self) -> Instant:
        """When the brake was last asked; a lock asked later is its release. Zero: not braked."""
        words = (self.brake.in_force, self.brake.asked)
        return max((word.at for word in words if word is not None), default=0)

    def ceiling(self, now: Instant) -> int | None:
        """The clock (MHz) that the host was seen to obey and still does; None when that is not known."""
        held = self.brake.in_force or self.lock.in_force
        return held.max_mhz if held is not None and held.lives(now) else None

    def loosest(self, now: Instant) -> int | None:
        """As `ceiling`, with a looser lock that was asked and may have landed unseen; None: not known."""
        ceiling, asked = self.ceiling(now), self.lock.asked
        if ceiling is None or asked is None or self.braked:
            return ceiling
        return max(ceiling, asked.max_mhz)


class Standing:
    """A row on which every host obeys the wishes in `desired` or was asked just that, kept from one look to
    the next: nobody has pinned or released one, no command is to be asked again before `due`, and no lease
    ends before `until`. What a look says of such hosts need not be worked out again: `memo` keeps it.
    `settled`: all obey, and nothing but renewals is under way.

    Good for the very settings in `desired` and as long as nothing else than renewals is heard of the row's
    hosts; whoever keeps it drops it then.
    """

    __slots__ = ("desired", "due", "memo", "settled", "until")

    def __init__(self, desired: tuple[Setting, ...], *, due: Instant, until: Instant, settled: bool) -> None:
        self.desired = desired
        self.due = due
        self.until = until
        self.settled = settled
        self.memo: dict[str, str] = {}


CLEARED_KEPT_MS: Span = HOUR
"""How long the end of an emergency is remembered."""

NEVER = HostControl()
"""A host that was never asked anything."""


class ViewState(msgspec.Struct, kw_only=True):
    """What `fold` keeps for one row, updated in place."""

    hosts: dict[str, HostControl] = {}
    rollup: PowerRollup | None = None
    forecast: PeakForecast | None = None
    last: Decision | None = None
    first: Decision | None = None
    emergencies: dict[str, Emergency] = {}
    """The newest word of each episode; a cleared one stays for a while, in case an older word comes late."""
    pins: dict[str, Pin] = {}
    unpinned_at: dict[str, Instant] = {}
    released: dict[str, ReleaseAll | Resume] = {}
    blast_reset_at: Instant = 0


class View(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a row, good until the next fold. `pins` are those in force now, `emergencies` the
    open ones, `released` the hosts that a person has taken out of control, `resumed_at` when a person
    last gave the row back, `blast_reset_at` when a person last reset the blast-radius breaker. `first`
    is the first decision heard: after a restart, the one that the earlier controller left. `standing`: the
    hosts are as they were at an earlier look, which found nothing to do."""

    row: Row
    now: Instant
    hosts: dict[str, HostControl]
    rollup: PowerRollup | None = None
    forecast: PeakForecast | None = None
    last: Decision | None = None
    first: Decision | None = None
    emergencies: tuple[Emergency, ...] = ()
    pins: tuple[Pin, ...] = ()
    released: dict[str, ReleaseAll] = {}
    resumed_at: Instant = 0
    blast_reset_at: Instant = 0
    standing: Standing | None = None

    def control(self, host: str) -> HostControl:
        """What is known of a host's controls."""
        return self.hosts.get(host, NEVER)

    def pins_on(self, host: Host) -> tuple[Pin, ...]:
        """The pins that cover a host: its own, its rack's and its row's."""
        return tuple(pin for pin in self.pins if covers(pin.subject, host.path))


def view(state: ViewState, row: Row, now: Instant, standing: Standing | None = None) -> View:
    """One look at `row` at `now`."""
    # Nearly always there is nothing of these, and a look costs less than three generators.
    emergencies, pins, words = state.emergencies, state.pins, state.released
    return View(
        row=row,
        now=now,
        hosts=state.hosts,
        rollup=state.rollup,
        forecast=state.forecast,
        last=state.last,
        first=state.first,
        emergencies=tuple(e for e in emergencies.values() if e.phase != "cleared") if emergencies else (),
        pins=tuple(pin for pin in pins.values() if now < pin.expires_at) if pins else (),
        released=_released(state, row) if words else {},
        resumed_at=_resumed_at(state, row) if words else 0,
        blast_reset_at=state.blast_reset_at,
        standing=standing,
    )


def _resumed_at(state: ViewState, row: Row) -> Instant:
    words = state.released.values()
    return max(
        (word.at for word in words if isinstance(word, Resume) and covers(word.subject, row.path)), default=0
    )


def _released(state: ViewState, row: Row) -> dict[str, ReleaseAll]:
    """The hosts under a release: the newest word that covers a host stands."""
    out = {}
    for host in row.hosts:
        words = [word for subject, word in state.released.items() if covers(subject, host.path)]
        newest = max(words, key=lambda word: word.at, default=None)
        if isinstance(newest, ReleaseAll):
            out[host.path] = newest
    return out


def fold(state: ViewState, events: Iterable[Event]) -> ViewState:
    """The state after `events`, in the order given; events of other types pass by."""
    events = tuple(events)
    for event in events:
        if type(event) is PowerRollup and state.last is not None and event.at < state.last.at:
            _set_back(state, state.last.at - event.at)
    for event in events:
        take = _TAKES.get(type(event))
        if take is not None:
            take(state, event)
    return state


_INSTANT_NOTES = ("known_at", "calm_since", "eased_at", "outage_at", "blast_open_at")


def _set_back(state: ViewState, by: Span) -> None:
    """Move what is remembered back by `by`. When a pin ends is left to the wall clock that a person read."""
    replace = msgspec.structs.replace
    for host in state.hosts.values():
        for control in (host.lock, host.brake):
            control.newest_at = _earlier(control.newest_at, by)
            if control.asked is not None:
                control.asked = _moved(control.asked, by)
            if control.in_force is not None:
                control.in_force = _moved(control.in_force, by)
        host.stepped_at, host.returned_at = _earlier(host.stepped_at, by), _earlier(host.returned_at, by)
    assert state.last is not None
    notes = {
        key: str(_earlier(int(note), by)) if key in _INSTANT_NOTES else note
        for key, note in state.last.notes.items()
    }
    last = state.last
    state.last = replace(last, at=last.at - by, since=_earlier(last.since, by), notes=notes)
    state.emergencies = {key: replace(word, at=word.at - by) for key, word in state.emergencies.items()}
    state.pins = {key: replace(pin, at=pin.at - by) for key, pin in state.pins.items()}
    state.released = {key: replace(word, at=word.at - by) for key, word in state.released.items()}
    state.unpinned_at = {key: _earlier(at, by) for key, at in state.unpinned_at.items()}
    state.blast_reset_at = _earlier(state.blast_reset_at, by)


def _moved(asked: Asked, by: Span) -> Asked:
    return msgspec.structs.replace(asked, at=asked.at - by, expires_at=asked.expires_at - by)


def _earlier(at: Instant, by: Span) -> Instant:
    """`at` moved back; zero is never, and stays so."""
    return at - by if at else 0


def _rollup(state: ViewState, event: PowerRollup) -> None:
    state.rollup = event


def _forecast(state: ViewState, event: PeakForecast) -> None:
    state.forecast = event


def _decision(state: ViewState, event: Decision) -> None:
    state.last = event
    state.first = state.first or event


def _emergency(state: ViewState, event: Emergency) -> None:
    known = state.emergencies.get(event.episode)
    if known is None or event.at >= known.at:
        state.emergencies[event.episode] = event
    if event.phase == "cleared":
        state.emergencies = {
            episode: word
            for episode, word in state.emergencies.items()
            if word.phase != "cleared" or word.at > event.at - CLEARED_KEPT_MS
        }


def _operator(state: ViewState, event: Event) -> None:
    if isinstance(event, Pin):
        known = state.pins.get(event.subject)
        if (known is None or event.at >= known.at) and event.at >= state.unpinned_at.get(event.subject, 0):
            state.pins[event.subject] = event
    elif isinstance(event, Unpin):
        pin = state.pins.get(event.subject)
        if pin is not None and pin.at <= event.at:
            del state.pins[event.subject]
        state.unpinned_at[event.subject] = max(event.at, state.unpinned_at.get(event.subject, 0))
    elif isinstance(event, ReleaseAll | Resume):
        word = state.released.get(event.subject)
        if word is None or event.at >= word.at:
            state.released[event.subject] = event
            if isinstance(event, ReleaseAll):
                for path, host in state.hosts.items():
                    if covers(event.subject, path):
                        _given_back(host)
    elif isinstance(event, ResetBlastRadius):
        state.blast_reset_at = max(state.blast_reset_at, event.at)


def _given_back(host: HostControl) -> None:
    for control in (host.lock, host.brake):
        control.in_force = control.asked = None
    host.lapsed, host.unanswered = True, 0


def _command(state: ViewState, command: LockClocks | Brake) -> None:
    host = state.hosts.get(command.subject)
    if host is None:
        host = state.hosts[command.subject] = HostControl()
    control = host.brake if isinstance(command, Brake) else host.lock
    if command.at < control.newest_at or _is(control.asked, command.id) or _is(control.in_force, command.id):
        return  # repeated or late
    control.newest_at = command.at
    ceiling, before, held = host.ceiling(command.at), control.asked, control.in_force
    again = before is not None and before.max_mhz == command.max_mhz
    lives = held is not None and held.lives(command.at)
    control.asked = Asked(
        id=command.id,
        at=command.at,
        max_mhz=command.max_mhz,
        path=command.path,
        expires_at=command.lease.expires_at,
        on_expiry=command.lease.on_expiry,
        attempt=before.attempt + 1 if before is not None and again else 1,
        renews=held is not None and lives and held.max_mhz == command.max_mhz and (before is None or again),
    )
    if isinstance(command, LockClocks):
        if before is not None:
            host.unanswered = max(host.unanswered, before.attempt)
        if host.braked or ceiling is None:
            host.returned_at = command.at
        elif command.max_mhz > ceiling:
            host.stepped_at = command.at


def _outcome(state: ViewState, outcome: Outcome) -> None:
    host = state.hosts.get(outcome.subject)
    if host is None or isinstance(outcome, Accepted):
        return
    for control in (host.lock, host.brake):
        asked = control.asked
        if asked is not None and asked.id == outcome.command:
            if isinstance(outcome, Verified | Renewed):
                control.in_force, control.asked = asked, None
                host.lapsed, host.unanswered = False, 0
                if control is host.lock:
                    _let_go(host.brake, asked)
            elif isinstance(outcome, Failed | Refused):
                word = outcome.detail or type(outcome).__name__.lower()
                control.asked = msgspec.structs.replace(asked, failed=word)
            elif isinstance(outcome, Superseded):
                control.asked = None
        if isinstance(outcome, Released) or (isinstance(outcome, Lapsed) and not _holds(control, outcome)):
            _ended(host, control, outcome.command)


def _holds(control: Control, lapsed: Lapsed) -> bool:
    words = (control.asked, control.in_force)
    return any(word is not None and word.id == lapsed.command and word.on_expiry == "hold" for word in words)


def _ended(host: HostControl, control: Control, command: str) -> None:
    """A setting is no more. One that was asked had taken the earlier one's place; one that was in force
    says nothing of what was asked since."""
    if _is(control.asked, command):
        control.asked = control.in_force = None
    elif _is(control.in_force, command):
        control.in_force = None
    else:
        return
    host.lapsed = host.lapsed or control is host.lock


def _let_go(brake: Control, lock: Asked) -> None:
    """A lock that was asked after the brake, and verified, is the brake's release."""
    if brake.in_force is not None and brake.in_force.at < lock.at:
        brake.in_force = None
    if brake.asked is not None and brake.asked.at < lock.at:
        brake.asked = None


def _is(asked: Asked | None, command: str) -> bool:
    return asked is not None and asked.id == command


_TAKES: Mapping[type[Event], Callable[[ViewState, Any], None]] = {
    PowerRollup: _rollup,
    PeakForecast: _forecast,
    Decision: _decision,
    Emergency: _emergency,
    **dict.fromkeys((LockClocks, Brake), _command),
    **dict.fromkeys(Outcome.__subclasses__(), _outcome),
    **dict.fromkeys((Pin, Unpin, ReleaseAll, Resume, ResetBlastRadius), _operator),
}
"""What `fold` does with an event, by its type."""
