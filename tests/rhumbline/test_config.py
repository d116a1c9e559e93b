"""Recipes: what loads, what is refused, and whether the message tells a person where to look."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rhumbline import config
from rhumbline.config import Recipe, differences, dump, load, validate
from rhumbline.config.reading import read
from rhumbline.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "jobs" / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
OTHERS = [(job, path) for job in ("dpo", "ppo", "grpo", "soups") for path in sorted((FOLDER / job).glob("*.yaml"))]
REWARDS = """
rewards:
  sources:
    - kind: rules
      heads:
        length: {rule: verbosity}
    - kind: regression
  objectives:
    helpfulness: {heads: {quality: 1.0}}
    verbosity: {heads: {length: 1.0}, sign: -1}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(REWARDS)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(path, overrides)
    return str(error.value)


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_shipped_recipe_loads(path: Path) -> None:
    recipe = load(path)
    assert validate(yaml.safe_load(dump(recipe)), str(path)) == recipe


def test_defaults_are_the_papers(recipe_file: Path) -> None:
    recipe = load(recipe_file)
    assert recipe.name == "small"
    assert (recipe.iterations, recipe.samples, recipe.directions.per_prompt) == (4, 16, 5)
    assert (recipe.learner.lr, recipe.learner.warmup_steps, recipe.learner.batch_size) == (1e-5, 20, 64)
    assert recipe.directions.angle_deg == (-45.0, 0.0)
    assert list(recipe.rewards.objectives) == ["helpfulness", "verbosity"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sampels=3", "unknown key sampels. Did you mean 'samples'?"),
        ("learner.learning_rat=1", "unknown key learner.learning_rat. Known here: engine,"),
        ("learner.lora.rr=3", "unknown key learner.lora.rr. Did you mean 'r'?"),
        ("initial.styles.short.sampels=3", "unknown key initial.styles.short.sampels. Did you mean 'samples'?"),
        ("rewards.objectives.verbosity.sing=1", "unknown key rewards.objectives.verbosity.sing. Did you mean 'sign'?"),
        ("initial.learner.epohcs=3", "unknown key initial.learner.epohcs. Did you mean 'epochs'?"),
        ("initial.learner.epochs=-3", "initial.learner.epochs: Input should be greater than 0, got -3"),
        ("samples=-1", "samples: Input should be greater than 0, got -1"),
        ("samples=0", "samples: Input should be greater than 0, got 0"),
        ("iterations=-1", "iterations: Input should be greater than or equal to 0, got -1"),
        ("learner.lr=.nan", "learner.lr: "),
        ("learner.lr=.inf", "learner.lr: "),
        ("learner.engine=jax", "learner.engine: Input should be 'torch' or 'deepspeed', got 'jax'"),
        ("name=../other", "name: "),
        (
            "directions.presets.short.verbositi=-1",
            "directions.presets.short.verbositi: unknown objective. Did you mean",
        ),
        ("directions.presets.short.verbosity=0", "directions.presets.short has no weight other than zero"),
        ("directions.angle_deg=[0, -45]", "directions.angle_deg must rise from low to high"),
        ("directions.angle_deg=null", "give either axis (with half_angle_deg) or angle_deg"),
        ("rewards.objectives.safety.heads.safe=1", "directions.angle_deg needs two objectives, the recipe names 3"),
        ("evaluation.reference_point.verbosity=1", "evaluation.reference_point must name every objective"),
        ("initial.strategy=adapter", "needs initial.adapter"),
        ("initial.strategy=steerlm", "needs initial.labelled"),
        ("initial.styles={}", "initial.strategy 'relabel' needs initial.styles"),
        ("evaluation.angles_deg=[]", "evaluation.angles_deg: List should have at least 1 item"),
        ("learner.betas=[0.9, 1.0]", "learner.betas: Input should be less than 1, got 1.0"),
        ("learner.betas=[-0.1, 0.9]", "learner.betas: Input should be greater than or equal to 0, got -0.1"),
        ("rewards=null", "rewards: "),
        ("lr", "override 'lr': expected key.sub=value"),
        ("=3", "expected key.sub=value"),
        ("learner.lr=[1", "the value is not YAML"),
    ],
)
def test_faults_are_named_by_their_path(recipe_file: Path, override: str, says: str) -> None:
    assert says in refusal(recipe_file, override)


