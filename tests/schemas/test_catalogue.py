"""The catalogue: in step with the code, true of real messages, and a guard against parting old from new."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import catalogue_files
from support.messages import message, plain

from schemas.catalogue import TOPICS_FILE, breaks, catalogue, compatible
from schemas.envelope import Event
from schemas.topics import TYPES

COMMITTED = catalogue_files.committed()


def test_the_committed_catalogue_is_in_step_with_the_code() -> None:
    code = catalogue()
    stale = sorted(name for name in code.keys() | COMMITTED.keys() if code.get(name) != COMMITTED.get(name))
    assert not stale, f"schemas/catalog is not what the code says; {catalogue_files.REGENERATE}"


def test_no_change_of_the_code_parts_it_from_what_is_in_use() -> None:
    assert breaks(COMMITTED, catalogue()) == []


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
@settings(max_examples=10)
@given(draws=st.data())
def test_real_messages_are_what_their_schema_says(kind: type[Event], draws: st.DataObject) -> None:
    schema = json.loads(COMMITTED[f"{kind.__name__}.json"])
    jsonschema.Draft202012Validator(schema).validate(plain(draws.draw(message(kind))))


# Each case: a name, a change of the schema of a `LockClocks`, and what it must be told.

LOCK: dict[str, Any] = json.loads(COMMITTED["LockClocks.json"])


def fields(schema: dict[str, Any], of: str = "LockClocks") -> dict[str, Any]:
    found: dict[str, Any] = schema["$defs"][of]["properties"]
    return found


def changed(**edits: Any) -> dict[str, Any]:
    """`LockClocks` with fields set (a schema), or taken away (None), and `required` replaced."""
    schema = copy.deepcopy(LOCK)
    if "required" in edits:
        schema["$defs"]["LockClocks"]["required"] = edits.pop("required")
    for name, field in edits.items():
        if field is None:
            del fields(schema)[name]
        else:
            fields(schema)[name] = field
    return schema


NEEDED = LOCK["$defs"]["LockClocks"]["required"]
LESS = [name for name in NEEDED if name != "max_mhz"]
PATHS = fields(LOCK)["path"]["enum"]
ENUM = {"default": "in_band"}
WITH_LEASE = copy.deepcopy(LOCK)
fields(WITH_LEASE, "Lease")["expires_at"] = {"type": "string"}


@pytest.mark.parametrize(
    ("new", "told"),
    [
        pytest.param(
            changed(max_mhz=None, required=LESS),
            ["an old reader: max_mhz is not said, and it needs it"],
            id="removed",
        ),
        pytest.param(
            changed(max_mhz=None, max_hz={"type": "integer"}, required=[*LESS, "max_hz"]),
            [
                "an old reader: max_mhz is not said, and it needs it",
                "a new reader of old messages: max_hz is not said, and it needs it",
            ],
            id="renamed",
        ),
        pytest.param(
            changed(max_mhz={"type": "integer", "default": 0}, required=LESS),
            ["an old reader: max_mhz may be left out, and it needs it"],
            id="no longer required",
        ),
        pytest.param(
            changed(required=[*NEEDED, "because"]),
            ["a new reader of old messages: because may be left out, and it needs it"],
            id="newly required",
        ),
        pytest.param(
            changed(rack={"type": "string"}, required=[*NEEDED, "rack"]),
            ["a new reader of old messages: rack is not said, and it needs it"],
            id="new and required",
        ),
        pytest.param(
            changed(max_mhz={"type": "string"}),
            [
                "an old reader: max_mhz may be string, where it takes integer",
                "a new reader of old messages: max_mhz may be integer, where it takes string",
            ],
            id="another type",
        ),
        pytest.param(
            changed(max_mhz={"type": "number"}),
            ["an old reader: max_mhz may be number, where it takes integer"],
            id="wider type",
        ),
        pytest.param(
            changed(max_mhz={"anyOf": [{"type": "integer"}, {"type": "null"}]}),
            ["an old reader: max_mhz may be null, where it takes integer"],
            id="may now be unknown",
        ),
        pytest.param(
            changed(min_mhz={"type": "integer"}, required=[*NEEDED, "min_mhz"]),
            [
                "a new reader of old messages: min_mhz may be left out, and it needs it",
                "a new reader of old messages: min_mhz may be null, where it takes integer",
            ],
            id="may no longer be unknown",
        ),
        pytest.param(
            changed(path={**ENUM, "enum": [*PATHS, "firmware"]}),
            ['an old reader: path may be "firmware", where it takes "brake" or "in_band" or "out_of_band"'],
            id="literal gains a value",
        ),
        pytest.param(
            changed(path={**ENUM, "enum": ["in_band", "out_of_band"]}),
            ['a new reader of old messages: path may be "brake", where it takes "in_band" or "out_of_band"'],
            id="literal loses a value",
        ),
        pytest.param(
            changed(path={**ENUM, "type": "string"}),
            ['an old reader: path may be string, where it takes "brake" or "in_band" or "out_of_band"'],
            id="literal opened",
        ),
        pytest.param(
            changed(path={"enum": PATHS, "default": "brake"}),
            [
                'an old reader: path left out means "brake", and it takes "in_band"',
                'a new reader of old messages: path left out means "in_band", and it takes "brake"',
            ],
            id="another default",
        ),
        pytest.param(
            changed(cause={"type": "array", "items": {"type": "integer"}, "default": []}),
            [
                "an old reader: cause[] may be integer, where it takes string",
                "a new reader of old messages: cause[] may be string, where it takes integer",
            ],
            id="another type inside a list",
        ),
        pytest.param(
            WITH_LEASE,
            [
                "an old reader: lease.expires_at may be string, where it takes integer",
                "a new reader of old messages: lease.expires_at may be integer, where it takes string",
            ],
            id="another type inside a struct",
        ),
        pytest.param(
            changed(max_mhz={"type": "integer", "minimum": 1}),
            [
                "an old reader: max_mhz differs in minimum",
                "a new reader of old messages: max_mhz differs in minimum",
            ],
            id="a bound that this check cannot weigh",
        ),
    ],
)
def test_a_change_that_parts_old_from_new_is_found_and_told(new: dict[str, Any], told: list[str]) -> None:
    assert compatible(LOCK, new) == told


@pytest.mark.parametrize(
    "new",
    [
        pytest.param(LOCK, id="none"),
        pytest.param(changed(ramp_s={"type": "number", "default": 0.0}), id="a field that need not be said"),
        pytest.param(changed(because=None), id="one less that need not be said"),
        pytest.param(changed(because={"type": "string", "default": "", "description": "Why."}), id="words"),
    ],
)
def test_a_change_that_parts_nobody_passes(new: dict[str, Any]) -> None:
    assert compatible(LOCK, new) == []


def test_a_map_is_compared_by_its_values() -> None:
    rollup = json.loads(COMMITTED["PowerRollup.json"])
    new = copy.deepcopy(rollup)
    fields(new, "PowerRollup")["verdicts"]["additionalProperties"] = {"type": "string"}
    assert compatible(rollup, new)[0] == "an old reader: verdicts{} may be string, where it takes integer"


def test_a_type_that_is_gone_or_moved_parts_old_from_new_and_a_new_type_does_not() -> None:
    without = {name: content for name, content in COMMITTED.items() if name != "Tick.json"}
    assert breaks(COMMITTED, without) == ["Tick.json: a new reader knows no such message"]
    assert breaks(without, COMMITTED) == []
    moved = COMMITTED | {TOPICS_FILE: COMMITTED[TOPICS_FILE].replace(b'"windrow.ticks"', b'"windrow.beats"')}
    assert breaks(COMMITTED, moved) == [
        "Tick: was said on windrow.ticks by row, and is now said on windrow.beats by row"
    ]


def test_a_break_is_told_with_the_file_it_is_in() -> None:
    new = COMMITTED | {"LockClocks.json": json.dumps(changed(max_mhz=None, required=LESS)).encode()}
    assert breaks(COMMITTED, new) == ["LockClocks.json: an old reader: max_mhz is not said, and it needs it"]


def test_writing_the_catalogue_leaves_what_the_code_says_and_nothing_stale(tmp_path: Path) -> None:
    (tmp_path / "Forgotten.json").write_bytes(b"{}")
    catalogue_files.write(tmp_path, catalogue())
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == catalogue()


def test_a_breaking_catalogue_is_written_only_when_the_break_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(catalogue_files, "FOLDER", tmp_path)
    catalogue_files.write(tmp_path, catalogue() | {"Gone.json": b"{}"})
    assert catalogue_files.main([]) == 1
    assert "Gone.json: a new reader knows no such message" in capsys.readouterr().err
    assert (tmp_path / "Gone.json").exists()
    assert catalogue_files.main(["--accept-breaks"]) == 0
    assert not (tmp_path / "Gone.json").exists()
