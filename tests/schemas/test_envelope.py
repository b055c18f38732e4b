"""Ids: worked out from what a message is, so the same anywhere, and different for different messages."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages import messages

from schemas.codec import decode, encode
from schemas.decisions import Decision
from schemas.emergencies import Emergency
from schemas.envelope import DeadLetter, Event, Tick, derive_id
from schemas.forecasts import ForecastScore, PeakForecast
from schemas.outcomes import Verified

SAID: dict[str, Any] = {"at": 1_772_366_400_250, "source": "detect/overload", "subject": "ams1/row-b"}


def test_the_ids_of_a_recording_are_the_ones_any_release_derives() -> None:
    """Golden values: an id that changes cuts the audit of what was recorded before."""
    assert derive_id("Tick", "s", "x", 1) == "6a91540393b50e112500"
    assert derive_id("Tick", "s", "x", 1, ("a", "b")) == "13e4ec49e0ca6aeca52b"
    assert Tick(at=1, source="s", subject="x").id == "6a91540393b50e112500"
    assert Emergency(**SAID, kind="overload", phase="raised", because="hot").id == "555df52405771cd0ef7f"
    assert (
        DeadLetter(at=1, source="s", subject="x", topic="t", payload=b"?", reason="r").id
        == "69a668de6c01b59afe10"
    )


# Neither the mark between an id's parts nor surrogates, which no UTF-8 holds.
NAMES = st.characters(exclude_characters="\x1f", exclude_categories=["Cs"])
KINDS, TEXTS = (
    st.sampled_from(["Tick", "GpuFrame"]),
    st.text(NAMES, max_size=3),
)
WHAT = st.tuples(KINDS, TEXTS, TEXTS, st.integers(0, 3), st.lists(TEXTS, max_size=2).map(tuple))


@given(one=WHAT, other=WHAT)
def test_two_messages_share_an_id_only_if_type_source_subject_time_and_cause_agree(
    one: tuple[str, str, str, int, tuple[str, ...]], other: tuple[str, str, str, int, tuple[str, ...]]
) -> None:
    assert (derive_id(*one) == derive_id(*other)) == (one == other)


@given(event=messages())
def test_an_id_is_twenty_letters_and_digits_and_the_same_when_worked_out_again(event: Event) -> None:
    assert len(event.id) == 20
    assert event.id.isalnum()
    assert event.id == event.id.lower()
    assert msgspec.structs.replace(event, id="").id == event.id


def test_a_reader_takes_the_id_it_was_sent() -> None:
    sent = Tick(at=1, source="s", subject="x", id="chosen-elsewhere")
    assert decode(encode(sent)).id == "chosen-elsewhere"


def emergency(**more: Any) -> Emergency:
    return Emergency(**{**SAID, "kind": "overload", "phase": "raised", "because": "", **more})


def decision(policy: str) -> Decision:
    return Decision(**SAID, policy=policy, mode="U", since=0, desired=(), because="")


def forecast(model: str) -> PeakForecast:
    return PeakForecast(**SAID, model=model, horizons_s=(), quantiles=(), values=())


def score(model: str) -> ForecastScore:
    return ForecastScore(
        **SAID, model=model, horizons_s=(), quantiles=(), samples=1, pinball_w=(), coverage_ratio=()
    )


def letter(payload: bytes) -> DeadLetter:
    return DeadLetter(**SAID, topic="windrow.gpus", payload=payload, reason="")


def verified(command: str) -> Verified:
    return Verified(**SAID, command=command, epoch=1, observed=1_275.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (emergency(), emergency(kind="failover")),
        (emergency(), emergency(phase="cleared")),
        (decision("capping"), decision("thermal")),
        (forecast("boosted"), forecast("last-peak")),
        (score("boosted"), score("last-peak")),
        (letter(b"{"), letter(b"[")),
        (verified("a"), verified("b")),
    ],
    ids=lambda event: type(event).__name__,
)
def test_what_one_source_says_of_one_subject_in_one_tick_is_told_apart(one: Event, other: Event) -> None:
    assert one.id != other.id


def test_an_emergency_is_one_episode_from_raised_to_cleared() -> None:
    raised = emergency()
    assert raised.episode == raised.id
    cleared = emergency(at=SAID["at"] + 60_000, phase="cleared", episode=raised.episode)
    assert cleared.episode == raised.id != cleared.id
    assert decode(encode(cleared)) == cleared


def test_a_message_cannot_be_changed_after_it_was_said() -> None:
    with pytest.raises(AttributeError):
        Tick(at=1, source="s", subject="x").at = 2  # type: ignore[misc]
