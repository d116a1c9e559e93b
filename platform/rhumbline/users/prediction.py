"""How often a predictor names what a person chose, beside what needs no model, with intervals over people and questions.

    draws = Draws(num_users=U, num_questions=Q, num_resamples=1000, seed=0)
    credit_UQ = credits(people.choices_UQ, p_UQA)          # 1 right, 0 wrong, a share of equal favourites, NaN not predicted
    accuracy(credit_UQ, draws)                             # Interval(value=0.71, low=0.66, high=0.75)
    majority(people), uniform(people), neighbours(people, shown)        # the baselines, each as (U, Q, A)

Every predictor gives probabilities p_UQA of the options, NaN where it says nothing. U users, Q questions, A options of the
question that has most, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rhumbline.evaluation.bootstrap import Interval, prompt_counts
from rhumbline.users.population import Floats, Ints, Population

SMALLEST = 1e-6  # what a probability counts at least in a log loss: a parsed choice is otherwise sure of itself
TRUST = (
    2.0  # by how much a neighbour's voice grows with each demonstration answered alike, and shrinks with each other one
)


class Draws:
    """B draws of people and of questions, each with replacement and independently, so that accuracies pair up."""

    def __init__(self, *, num_users: int, num_questions: int, num_resamples: int, seed: int) -> None:
        self.users_BU = prompt_counts(num_users, num_resamples, seed)
        self.questions_BQ = prompt_counts(num_questions, num_resamples, seed + 1)

    def means(self, values_UQ: Floats) -> Floats:
        """(B,) means over the cells that are not NaN, each weighing how often its person and its question were drawn.

        NaN where a draw holds no such cell.
        """
        has_UQ = np.isfinite(values_UQ)
        weight_B = ((self.users_BU @ has_UQ.astype(np.float64)) * self.questions_BQ).sum(axis=1)
        total_B = ((self.users_BU @ np.where(has_UQ, values_UQ, 0.0)) * self.questions_BQ).sum(axis=1)
        out: Floats = np.divide(total_B, weight_B, out=np.full(len(total_B), np.nan), where=weight_B > 0)
        return out


def credits(choices_UQ: Ints, p_UQA: Floats) -> Floats:
    """(U, Q) 1 where the likeliest option was chosen, 1/n where it is one of n that are equally likely, else 0.

    NaN where nothing was predicted or nothing was chosen.
    """
    best_UQ = np.where(np.isnan(p_UQA), -np.inf, p_UQA).max(axis=2)
    favourite_UQA = (p_UQA >= best_UQ[:, :, None] - 1e-9) & np.isfinite(best_UQ)[:, :, None]
    of_choice_UQ = _of_choice(choices_UQ, favourite_UQA.astype(np.float64))
    out: Floats = of_choice_UQ / np.maximum(favourite_UQA.sum(axis=2), 1)
    return np.where(np.isfinite(best_UQ), out, np.nan)


def log_losses(choices_UQ: Ints, p_UQA: Floats) -> Floats:
    """(U, Q) -log of the probability that the chosen option was given, in nats; NaN where there is none."""
    out: Floats = -np.log(np.maximum(_of_choice(choices_UQ, p_UQA), SMALLEST))
    return out


def accuracy(values_UQ: Floats, draws: Draws) -> Interval:
    """The mean over all predicted cells, with its 95% interval over people and questions. NaN of none."""
    if not np.isfinite(values_UQ).any():
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"))
    return Interval.of(float(np.nanmean(values_UQ)), draws.means(values_UQ))


def beyond(credit_UQ: Floats, baseline_UQ: Floats, draws: Draws) -> Interval:
    """How much more accurate one predictor is than another one, over the cells that both predict."""
    return accuracy(credit_UQ - baseline_UQ, draws)


def measured(
    choices_UQ: Ints, predictions: Mapping[str, Floats], baseline: str | None, draws: Draws
) -> list[dict[str, float | int | str | None]]:
    """A line per predictor: how many choices it predicted, accuracy, log loss, and its lead over the predictor `baseline`."""
    credit = {name: credits(choices_UQ, p_UQA) for name, p_UQA in predictions.items()}
    lines: list[dict[str, float | int | str | None]] = []
    for name, p_UQA in predictions.items():
        line: dict[str, float | int | str | None] = {"predictor": name, "n": int(np.isfinite(credit[name]).sum())}
        figures = {
            "accuracy": accuracy(credit[name], draws),
            "log_loss": accuracy(log_losses(choices_UQ, p_UQA), draws),
        }
        if baseline is not None and name != baseline:
            figures[f"beyond_{baseline}"] = beyond(credit[name], credit[baseline], draws)
        for key, one in figures.items():
            found = one.to_json()
            line |= {key: found["value"], f"{key}_low": found["low"], f"{key}_high": found["high"]}
        lines.append(line)
    return lines


# --- predictors without a model ---------------------------------------------------------------------------------------


def chance(people: Population) -> Floats:
    """Every option as likely."""
    sizes_Q = people.num_options
    option_A = np.arange(int(sizes_Q.max(initial=0)))
    even_QA = np.where(option_A < sizes_Q[:, None], 1.0 / np.maximum(sizes_Q, 1)[:, None], 0.0)
    return np.broadcast_to(even_QA, (len(people.users), *even_QA.shape)).copy()


def uniform(people: Population) -> Floats | None:
    """The report's baseline: everybody chooses as the one who weighs everything the same. None where nobody knows that one."""
    if people.uniform_Q is None:
        return None
    said_QA = _indicators(people.uniform_Q[None], people)[0]
    said_QA = np.where((people.uniform_Q >= 0)[:, None], said_QA, np.nan)
    return np.broadcast_to(said_QA, (len(people.users), *said_QA.shape)).copy()


