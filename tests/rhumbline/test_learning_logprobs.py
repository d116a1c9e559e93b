from __future__ import annotations

import pytest
import torch

from rhumbline.learning.logprobs import response_logprobs, token_logprobs
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
