"""The run's reward model as a Serve deployment, and Rewards (rhumbline.serving.protocols) over its handle.

    app = rewards_app({"id": "f0c1", "rewards": {...}, "policy": "embedded", "serving": {...}, "drain_s": 60})
    serve.run(app, name="smol--rewards-f0c1", route_prefix=None)
    await HandleRewards("smol--rewards-f0c1").score([((question,), "Because.")])         # [(71.3, 38.0)]

Requests that come within a few milliseconds are scored in one pass. N answers, K objectives.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from ray import serve

from actors.engine_client import QUIET, as_engine_error
from actors.serve_internals import handle_of
from rhumbline import config
from rhumbline.config.deploy import RewardServing
from rhumbline.data.prompts import prompt_id_of
from rhumbline.errors import CodecError, RhumblineError
from rhumbline.learning.policy import set_threads
from rhumbline.records import Message, Prompt
from rhumbline.rewards.model import RewardModel
from rhumbline.serving.protocols import EngineError

DEPLOYMENT = "rewards"
Item = tuple[list[tuple[str, str]], str]  # turns as (role, content), answer: what crosses between processes
Answer = dict[str, Any]  # {"rewards": [[..K]..N]} or {"error": str}


class RewardServer:
    """Plain Python: tests construct it directly, `rewards_app` makes it a deployment."""

    def __init__(
        self, rewards: dict[str, Any], *, id: str, policy: str, serving: dict[str, Any], trust_remote_code: bool = False
    ) -> None:
        settings = RewardServing(**serving)
        set_threads(settings.threads)
        section = config.Rewards(**rewards)
        self.model = RewardModel.build(section, policy=policy, trust_remote_code=trust_remote_code)
        if self.model.id != id:
            raise CodecError(
                f"the rewards here make the reward model {self.model.id}, the policy was trained against {id}: give the "
                "recipe of its run (rewards.recipe), with the reward models that it names at the same place"
            )
        self.model.setup()
        self._batched = _batched(self._score, settings)

    async def score(self, items: list[Item]) -> Answer:
        """One request's answers; it is scored together with others that are waiting."""
        answer: Answer = await self._batched(items)
        return answer

    async def pid(self) -> int:
        return os.getpid()

    async def _score(self, requests: list[list[Item]]) -> list[Answer]:
        try:
            return await asyncio.to_thread(self._together, requests)
        except RhumblineError:  # one of them cannot be scored: only that one shall fail
            return [await asyncio.to_thread(self._alone, items) for items in requests]

    def _together(self, requests: list[list[Item]]) -> list[Answer]:
        rewards_NK = self.model.score([_pair(item) for items in requests for item in items])
        out, at = [], 0
        for items in requests:
            out.append({"rewards": rewards_NK[at : at + len(items)].tolist()})
            at += len(items)
        return out

    def _alone(self, items: list[Item]) -> Answer:
        try:
            return self._together([items])[0]
        except RhumblineError as e:
            return {"error": str(e)}


class HandleRewards:
    """Rewards over the handle of `rewards_app`."""

    def __init__(self, app: str) -> None:
        self._handle: Any = handle_of(DEPLOYMENT, app)

    async def score(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[tuple[float, ...]]:
        """(N, K) on 0-100. Raises EngineError: 503 where the reward model is not there, 500 where it cannot score one."""
        if not items:
            return []
        response = self._handle.score.remote(
            [([(m.role, m.content) for m in messages], answer) for messages, answer in items]
        )
        try:
            answer: Answer = await response
        except BaseException as e:
            response.cancel()
            raise as_engine_error(e, "reward model") from e
        if "error" in answer:
            raise EngineError(f"the reward model cannot score this: {answer['error']}", 500, "scoring_failed")
        return [tuple(rewards_K) for rewards_K in answer["rewards"]]


def _batched(score: Any, settings: RewardServing) -> Any:
    """`score` of many requests as a coroutine function of one, which waits for `settings.max_batch` or `settings.wait_s`."""
    decorate: Any = serve.batch(max_batch_size=settings.max_batch, batch_wait_timeout_s=settings.wait_s)

    async def together(requests: list[list[Item]]) -> list[Answer]:
        answers: list[Answer] = await score(requests)
        return answers

    return decorate(together)


def _pair(item: Item) -> tuple[Prompt, str]:
    turns, answer = item
    messages = tuple(Message(role=role, content=content) for role, content in turns)  # type: ignore[arg-type]  # as sent
    return Prompt(id=prompt_id_of(messages), messages=messages), answer


def rewards_app(args: dict[str, Any]) -> serve.Application:
    """A Serve application of one reward model; what `serve run` calls. `args`: those of RewardServer, and drain_s."""
    serving = RewardServing(**args["serving"])
    deployment: Any = serve.deployment(RewardServer)
    app: serve.Application = deployment.options(
        name=DEPLOYMENT,
        num_replicas=serving.replicas,
        ray_actor_options={"num_cpus": serving.num_cpus, "num_gpus": serving.num_gpus},
        max_ongoing_requests=4 * serving.max_batch,
        max_queued_requests=16 * serving.max_batch,
        logging_config=QUIET,
        graceful_shutdown_timeout_s=args["drain_s"],
        graceful_shutdown_wait_loop_s=1.0,
    ).bind(**{key: value for key, value in args.items() if key != "drain_s"})
    return app
