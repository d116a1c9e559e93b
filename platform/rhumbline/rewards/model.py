"""The reward model of a run: its sources side by side, and the objectives made of their heads. What a `Scorer` holds.

    model = RewardModel.build(recipe.rewards, policy="embedded")
    model.setup()                              # loads backbones, checks that scores hold still
    model.score([(prompt, "Because of scattering."), ...])       # (N, K) float64 on 0-100, recipe order

    model.score_head([(prompt, "Because of scattering.")], "quality")    # (N,) of one head, an objective's or not

The vectors depend on no direction, so one pass serves all of them. Each distinct pair is scored once per process, and by
the sources that are asked: one of which no objective is made, such as a held-out scorer, costs nothing in training.
What cannot be scored raises: an error never turns into a reward. N answers, H heads, K objectives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rhumbline import config
from rhumbline.durable import to_json
from rhumbline.errors import ConfigError, DataError, RhumblineError, ScoringError, did_you_mean
from rhumbline.rewards.comparer import ComparerRewards
from rhumbline.rewards.debias import LengthMaps, LengthRemoved
from rhumbline.rewards.features import Pair
from rhumbline.rewards.objectives import Head, Objectives
from rhumbline.rewards.regression import RegressionHeads, RegressionRewards
from rhumbline.rewards.rules import RuleRewards, Tokenise
from rhumbline.rewards.trained import TrainedRewards

Array = NDArray[np.float64]
CACHE_LIMIT = 1_000_000  # pairs; at about 200 bytes each


class Source(Protocol):
    """Some heads and how they are scored: `regression`, `rules`, `trained` and `comparer` have one each."""

    @property
    def heads(self) -> tuple[Head, ...]: ...

    @property
    def id(self) -> str:
        """Equal ids give equal scores under one tokenizer; the policy's, which rules count tokens with, is not in it."""
        ...

    def setup(self) -> None:
        """Load what is heavy and check it."""
        ...

    def score(self, pairs: Sequence[Pair]) -> Array:
        """(N, H) on 0-100, in the order of `pairs`; raises rather than inventing a score."""
        ...


class RewardModel:
    """Sources and objectives. `score` is all that the rest of a run needs."""

    def __init__(self, sources: Sequence[Source], objectives: Objectives) -> None:
        self.sources, self.objectives = tuple(sources), objectives
        self._caches: tuple[dict[bytes, Array], ...] = tuple({} for _ in self.sources)

    @classmethod
    def build(
        cls,
        rewards: config.Rewards,
        *,
        policy: str | Path = "embedded",
        trust_remote_code: bool = False,
        tokenise: Tokenise | None = None,
    ) -> RewardModel:
        """From a recipe's section; light, `setup` loads the rest. `tokenise` None: by the tokenizer of `policy`, which
        `trust_remote_code` is for; a backbone has its own in the recipe.

        Raises ConfigError, before anything heavy is read, for a missing reward model, an unknown rule, and objectives
        that do not fit the heads.
        """
        count = tokenise if tokenise is not None else _tokeniser(policy, trust_remote_code)
        sources = [
            _source(source, Given(f"rewards.sources.{i}", rewards.token_budget, count))
            for i, source in enumerate(rewards.sources)
        ]
        heads_H = [head for one in sources for head in one.heads]
        return cls(sources, Objectives.build(rewards.objectives, heads_H))

    def setup(self) -> None:
        """Set up every source. Raises ConfigError or ScoringError where one cannot be trusted."""
        for source in self.sources:
            source.setup()

    @property
    def heads(self) -> tuple[Head, ...]:
        """(H,) over all sources."""
        return tuple(head for source in self.sources for head in source.heads)

    @property
    def names(self) -> tuple[str, ...]:
        """(K,) objectives, recipe order."""
        return self.objectives.names

    @property
    def id(self) -> str:
        """A hash of sources and objectives: what rewards, and all that was learned from them, depend on.

        It leaves out sources that no objective is made of, and the policy's tokenizer, which rules count tokens with: compare
        it between policies of one tokenizer.
        """
        said = {
            "sources": [self.sources[i].id for i in self._rewarding()],
            "objectives": {
                name: {head.name: c for head, c in zip(self.heads, column_H, strict=True) if c != 0}
                for name, column_H in zip(self.names, self.objectives.matrix_HK.T, strict=True)
            },
            "order": self.names,  # JSON objects have none
            "signs": self.objectives.signs,
        }
        return hashlib.sha256(to_json(said).encode()).hexdigest()[:16]

    def score(self, batch: Sequence[Pair]) -> Array:
        """(N, K) objectives on 0-100, float64, in the order of `batch`. Raises ScoringError."""
        return self.objectives(self._heads(batch, self._rewarding()))

    def score_heads(self, batch: Sequence[Pair]) -> Array:
        """(N, H) head scores on 0-100. Raises ScoringError."""
        return self._heads(batch, range(len(self.sources)))

    def score_head(self, batch: Sequence[Pair], name: str) -> Array:
        """(N,) one head's scores on 0-100, its own source asked alone. Raises ScoringError."""
        return self._heads(batch, [self.sources.index(self.source_of(name))])[:, self._names().index(name)]

    def source_of(self, name: str, where: str = "head") -> Source:
        """The one that gives a head. Raises ConfigError where none does; `where` is the recipe's key that names it."""
        for source in self.sources:
            if any(head.name == name for head in source.heads):
                return source
        known = self._names()
        raise ConfigError(
            f"{where}: no source of rewards.sources gives the head {name!r}.{did_you_mean(name, known)} "
            f"Known heads: {', '.join(known)}"
        )

    def _names(self) -> list[str]:
        return [head.name for head in self.heads]

    def _rewarding(self) -> list[int]:
        """Places of the sources that objectives are made of."""
        used = {name for name, row_K in zip(self._names(), self.objectives.matrix_HK, strict=True) if row_K.any()}
        return [i for i, source in enumerate(self.sources) if any(head.name in used for head in source.heads)]

    def _heads(self, batch: Sequence[Pair], asked: Sequence[int]) -> Array:
        """(N, H), the heads of sources that are not asked 0."""
        keys = [_key(pair) for pair in batch]
        columns = []
        for i, source in enumerate(self.sources):
            if i not in asked:
                columns.append(np.zeros((len(batch), len(source.heads))))
                continue
            cache = self._caches[i]
            fresh = {key: pair for key, pair in zip(keys, batch, strict=True) if key not in cache}
            if fresh:
                scores_MH = _scored(source, list(fresh.values()))
                if len(cache) + len(fresh) > CACHE_LIMIT:
                    kept = {key: cache[key] for key in keys if key in cache}
                    cache.clear()
                    cache.update(kept)
                cache.update(zip(fresh, scores_MH, strict=True))
            columns.append(np.array([cache[key] for key in keys]).reshape(len(batch), len(source.heads)))
        return np.concatenate(columns, axis=1)


