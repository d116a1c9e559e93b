from __future__ import annotations

import math

import pytest
import torch

from rhumbline.losses.sft import sft
from rhumbline.losses.steerlm2 import pull, target_weights

LN3 = math.log(3)


def weights(log_w: list[float], prompts: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
    return target_weights(torch.tensor(log_w), torch.zeros(len(log_w)), torch.zeros(len(log_w)), torch.tensor(prompts))


def test_weights_by_hand():
    # Prompt 4: log-weights ln 3 + 1 - 1 and 0: 3/4, 1/4, effective size 1 / (10/16). Prompt 1: two alike, and they are 2.
    attribute_N, prior_N = torch.tensor([LN3, -7.0, 0.0, -7.0]), torch.tensor([1.0, 0.0, 2.0, 0.0])
    target_N, metrics = target_weights(attribute_N, prior_N, prior_N, torch.tensor([4, 1, 4, 1]))
    assert target_N.tolist() == pytest.approx([0.75, 0.5, 0.25, 0.5])
    assert metrics == {"prompts": 2.0, "dead_prompts": 0.0, "ess_sum": pytest.approx(1.6 + 2.0)}


def test_pull_by_hand():
    # w' = (3/4, 1/4), b' = (1/2, 1/2): KL 3/4 ln 3/2 + 1/4 ln 1/2.
    pull_N, metrics = pull(
        torch.tensor([0.75, 0.25]), torch.tensor([-5.0, -9.0]), torch.tensor([-5.0, -9.0]), torch.zeros(2)
    )
    assert pull_N.tolist() == pytest.approx([0.25, -0.25])
    assert metrics["kl_sum"] == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2))


def test_a_policy_that_has_what_was_asked_is_left_alone():
    target_N, _ = weights([LN3, 0.0, 1.0], [0, 0, 0])
    pull_N, metrics = pull(target_N, target_N.log() - 3.0, torch.zeros(3), torch.zeros(3))
    assert pull_N.tolist() == pytest.approx([0.0] * 3, abs=1e-7)
    assert metrics["kl_sum"] == pytest.approx(0.0, abs=1e-7)


def test_enumerated_answers_give_bayes():
    # All answers of a small world, once each, weighted by the proposal that is even over them.
    prior, attribute = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.6, 0.9])
    target_N, _ = target_weights(attribute.log(), prior.log(), torch.full((3,), -LN3), torch.zeros(3))
    assert torch.allclose(target_N, prior * attribute / (prior * attribute).sum())


def test_the_pull_is_the_gradient_of_the_estimated_kl_by_finite_difference():
    # d/d log Q(y_n) of sum_n w' log(w' / b') is b' - w'.
    generator = torch.Generator().manual_seed(0)
    attribute_N, policy_N, proposal_N = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    prompts_N = torch.tensor([0, 0, 0, 1, 1, 2])
    target_N, _ = target_weights(attribute_N, torch.zeros(6), proposal_N, prompts_N)
    pull_N, _ = pull(target_N, policy_N, proposal_N, prompts_N)
    for n, step in enumerate(1e-6 * torch.eye(6, dtype=torch.float64)):
        up, down = (pull(target_N, policy_N + s, proposal_N, prompts_N)[1]["kl_sum"] for s in (step, -step))
        assert (up - down) / 2e-6 == pytest.approx(-pull_N[n].item(), abs=1e-8)
    assert pull_N[5] == 0  # one answer says nothing


def test_as_weights_of_sft_it_moves_the_policy_to_the_target():
    # Answers are single tokens, all three of them drawn once from an even proposal.
    target_N, _ = weights([math.log(0.6), math.log(0.3), math.log(0.1)], [0, 0, 0])
    logits_V = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(300):
        pull_N, _ = pull(target_N, logits_V.detach().log_softmax(0), torch.full((3,), -LN3), torch.zeros(3))
        loss, _ = sft(logits_V.expand(3, 3), torch.arange(3), pull_N, denominator=1.0)
        (gradient,) = torch.autograd.grad(loss, logits_V)
        logits_V = (logits_V - gradient).detach().requires_grad_()
    assert logits_V.softmax(0).tolist() == pytest.approx([0.6, 0.3, 0.1], abs=1e-3)


def test_prompts_may_be_spread_over_workers_and_micro_batches():
    generator = torch.Generator().manual_seed(0)
    attribute_N, prior_N, proposal_N, policy_N = torch.randn(4, 8, generator=generator) * 5
    prompts_N = torch.arange(4).repeat_interleave(2)

    def both(rows: slice) -> list[tuple[torch.Tensor, dict[str, float]]]:
        target = target_weights(attribute_N[rows], prior_N[rows], proposal_N[rows], prompts_N[rows])
        return [target, pull(target[0], policy_N[rows], proposal_N[rows], prompts_N[rows])]

    parts = zip(both(slice(None)), both(slice(0, 2)), both(slice(2, None)), strict=True)
    for (whole, metrics), (first, of_first), (second, of_second) in parts:
        assert torch.equal(torch.cat([first, second]), whole)
        assert {name: of_first[name] + of_second[name] for name in metrics} == pytest.approx(metrics)


def test_log_probabilities_of_long_answers_stay_finite_and_show_in_the_effective_size():
    target_N, metrics = weights([-900.0, -1200.0, -5000.0], [0, 0, 0])
    assert target_N.tolist() == [1.0, 0.0, 0.0]
    assert metrics["ess_sum"] == pytest.approx(1.0)
    pull_N, metrics = pull(target_N, torch.tensor([-5000.0, -10.0, 0.0]), torch.zeros(3), torch.zeros(3))
    assert pull_N.tolist() == pytest.approx([1.0, 0.0, -1.0], abs=1e-4)
    assert metrics["kl_sum"] == pytest.approx(5000.0)


def test_impossible_answers_weigh_nothing_and_a_prompt_of_them_is_counted():
    inf = float("inf")
    target_N, metrics = weights([-inf, 0.0, -inf, -inf], [0, 0, 1, 1])
    assert target_N.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert metrics == {"prompts": 2.0, "dead_prompts": 1.0, "ess_sum": 1.0}
    pull_N, metrics = pull(target_N, torch.zeros(4), torch.zeros(4), torch.tensor([0, 0, 1, 1]))
    assert pull_N.tolist() == [-0.5, 0.5, 0.0, 0.0]
    assert metrics["kl_sum"] == pytest.approx(math.log(2))
    with pytest.raises(AssertionError, match="NaN or inf"):
        weights([float("nan"), 0.0], [0, 0])
