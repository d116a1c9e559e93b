#!/usr/bin/env python
"""Preference optimisation: DPO, IPO, JPO and MODPO on pairs, KTO and BCO on judged answers (arXiv:2305.18290 and its kin).

ray job submit --runtime-env cluster/runtime_env.yaml -- python jobs/dpo.py --runs /mnt/rhumbline/runs
python jobs/dpo.py --recipe jobs/recipes/dpo/smol.yaml loss.kind=kto     # any key of the recipe
python jobs/dpo.py --recipe jobs/recipes/dpo/smol.yaml --resume          # goes on where the ledger stands

Pairs come from one of three places, and the reference is always the policy that a round starts from:
- files of pairs that people judged, maybe with a profile of the one who judged, which stands in the prompt of both sides;
- the scored samples of a finished run, ranked for drawn directions, which stand in the prompt of both sides;
- the policy's own samples, t = 1..T: ask, sample, score, best against worst for each direction, learn, publish.
Then every policy is evaluated on held-out prompts, and the report is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from actors.command import command
from rhumbline.config import DpoRecipe

if TYPE_CHECKING:
    from rhumbline.plan import Plan

HERE = Path(__file__).resolve().parent


def run(recipe: DpoRecipe, plan: Plan, runs: Path, resume: bool, asked: str) -> dict[str, float]:
    """The algorithm; returns what the last policy came to (`actors.summary.figures`)."""
    from actors.crew import Crew
    from actors.first import first_policy
    from actors.preferences import Preferences
    from actors.summary import figures, write
    from rhumbline.steering import read
    from rhumbline.store import RunStore

    given = Preferences(recipe)
    given.check(plan)
    inputs = {**plan.inputs(), **given.inputs()}
    with RunStore.create(runs, recipe, resume, asked=asked, inputs=inputs) as store, Crew(recipe, store, plan) as crew:
        if recipe.evaluation.initial_policy:
            crew.held_out(None)  # the initial policy answers before other weights are loaded; aggregated below
        given.calibrate(store)
        first = first_policy(recipe, plan, store, crew)
        policies = [] if first.version is None else [crew.evaluate(first.version, first.calibration)]
        for t in range(1, recipe.iterations + 1):
            version = first.version if t == 1 else t - 1
            if given.elsewhere:
                samples = given.samples(plan, first.standardiser)
            else:
                codec = plan.codec
                if version is not None and recipe.steered:
                    codec = read(store.checkpoint_dir(version)).make_codec()
                queries = plan.queries(t, codec)
                stage = f"iterations/t={t}"
                answers = crew.sample(stage, queries, n=recipe.samples, sampling=recipe.sampling, version=version)
                samples = given.ranked(answers.scored, queries, plan.codec, first.standardiser)
            crew.learn(
                t,
                samples,
                plan.codec,
                first.calibration,
                loss=recipe.loss,
                trained_on=given.trained_on,
                restart_from="initial" if version is None else "previous",
            )
            policies.append(crew.evaluate(t, first.calibration))
        initial = crew.evaluate(None, first.calibration) if recipe.evaluation.initial_policy else None
        notes = [*first.notes, *given.notes]
        print(f"report: {write(recipe, plan, store, crew, initial, policies, notes)}")
        return figures(recipe, first.calibration, policies[-1])


main = command(
    run,
    DpoRecipe,
    HERE / "recipes" / "dpo" / "smol.yaml",
    "Train a policy on preferences: those of people, or those that a reward model has for a direction.",
)

if __name__ == "__main__":
    typer.run(main)
