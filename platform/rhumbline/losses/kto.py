"""Learning from single answers that are known to be desirable or not: KTO and BCO, the same interface.

    sums = mismatched_sums(mismatched_M, reference_mismatched_M)           # KTO: add up over the step ...
    loss, metrics = kto(policy_N, reference_N, desirable_N, mass, reference_point=kl_reference_point(sums, beta=0.1))

    loss, metrics = bco(policy_N, reference_N, desirable_N, mass, reference_point=shift.delta)
    shift = shift.after(metrics)                                           # BCO: ... or carry on from step to step

N answers, M mismatched ones. Log-probabilities are those of sequences, nats, summed over their learned tokens; the
reference's have no gradient. The reward of an answer is beta log pi / pi_ref, and the reference point, in units of
the reward, is what it is held against. It is a number, so no gradient goes through it, and one for the whole step:
every micro-batch of every worker gets the same. TRL (1.13) takes one per micro-batch, so there a step changes with
how it was cut: clamped at 0 part by part, KTO's is too high; BCO's moves on between the parts.

Where classes are uneven, desirable_weight * n_desirable / (undesirable_weight * n_undesirable) should lie between 1
and 4/3 (arXiv:2402.01306): of 16 samples of which selection kept one, a desirable weight of 15 to 20. The denominator
is that of `weights_N` and does not hold these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rhumbline.losses.rows import report, row_weights, same_rows, surprise, widen


def mismatched_sums(
    policy_M: torch.Tensor, reference_M: torch.Tensor, weights_M: torch.Tensor | None = None
) -> torch.Tensor:
    """(2,) fp64: the weighted sum of log pi / pi_ref, and the weight. Add up over micro-batches and workers.

    Each row is the log-probability of an answer to another prompt, say that of the next row. With several samples per
    prompt the next row is often of the same one; such a row is not mismatched and belongs to no sum.
    """
    same_rows(policy_M, reference_M)
    log_ratio_M = (widen(policy_M.detach()) - widen(reference_M.detach())).double()
    weights_M = row_weights(weights_M, log_ratio_M)
    return torch.stack([(weights_M * log_ratio_M).sum(), weights_M.sum()])


def kl_reference_point(sums_2: torch.Tensor, beta: float = 0.1) -> float:
    """KTO's beta z0 = beta max(0, mean of log pi / pi_ref), of the step's `mismatched_sums`.

    An estimate of the KL divergence from the reference, biased and of low variance. Clamped once, at the end.
    """
    log_ratio_sum, weight = (float(total) for total in sums_2)
    assert weight > 0, "no mismatched answer in the step: KTO needs two prompts at least"
    return beta * max(log_ratio_sum / weight, 0.0)  # in this order NaN stays NaN


def kto(
    policy_N: torch.Tensor,
    reference_N: torch.Tensor,
    desirable_N: torch.Tensor,
    denominator: float,
    *,
    reference_point: float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    weights_N: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_n w_n lambda_n (1 - sigmoid(+-(reward_n - reference_point))) / denominator, in [0, lambda].

    + and lambda_D, the desirable weight, where an answer is desirable, - and lambda_U where it is not (Ethayarajh et
    al., arXiv:2402.01306, section 4; beta z0 is the reference point). An answer far on either side has no gradient:
    what cannot be learned is let go. Computed in fp32 or better.

    Metrics: those of `bco`.
    """
    rewards_N = _rewards(policy_N, reference_N, desirable_N, beta)
    x_N = _right_side(rewards_N, desirable_N, reference_point)
    # 1 - sigmoid(x) would round to 0 from x = 17 on.
    return _weighted(
        (-x_N).sigmoid(), x_N, rewards_N, desirable_N, denominator, desirable_weight, undesirable_weight, weights_N
    )


