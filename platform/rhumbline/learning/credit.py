"""From rewards to what each token of an answer is credited with: scores, the KL in the reward, advantages, returns.

    credited, metrics = credit(batch, measured, recipe.ppo, beta=0.02)
    credited.advantages_R, credited.returns_R, metrics["learn/score_mean"]
    part = credited.at(place, device)                                        # some tokens' share of it

Of the whole step at once, on the CPU: every rank computes the same numbers from the same ones.

N answers, K objectives, R tokens of answers: answer after answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from rhumbline import config
from rhumbline.learning.trajectories import Trajectory, groups, scores, weights
from rhumbline.losses import GROUP_ADVANTAGES
from rhumbline.losses.advantages import gae, moments, per_objective, token_rewards, whiten
from rhumbline.losses.kl import CLAMP, k1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the policy said of the answers before the first update on them. Tensors of the whole step, without gradient."""

    logp_R: torch.Tensor  # the learner's, nats
    reference_logp_R: torch.Tensor
    entropy_R: torch.Tensor  # of the policy's next token
    values_R: torch.Tensor  # before each token; 0 without a value head

    def kl(self) -> torch.Tensor:
        """(R,) k1; summed over an answer the log-ratio of the answer."""
        return k1(self.logp_R, self.reference_logp_R)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credited:
    """What an update learns from, token by token."""

    old_logp_R: torch.Tensor
    reference_logp_R: torch.Tensor
    engine_logp_R: torch.Tensor  # the learner's own where the engine's are unknown
    advantages_R: torch.Tensor
    values_R: torch.Tensor  # before the update; 0 without a value head
    returns_R: torch.Tensor  # what they are to become

    def at(self, place: torch.Tensor, device: torch.device) -> Credited:
        """Those of some rows."""
        return Credited(**{one.name: getattr(self, one.name)[place].to(device) for one in fields(self)})


def credit(
    batch: Sequence[Trajectory], measured: Measured, settings: config.Ppo | config.Grpo, beta: float
) -> tuple[Credited, dict[str, float]]:
    """Advantages and returns of a step, and its figures. beta: what a nat of KL costs now."""
    if isinstance(settings, config.Ppo):
        advantages_R, returns_R, metrics = _ppo(batch, measured, settings, beta)
    else:
        advantages_R, metrics = _grpo(batch, measured, settings, beta)
        returns_R = torch.zeros_like(advantages_R)
    engine_logp_R, known_R = _engine(batch, measured)
    credited = Credited(
        old_logp_R=measured.logp_R,
        reference_logp_R=measured.reference_logp_R,
        engine_logp_R=engine_logp_R,
        advantages_R=advantages_R,
        values_R=measured.values_R,
        returns_R=returns_R,
    )
    if known_R.any():
        metrics |= _engine_metrics(measured.logp_R[known_R], engine_logp_R[known_R], settings.importance_cap)
    return credited, metrics


def mean_kl(batch: Sequence[Trajectory], measured: Measured, importance_cap: float | None) -> float:
    """The policy's KL to its reference as the answers tell it, nats per answer: the mean of sum_t w_t k1_t.

    w_t = min(p learner / p engine, importance_cap), as in the loss: where another version of the policy drew the answers,
    k1 alone would be the mean of the policy's log-ratio over tokens that it would not draw. No cap: w_t = 1.
    """
    kl_R = measured.kl().double()
    if importance_cap is not None:
        engine_logp_R, _ = _engine(batch, measured)
        kl_R = kl_R * _importance(measured.logp_R.double(), engine_logp_R.double()).clamp(max=importance_cap)
    return float(kl_R.sum()) / len(batch)


def _engine(batch: Sequence[Trajectory], measured: Measured) -> tuple[torch.Tensor, torch.Tensor]:
    """(R,) the engine's log-probabilities, the learner's own where they are unknown; (R,) which ones are known."""
    counts = torch.tensor([len(one.response_ids) for one in batch])
    known_R = torch.tensor([bool(one.engine_logprobs) for one in batch]).repeat_interleave(counts)
    engine_logp_R = measured.logp_R.clone()
    engine_logp_R[known_R] = torch.tensor([p for one in batch for p in one.engine_logprobs], dtype=engine_logp_R.dtype)
    return engine_logp_R, known_R


def _importance(logp_R: torch.Tensor, engine_logp_R: torch.Tensor) -> torch.Tensor:
    return (logp_R - engine_logp_R).clamp(-CLAMP, CLAMP).exp()


