"""A host's samples come in frames, each in one of them, and what jumps does not wait."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.boards import make_host as any_host

from collectors.base import CollectorError
from collectors.framing import FramedCollector
from collectors.jump import CORE_C, POWER_RATIO, jumped
from schemas.envelope import Event
from schemas.instants import HOUR, Instant
from schemas.samples import FeedSample, GpuFrame
from schemas.topology import Host
from schemas.units import Reading

T0: Instant = 1_772_366_400_000
RATED_W = 1400.0  # two boards of 700 W


def sample(
    at: Instant, *power_w: Reading, core_c: Sequence[Reading] = (50.0, 50.0), **more: object
) -> GpuFrame:
    made = GpuFrame(
        at=at,
        source="collector/test",
        subject="ams1/row-b/r07/h03",
        gpus=("GPU-0", "GPU-1"),
        power_w=(power_w or (300.0, 300.0),),
        core_c=tuple(core_c),
        faults=("", ""),
    )
    return msgspec.structs.replace(made, **more, id="")


class Script:
    """A collector that says what it is given, one entry a poll."""

    name = "collector/test"
    period_ms = 100

    def __init__(self, said: Sequence[Sequence[Event] | CollectorError]) -> None:
        self._said = iter(said)
        self.closed = False

    def poll(self, now: Instant) -> Sequence[Event]:
        said = next(self._said)
        if isinstance(said, CollectorError):
            raise said
        return said

    def close(self) -> None:
        self.closed = True


def polled(host: Host, said: Sequence[Event]) -> list[list[Event]]:
    framed = FramedCollector(Script([[event] for event in said]), host, publish_ms=1000)
    return [list(framed.poll(event.at)) for event in said]


@pytest.fixture
def host(make_host: Callable[..., Host]) -> Host:
    """Of two boards of 700 W."""
    return make_host(2)


def test_ten_samples_make_one_frame_at_the_tick(host: Host) -> None:
    samples = [sample(T0 + 100 * n, 300.0 + n, 300.0) for n in range(21)]
    said = polled(host, samples)
    assert [len(each) for each in said] == [1, *[0] * 9, 1, *[0] * 9, 1]
    (frame,) = said[10]
    assert isinstance(frame, GpuFrame)
    assert frame.at == T0 + 1000
    assert frame.offsets_ms == tuple(range(-900, 1, 100))
    assert frame.power_w == tuple((300.0 + n, 300.0) for n in range(1, 11))
    assert frame.core_c == samples[10].core_c


def test_a_jump_goes_at_once_and_the_ticks_frame_holds_only_the_rest(host: Host) -> None:
    powers = [300.0, 300.0, 300.0, 300.0, 600.0, 600.0, 300.0, 300.0, 300.0, 300.0, 300.0]
    said = polled(host, [sample(T0 + 100 * n, watts, 300.0) for n, watts in enumerate(powers)])
    assert [len(each) for each in said] == [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    early, ticks = said[4][0], said[10][0]
    assert isinstance(early, GpuFrame)
    assert isinstance(ticks, GpuFrame)
    assert (early.at, early.offsets_ms) == (T0 + 400, (-300, -200, -100, 0))
    assert (ticks.at, ticks.offsets_ms) == (T0 + 1000, (-500, -400, -300, -200, -100, 0))
    assert early.id != ticks.id


def test_a_jump_is_a_share_of_the_nameplate_or_degrees_and_unknown_is_none() -> None:
    before = sample(T0, 300.0, 300.0)
    share_w = POWER_RATIO * RATED_W
    assert not jumped(before, sample(T0 + 1, 300.0 + share_w, 300.0), RATED_W)
    assert jumped(before, sample(T0 + 1, 301.0 + share_w, 300.0), RATED_W)
    assert jumped(before, sample(T0 + 1, 300.0, 299.0 - share_w), RATED_W)
    assert not jumped(before, sample(T0 + 1, None, 300.0), RATED_W)
    assert not jumped(before, sample(T0 + 1, core_c=(50.0, 50.0 + CORE_C)), RATED_W)
    assert jumped(before, sample(T0 + 1, core_c=(50.0, 49.0 - CORE_C)), RATED_W)
    assert not jumped(before, sample(T0 + 1, core_c=(None, None)), RATED_W)


def test_samples_that_do_not_fit_together_share_no_frame(host: Host) -> None:
    def exchanged(at: Instant) -> GpuFrame:
        return sample(at, gpus=("GPU-0", "GPU-9"))

    said = polled(
        host,
        [
            sample(T0),
            sample(T0 + 100),
            exchanged(T0 + 200),
            exchanged(T0 + 300),
            exchanged(T0 - HOUR),
        ],
    )
    assert [[event.at - T0 for event in each] for each in said] == [[0], [], [100, 200], [], [300, -HOUR]]


def test_what_was_sampled_before_the_driver_went_away_still_goes_out(host: Host) -> None:
    gone = CollectorError("no driver")
    feed = FeedSample(at=T0, source="collector/test", subject="ams1/feed", power_w=1.0)
    script = Script([[sample(T0)], [sample(T0 + 100), feed], gone, gone])
    framed = FramedCollector(script, host, publish_ms=1000)
    assert framed.poll(T0)
    assert framed.poll(T0 + 100) == [feed]
    assert [event.at for event in framed.poll(T0 + 200)] == [T0 + 100]
    with pytest.raises(CollectorError, match="no driver"):
        framed.poll(T0 + 300)
    framed.close()
    assert script.closed


@given(
    gaps=st.lists(st.integers(1, 700), min_size=1, max_size=40),
    powers=st.lists(st.floats(50.0, 900.0), min_size=40, max_size=40),
)
def test_every_sample_is_in_one_frame_and_at_most_two_frames_come_a_tick(
    gaps: list[int], powers: list[float]
) -> None:
    times = list(itertools.accumulate(gaps, initial=T0))
    samples = [sample(at, powers[i % 40], 300.0) for i, at in enumerate(times)]
    frames = [event for each in polled(any_host(), samples) for event in each]
    got = [
        (frame.at + offset, row)
        for frame in frames
        if isinstance(frame, GpuFrame)
        for offset, row in zip(frame.offsets_ms, frame.power_w, strict=True)
    ]
    assert got == [(each.at, each.power_w[0]) for each in samples[: len(got)]]
    assert len(frames) <= 2 * (1 + (times[-1] - T0) // 1000) + 1
    assert times[-1] - got[-1][0] < 1000 + 700
