from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rhumbline.losses.disentangle import disentangle, length_correlation, orthogonality

LENGTHS = torch.tensor([1, 2, 3])
W_QUALITY, W_LENGTH = torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0])  # cos = 3/5


def sample(n: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores_N = torch.randn(n, generator=generator, dtype=torch.float64).requires_grad_()
    return scores_N, torch.randint(1, 400, (n,), generator=generator).sort().values


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([2.0, 4.0, 6.0], 1.0),
        ([3.0, 2.0, 1.0], -1.0),
        ([1.0, 2.0, 1.0], 0.0),
        ([0.0, 1.0, 5.0], 5 / math.sqrt(28)),  # centred (-2, -1, 3) and (-1, 0, 1): 5 / (sqrt 14 sqrt 2)
    ],
)
def test_correlation_by_hand(scores, expected):
    assert float(length_correlation(torch.tensor(scores), LENGTHS)) == pytest.approx(expected, abs=1e-7)


def test_correlation_equals_numpy_s_and_does_not_see_scale_or_offset():
    scores_N, lengths_N = sample()
    expected = np.corrcoef(scores_N.detach().numpy(), lengths_N.numpy())[0, 1]
    for moved_N in (scores_N, 7 * scores_N - 3):
        assert float(length_correlation(moved_N, lengths_N).detach()) == pytest.approx(expected, rel=1e-9)
    assert float(length_correlation(-scores_N, lengths_N).detach()) == pytest.approx(-expected, rel=1e-9)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1234.567])
@pytest.mark.parametrize("n", [1, 3, 1000])
def test_constant_scores_or_lengths_are_uncorrelated_and_no_nan(constant, n):
    # torch.corrcoef gives NaN, or a correlation of the rounding of the mean.
    scores_N = torch.full((n,), constant, requires_grad=True)
    of_constant_scores = length_correlation(scores_N, torch.arange(n))
    of_constant_lengths = length_correlation(scores_N + torch.arange(n), torch.full((n,), 0.1))
    rho = of_constant_scores + of_constant_lengths
    rho.backward()
    assert float(rho.detach()) == 0.0
    assert scores_N.grad is not None
    assert not scores_N.grad.any()


def test_scores_that_are_no_numbers_are_not_hidden():
    assert length_correlation(torch.tensor([1.0, float("nan"), 2.0]), LENGTHS).isnan()


def test_bf16_scores_give_an_fp32_correlation():
    rho = length_correlation(torch.tensor([0.0, 1.0, 5.0], dtype=torch.bfloat16), LENGTHS)
    assert rho.dtype == torch.float32
    assert float(rho) == pytest.approx(5 / math.sqrt(28))


def test_orthogonality_by_hand():
    assert float(orthogonality(W_QUALITY, W_LENGTH)) == pytest.approx(0.6)
    assert float(orthogonality(-W_QUALITY, W_LENGTH)) == pytest.approx(0.6)  # opposite is as bad as alike
    assert float(orthogonality(torch.tensor([0.0, 5.0]), W_LENGTH)) == 0.0
    fresh = torch.zeros(2, requires_grad=True)
    orthogonality(fresh, W_LENGTH).backward()
    assert fresh.grad is not None
    assert fresh.grad.isfinite().all()


def test_loss_and_metrics_by_hand():
    rho = 5 / math.sqrt(28)
    for sign in (1.0, -1.0):  # quality may not follow length in either direction
        quality_N = sign * torch.tensor([0.0, 1.0, 5.0])
        loss, metrics = disentangle(
            quality_N, LENGTHS.float(), LENGTHS, W_QUALITY, W_LENGTH, correlation=2.0, orthogonal=0.5
        )
        expected = pytest.approx(2 * (rho - 1) + 0.5 * 0.6, abs=1e-6)
        assert float(loss) == expected
        assert metrics == {
            "loss": expected,
            "quality_correlation": pytest.approx(sign * rho),
            "length_correlation": pytest.approx(1.0),
            "overlap": pytest.approx(0.6),
        }


def test_a_step_down_parts_quality_from_length_and_binds_the_length_head_to_it():
    quality_N, lengths_N = sample()
    length_scores_N = sample(seed=1)[0]
    loss, before = disentangle(quality_N, length_scores_N, lengths_N, W_QUALITY, W_LENGTH)
    gradients = torch.autograd.grad(loss, (quality_N, length_scores_N))
    # The reference code makes a new tensor of the correlations of its other heads, and no gradient reaches them.
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    moved = [x - 0.1 * g for x, g in zip((quality_N, length_scores_N), gradients, strict=True)]
    _, after = disentangle(*moved, lengths_N, W_QUALITY, W_LENGTH)
    assert abs(after["quality_correlation"]) < abs(before["quality_correlation"])
    assert after["length_correlation"] > before["length_correlation"]


def test_gradients_by_finite_difference():
    quality_N, lengths_N = sample()
    length_scores_N = sample(seed=1)[0]
    weights = [w.double().requires_grad_() for w in (W_QUALITY, W_LENGTH)]
    assert torch.autograd.gradcheck(
        lambda q, s, w_q, w_l: disentangle(q, s, lengths_N, w_q, w_l)[0], (quality_N, length_scores_N, *weights)
    )


def test_a_step_that_is_cut_gets_the_gradient_of_the_whole_as_documented():
    # Scores of a linear head on features, in two micro-batches sorted by length.
    lengths_N = sample()[1]
    features_ND = torch.randn(12, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    features_ND[:, 0] += lengths_N / 100
    head_D = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(length_correlation(features_ND @ head_D, lengths_N).abs(), head_D)

    scores_N = (features_ND @ head_D).detach().requires_grad_()
    (gradient_N,) = torch.autograd.grad(length_correlation(scores_N, lengths_N).abs(), scores_N)
    parts = (slice(0, 6), slice(6, None))
    shares = sum((gradient_N[part] * (features_ND[part] @ head_D)).sum() for part in parts)
    assert torch.allclose(torch.autograd.grad(shares, head_D)[0], expected)

    # The mean of the micro-batches' own correlations is something else.
    of_parts = sum(length_correlation(features_ND[part] @ head_D, lengths_N[part]).abs() / 2 for part in parts)
    assert not torch.allclose(torch.autograd.grad(of_parts, head_D)[0], expected, rtol=0.1)
