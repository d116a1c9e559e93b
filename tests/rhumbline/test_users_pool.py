"""Questions out of a run: which samples are read, on which scale, and which pairs stay out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rhumbline import codecs
from rhumbline.directions import Cone
from rhumbline.errors import DataError, RunError
from rhumbline.records import Completion, Message, Prompt, Query, Scored
from rhumbline.rewards.objectives import Calibration
from rhumbline.steering import Steering
from rhumbline.store import RunStore
from rhumbline.users.pool import Matching, QuizItem, items_from_run, match, matched
from tests.rhumbline.store_runs import recipe

CONE = Cone(("a", "b"), (1.0, 0.0), 45.0)
MEAN, STD = (50.0, 20.0), (10.0, 5.0)
EXACT = Matching(min_gap=0.0, max_quality_gap=None)


def scored(prompt: str, text: str, rewards: tuple[float, float], *, tokens: int = 10, cut: bool = False) -> Scored:
    asked = Prompt(id=prompt, messages=(Message(role="user", content=f"Why {prompt}?"),))
    query = Query(
        prompt=asked,
        iteration=0,
        direction=(1.0, 0.0),
        direction_index=0,
        style="",
        messages=(Message(role="system", content="weights"), *asked.messages),
        seed=1,
    )
    completion = Completion(
        query=query,
        sample_index=0,
        text=text,
        token_ids=tuple(range(tokens)),
        logprob=-1.0,
        finish_reason="length" if cut else "stop",
        policy_version="t=0",
    )
    return Scored(completion=completion, rewards=rewards)


def run(root: Path, stages: dict[str, list[Scored]], *, standardise: bool = True, checkpoint: bool = True) -> Path:
    """A finished run with scored samples and, for its last policy, a contract."""
    settings = recipe()
    if not standardise:
        settings = recipe(rewards={**settings.rewards.model_dump(mode="json"), "standardise": False})
    with RunStore.create(root, settings, resume=False) as store:
        for stage, rows in stages.items():
            store.publish(f"{stage}/scores", 0, rows)
        if checkpoint:
            folder = store.checkpoint_dir(2)
            folder.mkdir()
            contract().write(folder)
        return store.path


def contract() -> Steering:
    calibration = Calibration(
        names=("a", "b"),
        n=100,
        mean=MEAN,
        std=STD,
        minimum=(0.0, 0.0),
        maximum=(100.0, 100.0),
        p10=(30.0, 10.0),
        p50=MEAN,
        p90=(70.0, 30.0),
        length_correlation=(0.1, 0.9),
    )
    return Steering(
        objectives=("a", "b"),
        signs=(1, 1),
        calibration=calibration.to_dict(),
        codec=codecs.make("dpa-int100", ["a", "b"]).to_dict(),
        region=CONE.to_dict(),
        reward_model="rm",
        iteration=2,
        initial="embedded",
        presets={},
    )


def texts(prompt: str) -> list[Scored]:
    """Four answers that trade a for b, one that beats all of them, one cut off."""
    return [
        scored(prompt, f"{prompt} one two three", (50.0, 30.0)),
        scored(prompt, f"{prompt} four five six", (55.0, 25.0)),
        scored(prompt, f"{prompt} seven eight nine", (60.0, 20.0)),
        scored(prompt, f"{prompt} ten eleven twelve", (90.0, 31.0)),
        scored(prompt, f"{prompt} cut off here", (52.0, 29.0), cut=True),
    ]


def item(
    d: tuple[float, ...], *, prompt: str = "p", a: str = "one", b: str = "other", tokens: tuple[int, int] = (9, 9)
) -> QuizItem:
    zero = (0.0,) * len(d)
    return QuizItem(prompt_id=prompt, prompt=(), a=a, b=b, rewards_a=d, rewards_b=zero, tokens=tokens)


def test_questions_come_from_the_newest_evaluation_standardised_with_the_checkpoints_calibration(
    tmp_path: Path,
) -> None:
    path = run(
        tmp_path,
        {
            "evaluation/t=1": texts("old"),
            "evaluation/t=2": [one for prompt in ("p", "q") for one in texts(prompt)],
            "evaluation/initial": texts("initial"),
            "iterations/t=2": texts("trained"),
        },
    )
    items = items_from_run(path)
    assert {one.prompt_id for one in items} == {"p", "q"}
    assert all(one.prompt[0].content.startswith("Why") and len(one.prompt) == 1 for one in items)
    assert not any("cut off" in text for one in items for text in (one.a, one.b))
    known = {s.completion.text: s.rewards for s in (*texts("p"), *texts("q"))}
    for one in items:
        for text, rewards in ((one.a, one.rewards_a), (one.b, one.rewards_b)):
            assert rewards == pytest.approx((np.array(known[text]) - MEAN) / STD)
    assert items_from_run(path, stages=["evaluation/t=1"])[0].prompt_id == "old"
    assert items_from_run(path) == items  # the same questions for everybody
    both = items_from_run(path, stages=["evaluation/t=1", "evaluation/t=2"])
    assert {one.prompt_id for one in both} == {"old", "p", "q"}
    for folder in (path / "checkpoints").glob("t=*"):
        (folder / "steering.json").unlink()
    with pytest.raises(DataError, match=r"no checkpoint with steering\.json"):
        items_from_run(path)
    assert items_from_run(path, contract=contract()) == items  # of a soup, which has none


def test_without_an_evaluation_the_newest_iteration_serves(tmp_path: Path) -> None:
    path = run(tmp_path, {"iterations/t=9": texts("nine"), "iterations/t=10": texts("ten")})
    assert {one.prompt_id for one in items_from_run(path)} == {"ten"}


def test_where_directions_refer_to_points_one_divisor_serves_all_objectives(tmp_path: Path) -> None:
    path = run(tmp_path, {"evaluation/t=2": texts("p")}, standardise=False)
    known = {s.completion.text: s.rewards for s in texts("p")}
    for one in items_from_run(path, how=EXACT):
        assert one.difference == pytest.approx(np.subtract(known[one.a], known[one.b]) / 7.5)  # the mean of 10 and 5


def test_pairs_per_prompt_and_in_all_are_bounded_and_sides_are_chance(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        scored(f"p{p}", f"p{p} answer {n} {rng.integers(1e9)} {rng.integers(1e9)}", (50 + 10 * x, 20 + 5 * y))
        for p in range(30)
        for n, (x, y) in enumerate(rng.normal(size=(6, 2)).tolist())
    ]
    path = run(tmp_path, {"evaluation/t=2": rows})
    items = items_from_run(path, per_prompt=3, limit=50, how=Matching(max_similarity=1.0))
    assert len(items) == 50
    assert max(np.unique([one.prompt_id for one in items], return_counts=True)[1]) <= 3
    first = sum(int(one.a.split()[2]) < int(one.b.split()[2]) for one in items)
    assert 10 < first < 40
    assert items != items_from_run(path, per_prompt=3, limit=50, seed=1)


def test_runs_that_hold_no_questions_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run at"):
        items_from_run(tmp_path / "nothing")
    with pytest.raises(DataError, match="no scored samples yet"):
        items_from_run(run(tmp_path / "empty", {}))
    with pytest.raises(DataError, match="no checkpoint"):
        items_from_run(run(tmp_path / "bare", {"evaluation/t=2": texts("p")}, checkpoint=False))
    with pytest.raises(DataError, match="no scored samples at evaluation/t=7"):
        items_from_run(run(tmp_path / "other", {"evaluation/t=2": texts("p")}), stages=["evaluation/t=7"])
    with pytest.raises(DataError, match="several answers per"):
        items_from_run(run(tmp_path / "single", {"evaluation/t=2": texts("p")[:1]}))


def test_a_pair_is_contested_where_the_cone_disagrees() -> None:
    """Brute force: over the cone's directions, do some take a and some b?"""
    how = Matching(max_quality_gap=None, max_length_ratio=None, min_gap=0.0)
    cone = Cone(tuple("abc"), (1.0, 1.0, -0.5), 30.0)
    d_NK = np.random.default_rng(0).normal(size=(300, 3))
    over_N = matched(d_NK, np.ones((300, 2)), cone, None, how)
    sides_NM = d_NK @ cone.sample(np.random.default_rng(1), 20_000).T > 0
    brute_N = sides_NM.any(axis=1) & ~sides_NM.all(axis=1)
    assert (brute_N == (over_N == 0)).mean() > 0.99  # samples miss slivers at the edge


