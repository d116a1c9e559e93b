from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rhumbline.losses import GROUP_ADVANTAGES
from rhumbline.losses.advantages import (
    centred,
    gae,
    leave_one_out,
    moments,
    per_objective,
    standardised,
    token_rewards,
    whiten,
)


def test_token_rewards_by_hand():
    # Answers of 2, 0 and 1 tokens; beta 0.5; the second has no place for its score.
    kl_R = torch.tensor([0.2, -0.4, 1.0])
    rewards_R = token_rewards(torch.tensor([3.0, 7.0, -9.0]), kl_R, 0.5, (2, 0, 1))
    assert rewards_R.tolist() == pytest.approx([-0.1, 3.2, -9.5])
    clipped_R = token_rewards(torch.tensor([3.0, 7.0, -9.0]), kl_R, 0.5, (2, 0, 1), score_clip=4.0)
    assert clipped_R.tolist() == pytest.approx([-0.1, 3.2, -4.5])
    assert kl_R.tolist() == pytest.approx([0.2, -0.4, 1.0])  # not written to


def test_gae_by_hand():
    # gamma 1/2, lam 1/2, rewards 0, 0, 8, values 4, 2, 6.
    # d = 0 + 1 - 4 = -3; 0 + 3 - 2 = 1; 8 + 0 - 6 = 2. A_3 = 2, A_2 = 1 + 2/4 = 1.5, A_1 = -3 + 1.5/4 = -2.625.
    advantages_R, returns_R = gae(
        torch.tensor([0.0, 0.0, 8.0]), torch.tensor([4.0, 2.0, 6.0]), (3,), gamma=0.5, lam=0.5
    )
    assert advantages_R.tolist() == [-2.625, 1.5, 2.0]
    assert returns_R.tolist() == [1.375, 3.5, 8.0]


def test_with_gamma_and_lambda_one_the_return_is_the_reward_to_come():
    rewards_R, values_R = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([5.0, -5.0, 3.0, 9.0])
    advantages_R, returns_R = gae(rewards_R, values_R, (3, 1), lam=1.0)
    assert returns_R.tolist() == [7.0, 6.0, 4.0, 8.0]
    assert torch.equal(advantages_R, returns_R - values_R)


def test_nothing_follows_the_last_token():
    # The value of the next answer's first token, 10, is none of the first one's. lam 0: A = r + gamma V' - V.
    advantages_R, _ = gae(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 10.0]), (1, 1), gamma=0.9, lam=0.0)
    assert advantages_R.tolist() == [0.5, -9.0]


