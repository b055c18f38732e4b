"""Small rows on the twin, run by the embedded host: what most claims about the whole need."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Sequence

import msgspec

from controllers.policy import DEFAULT_POLICY, CappingPolicy
from runtime.config import Setup
from runtime.hosts.embedded import Records
from runtime.row_loop import Beat
from runtime.wiring import TwinRig, on_twin, plant_of
from schemas.envelope import Event
from schemas.instants import Instant, from_text
from schemas.shares import safe_shares
from schemas.site_file import read_site
from twin.workload import LoadProfile

START: Instant = from_text("2026-03-01T18:00:00Z")


def row_text(
    hosts: int = 8, *, budget_w: float, paths: Sequence[str] = ("in_band", "brake"), meters: bool = True
) -> str:
    """A site file: one row of DGX-A100 servers, every other one of low priority, four to a rack."""
    stated = ", ".join(f'"{path}"' for path in paths)
    racks = "\n".join(
        f"""
[[racks]]
row = "row-a"
names = "r{rack + 1:02d}"
feeds = ["feed-a"]
"""
        + "\n".join(
            f"""
[[racks.hosts]]
names = "h{place + 1:02d}"
sku = "A100-SXM4-80GB"
gpus = 8
priority = "{"low" if place % 2 else "high"}"
paths = [{stated}]
"""
            for place in range(min(4, hosts - 4 * rack))
        )
        for rack in range((hosts + 3) // 4)
    )
    return f"""
[site]
name = "lab1"
[[ups]]
name = "ups-1"
limit_w = {budget_w * 2}
[[pdus]]
name = "pdu-1"
ups = "ups-1"
limit_w = {budget_w * 2}
[[feeds]]
name = "feed-a"
pdu = "pdu-1"
limit_w = {budget_w}
[[rows]]
name = "row-a"
budget_w = {budget_w}
meters = [{'"feed-a"' if meters else ""}]
{racks}
"""


def two_rows_text() -> str:
    """A site file: two such rows of two servers each, on a feed of its own."""
    text = row_text(2, budget_w=12_000.0, paths=("in_band", "out_of_band", "brake"))
    second = text[text.index("[[rows]]") :].replace("row-a", "row-b").replace("feed-a", "feed-b")
    feed = '[[feeds]]\nname = "feed-b"\npdu = "pdu-1"\nlimit_w = 12_000\n'
    return text.replace("[[rows]]", feed + "[[rows]]", 1) + second


def setup_of(text: str, policy: CappingPolicy = DEFAULT_POLICY, policy_text: str = "") -> Setup:
    """A site file and a policy, read and checked as at a start."""
    site = read_site(text, "lab1.toml")
    return Setup(site=site, site_text=text, policy=policy, policy_text=policy_text, shares=safe_shares(site))


class Memory:
    """A ledger that keeps its records in a list, for claims that are not about the ledger's file."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def append(self, events: Sequence[Event]) -> None:
        """Keep them."""
        self.events.extend(events)

    def tidy(self) -> None:
        """There is nothing to tidy."""


def rig_of(
    setup: Setup,
    *,
    seed: int = 1,
    load: LoadProfile | None = None,
    ledger: Records | None = None,
    state_dir: pathlib.Path | None = None,
    observe: Iterable[Callable[[Beat], None]] = (),
) -> TwinRig:
    """The setup's first row on the twin, at START."""
    plant = plant_of(setup, seed=seed, start=START, load=load)
    return on_twin(plant, setup, ledger=ledger or Memory(), state_dir=state_dir, observe=observe)


def in_band(policy: CappingPolicy = DEFAULT_POLICY) -> CappingPolicy:
    """The policy by the fast path."""
    return msgspec.structs.replace(policy, path="in_band")
