"""The sections of a card, out of arrays: what `card.markdown` and `figures.draw` show.

    card = {"name": "mine", ..., **rated(names, scores_NH, labels_NH, lengths_N, prompts_N, sources_N, **draws)}
    card |= paired(names, margins_PH, judged_P, winners_P, lengths_P2, prompts_P, sources_P, **draws)
    card |= compared(probabilities_PC, winners_P, lengths_P2, prompts_P, sources_P, **draws)
    card |= {"agreement": agreements({"preference": margins_P}, {"absolute": others_P}, lengths_P2, prompts_P, **draws)}

`draws` is num_resamples and seed. A figure stands under 'all' and, where there are several data sets, under each in
'sources'. Where no baseline of a training split is given, it is held out over prompts. N answers, P pairs, H heads, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rhumbline.cards.accuracy import calibration, credits, ece, measure_classes, measure_pairs
from rhumbline.cards.agreement import agree, verdicts
from rhumbline.cards.conflicts import conflicts
from rhumbline.cards.correlation import correlations, error_by_range, measure, pair_correlations, scores_by_label
from rhumbline.cards.length_only import LengthClasses, held_out_line
from rhumbline.cards.resampling import Resamples
from rhumbline.rewards.debias import LengthMaps
from rhumbline.rewards.objectives import spearman

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def rated(
    names: Sequence[str],
    scores_NH: ArrayLike,
    labels_NH: ArrayLike,
    lengths_N: ArrayLike,
    prompts_N: ArrayLike,
    sources_N: ArrayLike,
    *,
    length_only_NH: ArrayLike | None = None,
    ends: Mapping[str, tuple[float, float]] | None = None,
    ranked: Collection[str] = (),
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Heads against ratings, both on 0-100 (NaN: not rated; a head that nobody rated is only correlated with the others).

    ratings, ranges, reliability and by_label per head, and correlations. `length_only_NH`: what the training split's lines
    on length predict of these answers. `ends`: the lowest and the highest label of a head, where they are not 0 and 100.
    `ranked`: heads whose scores are on another scale than labels, such as logits: they have correlations and no errors.
    """
    scores, labels = np.asarray(scores_NH, dtype=np.float64), np.asarray(labels_NH, dtype=np.float64)
    lengths, prompts = np.asarray(lengths_N, dtype=np.float64), np.asarray(prompts_N)
    sources = np.asarray(sources_N)
    draws: dict[str, Any] = {"num_resamples": num_resamples, "seed": seed}
    out: dict[str, Any] = {"ratings": {}, "ranges": {}, "reliability": {}, "by_label": {}}
    for h, name in enumerate(names):
        has_N = ~np.isnan(labels[:, h])
        if not has_N.any():
            continue
        s, y, n, p = scores[has_N, h], labels[has_N, h], lengths[has_N], prompts[has_N]
        base = held_out_line(y, n, p) if length_only_NH is None else np.asarray(length_only_NH)[has_N, h]
        out["ratings"][name] = _by_source(
            sources[has_N],
            lambda i: measure(s[i], y[i], n[i], p[i], base[i], **draws),  # noqa: B023  called at once
        )
        if name in ranked:
            for told in _everywhere(out["ratings"][name]):
                told |= dict.fromkeys(("mae", "length_only_mae"))
            continue
        out["ranges"][name] = error_by_range(s, y, p, base, ends=(ends or {}).get(name, (0.0, 100.0)), **draws)
        resamples = Resamples(p, num_resamples, seed)
        out["reliability"][name] = {
            **calibration(s / 100, y / 100, resamples),
            "length_ece": ece(base / 100, y / 100, resamples),
        }
        out["by_label"][name] = scores_by_label(s, y)
    return out | {"correlations": correlations(names, scores, lengths)}


