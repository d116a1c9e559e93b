"""The posterior over directions: the choice model by hand, particles against brute force, and calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rhumbline.directions import Cone
from rhumbline.errors import ConfigError, DirectionError
from rhumbline.users.posterior import (
    TIE,
    A,
    B,
    ChoiceModel,
    Particles,
    angles_deg,
    choice_probabilities,
    weighted_quantile,
)

ARC = Cone(("helpfulness", "verbosity"), (1.0, -0.4), 45.0)
KNOWN = ChoiceModel(beta_spread=0.0, lapse=0.03, ties=True, nu_spread=0.0)
ASKED = [(1.2, 0.7), (-0.4, 1.9), (1.5, 2.5), (0.8, 2.2), (-1.0, -2.4), (1.4, 0.9), (2.0, 2.6)]
ANSWERS = [A, B, TIE, A, B, A, TIE]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def after(model: ChoiceModel, particles: int = 4096, seed: int = 0) -> Particles:
    person = Particles(ARC, rng(seed), particles=particles, model=model)
    for d, answer in zip(ASKED, ANSWERS, strict=True):
        person.update([d], [answer])
    return person


def test_davidsons_probabilities_by_hand() -> None:
    # x = 2 ln 2: e^(x/2) = 2, e^(-x/2) = 1/2, nu = 1/2; they add up to 3.
    a, b, tie = choice_probabilities(2 * math.log(2), 0.5, 0.0, True)
    assert [float(a), float(b), float(tie)] == pytest.approx([2 / 3, 1 / 6, 1 / 6])
    a, b, tie = choice_probabilities(0.0, 0.5, 0.3, True)  # 0.7 * (0.4, 0.4, 0.2) + 0.1
    assert [float(a), float(b), float(tie)] == pytest.approx([0.38, 0.38, 0.24])
    a, b, tie = choice_probabilities(1.5, 99.0, 0.1, False)  # nu is not read
    assert [float(a), float(b), float(tie)] == pytest.approx(
        [0.9 / (1 + math.exp(-1.5)) + 0.05, 0.9 / (1 + math.exp(1.5)) + 0.05, 0]
    )


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0.01, 20), st.floats(0, 0.9), st.booleans())
def test_probabilities_add_up_and_swap_with_the_sides(x: float, nu: float, lapse: float, ties: bool) -> None:
    a, b, tie = (float(p) for p in choice_probabilities(x, nu, lapse, ties))
    assert a + b + tie == pytest.approx(1)
    assert min(a, b) >= 0
    swapped = [float(p) for p in choice_probabilities(-x, nu, lapse, ties)]
    assert swapped == pytest.approx([b, a, tie])


def test_particles_agree_with_a_grid_where_beta_is_known() -> None:
    angle_G = np.radians(np.linspace(-45, 45, 20_001)) + math.atan2(ARC.axis[1], ARC.axis[0])
    w_GK = np.stack([np.cos(angle_G), np.sin(angle_G)], axis=1)
    weight_G = likelihood(w_GK, np.full(len(w_GK), KNOWN.beta), np.full(len(w_GK), KNOWN.nu), KNOWN)
    check_against(after(KNOWN), w_GK, weight_G / weight_G.sum())


def test_particles_agree_with_importance_sampling_where_beta_and_nu_are_not_known() -> None:
    model, draws = ChoiceModel(), rng(5)
    w_GK = ARC.sample(draws, 300_000)
    beta_G = np.exp(math.log(model.beta) + model.beta_spread * draws.standard_normal(len(w_GK)))
    nu_G = np.exp(math.log(model.nu) + model.nu_spread * draws.standard_normal(len(w_GK)))
    weight_G = likelihood(w_GK, beta_G, nu_G, model)
    person = after(model)
    check_against(person, w_GK, weight_G / weight_G.sum())
    told = float((person.weights() * person.log_beta_UM).sum())
    assert told == pytest.approx(float((weight_G * np.log(beta_G)).sum() / weight_G.sum()), abs=0.06)


def likelihood(w_GK: np.ndarray, beta_G: np.ndarray, nu_G: np.ndarray, model: ChoiceModel) -> np.ndarray:
    """Of ASKED and ANSWERS, written out as the docstring has it."""
    out_G = np.ones(len(w_GK))
    for d, answer in zip(ASKED, ANSWERS, strict=True):
        x_G = beta_G * (w_GK @ np.array(d))
        terms = np.stack([np.exp(x_G / 2), np.exp(-x_G / 2), nu_G])
        out_G *= (1 - model.lapse) * (terms / terms.sum(axis=0))[answer] + model.lapse / 3
    return out_G


def check_against(person: Particles, w_GK: np.ndarray, weight_G: np.ndarray) -> None:
    mean_K = weight_G @ w_GK
    mean_K /= np.linalg.norm(mean_K)
    assert float(angles_deg(person.mean()[0], mean_K)) < 0.7
    half = weighted_quantile(angles_deg(w_GK, mean_K)[None], weight_G[None], 0.9)[0]
    assert person.half_angle_deg()[0] == pytest.approx(half, rel=0.08)


def test_particles_stay_in_the_cone_and_are_renewed_when_few_count() -> None:
    cone = Cone(("a", "b", "c"), (1.0, 1.0, -1.0), 30.0)
    person = Particles(cone, rng(), persons=3, particles=512)
    for t in range(8):
        person.update(rng(t).normal(0, 2, (3, 3)), [A, B, A])
    assert all(cone.contains(w_K) for w_K in person.w_UMK.reshape(-1, 3))
    assert np.linalg.norm(person.w_UMK, axis=2) == pytest.approx(1)
    assert (person.effective_sizes() >= 256).all()
    assert 0.1 < person.acceptance < 0.9
    assert len(np.unique(person.w_UMK[0], axis=0)) > 256  # moved apart, not copies
    assert np.exp(person.log_weight_UM).sum(axis=1) == pytest.approx(1)


def test_equal_seeds_give_equal_particles() -> None:
    assert after(ChoiceModel(), 256, seed=3).mean().tolist() == after(ChoiceModel(), 256, seed=3).mean().tolist()
    assert after(ChoiceModel(), 256, seed=3).mean().tolist() != after(ChoiceModel(), 256, seed=4).mean().tolist()


def test_an_answer_moves_the_estimate_to_its_side_and_a_tie_to_the_boundary() -> None:
    d = (0.5, 1.5)
    means = {}
    for answer in (A, B, TIE):
        person = Particles(ARC, rng(), particles=2048)
        person.update([d], [answer])
        means[answer] = float(person.mean()[0] @ np.array(d))
    assert means[A] > means[TIE] > means[B]
    assert abs(means[TIE]) < min(means[A], -means[B])


def test_the_credible_region_is_calibrated() -> None:
    """The mass nearer to the mean than the truth is uniform on [0, 1] where people answer as the model has it."""
    model = ChoiceModel(beta_spread=0.0, nu_spread=0.0)
    cone, persons, draws = Cone(("a", "b", "c"), (1.0, 1.0, 1.0), 45.0), 400, rng(2)
    truth_UK = cone.sample(draws, persons)
    person = Particles(cone, rng(3), persons=persons, particles=512, model=model)
    for _ in range(5):
        d_UK = draws.normal(0, 1.4, (persons, 3))
        x_U = model.beta * (truth_UK * d_UK).sum(axis=1)
        p_a, p_b, _ = choice_probabilities(x_U, model.nu, model.lapse, True)
        luck_U = draws.random(persons)
        person.update(d_UK, np.where(luck_U < p_a, A, np.where(luck_U < p_a + p_b, B, TIE)))
    assert stats.kstest(person.mass_within(truth_UK), "uniform").pvalue > 0.001


def test_a_mean_that_has_no_direction_is_the_axis() -> None:
    person = Particles(Cone(("a", "b"), (0.6, 0.8), 180.0), rng(), particles=16)
    person.w_UMK = np.tile([[1.0, 0.0], [-1.0, 0.0]], (8, 1))[None]
    assert person.mean()[0].tolist() == pytest.approx([0.6, 0.8])


def test_weighted_quantiles_by_hand() -> None:
    values, weights = np.array([[3.0, 1.0, 2.0]]), np.array([[0.2, 0.5, 0.3]])
    assert weighted_quantile(values, weights, 0.5).tolist() == [1.0]
    assert weighted_quantile(values, weights, 0.51).tolist() == [2.0]
    assert weighted_quantile(values, weights, 0.9).tolist() == [3.0]
    assert weighted_quantile(values, weights, 1.0).tolist() == [3.0]


def test_thinning_keeps_shares() -> None:
    person = Particles(ARC, rng(), particles=64)
    person.log_weight_UM = np.log(np.r_[0.5, np.full(63, 0.5 / 63)])[None]
    w_UMK, _, _ = person.thinned(20)
    assert int((w_UMK[0] == person.w_UMK[0, 0]).all(axis=1).sum()) == 10


def test_faults_are_named() -> None:
    person = Particles(ARC, rng(), particles=64, model=ChoiceModel(ties=False))
    with pytest.raises(DirectionError, match=r"expected \(1,\) and \(1, 2\)"):
        person.update([[1.0, 2.0, 3.0]], [A])
    with pytest.raises(DirectionError, match="finite"):
        person.update([[1.0, math.nan]], [A])
    with pytest.raises(ConfigError, match=r"0\.\.1"):
        person.update([[1.0, 2.0]], [TIE])
    assert person.asked == 0
    with pytest.raises(ConfigError, match="particles"):
        Particles(ARC, rng(), particles=3)
    for wrong in ({"beta": 0.0}, {"nu": math.inf}, {"beta_spread": -1.0}, {"nu_spread": math.nan}, {"lapse": 1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ChoiceModel(**wrong)
