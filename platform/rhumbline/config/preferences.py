"""The recipe of jobs/dpo.py: DPO and its kin on pairs, KTO and BCO on single answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rhumbline.config.run import Run
from rhumbline.config.sections import PolicyLearner, Section


class PreferenceLoss(Section):
    """Which loss, and its options. An option that the loss has no parameter for is refused by `rhumbline.losses.check_loss`."""

    kind: str = "dpo"  # dpo, ipo, jpo, modpo, kto, bco: a key of rhumbline.losses.PAIRED_LOSSES or UNPAIRED_LOSSES
    beta: float = Field(0.1, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)  # dpo, jpo, modpo: conservative DPO
    learned: str | None = None  # modpo: the objective that the pairs were judged by; the others' rewards are the margin
    desirable_weight: float | None = Field(None, gt=0)  # kto, bco; None: both classes together weigh the same
    undesirable_weight: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _of_its_kind(self) -> PreferenceLoss:
        if self.learned is not None and self.kind != "modpo":
            raise ValueError(f"loss.learned is for modpo: {self.kind} learns what the whole direction prefers")
        return self

    def options(self) -> dict[str, float | None]:
        """Those that a loss may have a parameter for, by its name."""
        return self.model_dump(exclude={"kind", "learned"})


class PairFile(Section):
    """Judged pairs of a file; keys as those of comparisons in recipes of jobs/reward.py."""

    path: str
    split: str | None = None
    limit: int | None = Field(None, gt=0)
    winner: str | None = None
    strength: str | None = None
    where: dict[str, Any] = Field(default={})
    profile: str | None = None  # a column about the one who judged: it is written into the prompt of both sides


class SampleStore(Section):
    """Scored samples of a finished run, ranked for directions as if they had been sampled for them."""

    run: str  # its folder
    iterations: list[int] | None = None  # None: all of them


class DpoRecipe(Run):
    """Of jobs/dpo.py. Pairs come from a file, from another run's samples, or from the policy's own (neither given)."""

    job: Literal["dpo"] = "dpo"
    iterations: int = Field(1, gt=0)  # rounds of sampling and learning; 1 where the samples are given
    pairs: dict[str, PairFile] | None = None  # data set name -> file
    store: SampleStore | None = None
    learner: PolicyLearner = PolicyLearner()
    loss: PreferenceLoss = PreferenceLoss()
    gap: float = Field(0.0, ge=0)  # pairs of samples: the least difference of v . z

    @property
    def steered(self) -> bool:
        """People's pairs say no direction."""
        return super().steered and self.pairs is None

    @model_validator(mode="after")
    def _consistent(self) -> DpoRecipe:
        if self.pairs is not None and self.store is not None:
            raise ValueError("pairs and store: give one of them, or neither to sample from the policy itself")
        if (self.pairs is not None or self.store is not None) and self.iterations != 1:
            raise ValueError("iterations is for samples of the policy's own: with pairs or store it is 1")
        if self.pairs is not None and self.loss.kind == "modpo":
            raise ValueError("loss.kind modpo needs the rewards of both answers: give store, or sample from the policy")
        if self.loss.kind == "modpo":
            names = list(self.rewards.objectives)
            if self.loss.learned not in names:
                raise ValueError(f"loss.learned must name an objective for modpo: {', '.join(names)}")
            if not self.rewards.standardise:
                raise ValueError(
                    "rewards.standardise is false, and loss.kind modpo takes the other objectives' rewards for log-odds: on a "
                    "scale of 0 to 100 they drown the pairs. Give rewards.standardise: true"
                )
        if self.pairs is not None and self.gap > 0:
            raise ValueError(f"gap is {self.gap:g}, and pairs that people judged have no rewards: leave it out")
        if self.steered and self.initial.strategy == "steerlm":
            raise ValueError(
                "initial.strategy steerlm asks for target values, and pairs of samples say directions: the policy would be "
                "trained under words that it and its reference have never seen. Give relabel or adapter"
            )
        self._has_pairs()
        if self.learner.lora is not None and self.learner.lora.dropout > 0:
            raise ValueError(
                f"learner.lora.dropout is {self.learner.lora.dropout:g}: preferences are learned without dropout, with which the "
                "policy would differ from its reference before the first step. Set it to 0; t=0 may have its own "
                "(initial.learner)"
            )
        if self.policy.restart_from != "initial":
            raise ValueError(
                f"policy.restart_from is {self.policy.restart_from}, and jobs/dpo.py has no choice: every round starts from the "
                "policy that it sampled, which is its reference. Leave it out"
            )
        return self

    def _has_pairs(self) -> None:
        """Raises ValueError where no two answers could be compared."""
        d = self.directions
        if self.loss.kind == "jpo" and self.pairs is not None:
            raise ValueError(
                "loss.kind jpo with pairs: both answers are to one prompt, of which jpo is dpo. Give kind dpo"
            )
        if self.loss.kind == "jpo" and d.fixed is None and d.law != "grid":
            raise ValueError(
                f"loss.kind jpo compares two prompts under one direction, and directions.law {d.law} draws others for each: "
                "give directions.law grid, or directions.fixed"
            )
        if self.pairs is None and self.store is None and self.samples == 1 and d.per_prompt == 1:
            raise ValueError(
                "samples is 1 and directions.per_prompt 1: a prompt with one answer has nothing to compare it with. Give "
                "samples of 2 or more"
            )
