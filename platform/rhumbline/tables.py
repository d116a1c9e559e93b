"""Records as Parquet, exactly: nested structs whose types are read off the dataclasses. The store writes with it.

data = to_parquet([scored, ...])       # bytes; the file's metadata says record=Scored
from_parquet(data)                     # [Scored(...), ...], equal to what was written
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rhumbline.errors import StoreError
from rhumbline.records import Completion, Example, Judged, Pair, Prompt, Query, Scored, Selected

Record = Prompt | Query | Completion | Scored | Selected | Example | Pair | Judged
KINDS: dict[str, type[Record]] = {
    kind.__name__: kind for kind in (Prompt, Query, Completion, Scored, Selected, Example, Pair, Judged)
}
_PRIMITIVES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def to_parquet(records: Sequence[Record]) -> bytes:
    """One Parquet file of records of one kind. Raises StoreError where a value does not fit its type."""
    kinds = {type(record) for record in records}
    if len(kinds) > 1:
        raise StoreError(f"one file holds one kind of record, got {', '.join(sorted(k.__name__ for k in kinds))}")
    if not kinds:
        table = pa.table({}).replace_schema_metadata({"record": ""})
    else:
        kind = kinds.pop()
        write = _writer(kind)
        try:
            table = pa.Table.from_pylist([write(record) for record in records], schema=schema(kind))
        except (pa.ArrowException, OverflowError, UnicodeError, TypeError) as e:
            raise StoreError(f"{kind.__name__} records cannot be written as Parquet: {e}") from e
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def from_parquet(data: bytes) -> list[Record]:
    """The records of a file made by `to_parquet`, also before fields with a default were added. Else raises StoreError."""
    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowException as e:
        raise StoreError(f"not a Parquet file: {e}") from e
    name = (table.schema.metadata or {}).get(b"record", b"?").decode()
    if name == "":
        return []
    if name not in KINDS:
        raise StoreError(f"the file holds {name!r} records, known are {', '.join(KINDS)}")
    kind = KINDS[name]
    other = f"{name} records of another version: fields {table.schema.names}, expected {schema(kind).names}"
    if not set(table.schema.names) <= set(schema(kind).names):
        raise StoreError(other)
    build = _reader(kind)
    try:
        return [build(row) for row in table.to_pylist()]
    except TypeError as e:  # a field without a default is not there
        raise StoreError(f"{other} ({e})") from None


def schema(kind: type[Record]) -> pa.Schema:
    """Arrow fields of a record in the order of the dataclass, with the metadata key `record`."""
    return pa.schema(list(_arrow(kind)), metadata={"record": kind.__name__})


def _arrow(hint: Any) -> Any:
    hint, _ = _optional(hint)
    if dataclasses.is_dataclass(hint):
        return pa.struct([pa.field(name, _arrow(sub)) for name, sub in typing.get_type_hints(hint).items()])
    if typing.get_origin(hint) is tuple:
        return pa.list_(_arrow(typing.get_args(hint)[0]))
    return pa.string() if typing.get_origin(hint) is typing.Literal else _PRIMITIVES[hint]


def _writer(hint: Any) -> Callable[[Any], Any]:
    hint, optional = _optional(hint)
    if optional:
        inner = _writer(hint)
        return lambda value: None if value is None else inner(value)
    if dataclasses.is_dataclass(hint):
        fields = [(name, _writer(sub)) for name, sub in typing.get_type_hints(hint).items()]
        return lambda record: {name: write(getattr(record, name)) for name, write in fields}
    if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(typing.get_args(hint)[0]):
        inner = _writer(typing.get_args(hint)[0])
        return lambda values: [inner(value) for value in values]
    return lambda value: value


def _reader(hint: Any) -> Callable[[Any], Any]:
    hint, optional = _optional(hint)
    if optional:
        inner = _reader(hint)
        return lambda value: None if value is None else inner(value)
    if dataclasses.is_dataclass(hint):
        make: Callable[..., Any] = typing.cast(Any, hint)
        fields = [(name, _reader(sub)) for name, sub in typing.get_type_hints(hint).items()]
        # A field that came later has its default in older files.
        return lambda row: make(**{name: read(row[name]) for name, read in fields if name in row})
    if typing.get_origin(hint) is tuple:
        inner = _reader(typing.get_args(hint)[0])
        return lambda values: tuple(inner(value) for value in values)
    return lambda value: value


def _optional(hint: Any) -> tuple[Any, bool]:
    """`X | None` as (X, True), anything else as it is."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (inner,) = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return inner, True
    return hint, False
