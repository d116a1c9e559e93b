"""What a recipe comes to before anything starts: what is refused, what is counted, what is left to the cluster."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from rhumbline import config, recipes
from rhumbline.codecs import direction_of
from rhumbline.data.chat import prepare
from rhumbline.data.prompts import turn_id
from rhumbline.errors import ConfigError, DataError, UserError
from rhumbline.learning.policy import load_tokenizer
from rhumbline.plan import Plan, check, check_first
from tests.rhumbline.chat_fakes import CHATML, byte_tokenizer
from tests.rhumbline.learning_fakes import tiny_policy

RECIPE = """
name: small
iterations: 2
prompts: {path: PROMPTS, evaluation: 4}
rewards:
  sources: [{kind: rules, heads: {length: {rule: verbosity}, loops: {rule: repetition}}}]
  objectives:
    verbosity: {heads: {length: 1.0}}
    calm: {heads: {loops: -1.0}}
directions: {per_prompt: 2}
initial: {styles: {plain: {samples: 2}, short: {words: Be brief.}}, fade: 0.99}
generator: {engine: {}}
sampling: {max_tokens: 16}
evaluation: {grid: 3, sampling: {max_tokens: 16}}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Question number {i}?"} for i in range(20)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "small.yaml").write_text(RECIPE.replace("PROMPTS", str(tmp_path / "prompts.jsonl")))
    return tmp_path / "small.yaml"


def smol(*overrides: str) -> config.Recipe:
    return config.load(recipes.find("smol"), overrides)


def labelled(path: Path, prompts: list[str]) -> Path:
    rows = [{"prompt": prompt, "response": "Because.", "ratings": {"quality": 3}} for prompt in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["embedded", "~/heads"])
def test_a_dry_run_names_an_objective_without_a_head(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rhumbline.rewards

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "heads").symlink_to(Path(rhumbline.rewards.__file__).parent / "embedded")
    sources = f"rewards.sources=[{{kind: regression, path: {path}}}, {{kind: rules, heads: {{verbosity: {{rule: verbosity}}}}}}]"
    recipe = smol(sources, "rewards.objectives.helpfulness.heads={nope: 1}")
    with pytest.raises(ConfigError, match=r"no source of rewards\.sources gives the head 'nope'"):
        Plan.make(recipe, dry_run=True)


def test_a_reward_model_that_lies_elsewhere_is_left_to_the_cluster(tmp_path: Path) -> None:
    recipe = smol(f"rewards.sources=[{{kind: regression, path: {tmp_path}/nowhere}}]")
    _, codec = check(recipe, dry_run=True)
    with pytest.raises(ConfigError, match="nowhere"):
        check_first(recipe, codec)


@pytest.mark.parametrize(
    "source",
    [
        "{kind: network, path: FOLDER/nowhere}",
        "{kind: comparer, path: FOLDER/nowhere}",
        "{kind: regression, length_removed: FOLDER/nowhere.json}",
    ],
)
def test_so_is_whatever_a_source_reads(source: str, tmp_path: Path) -> None:
    recipe = smol(f"rewards.sources=[{source.replace('FOLDER', str(tmp_path))}]")
    _, codec = check(recipe, dry_run=True)
    with pytest.raises(ConfigError, match=r"rewards\.sources\.0.*nowhere"):
        check_first(recipe, codec)


def test_an_angle_that_the_codec_cannot_say_is_named(small: Path) -> None:
    codec = ["directions.codec=signs", "directions.codec_options={high.calm: 0.0}", "directions.angle_deg=[-45, 0]"]
    Plan.make(config.load(small, codec))
    with pytest.raises(UserError, match=r"evaluation\.angles_deg: the weight 0\.707 of calm lies outside"):
        Plan.make(config.load(small, [*codec, "evaluation.angles_deg=[0, 45]"]))


def test_a_prompt_longer_than_the_context_is_refused_whoever_names_the_context(small: Path) -> None:
    tokenizer = prepare(byte_tokenizer(CHATML))
    plan = Plan.make(config.load(small))
    plan.check_prompts(tokenizer)
    plan.check_prompts(tokenizer, context=100_000)
    with pytest.raises(
        DataError, match=r"\d+ of \d+ prompts, the longest .* exceed with .* the context of 20 of the model"
    ):
        plan.check_prompts(tokenizer, context=20)
    set_by_hand = Plan.make(config.load(small, ["generator.engine.max_model_len=21"]))
    with pytest.raises(DataError, match=r"the context of 21 \(generator.engine.max_model_len\)"):
        set_by_hand.check_prompts(tokenizer, context=100_000)


