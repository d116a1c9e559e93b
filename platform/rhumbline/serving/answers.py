"""From a settled direction to answers: sampled, scored, chosen, and told with what was done. Not for streams, see streams.py.

    engine (n x best_of answers, or one per neighbouring direction) -> Rewards.score -> best of each group by v.r -> echo

Both kinds of completion come here: an `Asked` says how they differ.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rhumbline.errors import ScoringError
from rhumbline.records import Message
from rhumbline.serving import choose, echo
from rhumbline.serving.choose import Choice
from rhumbline.serving.errors import ApiError
from rhumbline.serving.exchange import Exchange
from rhumbline.serving.protocols import Body, EngineError
from rhumbline.serving.resolve import Resolved
from rhumbline.serving.service import Service
from rhumbline.serving.waiting import together

Vector = tuple[float, ...]  # (K,) rewards


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One conversation or prompt, ready to be said under any direction."""

    render: Callable[[str | None], Body]  # under a line of the codec -> `messages` or `prompt` of the engine's request
    fields: Mapping[str, Any]  # sampling, as the client set it
    n: int
    conversation: tuple[Message, ...]  # without a direction, for the reward model
    ask: Callable[..., Awaitable[Body]]  # Engine.chat or .complete
    stream: Callable[..., AsyncIterator[Body]]
    text: Callable[[Mapping[str, Any]], str]  # of a choice
    seed: int  # of neighbours; not negative


def chat_text(choice: Mapping[str, Any]) -> str:
    """The text of a choice of a chat completion; a call of a tool has none."""
    return str((choice.get("message") or {}).get("content") or "")


def prompt_text(choice: Mapping[str, Any]) -> str:
    """The text of a choice of a completion."""
    return str(choice.get("text") or "")


def positive(seed: int | None) -> int:
    """A request's seed as one that numpy takes: the same for the same, whatever its sign."""
    return (seed or 0) % 2**63


def possible(service: Service, resolved: Resolved, n: int, temperature: float | None, where: str = "steering") -> None:
    """Raises ApiError where the request's selection cannot be done here."""
    options = resolved.options
    if temperature == 0 and options.best_of > 1 and options.neighbours_deg == 0:
        raise ApiError(
            400,
            f"{where}.best_of: at temperature 0 all {options.best_of} answers would be the same: give a temperature",
            param=f"{where}.best_of",
            code="invalid_value",
        )
    service.bounded("n", n, service.settings.max_n)
    service.bounded(f"{where}.best_of", options.best_of, service.settings.max_best_of)
    if options.needs_rewards and service.rewards is None:
        param = f"{where}.best_of" if options.best_of > 1 else f"{where}.return_rewards"
        raise ApiError(
            400, f"{param} needs the run's reward model, and this server has none", param=param, code="no_reward_model"
        )


async def answer(service: Service, resolved: Resolved, asked: Asked, about: Exchange, model: str) -> Body:
    """The engine's response with n chosen answers, under the model's name that the client used, and with `steering`.

    Raises EngineError.
    """
    options = resolved.options
    under = None
    if options.best_of > 1 and options.neighbours_deg > 0:
        near = choose.neighbours(
            service.served.cone, resolved.effective, options.best_of, options.neighbours_deg, asked.seed
        )
        bodies = await together(*(_ask(asked, *service.words(v), asked.n, about) for v in near))
        under = near
        groups = [[_choice(body, i) for body in bodies] for i in range(asked.n)]
    else:
        size = options.best_of
        bodies = [await _ask(asked, resolved.line, resolved.model, asked.n * size, about)]
        groups = [[_choice(bodies[0], i * size + j) for j in range(size)] for i in range(asked.n)]
    for body in bodies:
        about.count(body.get("usage"))
    chosen, choices, rewards = await _chosen(service, resolved, asked, groups, under)
    out: Body = {
        **bodies[0],
        "model": model,
        "choices": [{**one, "index": i} for i, one in enumerate(chosen)],
        "usage": _summed([body.get("usage") or {} for body in bodies]),
    }
    return echo.with_steering(out, said(resolved, rewards, choices))


def said(resolved: Resolved, rewards: Sequence[Vector] | None, choices: Sequence[Choice] | None) -> dict[str, Any]:
    """The field `steering`: rewards and selection of the first answer, and of each under `choices` where there are more."""
    one = [
        echo.steering(
            resolved,
            rewards=None if rewards is None else rewards[i],
            choice=None if choices is None else choices[i],
        )
        for i in range(max(1, len(rewards or choices or ())))
    ]
    if len(one) == 1:
        return one[0]
    return {**one[0], "choices": [{key: each[key] for key in ("rewards", "selection") if key in each} for each in one]}


async def scored(service: Service, asked_of: Sequence[Message], texts: Sequence[str]) -> list[Vector]:
    """(N, K) rewards of N answers to one conversation. Raises EngineError where the reward model gives anything else."""
    assert service.rewards is not None, "`possible` refuses requests that need rewards"
    found = await service.rewards.score([(asked_of, text) for text in texts])
    if len(found) != len(texts) or any(len(row) != len(service.served.names) for row in found):
        raise EngineError(
            "the reward model gave another number of rewards than it was asked for", code="reward_model_error"
        )
    return [tuple(row) for row in found]


async def _ask(asked: Asked, line: str | None, model: str, n: int, about: Exchange) -> Body:
    body = {**asked.fields, **asked.render(line), "model": model, "n": n, "stream": False}
    return await asked.ask(body, request_id=about.engine_id)


async def _chosen(
    service: Service,
    resolved: Resolved,
    asked: Asked,
    groups: Sequence[Sequence[Mapping[str, Any]]],
    under: Sequence[tuple[float, ...]] | None,
) -> tuple[list[Mapping[str, Any]], list[Choice] | None, list[Vector] | None]:
    """Of each group the best answer, how it was chosen, and its rewards; without a wish for either, the only one."""
    options = resolved.options
    if not options.needs_rewards:
        return [group[0] for group in groups], None, None
    flat = [one for group in groups for one in group]
    rewards_NK = await scored(service, asked.conversation, [asked.text(one) for one in flat])
    size = len(groups[0])
    rows = [rewards_NK[i * size : (i + 1) * size] for i in range(len(groups))]
    if options.best_of == 1:
        return [group[0] for group in groups], None, [row[0] for row in rows]
    try:
        choices = [choose.best(row, resolved.effective, service.served.standardiser, under) for row in rows]
    except ScoringError as e:
        raise EngineError(str(e), code="reward_model_error") from e
    return [group[choice.index] for group, choice in zip(groups, choices, strict=True)], choices, None


def _choice(body: Body, index: int) -> Mapping[str, Any]:
    found = next((one for one in body.get("choices") or () if one.get("index", 0) == index), None)
    if found is None:
        raise EngineError(f"the engine gave {len(body.get('choices') or ())} answers, and none of index {index}")
    return dict(found)


def _summed(usages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tokens of all requests that the engine answered for one of ours; details only where there was one."""
    if len(usages) == 1:
        return dict(usages[0])
    keys = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {key: sum(int(usage.get(key) or 0) for usage in usages) for key in keys}