def paired(
    names: Sequence[str],
    margins_PH: ArrayLike,
    judged_P: ArrayLike,
    winners_P: ArrayLike,
    lengths_P2: ArrayLike,
    prompts_P: ArrayLike,
    sources_P: ArrayLike,
    *,
    texts_P2: Sequence[tuple[Hashable, Hashable]] | None = None,
    length_only: Mapping[str, LengthClasses] | None = None,
    temperature: float | None = None,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Heads against pairs that people judged: pairs and reliability per head, conflicts between heads, and correlations of
    differences within pairs.

    `judged_P` names the head that each pair was judged by. A head is measured on its own pairs; one that no pair names, on
    all of them. `texts_P2` names the two answers: see `conflicts`. `temperature`: see `accuracy.measure_pairs`.
    `length_only`: by head, of the training split.
    """
    margins, judged = np.asarray(margins_PH, dtype=np.float64), np.asarray(judged_P)
    winners, lengths = np.asarray(winners_P, dtype=np.int64), np.asarray(lengths_P2, dtype=np.float64).reshape(-1, 2)
    prompts, sources = np.asarray(prompts_P), np.asarray(sources_P)
    out: dict[str, Any] = {"pairs": {}, "reliability": {}}
    for h, name in enumerate(names):
        own = np.flatnonzero(judged == name) if (judged == name).any() else np.arange(len(judged))

        def figures(mask: Mask, own: Any = own, h: int = h, name: str = name) -> dict[str, Any]:
            rows = own[mask]
            return measure_pairs(
                margins[rows, h],
                winners[rows],
                lengths[rows],
                prompts[rows],
                length_only=None if length_only is None else length_only.get(name),
                temperature=temperature,
                num_resamples=num_resamples,
                seed=seed,
            )

        told = _by_source(sources[own], figures)
        _lift_reliability(out["reliability"], name, told)
        out["pairs"][name] = told
    if texts_P2 is not None:
        out["conflicts"] = conflicts(
            names, margins, judged.tolist(), winners, texts_P2, prompts, num_resamples=num_resamples, seed=seed
        )
    return out | {"correlations": pair_correlations(names, margins, lengths[:, 0] - lengths[:, 1])}


def compared(
    probabilities_PC: ArrayLike,
    winners_P: ArrayLike,
    lengths_P2: ArrayLike,
    prompts_P: ArrayLike,
    sources_P: ArrayLike,
    *,
    one_order_PC: ArrayLike | None = None,
    length_only: LengthClasses | None = None,
    train_winners: ArrayLike | None = None,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """A comparer against pairs that people judged: classes and reliability. See `accuracy.measure_classes`."""
    p_PC, winners = np.asarray(probabilities_PC, dtype=np.float64), np.asarray(winners_P, dtype=np.int64)
    lengths, prompts = np.asarray(lengths_P2, dtype=np.float64).reshape(-1, 2), np.asarray(prompts_P)

    def figures(mask: Mask) -> dict[str, Any]:
        return measure_classes(
            p_PC[mask],
            winners[mask],
            lengths[mask],
            prompts[mask],
            length_only=length_only,
            train_winners=train_winners,
            one_order_PC=None if one_order_PC is None else np.asarray(one_order_PC)[mask],
            num_resamples=num_resamples,
            seed=seed,
        )

    told = _by_source(np.asarray(sources_P), figures)
    reliability: dict[str, Any] = {}
    _lift_reliability(reliability, "comparer", told)
    return {"classes": told, "reliability": reliability}


def agreements(
    first: Mapping[str, ArrayLike],
    second: Mapping[str, ArrayLike],
    lengths_P2: ArrayLike,
    prompts_P: ArrayLike,
    sources_P: ArrayLike | None = None,
    *,
    num_resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Every scorer of `first` with every one of `second`: name -> score of a less that of b, on the same pairs.

    One entry over all pairs and, where there are several data sets, one for each. `length_percent` and `length_kappa` are
    how far 'the longer one' agrees with the second scorer.
    """
    lengths, prompts = np.asarray(lengths_P2, dtype=np.float64).reshape(-1, 2), np.asarray(prompts_P)
    sources = np.zeros(len(lengths)) if sources_P is None else np.asarray(sources_P)
    longer_P = verdicts(lengths[:, 0] - lengths[:, 1])
    our_P, their_P = ({name: verdicts(m_P) for name, m_P in told.items()} for told in (first, second))
    out: list[dict[str, Any]] = []

    def between(one_P: Any, other_P: Any) -> dict[str, Any]:
        return _by_source(
            sources, lambda i: agree(one_P[i], other_P[i], prompts[i], num_resamples=num_resamples, seed=seed)
        )

    for theirs, said_P in their_P.items():
        by_length = between(longer_P, said_P)
        for ours, own_P in our_P.items():
            found = between(own_P, said_P)
            names = ("all", *found["sources"])
            for name, one, base in zip(names, _everywhere(found), _everywhere(by_length), strict=True):
                lengths_say = {f"length_{key}": base[key] for key in ("percent", "kappa")}
                out.append({"first": ours, "second": theirs, "source": name, **one, **lengths_say})
    return out


def cost_of_ratings(
    maps: LengthMaps,
    names: Sequence[str],
    before_NH: ArrayLike,
    after_NH: ArrayLike,
    labels_NH: ArrayLike,
    lengths_N: ArrayLike,
    prompts_N: ArrayLike,
    *,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """What taking length off costs in Spearman with the ratings, per head with a map."""
    before, after = np.asarray(before_NH, dtype=np.float64), np.asarray(after_NH, dtype=np.float64)
    labels, lengths = np.asarray(labels_NH, dtype=np.float64), np.asarray(lengths_N, dtype=np.float64)
    out: dict[str, Any] = {}
    for h, name in enumerate(names):
        has_N = ~np.isnan(labels[:, h])
        if name not in maps.maps or not has_N.any():
            continue
        draws = Resamples(np.asarray(prompts_N)[has_N], num_resamples, seed)
        out[name] = _removal(maps, name, before[:, h], after[:, h], lengths) | {
            "figure": "Spearman",
            **_spearman_change(before[has_N, h], after[has_N, h], labels[has_N, h], draws),
        }
    return {"debias": out}


def _spearman_change(before_N: Array, after_N: Array, labels_N: Array, draws: Resamples) -> dict[str, Any]:
    def change(i: Any) -> float | None:
        old, new = spearman(before_N[i], labels_N[i]), spearman(after_N[i], labels_N[i])
        return None if old is None or new is None else new - old

    return {
        "before": draws.interval(lambda i: spearman(before_N[i], labels_N[i])),
        "after": draws.interval(lambda i: spearman(after_N[i], labels_N[i])),
        "change": draws.interval(change),
    }


def cost_of_pairs(
    maps: LengthMaps,
    names: Sequence[str],
    before_P2H: ArrayLike,
    after_P2H: ArrayLike,
    winners_P: ArrayLike,
    lengths_P2: ArrayLike,
    prompts_P: ArrayLike,
    *,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """What taking length off costs in accuracy on the pairs that people decided, per head with a map."""
    before, after = np.asarray(before_P2H, dtype=np.float64), np.asarray(after_P2H, dtype=np.float64)
    winners, lengths = np.asarray(winners_P, dtype=np.int64), np.asarray(lengths_P2, dtype=np.float64).reshape(-1, 2)
    decided = np.flatnonzero(winners < 2)
    better, worse = (decided, winners[decided]), (decided, 1 - winners[decided])
    draws = Resamples(np.asarray(prompts_P)[decided], num_resamples, seed)
    out: dict[str, Any] = {}
    for h, name in enumerate(names):
        if name not in maps.maps:
            continue
        old, new = (credits(scores[..., h][better], scores[..., h][worse]) for scores in (before, after))
        out[name] = _removal(maps, name, before[..., h].ravel(), after[..., h].ravel(), lengths.ravel()) | {
            "figure": "accuracy",
            "before": draws.mean(old),
            "after": draws.mean(new),
            "change": draws.mean(new - old),
        }
    return {"debias": out}


def _removal(maps: LengthMaps, name: str, before_N: Array, after_N: Array, lengths_N: Array) -> dict[str, Any]:
    own = maps.maps[name]
    return {
        "calibration": {"n": maps.n, "before": own.before, "after": own.after},
        "with_length": {"before": spearman(before_N, lengths_N), "after": spearman(after_N, lengths_N)},
    }


def _by_source(sources_N: Any, figures: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """`figures` of all rows, and of each source where there are several; it takes a mask."""
    names = np.unique(sources_N)
    told: dict[str, Any] = {"all": figures(np.ones(len(sources_N), dtype=np.bool_)), "sources": {}}
    if len(names) > 1:
        told["sources"] = {str(name): figures(sources_N == name) for name in names}
    return told


def _everywhere(told: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures of all rows, then of each source."""
    return [told["all"], *told["sources"].values()]


def _lift_reliability(reliability: dict[str, Any], name: str, told: dict[str, Any]) -> None:
    """Move the bins of all rows to `reliability`; a source keeps its error alone."""
    for one in told["sources"].values():
        one.pop("bins", None)
    own = told["all"]
    if "bins" in own:
        reliability[name] = {"ece": own["ece"], "length_ece": own["length_ece"], "bins": own.pop("bins")}
