"""Which comparison to ask next. Choosers look at the posterior and at the candidates' differences of rewards, nothing else.

    choose = CHOOSERS["bald"]
    n_U = choose(person, d_UNK, open_UN, rng)      # an open candidate for each person
    greedy(answers_UQ, 8)                          # system C: the questions that split a set of users best

    bald       the answer says most about the direction: I(y; w | d) = H(E p) - E H(p)          (Houlsby and others 2011)
    d_optimal  det(L + sum p (1 - p) d d') grows most, at the current estimate                  (as PReF and APReL do)
    greedy     splits the users of the prior most, with the questions before: I(U; Q_j | Q_S)   (system C, equation 3)
    random     any

U persons, M particles, N candidates, K objectives, C answers on offer. Information is in nats.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rhumbline.directions import Cone
from rhumbline.errors import DataError
from rhumbline.users.posterior import Array, ChoiceModel, Particles, choice_probabilities, in_chunks

Ints = NDArray[np.int64]
Open = NDArray[np.bool_]
Chooser = Callable[[Particles, Array, Open, np.random.Generator], Ints]
SCORED_ON = 256  # particles that candidates are scored on; the study's figures are with these
PRIOR_USERS = 256  # of the greedy choice


def bald(person: Particles, d_UNK: Array, open_UN: Open, _rng: np.random.Generator) -> Ints:
    """The open candidate with the largest `information` of each person, (U,)."""
    w_UMK, beta_UM, nu_UM = person.thinned(min(SCORED_ON, person.w_UMK.shape[1]))
    # At typical values of beta and nu: what an answer would say about those is no reason to ask.
    beta_U, nu_U = np.exp(np.log(beta_UM).mean(axis=1)), np.exp(np.log(nu_UM).mean(axis=1))
    return _best(information(w_UMK, beta_U, nu_U, d_UNK, person.model), open_UN)


def information(w_UMK: Array, beta_U: Array, nu_U: Array, d_UNK: Array, model: ChoiceModel) -> Array:
    """(U, N) mutual information of a candidate's answer and the direction, w_UMK being equally weighted directions.

    I(y; w | d) = H(mean over M of p(y | w, d)) - mean over M of H(p(y | w, d)). Two answers that score the same give 0 where
    no tie is on offer, whatever the posterior: nobody's answer would say anything.
    """
    out_UN = np.zeros(d_UNK.shape[:2])
    for rows in in_chunks(np.arange(len(d_UNK)), d_UNK.shape[1] * w_UMK.shape[1]):
        x_UNM = (d_UNK[rows] @ w_UMK[rows].transpose(0, 2, 1)) * beta_U[rows, None, None]
        shares = choice_probabilities(x_UNM, nu_U[rows, None, None], model.lapse, model.ties)
        for p_UNM in shares[: model.answers]:
            out_UN[rows] += _entropy_term(p_UNM.mean(axis=2)) - _entropy_term(p_UNM).mean(axis=2)
    return out_UN


def d_optimal(person: Particles, d_UNK: Array, open_UN: Open, _rng: np.random.Generator) -> Ints:
    """The open candidate that raises log det(L + sum I(x) d d') most, (U,).

    theta = beta w at the current estimate; I(x) is the Fisher information of one answer about x, p (1 - p) without ties;
    L is the inverse covariance of theta before the first answer.
    """
    model = person.model
    w_UMK, beta_UM, nu_UM = person.thinned(min(SCORED_ON, person.w_UMK.shape[1]))
    theta_UK = (beta_UM[:, :, None] * w_UMK).mean(axis=1)
    nu_U1 = np.exp(np.log(nu_UM).mean(axis=1))[:, None]
    before_MK = person.cone.sample(np.random.default_rng(0), 2048) * model.beta
    precision_UKK = np.linalg.inv(np.cov(before_MK.T) + 1e-6 * np.eye(before_MK.shape[1]))[None]
    asked_UQ = _fisher(np.einsum("uqk,uk->uq", person.d_UQK, theta_UK), nu_U1, model)
    precision_UKK = precision_UKK + np.einsum("uq,uqk,uql->ukl", asked_UQ, person.d_UQK, person.d_UQK)
    gain_UN = _fisher(np.einsum("unk,uk->un", d_UNK, theta_UK), nu_U1, model)
    # det(H + g d d') = det(H) (1 + g d' H^-1 d)
    gain_UN = gain_UN * np.einsum("unk,ukl,unl->un", d_UNK, np.linalg.inv(precision_UKK), d_UNK)
    return _best(gain_UN, open_UN)


def random(_person: Particles, _d_UNK: Array, open_UN: Open, rng: np.random.Generator) -> Ints:
    """Any open candidate, each as likely, (U,)."""
    return _best(rng.random(open_UN.shape), open_UN)


def greedy_choice(person: Particles, d_UNK: Array, open_UN: Open, _rng: np.random.Generator) -> Ints:
    """The open candidate that, with those asked before, splits the users of the prior most, (U,).

    It looks at what was asked but not at what was answered: the set is the same for everybody with the same candidates.
    """
    users_MK = _prior_users(person.cone)
    out = np.zeros(len(d_UNK), dtype=np.int64)
    for u, d_NK in enumerate(d_UNK):
        so_far_M = _patterns((users_MK @ person.d_UQK[u].T > 0).astype(np.int64))
        gain_N = set_information(so_far_M, (users_MK @ d_NK.T > 0).astype(np.int64))
        out[u] = _best(gain_N[None], open_UN[u][None])[0]
    return out


CHOOSERS: dict[str, Chooser] = {"bald": bald, "d_optimal": d_optimal, "greedy": greedy_choice, "random": random}


def greedy(answers_UQ: ArrayLike, count: int) -> list[tuple[int, float]]:
    """System C's demonstrations: `count` questions, one after the other, each with I(U; Q_S) once it is in S.

    answers_UQ: which answer each of U users, all as likely, takes to each question, as whole numbers. Users choose for
    certain, so I(U; Q_S) is the entropy of their patterns of answers to S: mean over users of -log(share of users with the
    same pattern), the paper's equation 3 with its missing 1/|U|. Stops early where no question splits anybody further.
    Raises DataError for a table that is empty or has no whole numbers.
    """
    answers = np.asarray(answers_UQ)
    if answers.ndim != 2 or not answers.size or not np.issubdtype(answers.dtype, np.integer):
        raise DataError(
            f"answers must be whole numbers, users by questions, got {answers.dtype} of shape {answers.shape}"
        )
    chosen: list[tuple[int, float]] = []
    codes_U, known = np.zeros(len(answers), dtype=np.int64), 0.0
    while len(chosen) < count:
        total_Q = set_information(codes_U, answers)
        best = int(np.argmax(total_Q))
        if total_Q[best] <= known + 1e-12:
            break
        known = float(total_Q[best])
        chosen.append((best, known))
        codes_U = _patterns(np.stack([codes_U, answers[:, best]], axis=1))
    return chosen


def set_information(codes_U: Ints, answers_UN: Ints) -> Array:
    """(N,) entropy over users of the pair (pattern so far, answer to candidate n): I(U; Q_S and n)."""
    U, N = answers_UN.shape
    _, answer_UN = np.unique(answers_UN, return_inverse=True)
    answer_UN = answer_UN.reshape(U, N)
    width = int(answer_UN.max()) + 1
    height = (int(codes_U.max()) + 1) * width
    joint_UN = codes_U[:, None] * width + answer_UN + height * np.arange(N)
    counts_N = np.bincount(joint_UN.ravel(), minlength=height * N).reshape(N, height)
    out: Array = _entropy_term(counts_N / U).sum(axis=1)
    return out


def _patterns(answers_UQ: Ints) -> Ints:
    """(U,) a small number for each distinct row."""
    if answers_UQ.shape[1] == 0:
        return np.zeros(len(answers_UQ), dtype=np.int64)
    _, codes_U = np.unique(answers_UQ, axis=0, return_inverse=True)
    return np.asarray(codes_U, dtype=np.int64).reshape(-1)


def _prior_users(cone: Cone) -> Array:
    return cone.sample(np.random.default_rng(0), PRIOR_USERS)


def _fisher(x: Array, nu: Array, model: ChoiceModel) -> Array:
    """Information of one answer about x: the variance of +1/2 (a), -1/2 (b), 0 (tie); p (1 - p) without ties."""
    p_a, p_b, _ = choice_probabilities(x, nu, 0.0, model.ties)
    return np.asarray((p_a + p_b) / 4 - np.square(p_a - p_b) / 4)


def _entropy_term(p: Array) -> Array:
    """-p log p, 0 at 0."""
    return np.asarray(-p * np.log(np.maximum(p, 1e-300)))


def _best(value_UN: Array, open_UN: Open) -> Ints:
    if not open_UN.any(axis=1).all():
        raise DataError("there is no question left to ask")
    return np.asarray(np.argmax(np.where(open_UN, value_UN, -np.inf), axis=1), dtype=np.int64)
