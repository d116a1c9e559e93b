"""The recipe of jobs/sft.py: supervised stages, each on the merged weights of the one before.

    recipe = load_sft("jobs/recipes/sft/smol.yaml", ["stages.sft.learner.epochs=3"])
    recipe.learner_of("sft").lr

Its defaults are the thesis's: LoRA of rank 16 on all linear layers, 1e-4 on a cosine, gradients clipped at 0.3, 64 samples
a step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from rhumbline.config.reading import build, merge, read
from rhumbline.config.sections import Learner, Lora, Section
from rhumbline.errors import ConfigError
from rhumbline.faults import explain

Value = str | bool | int | float


class SftPolicy(Section):
    initial: str = "embedded"  # where the first stage starts: a folder, a hub name or 'embedded'
    trust_remote_code: bool = False


class Conversations(Section):
    """One data set: prompts and answers, dialogues, rated answers, or pairs, of which the chosen answers are learned."""

    path: str  # JSONL(.gz), Parquet or a hub name; relative to where the job is started
    split: str | None = None
    limit: int | None = Field(None, gt=0)  # samples
    weight: float = Field(1.0, gt=0)  # of each of its tokens in the loss
    where: dict[str, Value | list[Value]] = Field(default={})  # column -> value or values: other rows are passed over
    min_rating: dict[str, float] = Field(default={})  # rating -> the least one, on the data's own scale
    best_ranked: bool = False  # of answers with a rank among those to their prompt, the first alone
    # Which turns of the assistant are learned. None: every one of a dialogue; where a file has answers in a column of their
    # own, that answer alone: the turns before it are its prompt, and other rows may hold them as answers.
    turns: Literal["every", "last"] | None = None


class SftLearner(Learner):
    """`learner`, with the warm-up as a share: how many steps a stage has is known when its data is read."""

    lora: Lora | None = Lora()
    lr: float = Field(1e-4, gt=0)
    warmup: float = Field(0.03, ge=0, le=0.5)  # share of a stage's optimiser steps; there is no warmup_steps
    warmup_steps: int = Field(0, ge=0)
    max_grad_norm: float = Field(0.3, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    epochs: int = Field(1, gt=0)

    def for_steps(self, steps: int) -> Learner:
        """What the train loop takes; the warm-up is rounded up to whole steps, as transformers does."""
        # The product of two decimals may lie a hair above a whole number.
        warmup_steps = -int(-round(self.warmup * steps, 9) // 1)
        return Learner.model_validate(self.model_dump(exclude={"warmup"}) | {"warmup_steps": warmup_steps})


class SftStage(Section):
    data: dict[str, Conversations] = Field(min_length=1)  # data set name -> data set
    learner: dict[str, Any] = Field(default={})  # overrides of `learner` for this stage


class SftRecipe(Section):
    """Of jobs/sft.py."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$")
    job: Literal["sft"] = "sft"
    seed: int = 0
    policy: SftPolicy = SftPolicy()
    learner: SftLearner = SftLearner()
    held_out: float = Field(0.05, ge=0, lt=1)  # share of conversations that no stage trains on; their loss is reported
    bootstrap: int = Field(1000, gt=0)  # draws for the intervals of that loss
    stages: dict[str, SftStage] = Field(min_length=1)  # in their order; a stage's name is its folder's

    @model_validator(mode="after")
    def _consistent(self) -> SftRecipe:
        for name in self.stages:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"stages.{name}: a stage is a folder's name: give letters, digits, - and _")
            try:
                learner = self.learner_of(name)
            except ValidationError as e:
                prefix = f"stages.{name}.learner."
                raise ValueError("; ".join(explain(one, SftLearner, prefix) for one in e.errors())) from None
            if learner.warmup_steps != 0:
                raise ValueError(
                    f"learner.warmup_steps is not read by jobs/sft.py (stage {name}): give learner.warmup, the share of a "
                    "stage's steps, such as 0.03"
                )
        return self

    def learner_of(self, stage: str) -> SftLearner:
        """`learner` with the stage's own laid over it."""
        return SftLearner.model_validate(merge(self.learner.model_dump(), self.stages[stage].learner))


def load_sft(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> SftRecipe:
    """Read a recipe and lay `key.sub=value` overrides over it, as `config.load` does. Raises ConfigError."""
    raw = read(path, overrides, example="learner.lr=1e-4")
    if raw.get("job") != "sft":
        said = f"job: {raw['job']}" if "job" in raw else "no job"
        raise ConfigError(f"{path} is no recipe of jobs/sft.py: it says {said}, expected job: sft")
    return build(SftRecipe, raw, str(path))
