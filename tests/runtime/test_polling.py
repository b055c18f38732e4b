"""One source that fails or hangs silences nobody else, and is seen to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from collectors.base import CollectorError
from runtime.clock import SystemClock
from runtime.polling import InlineSamples, ThreadedSamples
from schemas.envelope import Event
from schemas.instants import HOUR, Instant, Span
from schemas.samples import FeedSample

T0: Instant = 1_772_366_400_000
PATIENCE_S = 20.0


class Source:
    """A collector whose `n`-th poll (from 0) does what `script` says, and whose polls can be awaited."""

    def __init__(
        self, name: str, script: Callable[[int], Sequence[Event] | None] | None = None, period_ms: Span = 20
    ) -> None:
        self.name = name
        self.period_ms = period_ms
        self.polls: list[Instant] = []
        self.closed = threading.Event()
        self._script = script
        self._changed = threading.Condition()

    def poll(self, now: Instant) -> Sequence[Event]:
        with self._changed:
            self.polls.append(now)
            self._changed.notify_all()
        said = self._script(len(self.polls) - 1) if self._script else None
        return said if said is not None else [self.sample(now)]

    def sample(self, at: Instant) -> FeedSample:
        return FeedSample(at=at, source=f"collector/{self.name}", subject=f"ams1/{self.name}", power_w=1.0)

    def close(self) -> None:
        self.closed.set()

    def await_polls(self, count: int) -> None:
        """Until so many polls have begun: all before the last are then over, and what they read is queued."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.polls) >= count, PATIENCE_S), self.name


def away(n: int) -> Sequence[Event]:
    raise CollectorError("no driver")


def faulty(n: int) -> Sequence[Event]:
    raise ZeroDivisionError(f"poll {n // 2}")


# ---- inline -----------------------------------------------------------------------------------


def test_a_collector_is_polled_once_in_each_period_on_its_grid() -> None:
    source = Source("meter", period_ms=2000)
    samples = InlineSamples([source])
    for now in range(T0 + 700, T0 + 6700, 100):
        samples.gather(now)
    assert source.polls == [T0 + 700, T0 + 2000, T0 + 4000, T0 + 6000]
    assert samples.next_poll(T0 + 6600) == T0 + 8000


def test_a_clock_that_is_set_back_does_not_silence_a_collector() -> None:
    source = Source("meter", period_ms=2000)
    samples = InlineSamples([source])
    assert samples.gather(T0)
    assert samples.gather(T0 - HOUR)
    assert not samples.gather(T0 - HOUR + 1000)
    assert samples.gather(T0 - HOUR + 2000)


@pytest.mark.parametrize("script", [away, faulty])
def test_an_inline_collector_that_raises_is_counted_and_the_others_go_on(
    script: Callable[[int], Sequence[Event]], caplog: pytest.LogCaptureFixture
) -> None:
    well = Source("well")
    samples = InlineSamples([Source("ill", script), well])
    for now in range(T0, T0 + 100, 20):
        assert samples.gather(now) == [well.sample(now)]
    ill, other = samples.states()
    assert (ill.failures, ill.answered_at) == (5, None)
    assert ill.away in ("no driver", "ZeroDivisionError: poll 2")
    assert (other.failures, other.away, other.answered_at) == (0, "", T0 + 80)


def test_a_collector_that_is_away_is_said_once_and_again_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source("meter", lambda n: away(n) if n < 4 else None)
    samples = InlineSamples([source])
    for now in range(T0, T0 + 120, 20):
        samples.gather(now)
    assert [record.getMessage() for record in caplog.records] == ["meter: no driver", "meter answers again"]
    (state,) = samples.states()
    assert (state.failures, state.away) == (4, "")


# ---- on threads -------------------------------------------------------------------------------


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets a hanging collector go, at the latest when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_a_hanging_collector_is_seen_and_the_others_go_on(release: threading.Event) -> None:
    def hang(n: int) -> Sequence[Event]:
        release.wait()
        return []

    hung, well = Source("hung", hang), Source("well")
    samples = ThreadedSamples([hung, well], SystemClock())
    try:
        hung.await_polls(1)
        began = len(well.polls)
        well.await_polls(began + 5)
        assert {event.subject for event in samples.gather(0)} == {"ams1/well"}
        state, other = samples.states()
        assert state.asking_since == hung.polls[0]
        assert state.answered_at is None
        assert other.answered_at is not None
    finally:
        samples.close()  # returns although the driver has not
    assert well.closed.is_set()
    assert not hung.closed.is_set()
    release.set()
    assert hung.closed.wait(PATIENCE_S)  # a driver that comes back after all is let go of


@pytest.mark.parametrize("script", [away, faulty])
def test_a_collector_that_raises_is_polled_on(
    script: Callable[[int], Sequence[Event]], caplog: pytest.LogCaptureFixture
) -> None:
    source = Source("ill", lambda n: script(n) if n < 3 else None)
    samples = ThreadedSamples([source], SystemClock())
    try:
        source.await_polls(5)
        assert samples.gather(0)[0] == source.sample(source.polls[3])
        (state,) = samples.states()
        assert (state.failures, state.away) == (3, "")
    finally:
        samples.close()


def test_what_nobody_gathers_is_dropped_from_its_old_end_and_counted() -> None:
    batch = 400
    first = 1_000_000

    def many(n: int) -> Sequence[Event]:
        start = first + n * batch
        return [FeedSample(at=at, source="s", subject="x", power_w=1.0) for at in range(start, start + batch)]

    chatty, quiet = Source("chatty", many), Source("quiet")
    samples = ThreadedSamples([chatty, quiet], SystemClock())
    try:
        chatty.await_polls(5)
        quiet.await_polls(2)
    finally:
        samples.close()
    gathered = [event for event in samples.gather(0) if event.subject == "x"]
    read = len(chatty.polls) * batch
    assert [event.at for event in gathered] == list(range(first + read - samples.LATEST, first + read))
    states = samples.states()
    assert [state.dropped for state in states] == [read - samples.LATEST, 0]  # a chatty one crowds nobody out
    assert samples.gather(0) == []


def test_closing_closes_every_collector_though_one_will_not(caplog: pytest.LogCaptureFixture) -> None:
    class Stubborn(Source):
        def close(self) -> None:
            raise OSError("busy")

    sources = [Stubborn("stubborn"), Source("a"), Source("b")]
    for samples in (InlineSamples(sources), ThreadedSamples(sources, SystemClock())):
        for source in sources:
            source.closed.clear()
        samples.close()
        assert [source.closed.is_set() for source in sources] == [False, True, True]
    assert "stubborn: could not be closed" in caplog.text
