"""Recipes of the online jobs: jobs/ppo.py and jobs/grpo.py. Generate, score, advantage, update, sync; again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from pydantic import Field, model_validator

from rhumbline.config.run import Run
from rhumbline.config.sections import Learner, PolicyLearner, Section

ESTIMATOR, HORIZON = "k3_k2", 10000.0
HIGHEST = 10.0  # that the adaptive controller makes a coefficient


class Kl(Section):
    """What it costs to leave the reference policy, the one that training starts from."""

    place: Literal["reward", "loss"] = "reward"  # taken off the reward per token (k1), or added to the loss
    estimator: str = ESTIMATOR  # in the loss: a key of rhumbline.losses.KL_ESTIMATORS; in the reward it is k1
    controller: str = "fixed"  # fixed, adaptive: a key of rhumbline.losses.KL_CONTROLLERS
    coefficient: float = Field(0.02, ge=0)  # beta; the first one where the controller is adaptive
    target: float | None = Field(None, gt=0)  # adaptive, and others that steer: nats per answer
    horizon: float = Field(HORIZON, gt=0)  # adaptive: answers over which an error of 20% moves beta by 20%

    @model_validator(mode="after")
    def _reachable(self) -> Kl:
        if self.controller == "adaptive" and self.target is None:
            raise ValueError("kl: the adaptive controller needs kl.target, in nats per answer")
        if self.controller == "fixed" and self.target is not None:
            raise ValueError(
                f"kl.target is {self.target:g}, and kl.controller fixed steers to none: give adaptive, or leave kl.target out"
            )
        if self.controller == "fixed" and self.horizon != HORIZON:
            raise ValueError(
                f"kl.horizon is {self.horizon:g}, and kl.controller fixed never moves: give adaptive, or leave kl.horizon out"
            )
        if self.place == "reward" and self.estimator != ESTIMATOR:
            raise ValueError(
                f"kl.estimator is {self.estimator}, and kl.place reward takes k1 off the reward: give kl.place loss, or leave "
                "kl.estimator out"
            )
        if self.controller == "adaptive" and self.coefficient > HIGHEST:
            raise ValueError(
                f"kl.coefficient is {self.coefficient:g}, and the adaptive controller goes to {HIGHEST:g} at most: give less"
            )
        if self.controller == "adaptive" and self.coefficient == 0:
            raise ValueError(
                "kl.coefficient is 0, which the adaptive controller multiplies: it would stay 0. Give more"
            )
        return self


class GrpoKl(Kl):
    """GRPO's, in the loss unless the recipe says otherwise."""

    place: Literal["reward", "loss"] = "loss"
    coefficient: float = Field(0.04, ge=0)


class Update(Section):
    """What PPO and GRPO share: the clipped policy loss. Ratios are clipped to [1 - clip_low, 1 + clip_high]."""

    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.2, gt=0)
    dual_clip: float | None = Field(None, gt=1)  # bounds the loss of a bad answer that has become likelier
    reduction: Literal["token", "sample", "constant"] = (
        "token"  # what the loss is divided by: losses.grpo.answer_weights
    )
    whiten: bool = False  # advantages to mean 0 and variance 1 over the step
    importance_cap: float | None = Field(
        2.0, gt=0
    )  # of learner over engine probabilities, per token; None: not corrected
    # v is scaled to length 1 on the sphere, or so that its absolute weights sum to 1 (the thesis's w and 1 - w).
    weights: Literal["sphere", "simplex"] = "sphere"
    kl: Kl = Kl()


