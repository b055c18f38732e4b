"""A row that comes to a host goes on from its snapshot only where the log has all that came since."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from support.two_rows import TWO_ROWS

from controllers.policy import DEFAULT_POLICY
from runtime.hosts.partition import TOPICS
from runtime.hosts.placing import Bounds, begun, restored
from runtime.hosts.recall import Words
from runtime.hosts.row_log import TICKS
from runtime.hosts.snapshot import Mark, freeze
from runtime.row_loop import RowLoop
from schemas.site_file import read_site

SITE = read_site(TWO_ROWS, "two-rows")
GPUS, OPERATORS = "windrow.gpus", "windrow.operators"


def loop() -> RowLoop:
    return RowLoop(SITE.rows[0], DEFAULT_POLICY, epoch=0)


def snapshot(upto: Mapping[str, int]) -> bytes:
    mark = Mark(upto=dict.fromkeys(TOPICS, 50) | dict(upto), epoch=6, owner="gone", at=1_000)
    return freeze(loop().initial(), loop(), mark)


def bounds(**of: Bounds) -> dict[str, Bounds]:
    return dict.fromkeys(TOPICS, Bounds(0, 100, 90)) | {f"windrow.{name}": each for name, each in of.items()}


@pytest.mark.parametrize(
    "whole", [bounds(), bounds(gpus=Bounds(50, 50, 50)), bounds(gpus=Bounds(50, 60, 55))]
)
def test_a_row_goes_on_from_its_snapshot_where_nothing_since_is_missing(whole: dict[str, Bounds]) -> None:
    log, upto = restored(loop(), "w", snapshot({}), whole)
    assert not log.cold
    assert (log.epoch, upto) == (6, dict.fromkeys(TOPICS, 50))


@pytest.mark.parametrize(
    ("parted", "why"),
    [
        (
            bounds(gpus=Bounds(51, 100, 90)),
            "since its snapshot is deleted: windrow.gpus begins at 51",
        ),
        (bounds(ticks=Bounds(80, 100, 90)), "what came since its snapshot is deleted: windrow.ticks"),
        (bounds(operators=Bounds(0, 49, 49)), "of another log, longer than this one: windrow.operators ends"),
    ],
)
def test_a_row_whose_log_is_deleted_or_cut_below_its_snapshot_begins_anew_above_its_epoch(
    parted: dict[str, Bounds], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its recorded beats would be done with less than they took in, and say otherwise than was said."""
    log, upto = restored(loop(), "w", snapshot({}), parted)
    assert why in caplog.text
    assert log.cold
    assert upto == {}
    claim = log.propose(2_000)
    assert claim is not None
    assert (claim.epoch, claim.anew) == (7, True)


def test_a_damaged_snapshot_begins_the_row_anew_in_words(caplog: pytest.LogCaptureFixture) -> None:
    log, upto = restored(loop(), "w", snapshot({})[:-40], bounds())
    assert "begins anew: no snapshot" in caplog.text
    assert log.cold
    assert upto == {}


def test_a_row_that_begins_anew_reads_what_came_since_the_last_beat_and_above_its_epoch() -> None:
    log, _ = restored(loop(), "w", None, bounds())
    reads = begun(log, Words((), 9, {GPUS: 95, OPERATORS: 40}), bounds(ticks=Bounds(0, 70, 60)))
    assert (reads[GPUS], reads[OPERATORS], reads[TICKS]) == (95, 90, 70)
    claim = log.propose(2_000)
    assert claim is not None
    assert (claim.epoch, claim.anew) == (10, True)
