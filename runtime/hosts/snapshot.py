"""A row's state as bytes and back, without running anybody's code.

Bytes become objects of the classes listed here and of no others, in the shape of a state that this code
begins with. A snapshot says what it rests on: the layout of the state (classes, fields, the model) and
the row's site and policy. One that rests on others is refused in words, and its row begins anew: a state
half understood could loosen.
"""

from __future__ import annotations

import json
import zlib
from collections import deque
from functools import cache
from hashlib import blake2b
from typing import Any, TypeAlias

import msgspec
import numpy as np

from controllers.view import ViewState
from runtime.row_loop import RowLoop, RowState
from schemas.instants import Instant
from streams.detect.hysteresis import Hysteresis
from streams.detect.overload import FeedTrouble, OverloadState, UpsTrouble
from streams.forecast.fitted import PEAKS
from streams.forecast.peaks import Issued, PeakState
from streams.forecast.scoring import Scores, Trust
from streams.forecast.trailing import Trailing
from streams.quality import InOrder, Repeats, SourceClocks, Stillness
from streams.rollup import RollupState

MEANING = 1
"""Raised by hand where a field keeps its name and type and comes to mean something else."""

_SLOTTED = {
    kind.__name__: kind
    for kind in (
        RollupState, SourceClocks, Stillness, Repeats, PeakState, Issued, Trailing, Scores, Trust,
        OverloadState, UpsTrouble, FeedTrouble, InOrder, Hysteresis,
    )
}  # fmt: skip
_DTYPES = ("<f8", "<i8", "|b1")
_PARTS = ("rollup", "forecast", "detect", "view")
_EXPANDED_AT_MOST = 64 << 20  # bytes; a row of 500 hosts has a few

Plain: TypeAlias = Any
"""Numbers, texts, None, and lists of them that begin with the name of what they stand for."""


class SnapshotRefused(ValueError):
    """The bytes are no snapshot that this row can go on from; the text says why. `epoch` is the one it
    was made under, 0 where not even that can be read."""

    def __init__(self, why: str, epoch: int = 0) -> None:
        super().__init__(why)
        self.epoch = epoch


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Where in its log a row stands after a beat: by topic the offset that was taken in up to, the epoch
    and source of the beat's tick, and its time."""

    upto: dict[str, int] = {}
    epoch: int = 0
    owner: str = ""
    at: Instant = -1


class _Snapshot(msgspec.Struct, frozen=True, kw_only=True, tag="windrow-snapshot"):
    row: str
    layout: str
    setting: str
    mark: Mark
    body: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Snapshot)
_view_decoder = msgspec.msgpack.Decoder(ViewState)


def freeze(state: RowState, loop: RowLoop, mark: Mark) -> bytes:
    """The state after a beat (nothing is pending then), with where in its log the row stands."""
    assert not state.pending
    parts = [_plain(getattr(state, part)) for part in _PARTS]
    return _encoder.encode(
        _Snapshot(
            row=loop.row.path,
            layout=_layout(),
            setting=_setting(loop),
            mark=mark,
            body=zlib.compress(_encoder.encode(parts), 1),
        )
    )


def thaw(payload: bytes, loop: RowLoop) -> tuple[RowState, Mark]:
    """The state and the mark in a snapshot. Raises SnapshotRefused in words."""
    head = _head(payload)
    state = loop.initial()
    if head.row != loop.row.path:
        raise SnapshotRefused(f"the snapshot is of {head.row}, not of {loop.row.path}")
    epoch = head.mark.epoch
    if head.layout != _layout():
        raise SnapshotRefused("the snapshot was made by a version whose state has another layout", epoch)
    if head.setting != _setting(loop):
        raise SnapshotRefused("the snapshot was made under another site file or policy", epoch)
    try:
        expanding = zlib.decompressobj()
        body = expanding.decompress(head.body, _EXPANDED_AT_MOST)
        if not expanding.eof:
            raise ValueError("it is cut short or too long")
        parts = [_built(plain) for plain in msgspec.msgpack.decode(body)]
        for part, found in zip(_PARTS, parts, strict=True):
            _hold_alike(found, getattr(state, part), part)
            setattr(state, part, found)
    except (ValueError, TypeError, KeyError, zlib.error, msgspec.DecodeError, RecursionError) as error:
        raise SnapshotRefused(f"the snapshot's state cannot be read: {error}", epoch) from error
    return state, head.mark


def mark_of(payload: bytes) -> Mark:
    """Only the mark, to tell the newest of several: the highest `epoch`, then the latest `at`. A host that
    has lost its row and does not know yet may write an older one last. Raises SnapshotRefused."""
    return _head(payload).mark


