"""Questions for the quiz out of a run: pairs of the policy's own answers to one held-out prompt, with their reward vectors.

    items = items_from_run("runs/smol")                 # from the newest evaluation: one prompt, many directions
    items[0].difference                                 # (K,) standardised rewards of a less those of b

A pair makes a good question where the trade-off decides, not the better writing. So a pair stays out where everybody within
the cone would take the same side, where one answer is much better along the default direction, where one is much longer,
where the two are almost the same text, and where one was cut off.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from rhumbline import steering
from rhumbline.directions import Cone
from rhumbline.errors import DataError
from rhumbline.records import Message, Scored
from rhumbline.rewards.objectives import Calibration
from rhumbline.scalarise import Standardiser
from rhumbline.store import RunStore

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuizItem:
    """One possible question: which of two answers to a prompt a person prefers."""

    prompt_id: str
    prompt: tuple[Message, ...]  # the turns as a person wrote them: no direction
    a: str
    b: str
    rewards_a: tuple[float, ...]  # (K,) recipe order, standardised: the scale on which directions have their meaning
    rewards_b: tuple[float, ...]  # (K,)
    tokens: tuple[int, int] = (0, 0)  # of a and b; 0 where nobody counted

    def __post_init__(self) -> None:
        if len(self.rewards_a) != len(self.rewards_b) or len(self.rewards_a) < 2:
            raise DataError(
                f"question on prompt {self.prompt_id!r}: reward vectors of {len(self.rewards_a)} and {len(self.rewards_b)} "
                "numbers, expected one per objective, 2 at least, for both answers"
            )
        if not all(map(math.isfinite, (*self.rewards_a, *self.rewards_b))):
            raise DataError(f"question on prompt {self.prompt_id!r}: rewards must be finite numbers")

    @property
    def difference(self) -> tuple[float, ...]:
        """(K,) rewards of a less those of b."""
        return tuple(one - other for one, other in zip(self.rewards_a, self.rewards_b, strict=True))

    @property
    def id(self) -> str:
        """16 hexadecimal digits of a hash of prompt and answers."""
        parts = "\0".join((self.prompt_id, self.a, self.b))
        return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """What a pair must satisfy. Rewards in standard deviations."""

    contested: bool = True  # some direction of the cone takes a, some other b: |c . d| < sin(half angle) |d|
    max_quality_gap: float | None = 1.5  # of |w0 . d|, w0 the default direction
    max_length_ratio: float | None = 2.0  # tokens of the longer over those of the shorter
    max_similarity: float = 0.9  # of the two texts, difflib's ratio over words
    min_gap: float = 0.3  # of |d|: smaller ones are noise of the reward model


def matched(
    d_NK: ArrayLike, tokens_N2: ArrayLike, cone: Cone, default_K: Sequence[float] | None, how: Matching
) -> Array:
    """(N,) by how much each pair breaks the rules on quality and length; 0: not at all. Pairs with |d| = 0 give infinity.

    Excesses are relative to their bounds and add up, so that the least bad pairs can be taken where none is good.
    """
    d, tokens = np.asarray(d_NK, dtype=np.float64), np.asarray(tokens_N2, dtype=np.float64)
    size_N = np.linalg.norm(d, axis=1)
    over_N = np.where(size_N > 0, np.maximum(how.min_gap - size_N, 0) / max(how.min_gap, 1e-9), np.inf)
    if how.contested and cone.half_angle_deg < 90:
        reach_N = math.sin(math.radians(cone.half_angle_deg)) * size_N
        along_N = np.abs(d @ np.asarray(cone.axis))
        over_N = over_N + np.maximum(along_N - reach_N, 0) / np.maximum(reach_N, 1e-9)
    if how.max_quality_gap is not None:
        w0_K = np.asarray(cone.axis if default_K is None else default_K)
        over_N = over_N + np.maximum(np.abs(d @ w0_K) - how.max_quality_gap, 0) / how.max_quality_gap
    if how.max_length_ratio is not None:
        longer_N, shorter_N = tokens.max(axis=1), tokens.min(axis=1)
        ratio_N = np.where(shorter_N > 0, longer_N / np.maximum(shorter_N, 1), np.where(longer_N > 0, np.inf, 1.0))
        over_N = over_N + np.maximum(ratio_N - how.max_length_ratio, 0) / how.max_length_ratio
    return over_N


def match(
    items: Iterable[QuizItem],
    cone: Cone,
    *,
    default: Sequence[float] | None = None,
    how: Matching | None = None,
    at_least: int = 24,
) -> list[QuizItem]:
    """The items that satisfy `how`, in order; where they come from fewer than `at_least` prompts, the least bad others too.

    Raises DataError where no item is left that tells two directions apart.
    """
    how = how or Matching()
    pool = [item for item in items if not _alike(item.a, item.b, how.max_similarity)]
    wrong = next((item for item in pool if len(item.rewards_a) != len(cone.names)), None)
    if wrong is not None:
        raise DataError(
            f"question on prompt {wrong.prompt_id!r} has {len(wrong.rewards_a)} rewards, the model is steered by "
            f"{len(cone.names)} objectives ({', '.join(cone.names)}): make questions from a run of the same recipe"
        )
    if pool:
        d_NK, tokens_N2 = np.array([i.difference for i in pool]), np.array([i.tokens for i in pool])
        over_N = matched(d_NK, tokens_N2, cone, default, how)
        kept = {n for n in range(len(pool)) if over_N[n] == 0}
        prompts = {pool[n].prompt_id for n in kept}
        for n in np.argsort(over_N, kind="stable").tolist():
            if len(prompts) >= at_least or not math.isfinite(over_N[n]):
                break
            kept.add(n)
            prompts.add(pool[n].prompt_id)
        pool = [pool[n] for n in sorted(kept)]
    if not pool:
        raise DataError(
            "no pair of answers makes a question: all of them are alike or score the same. A quiz needs several answers per "
            "held-out prompt (evaluation.samples, evaluation.directions)"
        )
    return pool


def items_from_run(
    run: str | Path,
    *,
    stages: Sequence[str] = (),
    contract: steering.Steering | None = None,
    how: Matching | None = None,
    default: Sequence[float] | None = None,
    per_prompt: int = 8,
    limit: int = 400,
    seed: int = 0,
) -> list[QuizItem]:
    """Questions from a run's scored samples, matched: at most `per_prompt` pairs of a prompt and `limit` in all.

    stages: which samples, such as `evaluation/t=2`, taken together; by default the newest evaluation of a trained policy, else
    the newest iteration. Held-out prompts come first because the policy has not learned their answers. contract: of the policy;
    None: that of the run's checkpoint. default: (K,) the direction along which quality is matched; None: the cone's axis.
    Raises RunError where there is no run, DataError where it has no scored samples or none that make a question.
    """
    store = RunStore.open(run)
    chosen = stages or _newest(store)
    if not chosen:
        raise DataError(f"{store.path} has no scored samples yet: let it finish an evaluation, then start the quiz")
    scored = [one for stage in chosen for one in store.read(f"{stage}/scores", Scored)]
    if not scored:
        raise DataError(f"{store.path} has no scored samples at {', '.join(chosen)}")
    contract = contract or _contract(store, chosen[-1])
    scale = _scale(store, contract)
    rng = np.random.default_rng(seed)
    how = how or Matching()
    by_prompt: dict[str, list[Scored]] = {}
    for one in scored:
        if one.completion.finish_reason == "stop" and one.completion.text.strip():
            by_prompt.setdefault(one.completion.query.prompt.id, []).append(one)
    found: list[QuizItem] = []
    cone = contract.cone()
    for answers in by_prompt.values():
        found += _best_pairs(answers, scale, cone, default, how, per_prompt, rng)
    items = match(found, cone, default=default, how=how)
    if len(items) > limit:
        items = [items[n] for n in sorted(rng.choice(len(items), limit, replace=False).tolist())]
    return items


def _best_pairs(
    answers: Sequence[Scored],
    scale: Standardiser,
    cone: Cone,
    default: Sequence[float] | None,
    how: Matching,
    count: int,
    rng: np.random.Generator,
) -> list[QuizItem]:
    """The `count` pairs of one prompt's answers that break the rules least, ties in random order; sides by chance."""
    pairs = list(combinations(range(len(answers)), 2))
    if not pairs:
        return []
    z_NK = scale(np.array([one.rewards for one in answers]))
    length_N = np.array([len(one.completion.token_ids) for one in answers])
    first, second = np.array(pairs).T
    over = matched(
        z_NK[first] - z_NK[second], np.stack([length_N[first], length_N[second]], axis=1), cone, default, how
    )
    order = np.lexsort((rng.random(len(pairs)), over))
    out: list[QuizItem] = []
    for n in order[np.isfinite(over[order])].tolist():
        i, j = (int(first[n]), int(second[n])) if rng.random() < 0.5 else (int(second[n]), int(first[n]))
        a, b = answers[i].completion, answers[j].completion
        if _alike(a.text, b.text, how.max_similarity):
            continue
        out.append(
            QuizItem(
                prompt_id=a.query.prompt.id,
                prompt=a.query.prompt.messages,
                a=a.text,
                b=b.text,
                rewards_a=tuple(z_NK[i].tolist()),
                rewards_b=tuple(z_NK[j].tolist()),
                tokens=(len(a.token_ids), len(b.token_ids)),
            )
        )
        if len(out) == count:
            break
    return out


