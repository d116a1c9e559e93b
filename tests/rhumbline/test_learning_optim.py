from __future__ import annotations

import pytest
import torch
from torch import nn

from rhumbline.learning.optim import adamw, cosine, trained


def test_cosine_by_hand():
    # total 12, warm-up 2: 1/3, 2/3, then half a cosine over the ten steps from 2 to 12, a quarter of it at 7.
    assert cosine(0, 12, 2, 0.1) == pytest.approx(1 / 3)
    assert cosine(1, 12, 2, 0.1) == pytest.approx(2 / 3)
    assert cosine(2, 12, 2, 0.1) == 1.0
    assert cosine(7, 12, 2, 0.1) == pytest.approx(0.55)
    assert cosine(12, 12, 2, 0.1) == pytest.approx(0.1)


def test_warm_up_fits_into_a_short_run():
    assert [cosine(step, 4, 100, 0.0) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1.0, 0.5])
    assert cosine(0, 1, 20, 0.0) == 1.0  # a single step is made at the full rate


def test_the_rate_rises_then_falls():
    rates = [cosine(step, 50, 10, 0.2) for step in range(50)]
    assert rates == [*sorted(rates[:11]), *sorted(rates[11:], reverse=True)]
    assert min(rates[10:]) >= 0.2


def test_decay_spares_vectors_and_frozen_weights_are_left_out():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    optimizer = adamw(model, 1e-3, (0.9, 0.95), 0.1)
    shapes = [([tuple(p.shape) for p in g["params"]], g["weight_decay"]) for g in optimizer.param_groups]
    assert shapes == [([(2, 3)], 0.1), ([(2,), (2,), (2,)], 0.0)]
    assert list(trained(model)) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_one_update_by_hand():
    # The first AdamW step is lr * sign(gradient), after the weight has shrunk by lr * decay.
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    optimizer = adamw(layer, 0.1, (0.9, 0.95), 0.5)
    layer.weight.grad = torch.tensor([[-3.0]])
    optimizer.step()
    assert layer.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) + 0.1, abs=1e-6)


def test_bf16_weights_are_refused():
    # In bf16 a weight of 1 has neighbours 2^-7 above and 2^-8 below: an update of 1e-3 would change nothing.
    with pytest.raises(AssertionError, match="fp32"):
        adamw(nn.Linear(2, 2).bfloat16(), 1e-3, (0.9, 0.95), 0.0)
