"""Soups: a policy per objective, mixed by weights for every direction of the grid, and evaluated as one policy.

policies = objective_policies(recipe, runs, jobs)           # trained where they are not there yet
with RunStore.create(...) as store, Crew(recipe, store, plan) as crew:
    scored = taste(crew, plan, store, policies)             # one mixture per direction
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from actors import learner
from actors.crew import Crew
from actors.trial import job_module, job_of
from rhumbline import config, durable
from rhumbline.learning.soups import interpolate, soup_weights
from rhumbline.plan import Plan
from rhumbline.queries import ask_all
from rhumbline.records import Scored
from rhumbline.store import RunStore


def objective_policies(recipe: config.SoupRecipe, runs: Path, jobs: Path) -> dict[str, Path]:
    """Objective -> folder of its policy. What the recipe does not name is trained by a run of its own, which is resumed."""
    out: dict[str, Path] = {}
    for name, objective in recipe.rewards.objectives.items():
        if name in recipe.policies:
            out[name] = Path(recipe.policies[name]).expanduser().resolve()
            continue
        assert recipe.train is not None
        asked = Path(recipe.train)
        fixed = {key: float(objective.sign) if key == name else 0.0 for key in recipe.rewards.objectives}
        overrides = [f"name={recipe.name}-{name}", f"directions.fixed={json.dumps(fixed)}", "directions.said=false"]
        raw = config.read(asked, overrides)
        settings = config.validate(raw, str(asked), kind=config.JOBS[str(raw.get("job", "dpa"))])
        assert isinstance(settings, config.OnlineRecipe)
        print(f"soup: the policy of {name}", flush=True)
        job_module(jobs, job_of(settings)).run(
            settings, Plan.make(settings), runs, True, asked=asked.read_text(encoding="utf-8")
        )
        out[name] = (runs / settings.name / "checkpoints" / f"t={settings.steps}").resolve()
    return out


def taste(crew: Crew, plan: Plan, store: RunStore, policies: Mapping[str, Path]) -> list[Scored]:
    """Answers of one mixture per direction of the grid to the held-out prompts, which say no direction."""
    recipe, signs = crew.recipe, [o.sign for o in crew.recipe.rewards.objectives.values()]
    settings, scored = recipe.evaluation, list[Scored]()
    grid = plan.grid()
    asked = ask_all(plan.splits.evaluation, grid, plan.codec, iteration=0, seed=recipe.seed)
    for d, direction in enumerate(grid):
        weights = dict(zip(policies, soup_weights(direction, signs, crew.names), strict=True))
        _mix(crew, store, d + 1, policies, weights)
        queries = [
            dataclasses.replace(query, messages=tuple(query.prompt.messages))
            for query in asked
            if query.direction_index == d
        ]
        stage = f"evaluation/mixtures/t={d + 1}"
        answers = crew.sample(stage, queries, n=settings.samples, sampling=settings.sampling, version=d + 1)
        scored += answers.scored
    return scored


def _mix(crew: Crew, store: RunStore, version: int, policies: Mapping[str, Path], weights: Mapping[str, float]) -> None:
    mark = f"iterations/t={version}/learn"
    if store.marked(mark) is not None:
        return
    out = store.checkpoint_dir(version)
    interpolate(crew.initial, policies, weights, out, crew.recipe.policy.trust_remote_code)
    learner.probe_again(out, trust_remote_code=crew.recipe.policy.trust_remote_code)
    durable.replace(out / "soup.json", (durable.to_json({"weights": dict(weights)}) + "\n").encode())
    store.mark(mark, {"checkpoint": f"checkpoints/t={version}", "weights": dict(weights)})


def told(policies: Mapping[str, Path], grid: Sequence[Sequence[float]]) -> list[str]:
    """Notes for the report."""
    return [
        f"Rewarded soups: {len(policies)} policies, one per objective, mixed in weights for each of {len(grid)} directions; no "
        "prompt says a direction.",
        *(f"The policy of {name}: {folder}." for name, folder in policies.items()),
    ]
