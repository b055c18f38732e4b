"""Hosts to collect from."""

from collections.abc import Callable, Sequence

import pytest

from schemas.skus import SKUS
from schemas.topology import Host


@pytest.fixture
def make_host() -> Callable[..., Host]:
    """Makes a host of the site file, with its GPUs' UUIDs stated or not."""

    def make(gpus: int = 2, *, uuids: Sequence[str] = ()) -> Host:
        return Host(
            path="ams1/row-b/r07/h03",
            rack="ams1/row-b/r07",
            row="ams1/row-b",
            sku=SKUS["H100-SXM5-80GB"],
            gpu_count=gpus,
            priority="low",
            rated_w=10_200.0,
            overhead_idle_w=2_200.0,
            overhead_max_w=4_600.0,
            paths=("in_band",),
            uuids=tuple(uuids),
        )

    return make