def test_a_fault_in_a_source_is_named_without_pydantics_tags(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(REWARDS.replace("{rule: verbosity}", "{rule: verbosity, optoins: {}}"))
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert "unknown key rewards.sources.0.heads.length.optoins. Did you mean 'options'?" in message


def test_all_faults_are_named_at_once(recipe_file: Path) -> None:
    message = refusal(recipe_file, "samples=0", "sampels=2", "learner.epochs=-1")
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), ("1E-5", 1e-5), ("2.5e-4", 2.5e-4), ("0.0001", 1e-4)])
def test_numbers_that_yaml_takes_for_text_are_numbers(recipe_file: Path, text: str, value: float) -> None:
    assert load(recipe_file, [f"learner.lr={text}"]).learner.lr == value
    recipe_file.write_text(REWARDS + f"learner: {{lr: {text}}}\n")
    assert load(recipe_file).learner.lr == value
    assert load(recipe_file, [f"initial.learner.lr={text}"]).learner_for_initial().lr == value


def test_text_that_looks_like_a_number_stays_text_where_no_number_is_expected(recipe_file: Path) -> None:
    recipe = load(recipe_file, ["name=12e4", "generator.engine.revision=12e4567", "learner.deepspeed.lr=1.0e-5"])
    assert recipe.name == "12e4"
    assert recipe.generator.engine == {"revision": "12e4567"}  # as a float: infinity
    assert recipe.learner.deepspeed == {"lr": 1e-5}


def test_an_empty_mapping_empties_what_it_lies_on(tmp_path: Path, recipe_file: Path) -> None:
    assert load(recipe_file, ["generator.engine={a: 1}", "generator.engine={}"]).generator.engine == {}
    assert load(recipe_file, ["generator.engine={}", "generator.engine.a=1"]).generator.engine == {"a": 1}
    recipe_file.write_text(REWARDS + "generator: {engine: {max_model_len: 512}, env: {A: b}}\n")
    (tmp_path / "child.yaml").write_text("extends: small.yaml\ngenerator: {engine: {}}\n")
    child = load(tmp_path / "child.yaml")
    assert (child.generator.engine, child.generator.env) == ({}, {"A": "b"})


def test_another_codec_starts_without_the_options_of_the_one_before(tmp_path: Path, recipe_file: Path) -> None:
    recipe_file.write_text(REWARDS + "directions: {codec: signs, codec_options: {width: 12}, per_prompt: 3}\n")

    def options(*overrides: str, path: Path = recipe_file) -> tuple[str, dict[str, Any]]:
        d = load(path, overrides).directions
        return d.codec, d.codec_options

    assert options() == ("signs", {"width": 12})
    assert options("directions.codec=dpa-int100") == ("dpa-int100", {})
    assert options("directions.codec=dpa-int100", "directions.codec_options={}") == ("dpa-int100", {})
    assert options("directions.codec=signs", "directions.codec_options={low.verbosity: -0.8}")[1]["width"] == 12
    scale = ("steerlm", {"scale": "0-4"})
    assert options("directions.codec=steerlm", "directions.codec_options={scale: 0-4}") == scale
    assert options("directions.codec_options={scale: 0-4}", "directions.codec=steerlm") == scale
    (tmp_path / "child.yaml").write_text("extends: small.yaml\ndirections: {codec: dpa-float1}\n")
    assert options(path=tmp_path / "child.yaml") == ("dpa-float1", {})
    assert load(tmp_path / "child.yaml").directions.per_prompt == 3


def test_overrides_are_yaml_laid_over_the_file_in_order(recipe_file: Path) -> None:
    recipe = load(
        recipe_file,
        ["samples=3", "samples=4", "learner.lora={r: 8}", "generator.engine.max_model_len=2048", "name=x.y"],
    )
    assert (recipe.samples, recipe.name) == (4, "x.y")
    assert recipe.learner.lora is not None
    assert (recipe.learner.lora.r, recipe.learner.lora.alpha) == (8, 32.0)
    assert recipe.generator.engine == {"max_model_len": 2048}
    # A map of the user's own names is added to by an override, one name at a time.
    styled = load(recipe_file, ["initial.styles.short.words=Be brief."]).initial.styles
    assert styled["short"].words == "Be brief."


