"""Old and new versions read each other: today's code against how every release wrote its messages."""

import json
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.catalogue_files import Release, freeze, released
from support.messages import message, plain

from schemas.catalogue import TOPICS_FILE, breaks, catalogue
from schemas.codec import decode
from schemas.envelope import Event
from schemas.topics import BY_TYPE

RELEASES = released()
TYPES: dict[str, type[Event]] = {kind.__name__: kind for kind in BY_TYPE}

every_release = pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)


def test_there_is_a_release_to_compare_with() -> None:
    assert RELEASES


@every_release
def test_nothing_parts_today_from_a_release(release: Release) -> None:
    assert breaks(release.catalogue, catalogue()) == []


@every_release
def test_today_reads_what_a_release_wrote_and_takes_it_to_mean_the_same(release: Release) -> None:
    for line in release.messages:
        said: dict[str, Any] = json.loads(line)
        event = decode(line)
        assert type(event).__name__ == said.pop("type")
        read = msgspec.json.decode(msgspec.json.encode(msgspec.structs.asdict(event)))
        assert {name: read[name] for name in said if name in read} == {
            name: value for name, value in said.items() if name in read
        }
        assert event.id == said["id"]


@every_release
def test_the_messages_kept_of_a_release_are_of_every_type_it_had(release: Release) -> None:
    kinds = {name.removesuffix(".json") for name in release.catalogue.keys() - {TOPICS_FILE}}
    assert {json.loads(line)["type"] for line in release.messages} == kinds


@every_release
@settings(max_examples=100)
@given(draws=st.data())
def test_a_release_accepts_what_is_written_today_and_what_a_later_version_may_add(
    release: Release, draws: st.DataObject
) -> None:
    known = sorted(kind for kind in TYPES if f"{kind}.json" in release.catalogue)
    kind = draws.draw(st.sampled_from(known))
    said = plain(draws.draw(message(TYPES[kind]))) | {"a_field_of_a_later_version": [1, {"deep": None}]}
    jsonschema.Draft202012Validator(json.loads(release.catalogue[f"{kind}.json"])).validate(said)


def test_a_release_that_is_kept_is_never_written_over() -> None:
    with pytest.raises(FileExistsError):
        freeze(RELEASES[-1].version)
