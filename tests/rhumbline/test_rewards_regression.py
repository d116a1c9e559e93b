"""Regression heads: fitting with missing labels, the folder that they live in, and the checks when they load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from rhumbline.errors import ConfigError, DataError, ScoringError
from rhumbline.rewards.features import Backbone, FeatureSpec, Side, identity
from rhumbline.rewards.invariance import PROBES, check_invariance
from rhumbline.rewards.objectives import SCALES, Head
from rhumbline.rewards.regression import SCHEMA, WEIGHTS, RegressionHeads, RegressionRewards, check_target
from rhumbline.rewards.ridge import Scaling
from tests.rhumbline.rewards_fakes import HIDDEN, PAIRS, tiny_backbone

HEADS = (
    Head(name="kind", source="mine", licence="CC0", **SCALES["unit"]),
    Head(name="rude", source="mine", higher_is_better=False, licence="CC0", **SCALES["helpsteer"]),
)
SPEC = FeatureSpec(layer=1)
RNG = np.random.default_rng(5)
X, LENGTHS, GROUPS = RNG.normal(size=(60, HIDDEN)), RNG.integers(1, 90, 60), np.repeat(np.arange(20), 3)
LABELS = np.stack([50 + 10 * X[:, 0] + RNG.normal(size=60), 30 - 5 * X[:, 1] + RNG.normal(size=60)], axis=1)


def fitted(labels_NH: np.ndarray = LABELS, fingerprint: dict[str, object] | None = None) -> RegressionHeads:
    heads, _ = RegressionHeads.fit(
        HEADS, X, labels_NH, LENGTHS, GROUPS, backbone="tiny", fingerprint=fingerprint or {}, features=SPEC
    )
    return heads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("backbone"))


def rewards_on(folder: Path) -> RegressionRewards:
    """Heads with the probes that the backbone in `folder` gives."""
    heads = fitted(fingerprint=identity(folder))
    probes = heads.score(*Backbone.load(folder, SPEC).features(PROBES))
    return RegressionRewards(heads.with_probes(probes), folder)


# --- fitting ----------------------------------------------------------------------------------------------------------


def test_each_head_equals_sklearn_on_its_own_rows() -> None:
    labels = LABELS.copy()
    labels[3:9, 0] = np.nan
    labels[40:, 1] = np.nan
    heads = fitted(labels)
    z = Scaling.fit(X, LENGTHS)(X, LENGTHS)
    for h in range(2):
        has = ~np.isnan(labels[:, h])
        wanted = Ridge(alpha=heads.schema.ridge[h]["alpha"]).fit(z[has], labels[has, h])
        assert heads.score(X, LENGTHS)[:, h] == pytest.approx(wanted.predict(z))
        assert heads.schema.ridge[h]["n"] == has.sum()


def test_one_missing_label_changes_only_its_own_head() -> None:
    labels = LABELS.copy()
    labels[7, 1] = np.nan
    before, after = fitted().score(X, LENGTHS), fitted(labels).score(X, LENGTHS)
    assert np.array_equal(before[:, 0], after[:, 0])
    assert not np.array_equal(before[:, 1], after[:, 1])


def test_a_head_that_cannot_be_fitted_is_named() -> None:
    labels = LABELS.copy()
    labels[:, 1] = np.nan
    with pytest.raises(DataError, match="head rude: 0 prompts have a label"):
        fitted(labels)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_they_score_the_same_under_the_same_id(tmp_path: Path) -> None:
    heads = fitted().with_probes(np.zeros((len(PROBES), 2)))
    again = RegressionHeads.load(heads.save(tmp_path / "heads"))
    assert again.schema.to_dict() | {"weights_sha256": ""} == heads.schema.to_dict()
    assert again.id == heads.id
    np.testing.assert_allclose(again.score(X, LENGTHS), heads.score(X, LENGTHS), atol=1e-3)
    assert again.schema.heads == HEADS


def test_the_id_follows_weights_and_schema() -> None:
    labels = LABELS.copy()
    labels[0, 0] += 20
    assert fitted().id == fitted().id
    assert fitted(labels).id != fitted().id
    assert fitted(fingerprint={"hidden_size": 1}).id != fitted().id


def test_a_folder_without_heads_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no regression reward model: schema\.json is missing"):
        RegressionHeads.load(tmp_path)
    fitted().save(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ConfigError, match=r"heads\.safetensors is missing"):
        RegressionHeads.load(tmp_path)


def test_weights_of_another_schema_are_refused(tmp_path: Path) -> None:
    fitted().save(tmp_path / "a")
    fitted(LABELS * 2).save(tmp_path / "b")
    (tmp_path / "a" / WEIGHTS).write_bytes((tmp_path / "b" / WEIGHTS).read_bytes())
    with pytest.raises(ConfigError, match="do not belong together"):
        RegressionHeads.load(tmp_path / "a")


@pytest.mark.parametrize(
    "change", [{"format": 99}, {"extra": 1}, {"heads": [{"name": "x"}]}, {"features": {"layer": 0}}]
)
def test_a_schema_of_another_kind_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    fitted().save(tmp_path)
    schema = json.loads((tmp_path / SCHEMA).read_text())
    (tmp_path / SCHEMA).write_text(json.dumps(schema | change))
    with pytest.raises(ConfigError, match=r"schema\.json"):
        RegressionHeads.load(tmp_path)


def test_heads_are_not_written_among_other_files(tmp_path: Path) -> None:
    check_target(tmp_path / "new")
    check_target(tmp_path)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="holds other files"):
        check_target(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        check_target(tmp_path / "thesis.tex")
    fitted().save(tmp_path)
    check_target(tmp_path)


# --- scoring ----------------------------------------------------------------------------------------------------------


def test_scores_do_not_move_with_batch_size_order_or_side(folder: Path) -> None:
    rewards = rewards_on(folder)
    rewards.setup()
    reference = rewards.score(PAIRS)
    assert reference.shape == (len(PAIRS), 2)
    for budget in (1, 100, 100_000):
        for side in ("right", "left"):
            np.testing.assert_allclose(rewards._score(PAIRS[::-1], budget, side)[::-1], reference, atol=1e-2)


def test_setup_comes_before_scoring(folder: Path) -> None:
    with pytest.raises(ScoringError, match=r"call setup\(\) first"):
        rewards_on(folder).score(PAIRS)


def test_another_architecture_and_other_weights_are_told_apart(folder: Path, tmp_path: Path) -> None:
    rewards = rewards_on(folder)
    rewards.folder = tiny_backbone(tmp_path / "deeper", layers=3)
    with pytest.raises(ConfigError, match=r"fitted on tiny \(.*num_hidden_layers 2.*num_hidden_layers 3"):
        rewards.setup()
    rewards.folder = tiny_backbone(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=r"known answers score up to .* points off"):
        rewards.setup()


# --- the invariance check ---------------------------------------------------------------------------------------------


def steady(pairs: object, budget: int, side: Side) -> np.ndarray:
    return np.array([[float(len(text))] for _, text in pairs])


def test_a_steady_scorer_passes_with_both_figures() -> None:
    assert check_invariance(steady) == (0, 0)


def test_a_scorer_that_sees_its_batch_is_refused() -> None:
    def leaks(pairs: object, budget: int, side: Side) -> np.ndarray:
        return steady(pairs, budget, side) + 0.05 * len(pairs)  # 3 neighbours: 0.15 points, 1.5e-3 of the range

    with pytest.raises(
        ScoringError, match=r"move by 0\.0015 of their range with the batch size and by 0 with the padding"
    ):
        check_invariance(leaks)


def test_a_scorer_that_sees_padding_is_refused() -> None:
    def leans(pairs: object, budget: int, side: Side) -> np.ndarray:
        return steady(pairs, budget, side) + (2.0 if side == "left" and len(pairs) > 1 else 0.0)

    with pytest.raises(
        ScoringError, match=r"by 0 of their range with the batch size and by 0\.02 with the padding side"
    ):
        check_invariance(leans)


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ScoringError):
        check_invariance(lambda pairs, budget, side: np.full((len(pairs), 1), np.nan))


def test_a_backbone_without_its_mask_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault this exists for: padding that is attended to."""
    rewards = rewards_on(folder)
    backbone = Backbone.load(folder, SPEC)
    forward = backbone.model.forward
    monkeypatch.setattr(backbone.model, "forward", lambda **kw: forward(**kw | {"attention_mask": None}))
    with pytest.raises(ScoringError, match="scores depend on the batch"):
        rewards.setup(backbone)