def _scored(source: Source, pairs: Sequence[Pair]) -> Array:
    names = ", ".join(head.name for head in source.heads)
    try:
        scores_MH = np.asarray(source.score(pairs), dtype=np.float64)
    except RhumblineError:
        raise
    except Exception as e:  # whatever it is, the heads that failed are named
        raise ScoringError(f"scoring {len(pairs)} answers for {names} failed: {type(e).__name__}: {e}") from e
    if scores_MH.shape != (len(pairs), len(source.heads)):
        wanted = (len(pairs), len(source.heads))
        raise ScoringError(f"the source of {names} gave scores of shape {scores_MH.shape}, expected {wanted}")
    broken = np.argwhere(~np.isfinite(scores_MH))
    if len(broken):
        row, head = broken[0]
        raise ScoringError(
            f"head {source.heads[head].name} gave {scores_MH[row, head]} to an answer to prompt "
            f"{pairs[row][0].id} ({len(broken)} such scores for {len(pairs)} answers): {pairs[row][1][:80]!r}"
        )
    return scores_MH


@dataclass(frozen=True, slots=True)
class Given:
    """What a source is built with besides its own section."""

    where: str  # the section's path in the recipe
    token_budget: int
    tokenise: Tokenise


def _source(source: config.Source, given: Given) -> Source:
    one = BUILDERS[source.kind](source, given)
    maps, where = getattr(source, "length_removed", None), f"{given.where}.length_removed"
    if maps is None:
        return one
    try:
        return LengthRemoved(one, LengthMaps.load(maps), where)
    except ConfigError as e:
        raise ConfigError(str(e) if str(e).startswith(where) else f"{where}: {e}") from None


def _rules(source: config.RulesSource, given: Given) -> Source:
    return RuleRewards(source.heads, given.tokenise, f"{given.where}.heads")


def _regression(source: config.RegressionSource, given: Given) -> Source:
    try:
        heads = RegressionHeads.load(source.path)
    except ConfigError as e:
        raise ConfigError(f"{given.where}.path: {e}") from None
    return RegressionRewards(heads, source.backbone, given.token_budget, source.trust_remote_code)


def _network(source: config.NetworkSource, given: Given) -> Source:
    options = source.model_dump(exclude=_APART)
    try:
        return TrainedRewards(source.path, token_budget=given.token_budget, **options)
    except ConfigError as e:
        raise ConfigError(f"{given.where}: {e}") from None


def _comparer(source: config.ComparerSource, given: Given) -> Source:
    options = source.model_dump(exclude=_APART)
    try:
        return ComparerRewards(source.path, token_budget=given.token_budget, **options)
    except (ConfigError, DataError) as e:
        raise ConfigError(f"{given.where}: {e}") from None


# Of a trained source's section: what its class is not given under its own name.
_APART = {"kind", "path", "length_removed"}
BUILDERS: dict[str, Callable[[Any, Given], Source]] = {  # by the `kind` of a section
    "rules": _rules,
    "regression": _regression,
    "network": _network,
    "comparer": _comparer,
}


def _key(pair: Pair) -> bytes:
    """All that a score may depend on; the id, since a comparer may look its reference up by it."""
    prompt, response = pair
    said = [[m.role, m.content] for m in prompt.messages]
    text = to_json({"id": prompt.id, "messages": said, "reference": prompt.reference, "response": response})
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _tokeniser(policy: str | Path, trust_remote_code: bool) -> Callable[[str], Sequence[int]]:
    """Text -> ids by the tokenizer of `policy`, which is read when the first text comes."""
    loaded: list[Callable[[str], Sequence[int]]] = []

    def tokenise(text: str) -> Sequence[int]:
        if not loaded:
            from rhumbline.learning.policy import load_tokenizer

            tokenizer = load_tokenizer(policy, trust_remote_code)
            loaded.append(lambda said: list(tokenizer(said, add_special_tokens=False)["input_ids"]))
        return loaded[0](text)

    return tokenise
