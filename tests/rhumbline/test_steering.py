"""steering.json: a checkpoint says what its directions mean, and refuses company that means something else."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rhumbline.codecs import make
from rhumbline.directions import Cone, from_angle_deg
from rhumbline.errors import CodecError
from rhumbline.steering import Steering, read, read_trained_on, write_trained_on

NAMES = ("helpfulness", "verbosity")


def steering() -> Steering:
    return Steering(
        objectives=NAMES,
        signs=(1, -1),
        calibration={"mean": [50.0, 40.0], "std": [5.0, 9.0]},
        codec=make("dpa-int100", NAMES).to_dict(),
        region=Cone(NAMES, from_angle_deg(-22.5), 22.5).to_dict(),
        reward_model="abc",
        iteration=2,
        initial="embedded",
        presets={"concise": {"helpfulness": 1.0, "verbosity": -1.0}},
    )


def test_round_trip(tmp_path: Path) -> None:
    steering().write(tmp_path)
    back = read(tmp_path)
    assert back == steering()
    assert back.make_codec().version == "dpa-int100/1"
    assert back.cone().half_angle_deg == 22.5


def test_it_belongs_to_the_weights_that_it_was_written_beside(tmp_path: Path) -> None:
    assert steering().write(tmp_path).is_file()
    read(tmp_path).require_weights(tmp_path)  # there were none, and it says nothing of them
    first, second = tmp_path / "t=1", tmp_path / "t=2"
    for value, folder in enumerate((first, second)):
        folder.mkdir()
        save_file({"w": np.full(8, value, np.float32)}, folder / "model.safetensors")
        steering().write(folder)
        read(folder).require_weights(folder)
    assert read(first) == read(second) == steering()  # an adapter and its merged weights have one contract
    shutil.copy(first / "steering.json", second)
    with pytest.raises(CodecError, match=r"t=2 holds the weights .*the two are of different checkpoints"):
        read(second).require_weights(second)
    (second / "model.safetensors").unlink()
    with pytest.raises(CodecError, match="holds no weights"):
        read(second).require_weights(second)


def test_one_that_names_no_weights_is_read(tmp_path: Path) -> None:
    path = steering().write(tmp_path)
    said = json.loads(path.read_text())
    del said["weights"]
    path.write_text(json.dumps(said))
    assert read(tmp_path) == steering()


def test_what_a_policy_was_trained_on_travels_with_it(tmp_path: Path) -> None:
    assert read_trained_on(tmp_path) == frozenset()
    write_trained_on(tmp_path, ["bb", "aa", "bb"])
    assert read_trained_on(tmp_path) == {"aa", "bb"}
    assert (tmp_path / "trained_on.txt").read_text() == "aa\nbb\n"


def test_a_folder_without_it_is_no_checkpoint_of_ours(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match="not a checkpoint that Rhumbline trained"):
        read(tmp_path)


@pytest.mark.parametrize("change", [{"format": 99}, {"surprise": 1}])
def test_another_format_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = steering().write(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CodecError, match="format"):
        read(tmp_path)


def test_a_checkpoint_of_another_policy_is_refused_and_one_folder_has_many_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sft").mkdir()
    monkeypatch.chdir(tmp_path)
    one = replace(steering(), initial="sft")
    for name in ("sft", str(tmp_path / "sft"), "./sft/"):
        one.require_initial("t=3", name)
    (tmp_path / "other").mkdir()
    for name in ("other", "org/sft"):
        with pytest.raises(
            CodecError, match=rf"t=3 was trained from sft, the recipe starts from {name} \(policy.initial"
        ):
            one.require_initial("t=3", name)


def test_other_objectives_words_or_rewards_are_refused() -> None:
    one = steering()
    one.require(objectives=NAMES, codec=make("dpa-int100", NAMES), reward_model="abc")
    with pytest.raises(CodecError, match=r"rewards\.objectives"):
        one.require(objectives=("verbosity", "helpfulness"))
    with pytest.raises(CodecError, match=r"directions\.codec"):
        one.require(objectives=NAMES, codec=make("dpa-float1", NAMES))
    with pytest.raises(CodecError, match="reward model"):
        one.require(objectives=NAMES, reward_model="other")
