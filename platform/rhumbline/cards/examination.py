"""A card of any reward model on any file of rated or compared answers. `rhumbline rewards card` is this.

    card = examine(model, "pairs.jsonl.gz", split="test", count=tokens_of, **draws)
    card = examine_comparer(comparer, "pairs.jsonl.gz", split="test", count=tokens_of, **draws)
    card |= {"name": "mine", "command": "rhumbline rewards card ...", "notes": ""}

The file is taken whole: nothing was fitted on it here, so the baselines of length are held out over its prompts. A head is
measured against the rating of its own name, or of the name that `labels` gives; against comparisons all heads and objectives
are. A logit is no rating: its order alone is measured. `count` says how long an answer is; `draws` is num_resamples and seed.
N answers, P pairs, H columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rhumbline.cards import sections
from rhumbline.cards.accuracy import CLASSES
from rhumbline.cards.agreement import pairs_within
from rhumbline.data.comparisons import Comparison, load_comparisons
from rhumbline.data.detect import RATED
from rhumbline.data.load import rows
from rhumbline.data.prompts import conversation_id
from rhumbline.data.ratings import Rated, load_ratings
from rhumbline.data.samples import samples
from rhumbline.errors import DataError, did_you_mean
from rhumbline.rewards.debias import LengthMaps, LengthRemoved
from rhumbline.rewards.model import RewardModel
from rhumbline.rewards.trained import TrainedRewards

if TYPE_CHECKING:
    from rhumbline.records import Prompt
    from rhumbline.rewards.comparer import Comparer
    from rhumbline.rewards.features import Pair
    from rhumbline.rewards.model import Source

Array = NDArray[np.float64]
Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Sides:
    """Two answers to a prompt."""

    prompt: Prompt
    a: str
    b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What a model says of answers: its heads, and those objectives that are not called like a head."""

    names: tuple[str, ...]  # (H,)
    scores_NH: Array
    before_NH: Array  # without length maps; the same where there are none


def columns_of(model: RewardModel, pairs: Sequence[Pair], maps: LengthMaps | None = None) -> Columns:
    """Scores of N answers; `maps` are taken off the heads, and objectives are made of what is left."""
    heads = [head.name for head in model.heads]
    raw_NH = model.score_heads(pairs)
    clean_NH = raw_NH if maps is None else maps.remove(raw_NH, [len(response) for _, response in pairs], heads)
    extra = [k for k, name in enumerate(model.names) if name not in heads]
    both = [np.concatenate([s_NH, model.objectives(s_NH)[:, extra]], axis=1) for s_NH in (clean_NH, raw_NH)]
    return Columns(names=(*heads, *(model.names[k] for k in extra)), scores_NH=both[0], before_NH=both[1])


def holds_ratings(path: str | Path, split: str | None = None) -> bool:
    """Whether the file's answers are rated; else it must hold comparisons."""
    return samples(rows(path, split), str(path))[0].kind in RATED