def bco(
    policy_N: torch.Tensor,
    reference_N: torch.Tensor,
    desirable_N: torch.Tensor,
    denominator: float,
    *,
    reference_point: float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    weights_N: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_n w_n lambda_n (-log sigmoid(+-(reward_n - delta))) / denominator, nats.

    + where an answer is desirable, - where it is not; delta, the reference point, is `RewardShift.delta` (Jung et al.,
    arXiv:2404.04656). Where the undesirable answers are to prompts of another kind, their `weights_N` can be the
    odds that such a prompt is among the desirable ones (the paper's density ratio; TRL clamps it to [0.5, 10]).
    Computed in fp32 or better.

    Metrics: `loss`, and sums over the answers, weighted by `weights_N`: `desirable_reward_sum`,
    `undesirable_reward_sum`, `desirable_weight_sum` and `undesirable_weight_sum` to divide these by, `correct_sum`
    of the answers on their side of the reference point (on it is half right), and `weight_sum` of all.
    """
    rewards_N = _rewards(policy_N, reference_N, desirable_N, beta)
    x_N = _right_side(rewards_N, desirable_N, reference_point)
    return _weighted(
        surprise(x_N), x_N, rewards_N, desirable_N, denominator, desirable_weight, undesirable_weight, weights_N
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardShift:
    """What BCO remembers from step to step: the running mean reward of either class. Saved with the optimiser.

        shift = RewardShift()
        shift = shift.after(metrics)     # of the whole step, or of its parts one after the other

    TRL's running mean is of all answers together. Where one of 16 is desirable that is nearly the mean of the
    undesirable ones; the desirable ones lie above it without having moved, and hardly learn.
    """

    desirable_sum: float = 0.0  # of rewards, weighted
    desirable_weight: float = 0.0
    undesirable_sum: float = 0.0
    undesirable_weight: float = 0.0

    @property
    def delta(self) -> float:
        """(mean of desirable rewards + mean of undesirable rewards) / 2; 0 until there are both."""
        if self.desirable_weight == 0 or self.undesirable_weight == 0:
            return 0.0
        return (self.desirable_sum / self.desirable_weight + self.undesirable_sum / self.undesirable_weight) / 2

    def after(self, metrics: Mapping[str, float]) -> RewardShift:
        """With the rewards that the metrics of `bco` add up.

        A step uses the delta of the steps before it, so no answer has to be read twice. The first has 0, which is
        exact: the policy is still the reference.
        """
        return RewardShift(
            desirable_sum=self.desirable_sum + metrics["desirable_reward_sum"],
            desirable_weight=self.desirable_weight + metrics["desirable_weight_sum"],
            undesirable_sum=self.undesirable_sum + metrics["undesirable_reward_sum"],
            undesirable_weight=self.undesirable_weight + metrics["undesirable_weight_sum"],
        )


def _rewards(policy_N: torch.Tensor, reference_N: torch.Tensor, desirable_N: torch.Tensor, beta: float) -> torch.Tensor:
    same_rows(policy_N, reference_N, desirable_N)
    assert desirable_N.dtype == torch.bool, f"desirable_N is {desirable_N.dtype}, expected torch.bool"  # not -1 and 1
    return beta * (widen(policy_N) - widen(reference_N.detach()))


def _right_side(rewards_N: torch.Tensor, desirable_N: torch.Tensor, reference_point: float) -> torch.Tensor:
    """(N,) how far a reward lies on the side of the reference point where it should."""
    return torch.where(desirable_N, rewards_N - reference_point, reference_point - rewards_N)


def _weighted(
    loss_N: torch.Tensor,
    x_N: torch.Tensor,
    rewards_N: torch.Tensor,
    desirable_N: torch.Tensor,
    denominator: float,
    desirable_weight: float,
    undesirable_weight: float,
    weights_N: torch.Tensor | None,
) -> tuple[torch.Tensor, dict[str, float]]:
    weights_N = row_weights(weights_N, loss_N)
    # As tensors of its type: a `where` of two Python numbers would be fp32.
    lambda_N = torch.where(desirable_N, loss_N.new_tensor(desirable_weight), loss_N.new_tensor(undesirable_weight))
    loss = (weights_N * lambda_N * loss_N).sum() / denominator
    return loss, report(
        loss,
        weights_N,
        desirable_reward_sum=torch.where(desirable_N, rewards_N, 0.0),
        undesirable_reward_sum=torch.where(desirable_N, 0.0, rewards_N),
        desirable_weight_sum=desirable_N,
        undesirable_weight_sum=~desirable_N,
        correct_sum=(x_N > 0) + 0.5 * (x_N == 0),
    )
