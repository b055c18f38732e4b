"""Where a row's log is read on from when the row comes to a host, and with what state.

A snapshot is gone on from where the log still has all that came since: a row that did its recorded beats with
less than they took in would say otherwise than was said. Else the row begins anew.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from runtime.hosts.recall import Words
from runtime.hosts.row_log import TICKS, RowLog
from runtime.row_loop import RowLoop

_LOG = logging.getLogger(__name__)


class Bounds(NamedTuple):
    """By offset, where a partition's log begins and ends, and where its recent part begins."""

    begin: int
    end: int
    recent: int


def restored(
    loop: RowLoop, worker: str, snapshot: bytes | None, bounds: Mapping[str, Bounds]
) -> tuple[RowLog, Mapping[str, int]]:
    """A row as its snapshot has it, and by topic where its log is to be read on; cold where there is none to
    go on from."""
    log = RowLog(loop, worker=worker)
    upto = log.restore(snapshot)
    why = log.refusal or _parted(upto, bounds)
    if not why:
        return log, upto
    _LOG.warning("%s begins anew: %s", loop.row.path, why)
    if log.cold:
        return log, upto
    anew = RowLog(loop, worker=worker)
    anew.above(log.epoch)
    return anew, {}


def _parted(upto: Mapping[str, int], bounds: Mapping[str, Bounds]) -> str:
    """What parts a snapshot from the log, in words; empty where the log has all that came since."""
    for topic, bound in bounds.items():
        at = upto.get(topic, bound.begin)
        if at > bound.end:
            return f"its snapshot is of another log, longer than this one: {topic} ends before {bound.end}"
        if at < bound.begin:
            return f"what came since its snapshot is deleted: {topic} begins at {bound.begin}"
    return ""


def begun(log: RowLog, words: Words, bounds: Mapping[str, Bounds]) -> Mapping[str, int]:
    """A row that begins anew, told what outlives it; by topic, where its log is to be read from.

    It does no beat of the log: what those took in may be gone. Its first takes in what came since the
    last of them, as it does for whoever follows the log.
    """
    log.remind(words.told)
    log.above(words.epoch)
    log.passed(TICKS, bounds[TICKS].end)
    recent = {topic: max(words.upto.get(topic, 0), bound.recent) for topic, bound in bounds.items()}
    return recent | {TICKS: bounds[TICKS].end}
