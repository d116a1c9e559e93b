from __future__ import annotations

from typing import Any

import pytest
import torch

from rhumbline import config
from rhumbline.learning import lora
from rhumbline.learning.packing import learned_logits, pack, packed_attention
from rhumbline.learning.value import PolicyWithValue, logits_and_values
from tests.rhumbline.learning_fakes import random_samples, tiny_model

SAMPLES = random_samples([(5, 3), (2, 6), (9, 1)])


def made(with_lora: bool) -> Any:
    torch.manual_seed(0)
    policy = tiny_model()
    if not with_lora:
        return policy
    model = lora.attach(policy, config.Lora(r=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    lora.fuse(model)
    return model


@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
def test_logits_are_those_of_the_policy_alone(with_lora):
    policy, packed = made(with_lora), pack(SAMPLES)
    with packed_attention(policy), torch.no_grad():
        expected_RV = learned_logits(policy, packed)
        logits_RV, values_R = logits_and_values(PolicyWithValue(policy), packed)
    assert torch.equal(logits_RV, expected_RV)
    assert values_R.shape == (10,)
    assert values_R.count_nonzero() == 0  # before the head has learned


def test_values_are_linear_in_the_final_hidden_state_of_each_sample_alone():
    policy, packed = made(with_lora=False), pack(SAMPLES)
    model = PolicyWithValue(policy)
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.constant_(model.head.bias, 0.5)
    with packed_attention(policy), torch.no_grad():
        _, values_R = logits_and_values(model, packed)
    expected = []
    for one in SAMPLES:
        with torch.no_grad():
            hidden = policy.model(input_ids=torch.tensor([one.token_ids])).last_hidden_state[0]
        values = hidden @ model.head.weight[0].detach() + 0.5
        expected += values[one.prompt_length - 1 : -1].tolist()  # of the state before each token of the answer
    assert values_R.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
def test_the_value_s_gradient_reaches_the_trunk_and_nothing_that_is_frozen(with_lora):
    policy, packed = made(with_lora), pack(SAMPLES)
    model = PolicyWithValue(policy)
    torch.nn.init.normal_(model.head.weight)
    with packed_attention(policy):
        _, values_R = logits_and_values(model, packed)
    values_R.square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.count_nonzero() > 0}
    assert {"head.weight", "head.bias"} <= reached
    trunk = {name for name in reached if name.startswith("policy.")}
    assert len(trunk) > 4
    assert all(("lora_" in name) == with_lora for name in trunk)


def test_values_are_fp32_where_the_policy_runs_in_bf16():
    policy, packed = made(with_lora=False), pack(SAMPLES)
    model = PolicyWithValue(policy)
    with packed_attention(policy), torch.autocast("cpu", torch.bfloat16):
        logits_RV, values_R = logits_and_values(model, packed)
    assert logits_RV.dtype == torch.bfloat16
    assert values_R.dtype == torch.float32


def test_they_stay_fp32_where_the_head_itself_was_cast():
    policy, packed = made(with_lora=False), pack(SAMPLES)
    model = PolicyWithValue(policy)
    torch.nn.init.normal_(model.head.weight)
    model.to(torch.bfloat16)  # as DeepSpeed does
    with packed_attention(policy):
        _, values_R = logits_and_values(model, packed)
    assert values_R.dtype == torch.float32
    assert not torch.equal(values_R, values_R.bfloat16().float())


def test_no_hook_is_left_behind():
    policy, packed = made(with_lora=False), pack(SAMPLES)
    model = PolicyWithValue(policy)
    with packed_attention(policy), torch.no_grad():
        logits_and_values(model, packed)
    assert not policy.model._forward_hooks
