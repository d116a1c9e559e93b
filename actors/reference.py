"""The initial policy, frozen: what a trained policy's answers would have cost it. The KL axis of the report.

    kl_N = reference.kl(completions)       # nats per response: log pi(y | x, v) - log pi_initial(y | x)

The initial policy is asked without a direction: it never saw one. Both log-probabilities are at temperature 1. Over samples
drawn at temperature 1 the mean is the sequence KL divergence (k1, unbiased; Schulman 2020); at another
evaluation.sampling.temperature it is the mean log-ratio over the answers that were evaluated. One value may be negative.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from rhumbline.data.chat import Encoded, prompt_ids
from rhumbline.learning.logprobs import response_logprobs
from rhumbline.learning.policy import load_policy, load_tokenizer, set_threads
from rhumbline.records import Completion


class Reference:
    """Plain Python: tests construct it directly, `Pool` makes it a Ray actor."""

    def __init__(self, model: str, *, token_budget: int, threads: int | None, trust_remote_code: bool = False) -> None:
        self.model, self.token_budget, self.threads = model, token_budget, threads
        self.trust_remote_code = trust_remote_code

    def setup(self) -> None:
        """Load the weights; a failure reaches the driver with its reason."""
        set_threads(self.threads)
        self.tokenizer = load_tokenizer(self.model, self.trust_remote_code)
        self.policy = load_policy(self.model, trust_remote_code=self.trust_remote_code)

    def pid(self) -> int:
        return os.getpid()

    def kl(self, completions: Sequence[Completion]) -> list[float]:
        """(N,) nats per response. Tokens are the sampled ones, the end token included where the model ended by itself."""
        encoded = []
        for completion in completions:
            prompt = prompt_ids(completion.query.prompt.messages, self.tokenizer)
            mask = (False,) * len(prompt) + (True,) * len(completion.token_ids)
            encoded.append(Encoded(token_ids=(*prompt, *completion.token_ids), loss_mask=mask))
        initial_N = response_logprobs(self.policy, encoded, token_budget=self.token_budget)
        return [c.logprob - initial for c, initial in zip(completions, initial_N, strict=True)]
