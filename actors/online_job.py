"""What stands around the steps of jobs/ppo.py and jobs/grpo.py: set-up before them, evaluations between them, the report after.

with OnlineJob.begin(recipe, plan, runs, resume, asked, on_evaluation) as job:
    with job.learners(recipe.grpo) as online:
        for t in online.steps():
            ...
            if online.kept(t):
                job.evaluate(t)
    return job.report(online)          # the learners have ended: it needs the generators and the scorers alone
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from actors.command import Figures, Report
from actors.crew import Crew
from actors.first import First, first_policy
from actors.online import Online
from actors.summary import figures, write
from rhumbline import config
from rhumbline.plan import Plan
from rhumbline.runs import curve
from rhumbline.store import RunStore


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineJob:
    """A run directory, its actors, and the policy that training starts from."""

    recipe: config.OnlineRecipe
    plan: Plan
    store: RunStore
    crew: Crew
    first: First
    on_evaluation: Report

    @classmethod
    @contextmanager
    def begin(
        cls,
        recipe: config.OnlineRecipe,
        plan: Plan,
        runs: Path,
        resume: bool,
        asked: str,
        on_evaluation: Report,
    ) -> Iterator[Self]:
        """The run and its actors as long as the `with` lasts; arguments as those of a job's `run`."""
        inputs = plan.inputs()
        with (
            RunStore.create(runs, recipe, resume, asked=asked, inputs=inputs) as store,
            Crew(recipe, store, plan) as crew,
        ):
            if recipe.evaluation.initial_policy:
                crew.held_out(
                    None
                )  # the initial policy answers before other weights are loaded; aggregated in `report`
            first = first_policy(recipe, plan, store, crew)
            yield cls(recipe=recipe, plan=plan, store=store, crew=crew, first=first, on_evaluation=on_evaluation)

    @contextmanager
    def learners(self, settings: config.Ppo | config.Grpo) -> Iterator[Online]:
        """Those of the run, as long as the `with` around its steps lasts.

        A run that goes on says again what its kept versions came to: whoever counts evaluations counts as many as without
        a break. What was sampled for them is read back.
        """
        with Online(self.recipe, settings, self.plan, self.store, self.crew, self.first) as online:
            for t in filter(online.kept, range(1, online.ranks.at + 1)):
                self.evaluate(t)
            yield online

    def evaluate(self, t: int) -> None:
        """Evaluate version t, and say what it came to; of the last one the job's own result says it, once the report is there:
        a scheduler that hears of it before would stop a run that has learned all it will, and take it out of the comparison.
        """
        evaluated = self.crew.evaluate(t, self.first.calibration)
        if t < self.recipe.steps:
            self.on_evaluation(figures(self.recipe, self.first.calibration, evaluated))

    def report(self, online: Online) -> Figures:
        """Write the report on the kept versions; returns what the last one came to (`actors.summary.figures`)."""
        recipe, crew, first = self.recipe, self.crew, self.first
        kept = [t for t in range(1, recipe.steps + 1) if online.kept(t)]
        versions = kept if first.version is None else [first.version, *kept]
        policies = [crew.evaluate(version, first.calibration) for version in versions]
        initial = crew.evaluate(None, first.calibration) if recipe.evaluation.initial_policy else None
        page = write(recipe, self.plan, self.store, crew, initial, policies, first.notes, curve(self.store.path))
        print(f"report: {page}")
        return figures(recipe, first.calibration, policies[-1])
