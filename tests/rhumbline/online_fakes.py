"""Answers that nobody sampled, and a rank of the learners of online training that updates a policy of two layers on them.

learner = made(policy, config.Grpo(), learner={"lora": LORA})
figures(learner.update(1, batch()))
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rhumbline import config
from rhumbline.learning.online import OnlineLearner
from rhumbline.learning.trajectories import Trajectory
from tests.rhumbline.learning_fakes import quick

LORA = {"r": 4, "alpha": 8}
PPO, GRPO = config.Ppo(), config.Grpo()


def trajectory(index: int, rewards: tuple[float, ...] = (1.0, -0.5), **fields: Any) -> Trajectory:
    """Answers of 3 to 9 tokens, two to a group."""
    rng = np.random.default_rng(index)
    length = int(rng.integers(3, 10))
    base: dict[str, Any] = {
        "id": f"p{index // 2}/d0/s{index % 2}",
        "group": f"p{index // 2}/d0",
        "prompt_ids": tuple(np.random.default_rng((1, index // 2)).integers(0, 256, 4 + index // 2 % 3).tolist()),
        "response_ids": tuple(rng.integers(0, 256, length).tolist()),
        "engine_logprobs": (),
        "rewards": rewards,
        "direction": (0.8, 0.6),
        "truncated": index % 3 == 0,
    }
    return Trajectory(**base | fields)


def batch(size: int = 12, seed: int = 0) -> list[Trajectory]:
    rng = np.random.default_rng((seed, 99))
    return [trajectory(i, tuple(rng.normal(size=2).tolist())) for i in range(size)]


def made(policy: Path, settings: config.Ppo | config.Grpo = GRPO, **options: Any) -> OnlineLearner:
    learner = quick(**{"lr": 3e-3, "warmup_steps": 0, "micro_batch_tokens": 64} | options.pop("learner", {}))
    arguments: dict[str, Any] = {"total_steps": 10, "answers_per_step": 12, "policy_dir": policy, "seed": 7}
    return OnlineLearner(settings, learner, **arguments | options)


def figures(metrics: dict[str, float]) -> dict[str, float]:
    """Those that no clock has a part in."""
    return {name: figure for name, figure in metrics.items() if name != "learn/tokens_per_s"}


def weights(learner: OnlineLearner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.engine.weights(True).items()}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((a[k] - b[k]).square().sum()) for k in a))