def _head(payload: bytes) -> _Snapshot:
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotRefused(f"no snapshot: {error}") from error


# -- what a snapshot rests on ---------------------------------------------------------------------


@cache
def _layout() -> str:
    slots = {name: _slots(kind) for name, kind in _SLOTTED.items()}
    view = _without_prose(msgspec.json.schema(ViewState))
    return _digest(json.dumps([MEANING, PEAKS.name, _PARTS, slots, view], sort_keys=True).encode())


def _setting(loop: RowLoop) -> str:
    policy = msgspec.structs.replace(loop.policy, name="")  # where it was read says nothing of what it says
    return _digest(msgspec.json.encode((loop.row, policy)))


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=10).hexdigest()


def _without_prose(schema: Any) -> Any:
    if isinstance(schema, dict):
        prose = ("title", "description")
        return {key: _without_prose(value) for key, value in schema.items() if key not in prose}
    return [_without_prose(each) for each in schema] if isinstance(schema, list) else schema


def _slots(kind: type) -> tuple[str, ...]:
    slots: tuple[str, ...] = kind.__slots__  # type: ignore[attr-defined]
    return slots


# -- objects and plain values ---------------------------------------------------------------------


def _plain(value: Any) -> Plain:
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is np.ndarray:
        if value.dtype.str not in _DTYPES:
            raise TypeError(f"no snapshot holds arrays of {value.dtype}")
        return ["array", value.dtype.str, value.shape, value.tobytes()]
    if kind is list:
        if value and all(type(each) is float for each in value):  # the bulk: a second of rises is one
            return ["floats", np.array(value).tobytes()]
        return ["list", *map(_plain, value)]
    if kind is tuple:
        return ["tuple", *map(_plain, value)]
    if kind is set:
        return ["set", *map(_plain, sorted(value))]
    if kind is deque:
        return ["deque", value.maxlen, _plain(list(value))]
    if kind is dict:
        return ["dict", *([_plain(key), _plain(each)] for key, each in value.items())]
    if kind is ViewState:  # messages and structs: msgspec knows their fields and checks them
        return ["view", _encoder.encode(value)]
    if _SLOTTED.get(kind.__name__) is kind:
        return [kind.__name__, *(_plain(getattr(value, slot)) for slot in _slots(kind))]
    raise TypeError(f"no snapshot holds a {kind.__qualname__}")


def _built(plain: Plain) -> Any:
    if not isinstance(plain, list):
        return plain
    name, *content = plain
    match name:
        case "array":
            dtype, shape, cells = content
            if dtype not in _DTYPES:
                raise ValueError(f"arrays of {dtype}")
            return np.frombuffer(cells, dtype).reshape(shape).copy()
        case "floats":
            return np.frombuffer(content[0], "<f8").tolist()
        case "list":
            return [_built(each) for each in content]
        case "tuple":
            return tuple(_built(each) for each in content)
        case "set":
            return {_built(each) for each in content}
        case "deque":
            return deque(_built(content[1]), content[0])
        case "dict":
            return {_built(key): _built(each) for key, each in content}
        case "view":
            return _view_decoder.decode(content[0])
    kind = _SLOTTED[name]
    made = kind.__new__(kind)
    for slot, each in zip(_slots(kind), content, strict=True):
        setattr(made, slot, _built(each))
    return made


def _hold_alike(found: Any, like: Any, where: str) -> None:
    """Raises ValueError where a state is not of the shape of one that this code begins with: the same
    classes, arrays of the same size, as many of what is counted by host. What begins empty or unknown
    may have become anything."""
    if like is None:
        return
    if type(found) is not type(like):
        raise ValueError(f"{where} is a {type(found).__name__}, where a {type(like).__name__} belongs")
    if isinstance(like, np.ndarray):
        if (found.dtype, found.shape) != (like.dtype, like.shape):
            raise ValueError(f"{where} is {found.dtype}{found.shape}, not {like.dtype}{like.shape}")
    elif isinstance(like, list) and like:
        if len(found) != len(like):
            raise ValueError(f"{where} has {len(found)} entries, not {len(like)}")
        for i, (each, begun) in enumerate(zip(found, like, strict=True)):
            _hold_alike(each, begun, f"{where}[{i}]")
    elif type(like).__name__ in _SLOTTED:
        for slot in _slots(type(like)):
            _hold_alike(getattr(found, slot), getattr(like, slot), f"{where}.{slot}")
