"""A row's state as bytes: it goes on as if nothing had happened, and nothing else gets in."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.folds import contents
from support.rigs import START, in_band, rig_of, row_text, setup_of

from runtime.hosts import snapshot
from runtime.hosts.snapshot import Mark, SnapshotRefused, freeze, mark_of, thaw
from runtime.row_loop import Beat, RowLoop, RowState
from schemas.instants import SECOND
from schemas.operators import Pin, ReleaseAll
from schemas.samples import UpsSample
from streams.forecast.trailing import Trailing
from twin.workload import LoadProfile

SETUP = setup_of(row_text(3, budget_w=15_500.0), in_band())
ROW = SETUP.site.rows[0]
BUSY = LoadProfile(requests_per_s=0.35, points=((0.0, 0.02), (20.0, 0.8), (200.0, 1.0), (900.0, 0.4)))
MARK = Mark(upto={"windrow.gpus": 7, "windrow.ticks": 3}, epoch=4, owner="one", at=START)


def loop() -> RowLoop:
    return RowLoop(ROW, SETUP.policy, epoch=1)


@cache
def run() -> tuple[Beat, ...]:
    """Long enough for the learned model to be judged; a board is lost, a UPS fails, people speak."""
    beats: list[Beat] = []
    rig = rig_of(SETUP, load=BUSY, observe=[beats.append])
    rig.host.run(until=START + 60 * SECOND)
    rig.plant.fail_gpu(f"{ROW.path}/r01/h01", 3, "lost")
    now = rig.host.clock.now()
    pin = Pin(at=now, source="x", subject=ROW.path, max_mhz=1200, by="a", reason="r", expires_at=now + 10**6)
    release = ReleaseAll(at=now, source="x", subject=f"{ROW.path}/r01/h02", by="a", reason="r")
    rig.host.loop.offer([pin, release])
    rig.host.run(until=START + 760 * SECOND)
    now = rig.host.clock.now()
    rig.host.loop.offer([UpsSample(at=now, source="c", subject="lab1/ups-1", power_w=1.0, on_battery=True)])
    rig.host.run(until=START + 780 * SECOND)
    return tuple(beats)


@cache
def midway(beats: int = 385) -> bytes:
    state = after(beats)
    return freeze(state, loop(), MARK)


def after(beats: int) -> RowState:
    its = loop()
    state = its.initial()
    for beat in run()[:beats]:
        state, _ = its.step(state, [*beat.inputs, beat.tick])
    return state


@pytest.mark.parametrize("beats", [0, 1, 31, 385])
def test_a_row_goes_on_from_a_snapshot_as_if_nothing_had_happened(beats: int) -> None:
    its = loop()
    before = after(beats)
    state, mark = thaw(freeze(before, its, MARK), its)
    assert mark == MARK
    for part in ("rollup", "forecast", "detect", "view"):
        assert contents(getattr(state, part)) == contents(getattr(before, part))
    for beat in run()[beats:]:
        state, (again,) = its.step(state, [*beat.inputs, beat.tick])
        assert msgspec.json.encode(again.outputs) == msgspec.json.encode(beat.outputs)


def test_the_state_that_goes_through_holds_what_rows_go_through() -> None:
    """The claim above is about a row that has learned, that people and a UPS have spoken to."""
    state = after(385)
    assert state.forecast.issued
    assert state.forecast.scores.samples > 10
    assert len(state.forecast.residuals_w[0])
    assert state.view.pins
    assert state.view.released
    assert state.detect.upses
    assert any(beat.decision.mode == "B" for beat in run())


def test_other_code_another_site_and_another_policy_are_refused_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    payload = midway()
    with pytest.raises(SnapshotRefused, match="is of lab1/row-a, not of lab1/row-b"):
        thaw(payload, RowLoop(msgspec.structs.replace(ROW, path="lab1/row-b"), SETUP.policy, epoch=1))
    with pytest.raises(SnapshotRefused, match="another site file or policy") as refused:
        thaw(payload, RowLoop(msgspec.structs.replace(ROW, budget_w=1.0), SETUP.policy, epoch=1))
    assert refused.value.epoch == 4
    other = msgspec.structs.replace(SETUP.policy, lease_ms=SETUP.policy.lease_ms + 1)
    with pytest.raises(SnapshotRefused, match="another site file or policy"):
        thaw(payload, RowLoop(ROW, other, epoch=1))
    monkeypatch.setattr(snapshot, "_layout", lambda: "a slot more")
    with pytest.raises(SnapshotRefused, match="another layout") as refused:
        thaw(payload, loop())
    assert refused.value.epoch == 4


def test_a_field_more_is_another_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot._layout.__wrapped__()
    monkeypatch.setattr(Trailing, "__slots__", ("_order", "_seen", "_size", "_more"))
    assert snapshot._layout.__wrapped__() != before


def spoiled(change: Callable[[list[Any]], None]) -> bytes:
    """A snapshot whose head is right and whose state was changed."""
    head = msgspec.msgpack.decode(midway())
    parts = msgspec.msgpack.decode(zlib.decompress(head["body"]))
    change(parts)
    head["body"] = zlib.compress(msgspec.msgpack.encode(parts))
    return msgspec.msgpack.encode(head)


def _names_a_class(parts: list[Any]) -> None:
    parts[2] = ["Popen", ["list", "touch", "x"]]


def _takes_another_place(parts: list[Any]) -> None:
    parts[0] = parts[2]


def _loses_its_view(parts: list[Any]) -> None:
    parts[3] = None


def _holds_objects(parts: list[Any]) -> None:
    parts[0][2] = ["array", "|O", [1], b"\0" * 8]


def _narrows_an_array(parts: list[Any]) -> None:
    narrow = np.zeros((1, 1))
    parts[0] = [
        ["array", "<f8", [1, 1], narrow.tobytes()] if isinstance(x, list) and x[:2] == ["array", "<f8"] else x
        for x in parts[0]
    ]


def _has_a_part_more(parts: list[Any]) -> None:
    parts.append(["list"])


def _has_a_slot_less(parts: list[Any]) -> None:
    parts[2].pop()


def _mistypes_the_view(parts: list[Any]) -> None:
    parts[3] = ["view", msgspec.msgpack.encode({"blast_reset_at": "now"})]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_names_a_class, "Popen"),
        (_takes_another_place, "rollup is a OverloadState, where a RollupState belongs"),
        (_loses_its_view, "view is a NoneType"),
        (_holds_objects, "arrays of"),
        (_narrows_an_array, "rollup.*not float64"),
        (_has_a_part_more, "cannot be read"),
        (_has_a_slot_less, "cannot be read"),
        (_mistypes_the_view, "Expected `int`"),
    ],
)
def test_a_state_that_this_code_would_not_have_is_refused(
    change: Callable[[list[Any]], None], words: str
) -> None:
    with pytest.raises(SnapshotRefused, match=words):
        thaw(spoiled(change), loop())


def test_a_small_message_that_expands_without_end_is_refused() -> None:
    head = msgspec.msgpack.decode(midway())
    head["body"] = zlib.compress(bytes(80 << 20))
    with pytest.raises(SnapshotRefused, match="cut short or too long"):
        thaw(msgspec.msgpack.encode(head), loop())


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans())
def test_damaged_bytes_are_refused_or_read_and_never_raise_otherwise(at: int, bit: int, cut: bool) -> None:
    payload = bytearray(midway())
    at %= len(payload)
    payload[at] ^= 1 << bit
    with contextlib.suppress(SnapshotRefused):
        thaw(bytes(payload[: at + 1] if cut else payload), loop())


@pytest.mark.parametrize("payload", [b"", b"null", b"{}", b"\x80", b"\x93\x01\x02\x03"])
def test_what_is_no_snapshot_is_refused(payload: bytes) -> None:
    with pytest.raises(SnapshotRefused, match="no snapshot"):
        mark_of(payload)


def test_the_mark_is_read_without_the_state() -> None:
    assert mark_of(midway()) == MARK
