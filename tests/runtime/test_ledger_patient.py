"""A disk that stalls holds no command back, and loses nothing."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Sequence

import pytest

from runtime.ledger.patient import PatientLedger
from runtime.ledger.store import Ledger, LedgerUnwritable
from schemas.envelope import Event, Tick


class Stalling(Ledger):
    """A ledger whose disk takes nothing until it is let."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(path, durable=False)
        self.goes_on = threading.Event()

    def append(self, events: Sequence[Event]) -> None:
        self.goes_on.wait(30)
        super().append(events)


def ticks(count: int) -> list[Event]:
    return [Tick(at=at, source="test", subject="lab1/row-a") for at in range(count)]


def test_an_append_that_stalls_counts_as_not_written_and_is_written_once(tmp_path: pathlib.Path) -> None:
    book = Stalling(tmp_path / "ledger.sqlite")
    with PatientLedger(book, limit_s=0.05) as ledger:
        with pytest.raises(LedgerUnwritable, match=r"has not taken an append within 0\.05 s"):
            ledger.append(ticks(3))
        with pytest.raises(LedgerUnwritable, match="an earlier append has not come back"):
            ledger.append(ticks(4))
        assert not ledger.holds(ticks(1)[0].id), "nobody waits to know"
        book.goes_on.set()
        while True:
            try:
                ledger.append(ticks(5))
            except LedgerUnwritable:
                continue
            break
        assert ledger.holds(ticks(1)[0].id)
    with Ledger.reading(tmp_path / "ledger.sqlite") as read:
        assert read.head()[0] == 5
        assert read.verify() == ""


def test_a_ledger_in_order_is_as_fast_as_ever(tmp_path: pathlib.Path) -> None:
    with PatientLedger(Ledger(tmp_path / "ledger.sqlite", durable=False)) as ledger:
        ledger.append(ticks(2))
        ledger.tidy()
        assert ledger.holds(ticks(2)[1].id)
