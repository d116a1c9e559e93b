"""Over what people differ: how many chose each answer, and how often every two of them chose differently. Over `population`.

    counts_QA = counts(people)                     # users per answer; figure 2 of the report
    differed_UU, compared_UU = disagreements(people)             # its figure 5
    divided = division(people)                     # one line per question, the most divided first

U users, Q questions, A options of the question that has most.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rhumbline.users.population import PASSED, Floats, Ints, Population


def counts(people: Population) -> Ints:
    """(Q, A) how many users chose each answer; zero where a question has fewer options."""
    options = np.arange(int(people.num_options.max(initial=0)))
    found: Ints = (people.choices_UQ[:, :, None] == options).sum(axis=0, dtype=np.int64)
    return found


def disagreements(people: Population) -> tuple[Ints, Ints]:
    """(U, U) questions at which two users chose differently, and (U, U) questions at which both chose at all."""
    options = np.arange(int(people.num_options.max(initial=0)))
    said_UQA = (people.choices_UQ[:, :, None] == options).astype(np.float64)
    flat = said_UQA.reshape(len(people.users), -1)
    chosen_UQ = people.chosen.astype(np.float64)
    compared_UU = np.rint(chosen_UQ @ chosen_UQ.T).astype(np.int64)
    return compared_UU - np.rint(flat @ flat.T).astype(np.int64), compared_UU


def entropies(counts_QA: Ints) -> Floats:
    """(Q,) entropy in nats of how the users who chose divide over the answers; 0 where nobody chose."""
    total_Q = counts_QA.sum(axis=1)
    share_QA = counts_QA / np.maximum(total_Q, 1)[:, None]
    safe_QA = np.where(share_QA > 0, share_QA, 1.0)
    out: Floats = -(share_QA * np.log(safe_QA)).sum(axis=1) + 0.0  # no -0.0
    return out


def division(people: Population) -> list[dict[str, Any]]:
    """A line per question, by falling entropy: its id, users per answer, passes, the share outside the majority, entropy."""
    counts_QA, passed_Q = counts(people), (people.choices_UQ == PASSED).sum(axis=0)
    entropy_Q, total_Q = entropies(counts_QA), counts_QA.sum(axis=1)
    out: list[dict[str, Any]] = []
    for q in np.argsort(-entropy_Q, kind="stable"):
        question = people.questions[q]
        out.append(
            {
                "question": question.id,
                "split": question.split,
                "chose": int(total_Q[q]),
                "passed": int(passed_Q[q]),
                **{f"answer_{a}": int(counts_QA[q, a]) for a in range(len(question.options))},
                "minority": float(1 - counts_QA[q].max() / total_Q[q]) if total_Q[q] else None,
                "entropy": float(entropy_Q[q]),
            }
        )
    return out


def summary(people: Population) -> dict[str, float | None]:
    """Figures over all questions and pairs of users. `minority`: the mean share of users outside a question's majority.

    `differed` is the share of (pair of users, question that both chose at) with two different choices.
    """
    counts_QA = counts(people)
    total_Q = counts_QA.sum(axis=1)
    several = total_Q >= 2
    differed_UU, compared_UU = disagreements(people)
    above = np.triu_indices(len(people.users), 1)
    compared = int(compared_UU[above].sum())
    chose = int(total_Q.sum())
    return {
        "users": len(people.users),
        "questions": len(people.questions),
        "choices": chose,
        "passes": int((people.choices_UQ == PASSED).sum()),
        "asked_share": float(people.answered.mean()),
        "first_answer_share": float(counts_QA[:, 0].sum() / chose) if chose else None,
        "questions_with_two_choosers": int(several.sum()),
        "minority": float((1 - counts_QA[several].max(axis=1) / total_Q[several]).mean()) if several.any() else None,
        "differed": float(differed_UU[above].sum() / compared) if compared else None,
    }