def majority(people: Population) -> Floats:
    """The shares of the *other* people who chose at the question; NaN where nobody else did.

    Of real people, whose weights nobody knows, this stands where the uniform user stands for simulated ones: one answer for
    all. It has seen others at the very question, as `uniform` has seen its ratings.
    """
    said_UQA = _indicators(people.choices_UQ, people)
    others_UQA = said_UQA.sum(axis=0) - said_UQA
    return _shares(others_UQA)


def neighbours(people: Population, shown: Mapping[int, Sequence[int]]) -> Floats:
    """The shares of other people, each with a voice of TRUST ** (answered alike - answered otherwise) at the demonstrations.

    shown: user index -> question indices whose answers are known of that user; other users, and users at these questions,
    are not predicted. Others' choices are all known, as `majority` knows them.
    """
    said_UQA = _indicators(people.choices_UQ, people)
    chosen_UQ = people.chosen
    out = np.full(said_UQA.shape, np.nan)
    for user, asked in shown.items():
        both_US = chosen_UQ[:, list(asked)] & chosen_UQ[user, list(asked)]
        alike_US = people.choices_UQ[:, list(asked)] == people.choices_UQ[user, list(asked)]
        voice_U = TRUST ** np.where(both_US, np.where(alike_US, 1.0, -1.0), 0.0).sum(axis=1)
        voice_U[user] = 0.0
        out[user] = _shares(np.tensordot(voice_U, said_UQA, axes=(0, 0)))
        out[user, list(asked)] = np.nan
    return out


def _indicators(choices_UQ: Ints, people: Population) -> Floats:
    """(U, Q, A) 1 for what was chosen, zeros where nothing was."""
    option_A = np.arange(int(people.num_options.max(initial=0)))
    out: Floats = (choices_UQ[:, :, None] == option_A).astype(np.float64)
    return out


def _shares(counts: Floats) -> Floats:
    total = counts.sum(axis=-1, keepdims=True)
    out: Floats = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    return out


def _of_choice(choices_UQ: Ints, values_UQA: Floats) -> Floats:
    """(U, Q) the value of the chosen option; NaN where nothing was chosen."""
    at_UQ1 = np.maximum(choices_UQ, 0)[:, :, None]
    found_UQ = np.take_along_axis(values_UQA, at_UQ1, axis=2)[:, :, 0]
    return np.where(choices_UQ >= 0, found_UQ, np.nan)
