"""The comparer: both orders agree to the last digit, and an answer's chance against a reference is a reward."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rhumbline import config
from rhumbline.errors import ConfigError, DataError, ScoringError
from rhumbline.records import Prompt
from rhumbline.rewards.comparer import Comparer, ComparerRewards, read_references
from rhumbline.rewards.debias import LengthMap, LengthMaps
from rhumbline.rewards.model import RewardModel
from rhumbline.rewards.network import Network, NetworkSpec
from rhumbline.rewards.objectives import SCALES, Head
from rhumbline.rewards.trained import Schema, comparer_maps, publish
from tests.rhumbline.network_fakes import started, tiny_base
from tests.rhumbline.rewards_fakes import PAIRS, ask

SPEC = NetworkSpec(kind_of_input="triple", outputs=("a", "b", "tie"), max_tokens=256)
PROMPTS = [prompt for prompt, _ in PAIRS]
A = [text for _, text in PAIRS]
B = ["A longer answer than that, with more words.", "No.", "Because.", "Something", "x"]


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published comparer with ties."""
    folder = tmp_path_factory.mktemp("made")
    started(tiny_base(tmp_path_factory.mktemp("base"), request.param == "encoder"), SPEC).save(folder)
    network = Network.load(folder)
    schema = Schema(
        kind="comparer",
        heads=(Head(name="preference", source="test", **SCALES["unit"]),),
        base="tiny",
        fingerprint=network.fingerprint,
        maps=comparer_maps(),
    )
    comparer = Comparer(network)
    publish(folder, schema, lambda pairs: schema.scores(comparer.known(pairs)))
    return folder


