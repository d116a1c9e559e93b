"""The recipe of jobs/soups.py: a policy per objective, mixed by the direction."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rhumbline.config.run import Run


class SoupRecipe(Run):
    """Of jobs/soups.py. Every objective needs a policy: one that is there, or one that `train` makes."""

    job: Literal["soups"] = "soups"
    policies: dict[str, str] = Field(default={})  # objective -> folder: full weights, or an adapter of policy.initial
    train: str | None = None  # a recipe of jobs/ppo.py or jobs/grpo.py, from where the job starts, for those that lack

    @property
    def steered(self) -> bool:
        """No prompt says a direction: the weights follow it."""
        return False

    @model_validator(mode="after")
    def _consistent(self) -> SoupRecipe:
        names = list(self.rewards.objectives)
        for name in self.policies:
            if name not in names:
                raise ValueError(f"policies.{name}: unknown objective. Known: {', '.join(names)}")
        lacking = [name for name in names if name not in self.policies]
        if lacking and self.train is None:
            raise ValueError(
                f"policies names none for {', '.join(lacking)}: give a folder for each, or a recipe that trains them (train)"
            )
        if self.initial.strategy != "none":
            raise ValueError(
                "initial.strategy must be none: soups are mixed from the initial policy and what was trained of it"
            )
        if self.generator.sync == "adapter":
            raise ValueError(
                "generator.sync adapter: a mixture is written as full weights and has no adapter. Give full or transfer"
            )
        if self.policy.restart_from != "initial":
            raise ValueError(
                f"policy.restart_from is {self.policy.restart_from}: soups are mixed around the initial policy, from which each "
                "of their policies is trained. Leave it out"
            )
        return self
