"""The catalogue: the message types as JSON Schema, for readers that are not Windrow, and for the check
that a change of the code leaves old and new able to read each other.

`schemas/catalog` holds it as files, one for each type and one for the table of topics. A test keeps
them in step with the code; ``python tests/support/catalogue_files.py`` writes them anew, and
refuses where the change would cut old readers or old recordings off.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import msgspec

from schemas.topics import TOPICS, TYPES

Schema: TypeAlias = dict[str, Any]
"""A JSON Schema, in the vocabulary that msgspec writes."""

TOPICS_FILE = "topics.json"

# Words for people, and the keywords that the comparison reads one by one.
_PROSE = {"title", "description"}
_COMPARED = {"type", "enum", "items", "properties", "required", "additionalProperties", "default", "$defs"}


def catalogue() -> dict[str, bytes]:
    """The files of `schemas/catalog` by name, as the code has them."""
    files = {f"{kind.__name__}.json": _file(_dedented(msgspec.json.schema(kind))) for kind in TYPES}
    files[TOPICS_FILE] = _file(
        [{**topic._asdict(), "types": [kind.__name__ for kind in topic.types]} for topic in TOPICS]
    )
    return files


def compatible(old_schema: Schema, new_schema: Schema) -> list[str]:
    """What parts old from new, in words; empty when each reads what the other writes.

    An old reader meets new messages while a roll-out is under way; a new reader meets old messages in
    recordings and in the ledger. A field more, and a field less that need not be said, part nobody.
    """
    found = [f"an old reader: {trouble}" for trouble in _troubles(old_schema, new_schema)]
    return found + [
        f"a new reader of old messages: {trouble}" for trouble in _troubles(new_schema, old_schema)
    ]


def breaks(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> list[str]:
    """What parts two catalogues (file name → content), in words: `compatible` over every type of the
    old one, and types that are gone, on another topic, or under another key."""
    found: list[str] = []
    for name in sorted(old.keys() - {TOPICS_FILE}):
        if name not in new:
            found.append(f"{name}: a new reader knows no such message")
        else:
            troubles = compatible(json.loads(old[name]), json.loads(new[name]))
            found += [f"{name}: {trouble}" for trouble in troubles]
    homes = dict(_homes(new))
    for kind, (topic, key) in _homes(old):
        now = homes.get(kind)
        if now is not None and now != (topic, key):
            found.append(f"{kind}: was said on {topic} by {key}, and is now said on {now[0]} by {now[1]}")
    return found


def _file(content: object) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _dedented(node: Any) -> Any:
    """The schema with its descriptions as Python 3.13 keeps docstrings: without the source's indent."""
    if isinstance(node, dict):
        return {
            key: inspect.cleandoc(value)
            if key == "description" and isinstance(value, str)
            else _dedented(value)
            for key, value in node.items()
        }
    return [_dedented(item) for item in node] if isinstance(node, list) else node


def _homes(files: Mapping[str, bytes]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Type → its topic and key."""
    for topic in json.loads(files.get(TOPICS_FILE, b"[]")):
        for kind in topic["types"]:
            yield kind, (topic["name"], topic["key"])


def _troubles(reader: Schema, writer: Schema) -> list[str]:
    """What `reader` could not accept, or would misread, of the messages that `writer` allows."""
    return _compare(_Node(reader, reader.get("$defs", {})), _Node(writer, writer.get("$defs", {})), "")


class _Node:
    """A place in a schema, with the definitions its references point to."""

    def __init__(self, schema: Schema, defs: Mapping[str, Schema]) -> None:
        self.schema, self.defs = schema, defs

    def at(self, schema: Schema) -> _Node:
        return _Node(schema, self.defs)

    def choices(self) -> list[_Node]:
        """The forms it may take, references followed."""
        if "$ref" in self.schema:
            return self.at(self.defs[self.schema["$ref"].removeprefix("#/$defs/")]).choices()
        return [form for each in self.schema.get("anyOf", []) for form in self.at(each).choices()] or [self]

    def __str__(self) -> str:
        if "enum" in self.schema:
            return " or ".join(json.dumps(value) for value in self.schema["enum"])
        return str(self.schema.get("type", "anything"))


def _compare(reader: _Node, writer: _Node, where: str) -> list[str]:
    found: list[str] = []
    for said in writer.choices():
        refusals = [_compare_form(form, said, where) for form in reader.choices()]
        if all(refusals):  # no form of the reader's takes it
            takes = " or ".join(map(str, reader.choices()))
            found += refusals[0] if len(refusals) == 1 else [f"{where} may be {said}, where it takes {takes}"]
    return found


def _compare_form(reader: _Node, said: _Node, where: str) -> list[str]:
    takes, says = reader.schema, said.schema
    if "enum" in says and ("enum" in takes or takes.get("type") == "string"):
        taken = takes["enum"] if "enum" in takes else says["enum"]
        more = [json.dumps(value) for value in says["enum"] if value not in taken]
        return [f"{where} may be {value}, where it takes {reader}" for value in more]
    kinds = takes.get("type"), says.get("type")
    if "enum" in takes or (kinds[0] not in (None, kinds[1]) and kinds != ("number", "integer")):
        return [f"{where} may be {said}, where it takes {reader}"]
    found = [
        f"{where} differs in {keyword}"
        for keyword in sorted((takes.keys() | says.keys()) - _PROSE - _COMPARED)
        if takes.get(keyword) != says.get(keyword)
    ]
    if "items" in takes and "items" in says:
        found += _compare(reader.at(takes["items"]), said.at(says["items"]), f"{where}[]")
    values, said_values = takes.get("additionalProperties"), says.get("additionalProperties")
    if isinstance(values, dict) and isinstance(said_values, dict):
        found += _compare(reader.at(values), said.at(said_values), f"{where}{{}}")
    return found + _compare_fields(reader, said, where)


def _compare_fields(reader: _Node, said: _Node, where: str) -> list[str]:
    takes, says = reader.schema.get("properties", {}), said.schema.get("properties", {})
    needed, always = reader.schema.get("required", []), said.schema.get("required", [])
    found: list[str] = []
    for name, field in takes.items():
        path = f"{where}.{name}" if where else name
        if name not in says:
            if name in needed:
                found.append(f"{path} is not said, and it needs it")
            continue
        if name in needed and name not in always:
            found.append(f"{path} may be left out, and it needs it")
        elif name not in always and field.get("default") != says[name].get("default"):
            found.append(
                f"{path} left out means {json.dumps(says[name].get('default'))}, "
                f"and it takes {json.dumps(field.get('default'))}"
            )
        found += _compare(reader.at(field), said.at(says[name]), path)
    return found
