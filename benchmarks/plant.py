"""Recorded minutes of simulated rows: the same messages for every contender."""

from __future__ import annotations

import msgspec

from controllers.policy import DEFAULT_POLICY, read_policy
from runtime.config import Setup
from runtime.row_loop import Beat
from runtime.wiring import Unkept, on_twin, plant_of
from schemas import codec
from schemas.envelope import Event
from schemas.instants import SECOND, Instant, Span
from schemas.shares import safe_shares
from schemas.site_file import read_site

START: Instant = 1_772_388_000_000


def site_text(hosts: int, rows: int = 1) -> str:
    """A site of equal rows of DGX-A100 servers, each oversubscribed by 30 %; four to a rack, or two."""
    budget_w = hosts / 1.3 * 6500
    rack = 2 if hosts % 4 else 4
    power = (
        f'[site]\nname = "bench1"\n[[ups]]\nname = "ups-1"\nlimit_w = {budget_w * rows * 2}\n'
        f'[[pdus]]\nname = "pdu-1"\nups = "ups-1"\nlimit_w = {budget_w * rows * 2}\n'
    )
    paths = 'paths = ["in_band", "out_of_band", "brake"]\n'
    board = 'sku = "A100-SXM4-80GB"\ngpus = 8\n'
    return power + "".join(
        f'[[feeds]]\nname = "feed-{row}"\npdu = "pdu-1"\nlimit_w = {budget_w}\n'
        f'[[rows]]\nname = "row-{row}"\nbudget_w = {budget_w}\nmeters = ["feed-{row}"]\n'
        f'[[racks]]\nrow = "row-{row}"\nnames = "r[01-{hosts // rack:02d}]"\nfeeds = ["feed-{row}"]\n'
        f'[[racks.hosts]]\nnames = "h[01-{rack // 2:02d}]"\n{board}priority = "high"\n{paths}'
        f'[[racks.hosts]]\nnames = "h[{rack // 2 + 1:02d}-{rack:02d}]"\n{board}priority = "low"\n{paths}'
        for row in range(1, rows + 1)
    )


def setup_for(hosts: int, rows: int = 1, policy_text: str = "") -> Setup:
    """The site above, under the policy that the text states."""
    text = site_text(hosts, rows)
    site, policy = read_site(text, "bench1"), read_policy(policy_text, DEFAULT_POLICY.name)
    return Setup(site=site, site_text=text, policy=policy, policy_text=policy_text, shares=safe_shares(site))


def recorded(hosts: int, seconds: int, frame_ms: Span = SECOND) -> tuple[Setup, list[bytes]]:
    """`seconds` of one busy row, as the lines of a recording: inputs and ticks, in order."""
    setup = setup_for(hosts)
    lines: list[bytes] = []

    def keep(beat: Beat) -> None:
        lines.extend(codec.encode(event) for event in (*beat.inputs, beat.tick))

    plant = plant_of(setup, seed=1, start=START)
    rig = on_twin(plant, setup, ledger=Unkept(), frame_ms=frame_ms, observe=[keep])
    rig.host.run(until=START + seconds * SECOND)
    return setup, lines


def moved(events: list[Event], row: int) -> list[Event]:
    """The same messages as if said of another row of the same shape."""
    return [
        msgspec.structs.replace(
            event,
            id="",
            subject=event.subject.replace("/row-1", f"/row-{row}").replace("/feed-1", f"/feed-{row}"),
        )
        for event in events
    ]
