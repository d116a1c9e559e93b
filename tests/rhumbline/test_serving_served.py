"""What is served: found in a run, checked against itself, its run and its weights, with what the run has measured."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhumbline import durable
from rhumbline.codecs import make
from rhumbline.directions import Cone, angle_deg, from_angle_deg, normalise
from rhumbline.errors import CodecError, RunError
from rhumbline.serving.evidence import UNMEASURED
from rhumbline.serving.served import Served, open_served
from rhumbline.steering import Steering
from tests.rhumbline.evaluation_fakes import arc, evaluation, obedient
from tests.rhumbline.served_runs import run, soup_run, weights
from tests.rhumbline.steering_fakes import ARC, NAMES, contract, served, soups


def opened(path: Path | str, **options: Any) -> Served:
    return open_served(path, check_base=False, **options)


# --- found ------------------------------------------------------------------------------------------------------------


def test_a_run_is_served_by_its_newest_finished_checkpoint_with_what_it_measured(tmp_path: Path) -> None:
    path = run(tmp_path)
    weights(path / "checkpoints/t=3")  # not finished: no mark
    contract(iteration=3).write(path / "checkpoints/t=3")
    found = opened(path)
    assert (found.name, found.folder.name, found.mechanism, found.method) == ("mine", "t=2", "prompt", "dpa")
    assert (found.scored, opened(path, checkpoint=1).scored) == (("evaluation/t=2",), ("evaluation/t=1",))
    assert (found.template_version, found.reward_model, found.run) == ("dpa-int100/1", "abc", path.resolve())
    assert angle_deg(found.default) == pytest.approx(-22.5)
    rewards = np.array([one.rewards for one in obedient(quality=52)])
    assert found.ranges is not None
    assert found.ranges["helpfulness"] == pytest.approx(tuple(np.quantile(rewards[:, 0], [0.1, 0.5, 0.9])))
    assert list(found.ranges) == list(NAMES)
    assert len(found.achieved) == 4
    assert [angle_deg(point.direction) for point in found.achieved] == pytest.approx([0, -15, -30, -45])
    assert found.front == tuple(point for point in found.achieved if point.pareto)
    assert found.effect.proven
    assert "verbosity follows its weight (Spearman 1.00" in found.effect.why
    assert "over 4 directions on 20 held-out prompts" in found.effect.why
    assert pickle.loads(pickle.dumps(found)) == found


def test_what_the_policy_before_has_said_is_not_taken_for_this_one_s(tmp_path: Path) -> None:
    path = run(tmp_path)
    (path / "evaluation/t=2/scores").rename(path / "iterations/t=2/scores")  # answers that t=2 has learned from
    found = opened(path)
    assert (found.folder.name, found.scored) == ("t=2", ())
    assert found.ranges == dict.fromkeys(NAMES, (40.0, 50.0, 60.0))  # of its calibration


def test_a_checkpoint_may_be_chosen_by_number_or_by_folder(tmp_path: Path) -> None:
    path = run(tmp_path)
    by_number, by_folder = opened(path, checkpoint=1), opened(path / "checkpoints/t=1", name="other")
    assert by_number.folder.name == "t=1"
    assert by_folder.name == "other"
    assert replace(by_folder, name="mine") == by_number
    alone = Path(shutil.copytree(path / "checkpoints/t=1", tmp_path / "elsewhere/copy"))
    copied = opened(alone)
    assert (copied.name, copied.run, copied.effect) == ("copy", None, UNMEASURED)
    assert copied.ranges == dict.fromkeys(NAMES, (40.0, 50.0, 60.0))  # of its calibration


def test_a_folder_that_holds_an_adapter_alone(tmp_path: Path) -> None:
    path = run(tmp_path, evaluated=False)
    folder = path / "checkpoints/t=2"
    for file in ("config.json", "model.safetensors"):
        (folder / file).unlink()
    adapter = weights(folder / "adapter")
    (adapter / "config.json").rename(adapter / "adapter_config.json")
    shutil.copy(folder / "steering.json", adapter)
    found = opened(path)
    assert (found.folder, found.is_adapter) == (adapter.resolve(), True)
    contract(iteration=2, reward_model="other").write(adapter)
    with pytest.raises(CodecError, match="reward model other"):
        opened(path)


def test_what_was_not_measured_is_not_claimed(tmp_path: Path) -> None:
    assert opened(run(tmp_path / "a", evaluated=False)).effect == UNMEASURED
    path = run(tmp_path / "b", last=1)
    deaf = evaluation(1, obedient(strength=0.0)).to_json()
    (path / "evaluation/t=1.json").write_text(durable.to_json(deaf))
    found = opened(path)
    assert not found.effect.proven
    assert "is not shown to follow its weight" in found.effect.why
    against = json.loads(durable.to_json(deaf))
    against["spearman"]["verbosity"] = {"value": -0.9, "low": -1.0, "high": -0.5}
    (path / "evaluation/t=1.json").write_text(json.dumps(against))
    assert "verbosity goes against its weight" in opened(path).effect.why


@pytest.mark.parametrize(
    ("where", "says"),
    [("nowhere", "neither a run"), ("mime", "Did you mean 'mine'"), ("mine/checkpoints", "neither a run")],
)
def test_nothing_to_serve(tmp_path: Path, where: str, says: str) -> None:
    run(tmp_path, evaluated=False)
    with pytest.raises(RunError, match=says):
        opened(tmp_path / where)


def test_runs_without_what_is_asked_for(tmp_path: Path) -> None:
    path = run(tmp_path, evaluated=False)
    with pytest.raises(RunError, match="no finished checkpoint 7, expected one of 1, 2"):
        opened(path, checkpoint=7)
    with pytest.raises(RunError, match="can only be chosen in one"):
        opened(path / "checkpoints/t=1", checkpoint=1)
    with pytest.raises(RunError, match="no finished checkpoint yet"):
        opened(run(tmp_path / "new", last=0))
    (path / "checkpoints/t=2/model.safetensors").unlink()
    with pytest.raises(CodecError, match="no weights"):
        opened(path)


# --- checked ----------------------------------------------------------------------------------------------------------

OTHER = Cone(("verbosity", "helpfulness"), from_angle_deg(-22.5), 22.5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"codec": make("dpa-int100", NAMES).to_dict() | {"version": "dpa-int100/0"}}, "words of dpa-int100/0"),
        ({"codec": {"name": "no"}}, "unknown codec|does not describe a codec"),
        ({"codec": make("dpa-int100", NAMES[::-1]).to_dict()}, "codec is of the objectives verbosity, helpfulness"),
        ({"region": OTHER.to_dict()}, "region is of the objectives verbosity, helpfulness"),
        ({"region": {"axis": [1, 0]}}, "region"),
        ({"calibration": {"names": ["a", "b"]}}, "calibration is of the objectives a, b"),
        ({"signs": (1,)}, "signs"),
        ({"signs": (1, 0)}, "signs"),
        ({"presets": {"p": {"honesty": 1.0}}}, "presets.p: unknown objective 'honesty'"),
        ({"presets": {"p": {"verbosity": 0.0}}}, "presets.p: direction weights are all zero"),
        ({"codec": make("signs", NAMES, {"high.verbosity": -0.1}).to_dict()}, "cannot say the trained region"),
    ],
)
def test_a_steering_file_that_contradicts_itself(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CodecError, match=says):
        Served.of(rewritten(**changes), name="m", folder=Path("x"))


def rewritten(**changes: Any) -> Steering:
    return replace(contract(), **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"reward_model": "other"}, "belongs to the reward model other"),
        ({"objectives": NAMES[::-1]}, "objectives"),
        ({"signs": (1, 1)}, "signs"),
        ({"iteration": 1}, "iteration t=1, the run mine has t=2"),
        ({"initial": "another"}, "initial"),
        ({"region": Cone(NAMES, ARC.axis, 10.0).to_dict()}, "region"),
        ({"codec": make("dpa-float1", NAMES).to_dict()}, "codec"),
        ({"calibration": contract().calibration | {"mean": [1.0, 2.0]}}, "calibration"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = run(tmp_path, evaluated=False)
    rewritten(**{"iteration": 2, **changes}).write(path / "checkpoints/t=2")
    with pytest.raises(CodecError, match=says):
        opened(path)


def test_a_steering_file_of_another_checkpoints_weights_is_refused(tmp_path: Path) -> None:
    path = run(tmp_path, evaluated=False)
    folder = path / "checkpoints/t=2"
    (folder / "model.safetensors").write_bytes((19).to_bytes(8, "little") + b'{"__metadata__":{}}')
    with pytest.raises(CodecError, match="was written for"):
        opened(path)


def test_a_run_that_says_no_direction_has_nothing_to_steer(tmp_path: Path) -> None:
    changes = {"job": "grpo", "directions": {"fixed": {"helpfulness": 1.0}, "said": False}}
    with pytest.raises(CodecError, match="says no direction"):
        opened(run(tmp_path, evaluated=False, **changes))


@pytest.mark.slow
def test_weights_must_stem_from_the_policy_that_steering_names(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from tests.fakes import tiny_policy

    base = tiny_policy(tmp_path / "base")
    trained = Path(shutil.copytree(base, tmp_path / "trained"))
    moved = {key: tensor * 1.01 for key, tensor in load_file(base / "model.safetensors").items()}
    save_file(moved, trained / "model.safetensors", metadata={"format": "pt"})
    contract(initial=str(base)).write(trained)
    found = open_served(trained)
    assert found.tokenizer.eos_token == "<|im_end|>"
    contract(initial=str(base)).write(base)
    with pytest.raises(CodecError, match=r"holds the weights of .*base itself"):
        open_served(base)
    other = tiny_policy(tmp_path / "other", seed=1)
    contract(initial=str(base)).write(other)
    with pytest.raises(CodecError, match=r"not the weights of its steering\.json.*does not stem from this base"):
        open_served(other)
    contract(initial="owner/name").write(other)
    open_served(other)  # its base is not on this machine: nothing to compare with


@pytest.mark.slow
def test_the_shipped_adapter_is_served() -> None:
    found = open_served("embedded")
    assert (found.is_adapter, found.method, found.template_version) == (True, "dpa", "signs/1")
    assert set(found.presets) == {"balanced", "concise", "detailed"}


# --- soups ------------------------------------------------------------------------------------------------------------


def test_a_run_of_soups_is_served_by_its_mixtures(tmp_path: Path) -> None:
    path = soup_run(tmp_path)
    found = open_served(path)
    assert (found.mechanism, found.method, found.template_version) == ("weights", "soups", None)
    assert [m.name for m in found.mixtures] == ["mine-mix-1", "mine-mix-2", "mine-mix-3"]
    assert [m.folder for m in found.mixtures] == [path / f"checkpoints/t={t}" for t in (1, 2, 3)]
    # Policies for more helpfulness and for less verbosity: shares 3/4 and 1/4 are the direction (3, -1)
    assert [m.direction for m in found.mixtures] == [(1.0, 0.0), normalise((3, -1)), normalise((1, -1))]
    assert found.nearest.nearest(from_angle_deg(-20)) == ("mine-mix-2", normalise((3, -1)))
    rewards = np.array([one.rewards for one in obedient(angles_deg=(-45.0, 0.0))])
    assert found.ranges is not None
    assert found.ranges["verbosity"] == pytest.approx(tuple(np.quantile(rewards[:, 1], [0.1, 0.5, 0.9])))
    assert len(found.achieved) == 2
    assert found.scored == ("evaluation/mixtures/t=1", "evaluation/mixtures/t=2")  # what the quiz asks about
    with pytest.raises(RunError, match="serves all of its mixtures"):
        open_served(path, checkpoint=1)


def test_the_nearest_mixture_is_the_one_with_the_smallest_angle() -> None:
    mixed = soups()
    for direction in arc((0.0, -7.4, -7.6, -22.4, -45.0)):
        name, merged_for = mixed.nearest.nearest(direction)
        assert name in {m.name for m in mixed.mixtures}
        assert merged_for == max((m.direction for m in mixed.mixtures), key=lambda m: float(np.dot(m, direction)))


def test_mixtures_that_are_broken_or_missing(tmp_path: Path) -> None:
    path = soup_run(tmp_path)
    (path / "checkpoints/t=2/soup.json").write_text('{"weights": {"helpfulness": 1, "honesty": 0}}')
    with pytest.raises(CodecError, match="the run's objectives are helpfulness, verbosity"):
        open_served(path)
    (path / "checkpoints/t=2/model.safetensors").unlink()
    with pytest.raises(CodecError, match="no weights"):
        open_served(path)
    for t in (1, 2, 3):
        shutil.rmtree(path / f"checkpoints/t={t}")
    with pytest.raises(CodecError, match="no finished mixture"):
        open_served(path)


def test_the_default_is_the_preset_of_that_name_or_the_axis() -> None:
    assert served().default == ARC.axis
    assert served(presets={"default": {"verbosity": -1.0}}).default == pytest.approx(from_angle_deg(-45))
