"""The journal: what a host's service log tells people as it happens. The ledger is proof; this is news."""

from __future__ import annotations

import logging

from runtime.row_loop import Beat
from schemas.emergencies import Emergency
from schemas.operators import Pin, ReleaseAll, ResetBlastRadius, Resume, Unpin
from schemas.outcomes import Failed, Refused
from schemas.samples import GpuFrame, RackSample

_LOG = logging.getLogger("windrow")
_PEOPLE = (Pin, Unpin, ReleaseAll, Resume, ResetBlastRadius)


class Journal:
    """Tells each row's turns once: modes, refusals, emergencies, people's words, what actuators could
    not do, and GPUs that do not answer. Standing trouble is `standing`, for whoever asks how it is."""

    def __init__(self) -> None:
        self._modes: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self._open: dict[tuple[str, str], str] = {}  # by row and topic

    @property
    def standing(self) -> str:
        """The emergencies that are open and the refusals that stand, in words; empty when none. It may be
        asked from any thread: the values are taken at once, for the loop changes them meanwhile."""
        return "; ".join(tuple(self._open.values()))

    def observe(self, beat: Beat) -> None:
        """Take one beat in."""
        row, decision = beat.tick.subject, beat.decision
        if self._modes.get(row) != decision.mode:
            self._modes[row] = decision.mode
            level = logging.ERROR if decision.mode == "B" else logging.INFO
            _LOG.log(level, "%s: %s: %s", row, decision.mode, decision.because)
        refusal = f"{row} refuses to decide: {decision.refusal}" if decision.refusal else ""
        self._stands(row, f"refusal {row}", refusal)
        for event in (*beat.inputs, *beat.emergencies):
            if isinstance(event, Emergency):
                trouble = (
                    "" if event.phase == "cleared" else f"{event.subject}: {event.kind}: {event.because}"
                )
                self._stands(row, f"{event.kind} {event.subject}", trouble)
            elif isinstance(event, Failed | Refused):
                word = type(event).__name__.lower()
                self._once(f"outcome {event.subject}", f"{event.subject}: {word}: {event.detail}")
            elif isinstance(event, _PEOPLE):
                _LOG.info("%s: %s by %s", event.subject, type(event).__name__, event.by)
            elif isinstance(event, GpuFrame | RackSample):
                self._once(f"faults {event.subject}", "; ".join(filter(None, event.faults)))

    def forget(self, row: str) -> None:
        """The row is another host's: its trouble is no longer told of here."""
        self._modes.pop(row, None)
        for known in [known for known in self._open if known[0] == row]:
            del self._open[known]

    def _stands(self, row: str, topic: str, trouble: str) -> None:
        if trouble:
            if (row, topic) not in self._open:
                _LOG.error("%s", trouble)
            self._open[row, topic] = trouble
        elif self._open.pop((row, topic), ""):
            _LOG.info("over: %s", topic)

    def _once(self, topic: str, text: str) -> None:
        if text and self._told.get(topic) != text:
            _LOG.warning("%s", text)
        self._told[topic] = text
