#!/usr/bin/env python
"""Personalisation for diverse users: how people differ, who resembles whom, and how well their choices are foreseen.

python jobs/users.py --recipe jobs/recipes/users/polis.yaml
python jobs/users.py --recipe jobs/recipes/users/personas.yaml endpoint.url=http://localhost:8000/v1 endpoint.model=rhumbline
ray job submit --runtime-env cluster/runtime_env.yaml -- python jobs/users.py --recipe FILE --out /mnt/studies/mine --resume

read       people x questions, and what is known about each person
describe   users per answer, cosine of every two users, graph of mutual neighbours, clusters, disagreements
plan       which choices are predicted; of each person a few known answers, taken greedily by I(U; Q_j | Q_S)
survey     everybody role-played at the same questions, described as if people had answered
predict    role-play ('imagine you are P') and few-shot by a served model, every option in every place; a conditional reward model
measure    accuracy on unseen questions beside one answer for all (the uniform user, the majority), over people and questions

The served model is any that speaks OpenAI's chat completions. Without one the predictions that need none are measured alone.
An answer is stored as it comes, and nothing is asked twice: not after a kill, nor when the recipe changes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rhumbline.cli import user_errors
from rhumbline.config import dump
from rhumbline.config.users import UsersRecipe, load_users

if TYPE_CHECKING:
    from rhumbline.users.cases import Cell, Plan
    from rhumbline.users.endpoint import AnswerBook, Wanted
    from rhumbline.users.population import Floats, Population
    from rhumbline.users.report import Description
    from rhumbline.users.roleplay import Case

HERE = Path(__file__).resolve().parent


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, laid over the recipe")] = None,
    recipe: Annotated[Path, typer.Option(help="a YAML file")] = HERE / "recipes" / "users" / "polis.yaml",
    out: Annotated[Path | None, typer.Option(help="folder to write to; studies/<name> by default")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on in a folder that has answers")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be asked, and do nothing")] = False,
) -> None:
    """Describe people by their choices, and measure how well these are foreseen."""
    with user_errors():
        settings = load_users(recipe, overrides or [])
        from rhumbline.store import lasting

        run(settings, lasting(out if out is not None else Path("studies") / settings.name), resume, dry_run)


def run(recipe: UsersRecipe, out: Path, resume: bool, dry_run: bool) -> None:
    """The algorithm."""
    from rhumbline.lease import held
    from rhumbline.users import people_data
    from rhumbline.users.cases import Plan, survey
    from rhumbline.users.report import describe, measure, table, write
    from rhumbline.users.study import open_book

    people = people_data.read(recipe.people, recipe.seed)
    plan = Plan.of(people, recipe.predict, recipe.seed)
    asked = plan.asked(people, recipe.predict) if recipe.endpoint is not None else {}
    crowd, polled = survey(people, recipe.survey, recipe.seed) if recipe.survey.questions else (people, {})
    if dry_run:
        show(recipe, people, plan, {**asked, "survey": polled}, out)
        return
    book = open_book(out, recipe, resume)
    with held(out, "--out"):
        described = [describe(people, recipe.analysis, recipe.seed, title="What people chose")]
        answers, notes = answered(recipe, {**asked, "survey": polled}, book)
        if polled:
            described.append(role_played(recipe, crowd, answers.pop("survey")))
        predictions = {**without_model(people, plan), **foreseen(people, answers), **rewarded(recipe, people, plan)}
        told = measure(
            people,
            plan,
            predictions,
            [name for name in predictions if name in answers or name.startswith("reward-")],
            resamples=recipe.predict.bootstrap,
            seed=recipe.seed,
        )
        notes = [*(note for one in described for note in one.notes), *plan.notes, *notes]
        print(f"report: {write(out / 'report', recipe.name, described, told, notes)}")
    print("\n".join([table(told), *notes]))


# --- predictors -------------------------------------------------------------------------------------------------------


def without_model(people: Population, plan: Plan) -> dict[str, Floats]:
    """One answer for all, and what people do who answered the same demonstrations alike."""
    from rhumbline.users.prediction import chance, majority, neighbours, uniform

    one_for_all = {"chance": chance(people), "uniform": uniform(people), "majority": majority(people)}
    near = {f"neighbours-{name}": neighbours(people, shown) for name, shown in plan.shown.items()}
    return {name: p_UQA for name, p_UQA in {**one_for_all, **near}.items() if p_UQA is not None}


def answered(
    recipe: UsersRecipe, asked: dict[str, dict[Cell, Case]], book: AnswerBook
) -> tuple[dict[str, dict[Cell, Floats]], list[str]]:
    """What the served model foresees at every case, and how many it could not be read at."""
    if recipe.endpoint is None:
        return {}, []
    from rhumbline.users import endpoint

    portrait = recipe.people.portrait
    asyncio.run(endpoint.ask(recipe.endpoint, wanted(recipe, asked), book))
    answers: dict[str, dict[Cell, Floats]] = {}
    notes = []
    for name, cases in asked.items():
        answers[name], failed = endpoint.foreseen(book, recipe.endpoint, cases, portrait)
        notes += [f"{name}: {count} of {len(cases)} not predicted: {why}" for why, count in failed.most_common()]
    return answers, notes


def foreseen(people: Population, answers: dict[str, dict[Cell, Floats]]) -> dict[str, Floats]:
    """The served model's answers as predictions."""
    from rhumbline.users.cases import filled

    return {name: filled(people, found) for name, found in answers.items()}


