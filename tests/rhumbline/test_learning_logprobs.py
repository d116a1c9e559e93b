from __future__ import annotations

import math

import pytest
import torch

from rhumbline.learning.logprobs import chosen_logprobs, entropies, response_logprobs, sequence_logprobs, token_logprobs
from rhumbline.learning.packing import packed_attention
from tests.rhumbline.learning_fakes import random_samples, sample, tiny_model

LENGTHS = [(6, 5), (3, 9), (12, 1), (5, 7)]


def test_equal_to_the_plain_forward_pass():
    model, samples = tiny_model(), random_samples(LENGTHS)
    rows = token_logprobs(model, samples, token_budget=40)
    for one, row in zip(samples, rows, strict=True):
        with torch.no_grad():
            logp_TV = model(input_ids=torch.tensor([one.token_ids])).logits[0].log_softmax(-1)
        start = one.prompt_length
        expected = [float(logp_TV[i - 1, one.token_ids[i]]) for i in range(start, len(one))]
        assert row.tolist() == pytest.approx(expected, abs=1e-4)
    sums = response_logprobs(model, samples, token_budget=40)
    assert sums == pytest.approx([float(row.sum()) for row in rows], abs=1e-4)


def test_independent_of_the_packing_and_the_order():
    model, samples = tiny_model(), random_samples(LENGTHS)
    one_row = response_logprobs(model, samples, token_budget=1000)
    assert response_logprobs(model, samples, token_budget=1) == pytest.approx(one_row, abs=1e-4)
    assert response_logprobs(model, samples[::-1], token_budget=20)[::-1] == pytest.approx(one_row, abs=1e-4)


def test_a_sample_without_learned_tokens_is_certain():
    rows = token_logprobs(tiny_model(), [sample([1, 2, 3], 0), sample([1, 2, 3], 1)])
    assert [len(r) for r in rows] == [0, 1]
    assert response_logprobs(tiny_model(), [sample([1, 2, 3], 0)]) == [0.0]
    assert token_logprobs(tiny_model(), []) == []


def test_it_leaves_the_model_as_it_was():
    model = tiny_model()
    token_logprobs(model, random_samples([(3, 3)]))
    assert model.config._attn_implementation == "sdpa"
    assert all(p.grad is None for p in model.parameters())


# --- with a gradient --------------------------------------------------------------------------------------------------


def logits_and_targets(rows: int = 37, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """More rows than fit in one chunk, and no whole number of chunks."""
    generator = torch.Generator().manual_seed(0)
    logits_RV = 8 * torch.randn(rows, 11, generator=generator, dtype=torch.float64)
    return logits_RV.to(dtype), torch.randint(0, 11, (rows,), generator=generator)


def test_by_hand():
    # Of the odds 1 : 3 the second has the probability 3/4; its gradient is 1 - 3/4, the other's -1/4.
    logits_RV = torch.tensor([[0.0, math.log(3.0)]], requires_grad=True)
    logp_R = chosen_logprobs(logits_RV, torch.tensor([1]))
    assert logp_R.tolist() == pytest.approx([math.log(0.75)])
    logp_R.sum().backward()
    assert logits_RV.grad is not None
    assert logits_RV.grad.tolist()[0] == pytest.approx([-0.25, 0.25])
    assert entropies(logits_RV).tolist() == pytest.approx([-0.25 * math.log(0.25) - 0.75 * math.log(0.75)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_gradients_are_those_of_log_softmax(dtype):
    logits_RV, targets_R = logits_and_targets(dtype=dtype)
    weights_R = torch.linspace(-1, 2, len(targets_R), dtype=torch.float64)
    ours, theirs = (logits_RV.clone().requires_grad_() for _ in range(2))
    logp_R = chosen_logprobs(ours, targets_R)
    expected_R = theirs.double().log_softmax(-1).gather(1, targets_R[:, None])[:, 0]
    assert logp_R.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(logp_R.double(), expected_R, rtol=0, atol=1e-5)
    (weights_R.to(logp_R) * logp_R).sum().backward()
    (weights_R * expected_R).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.dtype == dtype
    assert torch.allclose(ours.grad.double(), theirs.grad.double(), rtol=0, atol=2**-7 if dtype.itemsize == 2 else 1e-5)


def test_the_gradient_is_that_of_finite_differences():
    logits_RV, targets_R = logits_and_targets(19, torch.float64)
    assert torch.autograd.gradcheck(lambda x: chosen_logprobs(x, targets_R), logits_RV.requires_grad_())


def test_without_rows_there_is_nothing_and_no_error():
    logits_RV = torch.zeros(0, 5, requires_grad=True)
    chosen_logprobs(logits_RV, torch.zeros(0, dtype=torch.long)).sum().backward()
    assert logits_RV.grad is not None
    assert logits_RV.grad.shape == (0, 5)
    assert entropies(logits_RV).tolist() == []


def test_sums_of_sequences_are_those_of_their_tokens_and_have_a_gradient():
    model, samples = tiny_model(), random_samples(LENGTHS)
    with packed_attention(model):
        logp_N = sequence_logprobs(model, samples, "cpu")
        logp_N[1].backward()
    assert logp_N.dtype == torch.float64
    assert logp_N.tolist() == pytest.approx(response_logprobs(model, samples), abs=1e-4)
    assert all(p.grad is not None for p in model.parameters())


def test_targets_of_another_number_are_refused():
    with pytest.raises(AssertionError, match="targets"):
        chosen_logprobs(torch.zeros(2, 3), torch.zeros(1, dtype=torch.long))


def test_entropies_are_those_of_the_distribution():
    logits_RV, _ = logits_and_targets()
    log_p = logits_RV.double().log_softmax(-1)
    assert torch.allclose(entropies(logits_RV).double(), -(log_p.exp() * log_p).sum(-1), atol=1e-5)
    assert entropies(torch.zeros(3, 8)).tolist() == pytest.approx([math.log(8)] * 3)
    # What is impossible adds nothing.
    assert entropies(torch.tensor([[0.0, 0.0, -math.inf]])).tolist() == pytest.approx([math.log(2)])
    assert entropies(logits_RV.bfloat16().requires_grad_()).requires_grad is False