def test_an_axis_takes_the_place_of_the_default_angles(recipe_file: Path) -> None:
    recipe = load(recipe_file, ["directions.axis={helpfulness: 1}", "directions.half_angle_deg=30"])
    assert recipe.directions.angle_deg is None
    assert "give either axis" in refusal(
        recipe_file, "directions.axis={helpfulness: 1}", "directions.angle_deg=[-45, 0]"
    )
    three = load(recipe_file, ["rewards.objectives.safety={heads: {safe: 1}}", "directions.axis={helpfulness: 1}"])
    assert len(three.rewards.objectives) == 3


def test_extends(tmp_path: Path, recipe_file: Path) -> None:
    (tmp_path / "child.yaml").write_text("extends: small.yaml\nsamples: 2\nlearner: {epochs: 1}\n")
    (tmp_path / "grandchild.yaml").write_text(
        "extends: child.yaml\nlearner: {lr: 1e-4}\n"
        "rewards: {objectives: {brevity: {heads: {length: -1}}, helpfulness: {heads: {quality: 1}}}}\n"
    )
    recipe = load(tmp_path / "grandchild.yaml")
    assert (recipe.name, recipe.samples, recipe.learner.epochs, recipe.learner.lr) == ("grandchild", 2, 1, 1e-4)
    assert list(recipe.rewards.objectives) == ["brevity", "helpfulness"]  # replaced whole, not added to
    assert len(recipe.rewards.sources) == 2


def test_a_direction_is_replaced_whole(tmp_path: Path, recipe_file: Path) -> None:
    (tmp_path / "child.yaml").write_text("extends: small.yaml\ndirections: {fixed: {helpfulness: 1, brevity: 0.5}}\n")
    (tmp_path / "grandchild.yaml").write_text("extends: child.yaml\ndirections: {fixed: {helpfulness: 1}}\n")
    assert read(tmp_path / "grandchild.yaml")["directions"]["fixed"] == {"helpfulness": 1}


def test_extends_that_lead_nowhere(tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"{name}.yaml" for name in "abc")
    a.write_text("extends: b.yaml")
    b.write_text("extends: a.yaml")
    c.write_text("extends: [a.yaml]")
    assert "leads back to itself" in refusal(a)
    assert "extends must name one recipe file" in refusal(c)


