from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rhumbline.data.load import rows
from rhumbline.errors import DataError

ROWS = [{"prompt": "Why?", "split": "train", "n": 1}, {"prompt": "Wie?\u2028Zwei", "split": "test", "n": 2}]


def lines(data) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in data).encode()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines(ROWS)),
        ("a.jsonl", b"\xef\xbb\xbf" + lines(ROWS) + b"\n\n"),  # a BOM, blank lines
        ("a.jsonl.gz", lines(ROWS)),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json.gz", json.dumps(ROWS, indent=1).encode()),
        ("a.json", json.dumps({"data": ROWS}).encode()),
        ("a.json", lines(ROWS)),  # JSON Lines by another name
    ],
)
def test_every_text_format_gives_the_same_rows(tmp_path, name, content):
    assert list(rows(written(tmp_path / name, content))) == ROWS


def test_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    nested = [{"prompt": "a", "ratings": {"x": 1.0, "y": None}}, {"prompt": "b", "ratings": {"x": 0.0, "y": 2.0}}]
    pq.write_table(pa.Table.from_pylist(nested), tmp_path / "a.parquet")
    assert list(rows(tmp_path / "a.parquet")) == nested
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        list(rows(written(tmp_path / "b.parquet", b"no parquet")))


def test_a_json_object_is_one_row(tmp_path):
    one = {"messages": [{"role": "user", "content": "a"}]}
    assert list(rows(written(tmp_path / "a.json", json.dumps(one).encode()))) == [one]


def test_a_split_of_a_file(tmp_path):
    path = written(tmp_path / "a.jsonl", lines(ROWS))
    assert [row["n"] for row in rows(path, split="test")] == [2]
    with pytest.raises(DataError, match=r"no row of split 'tset'\. Did you mean 'test'\? Found: test, train"):
        list(rows(path, split="tset"))
    bare = written(tmp_path / "b.jsonl", b'{"prompt": "a"}')
    with pytest.raises(DataError, match="no column 'split'"):
        list(rows(bare, split="train"))


def test_rows_are_read_lazily(tmp_path):
    first = next(rows(written(tmp_path / "a.jsonl", lines(ROWS) + b"\nbroken")))
    assert first == ROWS[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.jsonl", b"\n \n", "empty"),
        ("a.json", b"[]", "empty"),
        ("a.json", b"", "empty"),
        ("a.jsonl.gz", b"", "empty"),
        ("a.jsonl", lines(ROWS) + b'\n{"prompt": "x"', r"a\.jsonl:3: not JSON.*column"),
        ("a.jsonl", lines(ROWS) + b'\n["x"]', r"a\.jsonl:3: expected an object .* found list"),
        ("a.jsonl", b'{"prompt": "\xff"}', r"a\.jsonl:1: not UTF-8"),
        ("a.json", b'[{"a": 1},\n{"b": }]', r"a\.json:2: not JSON"),
        ("a.json", b"[1]", r"element 1: expected an object"),
        ("a.json", b"7", "expected a list of objects, found int"),
        ("a.csv", b"prompt\nWhy?", r"unknown format, expected one of \.jsonl"),
    ],
)
def test_unreadable_files_say_where(tmp_path, name, content, message):
    path = written(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        list(rows(path))


def test_a_broken_archive(tmp_path):
    whole = gzip.compress(lines(ROWS * 500))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.jsonl.gz").write_bytes(b"not gzip")
    for name in ("cut", "no"):
        with pytest.raises(DataError, match="cannot be read after line"):
            list(rows(tmp_path / f"{name}.jsonl.gz"))


def test_a_missing_file_is_named_at_once_with_its_neighbour(tmp_path):
    written(tmp_path / "ratings.jsonl", lines(ROWS))
    with pytest.raises(DataError, match=r"not found: .*rating\.jsonl\. Did you mean 'ratings\.jsonl'\?"):
        rows(tmp_path / "rating.jsonl")
    with pytest.raises(DataError, match="there is no folder"):
        rows(tmp_path / "nowhere" / "ratings.jsonl")
    with pytest.raises(DataError, match=r"is a folder.*ratings\.jsonl"):
        rows(tmp_path)


def test_embedded_prompts():
    found = list(rows("embedded"))
    assert len(found) >= 300
    assert all(isinstance(row["prompt"], str) and row["prompt"].strip() for row in found)


# --- the hub, without the hub -----------------------------------------------------------------------------------------


class Api:
    """Stands for HfApi: what its one request ends in."""

    outcome: Exception | None = None

    def dataset_info(self, name: str, timeout: float) -> None:
        assert "/" in name or name.isidentifier()
        assert timeout > 0
        if self.outcome is not None:
            raise self.outcome


@pytest.fixture
def hub(monkeypatch):
    import datasets
    import huggingface_hub

    def set_up(splits, outcome=None):
        def load_dataset(name):
            if outcome is not None:
                # Unreachable: only the cache may be asked, or this would retry for half a minute.
                assert datasets.config.HF_HUB_OFFLINE
            if splits is None:
                raise ConnectionError(f"Couldn't reach {name!r} on the Hub")
            return splits

        monkeypatch.setattr(Api, "outcome", outcome)
        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)

    return set_up


def test_a_hub_name(hub):
    import datasets

    train = datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}])
    test = datasets.Dataset.from_list([{"prompt": "c"}])
    hub(datasets.DatasetDict({"train": train, "test": test}))
    assert list(rows("owner/name")) == [{"prompt": "a"}, {"prompt": "b"}]
    assert list(rows("owner/name", split="test")) == [{"prompt": "c"}]
    with pytest.raises(DataError, match=r"no split 'tests'\. Did you mean 'test'"):
        rows("owner/name", split="tests")
    hub(datasets.DatasetDict({"train_sft": train, "test_sft": test}))
    with pytest.raises(DataError, match=r"splits train_sft, test_sft: say which one"):
        rows("owner/name")


def test_a_hub_that_cannot_be_reached(hub):
    import datasets

    hub(None, outcome=OSError("Name or service not known"))
    with pytest.raises(DataError, match=r"hub cannot be reached and its cache .* Name or service not known"):
        rows("owner/name")
    assert datasets.config.HF_HUB_OFFLINE is False
    # What was downloaded before is still there.
    hub(datasets.DatasetDict({"train": datasets.Dataset.from_list([{"prompt": "a"}])}), outcome=OSError("down"))
    assert list(rows("owner/name")) == [{"prompt": "a"}]


def test_a_name_that_is_no_data_set(hub):
    hub(None)
    with pytest.raises(DataError, match="cannot be loaded"):
        rows("owner/name")
    # Three parts, or an ending, are a path: nobody is asked.
    hub(None, outcome=AssertionError("asked the hub"))
    for path in ("a/b/c", "name.jsonl", "./name", "owner/name.csv"):
        with pytest.raises(DataError, match="data file not found"):
            rows(path)
