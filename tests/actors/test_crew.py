"""What a crew makes of scored answers, without its actors: win rates by a scorer that no objective is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from actors.crew import Crew
from actors.rollout import Rollout
from actors.summary import figures
from rhumbline import config
from rhumbline.errors import ConfigError
from rhumbline.learning.policy import load_policy, save_adapter
from rhumbline.metrics import MetricsLog
from rhumbline.plan import Plan
from rhumbline.records import Scored
from rhumbline.rewards.objectives import Calibration
from rhumbline.store import RunStore
from tests.fakes import tiny_policy
from tests.jobs.dpa_runs import recipe as written
from tests.rhumbline.evaluation_fakes import answer, arc

JUDGED = {"kind": "rules", "heads": {"lists": {"rule": "lists"}}}  # a head that no objective is made of
NEAR, FAR = arc([0.0, -45.0])
CALIBRATION = Calibration.fit(("helpfulness", "verbosity"), [[0.0, 0.0], [60.0, 80.0]], [1, 2])


class Scorers:
    """A pool that gives an answer the score that its text says."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.killed_before: int | None = None  # the unit

    def map(self, method: str, units: Iterable[tuple[int, tuple[Any, ...]]]) -> Iterator[tuple[int, Any]]:
        for index, (completions, head) in units:
            if index == self.killed_before:
                raise KeyboardInterrupt
            self.asked.append((method, head, len(completions)))
            yield index, [float(one.text) for one in completions]


def says(prompt: str, direction: tuple[float, ...] | None, *scores: float) -> list[Scored]:
    index = 1 if direction == FAR else 0
    return [answer(prompt, direction, (50, 40), index=index, sample=s, text=str(x)) for s, x in enumerate(scores)]


def load(folder: Path, **evaluation: Any) -> config.Recipe:
    path = written(folder)
    content = json.loads(json.dumps(config.read(path)))
    content["rewards"]["sources"].append(JUDGED)
    content["evaluation"] |= {"kl": False, **evaluation}
    return config.validate(content, str(path))


@pytest.fixture
def scorers() -> Scorers:
    return Scorers()


@pytest.fixture
def crew(tmp_path: Path, scorers: Any) -> Iterator[Crew]:
    recipe = load(tmp_path, win_rate={"head": "lists"})
    plan = Plan.make(recipe)
    with RunStore.create(tmp_path / "runs", recipe, resume=False) as store:
        made = Crew(recipe, store, plan)
        made.scorers = scorers  # a fake of the one method that is used
        initial = [*says("a", None, 1.0, 2.0), *says("b", None, 5.0)]
        made._held_out["initial"] = Rollout(scored=tuple(initial), failed=0)
        yield made


def test_answers_are_compared_by_the_held_out_head_and_its_scores_are_kept(crew: Crew, scorers: Scorers) -> None:
    own = [*says("a", NEAR, 3.0, 1.0), *says("b", NEAR, 5.0), *says("a", FAR, 0.0), *says("b", FAR, 6.0)]
    told = crew.judge("t=1", own, CALIBRATION, t=1)
    rates = [direction.win_rate.value for direction in told[0].directions if direction.win_rate is not None]
    assert rates == [0.5625, 0.5]  # as in test_evaluation_wins.py
    assert scorers.asked == [("head", "lists", 5), ("head", "lists", 3)]
    kept = json.loads((crew.store.path / "evaluation/t=1.win_rate.json").read_text())
    assert kept == {"a/d0/s0": 3.0, "a/d0/s1": 1.0, "b/d0/s0": 5.0, "a/d1/s0": 0.0, "b/d1/s0": 6.0}
    assert json.loads((crew.store.path / "evaluation/t=1.json").read_text())["win_rate"]["value"] == 0.53125
    assert figures(crew.recipe, CALIBRATION, told)["win_rate"] == 0.53125
    crew.judge("t=1", own, CALIBRATION, t=1)
    assert len(scorers.asked) == 2  # read back


