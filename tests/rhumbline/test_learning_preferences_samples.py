"""Which pairs and judged answers are learned from: those that are dropped are counted, those that fit no loss are refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rhumbline.data.chat import encode
from rhumbline.errors import ConfigError, DataError
from rhumbline.learning.policy import load_tokenizer
from rhumbline.learning.preferences import fit_preferences
from rhumbline.learning.units import encode_judged
from rhumbline.records import Message, Pair
from tests.rhumbline.learning_fakes import quick, tiny_policy
from tests.rhumbline.preference_fakes import data, judged, loss_of, pair, train


@pytest.fixture
def policy(tmp_path) -> Path:
    return tiny_policy(tmp_path / "policy")


def test_pairs_are_dropped_and_counted(policy, tmp_path):
    pairs = [
        *data("dpo", 5),
        pair(5, rejected="x" * 500),
        pair(6, chosen="same", rejected="same"),
        pair(7, rejected=" ", chosen_complete=False),
    ]
    empty = Pair(id="p8", messages=pairs[0].messages, chosen="a", rejected="", rejected_complete=False)
    learner = quick(max_length=256, epochs=1)
    result = fit_preferences(
        [*pairs, empty], learner=learner, loss=loss_of("dpo"), policy_dir=policy, out_dir=tmp_path / "out", seed=7
    )
    assert (result.num_examples, result.dropped_too_long, result.dropped_equal, result.dropped_empty) == (6, 1, 1, 1)
    tokenizer = load_tokenizer(policy)
    kept = [pairs[i] for i in (0, 1, 2, 3, 4, 7)]
    sides = [(p.messages, p.chosen, tokenizer, p.chosen_complete) for p in kept]
    sides += [(p.messages, p.rejected, tokenizer, p.rejected_complete) for p in kept]
    assert result.tokens == sum(len(encode(*side)) for side in sides)


def test_nothing_to_learn_from_says_why(policy, tmp_path):
    pairs = [pair(0, rejected="x" * 500), pair(1, chosen="b", rejected="b")]
    with pytest.raises(DataError, match=r"of 2 pairs 1 are longer than 256 .* 0 have no .* 1 have two equal"):
        train(policy, tmp_path / "out", pairs, loss_of("dpo"), learner=quick(max_length=256))
    with pytest.raises(DataError, match="of 0 judged answers"):
        train(policy, tmp_path / "out", [], loss_of("kto"))


def test_records_of_the_other_kind_are_refused(policy, tmp_path):
    with pytest.raises(DataError, match="the loss kto learns from records of Judged"):
        train(policy, tmp_path / "out", data("dpo", 2), loss_of("kto"))
    with pytest.raises(DataError, match="the loss ipo learns from records of Pair"):
        train(policy, tmp_path / "out", data("kto", 2), loss_of("ipo"))
    with pytest.raises(DataError, match="weight is nan"):
        train(policy, tmp_path / "out", [pair(0, weight=math.nan)], loss_of("dpo"))


def test_modpo_needs_gaps_a_direction_and_a_weight_for_what_it_learns(policy, tmp_path):
    for fields, match in (
        ({"gaps": ()}, r"pair p0: modpo needs a reward gap .* got 0 gaps and 2 weights"),
        ({"direction": None}, "got 2 gaps and 0 weights"),
        ({"gaps": (0.0, math.nan)}, "a reward gap is no number"),
        ({"direction": (0.0, 1.0)}, r"gives helpfulness.*the weight 0, expected another than 0"),
    ):
        with pytest.raises(DataError, match=match):
            train(policy, tmp_path / "out", [pair(0, **fields)], loss_of("modpo"))
    with pytest.raises(ConfigError, match=r"loss\.learned is helpfulness, .* one objective: quality"):
        train(policy, tmp_path / "out", [pair(0)], loss_of("modpo"), objectives=("quality",))
    # That of the learned objective is not read.
    train(policy, tmp_path / "out", [pair(0, gaps=(math.nan, 1.0))], loss_of("modpo"))


def test_kto_needs_two_prompts_and_bco_one(policy, tmp_path):
    alone = [judged(i, prompt_id="q0") for i in range(4)]
    with pytest.raises(DataError, match="all 4 samples are of the prompt 'q0'"):
        train(policy, tmp_path / "out", alone, loss_of("kto"))
    train(policy, tmp_path / "out", alone, loss_of("bco"))


def test_mismatched_answers_are_to_other_prompts(policy):
    tokenizer = load_tokenizer(policy)
    samples = [judged(i, prompt_id=f"q{i // 4}", messages=judged(i // 4 * 2).messages) for i in range(16)]
    units, _ = encode_judged(samples, tokenizer, 512, mismatched_seed=7)
    said_to: dict[tuple[int, ...], set[str]] = {}  # an answer -> the prompts that it was given to
    for sample, unit in zip(samples, units, strict=True):
        (answer,) = unit.sides
        said_to.setdefault(answer.token_ids[answer.prompt_length :], set()).add(sample.prompt_id)
    for sample, unit in zip(samples, units, strict=True):
        (answer,), (mismatched,) = unit.sides, unit.mismatched
        assert mismatched.token_ids[: mismatched.prompt_length] == answer.token_ids[: answer.prompt_length]
        assert said_to[mismatched.token_ids[mismatched.prompt_length :]] - {sample.prompt_id}
    assert units == encode_judged(samples, tokenizer, 512, mismatched_seed=7)[0]
    assert units != encode_judged(samples, tokenizer, 512, mismatched_seed=8)[0]


def test_a_prompt_that_leaves_no_room_for_any_other_answer_is_too_long(policy):
    tokenizer = load_tokenizer(policy)
    samples = [judged(0, response="a"), judged(2, response="b" * 20), judged(4, response="c" * 20)]
    longest = len(encode(samples[2].messages, samples[2].response, tokenizer))
    units, dropped = encode_judged(samples, tokenizer, longest, mismatched_seed=7)
    assert (len(units), dropped.too_long) == (3, 0)
    samples[0] = judged(0, response="a", messages=(Message(role="user", content="?" * 12),))
    units, dropped = encode_judged(samples, tokenizer, longest, mismatched_seed=7)
    assert ([u.id for u in units], dropped.too_long) == (["j2", "j4"], 1)