def test_quality_is_measured_along_the_default_direction() -> None:
    d_NK, tokens = [(1.0, 1.4), (2.0, 2.4), (0.0, 3.0)], np.ones((3, 2))
    assert (matched(d_NK, tokens, CONE, None, Matching()) == 0).tolist() == [True, False, True]
    assert (matched(d_NK, tokens, CONE, (0.0, 1.0), Matching()) == 0).tolist() == [True, False, False]


def test_length_is_matched_by_ratio() -> None:
    tokens = [(10, 20), (10, 21), (21, 10), (0, 0), (0, 5)]
    over_N = matched([(0.0, 1.0)] * 5, tokens, CONE, None, Matching())
    assert (over_N == 0).tolist() == [True, False, False, True, False]


def test_near_copies_and_equal_scores_are_no_questions() -> None:
    long = "the same twenty words again and again so that one other word at the end is nothing to choose by at all"
    pool = [
        item((0.0, 1.0), a=f"{long} here", b=f"{long} there"),
        item((0.0, 0.0), prompt="q"),
        item((0.0, 1.0), prompt="r"),
    ]
    assert [one.prompt_id for one in match(pool, CONE)] == ["r"]
    with pytest.raises(DataError, match="no pair of answers makes a question"):
        match(pool[:2], CONE)


def test_where_few_pairs_match_the_least_bad_fill_up_by_prompts() -> None:
    good = [item((0.0, 1.0), prompt=f"good{n}", a=f"x{n}") for n in range(3)]
    bad = [item((1.0 + n, 1.0), prompt=f"bad{n}", a=f"y{n}") for n in range(1, 5)]
    assert match([*bad, *good], CONE, at_least=3) == good
    assert [one.prompt_id for one in match([*bad, *good], CONE, at_least=5)] == [
        "bad1",
        "bad2",
        "good0",
        "good1",
        "good2",
    ]
    assert len(match([*bad, *good], CONE)) == 7


def test_faults_are_named() -> None:
    with pytest.raises(DataError, match="3 rewards, the model is steered by 2"):
        match([item((0.0, 1.0, 2.0))], CONE)
    with pytest.raises(DataError, match="one per objective"):
        QuizItem(prompt_id="p", prompt=(), a="x", b="y", rewards_a=(1.0, 2.0), rewards_b=(1.0,))
    with pytest.raises(DataError, match="finite"):
        QuizItem(prompt_id="p", prompt=(), a="x", b="y", rewards_a=(1.0, float("nan")), rewards_b=(1.0, 2.0))
