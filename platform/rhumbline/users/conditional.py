"""What a conditional reward model expects people to choose: system C's third predictor. Over `rewards`.

    model = open_conditional("rewards/conditional")        # a preference model or a comparer that jobs/reward.py trained
    model.probabilities(cases)                             # one (A,) per case

A preference model (the Bradley-Terry loss) scores every option with the profile in front of the prompt: P(option) is the
softmax of its logits, which for two options is sigmoid(r_1 - r_2). A comparer (the pairwise classification) reads two at a
time: an option's share of the wins over all pairs of options, ties counting half. A model that was not trained on profiles is
asked without them: then it says the same for everybody, and is a baseline. A options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import softmax

from rhumbline.errors import ConfigError, did_you_mean
from rhumbline.records import Prompt
from rhumbline.rewards.comparer import Comparer, ComparerRewards
from rhumbline.rewards.opening import kind_of
from rhumbline.rewards.reading import Profile
from rhumbline.rewards.trained import TrainedRewards
from rhumbline.users.population import Floats
from rhumbline.users.roleplay import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditional:
    """A loaded reward model that foresees choices."""

    kind: str  # preference or comparer
    conditional: bool  # whether it was trained with who judges in the prompt
    score: Callable[[Sequence[Case]], list[Floats]]

    def probabilities(self, cases: Sequence[Case]) -> list[Floats]:
        """(A,) per case; equal cases but for the person give equal answers where the model is not conditional."""
        return self.score(cases)


def open_conditional(folder: str, head: str | None = None, *, trust_remote_code: bool = False) -> Conditional:
    """The model in a folder, loaded and checked as a run checks it.

    head: of a preference model, by which of its heads people choose; None where it has one. Raises ConfigError for a model of
    another kind, and for a head that it lacks or that is left open.
    """
    kind = kind_of(folder)
    if kind == "preference":
        rewards = TrainedRewards(folder, trust_remote_code=trust_remote_code)
        at = _place(folder, [one.name for one in rewards.heads], head)
        rewards.setup()
        conditional = rewards.schema.conditional
        return Conditional(kind=kind, conditional=conditional, score=lambda cases: _by_logits(rewards, at, cases))
    if kind == "comparer":
        compared = ComparerRewards(folder, trust_remote_code=trust_remote_code)
        compared.setup()
        comparer = compared.comparer
        assert comparer is not None
        conditional = compared.schema.conditional
        return Conditional(
            kind=kind, conditional=conditional, score=lambda cases: _by_wins(comparer, cases, conditional)
        )
    raise ConfigError(
        f"rewards: {folder} holds a {kind} model, expected a preference model or a comparer (jobs/reward.py with profile: "
        "COLUMN makes a conditional one, see jobs/recipes/rewards/conditional.yaml)"
    )


def _place(folder: str, heads: Sequence[str], head: str | None) -> int:
    if head is None and len(heads) == 1:
        return 0
    if head is None or head not in heads:
        said = "rewards_head is not given" if head is None else f"no head {head!r}.{did_you_mean(head, heads)}"
        raise ConfigError(f"{folder}: {said}, the model has {', '.join(heads)} (rewards_head)")
    return list(heads).index(head)


def _by_logits(rewards: TrainedRewards, head: int, cases: Sequence[Case]) -> list[Floats]:
    network = rewards.network
    assert network is not None
    read = network.reader.pair
    rows = [
        read(prompt_of(case), option, _known(case, rewards.schema.conditional))
        for case in cases
        for option in case.question.options
    ]
    logits_N = network.raw(rows, rewards.token_budget, "right")[:, head]
    out, at = [], 0
    for case in cases:
        size = len(case.question.options)
        out.append(np.asarray(softmax(logits_N[at : at + size]), dtype=np.float64))
        at += size
    return out


def _by_wins(comparer: Comparer, cases: Sequence[Case], conditional: bool) -> list[Floats]:
    contests = [(case, i, j) for case in cases for i, j in combinations(range(len(case.question.options)), 2)]
    p_N3 = comparer.probabilities(
        [prompt_of(case) for case, _, _ in contests],
        [case.question.options[i] for case, i, _ in contests],
        [case.question.options[j] for case, _, j in contests],
        [_known(case, conditional) for case, _, _ in contests],
    )
    won_N = p_N3[:, 0] + p_N3[:, 2] / 2
    found, at = [], 0
    for case in cases:
        size = len(case.question.options)
        wins_A = np.zeros(size)
        for i, j in combinations(range(size), 2):
            wins_A[[i, j]] += won_N[at], 1 - won_N[at]
            at += 1
        found.append(wins_A / wins_A.sum())
    return found


def prompt_of(case: Case) -> Prompt:
    """The question as reward models read it."""
    return Prompt(id=case.question.id, messages=case.question.messages)


def _known(case: Case, conditional: bool) -> Profile:
    return dict(case.user.profile) if conditional and case.told and case.user.profile else None
