"""Simulated people of system C: a user is a point w of the simplex, and prefers the answer with the largest w . ratings.

    weights_UK = random_tastes(4, num_users=100, seed=0)     # the last user weighs all ratings the same
    people = simulated("rated.jsonl", ratings=["helpfulness", "honesty"], law="random", num_users=100, options=4, seed=0)

Of each prompt only answers stay that no other one dominates: a dominated one is nobody's favourite, so it divides nobody.
U users, K ratings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import moocore
import numpy as np

from rhumbline.data.ratings import Rated, load_ratings
from rhumbline.errors import DataError, did_you_mean
from rhumbline.users.population import Floats, Population, Question, User, of_answers

# Shares of the people and the Dirichlet parameters of their weights, over four ratings (the report, section 3.3.1).
CLUSTERS = (
    (49 / 99, (2.5, 2.5, 2.5, 2.5)),
    (30 / 99, (0.7, 0.3, 6.0, 3.0)),
    (20 / 99, (7.5, 0.5, 1.2, 0.8)),
)
UNIFORM = "uniform"  # the id of the one who weighs everything the same


def random_tastes(num_ratings: int, num_users: int, seed: int) -> Floats:
    """(U, K) weights: num_users - 1 of Dirichlet(1, ..., 1), then the uniform one."""
    drawn = np.random.default_rng(seed).dirichlet(np.ones(num_ratings), size=num_users - 1)
    return np.vstack([drawn, np.full(num_ratings, 1 / num_ratings)])


def clustered_tastes(num_users: int, seed: int) -> tuple[Floats, list[str]]:
    """(U, 4) weights of the report's three clusters, with 100 users 49, 30 and 20 of them, then the uniform one; and U names."""
    rng = np.random.default_rng(seed)
    ends = np.rint(np.cumsum([share for share, _ in CLUSTERS]) * (num_users - 1)).astype(int)
    sizes = np.diff(ends, prepend=0).tolist()
    drawn = [rng.dirichlet(law, size=size) for size, (_, law) in zip(sizes, CLUSTERS, strict=True)]
    groups = [str(c) for c, size in enumerate(sizes) for _ in range(size)]
    return np.vstack([*drawn, np.full(4, 0.25)]), [*groups, UNIFORM]


def simulated(
    path: str,
    *,
    ratings: Sequence[str] | None,
    law: Literal["random", "clusters"],
    num_users: int,
    options: int,
    seed: int,
) -> Population:
    """Simulated users at the prompts of a file of rated answers. Raises DataError where nothing is left to choose at.

    ratings: names in the order of the weights, None for all that the file has; answers that lack one are left out.
    options: of a prompt with more answers that nobody dominates, so many are drawn.
    """
    rated = load_ratings(path)
    known = list(dict.fromkeys(name for one in rated for name in one.ratings))
    names = known if ratings is None else list(ratings)
    for name in names:
        if name not in known:
            near = did_you_mean(name, known)
            raise DataError(f"{path}: no rating {name!r}.{near} The file has: {', '.join(known)} (people.ratings)")
    if law == "clusters" and len(names) != 4:
        raise DataError(
            f"{path}: people.law clusters is of four ratings, the file has {', '.join(names)}: name four in people.ratings"
        )
    if law == "clusters":
        weights_UK, groups = clustered_tastes(num_users, seed)
    else:
        weights_UK, groups = random_tastes(len(names), num_users, seed), []
    ids = [*(f"user-{u}" for u in range(num_users - 1)), UNIFORM]
    users = [User(id=id_, group=groups[u] if groups else None) for u, id_ in enumerate(ids)]

    by_prompt: dict[str, list[Rated]] = defaultdict(list)
    for one in rated:
        if all(name in one.ratings for name in names):
            by_prompt[one.prompt.id].append(one)
    rng = np.random.default_rng(seed)
    questions, answers, uniform = [], [], {}
    for id_, several in by_prompt.items():
        several = list({one.response: one for one in several}.values())
        scores_AK = np.array([[one.ratings[name] for name in names] for one in several])
        kept = np.flatnonzero(moocore.is_nondominated(scores_AK, maximise=True))  # of equal ones, the first alone
        if len(kept) < 2:
            continue
        kept = rng.permutation(kept)[:options]
        value_UA = weights_UK @ scores_AK[kept].T
        first = several[kept[0]]
        texts = tuple(several[i].response for i in kept)
        questions.append(Question(id=id_, messages=first.prompt.messages, options=texts, split=first.split))
        chosen_U = value_UA.argmax(axis=1)
        answers += [(user, id_, int(choice)) for user, choice in zip(ids, chosen_U, strict=True)]
        uniform[id_] = int(chosen_U[-1])
    if not questions:
        raise DataError(
            f"{path}: no prompt has two answers of which none dominates the other in {', '.join(names)}, so nobody would "
            "disagree about them: take other ratings, or a file with several answers to a prompt"
        )
    return of_answers(path, users, questions, answers, uniform)