def test_files_that_are_no_recipe(tmp_path: Path, recipe_file: Path) -> None:
    assert "Did you mean 'small.yaml'?" in refusal(tmp_path / "smal.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    assert "expected a mapping of sections, found list" in refusal(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert "found NoneType" in refusal(tmp_path / "empty.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    assert "cannot be read as YAML" in refusal(tmp_path / "broken.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(tmp_path / "binary.yaml")
    assert "cannot be read" in refusal(tmp_path)


def test_dump_and_validate_give_the_recipe_back(recipe_file: Path) -> None:
    recipe = load(recipe_file, ["learner.lora={r: 4}", "learner.lr=1e-5", "directions.axis={helpfulness: 1}", "seed=7"])
    assert validate(yaml.safe_load(dump(recipe)), "run") == recipe


def test_differences_name_both_values(recipe_file: Path) -> None:
    a = load(recipe_file)
    b = load(recipe_file, ["learner.lr=2e-5", "learner.lora={r: 8}", "initial.styles.plain.samples=2"])
    assert differences(a, a) == []
    listed = differences(a, b)
    assert "learner.lr: 1e-05 -> 2e-05" in listed
    assert "learner.lora.r: None -> 8" in listed
    assert any(line.startswith("initial.styles") for line in listed)


def test_recipes_do_not_change(recipe_file: Path) -> None:
    recipe = load(recipe_file)
    with pytest.raises(Exception, match="frozen"):
        recipe.samples = 3


def test_initial_learner_lies_over_the_learner(recipe_file: Path) -> None:
    recipe: Recipe = load(recipe_file, ["learner.epochs=3", "learner.lr=1e-4", "initial.learner.epochs=1"])
    merged = recipe.learner_for_initial()
    assert (merged.epochs, merged.lr) == (1, 1e-4)
    assert recipe.learner.epochs == 3


def test_validation_needs_neither_torch_nor_ray(recipe_file: Path) -> None:
    code = (
        "import sys; from rhumbline.config import load; load(sys.argv[1]); "
        "print([m for m in ('torch', 'ray', 'transformers', 'scipy') if m in sys.modules])"
    )
    done: Any = subprocess.run([sys.executable, "-c", code, recipe_file], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("job", "path"), OTHERS, ids=[f"{job}-{path.stem}" for job, path in OTHERS])
def test_every_shipped_recipe_of_another_job_loads(job: str, path: Path) -> None:
    kind = config.JOBS[job]
    recipe = load(path, kind=kind)
    assert validate(yaml.safe_load(dump(recipe)), str(path), kind=kind) == recipe
    with pytest.raises(ConfigError, match=rf"is a recipe of jobs/{job}\.py"):
        load(path)


def test_a_shipped_soup_trains_what_starts_where_it_is_mixed() -> None:
    for path in sorted((FOLDER / "soups").glob("*.yaml")):
        train = FOLDER.parents[1] / str(load(path, kind=config.SoupRecipe).train)
        recipe = load(train, kind=config.GrpoRecipe)
        assert recipe.initial.strategy == "none", path.stem  # the initial policy, not one that was adopted
        assert not recipe.directions.said, path.stem


def test_a_recipe_without_a_job_is_no_recipe_of_another_job(recipe_file: Path) -> None:
    with pytest.raises(ConfigError, match="by its key job"):
        load(recipe_file, kind=config.GrpoRecipe)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("samples=1", "samples"),  # a group of one
        ("sampling.temperature=0.7", "sampling.temperature is 0.7"),
        ("grpo.kl.controller=adaptive", "needs kl.target"),
        ("grpo.kl.target=0", "grpo.kl.target"),
        ("grpo.kl={controller: adaptive, target: 6, coefficient: 0}", "it would stay 0"),
        ("directions.said=false", "a policy cannot follow what it is not told"),
        ("directions.fixed={helpfulnes: 1}", "directions.fixed.helpfulnes"),
        ("directions.fixed={helpfulness: 0}", "points nowhere"),
        ("initial.strategy=steerlm", "steerlm"),
        ("grpo.advantag=centred", "unknown key grpo.advantag. Did you mean 'advantage'"),
        ("ppo={}", "unknown key ppo"),
    ],
)
def test_online_recipes_refuse_what_cannot_work(recipe_file: Path, override: str, says: str) -> None:
    assert config.load(recipe_file, ["job=grpo"], kind=config.GrpoRecipe).samples == 8
    with pytest.raises(ConfigError) as error:
        config.load(recipe_file, ["job=grpo", override], kind=config.GrpoRecipe)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["pairs={a: {path: x}}", "store={run: y}"], "give one of them"),
        (["store={run: y}", "iterations=2"], "with pairs or store it is 1"),
        (["loss={kind: modpo}"], "loss.learned must name an objective"),
        (["loss={kind: modpo, learned: verbosity}", "pairs={a: {path: x}}"], "needs the rewards of both answers"),
        (["loss={label_smoothing: 0.5}"], "loss.label_smoothing"),
    ],
)
def test_preference_recipes_refuse_what_cannot_work(recipe_file: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(recipe_file, ["job=dpo", *overrides], kind=config.DpoRecipe)
    assert says in str(error.value)


def test_a_fixed_direction_is_the_region_s_axis_where_none_is_given(recipe_file: Path) -> None:
    d = load(
        recipe_file, ["job=ppo", "directions={fixed: {helpfulness: 1, verbosity: 3}}"], kind=config.PpoRecipe
    ).directions
    assert (d.axis, d.angle_deg) == ({"helpfulness": 1.0, "verbosity": 3.0}, None)


def test_dpa_needs_a_region(recipe_file: Path) -> None:
    assert "one policy for a region" in refusal(recipe_file, "directions.fixed={helpfulness: 1}")
    assert "initial.strategy 'none'" in refusal(recipe_file, "initial.strategy=none")


@pytest.mark.parametrize("sync", ["adapter", "transfer"])
def test_a_way_of_syncing_that_the_backend_does_not_have_is_refused(recipe_file: Path, sync: str) -> None:
    message = rf"generator\.sync is {sync}, which vLLM alone can do.*Set generator\.sync to full, or generator\.backend"
    with pytest.raises(ConfigError, match=message):
        load(recipe_file, ["generator.backend=transformers", f"generator.sync={sync}"])
    assert load(recipe_file, [f"generator.sync={sync}"]).generator.sync == sync
    assert load(recipe_file, ["generator.backend=transformers"]).generator.sync == "full"
