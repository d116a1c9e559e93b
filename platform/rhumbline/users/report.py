"""What jobs/users.py found, as a folder: a page to read, figures, and every number behind them. Last in the flow of `users`.

told = describe(people, recipe.analysis, seed=0)             # figures of who people are
lines = measure(people, plan, predictions, asked, resamples=1000, seed=0)
write(out / "report", recipe.name, [told], lines, notes)     # README.md, summary.json, figures/*.png, data/*.csv
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rhumbline import durable
from rhumbline.cards.figures import Drawn, csv_of, png
from rhumbline.config.users import Analysis
from rhumbline.users import disagreement, figures, similarity
from rhumbline.users.cases import Plan
from rhumbline.users.population import Floats, Population
from rhumbline.users.prediction import Draws, measured

COMPARABLE = 2  # users with enough in common, below which there is nothing to draw


@dataclass(frozen=True, kw_only=True)
class Description:
    """Who a population is, in numbers and in pictures."""

    title: str
    figures: Mapping[str, Any]
    drawn: tuple[Drawn, ...]  # names begin with `prefix`
    prefix: str
    notes: tuple[str, ...]


def describe(people: Population, settings: Analysis, seed: int, title: str, prefix: str = "") -> Description:
    """Disagreements always; similarity, graph and clusters where people have answered the same questions."""
    told: dict[str, Any] = dict(disagreement.summary(people))
    found = similarity.similarity(people, settings.min_common)
    edges_UU = similarity.mutual_neighbours(found.cosine_UU, settings.neighbours)
    told["similarity"] = dict(similarity.summary(found, edges_UU))
    if not told["similarity"]["comparable_pairs"]:
        why = (
            f"{title}: no two people answered {settings.min_common} questions in common (analysis.min_common), so there is no "
            "similarity, graph or heat map"
        )
        return Description(title=title, figures=told, drawn=(), prefix=prefix, notes=(why,))
    labels_U, silhouettes = similarity.clusters(
        found.cosine_UU, settings.clusters, most=settings.max_clusters, seed=seed
    )
    told["clusters"] = {
        "number": int(labels_U.max()) + 1,
        "sizes": np.bincount(labels_U).tolist(),
        "silhouettes": {str(count): value for count, value in silhouettes.items()},
        "agreement_with_groups": similarity.agreement_with_groups(labels_U, [user.group for user in people.users]),
    }
    drawn = figures.draw(people, found, edges_UU, labels_U)
    parts_U = similarity.components(edges_UU)
    degree_U = edges_UU.sum(axis=1)
    told["users_lines"] = [
        {
            "user": user.id,
            "group": user.group,
            "cluster": int(labels_U[u]),
            "part_of_graph": int(parts_U[u]),
            "mutual_neighbours": int(degree_U[u]),
            "chose": int(people.chosen[u].sum()),
            **{f"profile_{key}": value for key, value in user.profile.items()},
        }
        for u, user in enumerate(people.users)
    ]
    return Description(title=title, figures=told, drawn=tuple(drawn), prefix=prefix, notes=())


def measure(
    people: Population,
    plan: Plan,
    predictions: Mapping[str, Floats],
    asked: Collection[str],
    *,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """A line per predictor over the plan's cells, the lead over `uniform` where there is one, else over `majority`.

    asked: names of the predictors that ask a model.
    """
    draws = Draws(num_users=len(people.users), num_questions=len(people.questions), num_resamples=resamples, seed=seed)
    within = {name: plan.only(p_UQA) for name, p_UQA in predictions.items()}
    baseline = next((name for name in ("uniform", "majority") if name in within), None)
    lines: list[dict[str, Any]] = [
        {**line, "asks_a_model": line["predictor"] in asked}
        for line in measured(people.choices_UQ, within, baseline, draws)
    ]
    return [line for line in lines if line["n"]]


def write(
    folder: Path,
    name: str,
    descriptions: Sequence[Description],
    lines: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
) -> Path:
    """The folder anew, file by file; returns the page."""
    for sub in ("figures", "data"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    drawn = [(one.prefix, picture) for one in descriptions for picture in one.drawn]
    if lines:
        drawn.append(("", figures.accuracy(lines)))
    for prefix, picture in drawn:
        durable.replace(folder / "figures" / f"{prefix}{picture.name}.png", png(picture.figure))
        durable.replace(folder / "data" / f"{prefix}{picture.name}.csv", csv_of(picture.rows))
    for one in descriptions:
        if "users_lines" in one.figures:
            durable.replace(folder / "data" / f"{one.prefix}users.csv", csv_of(one.figures["users_lines"]))
    told = {
        "name": name,
        "populations": {
            one.title: {key: value for key, value in one.figures.items() if key != "users_lines"}
            for one in descriptions
        },
        "predictions": [dict(line) for line in lines],
        "notes": list(notes),
    }
    durable.replace(folder / "summary.json", (durable.to_json(told, indent=1) + "\n").encode())
    page = folder / "README.md"
    durable.replace(page, _page(name, descriptions, lines, notes).encode())
    return page


def _page(
    name: str, descriptions: Sequence[Description], lines: Sequence[Mapping[str, Any]], notes: Sequence[str]
) -> str:
    out = [f"# {name}: what people chose, and how well it is foreseen", ""]
    for one in descriptions:
        out += [f"## {one.title}", "", *(f"- {line}" for line in _sentences(one.figures)), ""]
        for picture in one.drawn:
            out += [f"![{picture.name}](figures/{one.prefix}{picture.name}.png)", "", picture.caption, ""]
    if lines:
        out += ["## Predicted choices", "", table(lines), ""]
        out += ["![accuracy](figures/accuracy.png)", ""]
    if notes:
        out += ["## Notes", "", *(f"- {note}" for note in notes), ""]
    return "\n".join(out)


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Predictors as a Markdown table."""
    lead = next((key for line in lines for key in line if key.startswith("beyond_") and key.count("_") == 1), None)
    heads = [
        "predictor",
        "choices",
        "accuracy",
        *([f"beyond {lead.removeprefix('beyond_')}"] if lead else []),
        "log loss",
    ]
    out = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for line in lines:
        cells = [str(line["predictor"]), str(line["n"]), _shown(line, "accuracy")]
        cells += [_shown(line, lead, "+")] if lead else []
        out.append("| " + " | ".join([*cells, _shown(line, "log_loss")]) + " |")
    return "\n".join(out)


