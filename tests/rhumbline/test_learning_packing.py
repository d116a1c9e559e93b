from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rhumbline.data.chat import Encoded
from rhumbline.errors import TrainingError
from rhumbline.learning.packing import (
    SEGMENTED,
    Order,
    bins,
    learned_logits,
    pack,
    packed_attention,
    segmented_attention,
)
from tests.rhumbline.learning_fakes import random_samples, sample, tiny_model

LENGTHS = [(6, 5), (3, 9), (12, 1), (5, 7)]


def alone(model, one: Encoded) -> torch.Tensor:
    """Logits of the learned tokens by transformers' plain forward pass of one sample."""
    with torch.no_grad():
        logits_TV = model(input_ids=torch.tensor([one.token_ids])).logits[0]
    return logits_TV[one.prompt_length - 1 : -1]


@pytest.mark.parametrize(
    ("rests", "computes", "chosen"),
    [
        (torch.bfloat16, None, "flash_attention_2"),
        (torch.float32, None, "sdpa"),  # which flash attention does not know
        (torch.float32, torch.bfloat16, "flash_attention_2"),  # cast as it is computed
        (torch.bfloat16, torch.float32, "sdpa"),
    ],
)
def test_flash_attention_is_for_half_precision_alone(monkeypatch, rests, computes, chosen):
    import transformers.utils.import_utils as installed

    monkeypatch.setattr(installed, "is_flash_attn_2_available", lambda: True)
    seen: list[str] = []
    model = SimpleNamespace(
        config=SimpleNamespace(_attn_implementation="eager"),
        device=SimpleNamespace(type="cuda"),
        dtype=rests,
        set_attn_implementation=seen.append,
    )
    with packed_attention(model, computes):
        assert seen == [chosen]
    assert seen == [chosen, "eager"]


def test_pack_by_hand():
    packed = pack([sample([5, 6, 7, 8], 2), sample([9, 10, 11], 1)])
    assert packed.token_ids.tolist() == [[5, 6, 7, 8, 9, 10, 11]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert packed.lengths == (4, 3)
    assert packed.predictors.tolist() == [1, 2, 5]  # the token before each learned one
    assert packed.targets.tolist() == [7, 8, 11]
    assert packed.counts == (2, 1)


def test_a_learned_first_token_is_refused():
    with pytest.raises(TrainingError, match="nothing precedes it"):
        pack([sample([5, 6], 1), sample([7, 8], 2)])


@pytest.mark.parametrize("segmented", [True, False], ids=["segmented", "block mask"])
def test_packed_logits_equal_those_alone(segmented):
    model, samples = tiny_model(), random_samples(LENGTHS)
    expected = torch.cat([alone(model, one) for one in samples])
    with torch.no_grad():
        if segmented:
            with packed_attention(model):
                assert model.config._attn_implementation == SEGMENTED
                logits_RV = learned_logits(model, pack(samples))
        else:  # what a GPU without flash attention does: transformers makes the mask from the positions
            logits_RV = learned_logits(model, pack(samples))
    assert logits_RV.shape == expected.shape
    assert torch.allclose(logits_RV, expected, atol=1e-4)
    assert model.config._attn_implementation == "sdpa"  # put back: generation needs another one


def test_gradients_of_a_pack_are_the_sum_of_those_alone():
    model, samples = tiny_model(), random_samples(LENGTHS)

    def gradients(groups: list[list[Encoded]]) -> torch.Tensor:
        model.zero_grad()
        with packed_attention(model):
            for group in groups:
                packed = pack(group)
                logits_RV = learned_logits(model, packed)
                torch.nn.functional.cross_entropy(logits_RV, packed.targets, reduction="sum").backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    together, apart = gradients([samples]), gradients([[one] for one in samples])
    assert torch.allclose(together, apart, rtol=1e-4, atol=1e-4)
    assert together.norm() > 1


@pytest.mark.parametrize("changed", [0, 1, 3])
def test_nothing_leaks_between_samples(changed):
    model, samples = tiny_model(), random_samples(LENGTHS)
    others = list(samples)
    others[changed] = random_samples([LENGTHS[changed]], seed=99)[0]
    with torch.no_grad(), packed_attention(model):
        before = learned_logits(model, pack(samples)).split([n for _, n in LENGTHS])
        after = learned_logits(model, pack(others)).split([n for _, n in LENGTHS])
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(old, new) == (index != changed)


def test_a_sliding_window_is_kept():
    # Against dense attention under the same band.
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 9, 8, generator=generator) for heads in (4, 2, 2))
    ours, _ = segmented_attention(
        torch.nn.Identity(), q, k, v, None, scaling=0.3, sliding_window=3, segment_lengths=(2, 7)
    )
    band = torch.zeros(9, 9, dtype=torch.bool)
    for i in range(9):
        for j in range(9):
            band[i, j] = j <= i and i - j < 3 and (i < 2) == (j < 2)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = (q @ k.transpose(2, 3) * 0.3).masked_fill(~band, float("-inf"))
    assert torch.allclose(ours, (scores.softmax(-1) @ v).transpose(1, 2), atol=1e-5)


def test_a_model_that_hides_the_lengths_is_refused():
    model = tiny_model()
    with packed_attention(model), pytest.raises(TrainingError, match="keyword"):
        model(input_ids=torch.tensor([[1, 2, 3]]))


# --- bins and order ---------------------------------------------------------------------------------------------------


def test_bins_by_hand():
    # Of 8: 7 opens a group, 5 a second, 4 a third; 3 joins 5, which is then full, and 2 joins 4.
    assert bins([5, 3, 7, 2, 4], 8) == [[0, 1], [2], [4, 3]]
    assert bins([20, 1], 8) == [[0], [1]]  # too long for the budget: alone
    assert bins([], 8) == []


def test_bins_are_halved_or_filled_up_for_the_workers():
    assert bins([3, 3, 3, 3], 100, multiple_of=2) == [[0, 2], [1, 3]]
    assert bins([3], 100, multiple_of=2) == [[0], []]


@given(
    lengths=st.lists(st.integers(1, 50), max_size=40),
    budget=st.integers(10, 120),
    workers=st.integers(1, 5),
)
def test_bins_hold_every_sample_once_and_keep_to_the_budget(lengths, budget, workers):
    groups = bins(lengths, budget, workers)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(len(g) <= 1 or sum(lengths[i] for i in g) <= budget for g in groups)
    assert len(groups) % workers == 0
    assert groups == bins(lengths, budget, workers)


def test_order_visits_every_sample_once_per_epoch():
    order = Order(num_samples=7, batch_size=4, epochs=3, seed=5)
    steps = list(order)
    assert len(order) == len(steps) == 6  # 21 samples in fours
    flat = [i for step in steps for i in step]
    for epoch in range(3):
        assert sorted(flat[7 * epoch : 7 * (epoch + 1)]) == list(range(7))
    assert flat[:7] != flat[7:14]
    assert [len(s) for s in steps] == [4, 4, 4, 4, 4, 1]


def test_order_depends_on_the_seed_and_any_step_can_be_asked_for():
    order = Order(num_samples=50, batch_size=8, epochs=2, seed=5)
    assert order[9] == list(Order(50, 8, 2, 5))[9]
    assert order[0] != Order(50, 8, 2, 6)[0]
    with pytest.raises(IndexError):
        order[13]
