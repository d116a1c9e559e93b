#!/usr/bin/env python
"""Directional preference alignment: one policy for every direction of a cone (Wang et al. 2024, arXiv:2402.18571).

ray job submit --runtime-env cluster/runtime_env.yaml -- python jobs/dpa.py --runs /mnt/rhumbline/runs   # the embedded default
python jobs/dpa.py --recipe jobs/recipes/smol.yaml learner.lr=1e-4  # any key of the recipe
python jobs/dpa.py --recipe jobs/recipes/smol.yaml --resume         # goes on where the ledger stands

t = 0      a first policy that heeds directions: relabelled samples, SteerLM, or a finished adapter
t = 1..T   ask half the prompts under drawn directions, sample, score once, keep the best for each direction,
           fine-tune on what was kept with some replay, publish, load into the generators
then       evaluate every policy on held-out prompts over a grid of directions, and write the report
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from actors.command import command
from rhumbline.config import Recipe

if TYPE_CHECKING:
    from rhumbline.plan import Plan

HERE = Path(__file__).resolve().parent


def run(recipe: Recipe, plan: Plan, runs: Path, resume: bool, asked: str) -> dict[str, float]:
    """The algorithm; returns what the last policy came to (`actors.summary.figures`)."""
    from actors.crew import Crew
    from actors.first import first_policy
    from actors.summary import figures, write
    from rhumbline.examples import from_selected, with_replay
    from rhumbline.records import Selected
    from rhumbline.selection import select
    from rhumbline.steering import read
    from rhumbline.store import RunStore

    inputs = plan.inputs()
    with RunStore.create(runs, recipe, resume, asked=asked, inputs=inputs) as store, Crew(recipe, store, plan) as crew:
        if recipe.evaluation.initial_policy:
            crew.held_out(None)  # the initial policy answers before other weights are loaded; aggregated below
        first = first_policy(recipe, plan, store, crew)
        policies = [crew.evaluate(0, first.calibration)]
        for t in range(1, recipe.iterations + 1):
            codec = read(store.checkpoint_dir(t - 1)).make_codec()  # the words that policy t - 1 understands
            queries = plan.queries(t, codec)
            stage = f"iterations/t={t}"
            answers = crew.sample(stage, queries, n=recipe.samples, sampling=recipe.sampling, version=t - 1)
            candidates = [*(crew.kept_before(t) if recipe.selection.keep_best else ()), *answers.scored]
            kept = select(candidates, queries, recipe.selection, first.standardiser)
            store.publish(f"{stage}/selected", 0, kept.selected, kept.counts(answers.failed))
            recorded = store.read(f"{stage}/selected", Selected)  # after a resume, what the earlier session kept
            examples = from_selected(recorded, plan.codec)
            mixed = with_replay(examples, first.examples, recipe.selection.replay_fraction, recipe.seed + t)
            crew.learn(t, mixed, plan.codec, first.calibration)
            policies.append(crew.evaluate(t, first.calibration))
        initial = crew.evaluate(None, first.calibration) if recipe.evaluation.initial_policy else None
        print(f"report: {write(recipe, plan, store, crew, initial, policies, first.notes)}")
        return figures(recipe, first.calibration, policies[-1])


main = command(
    run,
    Recipe,
    HERE / "recipes" / "dpa.yaml",
    "Train one policy for every direction of a cone, and prove that it steers.",
)

if __name__ == "__main__":
    typer.run(main)
