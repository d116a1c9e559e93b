"""Soups before and beside their runs: the recipes of their policies, and what a killed session leaves."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from actors import soups
from rhumbline import config
from rhumbline.data.prompts import turn_id
from rhumbline.errors import ConfigError, DirectionError
from rhumbline.plan import Plan
from tests.fakes import tiny_policy
from tests.jobs.dpa_runs import recipe as written
from tests.jobs.test_online_run import GRPO


def soup(folder: Path, **changes: Any) -> config.SoupRecipe:
    path = written(folder, job="soups", iterations=None, **{"initial": {"strategy": "none"}, **changes})
    return config.load(path, ["policy.restart_from=initial"], kind=config.SoupRecipe)


def test_children_share_what_the_soup_is_evaluated_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = {"helpfulness": 0.5, "verbosity": -0.5}
    train = written(
        tmp_path,
        **{**GRPO, "seed": 9, "prompts": {"path": "embedded"}, "directions": {**GRPO["directions"], "fixed": fixed}},
    )
    train = train.rename(tmp_path / "grpo.yaml")
    monkeypatch.setattr(soups, "check", lambda plan, have: None)
    monkeypatch.setattr(soups, "resources", dict)
    settings = soup(tmp_path, train=str(train), name="soup")
    found = soups.children(settings, Plan.make(settings))
    assert list(found) == ["helpfulness", "verbosity"]
    ours = Plan.make(settings)
    for child, plan in found.values():
        assert (child.seed, child.prompts, child.policy, child.rewards) == (
            *(settings.seed, settings.prompts, settings.policy, settings.rewards),
        )
        assert plan.splits.evaluation == ours.splits.evaluation
    assert [child.directions.fixed for child, _ in found.values()] == [
        {"helpfulness": 1.0, "verbosity": 0.0},
        {"helpfulness": 0.0, "verbosity": -1.0},
    ]
    assert [child.name for child, _ in found.values()] == ["soup-helpfulness", "soup-verbosity"]


def test_children_do_not_train_on_what_the_soup_is_evaluated_on_whatever_they_hold_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soups, "check", lambda plan, have: None)
    monkeypatch.setattr(soups, "resources", dict)
    train = written(tmp_path, **GRPO).rename(tmp_path / "grpo.yaml")
    ready = tiny_policy(tmp_path / "ready")
    first = Plan.make(soup(tmp_path, train=str(train)))
    turns = {turn_id(prompt) for prompt in first.splits.evaluation}
    (ready / "trained_on.txt").write_text("".join(f"{turn}\n" for turn in sorted(turns)))
    settings = soup(tmp_path, train=str(train), policies={"helpfulness": str(ready)})
    ours = Plan.make(settings)
    held = {turn_id(prompt) for prompt in ours.splits.evaluation}
    assert not held & turns  # the soup holds out others, as one of its policies has seen those
    ((child, plan),) = soups.children(settings, ours).values()
    assert held & {turn_id(prompt) for prompt in Plan.make(child).splits.train}
    assert not held & {turn_id(prompt) for prompt in plan.splits.train}
    assert sum(size.prompts for size in plan.sizes) > 0


def test_only_online_jobs_train_the_policies_of_a_soup(tmp_path: Path) -> None:
    train = written(tmp_path).rename(tmp_path / "dpa.yaml")
    settings = soup(tmp_path, train=str(train))
    with pytest.raises(ConfigError, match=r"of jobs/dpa\.py .* trained by ppo, grpo \(train\)"):
        settings.children()


def test_what_cannot_be_mixed_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    train = written(tmp_path, **GRPO).rename(tmp_path / "grpo.yaml")
    outside = soup(
        tmp_path,
        train=str(train),
        directions={"angle_deg": [-45, 45], "codec": "dpa-float1"},
        evaluation={"angles_deg": [45]},
    )
    with pytest.raises(DirectionError, match="the direction weighs verbosity by"):
        soups.check_mixtures(outside, Plan.make(outside))
    gone = soup(tmp_path, train=str(train), policies={"helpfulness": str(tmp_path / "gone")})
    with pytest.raises(ConfigError, match=r"policies\.helpfulness: .*gone holds neither"):
        soups.check_mixtures(gone, Plan.make(gone))
    tiny_policy(tmp_path / "other", seed=1)
    other = soup(tmp_path, train=str(train), policies={"helpfulness": str(tmp_path / "other")})
    with pytest.raises(
        ConfigError, match=r"policies\.helpfulness: .*does not stem from this base: .*Give a policy that was"
    ):
        soups.check_mixtures(other, Plan.make(other))
    same = soup(tmp_path, train=str(train), policies={"helpfulness": str(tmp_path / "policy")})
    soups.check_mixtures(same, Plan.make(same))


def test_what_trains_the_policies_is_read_with_the_soup(tmp_path: Path) -> None:
    nowhere = soup(tmp_path, train="nowhere.yaml")
    with pytest.raises(ConfigError, match=r"recipe not found: nowhere\.yaml.*\(train"):
        Plan.make(nowhere, dry_run=True)
    train = written(tmp_path, **{**GRPO, "grpo": {"advantage": "centered"}}).rename(tmp_path / "grpo.yaml")
    with pytest.raises(ConfigError, match=r"grpo\.yaml, for helpfulness alone: unknown advantage 'centered'"):
        Plan.make(soup(tmp_path, train=str(train)), dry_run=True)
    ready = {name: str(tmp_path / "policy") for name in ("helpfulness", "verbosity")}
    Plan.make(soup(tmp_path, train="nowhere.yaml", policies=ready), dry_run=True)  # nothing is left to train


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"generator": {"backend": "vllm", "sync": "adapter"}}, "generator.sync adapter"),
        ({"policy": {"restart_from": "t0"}}, "policy.restart_from is t0"),
    ],
)
def test_recipes_of_soups_refuse_what_cannot_work(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    raw = yaml.safe_load(
        written(tmp_path, job="soups", iterations=None, initial={"strategy": "none"}, train="x").read_text()
    )
    raw["policy"]["restart_from"] = "initial"
    with pytest.raises(ConfigError) as error:
        config.validate(config.merge(raw, changes), "soup.yaml", kind=config.SoupRecipe)
    assert says in str(error.value)


def test_a_mixture_without_its_mark_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks: dict[str, Any] = {}
    store: Any = SimpleNamespace(
        marked=marks.get,
        checkpoint_dir=lambda t: tmp_path / f"t={t}",
        mark=lambda name, payload: marks.update({name: payload}),
    )
    crew: Any = SimpleNamespace(initial="base", recipe=SimpleNamespace(policy=SimpleNamespace(trust_remote_code=False)))
    (tmp_path / "t=1").mkdir()
    (tmp_path / "t=1" / "half").write_text("of a session that was killed")

    def interpolate(base: str, policies: Any, weights: Any, out: Path, trusted: bool) -> None:
        out.mkdir()  # as the real one, which refuses a folder that is there
        (out / "soup.json").write_text(json.dumps({"weights": weights, "rounding": 0.25}))

    monkeypatch.setattr(soups, "interpolate", interpolate)
    monkeypatch.setattr(soups.probes, "probe_again", lambda folder, start, trust_remote_code: None)
    soups._mix(crew, store, 1, {"a": tmp_path}, {"a": 1.0})
    assert [file.name for file in (tmp_path / "t=1").iterdir()] == ["soup.json"]
    assert marks["iterations/t=1/learn"] == {"checkpoint": "checkpoints/t=1", "weights": {"a": 1.0}, "rounding": 0.25}
    store.marked = marks.get
    assert "by up to 25% of its distance" in soups.told({}, [(1.0, 0.0)], store)[0]
