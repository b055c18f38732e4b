"""What every collector keeps to, whatever it reads."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from support.nvml_fixtures import MakeNvmlState
from support.nvml_shim import TIMEOUT, installed

from collectors.base import Collector
from collectors.feed_meter import FeedCollector
from collectors.gpu_nvml import NvmlCollector
from schemas.codec import decode, encode
from schemas.envelope import Event
from schemas.samples import FeedSample, GpuFrame
from schemas.topics import BY_TYPE
from schemas.topology import Host
from schemas.units import Reading

MakeHost = Callable[..., Host]


class Subject(NamedTuple):
    """A collector, and how to make one of its devices fail and answer again."""

    collector: Collector
    fail: Callable[[], None]
    mend: Callable[[], None]


class _Said(NamedTuple):
    power_w: Reading = 5_000.0
    breaker_closed: bool | None = True
    on_battery: bool | None = None


class _Meter:
    failing = False

    def read(self) -> _Said:
        if self.failing:
            raise TimeoutError("no answer")
        return _Said()


def meters(make_host: MakeHost, make_nvml_state: MakeNvmlState) -> Iterator[Subject]:
    bad, good = _Meter(), _Meter()
    collector = FeedCollector({"ams1/ups-1/pdu-1/feed-a": bad, "ams1/ups-1": good}, period_ms=2_000)

    def set_failing(failing: bool) -> None:
        bad.failing = failing

    yield Subject(collector, lambda: set_failing(True), lambda: set_failing(False))


def nvml(make_host: MakeHost, make_nvml_state: MakeNvmlState) -> Iterator[Subject]:
    state = make_nvml_state(gpus=2)
    with installed(state):
        yield Subject(
            NvmlCollector(make_host(2)),
            lambda: state.fail("nvmlDeviceGetClockInfo", TIMEOUT, gpu=0),
            state.clear_faults,
        )


@pytest.fixture(params=[meters, nvml])
def subject(request: pytest.FixtureRequest, make_host: MakeHost) -> Iterator[Subject]:
    make_state = request.getfixturevalue("make_nvml_state") if request.param is nvml else None
    yield from request.param(make_host, make_state)


def test_each_poll_speaks_of_its_own_instant_and_names_its_source(subject: Subject) -> None:
    assert subject.collector.period_ms > 0
    for now in (1_000, 3_000):
        events = subject.collector.poll(now)
        assert events
        assert {event.at for event in events} == {now}
        assert {event.source for event in events} == {subject.collector.name}


def test_what_it_says_has_a_topic_and_survives_the_wire(subject: Subject) -> None:
    for event in subject.collector.poll(1_000):
        assert type(event) in BY_TYPE
        assert decode(encode(event)) == event
        assert encode(decode(encode(event))) == encode(event)


def test_it_says_nothing_twice_under_one_id(subject: Subject) -> None:
    ids = [event.id for now in (0, 1, 2) for event in subject.collector.poll(now)]
    assert len(set(ids)) == len(ids)


def test_a_failing_device_changes_no_shape_and_passes_when_it_is_over(subject: Subject) -> None:
    sound = subject.collector.poll(0)
    subject.fail()
    failed = subject.collector.poll(1_000)
    subject.mend()
    mended = subject.collector.poll(2_000)
    assert [event.subject for event in failed] == [event.subject for event in sound]
    assert [_powers(event) for event in failed] != [_powers(event) for event in sound]
    assert not any(0.0 in _powers(event) for event in failed)
    assert [_powers(event) for event in mended] == [_powers(event) for event in sound]


def test_closing_it_twice_is_as_good_as_once(subject: Subject) -> None:
    subject.collector.poll(0)
    subject.collector.close()
    subject.collector.close()


def test_one_never_polled_can_be_closed(subject: Subject) -> None:
    subject.collector.close()


def _powers(event: Event) -> tuple[Reading, ...]:
    if isinstance(event, GpuFrame):
        return event.power_w[0]
    assert isinstance(event, FeedSample)
    return (event.power_w,)
