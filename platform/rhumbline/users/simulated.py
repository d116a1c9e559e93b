"""People who do not exist: directions drawn by a law, answers given by a choice model that may differ from the quiz's.

    people = draw("dirichlet", cone, rng, 100)                  # (100, K): 99 of Dirichlet(1, ..., 1) and the uniform one
    someone = SimulatedUser(direction=tuple(people[0]), manner=MANNERS["noisy"])
    someone.choose((0.9, 1.2), rng)                             # 'a', 'b' or 'tie'
    answer_all(people, d_UK, MANNERS["consistent"], rng)        # (U,) at once

The laws `dirichlet` and `clusters` are system C's simulated users: weights on the simplex, here with the signs of the cone's
axis, normalised to length one and pulled back into the cone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rhumbline.directions import Cone, Direction
from rhumbline.errors import ConfigError, did_you_mean
from rhumbline.users.posterior import TIE, A, Array, B, ChoiceModel, choice_probabilities

Traits = tuple[Array | np.float64, Array | np.float64]  # beta and nu, (U,) or one for all
LAWS = ("uniform", "dirichlet", "clusters")
# Shares and concentrations of system C's second population; the hundredth user is the uniform one.
CLUSTERS: tuple[tuple[int, tuple[float, ...]], ...] = (
    (49, (2.5, 2.5, 2.5, 2.5)),
    (30, (0.7, 0.3, 6.0, 3.0)),
    (20, (7.5, 0.5, 1.2, 0.8)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a simulated person answers."""

    beta: float  # median; per standard deviation of reward along the direction
    lapse: float = 0.0  # share of answers that are chance
    nu: float = 0.0  # readiness to call a tie; 0: never
    wobble_deg: float = 0.0  # every answer goes by a direction this far from the person's own, root mean square
    beta_spread: float = 0.0  # standard deviation of log beta from person to person
    nu_spread: float = 0.0  # of log nu


_EXPECTED = ChoiceModel()
MANNERS: dict[str, Manner] = {
    "consistent": Manner(beta=3.0),
    "with_ties": Manner(beta=3.0, nu=0.5),
    "assumed": Manner(  # people as the quiz expects them before the first answer
        beta=_EXPECTED.beta,
        lapse=_EXPECTED.lapse,
        nu=_EXPECTED.nu,
        beta_spread=_EXPECTED.beta_spread,
        nu_spread=_EXPECTED.nu_spread,
    ),
    "noisy": Manner(beta=1.5, lapse=0.05, nu=0.5),
    "inconsistent": Manner(beta=3.0, lapse=0.15, nu=0.5, wobble_deg=15.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedUser:
    """One person."""

    direction: Direction  # (K,) unit vector
    manner: Manner

    def choose(self, d_K: Sequence[float], rng: np.random.Generator) -> Literal["a", "b", "tie"]:
        """The answer to a comparison; d_K are a's standardised rewards less b's."""
        code = int(answer_all([self.direction], [d_K], self.manner, rng)[0])
        return "a" if code == A else "b" if code == B else "tie"


def answer_all(
    direction_UK: ArrayLike, d_UK: ArrayLike, manner: Manner, rng: np.random.Generator, traits: Traits | None = None
) -> NDArray[np.int64]:
    """One answer of each person: A, B or TIE, (U,). Equal generators give equal luck, whatever is asked.

    traits: each person's own beta and nu, from `traits_of`; by default everybody has the manner's.
    """
    w_UK, d = np.asarray(direction_UK, dtype=np.float64), np.asarray(d_UK, dtype=np.float64)
    beta_U, nu_U = (np.float64(manner.beta), np.float64(manner.nu)) if traits is None else traits
    luck_U, wobble_UK = rng.random(len(w_UK)), rng.standard_normal(w_UK.shape)  # always drawn
    if manner.wobble_deg > 0:
        wobble_UK -= np.einsum("uk,uk->u", wobble_UK, w_UK)[:, None] * w_UK
        w_UK = w_UK + math.tan(math.radians(manner.wobble_deg)) * wobble_UK / math.sqrt(w_UK.shape[1] - 1)
        w_UK = w_UK / np.linalg.norm(w_UK, axis=1, keepdims=True)
    x_U = beta_U * np.einsum("uk,uk->u", w_UK, d)
    p_a, p_b, _ = choice_probabilities(x_U, nu_U, manner.lapse, manner.nu > 0)
    # b first and a last on the unit interval, ties between: the same luck leans the same way for every question.
    out: NDArray[np.int64] = np.where(luck_U < p_b, B, np.where(luck_U >= 1 - p_a, A, TIE)).astype(np.int64)
    return out


def traits_of(manner: Manner, rng: np.random.Generator, n: int) -> Traits:
    """beta (n,) and nu (n,) of n persons of a manner, log-normal around its medians."""
    beta_U = manner.beta * np.exp(manner.beta_spread * rng.standard_normal(n))
    return beta_U, manner.nu * np.exp(manner.nu_spread * rng.standard_normal(n))


def draw(law: str, cone: Cone, rng: np.random.Generator, n: int) -> Array:
    """n persons' directions within the cone, (n, K).

    uniform: uniform on the cone. dirichlet: n - 1 from Dirichlet(1, ..., 1), then the uniform weights. clusters (K=4): 49, 30
    and 20 of a hundred from system C's three Dirichlets, then the uniform weights. Raises ConfigError.
    """
    if law == "uniform":
        return cone.sample(rng, n)
    if law not in LAWS:
        raise ConfigError(f"unknown law of simulated users {law!r}.{did_you_mean(law, LAWS)} Known: {', '.join(LAWS)}")
    K = len(cone.names)
    if law == "dirichlet":
        weights_NK = np.concatenate([rng.dirichlet(np.ones(K), n - 1), np.full((1, K), 1 / K)])
    else:
        if K != 4:
            raise ConfigError(f"the law clusters has 4 objectives, the cone {K} ({', '.join(cone.names)})")
        weights_NK = np.concatenate([cluster_weights(rng, n - 1), np.full((1, K), 1 / K)])
    signs_K = np.where(np.asarray(cone.axis) < -1e-12, -1.0, 1.0)
    return np.array([cone.project(w_K * signs_K)[0] for w_K in weights_NK])


def cluster_weights(rng: np.random.Generator, n: int) -> Array:
    """(n, 4) weights on the simplex, n shared among system C's clusters as 49:30:20, the first ones taking what is over."""
    total = sum(share for share, _ in CLUSTERS)
    sizes = [n * share // total for share, _ in CLUSTERS]
    for extra in range(n - sum(sizes)):
        sizes[extra % len(sizes)] += 1
    return np.concatenate([rng.dirichlet(alpha, size) for size, (_, alpha) in zip(sizes, CLUSTERS, strict=True)])
