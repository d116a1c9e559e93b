"""Trained reward models in jobs/dpa.py: each kind gives its column, and the thesis's two rewards combine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhumbline.fitting.results import finish
from rhumbline.fitting.training import fit
from rhumbline.records import Prompt, Scored, Selected
from rhumbline.rewards.comparer import ComparerRewards
from rhumbline.rewards.features import Backbone, FeatureSpec, identity
from rhumbline.rewards.invariance import PROBES
from rhumbline.rewards.objectives import SCALES, Head
from rhumbline.rewards.regression import RegressionHeads, RegressionRewards
from rhumbline.rewards.trained import TrainedRewards
from rhumbline.store import RunStore
from tests.jobs.dpa_runs import recipe, run
from tests.rhumbline.reward_tasks import recipe_of, task_of
from tests.rhumbline.rewards_fakes import ask, tiny_backbone

pytestmark = pytest.mark.slow

DATA = {"path": "not read", "licence": "CC0"}
NETWORK = {"max_tokens": 320, "max_response_tokens": 60}
WHO = {"age": "9"}
PROMPTS = 26
# Head names are unique over the sources of a run.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "regression": ("regression", {"ratings": {"mine": {**DATA, "heads": {"good": {}, "odd": {}}}}}),
    "preference": ("preference", {"comparisons": {"x": {**DATA, "head": "liked"}, "y": {**DATA, "head": "long"}}}),
    "absolute": (
        "absolute",
        {"ratings": {"mine": {**DATA, "heads": {"good": {}}}}, "absolute": {"label": "good", "head": "quality"}},
    ),
    "conditional": ("preference", {"comparisons": {"x": {**DATA, "head": "own"}, "y": {**DATA, "head": "other"}}}),
    "comparer": ("comparer", {"comparisons": {"mine": {**DATA, "head": "won"}}}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of trained models of two layers, one per kind and one of ridge heads; and answers to compare with."""
    folder = tmp_path_factory.mktemp("models")
    backbone = tiny_backbone(folder / "backbone")
    for name, (kind, sections) in KINDS.items():
        task = task_of(kind)
        if name == "conditional":
            task = replace(task, inputs=tuple(replace(one, profile="age: 9") for one in task.inputs))
        settings = recipe_of(kind, backbone, learner={"epochs": 4, "threads": 1}, network=NETWORK, **sections)
        fit(task, recipe=settings, out_dir=folder / name, seed=7)
        finish(task, settings, folder / name)
    _ridge(folder, backbone)
    lines = [{"id": f"p{i}", "reference": "a" * (i % 7) + "b"} for i in range(PROMPTS)]
    (folder / "references.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _ridge(folder: Path, backbone: Path) -> None:
    """Heads that say how much of an answer is the letter a."""
    spec, loads = FeatureSpec(layer=1), Backbone.load
    texts = ["a" * (i % 9) + "b" * (1 + i % 4) for i in range(40)]
    pairs = [(ask(f"q{i // 2}"), text) for i, text in enumerate(texts)]
    labels_N1 = np.array([[100 * text.count("a") / len(text)] for text in texts])
    features_ND, lengths_N = loads(backbone, spec).features(pairs)
    heads, _ = RegressionHeads.fit(
        (Head(name="letters", source="mine", licence="CC0", **SCALES["unit"]),),
        features_ND,
        labels_N1,
        lengths_N,
        np.arange(40) // 2,
        backbone=str(backbone),
        fingerprint=identity(backbone),
        features=spec,
    )
    heads.with_probes(heads.score(*loads(backbone, spec).features(PROBES))).save(folder / "ridge")


def prompts(folder: Path) -> dict[str, Any]:
    """Short ones, so that the models see all of a prompt; ids that references can name."""
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"q{i}"}) + "\n" for i in range(PROMPTS)))
    return {"path": str(path), "evaluation": 4, "max_prompt_tokens": 400}


def scored(runs: Path, stage: str) -> list[Scored]:
    return list(RunStore.open(runs / "tiny").read(f"{stage}/scores", Scored))