def _contract(store: RunStore, stage: str) -> steering.Steering:
    """Of the policy that answered, or of another of its run."""
    folders = [store.path / "checkpoints" / stage.split("/")[-1], *_checkpoints(store.path)]
    folder = next((one for one in folders if (one / steering.FILE).is_file()), None)
    if folder is None:
        raise DataError(
            f"{store.path} has no checkpoint with {steering.FILE}: a quiz needs to know the trained directions"
        )
    return steering.read(folder)


def _scale(store: RunStore, contract: steering.Steering) -> Standardiser:
    """Where the recipe does not standardise, directions refer to plain points: one divisor for all objectives keeps every angle
    and makes differences of about one.
    """
    calibration = Calibration.from_dict(dict(contract.calibration))
    recipe = yaml.safe_load((store.path / "recipe.resolved.yaml").read_text(encoding="utf-8"))
    if (recipe.get("rewards") or {}).get("standardise", True):
        return calibration.standardiser()
    K = len(calibration.names)
    return Standardiser((0.0,) * K, (float(np.mean(calibration.std)) or 1.0,) * K, calibration.names)


def _newest(store: RunStore) -> tuple[str, ...]:
    for kind in ("evaluation", "iterations"):
        for folder in reversed(_numbered(store.path / kind)):
            if store.shards(f"{kind}/{folder.name}/scores"):
                return (f"{kind}/{folder.name}",)
    return ()


def _checkpoints(run: Path) -> list[Path]:
    return list(reversed(_numbered(run / "checkpoints")))


def _numbered(folder: Path) -> list[Path]:
    """Its folders t=0, t=1, ... by number."""
    found = [path for path in folder.glob("t=*") if path.is_dir() and path.name[2:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[2:]))


def _alike(a: str, b: str, limit: float) -> bool:
    words, other = a.split(), b.split()
    if words == other:
        return True
    matcher = SequenceMatcher(None, words, other, autojunk=False)
    return matcher.real_quick_ratio() > limit and matcher.quick_ratio() > limit and matcher.ratio() > limit
