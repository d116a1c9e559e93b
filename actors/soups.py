"""Soups: a policy per objective, mixed by weights for every direction of the grid, and evaluated as one policy.

check_mixtures(recipe, plan)                                # every direction of the grid can be mixed
missing = children(recipe, plan)                            # recipes of the policies that are still to be trained
with RunStore.create(...) as store:
    policies = objective_policies(recipe, missing, runs, jobs)
    with Crew(recipe, store, plan) as crew:
        scored = taste(crew, plan, store, policies)         # one mixture per direction
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from actors import probes
from actors.crew import Crew
from actors.dry_run import check
from actors.trial import job_module, job_of
from cluster.session import resources
from rhumbline import config
from rhumbline.errors import ConfigError, TrainingError
from rhumbline.fingerprint import fingerprint
from rhumbline.learning.soups import SOUP, check_policy, interpolate, soup_weights
from rhumbline.plan import Plan
from rhumbline.queries import ask_all
from rhumbline.records import Scored
from rhumbline.store import RunStore


def check_mixtures(recipe: config.SoupRecipe, plan: Plan) -> None:
    """Raises DirectionError for a direction of the grid that the soup has no weights for, ConfigError for a policy that is not
    there or does not stem from policy.initial: before anything is trained.
    """
    signs = [objective.sign for objective in recipe.rewards.objectives.values()]
    for direction in plan.grid():
        soup_weights(direction, signs, list(recipe.rewards.objectives))
    for name, folder in recipe.policies.items():
        if not any((_folder(folder) / file).is_file() for file in ("config.json", "adapter_model.safetensors")):
            raise ConfigError(
                f"policies.{name}: {folder} holds neither config.json nor adapter_model.safetensors, expected full weights or an "
                "adapter of policy.initial"
            )
        try:
            check_policy(recipe.policy.initial, name, _folder(folder), recipe.policy.trust_remote_code)
        except (ConfigError, TrainingError) as e:
            raise ConfigError(
                f"policies.{name}: {e}. Give a policy that was trained from policy.initial, {recipe.policy.initial}, or none and "
                "a recipe that trains it (train)"
            ) from e


def hashes(recipe: config.SoupRecipe) -> dict[str, str]:
    """Of the policies that the recipe names: a run that goes on must find the same."""
    return {f"policies.{name}": fingerprint(_folder(folder)) for name, folder in recipe.policies.items()}


def children(recipe: config.SoupRecipe, plan: Plan) -> dict[str, tuple[config.OnlineRecipe, Plan]]:
    """Objective -> the run that trains its policy, where the recipe names none. Checked, its room too, not begun.

    None trains on what the soup is evaluated on, also where the two hold out other prompts: those that a policy of
    `recipe.policies` was trained on, say, are held out by no soup, and by a child for all it knows.
    """
    out: dict[str, tuple[config.OnlineRecipe, Plan]] = {}
    for name, settings in recipe.children().items():
        own = Plan.make(settings).without(plan.splits.evaluation)
        check(own, resources())
        out[name] = (settings, own)
    return out


def objective_policies(
    recipe: config.SoupRecipe, missing: Mapping[str, tuple[config.OnlineRecipe, Plan]], runs: Path, jobs: Path
) -> dict[str, Path]:
    """Objective -> folder of its policy. Those that are `missing` are trained by runs of their own, which are resumed."""
    out: dict[str, Path] = {}
    for name in recipe.rewards.objectives:
        if name in recipe.policies:
            out[name] = _folder(recipe.policies[name])
            continue
        settings, plan = missing[name]
        print(f"soup: the policy of {name}", flush=True)
        asked = f"# {recipe.train} for {name} alone, with the prompts, rewards, policy and seed of {recipe.name}\n"
        asked += Path(str(recipe.train)).read_text(encoding="utf-8")
        job_module(jobs, job_of(settings)).run(settings, plan, runs, True, asked=asked)
        out[name] = (runs / settings.name / "checkpoints" / f"t={settings.steps}").resolve()
    return out


def taste(crew: Crew, plan: Plan, store: RunStore, policies: Mapping[str, Path]) -> list[Scored]:
    """Answers of one mixture per direction of the grid to the held-out prompts, which say no direction."""
    recipe, signs = crew.recipe, [o.sign for o in crew.recipe.rewards.objectives.values()]
    settings, scored = recipe.evaluation, list[Scored]()
    grid = plan.grid()
    asked = ask_all(plan.splits.evaluation, grid, plan.codec, iteration=0, seed=recipe.seed)
    for d, direction in enumerate(grid):
        weights = dict(zip(crew.names, soup_weights(direction, signs, crew.names), strict=True))
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
    shutil.rmtree(out, ignore_errors=True)  # of a session that was killed before it set the mark
    interpolate(crew.initial, policies, weights, out, crew.recipe.policy.trust_remote_code)
    probes.probe_again(out, crew.initial, crew.recipe.policy.trust_remote_code)
    about = json.loads((out / SOUP).read_text(encoding="utf-8"))
    store.mark(mark, {"checkpoint": f"checkpoints/t={version}", **about})


def _folder(name: str) -> Path:
    return Path(name).expanduser().resolve()


def told(policies: Mapping[str, Path], grid: Sequence[Sequence[float]], store: RunStore) -> list[str]:
    """Notes for the report."""
    marks = [store.marked(f"iterations/t={d + 1}/learn") or {} for d in range(len(grid))]
    rounding = max((float(mark.get("rounding", 0.0)) for mark in marks), default=0.0)
    return [
        f"Stored in bf16, a mixture is off the exact one by up to {rounding:.0%} of its distance from the initial policy.",
        f"Rewarded soups: {len(policies)} policies, one per objective, mixed in weights for each of {len(grid)} directions; no "
        "prompt says a direction.",
        *(f"The policy of {name}: {folder}." for name, folder in policies.items()),
    ]
