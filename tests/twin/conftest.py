"""Small rows for the twin, and requests that come when told to."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from schemas.site_file import read_site
from schemas.topology import Site
from twin.workload import MINUTE_S, Arrivals, IntArray

MakeSite = Callable[..., Site]


@pytest.fixture
def make_site() -> MakeSite:
    """Makes a site of one row, half its servers of each priority, four to a rack, on two feeds."""

    def make(
        hosts: int = 4,
        *,
        budget_w: float = 1e6,
        feed_w: float = 1e6,
        sku: str = "A100-SXM4-80GB",
        gpus: int = 8,
    ) -> Site:
        half = hosts // 2
        kinds = [("high", 1, half)] * (half > 0) + [("low", half + 1, hosts)]
        blocks = "\n".join(
            f'[[racks.hosts]]\nnames = "h[{first}-{last}]"\nsku = "{sku}"\n'
            f'gpus = {gpus}\npriority = "{priority}"\npaths = ["out_of_band", "brake", "in_band"]\n'
            for priority, first, last in kinds
        )
        text = f"""
[site]
name = "lab"
[[ups]]
name = "ups-1"
limit_w = 1e7
[[pdus]]
name = "pdu-1"
ups = "ups-1"
limit_w = 1e7
[[feeds]]
name = "feed-a"
pdu = "pdu-1"
limit_w = {feed_w}
[[feeds]]
name = "feed-b"
pdu = "pdu-1"
limit_w = 1e6
[[rows]]
name = "row-a"
budget_w = {budget_w}
meters = ["feed-a", "feed-b"]
[[racks]]
row = "row-a"
names = "r1"
feeds = ["feed-a", "feed-b"]
{blocks}"""
        return read_site(text, "lab.toml")

    return make


class Timetable:
    """A load that asks what it was given: requests as (second, host, prompt, output)."""

    def __init__(self, requests: Sequence[tuple[float, int, int, int]]) -> None:
        self._requests = sorted(requests)

    def minute(self, index: int) -> Arrivals:
        due = [r for r in self._requests if index * MINUTE_S <= r[0] < (index + 1) * MINUTE_S]
        at, host, prompt, output = np.array(due, dtype=np.float64).reshape(-1, 4).T
        place: IntArray = host.astype(np.int64)
        return Arrivals(at, place, prompt, output)


@pytest.fixture
def timetable() -> Callable[..., Timetable]:
    return Timetable


@pytest.fixture
def flood() -> Callable[..., Timetable]:
    """Makes a load that keeps hosts at prompts of 4096 tokens without a pause, two minutes long from
    some time before the start."""

    def make(hosts: int = 4) -> Timetable:
        return Timetable([(s, h, 4096, 400) for s in range(-20, 120) for h in range(hosts)])

    return make
