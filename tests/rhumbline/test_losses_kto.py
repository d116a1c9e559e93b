from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from rhumbline.losses import UNPAIRED_LOSSES
from rhumbline.losses.kto import RewardShift, bco, kl_reference_point, kto, mismatched_sums

LN3 = math.log(3)  # sigmoid(ln 3) = 3/4
GOOD, BAD = torch.tensor([True]), torch.tensor([False])
LEAST = {"kto": 0.5, "bco": math.log(2)}  # per answer, while the policy is the reference and its point is 0


def sample(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Five answers in fp64, three of them undesirable, every option at once."""
    generator = torch.Generator().manual_seed(seed)
    policy_N, reference_N = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    options = {
        "reference_point": 0.2,
        "beta": 0.7,
        "desirable_weight": 1.5,
        "undesirable_weight": 0.8,
        "weights_N": torch.rand(5, generator=generator),
    }
    return policy_N.requires_grad_(), reference_N, torch.tensor([True, False, False, True, False]), options


def log_ratio(value: float, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Policy and reference of one answer."""
    return torch.tensor([value - 9.0], dtype=dtype, requires_grad=True), torch.tensor([-9.0], dtype=dtype)


def test_kto_loss_metrics_and_gradient_by_hand():
    # beta 1/2, point ln 3. Rewards 2 ln 3 and 0: good, 1 - 3/4; bad, sigmoid(ln 3 - 0) = 3/4, twice 1 - 3/4.
    policy_N = torch.tensor([4 * LN3 - 9, -7.0], dtype=torch.float64, requires_grad=True)
    reference_N = torch.tensor([-9.0, -7.0], dtype=torch.float64)
    loss, metrics = kto(
        policy_N, reference_N, torch.tensor([True, False]), 2.0, reference_point=LN3, beta=0.5, undesirable_weight=2.0
    )
    assert metrics == {
        "loss": pytest.approx((1 / 4 + 2 / 4) / 2),
        "desirable_reward_sum": pytest.approx(2 * LN3),
        "undesirable_reward_sum": 0.0,
        "desirable_weight_sum": 1.0,
        "undesirable_weight_sum": 1.0,
        "correct_sum": 2.0,
        "weight_sum": 2.0,
    }
    loss.backward()
    # beta lambda sigmoid(x) (1 - sigmoid(x)) / 2: 3/16 / 4 towards the good one, twice that away from the bad one.
    assert policy_N.grad is not None
    assert policy_N.grad.tolist() == [pytest.approx(-3 / 64), pytest.approx(6 / 64)]


def test_bco_loss_and_gradient_by_hand():
    # The same rewards: -ln 3/4 each, the second twice. d / d log-ratio: beta lambda (1 - 3/4) / 2.
    policy_N = torch.tensor([4 * LN3 - 9, -7.0], dtype=torch.float64, requires_grad=True)
    reference_N = torch.tensor([-9.0, -7.0], dtype=torch.float64)
    loss, metrics = bco(
        policy_N, reference_N, torch.tensor([True, False]), 2.0, reference_point=LN3, beta=0.5, undesirable_weight=2.0
    )
    loss.backward()
    assert float(loss.detach()) == pytest.approx(3 * math.log(4 / 3) / 2)
    assert metrics["correct_sum"] == 2.0
    assert policy_N.grad is not None
    assert policy_N.grad.tolist() == [pytest.approx(-1 / 16), pytest.approx(2 / 16)]


def test_an_answer_on_the_wrong_side_by_hand():
    for desirable_N, reward in ((GOOD, -LN3), (BAD, LN3)):
        policy_N, reference_N = log_ratio(reward)
        loss, metrics = kto(policy_N, reference_N, desirable_N, 1.0, reference_point=0.0, beta=1.0)
        assert float(loss.detach()) == pytest.approx(3 / 4)
        assert metrics["correct_sum"] == 0.0
        loss, _ = bco(policy_N, reference_N, desirable_N, 1.0, reference_point=0.0, beta=1.0)
        assert float(loss.detach()) == pytest.approx(math.log(4))


@pytest.mark.parametrize("name", UNPAIRED_LOSSES)
@pytest.mark.parametrize("desirable_N", [GOOD, BAD])
def test_the_first_step(name, desirable_N):
    policy_N, reference_N = log_ratio(0.0, torch.float32)
    loss, metrics = UNPAIRED_LOSSES[name](policy_N, reference_N, desirable_N, 1.0, reference_point=RewardShift().delta)
    assert loss == torch.tensor(LEAST[name])
    assert metrics["correct_sum"] == 0.5


def test_the_reference_point_is_the_mean_of_the_step_and_never_below_zero():
    # Log-ratios 1 + 2 + 6 over three rows, then weighted 1 * 1 + 3 * 3 over a weight of 4.
    policy_M, reference_M = torch.tensor([1.0, 2.0, 6.0]) - 4, torch.full((3,), -4.0)
    assert kl_reference_point(mismatched_sums(policy_M, reference_M), beta=0.5) == pytest.approx(1.5)
    weighted = mismatched_sums(torch.tensor([1.0, 3.0]), torch.zeros(2), torch.tensor([1.0, 3.0]))
    assert weighted.tolist() == [10.0, 4.0]
    assert kl_reference_point(weighted) == pytest.approx(0.25)
    assert kl_reference_point(mismatched_sums(reference_M, policy_M)) == 0.0


def test_the_reference_point_is_of_sums_and_clamped_once():
    # TRL clamps per micro-batch: 0 and 1, a mean of 1/2. All four rows have the mean (3 * -2 + 1) / 4, below 0. Nor is
    # the mean of means (-2 + 1) / 2 that of the rows.
    parts = [mismatched_sums(torch.full((3,), -2.0), torch.zeros(3)), mismatched_sums(torch.ones(1), torch.zeros(1))]
    whole = torch.stack(parts).sum(0)
    assert whole.tolist() == [-5.0, 4.0]
    assert kl_reference_point(whole) == 0.0
    assert [kl_reference_point(part, beta=1.0) for part in parts] == [0.0, 1.0]


def test_the_reference_point_has_no_gradient_and_needs_a_row():
    policy_M = torch.zeros(2, requires_grad=True)
    assert not mismatched_sums(policy_M, torch.ones(2)).requires_grad
    with pytest.raises(AssertionError, match="KTO needs two prompts"):
        kl_reference_point(mismatched_sums(torch.zeros(0), torch.zeros(0)))


def test_a_reference_point_that_is_no_number_is_not_hidden_by_the_clamp():
    assert math.isnan(kl_reference_point(mismatched_sums(torch.tensor([math.nan, 1.0]), torch.zeros(2))))


def test_mismatched_bf16_rows_are_added_in_fp64():
    ones = torch.ones(1001, dtype=torch.bfloat16)
    assert mismatched_sums(ones, torch.zeros_like(ones)).tolist() == [1001.0, 1001.0]  # bf16 has 1000 and 1004


def test_delta_is_midway_between_the_classes_however_uneven_they_are():
    # One desirable reward of 2, three undesirable ones of -2. TRL's mean of all four is -1, where the desirable one
    # would be 3 above without having moved.
    policy_N, reference_N = torch.tensor([2.0, -2.0, -2.0, -2.0]), torch.zeros(4)
    desirable_N = torch.tensor([True, False, False, False])
    _, metrics = bco(policy_N, reference_N, desirable_N, 4.0, reference_point=0.0, beta=1.0)
    shift = RewardShift().after(metrics)
    assert shift == RewardShift(desirable_sum=2.0, desirable_weight=1.0, undesirable_sum=-6.0, undesirable_weight=3.0)
    assert shift.delta == 0.0
    # Another step: desirable 8, so a mean of (2 + 8) / 2 = 5, and midway to -2 is 1.5.
    _, metrics = bco(torch.tensor([8.0]), torch.zeros(1), GOOD, 1.0, reference_point=shift.delta, beta=1.0)
    assert shift.after(metrics).delta == pytest.approx(1.5)


@pytest.mark.parametrize("desirable_N", [GOOD, BAD])
def test_delta_waits_for_both_classes(desirable_N):
    _, metrics = bco(torch.tensor([5.0]), torch.zeros(1), desirable_N, 1.0, reference_point=0.0, beta=1.0)
    assert RewardShift().after(metrics).delta == 0.0


def test_the_state_of_bco_is_plain_data():
    shift = RewardShift(desirable_sum=0.1, desirable_weight=3.0, undesirable_sum=-1 / 3, undesirable_weight=7.0)
    assert RewardShift(**json.loads(json.dumps(dataclasses.asdict(shift)))) == shift


@pytest.mark.parametrize("name", UNPAIRED_LOSSES)
def test_labels_of_minus_one_and_columns_are_refused(name):
    policy_N, reference_N = log_ratio(1.0)
    with pytest.raises(AssertionError, match=r"expected torch\.bool"):
        UNPAIRED_LOSSES[name](policy_N, reference_N, torch.tensor([-1]), 1.0, reference_point=0.0)
    with pytest.raises(AssertionError, match="expected vectors"):
        UNPAIRED_LOSSES[name](policy_N, reference_N[:, None], GOOD, 1.0, reference_point=0.0)


@pytest.mark.parametrize("name", UNPAIRED_LOSSES)
def test_a_class_without_weight_costs_nothing_and_stays_in_the_metrics(name):
    policy_N, reference_N, desirable_N, options = sample()
    loss, metrics = UNPAIRED_LOSSES[name](
        policy_N, reference_N, desirable_N, 5.0, **options | {"undesirable_weight": 0.0, "weights_N": None}
    )
    loss.backward()
    assert policy_N.grad is not None
    assert (policy_N.grad != 0).tolist() == desirable_N.tolist()
    assert (metrics["undesirable_weight_sum"], metrics["weight_sum"]) == (3.0, 5.0)


@pytest.mark.parametrize("name", UNPAIRED_LOSSES)
@pytest.mark.parametrize("cut", [0, 1, 4])
def test_micro_batches_with_one_denominator_and_one_point_add_up_to_the_whole(name, cut):
    # Cuts 0, 1 and 4: a worker without an answer, one with a desirable and one with an undesirable answer alone.
    policy_N, reference_N, desirable_N, options = sample()
    denominator = float(options["weights_N"].sum())
    whole, metrics = UNPAIRED_LOSSES[name](policy_N, reference_N, desirable_N, denominator, **options)
    (expected,) = torch.autograd.grad(whole, policy_N)
    pieces = []
    for part in (slice(0, cut), slice(cut, None)):
        of_part = options | {"weights_N": options["weights_N"][part]}
        rows = (policy_N[part], reference_N[part], desirable_N[part])
        pieces.append(UNPAIRED_LOSSES[name](*rows, denominator, **of_part))
    (gradient,) = torch.autograd.grad(sum(loss for loss, _ in pieces), policy_N)
    assert torch.allclose(gradient, expected, rtol=1e-12)
    for key, value in metrics.items():
        assert sum(piece[key] for _, piece in pieces) == pytest.approx(value)
    in_parts = RewardShift()
    for _, piece in pieces:
        in_parts = in_parts.after(piece)
    assert in_parts.delta == pytest.approx(RewardShift().after(metrics).delta)


@pytest.mark.parametrize("name", UNPAIRED_LOSSES)
def test_gradient_by_finite_difference(name):
    policy_N, reference_N, desirable_N, options = sample()
    assert torch.autograd.gradcheck(
        lambda p: UNPAIRED_LOSSES[name](p, reference_N, desirable_N, 2.5, **options)[0], policy_N
    )


def test_the_reference_has_no_gradient():
    policy_N, reference_N = log_ratio(1.0)
    reference_N.requires_grad_()
    for loss_of in UNPAIRED_LOSSES.values():
        loss_of(policy_N, reference_N, GOOD, 1.0, reference_point=0.0)[0].backward()
    assert reference_N.grad is None


@pytest.mark.parametrize("desirable_N", [GOOD, BAD])
@pytest.mark.parametrize("value", [-1e6, 1e6])
def test_extreme_log_ratios_are_finite_and_bco_keeps_the_gradient_of_a_mistake(desirable_N, value):
    mistaken = (value < 0) == bool(desirable_N)
    for name, at_mistake in (("kto", 0.0), ("bco", 1.0)):
        policy_N, reference_N = log_ratio(value, torch.float32)
        loss, metrics = UNPAIRED_LOSSES[name](policy_N, reference_N, desirable_N, 1.0, reference_point=0.0, beta=1.0)
        loss.backward()
        assert all(math.isfinite(metric) for metric in metrics.values())
        assert policy_N.grad is not None
        assert float(policy_N.grad.abs()) == (at_mistake if mistaken else 0.0)


def test_a_kto_loss_near_zero_is_not_rounded_away():
    # 1 - sigmoid(30) in fp32 is 0, and with it the gradient; sigmoid(-30) is e^-30.
    policy_N, reference_N = log_ratio(30.0, torch.float32)
    loss, _ = kto(policy_N, reference_N, GOOD, 1.0, reference_point=0.0, beta=1.0)
    assert float(loss.detach()) == pytest.approx(math.exp(-30), rel=1e-5)


@pytest.mark.parametrize("name", UNPAIRED_LOSSES)
def test_bf16_log_probabilities_are_subtracted_in_fp32_and_no_number_is_not_hidden(name):
    # 1 - 2^-9 has too many bits for bf16.
    policy_N, reference_N = torch.tensor([[1.0], [2.0**-9]], dtype=torch.bfloat16)
    loss, metrics = UNPAIRED_LOSSES[name](policy_N, reference_N, GOOD, 1.0, reference_point=0.0, beta=1.0)
    assert loss.dtype == torch.float32
    assert metrics["desirable_reward_sum"] == 1 - 2.0**-9
    _, metrics = UNPAIRED_LOSSES[name](*log_ratio(math.nan), GOOD, 1.0, reference_point=0.0)
    assert math.isnan(metrics["loss"])