@given(lengths=st.lists(st.integers(0, 6), max_size=5), seed=st.integers(0, 100))
def test_answers_do_not_see_each_other(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    R = sum(lengths)
    rewards_R, values_R = torch.randn(2, R, generator=generator)
    together, _ = gae(rewards_R, values_R, lengths, gamma=0.9)
    alone = [
        gae(r, v, (len(r),), gamma=0.9)[0]
        for r, v in zip(rewards_R.split(lengths), values_R.split(lengths), strict=True)
    ]
    assert torch.equal(together, torch.cat([*alone, torch.zeros(0)]))


def test_gae_against_its_sum():
    # Equation 16: A_t = sum_l (gamma lam)^l d_{t+l}.
    generator = torch.Generator().manual_seed(0)
    rewards_R, values_R = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    after_R = torch.cat([values_R[1:], values_R.new_zeros(1)])
    delta_R = rewards_R + 0.9 * after_R - values_R
    expected = [sum((0.9 * 0.8) ** (s - t) * delta_R[s].item() for s in range(t, 7)) for t in range(7)]
    assert gae(rewards_R, values_R, (7,), gamma=0.9, lam=0.8)[0].tolist() == pytest.approx(expected)


def test_whitening_by_hand():
    # 1, 2, 3, 6: mean 3, unbiased variance (4 + 1 + 0 + 9) / 3.
    values_R = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert moments(values_R).tolist() == [4.0, 12.0, 50.0]
    expected = [(x - 3) / math.sqrt(14 / 3) for x in (1, 2, 3, 6)]
    assert whiten(values_R, moments(values_R)).tolist() == pytest.approx(expected)


def test_whitening_is_of_the_whole_step_however_it_was_cut():
    generator = torch.Generator().manual_seed(0)
    values_R = torch.randn(20, generator=generator) * 3 + 100
    parts = values_R.split([3, 12, 5])
    total = torch.stack([moments(part) for part in parts]).sum(0)
    whole = whiten(values_R, moments(values_R))
    assert torch.allclose(torch.cat([whiten(part, total) for part in parts]), whole, rtol=1e-6)
    assert whole.mean().item() == pytest.approx(0, abs=1e-6)
    assert whole.std().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("values", [[], [5.0], [0.1] * 7, [1e30, -1e30], [-0.3] * 1000])
def test_whitening_never_divides_by_zero(values):
    values_R = torch.tensor(values)
    whitened = whiten(values_R, moments(values_R))
    assert whitened.isfinite().all()
    if len(set(values)) <= 1:
        assert whitened.tolist() == pytest.approx([0.0] * len(values), abs=1e-9)


def test_groups_by_hand():
    # Group 7: 1, 2, 6 (mean 3, squares 4 + 1 + 9); group 2: 4, 0 (mean 2). In any order.
    rewards_N, groups_N = torch.tensor([1.0, 4.0, 2.0, 0.0, 6.0]), torch.tensor([7, 2, 7, 2, 7])
    deviations = [-2.0, 2.0, -1.0, -2.0, 3.0]
    counts = {"groups": 2.0, "single_groups": 0.0, "constant_groups": 0.0}
    advantages_N, metrics = standardised(rewards_N, groups_N, eps=0.5)
    std = (math.sqrt(14 / 2), math.sqrt(8 / 1))
    expected = [d / (std[g == 2] + 0.5) for d, g in zip(deviations, groups_N.tolist(), strict=True)]
    assert advantages_N.tolist() == pytest.approx(expected)
    assert metrics == counts
    assert centred(rewards_N, groups_N)[0].tolist() == pytest.approx(deviations)
    # Against the others: 1 - 4, 4 - 0, 2 - 3.5, 0 - 4, 6 - 1.5.
    assert leave_one_out(rewards_N, groups_N)[0].tolist() == pytest.approx([-3.0, 4.0, -1.5, -4.0, 4.5])


@pytest.mark.parametrize("name", GROUP_ADVANTAGES)
def test_a_single_answer_and_a_constant_group_give_zero_and_are_counted(name):
    # verl gives a single answer its raw reward as its advantage.
    # In fp64 the mean of three times 0.1 is not 0.1: divided by its own rounding error a constant group would be +-1.
    rewards_N = torch.tensor([5.0, 0.1, 0.1, 0.1, 1.0, 2.0], dtype=torch.float64)
    advantages_N, metrics = GROUP_ADVANTAGES[name](rewards_N, torch.tensor([0, 1, 1, 1, 2, 2]))
    assert advantages_N[:4].tolist() == [0.0] * 4
    assert advantages_N[4] < 0 < advantages_N[5]
    assert metrics == {"groups": 3.0, "single_groups": 1.0, "constant_groups": 1.0}


@pytest.mark.parametrize("name", GROUP_ADVANTAGES)
def test_whole_groups_may_be_spread_over_workers_and_micro_batches(name):
    generator = torch.Generator().manual_seed(0)
    rewards_N, groups_N = torch.randn(12, generator=generator), torch.arange(4).repeat_interleave(3)
    whole, metrics = GROUP_ADVANTAGES[name](rewards_N, groups_N)
    first, second = (GROUP_ADVANTAGES[name](rewards_N[part], groups_N[part]) for part in (slice(0, 6), slice(6, None)))
    assert torch.equal(torch.cat([first[0], second[0]]), whole)
    assert {name: first[1][name] + second[1][name] for name in metrics} == metrics


@pytest.mark.parametrize("name", GROUP_ADVANTAGES)
def test_extreme_rewards_stay_finite_and_a_reward_that_is_none_is_refused(name):
    rewards_N = torch.tensor([1e30, -1e30, 1e-30, 0.0, 1e30, 1e30 * (1 + 1e-6)])
    advantages_N, _ = GROUP_ADVANTAGES[name](rewards_N, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert advantages_N.isfinite().all()
    with pytest.raises(AssertionError, match="no number"):
        GROUP_ADVANTAGES[name](torch.tensor([1.0, float("nan")]), torch.zeros(2))


def test_a_shift_changes_no_advantage_and_a_scale_not_the_standardised():
    generator = torch.Generator().manual_seed(0)
    rewards_N, groups_N = torch.randn(8, generator=generator, dtype=torch.float64), torch.arange(8) // 4
    for advantages in GROUP_ADVANTAGES.values():
        assert torch.allclose(advantages(rewards_N + 7, groups_N)[0], advantages(rewards_N, groups_N)[0], atol=1e-12)
    plain, scaled = (standardised(s * rewards_N, groups_N, eps=0.0)[0] for s in (1.0, 9.0))
    assert torch.allclose(plain, scaled)


def test_objectives_are_normalised_before_they_are_summed():
    # Each objective alone is +-1. Summed first, the second would rule by its range, against a direction that prefers the
    # first: (1, 0) would come out below (0, 100).
    rewards_NK, groups_N = torch.tensor([[0.0, 100.0], [1.0, 0.0], [0.0, 0.0], [1.0, 100.0]]), torch.zeros(4)
    direction_K = torch.tensor([0.8, 0.6])
    advantages_N, metrics = per_objective(rewards_NK, groups_N, direction_K, normalise=_unit)
    assert advantages_N.tolist() == pytest.approx([-0.2, 0.2, -1.4, 1.4])
    assert metrics["constant_groups/0"] == metrics["constant_groups/1"] == 0
    summed_N, _ = _unit((rewards_NK * direction_K).sum(1), groups_N)
    assert summed_N[0] > 0 > summed_N[1]  # as if v did not prefer the first objective


def _unit(rewards_N: torch.Tensor, groups_N: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """By the largest deviation: of two values, as many of each, every answer is at -1 or 1."""
    advantages_N, metrics = centred(rewards_N, groups_N)
    most_N = torch.stack([advantages_N[groups_N == group].abs().max() for group in groups_N])
    return advantages_N / most_N.clamp(min=1e-9), metrics


def test_every_prompt_may_have_its_own_direction_and_a_constant_objective_no_say():
    # Group 0 under (1, 0), group 1 under (0, -1); the second objective of group 0 is constant, and group 2 is single.
    rewards_NK = torch.tensor([[1.0, 3.0], [2.0, 3.0], [5.0, 1.0], [5.0, 2.0], [4.0, 4.0]])
    direction_NK = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, -1.0], [0.6, 0.8]])
    advantages_N, metrics = per_objective(rewards_NK, torch.tensor([0, 0, 1, 1, 2]), direction_NK, normalise=_unit)
    assert advantages_N.tolist() == pytest.approx([-1.0, 1.0, 1.0, -1.0, 0.0])
    assert metrics == {"groups": 3.0, "single_groups": 1.0, "constant_groups/0": 1.0, "constant_groups/1": 1.0}
    even_N, _ = per_objective(rewards_NK, torch.tensor([0, 0, 1, 1, 2]), torch.ones(2), normalise=centred)
    assert even_N.tolist() == pytest.approx([-0.5, 0.5, -0.5, 0.5, 0.0])
    with pytest.raises(AssertionError, match="direction"):
        per_objective(rewards_NK, torch.zeros(5), torch.ones(5))


def test_permuting_objectives_and_direction_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    rewards_NK, direction_K = torch.randn(6, 3, generator=generator), torch.tensor([0.2, -0.7, 0.5])
    order, groups_N = [2, 0, 1], torch.arange(6) // 3
    plain, _ = per_objective(rewards_NK, groups_N, direction_K)
    moved, _ = per_objective(rewards_NK[:, order], groups_N, direction_K[order])
    assert torch.allclose(plain, moved)


def test_every_group_advantage_is_in_the_dict():
    assert set(GROUP_ADVANTAGES) >= {"standardised", "centred", "leave_one_out"}