class Ppo(Update):
    whiten: bool = True
    gamma: float = Field(1.0, gt=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    score_clip: float | None = Field(None, gt=0)  # on |v . r|
    value_coefficient: float = Field(0.1, ge=0)
    value_clip: float | None = Field(0.2, gt=0)
    value_lr: float | None = Field(None, gt=0)  # of the value head; None: learner.lr


class Grpo(Update):
    advantage: str = "standardised"  # standardised, centred, leave_one_out: a key of rhumbline.losses.GROUP_ADVANTAGES
    per_objective: bool = False  # each objective on its own within the group, then the weighted sum (GDPO)
    kl: GrpoKl = GrpoKl()

    @model_validator(mode="after")
    def _one_reward(self) -> Grpo:
        if self.per_objective and self.kl.place == "reward":
            raise ValueError(
                "grpo.per_objective has no one reward that the KL could be taken off: set grpo.kl.place to loss, or "
                "grpo.per_objective to false"
            )
        return self


def section_of(settings: Update) -> str:
    """The key under which a recipe has them."""
    return "ppo" if isinstance(settings, Ppo) else "grpo"


def unlearnable(settings: Update, learner: Learner, answers_per_step: int) -> str:
    """What keeps a learner from training with these together, with its key and the remedy; empty where nothing does."""
    if learner.lora is not None and learner.lora.dropout > 0:
        return (
            f"learner.lora.dropout is {learner.lora.dropout:g}: online training compares the policy with what it was, and "
            "with dropout it differs from itself. Set it to 0"
        )
    if settings.kl.controller == "adaptive" and answers_per_step >= 5 * settings.kl.horizon:
        key = f"{section_of(settings)}.kl.horizon"
        return (
            f"{key} is {settings.kl.horizon:g} answers, and a step has {answers_per_step} (prompts_per_step x "
            f"directions.per_prompt x samples): the coefficient would jump. Set {key} to more than {answers_per_step / 5:g}"
        )
    return ""


class OnlineRecipe(Run, ABC):
    """What jobs/ppo.py and jobs/grpo.py share. Each has a section of its own for the algorithm."""

    learner: PolicyLearner = PolicyLearner()
    steps: int = Field(100, gt=0)  # T: rollouts and the updates on them
    prompts_per_step: int = Field(64, gt=0)
    overlap: bool = False  # the next rollouts are generated during the update, one version behind
    evaluate_every: int = Field(0, ge=0)  # steps; 0: the last policy alone
    deadline_s: float = Field(3600.0, gt=0)  # one update; a group of learners that gives no answer is started anew
    save_every: int = Field(1, gt=0)  # steps: what a killed group repeats
    keep_checkpoints: int = Field(2, gt=0)  # the newest ones; evaluated policies are always kept

    @model_validator(mode="after")
    def _on_policy(self) -> OnlineRecipe:
        if self.sampling.temperature != 1 or self.sampling.top_p != 1:
            raise ValueError(
                f"sampling.temperature is {self.sampling.temperature:g} and sampling.top_p {self.sampling.top_p:g}: online "
                "training needs 1 and 1, or the policy that is updated is not the one that sampled"
            )
        if self.initial.strategy == "steerlm":
            raise ValueError("initial.strategy steerlm asks for target values, online training for directions")
        return self

    @model_validator(mode="after")
    def _workable(self) -> OnlineRecipe:
        settings, section, answers = self.update(), self.section, self.answers_per_step
        if self.policy.restart_from != "initial":
            raise ValueError(
                f"policy.restart_from is {self.policy.restart_from}, which is of jobs/dpa.py: online training goes on from "
                "step to step. Leave it out; initial says where training starts"
            )
        if self.overlap and settings.importance_cap is None:
            raise ValueError(
                f"overlap samples from a policy that is one version behind, and {section}.importance_cap: null leaves that "
                "uncorrected: give a cap (the default is 2), or overlap: false"
            )
        if self.learner.lora is None and self.generator.sync == "adapter":
            raise ValueError(
                "generator.sync is adapter, and learner.lora null: full weights are trained, so there is no adapter. Set "
                "generator.sync to full, or give learner.lora"
            )
        if self.overlap and self.keep_checkpoints == 1:
            raise ValueError(
                "keep_checkpoints is 1, and with overlap a run that goes on may need the version before the newest: give 2"
            )
        if told := unlearnable(settings, self.learner, answers):
            raise ValueError(told)
        return self

    @property
    def answers_per_step(self) -> int:
        """How many are asked for."""
        return self.prompts_per_step * self.directions.per_prompt * self.samples

    @property
    def section(self) -> str:
        """The key of what `update` returns: ppo or grpo."""
        return section_of(self.update())

    @abstractmethod
    def update(self) -> Update:
        """The section of its algorithm."""


class PpoRecipe(OnlineRecipe):
    """Of jobs/ppo.py."""

    job: Literal["ppo"] = "ppo"
    samples: int = Field(1, gt=0)
    ppo: Ppo = Ppo()

    def update(self) -> Ppo:
        return self.ppo


class GrpoRecipe(OnlineRecipe):
    """Of jobs/grpo.py."""

    job: Literal["grpo"] = "grpo"
    samples: int = Field(8, gt=0)
    grpo: Grpo = Grpo()

    @model_validator(mode="after")
    def _has_groups(self) -> GrpoRecipe:
        if self.samples == 1:
            raise ValueError(
                "samples is 1, and an answer alone in its group has no other that it could be better than: grpo learns nothing "
                "from it. Give samples 2 or more (4 to 16 are usual), or use jobs/ppo.py"
            )
        return self

    def update(self) -> Grpo:
        return self.grpo
