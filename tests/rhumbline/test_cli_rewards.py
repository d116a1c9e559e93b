"""`rhumbline rewards` and `rhumbline data explore` as one types them, with a recipe of rules and a tokenizer of bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rhumbline.cli import app, main
from rhumbline.rewards.comparer import Comparer
from rhumbline.rewards.features import Pair
from rhumbline.rewards.network import Network, NetworkSpec
from rhumbline.rewards.objectives import Head, linear_map
from rhumbline.rewards.trained import Schema, absolute_maps, comparer_maps, preference_maps, publish
from tests.rhumbline.network_fakes import started
from tests.rhumbline.rewards_fakes import PAIRS, tiny_backbone


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Path) -> Path:
    """A folder with a recipe, pairs that the longer answer wins more often, and rated answers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.yaml").write_text(
        "name: rules\n"
        f"policy: {{initial: {policy}}}\n"
        "rewards:\n"
        "  sources: [{kind: rules, heads: {long: {rule: verbosity}, loops: {rule: repetition}}}]\n"
        "  objectives: {verbosity: {heads: {long: 1.0}}, order: {heads: {loops: -1.0}}}\n"
    )
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abc d"), size=rng.integers(2, 60))) + "." for _ in range(80)]
    pairs, rated = [], []
    for i, (x, y) in enumerate(zip(texts[::2], texts[1::2], strict=True)):
        chosen, rejected = (x, y) if (len(x) > len(y)) == (i % 5 > 0) else (y, x)
        pairs.append({"prompt": f"q{i // 2}", "chosen": chosen, "rejected": rejected, "split": "test"})
        rated += [{"prompt": f"q{i // 2}", "response": t, "ratings": {"size": min(100, len(t))}} for t in (x, y)]
    for name, rows in (("pairs", pairs), ("rated", rated)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_score_writes_and_goes_on(here: Path) -> None:
    assert "80 answers, verbosity, order" in run(
        "rewards", "score", "pairs.jsonl", "--model", "rules.yaml", "--out", "s.csv"
    )
    content = (here / "s.csv").read_bytes()
    (here / "s.csv").write_bytes(content[: len(content) // 2])
    run("rewards", "score", "pairs.jsonl", "--model", "rules.yaml", "--out", "s.csv")
    assert (here / "s.csv").read_bytes() == content


def test_a_card_on_pairs_with_a_second_scorer(here: Path) -> None:
    page = run(
        *("rewards", "card", "rules.yaml", "--data", "pairs.jsonl", "--out", "card"),
        *("--split", "test", "--second", "rules.yaml", "--resamples", "20"),
    )
    made_by = "rhumbline rewards card rules.yaml --data pairs.jsonl --split test --second rules.yaml --resamples 20"
    assert f"`{made_by}`" in page  # what one has to type for the same figures
    card = json.loads((here / "card/card.json").read_text())
    assert set(card["pairs"]) == {"long", "loops", "verbosity", "order"}
    long = card["pairs"]["long"]["all"]
    assert long["accuracy"]["value"] > 0.6
    assert long["accuracy"] == pytest.approx(long["length_accuracy"])
    assert long["gain"]["value"] == 0  # it is length
    same = next(one for one in card["agreement"] if (one["first"], one["second"]) == ("long", "rules.yaml long"))
    assert (same["percent"]["value"], same["kappa"]["value"]) == (100, 1)
    assert (same["length_percent"]["value"], same["length_kappa"]["value"]) == (100, 1)
    assert card["correlations"]["of"] == "pairs"
    assert card["pairs"]["long"]["all"]["score_with_length"]["value"] > 0.95  # the rule is no straight line
    assert (here / "card/figures/accuracy.png").exists()
    assert str(here) not in (here / "card/card.md").read_text()


def test_a_card_on_ratings_needs_to_know_which_is_which(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("rewards", "card", "rules.yaml", "--data", "rated.jsonl", "--tokenizer", "none", "--resamples", "20")
    page = run(*command, "--label", "long=size")
    assert "## Ratings" in page
    assert "## Error by range of the label" in page
    assert "no head has a rating of its name" in fails(capsys, *command)
    assert "Did you mean 'size'" in fails(capsys, *command, "--label", "long=sise")
    assert "Did you mean 'long'" in fails(capsys, *command, "--label", "lomg=size")
    assert "expected NAME=VALUE" in fails(capsys, *command, "--label", "long")


def network(folder: Path, policy: Path, kind: str) -> None:
    """A published network of random weights with the head `size`."""
    spec = NetworkSpec(kind_of_input="pair", outputs=("size",), max_tokens=512, max_response_tokens=400)
    if kind == "comparer":
        spec = NetworkSpec(kind_of_input="triple", outputs=("a", "b", "tie"), max_tokens=512)
    started(policy, spec).save(folder)
    loaded = Network.load(folder)

    def outputs(pairs: Sequence[Pair]) -> np.ndarray:
        if kind == "comparer":
            return Comparer(loaded).known(pairs)
        return loaded.raw([loaded.reader.pair(prompt, text) for prompt, text in pairs])

    schema = Schema(
        kind=kind,
        heads=(Head(name="size", source="test", **linear_map(0, 100, 0, 100)),),
        base="tiny",
        fingerprint=loaded.fingerprint,
        maps={
            "preference": lambda: preference_maps(outputs(PAIRS)),
            "absolute": lambda: absolute_maps(outputs(PAIRS)),
            "comparer": comparer_maps,
        }[kind](),
    )
    publish(folder, schema, lambda pairs: schema.scores(outputs(pairs)))


def test_ratings_are_compared_with_probabilities_and_with_the_order_of_logits(here: Path, policy: Path) -> None:
    """As the card of their training does: the logit of an absolute network is not on the scale of its labels."""
    for kind in ("absolute", "preference"):
        network(here / kind, policy, kind)
        run("rewards", "card", kind, "--data", "rated.jsonl", "--out", f"card-{kind}", "--resamples", "10")
    absolute, preference = (
        json.loads((here / f"card-{kind}/card.json").read_text()) for kind in ("absolute", "preference")
    )
    assert absolute["facts"]["Output"] == "probability"
    assert "--output probability" in absolute["command"]
    assert set(absolute["ranges"]) == {"size"}
    assert preference["ratings"]["size"]["all"]["spearman"]["value"] is not None
    assert preference["ratings"]["size"]["all"]["mae"] is None
    assert preference["ranges"] == preference["reliability"] == {}


def test_a_card_of_a_comparer_with_a_second_scorer(here: Path, policy: Path) -> None:
    network(here / "arena", policy, "comparer")
    page = run(
        *("rewards", "card", "arena", "--data", "pairs.jsonl", "--out", "card", "--second", "rules.yaml"),
        *("--resamples", "10"),
    )
    assert "## Agreement with a second scorer" in page
    card = json.loads((here / "card/card.json").read_text())
    assert {(one["first"], one["second"]) for one in card["agreement"]} >= {("comparer", "rules.yaml long")}
    assert card["classes"]["all"]["n"] == 40


def test_debias_makes_maps_that_cards_and_scores_take(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run("rewards", "debias", "rules.yaml", "--data", "rated.jsonl", "--head", "long", "--out", "length.json")
    assert "80 answers" in said
    assert "+1.000 -> " in said
    assert "above" not in said
    maps = ("--length-removed", "length.json")
    page = run(
        *("rewards", "card", "rules.yaml", "--data", "pairs.jsonl", "--tokenizer", "none", "--resamples", "20"), *maps
    )
    assert "## Length taken off" in page
    run("rewards", "score", "pairs.jsonl", "--model", "rules.yaml", "--out", "s.jsonl", *maps)
    scores = [json.loads(line)["verbosity"] for line in (here / "s.jsonl").read_text().splitlines()]
    assert np.std(scores) < 5  # what is left of a head that is length
    other = json.loads((here / "length.json").read_text())
    other["heads"]["lomg"] = other["heads"].pop("long")
    (here / "other.json").write_text(json.dumps(other))
    assert (
        "Did you mean 'long'"
        in fails(  # maps of another model would take nothing off, and the card would not say so
            capsys, "rewards", "card", "rules.yaml", "--data", "pairs.jsonl", "--length-removed", "other.json"
        )
    )
    assert "no such head" in fails(
        capsys, "rewards", "debias", "rules.yaml", "--data", "rated.jsonl", "--head", "x", "--out", "l.json"
    )


def test_explore_writes_tables_and_figures(here: Path) -> None:
    said = run("data", "explore", "pairs.jsonl", "--out", "seen")
    assert "40 comparisons" in said
    assert {path.suffix for path in (here / "seen").rglob("*") if path.is_file()} == {".csv", ".png"}


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("score", "pairs.jsonl", "--model", "nowhere", "--out", "s.csv"), "no reward model"),
        (("score", "gone.jsonl", "--model", "rules.yaml", "--out", "s.csv"), "not found"),
        (("card", "rulez.yaml", "--data", "pairs.jsonl"), "recipe not found"),
        (("card", "rewards/hh.yaml", "--data", "pairs.jsonl"), "give the folder that it wrote"),
        (
            ("card", "rules.yaml", "--data", "pairs.jsonl", "--where", "split=train", "--tokenizer", "none"),
            "no row left",
        ),
        (("card", "rules.yaml", "--data", "pairs.jsonl", "--length-removed", "gone.json"), "no length maps"),
        (("card", "rules.yaml", "--data", "pairs.jsonl", "--where", "split=["), "the value is no YAML"),
        (
            ("score", "pairs.jsonl", "--model", "embedded", "--reference", "r", "--out", "s.csv"),
            "which has no such option",
        ),
    ],
)
def test_faults_are_one_message(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert said in fails(capsys, "rewards", *arguments)
