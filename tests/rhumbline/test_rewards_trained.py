"""Networks as reward sources: what outputs mean on 0-100, and what is refused when one is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rhumbline import config
from rhumbline.errors import ConfigError, DataError, ScoringError
from rhumbline.rewards.debias import LengthMap, LengthMaps
from rhumbline.rewards.features import Pair
from rhumbline.rewards.model import RewardModel
from rhumbline.rewards.network import Network, NetworkSpec
from rhumbline.rewards.objectives import SCALES, Calibration, Head
from rhumbline.rewards.regression import embedded
from rhumbline.rewards.trained import (
    SCHEMA,
    OutputMap,
    Schema,
    TrainedRewards,
    absolute_maps,
    known_profile,
    preference_maps,
    publish,
    regression_maps,
)
from tests.rhumbline.network_fakes import started, tiny_base
from tests.rhumbline.rewards_fakes import PAIRS

SPEC = NetworkSpec(kind_of_input="pair", outputs=("helpful", "harmless"), max_tokens=512, max_response_tokens=400)
HEADS = tuple(Head(name=name, source="test", **SCALES["unit"]) for name in SPEC.outputs)


def outputs(network: Network, pairs: Sequence[Pair] = PAIRS) -> np.ndarray:
    return network.raw([network.reader.pair(prompt, text) for prompt, text in pairs])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published preference network with two heads."""
    folder = tmp_path_factory.mktemp("made")
    started(tiny_base(tmp_path_factory.mktemp("base")), SPEC).save(folder)
    network = Network.load(folder)
    maps = preference_maps(outputs(network))
    schema = Schema(kind="preference", heads=HEADS, base="tiny", fingerprint=network.fingerprint, maps=maps)
    calibration = Calibration.fit(SPEC.outputs, schema.scores(outputs(network)), [1, 2, 3, 4, 5])
    schema = Schema(
        kind="preference",
        heads=HEADS,
        base="tiny",
        fingerprint=network.fingerprint,
        maps=maps,
        conditional=True,
        calibration=calibration,
    )
    publish(folder, schema, lambda pairs: schema.scores(outputs(network, pairs)))
    return folder


def test_maps_by_hand() -> None:
    raw_NH = np.array([[1.0], [3.0]])  # mean 2, standard deviation 1
    maps = preference_maps(raw_NH)
    assert maps["logit"][0]([1.0, 2.0, 3.5]).tolist() == [40, 50, 65]
    # sigmoid(0) and sigmoid(1) = 0.7310586
    assert maps["probability"][0]([2.0, 3.0]).tolist() == [50, pytest.approx(73.10586)]
    assert absolute_maps(raw_NH)["probability"][0](0.0) == 50  # its zero means something: it is not centred
    assert absolute_maps(raw_NH, "identity")["probability"][0](0.25) == 25
    assert regression_maps([60.0], [12.0])["score"][0]([-1.0, 0.0, 1.0]).tolist() == [48, 60, 72]
    assert OutputMap()([3.0]).tolist() == [3]


def test_outputs_that_never_vary_are_refused() -> None:
    with pytest.raises(DataError, match="output 1 is the same for all 2 calibration answers"):
        preference_maps([[1.0, 5.0], [2.0, 5.0]])
    with pytest.raises(DataError, match="finite outputs, got 2 rows"):
        absolute_maps([[1.0], [float("nan")]])


def test_a_source_scores_as_its_schema_says(made: Path) -> None:
    rewards = TrainedRewards(made)
    with pytest.raises(ScoringError, match="call setup"):
        rewards.score(PAIRS)
    rewards.setup()
    scores_NH = rewards.score(PAIRS)
    # the calibration answers are scored again: mean 50, standard deviation 10
    np.testing.assert_allclose(scores_NH.mean(axis=0), [50, 50], atol=1e-3)
    np.testing.assert_allclose(scores_NH.std(axis=0), [10, 10], atol=1e-3)
    assert rewards.schema.calibration.mean == pytest.approx((50, 50))
    probable = TrainedRewards(made, output="probability")
    probable.setup(rewards.network)
    assert (np.argsort(probable.score(PAIRS), axis=0) == np.argsort(scores_NH, axis=0)).all()
    assert rewards.id != probable.id
    assert len({TrainedRewards(made, profile=who).id for who in (None, "old", "young")}) == 3
    assert TrainedRewards(made, profile={"age": "9"}).id == TrainedRewards(made, profile="age: 9").id


def test_a_profile_is_for_networks_that_have_seen_some(made: Path, tmp_path: Path) -> None:
    plain = replace(Schema.load(made), conditional=False)
    assert known_profile(plain, {}, made) is None
    with pytest.raises(ConfigError, match=r"made.* was trained without knowing who judges"):
        known_profile(plain, "old", made)
    assert plain.id != Schema.load(made).id
    other = shutil.copytree(made, tmp_path / "other")
    other.joinpath(SCHEMA).write_text(json.dumps(plain.to_dict()))
    with pytest.raises(ConfigError, match=r"the profile 'age: 9' would be words that it never saw.*--profile"):
        TrainedRewards(other, profile={"age": "9"})


def test_a_profile_changes_scores(made: Path) -> None:
    plain, young = TrainedRewards(made), TrainedRewards(made, profile={"age": "9"})
    plain.setup()
    young.setup(plain.network)  # its probes are known without a profile
    assert np.abs(plain.score(PAIRS) - young.score(PAIRS)).max() > 0.1


def test_the_schema_comes_back_as_it_was(made: Path) -> None:
    schema = Schema.load(made)
    assert schema.heads == HEADS
    assert list(schema.maps) == ["logit", "probability"]
    assert set(schema.files) >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert schema.to_dict() == json.loads((made / SCHEMA).read_text())
    assert len(schema.probes) == 4


