"""The typed records that pass between stages. Each stage returns a new record that holds the old one.

    Prompt -> Query -> Completion -> Scored -> Selected -> Example, Pair, Judged
    data      ask      generate      score     select      learn

K objectives in recipe order; T tokens. Records are plain data: they print, pickle and diff.

    prompt = Prompt(id="p1", messages=(Message(role="user", content="Why is the sky blue?"),))
    query = Query(prompt=prompt, iteration=1, direction=(0.8, -0.6), direction_index=0, style="",
                  messages=(Message(role="system", content="..."), *prompt.messages), seed=7)
    query.id                               # 'p1/d0'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a person asked: one or more turns, the last one the user's. Never holds a direction."""

    id: str  # unique within a run, stable across runs
    messages: tuple[Message, ...]
    reference: str | None = None  # a reference answer, where a rule needs one


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A prompt asked under a direction: exactly what the generator is sent."""

    prompt: Prompt
    iteration: int  # t
    direction: tuple[float, ...] | None  # (K,) unit vector, recipe order; None = asked without a direction
    direction_index: int  # which of the prompt's queries this is, from 0
    style: str  # whose words stood in the user's turn instead of a direction, for contrast (t=0; later by initial.fade)
    messages: tuple[Message, ...]  # rendered by the codec: system, turns, style
    seed: int  # derived from (run seed, iteration, prompt id, direction index)

    @property
    def id(self) -> str:
        return f"{self.prompt.id}/d{self.direction_index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer to a query."""

    query: Query
    sample_index: int  # from 0
    text: str  # without special tokens
    token_ids: tuple[int, ...]  # (T,) as sampled, the end token included when finish_reason is 'stop'
    logprob: float  # sum over token_ids of log pi(token | ...), nats, at temperature 1
    finish_reason: FinishReason  # 'stop': the model ended by itself; 'length': cut at max_tokens
    policy_version: str  # of the policy that made it, e.g. 't=0'
    token_logprobs: tuple[float, ...] = ()  # (T,) the terms of `logprob`; empty where nobody asked for them

    @property
    def id(self) -> str:
        return f"{self.query.id}/s{self.sample_index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A completion with its reward vector. The vector does not depend on any direction."""

    completion: Completion
    rewards: tuple[float, ...]  # (K,) on 0-100, recipe order, before standardisation


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """A scored completion kept for a direction, which pooled selection may choose freely."""

    scored: Scored
    direction: tuple[float, ...]  # (K,) unit vector that this completion is kept for
    value: float  # the scalar that was maximised: v . standardised rewards
    num_candidates: int  # how many completions it won against, itself included


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One training sample: turns, then a response that carries the loss."""

    id: str
    messages: tuple[Message, ...]  # system prompt with the direction, then the turns
    response: str
    complete: bool = True  # False: the response was cut, so its end token is not learned
    weight: float = 1.0  # loss weight
    direction: tuple[float, ...] | None = None  # (K,) for reports; the messages already say it
    teacher: tuple[Message, ...] | None = None  # turns under which the frozen teacher is asked; None: no teacher
    every_turn: bool = False  # the assistant's turns among `messages` carry the loss as well


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two answers, the first better than the second: what DPO and its kin learn from. To one prompt, but for jpo's."""

    id: str
    messages: tuple[Message, ...]  # system prompt with the direction or the profile, then the turns
    chosen: str
    rejected: str
    chosen_complete: bool = True  # False: the response was cut, so its end token is not learned
    rejected_complete: bool = True
    weight: float = 1.0  # loss weight
    gaps: tuple[
        float, ...
    ] = ()  # (K,) standardised rewards of the chosen answer less those of the other; empty: unknown
    direction: tuple[float, ...] | None = None  # (K,) for reports; the messages already say it
    rejected_messages: tuple[Message, ...] | None = (
        None  # jpo: the turns before `rejected`; None: the same as `messages`
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One answer that is known to be desirable or not: what KTO and BCO learn from."""

    id: str
    prompt_id: str  # mismatched answers are those to another prompt
    messages: tuple[Message, ...]
    response: str
    desirable: bool
    complete: bool = True
    weight: float = 1.0
    direction: tuple[float, ...] | None = None
