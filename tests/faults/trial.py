"""A fault, done to a running site and judged."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from faults.faults import Fault
from faults.judge import ANSWER_MS, beats, fate, metered, signs, silence
from faults.rig import Rig

from schemas.commands import Command
from schemas.instants import SECOND, Instant

GIVE_UP_S = 90.0
"""A site that is not itself again by then does not recover."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a fault came to.

    `rows_s` and `hosts_s` are the times to recover: for the row and the host that fared worst, from the last
    decision (read-back) before the fault to the first after it; `usual_rows_s` and `usual_hosts_s` are the
    longest such times of the half minute before. `commands` were said from the strike on; `lost` and `wrong`
    are as `judge.Fate` has them, and `asked_again` counts commands that did not arrive and were overtaken.
    """

    fault: str
    what: str
    lasted_s: float
    recovered: bool
    rows_s: float
    hosts_s: float
    usual_rows_s: float
    usual_hosts_s: float
    commands: int
    asked_again: int
    lost: tuple[str, ...]
    wrong: tuple[str, ...]
    peak_ratio: float
    breakers: tuple[str, ...]
    restarts: dict[str, int]

    @property
    def sound(self) -> bool:
        """Nothing lost, nothing wrong, every breaker closed, and the site itself again."""
        return self.recovered and not (self.lost or self.wrong or self.breakers)


def tried(rig: Rig, fault: Fault, length_s: float, *, load_s: float) -> Result:
    """Strike, wait until the site is itself again and `load_s` longer, and judge from the strike on."""
    if fault.prepare is not None:
        fault.prepare(rig)
    before = {name: part.restarts for name, part in rig.parts.items()}
    struck = rig.now()
    fault.strike(rig, length_s)
    over = rig.now()
    recovered = rig.until(lambda: rig.lives(over), GIVE_UP_S)
    rig.look(load_s)
    end = rig.now()
    rig.look(ANSWER_MS / SECOND)  # for the last commands to be answered
    assert rig.witness.catch_up()
    # The last signs of life before the strike count; a minute holds some of each.
    heard = rig.heard(struck - 60 * SECOND)
    seen = [each for each in rig.boards.seen if struck <= each.at <= end]
    meters = metered(rig.heard(struck), rig.site)
    found = fate(heard, rig.witness.recorded, seen, rig.shares, end)
    calm = struck - 30 * SECOND
    return Result(
        fault=fault.name,
        what=fault.what,
        lasted_s=length_s,
        recovered=recovered,
        rows_s=_worst((beats(heard, row.path) for row in rig.site.rows), struck, end),
        hosts_s=_worst((signs(heard, host) for host in rig.site.hosts), struck, end),
        usual_rows_s=_worst((beats(heard, row.path) for row in rig.site.rows), calm, struck),
        usual_hosts_s=_worst((signs(heard, host) for host in rig.site.hosts), calm, struck),
        commands=len({each.event.id for each in rig.heard(struck) if isinstance(each.event, Command)}),
        asked_again=found.asked_again,
        lost=found.lost,
        wrong=(*found.wrong, *fault.also_wrong(rig)),
        peak_ratio=max(rig.boards.peak_ratio(struck), meters.peak_ratio),
        breakers=tuple(sorted(rig.boards.opened | meters.opened)),
        restarts={
            name: part.restarts - before.get(name, 0)
            for name, part in rig.parts.items()
            if part.restarts > before.get(name, 0)
        },
    )


def _worst(each: Iterable[list[Instant]], since: Instant, until: Instant) -> float:
    return max(silence(times, since, until) for times in each) / SECOND
