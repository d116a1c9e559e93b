"""Rules: hand numbers, range, monotonicity, and what they refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhumbline.config import Rule
from rhumbline.errors import ConfigError, ScoringError
from rhumbline.rewards.rules import RULES, RuleRewards, bleu, lists, readability, repetition, verbosity
from tests.rhumbline.rewards_fakes import ask

P = ask("Why?")
tokens = st.lists(st.integers(0, 5), max_size=60)


def test_verbosity_by_hand() -> None:
    assert verbosity(P, "", []) == 0
    assert verbosity(P, "", [1] * 60, half=60) == 50
    assert verbosity(P, "", [1] * 20, half=60) == 25  # 100 * 20 / 80
    spread = [verbosity(P, "", [1] * n, half=60) for n in (10, 150)]
    assert spread == pytest.approx([14.2857, 71.4286], abs=1e-3)


@given(st.integers(0, 5000), st.floats(0.5, 1000))
def test_verbosity_is_strictly_increasing_and_below_100(n: int, half: float) -> None:
    low, high = verbosity(P, "", range(n), half=half), verbosity(P, "", range(n + 1), half=half)
    assert 0 <= low < high < 100


def test_repetition_by_hand() -> None:
    assert repetition(P, "", [1, 2, 3, 4, 5]) == 0
    # 3-grams of 1 2 3 1 2 3: 123 231 312 123: one of four was there before.
    assert repetition(P, "", [1, 2, 3, 1, 2, 3]) == 25
    assert repetition(P, "", [1, 2]) == 0
    assert repetition(P, "", [7, 7, 7], n=1) == pytest.approx(200 / 3)


@given(tokens)
def test_saying_it_again_never_lowers_repetition(ids: list[int]) -> None:
    assert repetition(P, "", ids + ids) >= repetition(P, "", ids) - 1e-9


def test_lists_by_hand() -> None:
    assert lists(P, "Two things:\n- one\n* two\n\n3. three", []) == 75
    assert lists(P, "2.5 is a number\n-5 is one as well", []) == 0
    assert lists(P, "", []) == 0


def test_readability_by_hand() -> None:
    # 6 words, 1 sentence, 6 syllables: 206.835 - 6.09 - 84.6 = 116.1, cut to 100.
    assert readability(P, "The cat sat on the mat.", []) == 100
    # extraordinary 5 or, by vowel runs, e-a-ao-i-a-y: 6; international i-e-a-io-a: 5; 2 words, 1 sentence, 11 syllables.
    assert readability(P, "Extraordinary international.", []) == 0
    # 4 words in 2 sentences, we 1, like 1 (silent e), table 2, tennis 2: 206.835 - 2.03 - 126.9 = 77.905
    assert readability(P, "We like. Table tennis!", []) == pytest.approx(77.905)
    assert readability(P, "42!", []) == 0


def test_bleu_of_the_reference_is_100_and_of_nothing_0() -> None:
    prompt = ask("Say it.", reference="The quick brown fox jumps over the dog.")
    assert bleu(prompt, "The quick brown fox jumps over the dog.", []) == pytest.approx(100)
    assert bleu(prompt, "  ", []) == 0
    assert 0 < bleu(prompt, "The quick brown cat sleeps.", []) < 60
    with pytest.raises(ScoringError, match="no reference answer"):
        bleu(P, "text", [])


@given(st.text(max_size=80), tokens)
def test_every_rule_stays_within_0_and_100(text: str, ids: list[int]) -> None:
    prompt = ask("Why?", reference="Because of this.")
    for rule in RULES.values():
        assert 0 <= rule(prompt, text, ids) <= 100


def test_heads_count_the_tokens_that_the_policys_tokenizer_makes() -> None:
    rules = {"length": Rule(rule="verbosity", options={"half": 3}), "loops": Rule(rule="repetition", options={"n": 1})}
    rewards = RuleRewards(rules, tokenise=lambda text: [hash(w) for w in text.split()])
    assert [head.name for head in rewards.heads] == ["length", "loops"]
    assert rewards.score([(P, "a b c"), (P, "a a a a a a"), (P, "")]).tolist() == [
        [50, 0],
        [pytest.approx(200 / 3), pytest.approx(500 / 6)],
        [0, 0],
    ]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Rule(rule="verbosty"), "rewards.h.rule: unknown rule 'verbosty'. Did you mean 'verbosity'?"),
        (
            Rule(rule="verbosity", options={"hlaf": 3}),
            "options.hlaf: the rule verbosity has no such option. Did you mean 'half'?",
        ),
        (Rule(rule="lists", options={"half": 3}), "Known: none"),
        (Rule(rule="verbosity", options={"half": 0}), "expected a number above 0, got 0"),
        (Rule(rule="repetition", options={"n": 2.5}), "rewards.h.options.n: expected a whole number, got 2.5"),
        (Rule(rule="repetition", options={"n": 0}), "rewards.h.options.n: expected a number above 0, got 0"),
    ],
)
def test_unknown_rules_and_options_are_named(rule: Rule, said: str) -> None:
    with pytest.raises(ConfigError) as e:
        RuleRewards({"h": rule}, tokenise=str.split, where="rewards")
    assert said in str(e.value)


def test_the_id_follows_rule_and_options_but_not_their_order() -> None:
    def id_of(**rules: Rule) -> str:
        return RuleRewards(rules, tokenise=str.split).id

    same = id_of(v=Rule(rule="verbosity", options={"half": 60}))
    assert same == id_of(v=Rule(rule="verbosity", options={"half": 60}))
    assert same != id_of(v=Rule(rule="verbosity", options={"half": 61}))
    assert same != id_of(w=Rule(rule="verbosity", options={"half": 60}))
