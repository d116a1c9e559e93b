"""The reward model of a deployment: batches that keep each request's answers apart, and the model that it must be."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from actors.reward_server import RewardServer
from rhumbline import config
from rhumbline.errors import CodecError, ScoringError
from rhumbline.rewards.model import RewardModel
from tests.actors.test_deployment import REWARDS

ASKED = [("user", "Why is the sky blue?")]


def server() -> RewardServer:
    """`_score` is what Serve's batching calls; the batching itself needs a replica (tests/jobs/test_deploy_run.py)."""
    known = RewardModel.build(config.Rewards(**REWARDS), tokenise=lambda _: []).id
    return RewardServer(REWARDS, id=known, policy="embedded", serving={})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many answers each pass of the model scored; the real rules score them."""
    passes: list[int] = []
    real = RewardModel.score

    def score(self: RewardModel, batch: Any) -> Any:
        passes.append(len(batch))
        if any(answer == "unscorable" for _, answer in batch):
            raise ScoringError("no score for this")
        return real(self, batch)

    monkeypatch.setattr("rhumbline.rewards.model._tokeniser", lambda *_: lambda text: text.split())
    monkeypatch.setattr(RewardModel, "score", score)
    return passes


def test_requests_are_scored_together_and_answered_apart(counted: list[int]) -> None:
    requests = [[(ASKED, "short"), (ASKED, "a a a a a a a a")], [(ASKED, "other words here")]]
    first, second = asyncio.run(server()._score(requests))
    assert counted == [3]  # one pass for both
    (short, repeated), (other,) = first["rewards"], second["rewards"]
    assert len(short) == 2
    assert repeated[1] > short[1]  # longer
    (alone,) = asyncio.run(server()._score(requests[1:]))
    assert np.allclose(alone["rewards"], [other])


def test_an_answer_that_cannot_be_scored_fails_its_own_request_alone(counted: list[int]) -> None:
    good, bad = asyncio.run(server()._score([[(ASKED, "good")], [(ASKED, "unscorable")]]))
    assert len(good["rewards"]) == 1
    assert bad == {"error": "no score for this"}


def test_another_reward_model_than_the_policys_is_refused() -> None:
    with pytest.raises(CodecError, match="the policy was trained against f00"):
        RewardServer(REWARDS, id="f00", policy="embedded", serving={})
