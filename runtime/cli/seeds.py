"""Seeds as commands take them."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter, validators

Seed = Annotated[int, Parameter(validator=validators.Number(gte=0))]
"""A whole number from 0 on: the generators take no other."""

Seeds = Annotated[tuple[Seed, ...], Parameter(negative="")]
"""One or more of them."""
