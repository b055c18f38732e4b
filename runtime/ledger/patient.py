"""A ledger that is not waited for without end: a disk that stalls must not hold a brake back.

Appends run on a thread of their own. One that has not ended within the limit counts as not written:
the host then treats the ledger as one that cannot be written (nothing loosens, what tightens goes on)
and hands the same records in again, which the ledger knows by their ids.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence

from runtime.ledger.store import Ledger, LedgerUnwritable
from schemas.envelope import Event

LIMIT_S = 0.5
"""How long an append may keep a command waiting (our choice): of the 10 s that a UPS holds, the brake's
path takes 5 and sensing up to 4."""


class PatientLedger:
    """`ledger`, each append of which ends within `limit_s`. Only this object's thread touches it; close
    this one, not the ledger."""

    def __init__(self, ledger: Ledger, limit_s: float = LIMIT_S) -> None:
        self._ledger = ledger
        self._limit_s = limit_s
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._under_way: concurrent.futures.Future[None] | None = None

    def append(self, events: Sequence[Event]) -> None:
        """As the ledger's. Raises LedgerUnwritable also when it takes too long, or still does."""
        if self._under_way is not None and not self._under_way.done():
            raise LedgerUnwritable(f"{self._ledger.path}: an earlier append has not come back from the disk")
        self._under_way = self._thread.submit(self._ledger.append, list(events))
        try:
            self._under_way.result(self._limit_s)
        except concurrent.futures.TimeoutError:
            raise LedgerUnwritable(
                f"{self._ledger.path}: the disk has not taken an append within {self._limit_s:g} s"
            ) from None

    def tidy(self) -> None:
        """As the ledger's, behind whatever is under way and waited for by nobody."""
        self._thread.submit(self._ledger.tidy)

    def holds(self, identity: str) -> bool:
        """As the ledger's; False while an append is under way: nobody waits to know."""
        if self._under_way is not None and not self._under_way.done():
            return False
        return self._thread.submit(self._ledger.holds, identity).result()

    def close(self) -> None:
        """Wait for what is under way, and close the ledger."""
        self._thread.shutdown(wait=True)
        self._ledger.close()

    def __enter__(self) -> PatientLedger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
