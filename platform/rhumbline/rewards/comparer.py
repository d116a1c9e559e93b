"""Which of two answers is better, or neither: a network that reads both, asked in both orders. Over `trained`.

    comparer = Comparer(Network.load("rewards/arena"))
    comparer.probabilities([prompt], ["Because of scattering."], ["No idea."])     # (1, 3): a wins, b wins, tie
    rewards = ComparerRewards("rewards/arena", reference="references.jsonl")       # sources: [{kind: comparer, ...}]
    rewards.score([(prompt, "Because of scattering.")])                            # 100 * (win + tie / 2) against a reference

A model that reads both answers prefers a place as well as an answer, so both orders are asked and their probabilities
averaged. The two orders of a pair are read in the same batch at the same places whichever answer is called a, so
exchanging the answers exchanges the probabilities exactly. N pairs, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rhumbline import durable
from rhumbline.data.load import rows as read_rows
from rhumbline.errors import ConfigError, DataError, ScoringError
from rhumbline.losses.comparison import CLASSES, averaged_over_orders
from rhumbline.records import Prompt
from rhumbline.rewards.features import Pair, Side
from rhumbline.rewards.invariance import TOLERANCE, check_invariance
from rhumbline.rewards.network import Network
from rhumbline.rewards.objectives import Head
from rhumbline.rewards.reading import Profile
from rhumbline.rewards.trained import TOLERANCE_8BIT, Schema, check_network, known_profile, open_network

Array = NDArray[np.float64]
PROBE_REFERENCE = "I am not sure."  # what known answers are compared with when a comparer loads


class Comparer:
    """A network with the classes a, b and, where its data had ties, tie."""

    def __init__(self, network: Network, token_budget: int = 4096) -> None:
        """Raises ConfigError for a network that reads or gives something else."""
        known = (CLASSES, CLASSES[:2])
        if network.spec.kind_of_input != "triple" or network.spec.outputs not in known:
            raise ConfigError(
                f"a comparer reads two answers and gives {', '.join(CLASSES)} (or the first two), this network reads a "
                f"{network.spec.kind_of_input} and gives {', '.join(network.spec.outputs)}"
            )
        self.network, self.token_budget = network, token_budget

    def probabilities(
        self,
        prompts: Sequence[Prompt],
        a: Sequence[str],
        b: Sequence[str],
        profiles: Sequence[Profile] | None = None,
        *,
        token_budget: int | None = None,
        side: Side = "right",
    ) -> Array:
        """(N, 3) of the classes a, b and tie, averaged over both orders; a tie has 0 where the network knows none."""
        known = profiles if profiles is not None else [None] * len(prompts)
        read = self.network.reader.triple
        rows = []
        for prompt, first, second, profile in zip(prompts, a, b, known, strict=True):
            x, y = sorted((first, second))
            rows += [read(prompt, x, y, profile), read(prompt, y, x, profile)]
        budget = self.token_budget if token_budget is None else token_budget
        logits = torch.from_numpy(self.network.raw(rows, budget, side))
        found_NC = averaged_over_orders(logits[0::2], logits[1::2]).exp().numpy()
        turned = np.array([first > second for first, second in zip(a, b, strict=True)], dtype=bool)
        p_N3 = np.zeros((len(rows) // 2, len(CLASSES)))
        p_N3[:, : found_NC.shape[1]] = found_NC
        p_N3[turned, :2] = p_N3[turned, 1::-1]
        same = np.array([first == second for first, second in zip(a, b, strict=True)], dtype=bool)
        p_N3[same, :2] = p_N3[same, :2].mean(axis=1, keepdims=True)  # equal but for rounding, place by place
        return p_N3

    def chance(
        self,
        pairs: Sequence[Pair],
        against: Sequence[str],
        profile: Profile = None,
        *,
        token_budget: int | None = None,
        side: Side = "right",
    ) -> Array:
        """(N, 1) of each answer winning against another one, ties counting half."""
        prompts, answers = [prompt for prompt, _ in pairs], [answer for _, answer in pairs]
        p_N3 = self.probabilities(
            prompts, answers, against, [profile] * len(pairs), token_budget=token_budget, side=side
        )
        return p_N3[:, :1] + p_N3[:, 2:] / 2

    def known(self, pairs: Sequence[Pair], token_budget: int | None = None, side: Side = "right") -> Array:
        """(N, 1) chances against one answer that is always the same: what checks and `trained.publish` look at."""
        return self.chance(pairs, [PROBE_REFERENCE] * len(pairs), token_budget=token_budget, side=side)


class ComparerRewards:
    """A reward source with one head: the chance of winning against a reference answer to the same prompt."""

    def __init__(
        self,
        folder: str | Path,
        *,
        reference: str | Path | None = None,
        profile: Profile = None,
        token_budget: int = 4096,
        load_in_8bit: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        """`reference`: a JSONL file of `id` (a prompt's) and `reference`; None: every prompt brings its own. Raises
        ConfigError for a folder without a comparer, DataError for a file without references.
        """
        self.folder = Path(folder).expanduser()
        self.schema = Schema.load(self.folder)
        if self.schema.kind != "comparer":
            raise ConfigError(f"{self.folder} holds a {self.schema.kind} network: its source is kind: network")
        self.references = None if reference is None else read_references(reference)
        self.profile, self.token_budget = known_profile(self.schema, profile, self.folder), token_budget
        self.load_in_8bit, self.trust_remote_code = load_in_8bit, trust_remote_code
        self.comparer: Comparer | None = None

    @property
    def heads(self) -> tuple[Head, ...]:
        return self.schema.heads

    @property
    def id(self) -> str:
        said = {
            "schema": self.schema.id,
            "references": self.references,
            "profile": self.profile,
            "8bit": self.load_in_8bit,
        }
        return hashlib.sha256(durable.to_json(said).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def setup(self, network: Network | None = None) -> None:
        """Load the network and check it, as `trained.TrainedRewards.setup` does."""
        if network is None:
            network = open_network(
                self.folder, self.schema, load_in_8bit=self.load_in_8bit, trust_remote_code=self.trust_remote_code
            )
        comparer = self.comparer = Comparer(network, self.token_budget)
        check_invariance(
            lambda pairs, token_budget, side: self.schema.scores(comparer.known(pairs, token_budget, side)),
            tolerance=TOLERANCE_8BIT if self.load_in_8bit else TOLERANCE,
        )
        check_network(self.schema, network, lambda pairs: self.schema.scores(comparer.known(pairs)), self.load_in_8bit)

    def score(self, pairs: Sequence[Pair]) -> Array:
        """(N, 1) on 0-100, in the order of `pairs`. Raises ScoringError for a prompt without a reference."""
        if self.comparer is None:
            raise ScoringError("the comparer is not loaded: call setup() first")
        against = [self._reference(prompt) for prompt, _ in pairs]
        return self.schema.scores(self.comparer.chance(pairs, against, self.profile))

    def _reference(self, prompt: Prompt) -> str:
        found = prompt.reference if self.references is None else self.references.get(prompt.id)
        if found is None:
            where = "its data have none" if self.references is None else "the file of references has no such id"
            raise ScoringError(
                f"prompt {prompt.id} has no reference answer to be compared with, {where} (rewards.sources[].reference)"
            )
        return found


def read_references(path: str | Path) -> Mapping[str, str]:
    """Prompt id -> reference answer, from rows with `id` and `reference`. Raises DataError."""
    out: dict[str, str] = {}
    for number, row in enumerate(read_rows(path), start=1):
        key, text = row.get("id"), row.get("reference")
        if not isinstance(key, str) or not isinstance(text, str):
            raise DataError(f"{path}, row {number}: expected texts under id and reference, found {', '.join(row)}")
        if out.setdefault(key, text) != text:
            raise DataError(f"{path}, row {number}: the prompt {key!r} has two different references")
    return out
