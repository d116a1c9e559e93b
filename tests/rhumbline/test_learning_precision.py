from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rhumbline import config, probe
from rhumbline.learning import precision
from rhumbline.learning.engine import World
from rhumbline.learning.loop import make_engine
from rhumbline.learning.optim import adamw
from rhumbline.learning.policy import load_policy, load_tokenizer, save_policy
from tests.fakes import tiny_policy

NATIVE = {"avx2", "avx512f", "avx512_bf16"}
EMULATED = {"avx2", "avx512f"}


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    precision.computes_bf16.cache_clear()
    yield
    precision.computes_bf16.cache_clear()


def test_auto_is_bf16_only_where_the_processor_multiplies_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, dtype in ((NATIVE, torch.bfloat16), (EMULATED, torch.float32), (set(), torch.bfloat16)):
        monkeypatch.setattr(probe, "cpu_flags", lambda flags=flags: flags)
        precision.computes_bf16.cache_clear()
        assert precision.dtype_of("auto") == dtype
        assert precision.name_of("auto") == str(dtype).removeprefix("torch.")
        assert precision.dtype_of("bfloat16") == torch.bfloat16  # what is asked for by name is done
        assert precision.dtype_of("float32") == torch.float32


@pytest.mark.parametrize(("flags", "dtype"), [(NATIVE, torch.bfloat16), (EMULATED, torch.float32)])
def test_policies_are_read_in_the_precision_that_is_computed_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: set[str], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(probe, "cpu_flags", lambda: flags)
    folder = tmp_path / "stored"
    save_policy(load_policy(tiny_policy(tmp_path / "made")), load_tokenizer(tmp_path / "made"), folder)  # in bf16
    assert load_policy(folder).dtype == dtype
    assert load_policy(folder, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(("flags", "dtype"), [(NATIVE, torch.bfloat16), (EMULATED, torch.float32)])
def test_the_learner_follows_the_machine_unless_the_recipe_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: set[str], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(probe, "cpu_flags", lambda: flags)
    model = load_policy(tiny_policy(tmp_path), torch.float32)
    for settings, expected in (({}, dtype), ({"dtype": "bfloat16"}, torch.bfloat16)):
        learner = config.Learner(**settings)
        engine = make_engine(learner, model, adamw(model, 1e-3, learner.betas, 0.0), World())
        assert engine.dtype == expected
