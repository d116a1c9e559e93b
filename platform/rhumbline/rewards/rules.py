"""Rules: heads that a formula computes from the text, on 0-100. A reward source beside `regression`.

    RULES["verbosity"](prompt, "Blue.", [8], half=60)      # 1.639...: 100 * 1 / (1 + 60)
    RuleRewards({"verbosity": Rule(rule="verbosity", options={"half": 60})}, tokenise).score(pairs)

Adding one: a function (prompt, response, tokens, *, options with defaults) -> float in 0-100, and its line in `RULES`.
`tokens` are the response's ids by the policy's tokenizer, without special ones. N answers, H heads.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rhumbline.config import Rule
from rhumbline.errors import ConfigError, ScoringError, did_you_mean
from rhumbline.records import Prompt
from rhumbline.rewards.objectives import Head

Tokenise = Callable[[str], Sequence[int]]


def verbosity(_prompt: Prompt, _response: str, tokens: Sequence[int], *, half: float = 60.0) -> float:
    """100 n / (n + half) for n tokens: strictly increasing, 0 for an empty answer, 50 at `half`, never quite 100.

    With half = 60: 10 tokens give 14, 30 give 33, 60 give 50, 100 give 62, 150 give 71. Choose `half` near the median
    length that the policy writes: that is where the scale is widest.
    """
    return 100.0 * len(tokens) / (len(tokens) + half)


def repetition(_prompt: Prompt, _response: str, tokens: Sequence[int], *, n: int = 3) -> float:
    """Share of token n-grams that occurred before in the answer, in percent: 0 for none, near 100 for a loop."""
    size = int(n)  # recipes hold numbers as floats
    grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return 100.0 * (1 - len(set(grams)) / len(grams)) if grams else 0.0


_ITEM = re.compile(r"^\s*(?:[-*\u2022]|\d{1,3}[.)])\s+\S")


def lists(_prompt: Prompt, response: str, _tokens: Sequence[int]) -> float:
    """Share of the lines with text that are list items (`-`, `*`, a bullet, `1.` or `1)`), in percent."""
    lines = [line for line in response.splitlines() if line.strip()]
    return 100.0 * sum(bool(_ITEM.match(line)) for line in lines) / len(lines) if lines else 0.0


_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)?")
_VOWELS = re.compile(r"[aeiouy]+")


def readability(_prompt: Prompt, response: str, _tokens: Sequence[int]) -> float:
    """Flesch reading ease, 206.835 - 1.015 words/sentence - 84.6 syllables/word, cut to 0-100. English only.

    A syllable is a run of vowels, a silent final e not counted, at least one per word. 0 for an answer without words.
    """
    words = _WORD.findall(response.lower())
    if not words:
        return 0.0
    sentences = max(1, len(re.findall(r"[.!?]+(?=\s|$)", response)))
    syllables = sum(max(1, len(_VOWELS.findall(word)) - (word.endswith("e") and word[-2:] != "le")) for word in words)
    return float(np.clip(206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words), 0.0, 100.0))


def bleu(prompt: Prompt, response: str, _tokens: Sequence[int]) -> float:
    """Smoothed sentence BLEU against the prompt's reference answer (BLEUBERI), by sacrebleu; an empty answer gives 0.

    Raises ScoringError for a prompt without a reference: no reference is no reason for a 0.
    """
    from sacrebleu import sentence_bleu

    if prompt.reference is None:
        raise ScoringError(f"prompt {prompt.id} has no reference answer, which the rule bleu compares with")
    return float(min(100.0, sentence_bleu(response, [prompt.reference]).score)) if response.strip() else 0.0


RULES: dict[str, Callable[..., float]] = {
    "verbosity": verbosity,
    "repetition": repetition,
    "lists": lists,
    "readability": readability,
    "bleu": bleu,
}


class RuleRewards:
    """A reward source: one rule per head."""

    def __init__(self, heads: Mapping[str, Rule], tokenise: Tokenise, where: str = "rewards.sources[].heads") -> None:
        """`tokenise`: text -> ids by the policy's tokenizer. Raises ConfigError for an unknown rule or option."""
        for name, rule in heads.items():
            _check(rule, f"{where}.{name}")
        self._rules, self._tokenise = dict(heads), tokenise
        self.heads = tuple(
            Head(name=name, source=f"rule {rule.rule}", raw_low=0, raw_high=100, scale=1, offset=0)
            for name, rule in heads.items()
        )

    @property
    def id(self) -> str:
        return repr([(name, rule.rule, sorted(rule.options.items())) for name, rule in self._rules.items()])

    def setup(self) -> None:
        """Nothing is heavy here."""

    def score(self, pairs: Sequence[tuple[Prompt, str]]) -> NDArray[np.float64]:
        """(N, H) on 0-100, in the order of `pairs`."""
        out_NH = np.empty((len(pairs), len(self._rules)))
        for i, (prompt, response) in enumerate(pairs):
            tokens = self._tokenise(response)
            out_NH[i] = [RULES[r.rule](prompt, response, tokens, **r.options) for r in self._rules.values()]
        return out_NH


def _check(rule: Rule, where: str) -> None:
    if rule.rule not in RULES:
        known = ", ".join(RULES)
        raise ConfigError(f"{where}.rule: unknown rule {rule.rule!r}.{did_you_mean(rule.rule, RULES)} Known: {known}")
    known_options: dict[str, Any] = {
        name: parameter.default
        for name, parameter in inspect.signature(RULES[rule.rule]).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for option, value in rule.options.items():
        if option not in known_options:
            raise ConfigError(
                f"{where}.options.{option}: the rule {rule.rule} has no such option."
                f"{did_you_mean(option, known_options)} Known: {', '.join(known_options) or 'none'}"
            )
        if not value > 0:
            raise ConfigError(f"{where}.options.{option}: expected a number above 0, got {value!r}")
        if isinstance(known_options[option], int) and value != int(value):
            raise ConfigError(f"{where}.options.{option}: expected a whole number, got {value!r}")
    if rule.rule == "bleu" and importlib.util.find_spec("sacrebleu") is None:
        raise ConfigError(f"{where}.rule: bleu needs the package sacrebleu: `pip install sacrebleu`")
