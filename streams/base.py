"""What a stream processor is: a keyed fold, the same wherever it is hosted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

State = TypeVar("State")
In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)


class Processor(Protocol[State, In, Out]):
    """Old state and the events that arrived together in, new state and results out.

    Hosts own the state: a dict, a replay or a worker of a stream engine. A processor keeps none,
    reads no clock, drops late or repeated events, and gives the same results wherever batches are
    cut. It may update the state it is handed in place; the state it returns is the one to keep.
    """

    def key(self, event: In) -> str: ...

    def initial(self) -> State: ...

    def step(self, state: State, events: Sequence[In]) -> tuple[State, Sequence[Out]]: ...
