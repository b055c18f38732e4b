"""Meters on the power tree: what they say, and what is said of one that is silent."""

import logging
import math
from typing import NamedTuple

import pytest

from collectors.feed_meter import FeedCollector
from schemas.samples import FeedSample, UpsSample
from schemas.units import Reading

FEED, PDU, UPS = "ams1/ups-1/pdu-1/feed-a", "ams1/ups-1/pdu-1", "ams1/ups-1"


class Said(NamedTuple):
    power_w: Reading
    breaker_closed: bool | None = None
    on_battery: bool | None = None


class Scripted:
    """A meter that says what it is told to, or raises it."""

    def __init__(self, *answers: Said | Exception) -> None:
        self.answers = list(answers)

    def read(self) -> Said:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def feeds(collector: FeedCollector, now: int = 0) -> list[FeedSample]:
    return [event for event in collector.poll(now) if isinstance(event, FeedSample)]


def test_feeds_and_upses_say_what_their_meters_read() -> None:
    meters = {
        FEED: Scripted(Said(81_250.5, breaker_closed=True)),
        PDU: Scripted(Said(162_000, breaker_closed=False)),
        UPS: Scripted(Said(170_000.0, breaker_closed=True, on_battery=True)),
    }
    feed, pdu, ups = FeedCollector(meters, upses=[UPS], period_ms=2_000).poll(5_000)
    assert feed == FeedSample(
        at=5_000, source="collector/feed-meter", subject=FEED, power_w=81_250.5, breaker_closed=True
    )
    assert isinstance(pdu, FeedSample)
    assert (pdu.subject, pdu.power_w, pdu.breaker_closed) == (PDU, 162_000.0, False)
    assert isinstance(pdu.power_w, float), "one wire form, whatever the meter counts in"
    assert ups == UpsSample(
        at=5_000, source="collector/feed-meter", subject=UPS, power_w=170_000.0, on_battery=True
    )


@pytest.mark.parametrize(
    "failure", [TimeoutError("no answer in 2 s"), OSError("no route"), ValueError("crc")]
)
def test_a_silent_meter_is_unknown_and_its_neighbours_go_on(failure: Exception) -> None:
    meters = {
        FEED: Scripted(failure),
        UPS: Scripted(failure),
        PDU: Scripted(Said(9.0, breaker_closed=True)),
    }
    feed, ups, pdu = FeedCollector(meters, upses=[UPS], period_ms=2_000).poll(0)
    assert isinstance(feed, FeedSample)
    assert isinstance(ups, UpsSample), "a silent UPS is still a UPS"
    assert isinstance(pdu, FeedSample)
    assert (feed.subject, feed.power_w, feed.breaker_closed) == (FEED, None, None)
    assert (ups.subject, ups.power_w, ups.on_battery) == (UPS, None, None)
    assert pdu.power_w == 9.0


def test_a_silent_meter_is_reported_once_and_so_is_its_return(caplog: pytest.LogCaptureFixture) -> None:
    silent, broken = TimeoutError("gone"), KeyError("watts")
    meter = Scripted(silent, silent, Said(1.0), Said(1.0), broken)
    collector = FeedCollector({FEED: meter}, period_ms=2_000)
    with caplog.at_level(logging.INFO):
        powers = [feeds(collector, now)[0].power_w for now in (0, 1, 2, 3, 4)]
    assert powers == [None, None, 1.0, 1.0, None]
    assert [record.getMessage() for record in caplog.records] == [
        f"meter {FEED} cannot be read: gone",
        f"meter {FEED} answers again",
        f"meter {FEED} cannot be read: KeyError: 'watts'",
    ]


@pytest.mark.parametrize("watts", [math.nan, math.inf, -math.inf, None])
def test_what_is_no_number_is_unknown_and_never_zero(watts: Reading) -> None:
    (feed,) = feeds(FeedCollector({FEED: Scripted(Said(watts, breaker_closed=True))}, period_ms=2_000))
    assert (feed.power_w, feed.breaker_closed) == (None, True)


def test_a_reading_of_zero_is_passed_on_as_zero() -> None:
    (feed,) = feeds(FeedCollector({FEED: Scripted(Said(0.0, breaker_closed=False))}, period_ms=2_000))
    assert (feed.power_w, feed.breaker_closed) == (0.0, False)
