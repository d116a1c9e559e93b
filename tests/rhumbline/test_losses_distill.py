from __future__ import annotations

import math

import pytest
import torch

from rhumbline.losses.distill import distill


def test_loss_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2).
    teacher_RV = torch.tensor([[math.log(3), 0.0]])
    student_RV = torch.zeros(1, 2)
    loss, metrics = distill(student_RV, teacher_RV, torch.tensor([2.0]), denominator=4.0)
    expected = 0.5 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(loss) == pytest.approx(expected)
    assert metrics["loss"] == pytest.approx(expected)


def test_it_is_forward_kl_and_not_its_reverse():
    teacher_RV, student_RV = torch.tensor([[math.log(9), 0.0]]), torch.zeros(1, 2)
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    reverse = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    loss, _ = distill(student_RV, teacher_RV, torch.ones(1), denominator=1.0)
    assert float(loss) == pytest.approx(forward)
    assert abs(forward - reverse) > 0.1


def test_equal_distributions_cost_nothing_whatever_their_offset():
    logits_RV = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    loss, _ = distill(logits_RV + 3.0, logits_RV, torch.ones(5), denominator=5.0)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


def test_many_rows_equal_torch_s_own_divergence():
    generator = torch.Generator().manual_seed(0)
    teacher_RV, student_RV = (torch.randn(50, 9, generator=generator) for _ in range(2))
    weights_R = torch.rand(50, generator=generator)
    kl_RV = torch.nn.functional.kl_div(
        student_RV.log_softmax(-1), teacher_RV.log_softmax(-1), log_target=True, reduction="none"
    )
    loss, _ = distill(student_RV, teacher_RV, weights_R, denominator=7.0)
    assert float(loss) == pytest.approx(float((kl_RV.sum(-1) * weights_R).sum() / 7), rel=1e-5)


def test_logits_that_are_no_numbers_are_not_hidden():
    broken = torch.tensor([[float("nan"), 0.0]])
    for student_RV, teacher_RV in ((broken, torch.zeros(1, 2)), (torch.zeros(1, 2), broken)):
        loss, _ = distill(student_RV, teacher_RV, torch.ones(1), denominator=1.0)
        assert loss.isnan()


def test_a_token_that_the_teacher_rules_out_is_no_nan():
    teacher_RV = torch.tensor([[0.0, float("-inf")]])
    student_RV = torch.zeros(1, 2, requires_grad=True)
    loss, _ = distill(student_RV, teacher_RV, torch.ones(1), denominator=1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2))
    assert student_RV.grad is not None
    assert student_RV.grad.isfinite().all()


def test_gradient_by_finite_difference_and_none_for_the_teacher():
    generator = torch.Generator().manual_seed(1)
    teacher_RV = torch.randn(3, 5, generator=generator, requires_grad=True)
    student_RV = torch.randn(3, 5, generator=generator, requires_grad=True)
    weights_R = torch.tensor([1.0, 0.5, 2.0])
    loss, _ = distill(student_RV, teacher_RV, weights_R, denominator=3.5)
    loss.backward()
    assert teacher_RV.grad is None
    assert student_RV.grad is not None

    def at(student: torch.Tensor) -> float:
        p, q = teacher_RV.double().softmax(-1), student.softmax(-1)
        return float((weights_R * (p * (p / q).log()).sum(-1)).sum() / 3.5)

    with torch.no_grad():
        for index in ((0, 0), (1, 3), (2, 4)):
            bump = torch.zeros(3, 5, dtype=torch.float64)
            bump[index] = 1e-5
            slope = (at(student_RV.double() + bump) - at(student_RV.double() - bump)) / 2e-5
            assert float(student_RV.grad[index]) == pytest.approx(slope, abs=1e-5)
