"""A command's life on its host, and what the host falls back to when nobody renews it.

    asked ──► refused                              not attempted, and the text says why
      │
      ▼
    applying ──► failed ──► verified               not read back by its deadline; while its lease counts it
      │  ▲                                         is tried again, and may come in late
      │  └───────── lost ───────┐                  a driver reload forgot it: written again
      ▼                         │
    verified ──► renewed ──► verified              a later command asked for the same: its lease counts
      │
      ├──► superseded                              a newer command took its place
      ▼
    releasing ──► lapsed                           the lease ended: the fail direction was read back
              └─► released                         on request, or a brake given up for a newer lock

A host has one setting at a time: that of one command or, without a live lease, its safe share. The agent
needs neither a network nor a controller to take it there: `step` does, on the agent's own timer. What the
device must be given back is saved before the device is first written, and only ever read from a device
that has nothing of ours on it: a killed agent never takes its own cap for what it found.

A lock that was in force stands on the device until a tighter one that took its place lands. Its lease is
counted on until then: where that ends, and the tighter one cannot be written or was not read back by its
deadline, the host goes to its safe share. No string of locks that never land keeps a host running as the
looser one let it.

While the host's own reflex holds it (`actuators.reflex`), the device is at the reflex's share wherever that
is the tighter one. What would loosen is refused; what tightens or renews is taken, and is in force as it asks
to be, at or below; and what is commanded then counts again once the reflex lets go.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from actuators.admission import engaged, loosens, refusal, same_setting
from actuators.base import Actuator, ActuatorError, Found, NotAttempted, Readback
from actuators.reflex import Hold
from actuators.state_file import Intent, Kept, StateFile, Unreadable
from schemas.commands import Brake, Command, FailDirection, GpuCommand, Lease, LimitPower, LockClocks, Path
from schemas.instants import SECOND, Instant, Span, to_text
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
from schemas.shares import SafeShare
from schemas.topology import Host
from schemas.units import Reading

DEADLINES: Mapping[Path, Span] = {"in_band": 3 * SECOND, "out_of_band": 50 * SECOND, "brake": 8 * SECOND}
"""From write to read-back, by path (our choice): what POLCA gives the path (40 s out of band, 5 s for the
brake) and a quarter or more of it as slack."""

LANDED: Mapping[Path, Span] = {"in_band": 0, "out_of_band": 40 * SECOND, "brake": 5 * SECOND}
"""When a write is in force at the latest, by path: the driver's call returns when it is; 40 s and 5 s are
POLCA's (published). A read-back that GPUs at rest would give anyway counts from then on."""

CHECK_MS: Span = 10 * SECOND
"""How often a setting in force is read again: a driver reload forgets it without a word (our choice)."""

WATCH_MS: Span = SECOND
"""How often it is read again while the host's reflex holds it (our choice): a write that was under way
when it began may land on top of it."""

GLANCE_MS: Span = 5
GLANCE_MAX_MS: Span = 250
"""A write is first read back at once, then after the first, doubling up to the second (our choice): most
drivers obey within milliseconds, and a slow path is asked four times a second."""

RETRY_MS: Span = 250
RETRY_MAX_MS: Span = 2 * SECOND
"""A write that failed is tried again after the first, doubling up to the second (our choice)."""

KEEPERS: tuple[Path, ...] = ("in_band", "out_of_band", "brake")
"""Which path writes the safe share and gives back what was found: the first of these that is offered,
and for a share that it cannot write the next."""

_NEVER: Instant = 1 << 62
_WANTED: Mapping[Intent, str] = {
    "obey": "the command",
    "safe_share": "the safe share",
    "restore": "what was found",
    "release": "what was found",
}


@dataclass(slots=True)
class _Effort:
    """One setting being brought about, from the first write to the read-back. Times are elapsed ones."""

    note: str  # why, for the outcome's text
    deadline: Span
    write_at: Span
    glance: Span = GLANCE_MS
    landed_at: Span = 0  # from when a read-back that shows nothing counts
    backoff: Span = RETRY_MS
    written: bool = False
    accepted: bool = False  # said to be written
    told: bool = False  # said to be failing
    trouble: str = ""  # why it is not in force
    power_w: Reading = None  # of the host's GPUs before the first write