def test_every_kind_gives_its_column(models: Path, tmp_path: Path) -> None:
    """Six sources side by side in one run; what lies in the shards is what each one says when it is asked directly."""
    references = str(models / "references.jsonl")
    path = recipe(
        tmp_path,
        prompts=prompts(tmp_path),
        rewards={
            "sources": [
                {"kind": "regression", "path": str(models / "ridge")},
                {"kind": "network", "path": str(models / "regression")},
                {"kind": "network", "path": str(models / "preference")},
                {"kind": "network", "path": str(models / "absolute"), "output": "probability"},
                {"kind": "network", "path": str(models / "conditional"), "profile": WHO},
                {"kind": "comparer", "path": str(models / "comparer"), "reference": references},
            ],
            "objectives": {
                "ridge": {"heads": {"letters": 1.0}},
                "regression": {"heads": {"good": 1.0, "odd": -0.5}},
                "preference": {"heads": {"liked": 1.0}},
                "absolute": {"heads": {"quality": 1.0}},
                "conditional": {"heads": {"own": 1.0}},
                "comparer": {"heads": {"won": 1.0}},
            },
        },
        directions={
            "axis": dict.fromkeys(("ridge", *KINDS), 1.0),
            "half_angle_deg": 40,
            "per_prompt": 2,
            "codec": "dpa-float1",
        },
        evaluation={
            "grid": 2,
            "samples": 1,
            "sampling": {"temperature": 0.7, "max_tokens": 16},
            "bootstrap": 20,
        },
    )
    done = run(path, tmp_path / "runs", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr

    ridge = RegressionRewards(RegressionHeads.load(models / "ridge"))
    asked: list[tuple[Any, Callable[[np.ndarray], np.ndarray]]] = [
        (ridge, lambda s_NH: s_NH[:, 0]),
        (TrainedRewards(models / "regression"), lambda s_NH: s_NH[:, 0] - 0.5 * s_NH[:, 1]),
        (TrainedRewards(models / "preference"), lambda s_NH: s_NH[:, 0]),
        (TrainedRewards(models / "absolute", output="probability"), lambda s_NH: s_NH[:, 0]),
        (TrainedRewards(models / "conditional", profile=WHO), lambda s_NH: s_NH[:, 0]),
        (ComparerRewards(models / "comparer", reference=references), lambda s_NH: s_NH[:, 0]),
    ]
    for source, _ in asked:
        source.setup()
    for stage in ("iterations/t=0", "iterations/t=1", "evaluation/t=1"):
        found = scored(tmp_path / "runs", stage)
        rewards_NK = np.array([one.rewards for one in found])
        assert rewards_NK.shape == (len(found), 6)
        pairs = [(one.completion.query.prompt, one.completion.text) for one in found]
        wanted_NK = np.stack([column(source.score(pairs)) for source, column in asked], axis=1)
        np.testing.assert_allclose(rewards_NK, wanted_NK, rtol=0, atol=0.05)  # points of 100; batches differ
    assert (np.ptp(rewards_NK, axis=0) > 0).all()

    anyone = TrainedRewards(models / "conditional")
    anyone.setup()
    assert np.abs(anyone.score(pairs)[:, 0] - wanted_NK[:, 4]).max() > 0.1  # the profile was read
    by_id = {f"p{i}": "a" * (i % 7) + "b" for i in range(PROMPTS)}
    own = [(Prompt(id=p.id, messages=p.messages, reference=by_id[p.id]), text) for p, text in pairs]
    comparer = ComparerRewards(models / "comparer")  # the same references, brought by the prompts themselves
    comparer.setup()
    np.testing.assert_allclose(comparer.score(own)[:, 0], wanted_NK[:, 5], rtol=0, atol=0.05)

    home = tmp_path / "runs" / "tiny"
    calibration = json.loads((home / "rewards" / "calibration.json").read_text())
    assert calibration["names"] == ["ridge", *KINDS]
    assert min(calibration["std"]) > 0
    steering = json.loads((home / "checkpoints" / "t=1" / "steering.json").read_text())
    assert steering["calibration"] == calibration  # weights mean the same later on


# --- the thesis's combined reward -------------------------------------------------------------------------------------

PREFERENCE, ABSOLUTE = (1.0, 0.0), (0.0, 1.0)  # w = 1 and w = 0


def thesis(folder: Path, models: Path, names: tuple[str, ...], objectives: dict[str, dict[str, float]]) -> Path:
    """The runs of a recipe whose directions go from the preference score alone to the absolute score alone."""
    folder.mkdir()
    path = recipe(
        folder,
        prompts=prompts(folder),
        rewards={
            "sources": [
                {"kind": "network", "path": str(models / name)} for name in names
            ],  # logits, as the thesis has it
            "objectives": {name: {"heads": heads} for name, heads in objectives.items()},
        },
        directions={"angle_deg": [0, 90], "per_prompt": 2, "codec": "dpa-float1"},
        initial={"directions_per_prompt": 3, "styles": {"plain": {"samples": 3}, "short": {"words": "Be short."}}},
        evaluation={
            "angles_deg": [0, 90],
            "samples": 1,
            "sampling": {"temperature": 0.7, "max_tokens": 16},
            "bootstrap": 20,
        },
    )
    done = run(path, folder / "runs", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs"


def kept(runs: Path, direction: tuple[float, float]) -> dict[str, tuple[str, str, float, float]]:
    """What t=0 keeps of each prompt for a direction: which answer, its text, its reward in this direction and its value.

    Of t=0, since all runs sample the same answers there: nothing has been learned, and no direction has been said.
    """
    k = direction.index(1.0)
    return {
        one.scored.completion.query.prompt.id: (
            one.scored.completion.id,
            one.scored.completion.text,
            one.scored.rewards[k],
            one.value,
        )
        for one in RunStore.open(runs / "tiny").read("iterations/t=0/selected", Selected)
        if one.direction == direction
    }


def test_both_ends_of_the_combined_reward_are_the_single_rewards(models: Path, tmp_path: Path) -> None:
    """w preference + (1 - w) absolute: with w = 1 and w = 0 the other model is as good as absent."""
    preference, absolute = {"liked": 1.0}, {"quality": 1.0}
    both = thesis(
        tmp_path / "both", models, ("preference", "absolute"), {"preference": preference, "absolute": absolute}
    )
    # A recipe has two objectives; in each of these both are of one and the same model.
    only_preference = thesis(
        tmp_path / "p", models, ("preference",), {"preference": preference, "absolute": {"liked": -1.0}}
    )
    only_absolute = thesis(
        tmp_path / "a", models, ("absolute",), {"preference": {"quality": -1.0}, "absolute": absolute}
    )
    ends = {PREFERENCE: kept(both, PREFERENCE), ABSOLUTE: kept(both, ABSOLUTE)}
    for direction, alone in ((PREFERENCE, only_preference), (ABSOLUTE, only_absolute)):
        found, wanted = ends[direction], kept(alone, direction)
        assert len(found) > 5
        assert {i: one[:2] for i, one in found.items()} == {i: one[:2] for i, one in wanted.items()}
        for i, (*_, reward, value) in found.items():
            assert reward == pytest.approx(wanted[i][2], rel=1e-9)
            assert value == pytest.approx(wanted[i][3], rel=1e-9, abs=1e-9)
    assert {i: one[0] for i, one in ends[PREFERENCE].items()} != {i: one[0] for i, one in ends[ABSOLUTE].items()}

    # And by hand: the highest score of that model alone among all answers to the prompt.
    best: dict[tuple[str, int], float] = {}
    for one in scored(both, "iterations/t=0"):
        for k, reward in enumerate(one.rewards):
            key = (one.completion.query.prompt.id, k)
            best[key] = max(reward, best.get(key, reward))
    for direction, found in ends.items():
        assert all(one[2] == best[i, direction.index(1.0)] for i, one in found.items())