def test_through_a_recipe_its_heads_stand_beside_others(made: Path, tmp_path: Path) -> None:
    rewards = {
        "sources": [
            {"kind": "network", "path": str(made)},
            {"kind": "rules", "heads": {"long": {"rule": "verbosity", "options": {"half": 10}}}},
        ],
        "objectives": {
            "helpfulness": {"heads": {"helpful": 0.5, "harmless": 0.5}},
            "brevity": {"heads": {"long": -1.0}},
        },
    }
    model = RewardModel.build(config.Rewards.model_validate(rewards), tokenise=str.split)
    model.setup()
    assert [head.name for head in model.heads] == ["helpful", "harmless", "long"]
    rewards_NK = model.score(PAIRS)
    direct = TrainedRewards(made)
    direct.setup()
    np.testing.assert_allclose(rewards_NK[:, 0], direct.score(PAIRS).mean(axis=1), atol=1e-3)
    longer = LengthMap(knots=(0.0, 10.0), values=(-5.0, 5.0), before=0.5, after=0.0)
    file = LengthMaps(maps={"harmless": longer}, n=20).save(tmp_path / "length.json")
    sources = [{**rewards["sources"][0], "length_removed": str(file)}, rewards["sources"][1]]
    clean = RewardModel.build(config.Rewards.model_validate({**rewards, "sources": sources}), tokenise=str.split)
    clean.setup()
    taken_N = longer([len(text) for _, text in PAIRS])
    np.testing.assert_allclose(clean.score(PAIRS)[:, 0], rewards_NK[:, 0] - taken_N / 2, atol=1e-3)
    assert clean.id != model.id


def test_faults_of_the_recipe_come_at_once_and_by_key(made: Path, tmp_path: Path) -> None:
    def build(**source: object) -> None:
        sources = [{"kind": "network", "path": str(made), **source}]
        objectives = {name: {"heads": {name: 1.0}} for name in SPEC.outputs}
        RewardModel.build(
            config.Rewards.model_validate({"sources": sources, "objectives": objectives}), tokenise=str.split
        )

    build(output="probability", profile={"age": "9"})
    with pytest.raises(ConfigError, match=r"rewards\.sources\.0: .* holds no reward network: schema\.json is missing"):
        build(path=str(tmp_path))
    with pytest.raises(ConfigError, match="its source is kind: network"):
        build(kind="comparer")
    with pytest.raises(ConfigError, match="its source is kind: regression"):
        build(path=str(embedded()))
    schema = Schema.load(made)
    maps = schema.to_dict()["maps"]
    (tmp_path / SCHEMA).write_text(
        json.dumps({**schema.to_dict(), "kind": "regression", "maps": {"score": maps["logit"]}})
    )
    with pytest.raises(ConfigError, match=r"a regression model gives no 'logit'.* It gives: score"):
        build(path=str(tmp_path), output="logit")
    (tmp_path / SCHEMA).write_text(json.dumps({**schema.to_dict(), "format": 9}))
    with pytest.raises(ConfigError, match="format 9 with keys"):
        build(path=str(tmp_path))
    (tmp_path / SCHEMA).write_text(json.dumps({**schema.to_dict(), "kind": "judge"}))
    with pytest.raises(ConfigError, match="a 'judge' model with 2 heads"):
        build(path=str(tmp_path))
    (tmp_path / SCHEMA).write_text(json.dumps({**schema.to_dict(), "maps": {"logit": maps["logit"][:1]}}))
    with pytest.raises(ConfigError, match=r"2 heads and maps of \[1\] outputs, expected a map per head"):
        build(path=str(tmp_path))
    (tmp_path / SCHEMA).write_text(json.dumps({**schema.to_dict(), "kind": "comparer"}))
    with pytest.raises(ConfigError, match="its source is kind: comparer"):
        build(path=str(tmp_path))


def test_files_that_do_not_belong_together_are_refused(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["rhumbline"]["max_response_tokens"] = 10  # it would read, and so score, otherwise
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"config\.json is not what schema\.json was written for"):
        TrainedRewards(folder).setup()


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json", "spiece.model", "modeling_mine.py"])
def test_a_file_that_would_change_what_is_read_is_refused(made: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(made, tmp_path / "copy")
    (tmp_path / "copy" / name).write_text("{}")
    with pytest.raises(ConfigError, match=r"is not what schema\.json was written for"):
        TrainedRewards(tmp_path / "copy").setup()


def test_heads_in_another_order_than_the_outputs_are_refused(made: Path, tmp_path: Path) -> None:
    schema = Schema.load(made).to_dict()
    (tmp_path / SCHEMA).write_text(json.dumps({**schema, "heads": schema["heads"][::-1]}))
    with pytest.raises(ConfigError, match="its heads are harmless, helpful, this one gives helpful, harmless"):
        TrainedRewards(tmp_path).setup(Network.load(made))


def test_other_weights_give_themselves_away(made: Path) -> None:
    network = Network.load(made)
    with torch.no_grad():
        network.head.weight.mul_(1.2)
    with pytest.raises(ConfigError, match=r"known answers score up to .* points off"):
        TrainedRewards(made).setup(network)


def test_a_network_that_looks_at_its_neighbours_is_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network.load(made)
    honest = network.raw
    monkeypatch.setattr(network, "raw", lambda rows, budget, side: honest(rows, budget, side) + 0.1 * len(rows))
    with pytest.raises(ScoringError, match="scores depend on the batch"):
        TrainedRewards(made).setup(network)
