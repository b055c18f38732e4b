"""Settings for every test."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from support.counterparts import in_ci

pytest_plugins = ["support.nvml_fixtures", "support.server_fixtures"]

# No deadline: a shared machine pauses for longer than any honest one. In CI the examples are the same
# at each run, so that a change is judged by what it changed.
settings.register_profile("here", deadline=None)
settings.register_profile(
    "ci", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if in_ci() else "here")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as at a terminal: what a shell puts in the background begins with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
