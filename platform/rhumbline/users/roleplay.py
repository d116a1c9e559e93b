"""What a language model is asked in order to foresee a person's choice, and how its answer is read. Under `endpoint`.

    case = Case(user=user, question=question, shown=(), told=True)          # role-play: 'Imagine you are P.'
    asked = [messages(case, turn) for turn in range(len(question.options))] # each option once in each place
    p_L = read_logprobs(first_token, len(question.options))                 # of the letters A, B, ...
    averaged([p_L, ...], orders(len(question.options)))                     # of the options

The report's two training-free predictors (section 2.3): role-play tells the profile P and asks which response P prefers;
few-shot shows answers of the same person before. A model prefers places and letters as well as answers, so every question
is asked with each option once in each place, demonstrations turned along with it, and the probabilities are averaged: of two
options these are both orders. L letters, A options.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rhumbline.errors import ConfigError
from rhumbline.records import Message
from rhumbline.rewards.reading import profile_text, transcript
from rhumbline.users.population import Floats, Question, User

LETTERS = string.ascii_uppercase
Order = tuple[int, ...]  # which option stands at A, at B, ...

ROLE = "Imagine you are {portrait}."
ROLE_BY_FACTS = "Imagine you are this person:\n\n{facts}"
SHOWN = "You answer as one particular person would. What this person chose before comes first."
EARLIER = "Before, this person talked with an assistant:\n\n{turns}\n\n"
ASKED = "Given the question:\n\n{question}\n\nWhich of the following responses do you prefer?\n\n{options}\n\n"
ASKED_ALOUD = "Answer with one letter, {letters}, and nothing else."


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One person at one question, and what the predictor may know."""

    user: User
    question: Question
    shown: tuple[tuple[Question, int], ...] = ()  # questions and what this person chose there, for few-shot
    told: bool = True  # the profile and the history; False with nothing shown asks for nobody in particular


def orders(options: int) -> list[Order]:
    """The rotations of the options: each stands once in each place. Of two, both orders."""
    return [tuple((place + turn) % options for place in range(options)) for turn in range(options)]


def messages(case: Case, turn: int, portrait: str | None = None, system_role: bool = True) -> tuple[Message, ...]:
    """What is sent for one order of the options, the `turn`-th rotation of `orders`.

    Each demonstration is rotated by one place more than the one before it, so that their letters do not all agree.
    system_role: False where the model's chat template knows none; then who it is opens the first turn of the user.
    Raises ConfigError where `portrait` names a fact that the profile lacks.
    """
    who = _who(case, portrait)
    turns: list[Message] = []
    for place, (question, choice) in enumerate(case.shown):
        order = _turned(question, turn + place)
        turns.append(Message(role="user", content=_asked(question, order)))
        turns.append(Message(role="assistant", content=LETTERS[order.index(choice)]))
    final = _asked(case.question, _turned(case.question, turn))
    if case.told and case.user.history:
        final = EARLIER.format(turns=transcript(case.user.history)) + final
    turns.append(Message(role="user", content=final))
    if who is None:
        return tuple(turns)
    if system_role:
        return (Message(role="system", content=who), *turns)
    return (Message(role="user", content=f"{who}\n\n{turns[0].content}"), *turns[1:])


def read_logprobs(tokens: Mapping[str, float], options: int) -> Floats | None:
    """(L,) probabilities of the letters among each other, from log-probabilities of the first token.

    Tokens that are a letter once blanks are off them count for it, such as 'A' and ' A'. None where no letter is among them.
    """
    p_L = np.zeros(options)
    for token, logprob in tokens.items():
        letter = token.strip()
        if len(letter) == 1 and letter in LETTERS[:options] and not math.isnan(logprob):
            p_L[LETTERS.index(letter)] += math.exp(logprob)
    total = float(p_L.sum())
    return p_L / total if total > 0 else None


_SAID = re.compile(r"(?:answer|choice|option|response|prefer)\W+(?:is\W+|would be\W+)?\(?([A-Z])\b(?!['’])")
_ALONE = re.compile(r"\b([AI](?!\s+(?!or\b|and\b)[a-z])|[B-HJ-Z])\b(?!['’])")


def read_text(text: str, options: int) -> Floats | None:
    """(L,) 1 for the letter that a text chooses: it is that letter, begins with it ('B. Because'), says 'answer is B', or
    names one letter alone. None where it chooses none, or several.
    """
    letters = LETTERS[:options]
    said = text.strip().strip("*`\"'(){}[]<>.:, \n")
    if said in letters and len(said) == 1:
        return _one(letters.index(said), options)
    opening = re.match(r"\W*([A-Z])(?:[).:,\]*]|\s*\n|\s+-)", text)
    if opening and opening[1] in letters:
        return _one(letters.index(opening[1]), options)
    # 'A' is an article too, and 'I' a pronoun: before a word in small letters they are no choice, but in 'A or B'.
    alone = [one for one in _ALONE.findall(text) if one in letters]
    named = {one for one in _SAID.findall(text) if one in letters} or set(alone)
    return _one(letters.index(named.pop()), options) if len(named) == 1 else None


def averaged(p_by_order: Sequence[Floats], turned: Sequence[Order]) -> Floats:
    """(A,) mean probability of each option over its places; both sequences have one entry per order."""
    out = np.zeros(len(turned[0]))
    for p_L, order in zip(p_by_order, turned, strict=True):
        out[list(order)] += p_L
    return out / len(turned)


def _turned(question: Question, turn: int) -> Order:
    every = orders(len(question.options))
    return every[turn % len(every)]


def _asked(question: Question, order: Order) -> str:
    options = "\n\n".join(f"{LETTERS[place]}. {question.options[option]}" for place, option in enumerate(order))
    letters = " or ".join([", ".join(LETTERS[: len(order) - 1]), LETTERS[len(order) - 1]])
    return ASKED.format(question=transcript(question.messages), options=options) + ASKED_ALOUD.format(letters=letters)


def _who(case: Case, portrait: str | None) -> str | None:
    said: list[str] = []
    if case.told and case.user.profile:
        if portrait is None:
            said.append(ROLE_BY_FACTS.format(facts=profile_text(case.user.profile)))
        else:
            try:
                said.append(ROLE.format(portrait=portrait.format_map(dict(case.user.profile))))
            except (KeyError, ValueError, IndexError, AttributeError) as e:
                raise ConfigError(
                    f"people.portrait {portrait!r} does not fit the profile of user {case.user.id!r} ({e}): it has "
                    f"{', '.join(case.user.profile)}, each named in braces"
                ) from None
    if case.shown:
        said.append(SHOWN)
    return "\n\n".join(said) or None


def _one(place: int, options: int) -> Floats:
    p_L = np.zeros(options)
    p_L[place] = 1.0
    return p_L