class HostAgent:
    """Keeps one host at the setting of the command whose lease is alive, else at its safe share.

    `actuators` has one entry per path that the host offers; see `KEEPERS`. `state_file` None keeps
    nothing over a restart (a simulated host). `deadlines` are from write to read-back, by path.

    `now` is the wall clock. `monotonic_ms` is a clock that nobody sets; without one, time is taken to
    pass when `now` moves on, and to stand still when it jumps back. A lease ends by whichever clock
    says so first, counted from its receipt, so that setting the clock back keeps neither a cap nor a
    permission alive. Give `monotonic_ms` always or never.

    Calls must not overlap; `actuators.leases` sees to that. Device calls are made inline;
    `actuators.deadline` bounds them on real hosts. An outcome whose `command` is empty speaks of the
    host alone: a start without a lease, or an alarm.
    """

    def __init__(
        self,
        host: Host,
        actuators: Mapping[Path, Actuator],
        share: SafeShare,
        state_file: pathlib.Path | None = None,
        *,
        source: str,
        deadlines: Mapping[Path, Span] = DEADLINES,
        reflex: bool = False,
    ) -> None:
        """`reflex`: whether a reflex watches the host. What one held before a restart is held on then; else
        nobody would ever end it."""
        if not actuators:
            raise ValueError(f"{host.path} offers no path: an agent needs one to keep its host safe")
        self.host = host
        self.source = source
        self._actuators = actuators
        self._share = share
        self._file = StateFile(state_file) if state_file else None
        self._deadlines = deadlines
        self._has_reflex = reflex
        self._keepers = tuple(path for path in KEEPERS if path in actuators)
        self._keeper = self._keepers[0]
        self._kept: Kept | None = None
        self._blind = False  # the first look at the device failed, and this was said
        self._unsaved = ""  # why the state file is behind
        self._effort: _Effort | None = None
        self._following: tuple[Path, ...] = ()  # paths that still hold what an earlier command left there
        self._elapsed: Span = 0
        self._tick: Instant | None = None
        self._ends: Span = _NEVER  # the live lease, by elapsed time
        self._expires: Instant = _NEVER  # and by the wall clock
        self._stands = (_NEVER, 0)  # until when what stands on the devices is leased, and at which clock
        self._stood = (_NEVER, 0)  # the same of what stood before what was last seen in force
        self._lands: Span = 0  # when the last write must have reached the device
        self._earlier: set[int] = set()  # clocks at which an earlier lock may still hold a GPU, MHz
        self._landed: Span = 0  # when all that was written is in force at the latest
        self._apart: Span = 0  # from when a reading is of what is wanted, and not of what was before
        self._answers = False  # the last reading came back
        self._due: Span = 0  # when there is something to do if no command comes

    # ---- what the runtime calls ----

    @property
    def kept(self) -> Kept | None:
        """What the agent wants of its host and knows of it, to be read; None before it could look."""
        return self._kept

    @property
    def pending(self) -> bool:
        """Whether it has yet to see what it wrote."""
        return self._effort is not None

    @property
    def wait_ms(self) -> Span:
        """How long after the last call there is next something to do, if no command comes."""
        return max(0, self._due - self._elapsed)

    def start(self, now: Instant, monotonic_ms: int | None = None) -> list[Outcome]:
        """Take the host up: go on with a command whose lease is alive, else take the host to where its
        lease left it, else to its safe share."""
        self._pass_time(now, monotonic_ms)
        out: list[Outcome] = []
        kept: Kept | None = None
        if self._file is not None:
            try:
                kept = self._file.load(self.host.path)
            except Unreadable as alarm:
                detail = f"{alarm}; the devices' default limits stand for what was found"
                self._say(out, Failed, now, None, detail)
                kept = Kept(host=self.host.path, found=Found(), holding=tuple(self._actuators))
        if kept is None:
            self._take_up(now, out)
        else:
            self._kept = kept
            if kept.reflex is not None and not self._has_reflex:
                kept.reflex, kept.settled = None, False
            self._resume(kept, now, out)
        return self._done(out)

    def step(
        self, commands: Sequence[Command], now: Instant, monotonic_ms: int | None = None
    ) -> list[Outcome]:
        """Take new commands, see what became of those written, end a lease that ran out. Never waits."""
        self._pass_time(now, monotonic_ms)
        if not commands and self._elapsed < self._due and now < self._expires:
            return []
        out: list[Outcome] = []
        if self._kept is None:
            self._take_up(now, out)
        for command in sorted(commands, key=_brakes_first):
            self._take(command, now, out)
        if self._kept is not None:
            self._pursue(self._kept, now, out)
        return self._done(out)

    def release_all(self, now: Instant, monotonic_ms: int | None = None) -> list[Outcome]:
        """Give back what was found, whatever is in force, and leave it there until a newer command."""
        self._pass_time(now, monotonic_ms)
        out: list[Outcome] = []
        if self._kept is not None:
            self._turn_to("release", self._kept, now, out, "released on request")
        return self._done(out)

    def stand_down(self, now: Instant, monotonic_ms: int | None = None) -> list[Outcome]:
        """End the lease now, as its fail direction says: for an agent about to stop, after which nobody
        would end it."""
        self._pass_time(now, monotonic_ms)
        out: list[Outcome] = []
        if self._kept is not None and self._ends != _NEVER:
            self._lapse(self._kept, now, out, "the agent stands down")
        return self._done(out)

    def fall_back(self, now: Instant, monotonic_ms: int | None = None) -> list[Outcome]:
        """Take the safe share now, whatever is in force, a brake too, and stay there until a newer
        command: what a person's release means in a row that cannot carry every host uncapped."""
        self._pass_time(now, monotonic_ms)
        out: list[Outcome] = []
        if self._kept is not None:
            self._turn_to("safe_share", self._kept, now, out, "released on request")
        return self._done(out)

    def reflex(self, hold: Hold | None, now: Instant, monotonic_ms: int | None = None) -> list[Outcome]:
        """Hold the host at what its reflex says, from now on and never looser than it was held before; None:
        the reflex lets go, and what is commanded counts again."""
        self._pass_time(now, monotonic_ms)
        out: list[Outcome] = []
        if self._kept is None and hold is not None:
            self._take_up(now, out)
        kept = self._kept
        if kept is None and hold is not None:
            kept = self._kept = self._unknown()
        if kept is not None and kept.reflex != hold:
            self._brace(kept, hold, now, out)
        return self._done(out)

    def close(self) -> None:
        """Let go of the devices; changes no setting (see `stand_down`)."""
        for actuator in self._actuators.values():
            actuator.close()

    # ---- taking a host up ----

    def _take_up(self, now: Instant, out: list[Outcome]) -> None:
        """A host that nothing is known of: see what is there, then take it to its safe share."""
        found: Found | None = None
        troubles: list[str] = []
        for path in self._keepers:
            try:
                found = self._actuators[path].inspect()
                break
            except ActuatorError as error:
                troubles.append(str(error))
        if troubles and not self._blind:
            detail = f"the settings in force cannot be read: {'; '.join(troubles)}"
            self._say(out, Failed, now, None, detail)
        self._blind = found is None
        if found is None:
            return
        self._kept = Kept(host=self.host.path, found=found)
        self._turn_to("safe_share", self._kept, now, out, "no lease at start")

    def _resume(self, kept: Kept, now: Instant, out: list[Outcome]) -> None:
        """Go on where the state file says that the last agent was."""
        kept.holding = tuple(path for path in kept.holding if path in self._actuators)
        # What the last agent wrote may still be under way.
        self._landed = self._elapsed + max((LANDED[path] for path in kept.holding), default=0)
        if any(held and held.path not in self._actuators for held in (kept.command, kept.brake)):
            kept.brake = None
            self._turn_to("safe_share", kept, now, out, "the path of the last command is no longer offered")
        elif kept.intent == "obey" and kept.command is not None:
            lease = kept.command.lease
            # A clock behind the one that wrote the file was set back: it cannot show a lease alive.
            alive = kept.saved_at <= now < lease.expires_at
            if alive or lease.on_expiry == "hold":
                kept.settled = False
                self._leave(self._share.max_mhz, kept)  # for all that is known
                self._grant(lease if alive else None, now)
                how = "taken up again" if alive else "held, its lease over, and taken up again"
                self._begin(kept, now, out, f"{how} after a restart")
            else:
                self._lapse(kept, now, out, f"the lease ended at {to_text(lease.expires_at)}")
        elif kept.intent == "restore" and _bare(kept):
            self._look_afresh(kept)
        elif kept.intent == "restore":
            self._turn_to("restore", kept, now, out, "the lease ended before a restart")
        else:  # a host given back on request is to be kept again: somebody has started an agent for it
            if _bare(kept):
                self._look_afresh(kept)
            self._turn_to("safe_share", kept, now, out, "no lease at start")

    def _look_afresh(self, kept: Kept) -> None:
        """What is on a device that has nothing of ours on it is what was found there. A GPU that does not
        answer now is given back what was found on it before."""
        try:
            seen = self._actuators[self._keeper].inspect()
        except ActuatorError:
            return
        limits = dict(zip(kept.found.uuids, kept.found.limit_w, strict=True))
        limits.update(zip(seen.uuids, seen.limit_w, strict=True))
        kept.found = Found(uuids=tuple(limits), limit_w=tuple(limits.values()), lock_mhz=seen.lock_mhz)

    # ---- taking a command ----

    def _take(self, command: Command, now: Instant, out: list[Outcome]) -> None:
        kept = self._kept or self._unread(command)
        if kept is None:
            self._say(out, Refused, now, command, "what would have to be given back cannot be read")
            return
        if not kept.remember(command.id):
            return
        why_not = refusal(command, kept, self._actuators, now, self._share)
        if why_not:
            fences = {"fenced_by": kept.epoch} if command.lease.epoch < kept.epoch else {}
            if command.subject == kept.host and command.lease.epoch > kept.epoch:
                kept.epoch = command.lease.epoch  # it is refused, and still shows who commands now
                self._save(kept, now)
            self._say(out, Refused, now, command, why_not, fences)
            return
        assert isinstance(command, GpuCommand)
        self._kept = kept
        kept.epoch = max(kept.epoch, command.lease.epoch)
        old = kept.command if kept.intent == "obey" else None
        if old is not None and same_setting(old, command) and (kept.settled or self._effort):
            self._renew(kept, old, command, now, out)
        else:
            self._obey(kept, command, now, out)

    def _unread(self, command: Command) -> Kept | None:
        """What to go on from with `command` where no path can be read: a brake, or a lock by another path
        than the keeper's that tightens, does not wait, and the devices' default limits stand for what was
        found. None for anything else."""
        kept = self._unknown()
        if isinstance(command, Brake):
            return kept
        if not isinstance(command, LockClocks) or command.path == self._keeper:
            return None
        return None if loosens(command, kept, self._share) else kept

    def _unknown(self) -> Kept:
        """A host of which nothing can be read: anything may be on it, and its found settings are the devices'
        defaults."""
        return Kept(host=self.host.path, found=Found(), holding=tuple(self._actuators))

    def _renew(
        self, kept: Kept, old: GpuCommand, command: GpuCommand, now: Instant, out: list[Outcome]
    ) -> None:
        """What is asked for is in force or on its way: the lease changes, and no device is written."""
        kept.command = command
        kept.tighter = command.id if kept.tighter == old.id else kept.tighter
        self._grant(command.lease, now)
        self._save(kept, now)
        if _covered(kept):
            self._say(out, Superseded, now, old, f"by {command.id}, which asks for the same")
            self._say(out, Accepted, now, command, _held(kept, ""))
        elif kept.settled:
            self._say(out, Renewed, now, command, _held(kept, f"in force as {old.id} asked"))
        elif self._effort is not None:
            self._say(out, Superseded, now, old, f"by {command.id}, which asks for the same")
            self._effort.accepted = self._effort.told = False  # its own words: written, and failed
            self._effort.note = f"already asked for by {old.id}"

    def _obey(self, kept: Kept, command: GpuCommand, now: Instant, out: list[Outcome]) -> None:
        before = msgspec.structs.replace(kept)
        afresh = _bare(kept)
        if afresh and not isinstance(command, Brake):
            self._look_afresh(kept)
        kept.brake = None if isinstance(command, Brake) else engaged(kept)
        kept.command, kept.intent, kept.settled = command, "obey", False
        kept.tighter = command.id if _below(command, kept.reflex) else ""
        kept.holding = _with(kept.holding, command.path)
        if not self._save(kept, now) and loosens(command, before, self._share):
            _revert(kept, before)
            self._say(out, Refused, now, command, "it would loosen, and a killed agent could not undo it")
            return
        way = self._path(kept)
        effort = self._new_effort(way, _held(kept, f"written by {way}"))
        if self._answers and not LANDED[command.path]:  # what is slower is read after the write, see _seen
            with contextlib.suppress(ActuatorError):  # its effect will be unknown
                effort.power_w = self._actuators[command.path].verify(command).power_w
        self._leave(self._ceiling(before), kept)
        try:  # a brake before anything is read: a device that hangs in a read takes no write after it
            self._write(kept, effort)
        except NotAttempted as error:
            _revert(kept, before)
            self._save(kept, now)
            self._say(out, Refused, now, command, str(error))
            return
        self._say_replaced(before, command, now, out)
        self._outstay(before, command)
        self._grant(command.lease, now)
        self._effort, self._following = effort, ()
        if afresh and isinstance(command, Brake):  # which changes nothing of what is looked at
            self._look_afresh(kept)
            self._save(kept, now)

    def _say_replaced(self, before: Kept, command: GpuCommand, now: Instant, out: list[Outcome]) -> None:
        """What became of the commands before `command`. A brake under a newer lock is released later."""
        for old in (before.command if before.intent == "obey" else None, before.brake):
            if old is not None and (isinstance(command, Brake) or not isinstance(old, Brake)):
                self._say(out, Superseded, now, old, f"by {command.id}")
        if before.intent == "obey":
            return
        detail = f"{command.id} came before {_WANTED[before.intent]} was read back"
        if before.command is not None and not before.settled:
            self._say(out, Lapsed, now, before.command, detail)
        if before.brake is not None and not isinstance(command, Brake):
            self._say(out, Released, now, before.brake, f"brake given up: {detail}")

    # ---- leases ----

    def _grant(self, lease: Lease | None, now: Instant) -> None:
        """Count the lease from its receipt, never longer than it was made for. None: for good."""
        if lease is None:
            self._ends = self._expires = _NEVER
            self._stands = self._stood = (_NEVER, 0)
        else:
            left, self._expires = lease.expires_at - lease.issued_at, _NEVER
            if now < lease.expires_at:  # else it is one that is taken though this clock is ahead
                left, self._expires = min(lease.expires_at - now, left), lease.expires_at
            self._ends = self._elapsed + left

    def _outstay(self, before: Kept, command: GpuCommand) -> None:
        """A lock that was in force stands on the devices until a tighter one lands, and its lease goes on
        being counted: a lock that never lands gives no more of the looser one."""
        until, mhz = self._stands
        if before.settled:
            until, mhz = _NEVER, 0
            held = before.command if before.intent == "obey" else None
            if isinstance(held, LockClocks) and held.lease.on_expiry == "safe_share":
                until, mhz = self._ends, held.max_mhz
        tighter = isinstance(command, LockClocks) and command.max_mhz < mhz
        self._stands = (until, mhz) if tighter else (_NEVER, 0)
        self._stood = (_NEVER, 0)

    def _lapse(
        self, kept: Kept, now: Instant, out: list[Outcome], why: str, direction: FailDirection | None = None
    ) -> None:
        """The command is over: do as its lease says, or as `direction` does where one is given."""
        command = kept.command
        assert command is not None
        direction = direction or command.lease.on_expiry
        if kept.brake is not None and not (kept.settled and kept.reflex is None):
            # The newer lock was never seen in force, and so has not released the brake.
            self._say(out, Lapsed, now, command, f"{why}; brake {kept.brake.id} is held")
            kept.command, kept.brake = kept.brake, None
            self._grant(None, now)
            self._save(kept, now)
            self._begin(kept, now, out, "engaged again")
        elif direction == "hold":
            self._grant(None, now)
            self._say(out, Lapsed, now, command, f"{why}; held until a newer command")
        else:
            self._turn_to(direction, kept, now, out, why)

    def _turn_to(
        self,
        intent: Literal["safe_share", "restore", "release"],
        kept: Kept,
        now: Instant,
        out: list[Outcome],
        why: str,
    ) -> None:
        """Leave the command for the safe share, or for what was found."""
        before = self._ceiling(kept)
        kept.intent, kept.settled = intent, False
        self._keeper = self._keepers[0]
        self._leave(before, kept)
        kept.holding = _with(kept.holding, self._keeper)
        self._following = ()
        self._grant(None, now)
        self._save(kept, now)
        self._begin(kept, now, out, why)

    # ---- the host's reflex ----

    def _brace(self, kept: Kept, hold: Hold | None, now: Instant, out: list[Outcome]) -> None:
        if hold is not None and kept.reflex is not None:
            hold = msgspec.structs.replace(
                hold,
                max_mhz=min(hold.max_mhz, kept.reflex.max_mhz),
                limit_w=min(hold.limit_w, kept.reflex.limit_w),
            )
        if hold is not None and _bare(kept):
            self._look_afresh(kept)
        before, was, wanted = self._ceiling(kept), kept.reflex, kept.wants
        kept.reflex, kept.tighter = hold, ""
        if wanted == kept.wants == "obey" and hold is None:  # the tighter command is what stood
            self._save(kept, now)
            return
        kept.settled = False
        self._keeper = self._keepers[0]
        kept.holding = _with(kept.holding, self._path(kept))
        self._following = ()
        self._leave(before, kept)
        self._save(kept, now)
        self._begin(kept, now, out, str(hold) if hold is not None else f"the reflex let go, {_hold_of(was)}")

    # ---- bringing a setting about ----

    def _new_effort(self, path: Path, note: str) -> _Effort:
        return _Effort(note, deadline=self._elapsed + self._deadlines[path], write_at=self._elapsed)

    def _path(self, kept: Kept) -> Path:
        """By which path what is wanted is written."""
        return kept.command.path if kept.wants == "obey" and kept.command else self._keeper

    def _begin(self, kept: Kept, now: Instant, out: list[Outcome], note: str) -> None:
        self._effort = self._new_effort(self._path(kept), note)
        self._pursue(kept, now, out)

    def _pursue(self, kept: Kept, now: Instant, out: list[Outcome]) -> None:
        """Do what is due: end the lease, write, read back, give up or go on, look after."""
        if self._ends <= self._elapsed or self._expires <= now:
            assert kept.command is not None
            self._lapse(kept, now, out, f"the lease ended at {to_text(kept.command.lease.expires_at)}")
            return
        effort = self._effort
        if self._stands[0] <= self._elapsed and kept.intent == "obey" and not kept.settled:
            why = "it has not landed, and the lease of the looser lock before it ended"
            self._lapse(kept, now, out, why, "safe_share")
            return
        if effort is None:
            self._look_after(kept, now, out)
            return
        refused = False
        if self._elapsed >= effort.write_at:
            try:
                self._write(kept, effort)
            except NotAttempted as error:
                refused = True
                self._postpone(effort, str(error))
        if effort.written and self._seen(kept, effort, now, out):
            return
        self._give_up(kept, effort, refused, now, out)

    def _write(self, kept: Kept, effort: _Effort) -> None:
        """Write what is wanted. Raises NotAttempted; any other failure is noted, and tried again."""
        path = self._path(kept)
        try:
            if kept.wants in ("restore", "release"):
                self._release(kept)
            else:
                self._put(kept, path)
        except NotAttempted:
            raise
        except ActuatorError as error:
            self._postpone(effort, str(error))
            if kept.wants == "safe_share":
                self._keeper = self._keepers[(self._keepers.index(path) + 1) % len(self._keepers)]
                kept.holding = _with(kept.holding, self._keeper)
            if error.lasting and kept.wants == "obey":
                effort.deadline = self._elapsed
        else:
            effort.written, effort.trouble, effort.glance = True, "", GLANCE_MS
            # Not written again before it must have been seen: a slow path has it in hand.
            self._lands = self._elapsed + self._deadlines[path]
            effort.landed_at = self._elapsed + LANDED[path]
            effort.write_at = _NEVER if kept.wants == "obey" else self._lands

    def _share_in(self, kept: Kept) -> SafeShare:
        """The share that is wanted where one is: the safe one or, while the reflex holds, its own, and no
        looser than what is commanded."""
        if kept.reflex is None:
            return self._share
        limit_w, max_mhz = kept.reflex.limit_w, kept.reflex.max_mhz
        if kept.intent == "obey" and isinstance(kept.command, LimitPower):
            limit_w = min(limit_w, kept.command.limit_w)
        elif kept.intent == "obey" and isinstance(kept.command, LockClocks | Brake):
            max_mhz = min(max_mhz, kept.command.max_mhz)
        most_w = self.host.wall_w(self.host.gpu_count * limit_w)
        return SafeShare(host=self.host.path, limit_w=limit_w, max_mhz=max_mhz, host_w=most_w)

    def _put(self, kept: Kept, path: Path) -> None:
        """Write the command's setting, or the safe share, by `path`. Raises ActuatorError."""
        self._landed = max(self._landed, self._elapsed + LANDED[path])
        if kept.wants == "safe_share":
            self._actuators[path].fall_back(self._share_in(kept), kept.found)
        elif kept.command is not None:
            self._actuators[path].apply(kept.command, kept.found)

    def _postpone(self, effort: _Effort, trouble: str) -> None:
        effort.written, effort.trouble = False, trouble
        effort.write_at = self._elapsed + effort.backoff
        effort.backoff = min(2 * effort.backoff, RETRY_MAX_MS)

    def _release(self, kept: Kept) -> None:
        """Give back by every path that something of ours stands on, whatever becomes of the others."""
        troubles: list[ActuatorError] = []
        for path in _with(kept.holding, self._keeper):
            self._landed = max(self._landed, self._elapsed + LANDED[path])
            try:
                self._actuators[path].release(kept.found)
            except ActuatorError as error:
                troubles.append(error)
        if len(troubles) == 1:
            raise troubles[0]
        if troubles:
            raise ActuatorError("; ".join(map(str, troubles)))

    def _seen(self, kept: Kept, effort: _Effort, now: Instant, out: list[Outcome]) -> bool:
        """Whether what was written is read back."""
        if kept.intent == "obey" and not effort.accepted:
            effort.accepted = True
            self._say(out, Accepted, now, kept.command, effort.note)
        try:
            seen = self._read_back(kept)
        except ActuatorError as error:
            effort.trouble = str(error)
            return False
        effort.trouble = seen.detail or "not yet seen in force"
        if effort.power_w is None and self._elapsed < effort.landed_at:
            effort.power_w = seen.power_w  # a slow path has not changed it yet
        shown = seen.shown and not self._unseen(kept)
        if not seen.in_force or not (shown or self._elapsed >= effort.landed_at):
            return False
        self._settle(kept, effort, seen, now, out)
        return True

    def _give_up(self, kept: Kept, effort: _Effort, refused: bool, now: Instant, out: list[Outcome]) -> None:
        """Past its deadline a command has failed. The safe share, or what was found, is tried for ever,
        and the first failure is told."""
        late = self._elapsed >= effort.deadline
        detail = effort.trouble
        if kept.wants == "obey":
            if not late and not refused:
                return
            self._effort = None
            if refused and not isinstance(kept.command, Brake):
                # The device was silent when the command was taken; no lease covers what stands on it since.
                self._say(out, Refused, now, kept.command, detail)
                self._lapse(kept, now, out, "it was refused", "safe_share")
                return
        elif late or not effort.written:
            wanted = _WANTED[kept.intent] if kept.reflex is None else "the reflex's share"
            detail = f"{wanted} is not in force and is tried on: {detail}"
        else:
            return
        if not effort.told:
            effort.told = True
            self._say(out, Refused if refused else Failed, now, kept.command, detail)

    def _read_back(self, kept: Kept) -> Readback:
        """Whether what is wanted is in force; what else this tells is noted. Raises ActuatorError."""
        self._answers = False
        seen = self._read(kept)
        self._answers = True
        if seen.lowest_mhz is not None and self._elapsed >= self._apart:
            self._earlier = {mhz for mhz in self._earlier if mhz >= seen.lowest_mhz}
        return seen

    def _read(self, kept: Kept) -> Readback:
        if kept.wants == "obey":
            assert kept.command is not None
            return self._actuators[kept.command.path].verify(kept.command)
        keeper = self._actuators[self._keeper]
        if kept.wants == "safe_share":
            lock_at, limit_to = _as_commands(self._share_in(kept), self.source)
            lock, limit = keeper.verify(lock_at), keeper.verify(limit_to)
            both = lock.in_force if limit.in_force else limit.in_force
            return msgspec.structs.replace(
                lock, in_force=both, detail="; ".join(filter(None, (lock.detail, limit.detail)))
            )
        seen, found = keeper.inspect(), dict(zip(kept.found.uuids, kept.found.limit_w, strict=True))
        wrong = [
            f"{uuid} has a power limit of {limit_w:g} W, and was found with {found[uuid]:g} W"
            for uuid, limit_w in zip(seen.uuids, seen.limit_w, strict=True)
            if limit_w is not None and found.get(uuid) not in (None, limit_w)
        ]
        if len(seen.uuids) < self.host.gpu_count:
            wrong.append(
                f"{self.host.gpu_count - len(seen.uuids)} of {self.host.gpu_count} GPUs do not answer"
            )
        return Readback(in_force=not wrong, observed=None, detail="; ".join(wrong))

    def _settle(self, kept: Kept, effort: _Effort, seen: Readback, now: Instant, out: list[Outcome]) -> None:
        """It was read back: what was asked for is so."""
        kept.settled = True
        if self._stands[0] != _NEVER:
            self._stood, self._stands = self._stands, (_NEVER, 0)
        self._effort = None
        if kept.intent == "obey":
            assert kept.command is not None
            effect_w = None
            if seen.power_w is not None and effort.power_w is not None:
                effect_w = seen.power_w - effort.power_w
            observed = {"observed": seen.observed, "effect_w": effect_w}
            unseen = "not seen: not every GPU ran above the earlier lock" if self._unseen(kept) else ""
            detail = _held(kept, "; ".join(filter(None, (seen.detail, unseen))))
            if _covered(kept):
                self._say(out, Accepted, now, kept.command, detail)
            else:
                self._say(out, Verified, now, kept.command, detail, observed)
            if kept.wants == "obey" and not isinstance(kept.command, Brake):  # held by its own path alone
                self._follow(kept, _without(kept.holding, kept.command.path), now, out)
        elif kept.wants == "safe_share":
            share = self._share_in(kept)
            whose = "safe" if kept.reflex is None else "the reflex's"
            read = f"{whose} share read back, {share.max_mhz} MHz and {share.limit_w:g} W a GPU"
            self._say(out, Lapsed, now, kept.command, f"{effort.note}; {read}")
            if kept.reflex is not None:
                self._save(kept, now)
                return  # the other paths keep what stands there until it lets go
            self._follow(kept, _without(kept.holding, self._keeper), now, out)
        else:
            self._clear(kept)
            kind = Lapsed if kept.intent == "restore" else Released
            self._say(out, kind, now, kept.command, f"{effort.note}; {_as_found(kept.found)}")
            self._release_brake(kept, "with everything else", now, out)
        self._save(kept, now)

    def _follow(self, kept: Kept, paths: tuple[Path, ...], now: Instant, out: list[Outcome]) -> None:
        """Once what is wanted was read back, the other paths give up what an earlier command left there.
        Each takes the same setting: none stays tighter, and none lets go to less, whether or not the
        paths share their registers."""
        self._following = ()
        for path in paths:
            try:
                self._put(kept, path)
            except ActuatorError:
                self._following = (*self._following, path)  # tighter, which is safe; tried again
        if self._following:
            return
        newer = kept.command.id if kept.intent == "obey" and kept.command else _WANTED[kept.intent]
        self._let_go(kept)
        self._release_brake(kept, f"{newer} was read back", now, out)

    def _let_go(self, kept: Kept) -> None:
        """A permission to run uncapped leaves nothing of ours on the device, once that was seen."""
        permits = kept.wants == "obey" and isinstance(kept.command, LockClocks)
        if permits and self._ceiling(kept) >= self.host.sku.max_mhz and not self._unseen(kept):
            self._clear(kept)

    def _clear(self, kept: Kept) -> None:
        """Nothing of ours is on the device once all that was written is in force: on a slow path a cap of
        ours may be under way before what gives it back, and would be read as what was found."""
        if self._elapsed >= self._landed:
            kept.holding = ()

    # ---- a looser setting that a slow path may have lost ----

    def _ceiling(self, kept: Kept) -> int:
        """How fast what is wanted lets the GPUs run, MHz."""
        if kept.wants == "safe_share":
            return self._share_in(kept).max_mhz
        if kept.wants == "obey" and isinstance(kept.command, LockClocks | Brake):
            return kept.command.max_mhz
        return self.host.sku.max_mhz

    def _leave(self, mhz: int, kept: Kept) -> None:
        """A lock at `mhz` gives way to what is wanted now."""
        if mhz < self._ceiling(kept):
            self._earlier.add(mhz)
        self._apart = self._landed

    def _unseen(self, kept: Kept) -> bool:
        """Whether a slow path may have lost what was to loosen an earlier lock: no GPU reads above what
        it is allowed, and so only one above the earlier lock shows that it is gone."""
        if kept.wants != "safe_share" and not (kept.wants == "obey" and isinstance(kept.command, LockClocks)):
            return False
        ceiling = self._ceiling(kept)
        return any(mhz < ceiling for mhz in self._earlier) and any(LANDED[path] for path in kept.holding)

    def _insist(self, kept: Kept, now: Instant) -> None:
        """Write by the slow paths again what was not seen to loosen; never before the last must have
        landed, since this would come after what is commanded meanwhile."""
        if kept.reflex is not None:
            return  # a tighter setting on another path may stay
        if self._unseen(kept):
            for path in kept.holding:
                if LANDED[path]:
                    self._lands = max(self._lands, self._elapsed + self._deadlines[path])
                    with contextlib.suppress(ActuatorError):  # tighter, which is safe; tried again
                        self._put(kept, path)
        elif kept.holding and not self._following:
            self._let_go(kept)
            if not kept.holding:
                self._save(kept, now)

    def _release_brake(self, kept: Kept, why: str, now: Instant, out: list[Outcome]) -> None:
        if kept.brake is not None:
            self._say(out, Released, now, kept.brake, f"brake given up: {why}")
            kept.brake = None

    def _look_after(self, kept: Kept, now: Instant, out: list[Outcome]) -> None:
        """What is in force may be lost, what is late may come after all, what was not saved may be."""
        if self._following:
            self._follow(kept, self._following, now, out)
            if not self._following:
                self._save(kept, now)
        if self._elapsed < self._due:
            return
        if self._unsaved:
            self._save(kept, now)
        if kept.wants in ("restore", "release"):
            if kept.holding:
                self._clear(kept)
                self._save(kept, now)
            return
        try:
            seen = self._read_back(kept)
        except ActuatorError:
            return  # unknown is not lost
        if kept.settled and seen.in_force is False:
            # It was taken for in force at rest perhaps, and never was: then what stood before stands still.
            kept.settled, self._stands = False, self._stood
            self._begin(kept, now, out, f"lost, and written again: {seen.detail}")
        elif kept.settled:
            self._insist(kept, now)
        elif seen.in_force:
            self._settle(kept, self._new_effort(self._path(kept), ""), seen, now, out)
        else:  # it failed, which was told; its lease counts, and so it is tried again
            self._effort = self._new_effort(self._path(kept), "")
            self._effort.accepted = self._effort.told = True
            self._pursue(kept, now, out)

    # ---- time, disk and words ----

    def _pass_time(self, now: Instant, monotonic_ms: int | None) -> None:
        tick = now if monotonic_ms is None else monotonic_ms
        if self._tick is not None and tick > self._tick:
            self._elapsed += tick - self._tick
        self._tick = tick

    def _done(self, out: list[Outcome]) -> list[Outcome]:
        """Say when there is next something to do."""
        if self._effort is not None:
            self._due = self._elapsed + self._effort.glance
            self._effort.glance = min(2 * self._effort.glance, GLANCE_MAX_MS)
        elif self._kept is None or self._following:
            self._due = self._elapsed + RETRY_MAX_MS
        elif self._elapsed >= self._due or out:
            # An idle GPU obeys before a slow path lands: what it does before that is no loss.
            again = CHECK_MS if self._kept.reflex is None else WATCH_MS
            self._due = max(self._elapsed + again, self._lands)
        self._due = min(self._due, self._ends, self._stands[0])
        if self._stood[0] > self._elapsed:
            self._due = min(self._due, self._stood[0])
        return out

    def _save(self, kept: Kept, now: Instant) -> bool:
        """Write ahead. False, with the reason noted, where the disk will not have it."""
        kept.saved_at = now
        if self._file is None:
            return True
        try:
            self._file.save(kept)
        except OSError as error:
            self._unsaved = f"state file {self._file.path} cannot be written ({error.strerror})"
            return False
        self._unsaved = ""
        return True

    def _say(
        self,
        out: list[Outcome],
        kind: type[Outcome],
        now: Instant,
        command: Command | None,
        detail: str,
        observed: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        if self._unsaved:
            detail = f"{detail}; {self._unsaved}: kept in memory only"
        epoch = self._kept.epoch if self._kept else 0
        out.append(
            kind(
                at=now,
                source=self.source,
                subject=self.host.path,
                cause=(command.id,) if command else (),
                command=command.id if command else "",
                epoch=command.lease.epoch if command else epoch,
                detail=detail,
                **observed,
            )
        )


def _brakes_first(command: Command) -> bool:
    return not isinstance(command, Brake)


def _with(paths: tuple[Path, ...], path: Path) -> tuple[Path, ...]:
    return paths if path in paths else (*paths, path)


def _without(paths: tuple[Path, ...], path: Path) -> tuple[Path, ...]:
    return tuple(other for other in paths if other != path)


def _revert(kept: Kept, before: Kept) -> None:
    """Take back what was intended and never written; ids and the epoch stay known."""
    for name in ("found", "intent", "settled", "command", "brake", "holding", "tighter"):
        setattr(kept, name, getattr(before, name))


def _bare(kept: Kept) -> bool:
    """Whether nothing of ours is on the device, nor on its way there: what was found was given back, and was
    seen to be."""
    given_back = kept.settled and kept.intent in ("restore", "release") and kept.reflex is None
    return given_back and not kept.holding


def _covered(kept: Kept) -> bool:
    """Whether a lock that is to release a brake cannot be seen to: the reflex holds the host tighter."""
    return kept.brake is not None and kept.reflex is not None and kept.wants != "obey"


def _below(command: GpuCommand, hold: Hold | None) -> bool:
    """Whether a command asks for a lower clock than the reflex holds the host at."""
    return hold is not None and not isinstance(command, LimitPower) and command.max_mhz < hold.max_mhz


def _held(kept: Kept, detail: str) -> str:
    """`detail`, and that the reflex holds the host tighter, where it does."""
    if kept.reflex is None or kept.wants == "obey":
        return detail
    return "; ".join(filter(None, (detail, str(kept.reflex))))


def _hold_of(hold: Hold | None) -> str:
    return f"which held it since {to_text(hold.since)}" if hold is not None else ""


def _as_commands(share: SafeShare, source: str) -> tuple[LockClocks, LimitPower]:
    """The safe share in the words that an actuator verifies."""
    lease = Lease(epoch=0, issued_at=0, expires_at=0, on_expiry="hold")
    lock = LockClocks(at=0, source=source, subject=share.host, lease=lease, max_mhz=share.max_mhz)
    limit = LimitPower(at=0, source=source, subject=share.host, lease=lease, limit_w=share.limit_w)
    return lock, limit


def _as_found(found: Found) -> str:
    limits = sorted({"its default" if limit is None else f"{limit:g} W" for limit in found.limit_w})
    lock = f"a clock lock of {found.lock_mhz} MHz" if found.lock_mhz else "no clock lock"
    return f"given back as found, power limit {', '.join(limits) or 'its default'} and {lock}"