def test_prompts_that_are_too_long_are_dropped_where_the_recipe_says_so(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = tiny_policy(small.parent / "policy")
    tokenizer = load_tokenizer(policy)
    rows = [{"prompt": f"Question number {i}?" + " Say more." * (50 * (i % 4 == 0))} for i in range(20)]
    (small.parent / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    limit = [f"policy.initial={policy}", "prompts.max_prompt_tokens=300"]
    with pytest.raises(DataError, match=r"5 of 20 prompts.* more than 300 .*prompts\.too_long=drop"):
        Plan.make(config.load(small, limit)).check_prompts(tokenizer)
    with caplog.at_level(logging.INFO):
        plan = Plan.make(config.load(small, [*limit, "prompts.too_long=drop"]))
    assert "5 of 20 prompts left out, with more than 300 tokens" in caplog.text
    plan.check_prompts(tokenizer)
    assert plan.dropped == 5
    assert len(plan.splits.evaluation) == 4  # as many as without the long ones
    asked = [prompt.messages[0].content for prompt in (*plan.splits.train, *plan.splits.evaluation)]
    assert sorted(asked) == sorted(row["prompt"] for row in rows if "Say more." not in row["prompt"])
    assert "5 dropped (too long)" in "\n".join(plan.lines())
    with pytest.raises(DataError, match=r"all 20 prompts have more than 5 tokens.*prompts\.max_prompt_tokens"):
        Plan.make(config.load(small, [*limit, "prompts.too_long=drop", "prompts.max_prompt_tokens=5"]))


def test_without_a_tokenizer_here_a_dry_run_drops_none_and_says_so(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = config.load(small, [f"policy.initial={small.parent}/nowhere", "prompts.too_long=drop"])
    with pytest.raises(ConfigError, match=r"nowhere.*policy\.initial"):
        Plan.make(recipe)
    assert Plan.make(recipe, dry_run=True).dropped == 0
    assert "no tokenizer here" in caplog.text


# --- SteerLM ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "said"), [(None, "labelled.jsonl"), ("", "empty"), ('{"prompt": "a"}\n', "rated")])
def test_labelled_answers_that_cannot_be_read_end_before_the_run(small: Path, content: str | None, said: str) -> None:
    file = small.parent / "labelled.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=said):
        Plan.make(config.load(small, ["initial.strategy=steerlm", f"initial.labelled={file}"]))


def test_labelled_answers_to_held_out_prompts_are_dropped_and_counted(small: Path) -> None:
    asked = [f"QUESTION number {i}!" for i in range(20) for _ in range(2)]  # the same first turn, other letters
    file = labelled(small.parent / "labelled.jsonl", [*asked, "Another?"])
    plan = Plan.make(config.load(small, ["initial.strategy=steerlm", f"initial.labelled={file}"]))
    rows, dropped = plan.labelled()
    assert (len(rows), dropped) == (33, 8)  # two answers to each of the 4 held-out prompts
    assert not {turn_id(row.prompt) for row in rows} & {turn_id(prompt) for prompt in plan.splits.evaluation}
    first = plan.sizes[0]
    assert (first.stage, first.prompts, first.samples, first.max_tokens) == ("t=0, labelled", 17, 33, 0)
    assert "labelled answers" in plan.inputs()


def test_labelled_answers_to_held_out_prompts_alone_are_refused(small: Path) -> None:
    held = Plan.make(config.load(small)).splits.evaluation
    file = labelled(small.parent / "labelled.jsonl", [prompt.messages[0].content for prompt in held])
    with pytest.raises(DataError, match="0 of 4 labelled answers are to prompts that are not held out"):
        Plan.make(config.load(small, ["initial.strategy=steerlm", f"initial.labelled={file}"]))


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_the_training_samples_that_are_shown_carry_no_styles_words(small: Path) -> None:
    plan = Plan.make(config.load(small))
    assert any(query.style for query in plan.queries(1, plan.codec))  # t=1 asks nearly all prompts with words
    shown = plan.first_queries(3)
    assert [query.prompt.id for query in shown] == [prompt.id for prompt in plan.splits.half(1)[:3]]
    asked = {query.id: query.direction for query in plan.queries(1, plan.codec)}
    for query in shown:
        assert not query.style
        assert query.messages[1:] == query.prompt.messages
        assert query.direction == asked[query.id]
        direction_of(query.messages, plan.codec)
