"""t=0: the first policy that heeds directions, by the recipe's strategy.

relabel   sample the initial policy in several styles (words make the contrast), score, give every answer the directions that
          it is the best answer for, and train on that: as plain SFT, or with the styled policy as teacher (distil)
steerlm   labelled answers under the values that they really have (SteerLM, arXiv:2310.05344); directions become targets
adapter   a finished adapter with its steering.json, for instance the shipped one
none      the initial policy as it is; online training starts from it

The statistics that standardise rewards are frozen here, on t=0's samples, and travel with every checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.crew import Crew
from actors.rollout import Rollout
from rhumbline import codecs
from rhumbline.codecs import SteerLM
from rhumbline.config import Recipe, Run
from rhumbline.examples import from_ratings, from_selected
from rhumbline.learning import embedded
from rhumbline.learning.policy import load_tokenizer
from rhumbline.plan import Plan
from rhumbline.queries import ask_all, ask_in_styles, spread_directions
from rhumbline.records import Completion, Example, Prompt, Scored, Selected
from rhumbline.rewards.objectives import Calibration
from rhumbline.scalarise import SCALARISATIONS, Standardiser, linear
from rhumbline.selection import pooled
from rhumbline.store import RunStore


@dataclass(frozen=True, slots=True, kw_only=True)
class First:
    """What later iterations need of t=0."""

    examples: tuple[Example, ...]  # replayed against forgetting
    calibration: Calibration
    standardiser: Standardiser
    notes: tuple[str, ...]  # for the report
    version: int | None  # of the policy that t=1 samples from; None: the initial one, nothing was trained


def first_policy(recipe: Run, plan: Plan, store: RunStore, crew: Crew) -> First:
    """Make and publish checkpoints/t=0."""
    if recipe.initial.strategy == "adapter":
        wanted = recipe.initial.adapter
        folder = embedded.adapter() if wanted == "embedded" else Path(str(wanted))
        contract = crew.adopt(0, folder)
        said = "the one that Rhumbline ships" if wanted == "embedded" else str(folder)
        notes = [f"t=0 is a finished policy ({said}), trained before this run from the same initial policy."]
        if isinstance(recipe, Recipe) and recipe.iterations > 0 and recipe.selection.replay_fraction > 0:
            notes.append("It brings no samples of its own, so nothing of t=0 is replayed.")
        return _first(recipe, (), Calibration.from_dict(contract.calibration), tuple(notes))
    strategy = {"relabel": _relabel, "steerlm": _steerlm, "none": _none}[recipe.initial.strategy]
    return strategy(recipe, plan, store, crew)


def _relabel(recipe: Run, plan: Plan, store: RunStore, crew: Crew) -> First:
    initial, prompts = recipe.initial, _asked(recipe, plan)
    answers = _styled(recipe, plan, crew)
    calibration = _calibrate(crew, answers.scored)
    first = _first(recipe, (), calibration, ())
    directions = spread_directions(prompts, plan.cone, initial.directions_per_prompt, seed=recipe.seed)
    scalarise = SCALARISATIONS[recipe.selection.scalarisation] if isinstance(recipe, Recipe) else linear
    kept = pooled(answers.scored, directions, first.standardiser, scalarise)
    store.publish("iterations/t=0/selected", 0, kept.selected, kept.counts(answers.failed))
    recorded = store.read("iterations/t=0/selected", Selected)  # after a resume, what the earlier session kept
    examples = from_selected(recorded, plan.codec, distil=initial.distil)
    crew.learn(0, examples, plan.codec, calibration)
    return _first(recipe, examples, calibration, ())


def _none(recipe: Run, plan: Plan, store: RunStore, crew: Crew) -> First:
    """The initial policy as it is; its answers calibrate the rewards, unless another run's calibration was taken over."""
    known = store.marked("rewards/calibration")
    calibration = Calibration.from_dict(known) if known else _calibrate(crew, _styled(recipe, plan, crew).scored)
    return _first(recipe, (), calibration, (), version=None)


def _asked(recipe: Run, plan: Plan) -> tuple[Prompt, ...]:
    return plan.splits.half(2)[: recipe.initial.prompts]  # D2: t=1 samples from the other half


def _styled(recipe: Run, plan: Plan, crew: Crew) -> Rollout:
    queries = ask_in_styles(_asked(recipe, plan), recipe.initial.styles, iteration=0, seed=recipe.seed)
    return crew.sample("iterations/t=0", queries, n=1, sampling=recipe.sampling, version=None)


def _steerlm(recipe: Run, plan: Plan, store: RunStore, crew: Crew) -> First:
    """Annotate the labelled answers with the run's own reward model, as SteerLM does, so that targets and rewards agree."""
    rows, held_out = plan.labelled()
    tokenizer = load_tokenizer(crew.initial, recipe.policy.trust_remote_code)
    queries = ask_all([row.prompt for row in rows], [None], plan.codec, iteration=0, seed=recipe.seed)
    completions = [
        Completion(
            query=query,
            sample_index=index,  # several answers to one prompt
            text=row.response,
            token_ids=tuple(tokenizer(row.response, add_special_tokens=False)["input_ids"]),
            logprob=0.0,
            finish_reason="stop",
            policy_version="labelled",
        )
        for index, (query, row) in enumerate(zip(queries, rows, strict=True))
    ]
    scored = crew.score("iterations/t=0/scores", completions)
    calibration = _calibrate(crew, scored)
    ends = zip(crew.names, calibration.p10, calibration.p90, strict=True)
    options: dict[str, str | float | int] = {}
    for name, low, high in ends:  # targets that answers really reach
        options |= {f"low.{name}": round(low, 1), f"high.{name}": round(high, 1)}
    codec = codecs.make("steerlm", crew.names, options)
    assert isinstance(codec, SteerLM)
    answers = [(s.completion.query.prompt, s.completion.text, s.rewards) for s in scored]
    examples = from_ratings(answers, codec)
    crew.learn(0, examples, codec, calibration)
    store.event("steerlm", examples=len(examples), held_out=held_out)
    notes = ["t=0 is a SteerLM policy: it is asked for target values."]
    if held_out:
        notes.append(f"{held_out} labelled answers to held-out prompts were not trained on.")
    return _first(recipe, examples, calibration, tuple(notes))


def _calibrate(crew: Crew, scored: Sequence[Scored]) -> Calibration:
    known = crew.store.marked("rewards/calibration")
    if known is not None:
        return Calibration.from_dict(known)
    rewards_NK = np.array([s.rewards for s in scored])
    calibration = Calibration.fit(crew.names, rewards_NK, [len(s.completion.token_ids) for s in scored])
    crew.store.mark("rewards/calibration", calibration.to_dict())
    return calibration


def _first(
    recipe: Run,
    examples: Sequence[Example],
    calibration: Calibration,
    notes: tuple[str, ...],
    version: int | None = 0,
) -> First:
    K = len(calibration.names)
    standardiser = calibration.standardiser() if recipe.rewards.standardise else Standardiser.identity(K)
    return First(
        examples=tuple(examples), calibration=calibration, standardiser=standardiser, notes=notes, version=version
    )
