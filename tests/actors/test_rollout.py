"""Rollouts over real pools of fakes: what is published, what a stopped driver left, and weights that follow replicas."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.pool import Pool
from actors.probes import Case
from actors.rollout import rollout
from actors.weights import sync, write_probe
from rhumbline import config
from rhumbline.data.chat import Encoded
from rhumbline.errors import WeightSyncError
from rhumbline.records import Completion, Query, Scored
from rhumbline.store import RunStore
from tests.fakes import FakeGenerator, FakeScorer, query

pytestmark = pytest.mark.usefixtures("cluster")
STAGE, SAMPLING, N = "iterations/t=1", config.Sampling(max_tokens=64), 2
REWARDS = config.Rewards.model_validate(
    {
        "sources": [{"kind": "rules", "heads": {"verbosity": {"rule": "verbosity"}}}],
        "objectives": {"helpfulness": {"heads": {"verbosity": 1.0}}, "verbosity": {"heads": {"verbosity": 1.0}}},
    }
)
RECIPE = config.Recipe(name="tiny", rewards=REWARDS)
QUERIES = [query(f"Count to {i}.", id=f"p{i:02}", verbosity=-10 * (i % 7), seed=i) for i in range(12)]


@pytest.fixture(scope="module")
def pools(cluster: None) -> Iterator[tuple[Pool, Pool]]:
    generator = {"settings": config.Generator(), "model": "none"}
    scorer = {"rewards": REWARDS, "policy": "none", "threads": None}
    with (
        Pool(FakeGenerator, generator, role="generator", num_cpus=0.5, replicas=2, deadline_s=60) as generators,
        Pool(FakeScorer, scorer, role="scorer", num_cpus=0.5, deadline_s=60) as scorers,
    ):
        yield generators, scorers


def made(store: RunStore, pools: tuple[Pool, Pool], queries: list[Query] = QUERIES) -> list[Scored]:
    out = rollout(store, STAGE, queries, *pools, n=N, sampling=SAMPLING, prompts_per_shard=2)
    assert out.failed == 0
    return list(out.scored)


def create(folder: Path, resume: bool = False) -> RunStore:
    return RunStore.create(folder, RECIPE, resume)


def test_every_sample_is_scored_once_and_in_the_order_of_the_queries(tmp_path: Path, pools: tuple[Pool, Pool]) -> None:
    with create(tmp_path) as store:
        scored = made(store, pools)
        assert [s.completion.id for s in scored] == [f"p{i:02}/d0/s{j}" for i in range(12) for j in range(N)]
        assert all(s.rewards[1] == min(len(s.completion.text), 100) for s in scored)
        assert list(store.read(f"{STAGE}/rollouts", Completion)) == [s.completion for s in scored]
        assert store.done(f"{STAGE}/scores") == set(range(6))


def test_a_driver_that_stops_half_way_loses_no_shard_and_makes_none_twice(
    tmp_path: Path, pools: tuple[Pool, Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    with create(tmp_path / "calm") as store:
        calm = made(store, pools)

    publish, published = RunStore.publish, []

    def stopping(self: RunStore, stage: str, index: int, *rest: Any) -> bool:
        if len(published) == 5:
            raise KeyboardInterrupt
        published.append((stage, index))
        return publish(self, stage, index, *rest)

    monkeypatch.setattr(RunStore, "publish", stopping)
    with pytest.raises(KeyboardInterrupt), create(tmp_path / "stopped") as store:
        made(store, pools)
    monkeypatch.setattr(RunStore, "publish", publish)
    with create(tmp_path / "stopped", resume=True) as store:
        before = {(shard.stage, shard.index) for s in ("rollouts", "scores") for shard in store.shards(f"{STAGE}/{s}")}
        assert before == set(published)
        assert made(store, pools) == calm
        lines = (store.path / "ledger.jsonl").read_text().splitlines()
        assert len(lines) == 12  # six shards, generated and scored once each


def test_a_killed_generator_changes_nothing(tmp_path: Path, pools: tuple[Pool, Pool]) -> None:
    generators, _ = pools
    with create(tmp_path / "calm") as store:
        calm = made(store, pools)
    with create(tmp_path / "killed") as store:
        os.kill(generators.pids()[0], signal.SIGKILL)
        assert made(store, pools) == calm


def test_weights_are_proven_and_follow_a_replica_that_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "t=1"
    folder.mkdir()
    encoded = Encoded(token_ids=(1, 2, 3), loss_mask=(False, True, True))
    write_probe(folder, [Case(encoded=encoded, logprobs=[-0.5, -0.25])])  # the fake answers what it finds here
    generator = {"settings": config.Generator(), "model": "none"}
    with Pool(FakeGenerator, generator, role="generator", num_cpus=0.5, deadline_s=60) as generators:
        assert sync(generators, "t=1", folder, tolerance=0.05, deadline_s=30).seconds > 0.0
        os.kill(generators.pids()[0], signal.SIGKILL)
        ((_, (completion,)),) = generators.map("generate", [(0, (QUERIES[:1], 1, SAMPLING))])
        assert completion.policy_version == "t=1"


def test_an_engine_that_did_not_take_the_weights_stops_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "t=1"
    folder.mkdir()
    generator = {"settings": config.Generator(), "model": "none"}
    with Pool(DeafGenerator, generator, role="generator", num_cpus=0.5, deadline_s=60) as generators:
        encoded = Encoded(token_ids=(1, 2, 3), loss_mask=(False, True, True))
        write_probe(folder, [Case(encoded=encoded, logprobs=[-0.5, -0.25])])
        # log p is -1.5 of both tokens here, at the learner -0.375 on average: 1.125 apart
        with pytest.raises(
            WeightSyncError, match=r"-1\.5000 on average here and -0\.3750 at the learner, 1\.1250 nats"
        ):
            sync(generators, "t=1", folder, tolerance=0.05, deadline_s=30)


class DeafGenerator(FakeGenerator):
    """Says that it has loaded a version, and has not."""

    def load(self, version: str, folder: str) -> str:
        self.version = version
        return version