def rewarded(recipe: UsersRecipe, people: Population, plan: Plan) -> dict[str, Floats]:
    """What the reward model expects, told who judges if it was trained to be."""
    if recipe.rewards is None:
        return {}
    from rhumbline.users.cases import filled
    from rhumbline.users.conditional import open_conditional
    from rhumbline.users.roleplay import Case

    model = open_conditional(recipe.rewards, recipe.rewards_head, trust_remote_code=recipe.trust_remote_code)
    cases = [Case(user=people.users[u], question=people.questions[q]) for u, q in plan.cells]
    found = dict(zip(plan.cells, model.probabilities(cases), strict=True))
    return {f"reward-{'conditional-' if model.conditional else ''}{model.kind}": filled(people, found)}


def role_played(recipe: UsersRecipe, crowd: Population, answers: dict[Cell, Floats]) -> Description:
    """The survey, described as if its people had answered themselves."""
    from rhumbline.users.report import describe
    from rhumbline.users.study import as_chosen

    assert recipe.endpoint is not None
    title = f"What people would choose, role-played by {recipe.endpoint.model}"
    return describe(as_chosen(crowd, answers), recipe.analysis, recipe.seed, title=title, prefix="survey-")


# --- what would be asked ----------------------------------------------------------------------------------------------


def wanted(recipe: UsersRecipe, asked: dict[str, dict[Cell, Case]]) -> list[Wanted]:
    """Every request, each case in all orders of its options."""
    from rhumbline.users import endpoint

    assert recipe.endpoint is not None
    cases = [case for several in asked.values() for case in several.values()]
    return endpoint.requests(recipe.endpoint, cases, recipe.people.portrait)


def show(recipe: UsersRecipe, people: Population, plan: Plan, asked: dict[str, dict[Cell, Case]], out: Path) -> None:
    """Print the resolved recipe, who would be described and what would be asked."""
    print(dump(recipe))
    print(f"{len(people.users)} users, {len(people.questions)} questions, {int(people.chosen.sum())} choices")
    print(f"{len(plan.cells)} choices to predict; demonstrations: {', '.join(plan.shown) or 'none'}")
    if recipe.endpoint is not None:
        from rhumbline.users.endpoint import AnswerBook, missing

        for name, cases in asked.items():
            print(f"{name}: {len(cases)} cases")
        every = wanted(recipe, asked)
        left = missing(every, AnswerBook(out / "answers.jsonl"))
        print(
            f"would ask {recipe.endpoint.url} {len(left)} requests; {len({one.key for one in every}) - len(left)} known"
        )
    print("\n".join([*plan.notes, f"would write: {out}"]))


if __name__ == "__main__":
    typer.run(main)
