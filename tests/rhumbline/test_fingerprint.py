"""Other weights have another fingerprint, wherever they differ; the same ones have the same, whoever wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rhumbline.errors import ConfigError
from rhumbline.fingerprint import fingerprint
from tests.rhumbline.learning_fakes import tiny_policy


def test_a_fingerprint_is_of_the_weights_and_not_of_who_wrote_them(tmp_path: Path) -> None:
    base = tiny_policy(tmp_path / "base")
    before = fingerprint(base)
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | {"transformers_version": "0"}))
    assert fingerprint(base) == before == fingerprint(tiny_policy(tmp_path / "again"))
    assert fingerprint(tiny_policy(tmp_path / "other", seed=1)) != before
    (base / "config.json").write_text(json.dumps(settings | {"rope_theta": 1.0}))
    assert fingerprint(base) != before


def test_a_fingerprint_sees_a_single_matrix_that_moved(tmp_path: Path) -> None:
    base = tiny_policy(tmp_path / "base")
    before, file = fingerprint(base), base / "model.safetensors"
    original, original_bytes = load_file(file), file.read_bytes()
    seen = {before}
    for name in original:
        moved = {key: tensor.clone() for key, tensor in original.items()}
        moved[name] += 0.5
        save_file(moved, file, metadata={"format": "pt"})
        seen.add(fingerprint(base))
    assert len(seen) == len(original) + 1
    for damaged in (b"", b"version https://git-lfs.github.com/spec/v1\n", original_bytes[:100]):
        file.write_bytes(damaged)
        with pytest.raises(ConfigError, match="cannot be read as safetensors"):
            fingerprint(base)
