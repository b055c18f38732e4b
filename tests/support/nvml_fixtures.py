"""Fixtures over the NVML stand-in: `pytest_plugins = ["support.nvml_fixtures"]` in the conftest.

Without a C compiler or pynvml a test that asks for one is skipped, and fails in CI.
"""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Protocol

import pytest
from support.counterparts import missing
from support.nvml_shim import ShimState, installed, library, unavailable


class MakeNvmlState(Protocol):
    """Makes the devices of one more host."""

    def __call__(self, gpus: int = 1) -> ShimState: ...


@pytest.fixture(scope="session")
def nvml_library() -> Path:
    """The compiled stand-in."""
    reason = unavailable()
    if reason is not None:
        missing(reason)
    return library()


@pytest.fixture
def make_nvml_state(nvml_library: Path, tmp_path: Path) -> MakeNvmlState:
    """Devices in as many state files as asked for: each call is another host, with other uuids."""
    made: list[ShimState] = []

    def make(gpus: int = 1) -> ShimState:
        host = len(made)
        made.append(ShimState(tmp_path / f"nvml-state-{host}", gpus=gpus, host=host))
        return made[-1]

    return make


@pytest.fixture
def nvml_state(make_nvml_state: MakeNvmlState) -> ShimState:
    """Two busy H100s, not limited."""
    return make_nvml_state(gpus=2)


@pytest.fixture
def nvml(nvml_state: ShimState) -> Iterator[ModuleType]:
    """pynvml over `nvml_state`, initialised."""
    with installed(nvml_state) as pynvml:
        pynvml.nvmlInit()
        yield pynvml