def test_a_killed_driver_asks_only_for_the_scores_that_it_had_not_been_given(crew: Crew, scorers: Scorers) -> None:
    own = says("a", NEAR, *map(float, range(300)))
    scorers.killed_before = 2
    with pytest.raises(KeyboardInterrupt):
        crew.judge("t=1", own, CALIBRATION, t=1)
    scorers.killed_before, before = None, list(scorers.asked)
    again = [*own, *says("b", NEAR, 5.0)]  # and for those of a shard that was given up
    told = crew.judge("t=1", again, CALIBRATION, t=1)
    assert [asked[2] for asked in before] == [128, 128]
    assert [asked[2] for asked in scorers.asked[2:]] == [45, 3]  # the rest, and the opponent's answers
    assert told[0].directions[0].win_rate is not None
    assert crew.accounts.stages()[0]["items"] == 301


def test_an_adapter_of_other_weights_under_the_same_name_is_refused_with_its_keys(crew: Crew, tmp_path: Path) -> None:
    adapter = crew.store.checkpoint_dir(7) / "adapter"
    model = get_peft_model(load_policy(tiny_policy(tmp_path / "policy-before", seed=1)), LoraConfig(r=2))
    save_adapter(model, adapter)
    crew.publish(7, crew.plan.codec, CALIBRATION)
    with pytest.raises(ConfigError, match=r"it was trained on another base.*\(initial\.adapter, policy\.initial\)"):
        crew.adopt(0, adapter)
    assert crew.store.marked("iterations/t=0/learn") is None


def test_the_initial_policy_has_no_opponent(crew: Crew) -> None:
    told = crew.judge("initial", crew.held_out(None).scored, CALIBRATION, t=None)
    assert told[0].win_rate is None
    assert "win_rate" not in figures(crew.recipe, CALIBRATION, told)


def test_of_a_head_where_less_is_better_the_lower_score_wins(crew: Crew) -> None:
    heads = [head for head in crew.reward_model.heads if head.name == "lists"]
    object.__setattr__(heads[0], "higher_is_better", False)
    (told, _) = crew.judge("t=1", says("b", NEAR, 4.0), CALIBRATION, t=1)
    assert told.win_rate is not None
    assert told.win_rate.value == 1.0


def test_an_unknown_head_and_a_missing_opponent_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.win_rate\.head: .* the head 'list'\. Did you mean 'lists'\?"):
        Plan.make(load(tmp_path, win_rate={"head": "list"}))
    with pytest.raises(ConfigError, match=r"evaluation\.win_rate is against the initial policy"):
        load(tmp_path, win_rate={"head": "lists"}, initial_policy=False)
    with pytest.raises(ConfigError, match=r"unknown key evaluation\.win_rate\.haed\. Did you mean 'head'\?"):
        load(tmp_path, win_rate={"haed": "lists"})


def test_a_run_goes_on_only_with_the_same_judge_and_its_rewards_are_those_without_it(tmp_path: Path) -> None:
    plain, judged = load(tmp_path), load(tmp_path, win_rate={"head": "lists"})
    without, with_judge = Plan.make(plain).inputs(), Plan.make(judged).inputs()
    assert set(with_judge) - set(without) == {"scorer of the win rate (evaluation.win_rate)"}
    assert without["reward model"] == with_judge["reward model"]


def test_steps_that_a_killed_training_makes_again_are_logged_once(tmp_path: Path) -> None:
    """By the same driver (a worker was killed) and by the next one (`--resume`)."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    crew: Any = SimpleNamespace(metrics=log)
    one = Crew._log_once(crew, 1)
    for step in (1, 2, 3, 2, 3):
        one({"learn/step": step, "learn/loss": 1.0 / step})
    Crew._log_once(crew, 2)({"learn/step": 1, "learn/loss": 0.5})  # of another iteration
    resumed = Crew._log_once(crew, 1)
    for step in (3, 4):
        resumed({"learn/step": step, "learn/loss": 1.0 / step})
    assert [(row["step"], row["learn/step"]) for row in log.read()] == [(1, 1), (1, 2), (1, 3), (2, 1), (1, 4)]
