"""Answers of the embedded model to embedded prompts, judged by rules, and what that model says of them.

    policies = Policies(resolve("embedded"), make_adapter(policy_dir, folder))
    batch = sample(policies)
    policies.says("policy", batch.encoded[0])              # (T - 1,) by transformers alone, in fp64

N answers, SAMPLES to each prompt, one prompt after the other; K objectives, R tokens of answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rhumbline import config
from rhumbline.data.chat import Encoded, prompt_ids
from rhumbline.data.prompts import load_prompts
from rhumbline.learning import lora
from rhumbline.learning.logprobs import token_logprobs
from rhumbline.learning.policy import load_adapter, load_policy, load_tokenizer, save_adapter
from rhumbline.learning.trajectories import Trajectory
from rhumbline.records import Judged, Pair
from rhumbline.rewards.rules import RuleRewards

Side = Literal["policy", "reference"]
OBJECTIVES = ("readability", "verbosity")
DIRECTION = (0.8, -0.6)  # on the sphere
PROMPTS, SAMPLES = 3, 4
LENGTHS = (24, 20, 15, 9)  # the most tokens of a prompt's answers: with one length all denominators would be the same
MAX_TOKENS = max(LENGTHS)
SEED = 7
LORA = config.Lora(r=8, alpha=16)
SCALE = 0.04  # standard deviation of the adapter's B: the policy says something else than its reference


def make_adapter(policy_dir: Path, folder: Path) -> Path:
    """A LoRA that changes what the policy says, as a training would have left it."""
    torch.manual_seed(SEED)
    model = lora.attach(load_policy(policy_dir, torch.float32), LORA)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=SCALE)
    return save_adapter(model, folder)


class Policies:
    """The policy, which is the embedded model with an adapter, and its reference, which is that model without."""

    def __init__(self, policy_dir: Path, adapter: Path) -> None:
        self.dir, self.adapter = policy_dir, adapter
        self.models: dict[Side, Any] = {"policy": self.fresh(), "reference": load_policy(policy_dir, torch.float32)}
        self.tokenizer = load_tokenizer(policy_dir)
        self._known: dict[tuple[Side, tuple[int, ...]], np.ndarray] = {}

    def fresh(self) -> Any:
        """The policy once more, for those who change what they are given."""
        return load_adapter(load_policy(self.dir, torch.float32), self.adapter, trainable=True).eval()

    def says(self, side: Side, one: Encoded) -> np.ndarray:
        """(T - 1,) log-probabilities of all tokens but the first: the model alone with this sequence, fp64 from its logits on."""
        if (side, one.token_ids) not in self._known:
            model = self.models[side]
            ids_1T = torch.tensor([one.token_ids], device=model.device)
            with torch.no_grad():
                logp_TV = model(input_ids=ids_1T).logits[0, :-1].double().log_softmax(-1)
            self._known[side, one.token_ids] = logp_TV.gather(1, ids_1T[0, 1:, None])[:, 0].cpu().numpy()
        return self._known[side, one.token_ids]

    def answer(self, side: Side, one: Encoded) -> np.ndarray:
        """Those of the learned tokens."""
        return self.says(side, one)[np.array(one.loss_mask[1:])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Log-probabilities of answers' tokens by both: as our learners compute them, and by transformers in fp64."""

    counts: list[int]
    place_R: np.ndarray  # whose answer a token belongs to
    logp_R: torch.Tensor
    reference_R: torch.Tensor
    true_R: np.ndarray
    true_reference_R: np.ndarray

    @classmethod
    def of(cls, policies: Policies, encoded: Sequence[Encoded], token_budget: int) -> Tokens:
        counts = [one.num_learned for one in encoded]
        mine = {
            side: torch.cat(token_logprobs(model, encoded, token_budget)) for side, model in policies.models.items()
        }
        true = {side: np.concatenate([policies.answer(side, one) for one in encoded]) for side in policies.models}
        return cls(
            counts=counts,
            place_R=np.repeat(np.arange(len(counts)), counts),
            logp_R=mine["policy"],
            reference_R=mine["reference"],
            true_R=true["policy"],
            true_reference_R=true["reference"],
        )

    def sums(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(N,) ours of whole answers, of the policy and of the reference."""
        policy_N, reference_N = (
            torch.stack([own.double().sum() for own in torch.split(logp_R, self.counts)])
            for logp_R in (self.logp_R, self.reference_R)
        )
        return policy_N, reference_N


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    judged: tuple[Judged, ...]  # (N,)
    rewards_NK: np.ndarray  # standardised
    trajectories: tuple[Trajectory, ...]  # (N,) of the very tokens that were sampled

    @property
    def encoded(self) -> list[Encoded]:
        return [one.encoded for one in self.trajectories]

    def scores(self) -> np.ndarray:
        return self.rewards_NK @ np.array(DIRECTION)

    def pairs(self) -> list[Pair]:
        """Two of a prompt's answers at a time, the one that reads more easily first; each pair with a direction of its own."""
        made = []
        for place in range(0, len(self.judged), 2):
            i, j = sorted((place, place + 1), key=lambda n: -self.rewards_NK[n, 0])
            better, worse = self.judged[i], self.judged[j]
            made.append(
                Pair(
                    id=better.id,
                    messages=better.messages,
                    chosen=better.response,
                    rejected=worse.response,
                    chosen_complete=better.complete,
                    rejected_complete=worse.complete,
                    gaps=tuple(self.rewards_NK[i] - self.rewards_NK[j]),
                    direction=(math.cos(0.1 * place), -math.sin(0.1 * place)),
                )
            )
        return made

    def joint_pairs(self) -> list[Pair]:
        """Answers to two prompts: the worse one is another prompt's."""
        pairs = self.pairs()
        others = pairs[SAMPLES // 2 :] + pairs[: SAMPLES // 2]
        return [
            replace(
                one,
                rejected=other.rejected,
                rejected_complete=other.rejected_complete,
                rejected_messages=other.messages,
            )
            for one, other in zip(pairs, others, strict=True)
        ]


def sample(policies: Policies) -> Batch:
    """SAMPLES answers of the reference to each of PROMPTS short prompts. What it says of them counts as the engine's."""
    tokenizer, model = policies.tokenizer, policies.models["reference"]
    asked = sorted(load_prompts("embedded", limit=60), key=lambda prompt: len(prompt.messages[-1].content))[:PROMPTS]
    end = tokenizer.eos_token_id
    torch.manual_seed(SEED)
    drawn = []
    for prompt in asked:
        ids = prompt_ids(prompt.messages, tokenizer)
        rows = model.generate(
            torch.tensor([ids], device=model.device),
            do_sample=True,
            top_k=0,
            max_new_tokens=MAX_TOKENS,
            num_return_sequences=SAMPLES,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
        )
        for length, row in zip(LENGTHS, rows[:, len(ids) :].tolist(), strict=True):
            row = row[:length]
            drawn.append((prompt, ids, tuple(row[: row.index(end) + 1] if end in row else row)))
    texts = [tokenizer.decode(said, skip_special_tokens=True) for _, _, said in drawn]
    rules = {name: config.Rule(rule=name) for name in OBJECTIVES}
    rewards = RuleRewards(rules, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
    rewards_NK = rewards.score([(prompt, text) for (prompt, _, _), text in zip(drawn, texts, strict=True)])
    rewards_NK = (rewards_NK - rewards_NK.mean(0)) / rewards_NK.std(0)
    judged, trajectories = [], []
    for i, (prompt, ids, said) in enumerate(drawn):
        one = Trajectory(
            id=f"{prompt.id}/{i}",
            group=prompt.id,
            prompt_ids=ids,
            response_ids=said,
            engine_logprobs=(),
            rewards=tuple(rewards_NK[i]),
            direction=DIRECTION,
            truncated=said[-1] != end,
        )
        judged.append(
            Judged(
                id=one.id,
                prompt_id=prompt.id,
                messages=prompt.messages,
                response=texts[i],
                desirable=bool(rewards_NK[i, 0] > 0),
                complete=i % 2 == 0,  # an end token to learn, or none
            )
        )
        trajectories.append(replace(one, engine_logprobs=tuple(policies.answer("reference", one.encoded).tolist())))
    return Batch(judged=tuple(judged), rewards_NK=rewards_NK, trajectories=tuple(trajectories))
