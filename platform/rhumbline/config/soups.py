"""The recipe of jobs/soups.py: a policy per objective, mixed by the direction."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rhumbline.config.online import OnlineRecipe
from rhumbline.config.run import Run
from rhumbline.errors import ConfigError


class SoupRecipe(Run):
    """Of jobs/soups.py. Every objective needs a policy: one that is there, or one that `train` makes."""

    job: Literal["soups"] = "soups"
    policies: dict[str, str] = Field(default={})  # objective -> folder: full weights, or an adapter of policy.initial
    train: str | None = None  # a recipe of jobs/ppo.py or jobs/grpo.py, from where the job starts, for those that lack

    @property
    def steered(self) -> bool:
        """No prompt says a direction: the weights follow it."""
        return False

    def children(self) -> dict[str, OnlineRecipe]:
        """Objective -> the recipe that trains its policy, where `policies` names none: that of `train` for this objective alone,
        on the soup's own prompts, rewards, policy and seed, so that it holds out what the soup is evaluated on.

        Raises ConfigError where `train` is no recipe of an online job.
        """
        from rhumbline.config import JOBS, read, validate

        out: dict[str, OnlineRecipe] = {}
        for name in (objective for objective in self.rewards.objectives if objective not in self.policies):
            assert self.train is not None
            try:
                raw = read(self.train)
            except ConfigError as e:
                raise ConfigError(f"{e} (train, from where one stands)") from None
            kind = JOBS.get(str(raw.get("job", "dpa")))
            if kind is None or not issubclass(kind, OnlineRecipe):
                known = ", ".join(job for job, one in JOBS.items() if issubclass(one, OnlineRecipe))
                raise ConfigError(
                    f"{self.train} is of jobs/{raw.get('job', 'dpa')}.py (its key job), and the policies of a soup are trained "
                    f"by {known} (train)"
                )
            own = self.model_dump(mode="json", include={"seed", "prompts", "policy", "rewards"})
            sign = float(self.rewards.objectives[name].sign)
            fixed = {key: sign if key == name else 0.0 for key in self.rewards.objectives}
            directions = dict(raw.get("directions") or {}) | {"fixed": fixed, "said": False}
            child = raw | own | {"name": f"{self.name}-{name}", "directions": directions}
            settings = validate(child, self.train, kind=kind)
            assert isinstance(settings, OnlineRecipe)
            out[name] = settings
        return out

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
