"""What every job with a run directory asks of its recipe, and the recipe of jobs/dpa.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError, model_validator

from rhumbline.config.reading import merge
from rhumbline.config.sections import (
    Directions,
    Evaluation,
    Generator,
    Initial,
    Learner,
    Policy,
    Prompts,
    Rewards,
    Sampling,
    Scorer,
    Section,
    Selection,
)
from rhumbline.errors import did_you_mean
from rhumbline.faults import explain


class Run(Section):
    """A policy that is sampled, scored, trained and evaluated under directions; the jobs differ in what lies between."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$")
    seed: int = 0
    samples: int = Field(16, gt=0)  # n per (prompt, direction)
    shard_prompts: int = Field(32, gt=0)  # prompts per shard
    prompts: Prompts = Prompts()
    rewards: Rewards
    directions: Directions = Directions()
    policy: Policy = Policy()
    sampling: Sampling = Sampling()
    generator: Generator = Generator()
    scorer: Scorer = Scorer()
    initial: Initial = Initial()
    learner: Learner = Learner()
    evaluation: Evaluation = Evaluation()

    @property
    def steered(self) -> bool:
        """Whether prompts say directions: such a policy is evaluated under all of them, and has a steering.json."""
        return self.directions.said

    @model_validator(mode="after")
    def _run_is_consistent(self) -> Run:
        names = list(self.rewards.objectives)
        d = self.directions
        if (d.axis is None) == (d.angle_deg is None):
            raise ValueError("directions: give either axis (with half_angle_deg) or angle_deg, the other one as null")
        if d.angle_deg is not None and len(names) != 2:
            raise ValueError(
                f"directions.angle_deg needs two objectives, the recipe names {len(names)} ({', '.join(names)}): "
                "give directions.axis, and angle_deg as null"
            )
        if d.angle_deg is not None and not -180 <= d.angle_deg[0] < d.angle_deg[1] <= 180:
            raise ValueError(f"directions.angle_deg must rise from low to high in -180..180, got {list(d.angle_deg)}")
        wanted = {f"directions.presets.{preset}": weights for preset, weights in d.presets.items()}
        for key in ("fixed", "axis"):
            if (given := getattr(d, key)) is not None:
                wanted[f"directions.{key}"] = given
        for path, weights in {**wanted, "evaluation.reference_point": self.evaluation.reference_point or {}}.items():
            for name in weights:
                if name not in names:
                    near = did_you_mean(name, names)
                    raise ValueError(f"{path}.{name}: unknown objective.{near} Known: {', '.join(names)}")
        for path, weights in wanted.items():
            if not any(weights.values()):
                raise ValueError(f"{path} has no weight other than zero: it points nowhere")
        if self.evaluation.reference_point is not None and set(self.evaluation.reference_point) != set(names):
            raise ValueError(f"evaluation.reference_point must name every objective: {', '.join(names)}")
        if self.evaluation.angles_deg is not None and len(names) != 2:
            raise ValueError("evaluation.angles_deg needs two objectives: give evaluation.grid")
        if self.evaluation.win_rate is not None and not self.evaluation.initial_policy:
            raise ValueError(
                "evaluation.win_rate is against the initial policy, and evaluation.initial_policy is false: leave one of the "
                "two out"
            )
        if self.initial.strategy == "adapter" and self.initial.adapter is None:
            raise ValueError("initial.strategy 'adapter' needs initial.adapter: the conditioned policy to start from")
        if self.initial.strategy == "steerlm" and self.initial.labelled is None:
            raise ValueError("initial.strategy 'steerlm' needs initial.labelled: prompts, responses and ratings")
        if self.initial.strategy == "relabel" and not self.initial.styles:
            raise ValueError("initial.strategy 'relabel' needs initial.styles: {plain: {samples: 4}} is the least")
        try:
            self.learner_for_initial()
        except ValidationError as e:
            raise ValueError("; ".join(explain(fault, Learner, "initial.learner.") for fault in e.errors())) from None
        return self

    def learner_for_initial(self) -> Learner:
        """`learner` with `initial.learner` laid over it."""
        return Learner.model_validate(merge(self.learner.model_dump(), self.initial.learner))


class Recipe(Run):
    """Of jobs/dpa.py."""

    job: Literal["dpa"] = "dpa"
    iterations: int = Field(4, ge=0)  # T
    selection: Selection = Selection()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.selection.keep_best and self.selection.rule != "pooled":
            raise ValueError(
                "selection.keep_best needs selection.rule pooled: best_of_n compares the samples of one query"
            )
        if self.initial.strategy == "none":
            raise ValueError(
                "initial.strategy 'none' leaves t=0 without a policy that heeds directions: give relabel, steerlm or adapter"
            )
        if self.directions.fixed is not None:
            raise ValueError(
                "directions.fixed is of jobs/ppo.py and jobs/grpo.py: jobs/dpa.py trains one policy for a region of directions"
            )
        return self
