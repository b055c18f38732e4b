"""What a row's loop keeps from one look to the next changes nothing of what it says."""

import random
from collections.abc import Sequence

import msgspec
import pytest
from support.capped_row import capped_row

from controllers.policy import DEFAULT_POLICY, CappingPolicy, Guardrails, Variant
from runtime.row_loop import Beat, RowLoop
from schemas import codec
from schemas.commands import Brake, Command
from schemas.envelope import Event, Tick
from schemas.instants import MINUTE, Instant
from schemas.operators import Pin, ReleaseAll, ResetBlastRadius, Resume, Unpin
from schemas.outcomes import Accepted, Failed, Lapsed, Outcome, Released, Renewed, Superseded, Verified
from schemas.samples import FeedSample, UpsSample

T0: Instant = 1_772_409_600_000
ROW = capped_row(4, 4, budget_w=40_000.0)
METER = ROW.meters[0]


class Forgetful(RowLoop):
    """Works everything out at each look."""

    def _still(self, *args: object, **kwargs: object) -> None:
        return None


def outcome_of(command: Command, kind: type[Outcome], at: Instant) -> Outcome:
    more = {"observed": 1000.0} if kind is Verified else {}
    return kind(
        at=at, source="actuator", subject=command.subject, cause=(command.id,), command=command.id,
        epoch=1, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def pin(at: Instant, path: str) -> Event:
    return Pin(at=at, source="p", subject=path, by="p", reason="r", max_mhz=1200, expires_at=at + 5 * MINUTE)


def unpin(at: Instant, path: str) -> Event:
    return Unpin(at=at, source="p", subject=path, by="p")


def release(at: Instant, path: str) -> Event:
    return ReleaseAll(at=at, source="p", subject=path, by="p", reason="r")


def resume(at: Instant, path: str) -> Event:
    return Resume(at=at, source="p", subject=path, by="p")


def reset(at: Instant, path: str) -> Event:
    return ResetBlastRadius(at=at, source="p", subject=ROW.path, by="p", reason="r")


def failover(at: Instant, path: str) -> Event:
    return UpsSample(at=at, source="u", subject="ams1/ups-1", power_w=1.0, on_battery=True, healthy=True)


def live(loops: Sequence[RowLoop], seed: int, looks: int) -> list[list[Beat]]:
    """The loops through the same troubled hours: hosts that obey late, twice or never, leases that end, pins,
    releases, failovers, meters that fall silent and clocks that are set back."""
    chance = random.Random(seed)
    states = [loop.initial() for loop in loops]
    beats: list[list[Beat]] = [[] for _ in loops]
    waiting: list[tuple[Instant, Event]] = []
    now, level = T0, 0.7
    calm = chance.random() < 0.5
    for _ in range(looks):
        now += 2_000
        if chance.random() < 0.002:
            now -= chance.choice((4_000, 30_000, 10 * MINUTE))
        level = min(1.15, max(0.5, level + chance.gauss(0.0, 0.015)))
        events: list[Event] = [event for due, event in waiting if due <= now]
        waiting = [(due, event) for due, event in waiting if due > now]
        if chance.random() > 0.01:
            events.append(
                FeedSample(at=now, source="meter", subject=METER, power_w=round(level * ROW.budget_w, 3))
            )
        if not calm and chance.random() < 0.004:
            path = chance.choice((ROW.path, ROW.racks[0].path, ROW.hosts[3].path))
            events.append(chance.choice((pin, unpin, release, resume, reset, failover))(now, path))
        tick = Tick(at=now, source="t", subject=ROW.path)
        for place, loop in enumerate(loops):
            states[place], (beat,) = loop.step(states[place], [*events, tick])
            beats[place].append(beat)
        for command in beats[0][-1].commands:
            fate = chance.random()
            late = 2_000 if isinstance(command, Brake) else 20_000
            seen: type[Outcome] = Renewed if chance.random() < 0.5 else Verified
            if fate < 0.05 and not calm:
                seen = chance.choice((Failed, Superseded, Lapsed, Released, Accepted))
            elif fate < 0.08:
                continue
            waiting.append((now + chance.randrange(0, late, 1_000), outcome_of(command, seen, now)))
    return beats


VARIANTS: tuple[Variant, ...] = (
    "polca",
    "polca_forecast",
    "proportional",
    "one_threshold_low",
    "one_threshold_all",
    "no_cap",
)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(4))
def test_a_row_that_stands_says_what_it_would_say_anyway(variant: Variant, seed: int) -> None:
    policy = msgspec.structs.replace(
        DEFAULT_POLICY,
        variant=variant,
        path="in_band" if seed % 2 else "out_of_band",
        guardrails=Guardrails(blast_ratio=1.0, dwell_ms=10_000),
    )
    kept, anew = live([RowLoop(ROW, policy, epoch=1), Forgetful(ROW, policy, epoch=1)], seed, 800)
    said = [[codec.encode(event) for event in beat.outputs] for beat in kept]
    assert said == [[codec.encode(event) for event in beat.outputs] for beat in anew]
    assert not variant.startswith("polca") or len({beat.decision.mode for beat in kept}) > 1


def test_a_row_that_stands_is_not_looked_through_host_by_host(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = msgspec.structs.replace(DEFAULT_POLICY, path="in_band")
    loop = RowLoop(ROW, policy, epoch=1)
    state, now = loop.initial(), T0
    heard: list[Event] = []
    stood = 0
    for _ in range(300):
        now += 2_000
        meter = FeedSample(at=now, source="meter", subject=METER, power_w=20_000.0 + now % 7)
        state, (beat,) = loop.step(state, [*heard, meter, Tick(at=now, source="t", subject=ROW.path)])
        heard = [outcome_of(command, Verified, now) for command in beat.commands]
        stood += loop._standing is not None
    assert stood > 200


def test_a_policy_that_reads_no_forecast_decides_the_same_without_one() -> None:
    class Nothing:
        def initial(self) -> None:
            return None

        def step(self, state: None, events: Sequence[Event]) -> tuple[None, tuple[()]]:
            return None, ()

    policy: CappingPolicy = DEFAULT_POLICY
    full, lean = live(
        [RowLoop(ROW, policy, epoch=1), RowLoop(ROW, policy, epoch=1, forecaster=Nothing())], 3, 800
    )
    for with_it, without in zip(full, lean, strict=True):
        assert codec.encode(with_it.decision) == codec.encode(without.decision)
        assert with_it.commands == without.commands
