"""jobs/sft.py as one runs it: conversations in, a policy per stage out, faults with exit code 2. One test needs Ray."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from rhumbline import durable, lease
from rhumbline.config import load_sft
from rhumbline.learning import train
from rhumbline.learning.policy import load_tokenizer, merge_adapter
from rhumbline.learning.stages import HeldOut, Stage, identities, plan
from rhumbline.steering import read_trained_on
from tests.rhumbline.learning_fakes import tiny_policy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages over a policy of two layers: what it is told at first, and what it answers later."""
    tmp_path = tmp_path_factory.mktemp("sft")
    (tmp_path / "general.jsonl").write_text(
        "".join(json.dumps({"prompt": f"q{i}", "response": "abcabc"[: 3 + i % 3]}) + "\n" for i in range(30))
    )
    answer = {"role": "assistant", "content": "xyz"}
    (tmp_path / "target.jsonl").write_text(
        "".join(json.dumps({"messages": [{"role": "user", "content": f"k{i}"}, answer]}) + "\n" for i in range(24))
    )
    document = {
        "name": "tiny",
        "job": "sft",
        "seed": 3,
        "policy": {"initial": str(tiny_policy(tmp_path / "policy"))},
        "learner": {
            "lora": {"r": 4, "alpha": 8},
            "lr": 0.01,
            "batch_size": 4,
            "dtype": "float32",
            "max_length": 256,
            "checkpoint_every": 2,
            "threads": 1,
        },
        "held_out": 0.2,
        "bootstrap": 50,
        "stages": {
            "pre_sft": {"data": {"general": {"path": str(tmp_path / "general.jsonl")}}},
            "sft": {"data": {"target": {"path": str(tmp_path / "target.jsonl")}}, "learner": {"epochs": 2}},
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def trained(recipe: Path) -> Path:
    """What the job makes of `recipe` when nothing happens."""
    out = recipe.parent / "out"
    job(recipe, out)
    return out


OWN = {lease.STATUS, lease.GUARD}  # who works in a folder, and how that ended


def job(recipe: Path, out: Path, *overrides: str, **options: Any) -> None:
    """The job's own function in this process: a second torch takes longer to load than two layers to train."""
    spec = importlib.util.spec_from_file_location("sft_job", ROOT / "jobs" / "sft.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(list(overrides), recipe, **{"out": out, "local": True, "dry_run": False, **options})


def refused(capsys: pytest.CaptureFixture[str], recipe: Path, out: Path, *overrides: str) -> str:
    with pytest.raises(SystemExit) as end:
        job(recipe, out, *overrides)
    assert end.value.code == 2
    return capsys.readouterr().err


def stages_of(recipe: Path, *overrides: str) -> list[Stage]:
    settings = load_sft(recipe, overrides)
    return plan(settings, load_tokenizer(settings.policy.initial))


def cards(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / name / "stage.json").read_text()) for name in ("pre_sft", "sft")]


def test_two_stages_learn_and_say_what_they_achieved(recipe: Path, trained: Path) -> None:
    out = trained
    first, second = cards(out)
    for told in (first, second):
        held = told["held_out"]
        assert held["after"]["value"] < held["before"]["value"] - 1
        assert held["change"]["value"] == pytest.approx(held["after"]["value"] - held["before"]["value"])
        assert held["change"]["high"] < 0
    assert first["data"]["general"]["train"] + first["data"]["general"]["held out"] == 30
    # The train loop saw what was planned.
    planned = stages_of(recipe)
    assert first["training"]["steps"] == planned[0].steps
    assert first["training"]["num_examples"] == len(planned[0].examples)
    assert {p.name for p in out.iterdir()} == {"pre_sft", "sft", "sft.yaml", "README.md", *OWN}
    assert (first["from"], second["from"]) == (load_sft(recipe).policy.initial, "pre_sft")
    readme = (out / "README.md").read_text()
    assert "| pre_sft |" in readme
    assert "| sft |" in readme
    assert str(out) not in readme
    steps = [json.loads(line) for line in (out / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(1, second["training"]["steps"] + 1))


def test_the_next_stage_starts_from_the_merged_weights(recipe: Path, trained: Path, tmp_path: Path) -> None:
    out = trained
    initial = load_sft(recipe).policy.initial
    for base, stage in ((initial, "pre_sft"), (out / "pre_sft", "sft")):
        merged = merge_adapter(base, out / stage / "adapter", tmp_path / f"merged-{stage}")
        ours, theirs = (load_file(folder / "model.safetensors") for folder in (out / stage, merged))
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in ours)
    # What the second stage was measured at before it began is the first one's result on its data.
    held_out = HeldOut(str(out / "pre_sft"), token_budget=1024)
    held_out.setup()
    rows = held_out.nats(stages_of(recipe)[1].held_out)
    before = sum(nats for nats, _ in rows) / sum(tokens for _, tokens in rows)
    assert cards(out)[1]["held_out"]["before"]["value"] == pytest.approx(before, rel=1e-4)


def test_later_runs_are_told_what_a_stage_was_trained_on(trained: Path) -> None:
    first, second = (read_trained_on(trained / stage) for stage in ("pre_sft", "sft"))
    assert first
    assert first < second


def test_what_is_held_out_is_trained_on_in_no_stage(recipe: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.yaml"
    data = {"again": {"path": str(recipe.parent / "general.jsonl")}}
    both.write_text(yaml.safe_dump({"extends": str(recipe), "name": "both", "stages": {"sft": {"data": data}}}))
    first, second = stages_of(both)
    held = {one.messages for stage in (first, second) for one in stage.held_out}
    assert held
    assert not held & {one.messages for stage in (first, second) for one in stage.examples}


def test_a_stage_that_was_killed_goes_on_and_a_finished_one_is_found(
    recipe: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    real, seen = train.fit, []

    def killed(*args: Any, **options: Any) -> Any:
        seen.append(options["resume_from"])
        report = options["report"]

        def stop(figures: dict[str, Any], folder: Path | None) -> None:
            report(figures, folder)
            if len(seen) == 2 and figures["learn/step"] == 5:  # in the middle of the second stage
                raise KeyboardInterrupt

        return real(*args, **{**options, "report": stop})

    monkeypatch.setattr(train, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        job(recipe, out)
    assert not (out / "sft").exists()
    capsys.readouterr()
    job(recipe, out)
    assert f"pre_sft: {out / 'pre_sft'}, finished before" in capsys.readouterr().out
    assert seen[:2] == [None, None]
    assert seen[2] is not None
    assert seen[2].name == "000004"
    own = {"seconds", "tokens_per_s", "resumed_at"}
    for a, b in zip(cards(trained), cards(out), strict=True):
        assert a["identity"] == b["identity"]
        assert a["held_out"] == b["held_out"]
        assert {k: v for k, v in a["training"].items() if k not in own} == {
            k: v for k, v in b["training"].items() if k not in own
        }
    steps = [json.loads(line)["step"] for line in (out / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))  # those that were made twice are told once
    monkeypatch.setattr(train, "fit", lambda *_args, **_options: pytest.fail("all is finished"))
    job(recipe, out)


def test_another_recipe_leaves_what_is_there_alone(
    recipe: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = trained
    before = (out / "sft" / "model.safetensors").read_bytes()
    assert "sft was trained by another recipe" in refused(capsys, recipe, out, "stages.sft.learner.lr=0.02")
    assert (out / "sft" / "model.safetensors").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert "holds other files" in refused(capsys, recipe, tmp_path / "mine")


def test_a_folder_is_worked_in_by_one_driver(
    recipe: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lease.read_status(trained)["state"] == "done"
    out = tmp_path / "out"
    out.mkdir()
    with lease.held(out):  # that one has just begun: there is nothing else yet
        said = refused(capsys, recipe, out)
        assert f"{out} is in use by process {os.getpid()}" in said
        assert "or choose another --out" in said
        assert not (out / "sft.yaml").exists()
    lease.take(out)
    status = lease.read_status(out)
    durable.replace(out / lease.STATUS, durable.to_json(status | {"pid": 2**22 + 1}).encode())  # killed since
    job(recipe, out, "held_out=0")
    assert lease.read_status(out)["state"] == "done"


def test_other_weights_under_the_same_name_are_noticed(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, out = tiny_policy(tmp_path / "policy"), tmp_path / "out"
    asked = [f"policy.initial={policy}", "held_out=0"]
    job(recipe, out, *asked)
    moved = policy.rename(tmp_path / "moved")
    job(recipe, out, f"policy.initial={moved}", "held_out=0")  # the weights count, not where they lie
    tiny_policy(policy, seed=5)
    said = refused(capsys, recipe, out, *asked)
    assert f"pre_sft was trained from other weights than {policy} has now (policy.initial)" in said


def test_identities_follow_what_the_weights_depend_on(recipe: Path) -> None:
    def of(*overrides: str) -> list[str]:
        return identities(load_sft(recipe, overrides), stages_of(recipe, *overrides))

    base = of()
    assert of("learner.num_cpus=2", "learner.micro_batch_tokens=512", "name=other") == base
    assert of("stages.sft.learner.lr=0.5")[0] == base[0]
    assert of("stages.sft.learner.lr=0.5")[1] != base[1]
    for change in ("seed=4", "learner.lr=0.5", "held_out=0.3", "stages.pre_sft.data.general.weight=0.5"):
        assert not set(of(change)) & set(base), change  # a stage depends on those before it


def test_a_dry_run_counts_renders_and_writes_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job(recipe, tmp_path / "out", "learner.warmup=0.1", dry_run=True)
    said = capsys.readouterr().out
    first, second = stages_of(recipe)
    assert f"pre_sft, general: {len(first.examples)} train, {len(first.held_out)} held out" in said
    assert f"{second.steps} steps of 4, {second.learner.warmup_steps} of them to warm up" in said
    assert second.steps == -(-len(second.examples) * 2 // 4)
    assert second.learner.warmup_steps == -(-second.steps // 10)
    assert said.count("[learned, ") == 3
    assert "[learned, 4 tokens]\nxyz<|im_end|>" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["learner.lrr=1"], "Did you mean 'lr'?"),
        (["stages.sft.data.target.path=missing.jsonl"], "stages.sft.data.target.path=FILE"),
        (["stages.sft.data.target.min_rating={quality: 0.5}"], "stages.sft.data.target: "),
        (
            ["learner.max_length=20"],
            "stages.pre_sft: nothing to train on. general: 30 too long. Too long is over 20 tokens",
        ),
        (["held_out=0.001"], "held_out=0 to measure nothing"),
        (["held_out=0.99999"], "nothing to train on. general: 30 held out"),
        (["learner.num_workers=2"], "--local is one worker"),
        (["policy.initial=/nowhere"], "policy.initial"),
    ],
)
def test_faults_are_one_message_and_exit_code_2(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], says: str
) -> None:
    assert says in refused(capsys, recipe, tmp_path / "out", *overrides)
    assert not (tmp_path / "out" / "sft").exists()


def test_nothing_is_measured_where_nothing_is_held_out(recipe: Path, tmp_path: Path) -> None:
    job(recipe, tmp_path / "out", "held_out=0", "learner.lora=null")
    first, second = cards(tmp_path / "out")
    assert (first["held_out"], second["held_out"]) == (None, None)
    assert first["training"]["num_examples"] == 30
    assert not (tmp_path / "out" / "sft" / "adapter").exists()
    assert "| not measured |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_ray_gives_the_same_stages(recipe: Path, trained: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / "sft.py", "--recipe", recipe, "--out", tmp_path / "ray"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "RAY_AUTH_MODE": "disabled"},
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for a, b in zip(cards(trained), cards(tmp_path / "ray"), strict=True):
        assert a["identity"] == b["identity"]
        assert a["training"]["final_loss"] == pytest.approx(b["training"]["final_loss"], rel=1e-4)
        assert a["held_out"]["after"]["value"] == pytest.approx(b["held_out"]["after"]["value"], rel=1e-3)