def _shown(line: Mapping[str, Any], key: str, sign: str = "") -> str:
    if line.get(key) is None:
        return "-"
    low, high = line.get(f"{key}_low"), line.get(f"{key}_high")
    interval = "" if low is None or high is None else f" ({low:{sign}.3f} to {high:{sign}.3f})"
    return f"{line[key]:{sign}.3f}{interval}"


def _sentences(told: Mapping[str, Any]) -> list[str]:
    out = [
        f"{told['users']} users, {told['questions']} questions, {told['choices']} choices and {told['passes']} passes: "
        f"{told['asked_share']:.1%} of all (user, question)"
    ]
    if told["minority"] is not None:
        out.append(
            f"at a question, {told['minority']:.1%} of those who chose are outside its majority (mean over "
            f"{told['questions_with_two_choosers']} questions with two or more)"
        )
    if told["differed"] is not None:
        out.append(f"two people who both chose at a question chose differently in {told['differed']:.1%} of cases")
    near = told["similarity"]
    if near["cosine_median"] is not None:
        out.append(
            f"cosine of two people: median {near['cosine_median']:.2f}, middle half {near['cosine_p25']:.2f} to "
            f"{near['cosine_p75']:.2f}, over {near['comparable_pairs']} of {near['pairs']} pairs"
        )
        out.append(
            f"mutual neighbours: {near['edges']} edges, {near['parts']} connected parts, the largest of "
            f"{near['largest_part']}, and {near['without_edge']} people without an edge"
        )
    if "clusters" in told:
        found = told["clusters"]
        sizes = ", ".join(map(str, found["sizes"]))
        rand = found["agreement_with_groups"]
        known = "" if rand is None else f"; adjusted Rand index with the known groups {rand:.2f}"
        out.append(f"{found['number']} clusters of {sizes}{known}")
    return out
