"""Hypothesis strategies for every message type, made from the types themselves."""

from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect as mi

from schemas.envelope import Event
from schemas.operators import LONGEST_PIN, Pin
from schemas.topics import TYPES

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)  # surrogates are no UTF-8
_INTEGERS = st.integers(-(2**63), 2**63 - 1)
_INSTANTS = st.integers(0, 253_402_300_799_999)  # to the end of the year 9999
_COUNTS = st.integers(0, (1 << 53) - 1)
_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_NAMED: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("at", "issued_at", "expires_at"), _INSTANTS),
    **dict.fromkeys(("epoch", "fenced_by"), _COUNTS),
    "upto": st.dictionaries(_TEXTS, _COUNTS, max_size=3),
}


def messages(*kinds: type[Event]) -> st.SearchStrategy[Event]:
    """Messages of these types, or of any type; ids are derived."""
    return st.sampled_from(kinds or TYPES).flatmap(message)


def message(kind: type[Event]) -> st.SearchStrategy[Event]:
    """Messages of one type."""
    made = _structs(mi.type_info(kind), without=("id",))
    return made.filter(lambda pin: pin.expires_at - pin.at <= LONGEST_PIN) if kind is Pin else made


def _structs(info: Any, without: tuple[str, ...] = ()) -> st.SearchStrategy[Any]:
    fields = [field for field in info.fields if field.name not in without]
    return st.fixed_dictionaries(
        {field.name: _of(field) for field in fields if field.required},
        optional={field.name: _of(field) for field in fields if not field.required},
    ).map(lambda values: info.cls(**values))


def _of(field: mi.Field) -> st.SearchStrategy[Any]:
    return _NAMED[field.name] if field.name in _NAMED else _values(field.type)


def _values(info: mi.Type) -> st.SearchStrategy[Any]:
    match info:
        case mi.StructType():
            return _structs(info)
        case mi.UnionType():
            return st.one_of([_values(each) for each in info.types])
        case mi.VarTupleType():
            return st.lists(_values(info.item_type), max_size=3).map(tuple)
        case mi.DictType():
            return st.dictionaries(_values(info.key_type), _values(info.value_type), max_size=3)
        case mi.LiteralType():
            return st.sampled_from(info.values)
        case mi.StrType():
            return _TEXTS
        case mi.IntType():
            return _INTEGERS
        case mi.FloatType():
            return _FLOATS
        case mi.BoolType():
            return st.booleans()
        case mi.BytesType():
            return st.binary(max_size=16)
        case mi.NoneType():
            return st.none()
    raise NotImplementedError(f"no strategy for {info}")


def specimens(kind: type[Event]) -> tuple[Event, Event]:
    """Two fixed messages of a type: one says only what it must, the other says every field."""
    fields = [field for field in mi.type_info(kind).fields if field.name != "id"]  # type: ignore[attr-defined]
    bare = {field.name: _specimen(field.type) for field in fields if field.required}
    return kind(**bare), kind(**{field.name: _specimen(field.type) for field in fields})


def _specimen(info: mi.Type) -> Any:
    match info:
        case mi.StructType():
            return info.cls(**{field.name: _specimen(field.type) for field in info.fields})
        case mi.UnionType():
            return next(_specimen(each) for each in info.types if not isinstance(each, mi.NoneType))
        case mi.VarTupleType():
            return (_specimen(info.item_type),) * 2
        case mi.DictType():
            return {_specimen(info.key_type): _specimen(info.value_type)}
        case mi.LiteralType():
            return info.values[-1]
        case mi.StrType():
            return "ams1/row-b"
        case mi.IntType():
            return 1_760_000_000_000
        case mi.FloatType():
            return 512.25
        case mi.BoolType():
            return True
        case mi.BytesType():
            return b"\x00\xff"
    raise NotImplementedError(f"no specimen for {info}")


def plain(event: Event) -> dict[str, Any]:
    """A message as the JSON object that stands on the wire."""
    return dict(msgspec.json.decode(msgspec.json.encode(event)))