def examine(
    model: RewardModel,
    path: str | Path,
    *,
    count: Count,
    split: str | None = None,
    limit: int | None = None,
    labels: Mapping[str, str] | None = None,
    comparing: Mapping[str, Any] | None = None,
    second: tuple[str, RewardModel] | None = None,
    maps: LengthMaps | None = None,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """`data` and the sections of a card.

    labels: head -> rating. comparing: options of `load_comparisons`; given ones make a file with ratings one of pairs too.
    second: another scorer and its name. maps: length maps that are taken off first; their cost is a section.
    """
    draws = {"num_resamples": num_resamples, "seed": seed}
    if not comparing and holds_ratings(path, split):
        return _ratings(model, load_ratings(path, split, limit), path, count, labels or {}, second, maps, draws)
    found = load_comparisons(path, split, limit, **(comparing or {}))
    told = _pairs(model, found.rows, count, second, maps, draws)
    return {"data": _data(path, {"pairs": len(found.rows), **found.skipped}), **told}


def examine_comparer(
    comparer: Comparer,
    path: str | Path,
    *,
    count: Count,
    split: str | None = None,
    limit: int | None = None,
    comparing: Mapping[str, Any] | None = None,
    second: tuple[str, RewardModel] | None = None,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """`data` and the sections of a comparer's card. `second`: a scorer of single answers and its name."""
    draws: dict[str, Any] = {"num_resamples": num_resamples, "seed": seed}
    found = load_comparisons(path, split, limit, **(comparing or {}))
    one = found.rows
    probabilities_P3 = comparer.probabilities(
        [row.prompt for row in one],
        [row.a for row in one],
        [row.b for row in one],
        [row.profile or None for row in one],
    )
    classes = len(comparer.network.spec.outputs)  # one that was trained without ties is measured without them
    lengths_P2, prompts, sources = _lengths(one, count), _prompts(one), [row.source for row in one]
    told = sections.compared(probabilities_P3[:, :classes], _winners(one), lengths_P2, prompts, sources, **draws)
    if second is not None:
        said_P1 = probabilities_P3[:, :1] - probabilities_P3[:, 1:2]
        told["agreement"] = _agreements(("comparer",), said_P1, second, one, lengths_P2, prompts, sources, draws)
    return {"data": _data(path, {"pairs": len(one), **found.skipped}), **told}


def _ratings(
    model: RewardModel,
    rated: Sequence[Rated],
    path: str | Path,
    count: Count,
    labels: Mapping[str, str],
    second: tuple[str, RewardModel] | None,
    maps: LengthMaps | None,
    draws: Mapping[str, Any],
) -> dict[str, Any]:
    labels_NH = _labels(model, rated, labels, path)
    pairs = [(one.prompt, one.response) for one in rated]
    told = columns_of(model, pairs, maps)
    # Objectives that are no head have no scale on which people rated.
    labels_NH = np.pad(labels_NH, [(0, 0), (0, len(told.names) - labels_NH.shape[1])], constant_values=np.nan)
    lengths_N, prompts = [count(one.response) for one in rated], [conversation_id(one.prompt) for one in rated]
    sources = [one.source for one in rated]
    ends = {head.name: head.ends for head in model.heads}
    out = sections.rated(
        told.names,
        told.scores_NH,
        labels_NH,
        lengths_N,
        prompts,
        sources,
        ends=ends,
        ranked=[head.name for source in model.sources if not _rates(source) for head in source.heads],
        **draws,
    )
    if maps is not None:
        out |= sections.cost_of_ratings(
            maps, told.names, told.before_NH, told.scores_NH, labels_NH, lengths_N, prompts, **draws
        )
    if second is not None:
        # Answers to the very same turns are compared; a conversation has several such places.
        a_P, b_P = pairs_within([one.prompt.id for one in rated]).T
        out["agreement"] = _agreements(
            told.names,
            told.scores_NH[a_P] - told.scores_NH[b_P],
            second,
            [Sides(rated[a].prompt, rated[a].response, rated[b].response) for a, b in zip(a_P, b_P, strict=True)],
            np.asarray(lengths_N)[np.stack([a_P, b_P], axis=1)],
            np.asarray(prompts)[a_P],
            np.asarray(sources)[a_P],
            draws,
        )
    return {"data": _data(path, {"answers": len(rated)}), **out}


def _pairs(
    model: RewardModel,
    found: Sequence[Comparison],
    count: Count,
    second: tuple[str, RewardModel] | None,
    maps: LengthMaps | None,
    draws: Mapping[str, Any],
) -> dict[str, Any]:
    sides = [(row.prompt, text) for row in found for text in (row.a, row.b)]
    told = columns_of(model, sides, maps)
    after_P2H, before_P2H = (s_NH.reshape(len(found), 2, -1) for s_NH in (told.scores_NH, told.before_NH))
    margins_PH, lengths_P2 = after_P2H[:, 0] - after_P2H[:, 1], _lengths(found, count)
    prompts, judged = _prompts(found), [row.head for row in found]
    winners, sources = _winners(found), [row.source for row in found]
    texts = [((row.prompt.id, row.a), (row.prompt.id, row.b)) for row in found]
    out = sections.paired(
        told.names, margins_PH, judged, winners, lengths_P2, prompts, sources, texts_P2=texts, **draws
    )
    if maps is not None:
        out |= sections.cost_of_pairs(maps, told.names, before_P2H, after_P2H, winners, lengths_P2, prompts, **draws)
    if second is not None:
        out["agreement"] = _agreements(told.names, margins_PH, second, found, lengths_P2, prompts, sources, draws)
    return out


def _agreements(
    names: Sequence[str],
    margins_PH: Array,
    second: tuple[str, RewardModel],
    pairs: Sequence[Sides | Comparison],
    lengths_P2: Any,
    prompts: Any,
    sources: Any,
    draws: Mapping[str, Any],
) -> list[dict[str, Any]]:
    name, model = second
    theirs = columns_of(model, [(one.prompt, text) for one in pairs for text in (one.a, one.b)])
    scores_P2H = theirs.scores_NH.reshape(len(pairs), 2, len(theirs.names))
    their_margins_PH = scores_P2H[:, 0] - scores_P2H[:, 1]
    return sections.agreements(
        dict(zip(names, margins_PH.T, strict=True)),
        {f"{name} {column}": m_P for column, m_P in zip(theirs.names, their_margins_PH.T, strict=True)},
        lengths_P2,
        prompts,
        sources,
        **draws,
    )


def _rates(source: Source) -> bool:
    """Whether the source's scores are on the scale of ratings, as far as one can know."""
    source = source.source if isinstance(source, LengthRemoved) else source
    if not isinstance(source, TrainedRewards) or source.schema.kind == "regression":
        return True
    return source.schema.kind == "absolute" and source.output == "probability"


def _labels(model: RewardModel, rated: Sequence[Rated], labels: Mapping[str, str], path: str | Path) -> Array:
    """(N, H) on 0-100 by each head's own map; NaN where an answer lacks the rating.

    Raises DataError for a label of a head that is none, where no head has a rating, and for a rating outside its scale.
    """
    heads = {head.name: head for head in model.heads}
    known = sorted({name for one in rated for name in one.ratings})
    for name in labels:
        if name not in heads:
            raise DataError(f"--label {name}: no such head.{did_you_mean(name, heads)} Heads: {', '.join(heads)}")
    out_NH = np.full((len(rated), len(heads)), np.nan)
    for h, (name, head) in enumerate(heads.items()):
        label = labels.get(name, name)
        if name in labels and label not in known:
            raise DataError(
                f"{path}: no answer has the rating {label!r} (--label {name}).{did_you_mean(label, known)} "
                f"Ratings in the file: {', '.join(known)}"
            )
        for i, one in enumerate(rated):
            raw = one.ratings.get(label)
            if raw is None:
                continue
            if not head.raw_low <= raw <= head.raw_high:
                raise DataError(
                    f"{path}: {label} is {raw:g}, the head {name} was made for {head.raw_low:g} to {head.raw_high:g} "
                    f"(prompt {one.prompt.id})"
                )
            out_NH[i, h] = head.score(raw)
    if np.isnan(out_NH).all():
        raise DataError(
            f"{path}: no head has a rating of its name. Heads: {', '.join(heads)}; ratings: {', '.join(known)}. "
            "Say which belongs to which by --label HEAD=RATING"
        )
    return out_NH


def _winners(found: Sequence[Comparison]) -> list[int]:
    return [CLASSES.index(row.winner) for row in found]


def _prompts(found: Sequence[Comparison]) -> list[str]:
    return [conversation_id(row.prompt) for row in found]


def _lengths(found: Sequence[Comparison], count: Count) -> NDArray[np.int64]:
    return np.array([[count(row.a), count(row.b)] for row in found], dtype=np.int64).reshape(-1, 2)


def _data(path: str | Path, counts: Mapping[str, int]) -> dict[str, Any]:
    """The file as one types it, but by its name where that is a whole path: no folder of this machine goes into a card."""
    return {Path(path).name if Path(path).is_absolute() else str(path): dict(counts)}