def _ppo(
    batch: Sequence[Trajectory], measured: Measured, settings: config.Ppo, beta: float
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """The score on the last token, less beta times the KL on each, through GAE.

    An answer that was cut at the most tokens ends like any other: its score is final, nothing is added after it. The value of
    where it stopped is no one's target, so returns that were built on it would follow whatever it happens to be.
    """
    lengths = [len(one.response_ids) for one in batch]
    scores_N = torch.from_numpy(scores(batch, settings.weights))
    charged = beta if settings.kl.place == "reward" else 0.0
    rewards_R = token_rewards(scores_N, measured.kl(), charged, lengths, score_clip=settings.score_clip)
    advantages_R, returns_R = gae(
        rewards_R,
        measured.values_R,
        lengths,
        gamma=settings.gamma,
        lam=settings.lam,
    )
    clip = settings.score_clip
    metrics = _score_metrics(scores_N) | {
        "learn/score_clipped": 0.0 if clip is None else float((scores_N.abs() > clip).double().mean()),
        "learn/advantage_std": _std(advantages_R),
        "learn/value_explained": _explained(measured.values_R, returns_R),
        **_constant_objectives(batch, [0] * len(batch)),
    }
    if settings.whiten:
        advantages_R = whiten(advantages_R, moments(advantages_R))
    return advantages_R, returns_R, metrics


def _grpo(
    batch: Sequence[Trajectory], measured: Measured, settings: config.Grpo, beta: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """Each answer against the others of its group; all its tokens have the same advantage.

    With the KL in the reward an answer's score is less beta times its log-ratio, before the baseline (RLOO,
    arXiv:2402.14740). `per_objective` is GDPO (arXiv:2601.05242), which has no place for that; `learn/constant_groups/k` are
    its groups in which objective k is the same throughout.
    """
    counts = torch.tensor([len(one.response_ids) for one in batch])
    scores_N, numbers = torch.from_numpy(scores(batch, settings.weights)), groups(batch)
    groups_N, normalise = torch.tensor(numbers), GROUP_ADVANTAGES[settings.advantage]
    by_objective: dict[str, float] = {}
    if settings.per_objective:
        rewards_NK = torch.tensor([one.rewards for one in batch], dtype=torch.float64)
        v_NK = torch.from_numpy(weights(batch, settings.weights))
        advantages_N, told = per_objective(rewards_NK, groups_N, v_NK, normalise=normalise)
        by_objective = {f"learn/{name}": count for name, count in told.items() if name.startswith("constant_groups/")}
    else:
        charged = beta if settings.kl.place == "reward" else 0.0
        answer_R = torch.arange(len(batch)).repeat_interleave(counts)
        kl_N = torch.zeros_like(scores_N).index_add(0, answer_R, measured.kl().double())
        advantages_N, _ = normalise(scores_N - charged * kl_N, groups_N)
    heard = {number for number, advantage in zip(numbers, advantages_N.tolist(), strict=True) if advantage != 0}
    metrics = {**_score_metrics(scores_N), **by_objective} | {
        "learn/advantage_std": _std(advantages_N.repeat_interleave(counts)),
        "learn/groups": float(len(set(numbers))),
        "learn/constant_groups": float(len(set(numbers) - heard)),  # that teach nothing
        **_constant_objectives(batch, numbers),
    }
    if settings.whiten:
        advantages_N = whiten(advantages_N, moments(advantages_N))
    return advantages_N.float().repeat_interleave(counts), metrics


# --- figures ----------------------------------------------------------------------------------------------------------


def _engine_metrics(logp_R: torch.Tensor, engine_logp_R: torch.Tensor, cap: float | None) -> dict[str, float]:
    """How far apart learner and engine are."""
    logp_R, engine_logp_R = logp_R.double(), engine_logp_R.double()
    gap_R = (logp_R.exp() - engine_logp_R.exp()).abs()
    metrics = {"learn/engine_gap": float(gap_R.mean()), "learn/engine_gap_max": float(gap_R.max())}
    if cap is not None:
        ratio_R = _importance(logp_R, engine_logp_R)
        metrics["learn/importance_mean"] = float(ratio_R.clamp(max=cap).mean())
        metrics["learn/importance_capped"] = float((ratio_R > cap).double().mean())
    return metrics


def _std(values: torch.Tensor) -> float:
    return float(values.double().std(correction=0))


def _score_metrics(scores_N: torch.Tensor) -> dict[str, float]:
    return {"learn/score_mean": float(scores_N.mean()), "learn/score_std": _std(scores_N)}


def _explained(values_R: torch.Tensor, returns_R: torch.Tensor) -> float:
    """The share of the returns' variance that the values explain; 0 where there is nothing to explain."""
    variance = _std(returns_R) ** 2
    return 1 - _std(returns_R - values_R) ** 2 / variance if variance > 0 else 0.0


def _constant_objectives(batch: Sequence[Trajectory], numbers: Sequence[int]) -> dict[str, float]:
    """Objectives that are the same throughout every group: they have no say in this step, whatever they weigh.

    How many, and `learn/constant_objectives/k`: 1 where objective k is one of them, else 0.
    """
    rewards_NK, numbers_N = np.array([one.rewards for one in batch]), np.array(numbers)
    same_K = np.ones(rewards_NK.shape[1], dtype=bool)
    for number in set(numbers):
        same_K &= np.ptp(rewards_NK[numbers_N == number], axis=0) == 0
    name = "learn/constant_objectives"
    return {name: float(same_K.sum())} | {f"{name}/{k}": float(same) for k, same in enumerate(same_K)}
