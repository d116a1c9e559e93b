"""A loss that docs/learners.md adds, from a recipe file to the checkpoint: all of jobs/dpo.py's path but the actors."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from actors import learner, workers
from actors.preferences import Preferences
from rhumbline import config, losses
from rhumbline.errors import ConfigError
from rhumbline.plan import check
from rhumbline.queries import ask
from rhumbline.records import Completion, Scored
from rhumbline.scalarise import Standardiser
from tests.fakes import prompt, tiny_policy
from tests.rhumbline.learning_fakes import Log

ROOT = Path(__file__).parents[2]


def blocks() -> dict[str, str]:
    """The Python of the section 'Add a loss', by the file that each block says it is."""
    section = (ROOT / "docs" / "learners.md").read_text(encoding="utf-8").split("## Add a loss")[1].split("\n## ")[0]
    return {found[1]: found[2] for found in re.finditer(r"```python\n# (\S+)\n(.*?)```", section, re.DOTALL)}


@pytest.fixture
def hinge(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The document's loss, in its place."""
    told = blocks()
    assert list(told) == ["platform/rhumbline/losses/hinge.py", "platform/rhumbline/losses/__init__.py"]
    assert not (ROOT / "platform/rhumbline/losses/hinge.py").exists()
    file, line = told.values()
    module = ModuleType("rhumbline.losses.hinge")
    exec(compile(file, "docs/learners.md", "exec"), vars(module))
    monkeypatch.setitem(sys.modules, "rhumbline.losses.hinge", module)
    namespace = dict(vars(losses))
    exec(compile(line, "docs/learners.md", "exec"), namespace)
    function: Callable[..., Any] = vars(module)["hinge"]
    assert namespace["PAIRED_LOSSES"] == losses.PAIRED_LOSSES | {
        "hinge": function
    }  # else a line in the document is old
    monkeypatch.setitem(losses.PAIRED_LOSSES, "hinge", function)
    return function


def recipe(folder: Path, *overrides: str) -> config.DpoRecipe:
    """As a user would write it."""
    written = {
        "extends": str(ROOT / "jobs" / "recipes" / "dpo" / "smol.yaml"),
        "policy": {"initial": str(tiny_policy(folder / "policy"))},
        "initial": {"strategy": "none", "adapter": None},
        "loss": {"kind": "hinge", "beta": 0.5},
        "learner": {"lr": 1.0e-2, "epochs": 8, "warmup_steps": 0, "batch_size": 8, "dtype": "float32"},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(written))
    return config.load(folder / "mine.yaml", list(overrides), kind=config.DpoRecipe)


@pytest.mark.usefixtures("hinge")
def test_the_loss_of_the_document_trains_from_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = recipe(tmp_path)
    cone, codec = check(settings)  # what the job asks first
    # The job's samples, as its generators and scorers would have left them.
    prompts = [prompt(f"Why {letter}?", f"p{letter}") for letter in "abcdef"]
    queries = ask(prompts, cone, codec, settings.directions, iteration=1, seed=settings.seed)
    scored = [
        Scored(completion=completion, rewards=(float(len(text)), -0.5 * len(text)))
        for query in queries
        for sample, text in enumerate(("abc", "cdefghi"))
        for completion in [
            Completion(
                query=query,
                sample_index=sample,
                text=text,
                token_ids=tuple(text.encode()),
                logprob=-1.0,
                finish_reason="stop",
                policy_version="t=0",
            )
        ]
    ]
    pairs = Preferences(settings).ranked(scored, queries, codec, Standardiser.identity(2))

    log = Log()

    def unshelled(handed: dict[str, Any], given: config.Learner, *_: Any) -> None:
        """Ray Train's worker without Ray: it is handed the same."""
        assert given == settings.learner
        where = {"out_dir": Path(handed["out_dir"]), "seed": handed["seed"], "rank": 0, "world_size": 1}
        where |= {"resume_from": None, "report": log}
        loop, own = workers.LOOPS[handed["loop"]], config.Learner.model_validate(handed["learner"])
        result = loop(handed["settings"], Path(handed["data"]), own, where)
        (Path(handed["out_dir"]) / workers.RESULT).write_text(json.dumps(result, default=str))

    monkeypatch.setattr(learner, "fit", unshelled)
    result = learner.learn_preferences(
        pairs,
        settings.loss,
        settings.learner,
        objectives=list(settings.rewards.objectives),
        policy_dir=settings.policy.initial,
        out_dir=tmp_path / "checkpoints" / "t=1",
        name="mine-t1",
        storage=tmp_path / "train",
        seed=settings.seed,
    )
    assert result["num_examples"] == len(pairs) > 0
    assert log.of("loss")[0] == pytest.approx(1.0, abs=1e-5)  # the policy is its reference still
    assert log.of("accuracy")[0] == 0.0  # a gap of 0 is not above 0
    assert log.of("loss")[-1] < 0.9
    assert log.of("margin")[-1] > 0.1
    assert (tmp_path / "checkpoints" / "t=1" / "model.safetensors").is_file()


@pytest.mark.usefixtures("hinge")
def test_an_option_that_it_has_no_parameter_for_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    given = recipe(tmp_path, "loss.label_smoothing=0.1")
    with pytest.raises(ConfigError, match=r"loss\.label_smoothing is 0\.1, and hinge .*: it is for dpo, jpo, modpo\."):
        check(given)
    with pytest.raises(ConfigError, match=r"loss\.desirable_weight is 3, and hinge .*: it is for kto, bco\."):
        check(recipe(tmp_path, "loss.desirable_weight=3"))


def test_what_is_not_added_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown loss 'hinge' \(loss\.kind\)"):
        check(recipe(tmp_path))


def test_the_loss_of_the_document_keeps_the_rules_that_it_states(hinge: Callable[..., Any]) -> None:
    # delta = (2 - 1) - (-1 - 0) = 2 and 0; beta 1/4: 1 - 1/2 and 1; weights 1 and 3 over a step of 8.
    rows = [torch.tensor(row) for row in ([2.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1, 1], [1, 1])]
    weights_P = torch.tensor([1.0, 3.0])
    loss, metrics = hinge(*rows, 8.0, beta=0.25, weights_P=weights_P)
    assert float(loss) == pytest.approx(3.5 / 8)
    assert metrics == pytest.approx({"loss": 3.5 / 8, "margin_sum": 0.5, "correct_sum": 1.0, "weight_sum": 4.0})
    parts = [hinge(*(r[i : i + 1] for r in rows), 8.0, beta=0.25, weights_P=weights_P[i : i + 1])[0] for i in (0, 1)]
    assert float(sum(parts)) == pytest.approx(float(loss))
    fixed = [row.double() for row in rows[1:]]
    start = torch.tensor([2.0, 0.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: hinge(x, *fixed, 8.0, beta=0.25, weights_P=weights_P)[0], start)
