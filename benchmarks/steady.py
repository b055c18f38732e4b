"""What a worker takes of the machine while nothing happens: a thousand hosts, a frame a second each."""

from __future__ import annotations

from benchmarks.collectors import Collectors
from benchmarks.figure import Figure
from benchmarks.frames import fleet
from benchmarks.site import brokers, site, topics
from runtime.clock import SystemClock
from schemas.instants import SECOND, Span

WARM_MS: Span = 20 * SECOND
MEASURED_MS: Span = 60 * SECOND


def measure() -> list[Figure]:
    """Every row owned by one worker, which also keeps their snapshots."""
    setup = fleet()
    with brokers() as servers, topics(servers) as kafka, site(setup, kafka) as control:
        clock = SystemClock()
        collectors = Collectors(setup, kafka, clock)
        collectors.until(clock.now() + WARM_MS)
        began, cpu_s, before_mb = clock.monotonic(), control.cpu_s, control.resident_mb
        collectors.until(clock.now() + MEASURED_MS)
        took_s = clock.monotonic() - began
        cores, after_mb = (control.cpu_s - cpu_s) / took_s, control.resident_mb
        collectors.close()
    hosts = len(setup.site.hosts)
    gpus = sum(host.gpu_count for host in setup.site.hosts.values())
    return [
        Figure(
            f"a worker with {hosts:,} hosts at 1 Hz",
            f"{cores:.2f} cores, {after_mb:.0f} MB",
            "",
            f"{gpus:,} GPUs in {len(setup.site.rows)} rows; {after_mb - before_mb:+.0f} MB in a minute",
            cores,
        )
    ]
