"""The registry: adapters by the name that configuration uses for them.

Each entry says in one line what it reaches. Vendor libraries are imported by the adapter itself
when it is made, so that a host without them can still check a configuration.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from actuators.base import Actuator
from actuators.dry_run import DryRunActuator
from actuators.gpu_nvml import NvmlActuator
from collectors.base import Collector
from collectors.framing import FramedCollector
from collectors.gpu_nvml import NvmlCollector
from schemas.commands import Path
from schemas.instants import Span
from schemas.topology import Host

COLLECTORS: dict[str, Callable[[Host, Span], Collector]] = {
    "gpu_nvml": lambda host, period_ms: NvmlCollector(host, period_ms=period_ms),
}
"""Readers of this machine: the host they speak of and how often they are polled → a collector."""

ACTUATORS: dict[str, Callable[[Host, Path], Actuator]] = {
    "gpu_nvml": lambda host, path: NvmlActuator(host, path),
    "dry_run": lambda host, path: DryRunActuator(host, path),
}
"""Setters on this machine: the host they set and by which path → an actuator."""


def collector(kind: str, host: Host, *, period_ms: Span, sample_ms: Span | None) -> Collector:
    """A collector of this kind, heard each `period_ms` and read each `sample_ms` (None: as often).

    Raises CollectorError where its library is not installed.
    """
    if sample_ms is None or sample_ms >= period_ms:
        return COLLECTORS[kind](host, period_ms)
    return FramedCollector(COLLECTORS[kind](host, sample_ms), host, publish_ms=period_ms)


_NEEDS = {"gpu_nvml": ("pynvml", "gpu")}


def lacking(kind: str) -> str:
    """What an adapter of this kind needs and this environment lacks, in words; empty when nothing."""
    module, extra = _NEEDS.get(kind, ("", ""))
    if not module or importlib.util.find_spec(module) is not None:
        return ""
    return (
        f"needs the Python module {module}, which is not installed here: "
        f"pip install -e '.[{extra}]' in Windrow's clone"
    )
