"""What every stream processor promises: the same results and the same state wherever batches are cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from schemas.envelope import Event
from streams.base import Processor


def contents(state: Any) -> Any:
    """A state as plain values that compare with ==, NaN equal to NaN."""
    if isinstance(state, np.ndarray):
        return (str(state.dtype), state.shape, state.tobytes())
    if isinstance(state, float):
        return state.hex()
    if isinstance(state, msgspec.Struct):
        return msgspec.json.encode(state)
    if isinstance(state, dict):
        return {key: contents(value) for key, value in state.items()}
    if isinstance(state, (str, bytes)):
        return state
    if isinstance(state, (set, frozenset)):
        return sorted(state)
    if isinstance(state, Sequence) or type(state).__name__ == "deque":
        return [contents(value) for value in state]
    names = [name for kind in type(state).__mro__ for name in getattr(kind, "__slots__", ())]
    if names or hasattr(state, "__dict__"):
        names += list(getattr(state, "__dict__", {}))
        return {name: contents(getattr(state, name)) for name in names}
    return state


def fold(
    processor: Processor[Any, Any, Any], events: Sequence[Event], cuts: Sequence[int] = ()
) -> tuple[list[Event], Any]:
    """All results and the contents of the last state, with the events handed over in batches that
    end at `cuts`."""
    out: list[Event] = []
    state = processor.initial()
    edges = [0, *sorted(cuts), len(events)]
    for start, end in pairwise(edges):
        state, results = processor.step(state, events[start:end])
        out.extend(results)
    return out, contents(state)
