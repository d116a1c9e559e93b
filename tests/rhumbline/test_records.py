"""Records: frozen plain data that pickles, diffs, and survives Parquet exactly."""

from __future__ import annotations

import dataclasses
import pickle
import typing
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline import records
from rhumbline.errors import StoreError
from rhumbline.records import Completion, Message, Prompt, Query, Scored
from rhumbline.tables import KINDS, Record, from_parquet, schema, to_parquet

QUERY = Query(
    prompt=Prompt(id="p1", messages=(Message(role="user", content="Why?"),)),
    iteration=1,
    direction=(0.8, -0.6),
    direction_index=2,
    style="",
    messages=(Message(role="system", content="s"), Message(role="user", content="Why?")),
    seed=7,
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)  # surrogates are no text


def any_of(kind: Any) -> st.SearchStrategy[Any]:
    """Records by their own type hints, so that a new field is tested from its first day."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(typing.cast(Any, kind), **{name: any_of(hint) for name, hint in hints.items()})
    if typing.get_origin(kind) is tuple:
        return st.lists(any_of(typing.get_args(kind)[0]), max_size=3).map(tuple)
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    if typing.get_args(kind):
        return st.one_of([any_of(arg) for arg in typing.get_args(kind)])
    numbers: dict[Any, st.SearchStrategy[Any]] = {
        str: texts,
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return numbers[kind]


def test_ids_name_the_path_through_the_stages() -> None:
    completion = Completion(
        query=QUERY,
        sample_index=5,
        text="Because.",
        token_ids=(3, 4),
        logprob=-1.5,
        finish_reason="stop",
        policy_version="t=0",
    )
    assert QUERY.id == "p1/d2"
    assert completion.id == "p1/d2/s5"


def test_records_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        QUERY.seed = 8  # type: ignore[misc]  # frozen: the point of the test
    assert not hasattr(QUERY, "__dict__")
    with pytest.raises(TypeError):
        Message("user", "keywords only")  # type: ignore[call-arg]  # the point of the test


def test_every_record_can_be_stored() -> None:
    stages = {kind for kind in vars(records).values() if dataclasses.is_dataclass(kind)} - {Message}
    assert set(KINDS.values()) == stages


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_records_survive_parquet_and_pickle_exactly(kind: type[Record], data: st.DataObject) -> None:
    written = data.draw(st.lists(any_of(kind), min_size=1, max_size=4))
    assert from_parquet(to_parquet(written)) == written
    assert pickle.loads(pickle.dumps(written)) == written


def test_a_file_says_what_it_holds() -> None:
    assert schema(Scored).metadata == {b"record": b"Scored"}
    assert from_parquet(to_parquet([])) == []


def test_numbers_that_are_none_stay_apart_from_zero_and_empty() -> None:
    written: list[Record] = [
        dataclasses.replace(QUERY, direction=direction) for direction in (None, (), (0.0, float("inf")))
    ]
    back = from_parquet(to_parquet(written))
    assert [query.direction for query in back if isinstance(query, Query)] == [None, (), (0.0, float("inf"))]


def test_what_cannot_be_stored_says_so() -> None:
    with pytest.raises(StoreError, match="one kind of record, got Prompt, Query"):
        to_parquet([QUERY, QUERY.prompt])
    with pytest.raises(StoreError, match="Query records cannot be written"):
        to_parquet([dataclasses.replace(QUERY, seed=2**64)])
    with pytest.raises(StoreError, match="Query records cannot be written"):
        to_parquet([dataclasses.replace(QUERY, style="\ud800")])
    with pytest.raises(StoreError, match="not a Parquet file"):
        from_parquet(b"half a file")


def test_a_field_that_came_later_has_its_default_in_older_files() -> None:
    answer = Completion(
        query=QUERY,
        sample_index=0,
        text="So.",
        token_ids=(4,),
        logprob=-1.0,
        finish_reason="stop",
        policy_version="t=1",
    )
    table = pq.read_table(pa.BufferReader(to_parquet([answer])))
    older = pa.BufferOutputStream()
    pq.write_table(table.drop_columns(["token_logprobs"]), older)
    assert from_parquet(older.getvalue().to_pybytes()) == [answer]
    broken = pa.BufferOutputStream()
    pq.write_table(table.drop_columns(["text"]), broken)
    with pytest.raises(StoreError, match=r"Completion records of another version.*'text'"):
        from_parquet(broken.getvalue().to_pybytes())