def test_exchanging_the_answers_exchanges_the_probabilities(made: Path) -> None:
    comparer = Comparer(Network.load(made))
    ab_N3, ba_N3 = comparer.probabilities(PROMPTS, A, B), comparer.probabilities(PROMPTS, B, A)
    np.testing.assert_allclose(ab_N3.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(ab_N3[:, [1, 0, 2]], ba_N3, atol=1e-12)
    mixed_N3 = comparer.probabilities(PROMPTS, [*A[:2], *B[2:]], [*B[:2], *A[2:]])
    np.testing.assert_allclose(mixed_N3, np.concatenate([ab_N3[:2], ba_N3[2:]]), atol=1e-12)
    assert ab_N3[4, 0] == ab_N3[4, 1]  # the same answer twice
    # The network alone prefers a place: this is what averaging takes away.
    read = comparer.network.reader.triple
    rows = [read(prompt, a, b) for prompt, a, b in zip(PROMPTS, A, A, strict=True)]
    logits_NC = comparer.network.raw(rows)
    assert np.abs(logits_NC[:, 0] - logits_NC[:, 1]).max() > 0.01
    np.testing.assert_allclose(comparer.probabilities(PROMPTS, A, B, token_budget=1), ab_N3, atol=1e-5)


def test_probabilities_are_the_mean_of_both_orders(made: Path) -> None:
    comparer = Comparer(Network.load(made))
    read = comparer.network.reader.triple
    ab_C, ba_C = (
        np.exp(logits - np.logaddexp.reduce(logits))
        for logits in comparer.network.raw([read(PROMPTS[0], A[0], B[0]), read(PROMPTS[0], B[0], A[0])])
    )
    wanted = (ab_C + ba_C[[1, 0, 2]]) / 2
    np.testing.assert_allclose(comparer.probabilities(PROMPTS[:1], A[:1], B[:1])[0], wanted, atol=1e-6)


def test_a_comparer_without_ties_gives_them_no_chance(tmp_path: Path) -> None:
    spec = NetworkSpec(kind_of_input="triple", outputs=("a", "b"), max_tokens=256)
    comparer = Comparer(started(tiny_base(tmp_path), spec))
    p_N3 = comparer.probabilities(PROMPTS, A, B)
    assert p_N3[:, 2].tolist() == [0] * len(A)
    np.testing.assert_allclose(p_N3[:, :2].sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(comparer.probabilities(PROMPTS, B, A)[:, 0], p_N3[:, 1], atol=1e-12)
    profiles = [{"age": "9"}, None, "old", None, None]
    known_N3 = comparer.probabilities(PROMPTS, A, B, profiles)
    np.testing.assert_allclose(known_N3[[1, 3]], p_N3[[1, 3]], atol=1e-5)
    assert np.abs(known_N3[0] - p_N3[0]).max() > 1e-4


def test_the_reward_is_the_chance_against_a_reference(made: Path, tmp_path: Path) -> None:
    rewards = ComparerRewards(made)
    with pytest.raises(ScoringError, match="call setup"):
        rewards.score(PAIRS)
    rewards.setup()
    own = [(Prompt(id=p.id, messages=p.messages, reference=b), a) for (p, a), b in zip(PAIRS, B, strict=True)]
    scores_N1 = rewards.score(own)
    p_N3 = rewards.comparer.probabilities(PROMPTS, A, B)
    np.testing.assert_allclose(scores_N1[:, 0], 100 * (p_N3[:, 0] + p_N3[:, 2] / 2), atol=1e-3)
    assert scores_N1[4, 0] == pytest.approx(50, abs=1e-9)  # the reference itself
    with pytest.raises(ScoringError, match=r"prompt Why\? has no reference answer"):
        rewards.score(PAIRS)

    file = tmp_path / "references.jsonl"
    file.write_text(
        "".join(json.dumps({"id": p.id, "reference": "No."}) + "\n" for p in {p.id: p for p in PROMPTS}.values())
    )
    given = ComparerRewards(made, reference=file)
    given.setup(rewards.comparer.network)
    assert given.score(PAIRS).shape == (len(PAIRS), 1)
    assert given.id != rewards.id
    with pytest.raises(ScoringError, match="the file of references has no such id"):
        given.score([(ask("Another?"), "x")])


def test_in_a_recipe_references_are_a_prompts_own_and_length_is_taken_off(made: Path, tmp_path: Path) -> None:
    """Two prompts of one text may have two references: the one's scores are not the other's."""
    references = tmp_path / "references.jsonl"
    rows = [{"id": "p1", "reference": "No."}, {"id": "p2", "reference": "A longer answer than that, with more words."}]
    references.write_text("".join(json.dumps(row) + "\n" for row in rows))
    longer = LengthMap(knots=(0.0, 10.0), values=(-5.0, 5.0), before=0.5, after=0.0)
    maps = LengthMaps(maps={"preference": longer}, n=20).save(tmp_path / "length.json")

    def build(**more: str) -> RewardModel:
        source = {"kind": "comparer", "path": str(made), "reference": str(references), **more}
        rules = {"kind": "rules", "heads": {"long": {"rule": "verbosity"}}}
        objectives = {"wins": {"heads": {"preference": 1.0}}, "brevity": {"heads": {"long": -1.0}}}
        rewards = {"sources": [source, rules], "objectives": objectives}
        return RewardModel.build(config.Rewards.model_validate(rewards), tokenise=str.split)

    plain, clean = build(), build(length_removed=str(maps))
    plain.setup()
    clean.setup()
    pairs = [(Prompt(id=name, messages=ask("Why?").messages), "Because.") for name in ("p1", "p2")]
    together_N, alone_N = plain.score(pairs)[:, 0], [plain.score([pair])[0, 0] for pair in reversed(pairs)]
    assert abs(together_N[0] - together_N[1]) > 0.01
    np.testing.assert_allclose(together_N, alone_N[::-1])
    np.testing.assert_allclose(clean.score(pairs)[:, 0], together_N - longer([len("Because.")]), atol=1e-3)
    assert plain.id != clean.id


def test_files_of_references_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "references.jsonl"
    file.write_text('{"id": "p", "reference": "a"}\n{"id": "p", "reference": "b"}\n')
    with pytest.raises(DataError, match="row 2: the prompt 'p' has two different references"):
        read_references(file)
    file.write_text('{"id": "p", "answer": "a"}\n')
    with pytest.raises(DataError, match="row 1: expected texts under id and reference, found id, answer"):
        read_references(file)


def test_another_network_is_no_comparer(tmp_path: Path) -> None:
    spec = NetworkSpec(kind_of_input="pair", outputs=("x",))
    with pytest.raises(ConfigError, match="this network reads a pair and gives x"):
        Comparer(started(tiny_base(tmp_path), spec))


def test_a_profile_is_for_comparers_that_have_seen_some(made: Path) -> None:
    with pytest.raises(ConfigError, match="the profile 'old' would be words that it never saw"):
        ComparerRewards(made, profile="old")
