"""The end of a job: everything that the run measured, into report/ and the model card. Reads the store; computes nothing new."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from actors.crew import Crew
from rhumbline import directions
from rhumbline.config import JOBS, DpoRecipe, OnlineRecipe, Recipe, Run
from rhumbline.directions import parse
from rhumbline.evaluation.card import CardSteering, write_card
from rhumbline.evaluation.curves import learning
from rhumbline.evaluation.evaluate import PolicyEvaluation
from rhumbline.evaluation.health import check_health
from rhumbline.evaluation.report import ReportInput, write_report
from rhumbline.evaluation.samples import pick
from rhumbline.plan import Plan
from rhumbline.records import Scored
from rhumbline.rewards.objectives import Calibration
from rhumbline.scalarise import Standardiser, linear
from rhumbline.store import RunStore, environment

Evaluated = tuple[PolicyEvaluation, list[Scored]]
METHODS = {
    "dpa": "Directional preference alignment (rejection sampling, conditioned on the direction)",
    "dpo": "Preference optimisation on pairs or judged answers",
    "ppo": "Proximal policy optimisation (PPO) on the weighted rewards, with a penalty on the KL divergence",
    "soups": "Rewarded soups: policies of single objectives, their weights interpolated by the direction",
    "grpo": "Group relative policy optimisation (GRPO) on the weighted rewards",
}


def write(
    recipe: Run,
    plan: Plan,
    store: RunStore,
    crew: Crew,
    initial: Evaluated | None,
    policies: Sequence[Evaluated],
    notes: Sequence[str],
    curve: Sequence[Mapping[str, float]] = (),
) -> Path:
    """report/index.html, summary.json, figures, data and the model card; returns the page's path.

    `curve`: metrics of every step, where training is online.
    """
    evaluations = [evaluation.to_json() for evaluation, _ in policies]
    initial_json = None if initial is None else initial[0].to_json()
    everyone = [*([] if initial is None else [initial]), *policies]
    samples = [s for e, scored in everyone for s in pick(scored, label=e.label, objectives=crew.names)]
    selected, machine = _selected(store), environment()
    stages = crew.accounts.stages()
    losses = [line["learn/loss"] for line in crew.metrics.read() if "learn/loss" in line]
    said = recipe.steered
    report = ReportInput(
        name=recipe.name,
        method=METHODS[next(job for job, kind in JOBS.items() if isinstance(recipe, kind))],
        base_model="SmolLM2-135M-Instruct" if recipe.policy.initial == "embedded" else recipe.policy.initial,
        evaluations=evaluations,
        initial_policy=initial_json,
        samples=samples,
        stages=stages,
        selected=selected,
        budget={
            "training prompts": len(plan.splits.train),
            "held-out prompts": len(plan.splits.evaluation),
            "samples": sum(
                s["items"] or 0
                for s in stages
                if s["name"].startswith(("iterations/", "rollout")) and "learn" not in s["name"]
            ),
            **_rounds(recipe),
        },
        recipe={
            **_directions(plan),
            "samples per query": recipe.samples,
            "t=0": recipe.initial.strategy,
            **_told(recipe),
            "reward model": crew.reward_model.id,
        },
        health=check_health(
            evaluations,
            initial=initial_json,
            selected=selected,
            losses=losses,
            steps=curve,
            kl_target=_target(recipe),
            section=recipe.section if isinstance(recipe, OnlineRecipe) else "",
            overlap=isinstance(recipe, OnlineRecipe) and recipe.overlap,
            objectives=crew.names,
        ),
        notes=(
            *notes,
            "Directions are said by the system prompt alone; no other words tell the policy what to do."
            if said
            else "No prompt says a direction to this policy.",
        ),
        plots=[] if not curve else [learning(curve, _target(recipe))],
        versions={"python": machine["python"], **machine["versions"]},
        seed=recipe.seed,
        command=" ".join(machine["command"]),
    )
    page = write_report(store.path / "report", report)
    write_card(store.path / "README.md", report, _steering(plan) if said else None)
    return page


def figures(recipe: Run, calibration: Calibration, evaluated: Evaluated) -> dict[str, float]:
    """What a run came to, for whoever compares runs: means over the evaluated directions.

    reward: v . r, standardised and scaled as the recipe says, before any clip (ppo.score_clip): under another direction it is
    another scalar;
    kl: nats per answer, from the initial policy; length: tokens; hypervolume; objective/<name> in the objective's own units;
    where the recipe has evaluation.win_rate, win_rate: the share of wins over the initial policy's answers.
    """
    evaluation, names = evaluated[0], list(recipe.rewards.objectives)
    fixed = recipe.directions.fixed
    scale = calibration.standardiser() if recipe.rewards.standardise else Standardiser.identity(len(names))
    simplex = isinstance(recipe, OnlineRecipe) and recipe.update().weights == "simplex"
    rewards = []
    for direction in evaluation.directions:
        v_K = direction.vector if direction.vector is not None else parse(fixed, names) if fixed is not None else None
        z_1K = scale([[direction.rewards[name].value for name in names]])
        if v_K is not None:
            length = sum(map(abs, v_K)) if simplex else 1.0
            rewards.append(float(linear(z_1K, v_K)[0]) / length)
    shown = evaluation.directions
    kls = [direction.kl.value for direction in shown if direction.kl is not None]
    out = {
        "reward": mean(rewards) if rewards else math.nan,
        "kl": mean(kls) if kls else math.nan,
        "length": mean(direction.length.value for direction in shown),
        "hypervolume": evaluation.hypervolume.value,
    }
    if evaluation.win_rate is not None:
        out["win_rate"] = evaluation.win_rate.value
    return out | {f"objective/{name}": mean(d.rewards[name].value for d in shown) for name in names}


def _steering(plan: Plan) -> CardSteering:
    example = plan.cone.project(plan.cone.axis)[0]
    return CardSteering(
        codec=plan.codec.version,
        example=directions.text(example, plan.cone.names),
        system_prompt=plan.codec.render(example),
        region=f"{plan.cone.half_angle_deg:g} degrees around {directions.text(plan.cone.axis, plan.cone.names)}",
        presets=plan.recipe.directions.presets,
    )


def _directions(plan: Plan) -> dict[str, Any]:
    settings, names = plan.recipe.directions, plan.cone.names
    if not plan.recipe.steered and settings.fixed is None:
        return {"direction in the prompt": "none"}
    if not settings.said and settings.fixed is not None:
        return {"direction, said in no prompt": directions.text(parse(settings.fixed, names), names)}
    return {
        "codec": plan.codec.version,
        "system prompt at the first evaluated direction": plan.codec.render(plan.grid()[0]),
        "region": directions.text(plan.cone.axis, names) + f" +- {plan.cone.half_angle_deg:g} degrees",
    }


def _rounds(recipe: Run) -> dict[str, int]:
    if isinstance(recipe, OnlineRecipe):
        return {"steps": recipe.steps, "prompts per step": recipe.prompts_per_step}
    return {"iterations": recipe.iterations} if isinstance(recipe, Recipe | DpoRecipe) else {}


def _told(recipe: Run) -> dict[str, Any]:
    """What a reader should know of the recipe, by its job."""
    if isinstance(recipe, Recipe):
        return {"selection": recipe.selection.rule, "restart from": recipe.policy.restart_from}
    if isinstance(recipe, DpoRecipe):
        return {"loss": recipe.loss.kind, "beta": recipe.loss.beta}
    if isinstance(recipe, OnlineRecipe):
        kl = recipe.update().kl
        target = "" if kl.target is None else f", target {kl.target:g} nats per answer"
        return {"KL": f"in the {kl.place}, {kl.controller}, coefficient {kl.coefficient:g}{target}"}
    return {}


def _target(recipe: Run) -> float | None:
    return recipe.update().kl.target if isinstance(recipe, OnlineRecipe) else None


def _selected(store: RunStore) -> dict[str, Any]:
    """Sums over all iterations of what selection kept, dropped and never got."""
    totals = {"unique": 0, "candidates": 0, "duplicates_dropped": 0, "failed": 0}
    for shard in store.all_shards("selected"):
        for key in totals:
            totals[key] += int(shard.notes.get(key, 0))
    return totals
