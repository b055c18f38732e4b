"""Seeds as commands take them."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter, validators

_FROM_ZERO = Parameter(validator=validators.Number(gte=0))

Seed = Annotated[int, _FROM_ZERO]
"""A whole number from 0 on: the generators take no other."""

Seeds = Annotated[tuple[int, ...], _FROM_ZERO]
