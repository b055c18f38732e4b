"""Recording before acting: what waits for the ledger, what may go without it, and the alarm.

A host keeps what a beat says and what it rests on (`keep`), has the ledger take it (`batch`, then
`taken` or `failed`), tells its rows what has changed (`alarms`), and sends what `may_go`: everything,
once the ledger has all that was ever kept; else only commands that loosen nothing.

Without a ledger records wait in memory, in their order, until it takes them again. When too many wait,
the oldest evidence makes room (readings, rollups, forecasts, letters that nobody could read), and only
then the oldest of what was said and done; the alarm's end says what the ledger will never have.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from controllers.reconcile import loosens
from controllers.view import View
from runtime.ledger.selection import Selection
from runtime.row_loop import Beat
from schemas.commands import Command
from schemas.decisions import Decision
from schemas.emergencies import Emergency, Phase
from schemas.envelope import Event
from schemas.instants import Instant
from schemas.operators import Pin, ReleaseAll, ResetBlastRadius, Resume, Unpin
from schemas.outcomes import Outcome, Refused

_LOG = logging.getLogger(__name__)

LEDGER_SOURCE = "runtime/ledger"

WAITING_AT_MOST = 50_000
"""Records kept in memory for a ledger that does not take them: at a kilobyte each, and a handful a second
for a row that renews its leases, some hours (our choice)."""

_SLICE = 1_000  # records a time, when many have waited
_ROOM = WAITING_AT_MOST // 10
_PROOF = (Outcome, Command, Decision, Emergency, Pin, Unpin, ResetBlastRadius, ReleaseAll, Resume)
"""What was said and done. The rest is evidence for it."""


class WriteAhead:
    """The records of one host, or of one row, on their way to a ledger. Does no I/O; one batch is under way
    at a time. `waiting` is what the ledger has not taken yet, in order; `dropped` counts what made room, by
    type, since the last alarm began; `trouble` says why the ledger does not take records, empty when it
    does."""

    def __init__(self) -> None:
        self.waiting: list[Event] = []
        self.dropped: Counter[str] = Counter()
        self.trouble = ""
        self._selection = Selection()
        self._alarmed: dict[str, str] = {}  # row → episode

    # -- records ----------------------------------------------------------------------------------

    def keep(self, beat: Beat) -> None:
        """A beat's records wait for the ledger from now on. Call it for each beat of a row."""
        self.keep_also(self._selection.of(beat))

    def pass_by(self, beat: Beat) -> None:
        """A beat that another host has recorded: the row's next one is told from it."""
        self._selection.of(beat)

    def keep_also(self, events: Iterable[Event]) -> None:
        """Records that are of no beat, such as dead letters."""
        self.waiting.extend(events)
        if len(self.waiting) > WAITING_AT_MOST:
            self._make_room()

    def batch(self) -> Sequence[Event]:
        """The next records for the ledger, empty when none wait. They wait until they are `taken`."""
        return self.waiting[:_SLICE]

    def taken(self, batch: Sequence[Event]) -> None:
        """The ledger has this batch."""
        del self.waiting[: len(batch)]
        if self.trouble and not self.waiting:
            _LOG.warning("the ledger takes records again, and has all that waited")
            self.trouble = ""

    def failed(self, why: str) -> None:
        """The ledger did not take the batch, or not in time; `why` is for people."""
        if not self.trouble:
            _LOG.error("%d records wait: %s", len(self.waiting), why)
        self.trouble = why

    # -- rows -------------------------------------------------------------------------------------

    def adopt(self, seen: View) -> None:
        """A row that another host beat before: an alarm which that one raised is this one's to clear."""
        for word in seen.emergencies:
            if word.kind == "ledger_loss" and word.source == LEDGER_SOURCE:
                self._alarmed[seen.row.path] = word.episode

    def alarms(self, rows: Iterable[str], now: Instant) -> list[Emergency]:
        """What these rows are to be told: that the ledger does not take records, or that it does again,
        each once."""
        said = []
        for row in rows:
            if self.trouble and row not in self._alarmed:
                alarm = _alarm(row, now, "raised", self.trouble, "")
                self._alarmed[row] = alarm.episode
                said.append(alarm)
            elif not self.trouble and row in self._alarmed:
                said.append(_alarm(row, now, "cleared", self._again(), self._alarmed.pop(row)))
        if not self.trouble and not self._alarmed:
            self.dropped.clear()
        return said

    def may_go(self, beat: Beat, seen: View) -> tuple[Sequence[Command], Sequence[Refused]]:
        """The beat's commands that may be acted on, and for each that is withheld the word that the row
        is told. `seen` is the row after the beat."""
        if not self.waiting:
            return beat.commands, ()
        withheld = [command for command in beat.commands if loosens(command, seen)]
        words = [
            Refused(
                at=beat.tick.at,
                source=LEDGER_SOURCE,
                subject=command.target,
                cause=(command.id,),
                command=command.id,
                epoch=command.lease.epoch,
                detail="withheld: it would loosen, and the ledger cannot be written",
            )
            for command in withheld
        ]
        return [command for command in beat.commands if command not in withheld], words

    def _make_room(self) -> None:
        """Let the oldest go, evidence first; never what may be under way to the ledger."""
        under_way, rest = self.waiting[:_SLICE], self.waiting[_SLICE:]
        for proof_too in (False, True):
            kept: list[Event] = []
            excess = len(under_way) + len(rest) - (WAITING_AT_MOST - _ROOM)
            for event in rest:
                if excess > 0 and (proof_too or not isinstance(event, _PROOF)):
                    excess -= 1
                    self.dropped[type(event).__name__] += 1
                else:
                    kept.append(event)
            rest = kept
        self.waiting = under_way + rest
        _LOG.error("the ledger has taken nothing for long; dropped so far: %s", self._dropped())

    def _again(self) -> str:
        lost = f"; it will never have {self._dropped()}" if self.dropped else ""
        return f"the ledger takes records again{lost}"

    def _dropped(self) -> str:
        return ", ".join(f"{n} {kind}" for kind, n in sorted(self.dropped.items()))


def _alarm(row: str, now: Instant, phase: Phase, because: str, episode: str) -> Emergency:
    return Emergency(
        at=now,
        source=LEDGER_SOURCE,
        subject=row,
        kind="ledger_loss",
        phase=phase,
        because=because,
        episode=episode,
    )
