"""The end of a job: everything that the run measured, into report/ and the model card. Reads the store; computes nothing new."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.crew import Crew
from actors.first import First
from rhumbline import directions
from rhumbline.config import Recipe
from rhumbline.evaluation.card import CardSteering, write_card
from rhumbline.evaluation.evaluate import PolicyEvaluation
from rhumbline.evaluation.health import check_health
from rhumbline.evaluation.report import ReportInput, write_report
from rhumbline.evaluation.samples import pick
from rhumbline.plan import Plan
from rhumbline.records import Scored
from rhumbline.store import RunStore, environment

Evaluated = tuple[PolicyEvaluation, list[Scored]]


def write(
    recipe: Recipe,
    plan: Plan,
    store: RunStore,
    crew: Crew,
    initial: Evaluated | None,
    policies: Sequence[Evaluated],
    first: First,
) -> Path:
    """report/index.html, summary.json, figures, data and the model card; returns the page's path."""
    evaluations = [evaluation.to_json() for evaluation, _ in policies]
    initial_json = None if initial is None else initial[0].to_json()
    everyone = [*([] if initial is None else [initial]), *policies]
    samples = [s for e, scored in everyone for s in pick(scored, label=e.label, objectives=crew.names)]
    selected, machine = _selected(recipe, store), environment()
    stages = crew.stages()
    losses = [line["learn/loss"] for line in crew.metrics.read() if "learn/loss" in line]
    report = ReportInput(
        name=recipe.name,
        method="Directional preference alignment (rejection sampling, conditioned on the direction)",
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
                s["items"] or 0 for s in stages if s["name"].startswith("iterations/") and "learn" not in s["name"]
            ),
            "iterations": recipe.iterations,
        },
        recipe={
            "codec": plan.codec.version,
            "system prompt at the first evaluated direction": plan.codec.render(plan.grid()[0]),
            "region": directions.text(plan.cone.axis, plan.cone.names) + f" +- {plan.cone.half_angle_deg:g} degrees",
            "samples per query": recipe.samples,
            "selection": recipe.selection.rule,
            "t=0": recipe.initial.strategy,
            "restart from": recipe.policy.restart_from,
            "reward model": crew.reward_model.id,
        },
        health=check_health(evaluations, initial=initial_json, selected=selected, losses=losses),
        notes=(
            *first.notes,
            "Directions are said by the system prompt alone; no other words tell the policy what to do.",
        ),
        versions={"python": machine["python"], **machine["versions"]},
        seed=recipe.seed,
        command=" ".join(machine["command"]),
    )
    page = write_report(store.path / "report", report)
    example = plan.cone.project(plan.cone.axis)[0]
    write_card(
        store.path / "README.md",
        report,
        CardSteering(
            codec=plan.codec.version,
            example=directions.text(example, plan.cone.names),
            system_prompt=plan.codec.render(example),
            region=f"{plan.cone.half_angle_deg:g} degrees around {directions.text(plan.cone.axis, plan.cone.names)}",
            presets=recipe.directions.presets,
        ),
    )
    return page


def _selected(recipe: Recipe, store: RunStore) -> dict[str, Any]:
    """Sums over all iterations of what selection kept, dropped and never got."""
    totals = {"unique": 0, "candidates": 0, "duplicates_dropped": 0, "failed": 0}
    for t in range(recipe.iterations + 1):
        for shard in store.shards(f"iterations/t={t}/selected"):
            for key in totals:
                totals[key] += int(shard.notes.get(key, 0))
    return totals
