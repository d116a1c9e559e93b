"""The card of fitted heads: how well each predicts ratings that it has not seen, beside what length alone predicts.

    figures = measure(scores_N, labels_N, lengths_N, prompts_N, length_only, num_resamples=1000, seed=0)
    figures["spearman"]                        # {'value': 0.41, 'low': 0.33, 'high': 0.48}
    write(folder, card)                        # card.json and card.md

People rate longer answers higher, so a head that only counts tokens already correlates with their ratings. What a head knows
beyond that is `spearman_given_length`, the partial rank correlation at equal length. Intervals are 95%, by resampling prompts,
because answers to one prompt resemble each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from rhumbline.durable import replace, to_json
from rhumbline.rewards.objectives import spearman

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LengthOnly:
    """The baseline: a line on log(1 + tokens), fitted on the training split."""

    slope: float
    intercept: float

    @classmethod
    def fit(cls, labels_N: ArrayLike, lengths_N: ArrayLike) -> LengthOnly:
        """Rows without a label are left out."""
        labels, log_N = np.asarray(labels_N, dtype=np.float64), np.log1p(np.asarray(lengths_N, dtype=np.float64))
        has_N = ~np.isnan(labels)
        if np.ptp(log_N[has_N]) == 0:
            return cls(0.0, float(labels[has_N].mean()))
        line = stats.linregress(log_N[has_N], labels[has_N])
        return cls(float(line.slope), float(line.intercept))

    def __call__(self, lengths_N: ArrayLike) -> Array:
        predicted_N: Array = self.slope * np.log1p(np.asarray(lengths_N, dtype=np.float64)) + self.intercept
        return predicted_N


def measure(
    scores_N: ArrayLike,
    labels_N: ArrayLike,
    lengths_N: ArrayLike,
    prompts_N: ArrayLike,
    length_only: LengthOnly,
    *,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Figures of one head on one split, in points of 0-100: `n`, `prompts`, and {value, low, high} each.

    NaN labels are left out. A figure that is not defined (constant scores, constant labels) is null.
    """
    y_all = np.asarray(labels_N, dtype=np.float64)
    has_N = ~np.isnan(y_all)
    s, y = np.asarray(scores_N, dtype=np.float64)[has_N], y_all[has_N]
    n, group = np.asarray(lengths_N, dtype=np.float64)[has_N], np.asarray(prompts_N)[has_N]
    base = length_only(n)
    members = [np.flatnonzero(group == one) for one in np.unique(group)]
    if not members:
        return {"n": 0, "prompts": 0}
    rng = np.random.default_rng(seed)
    draws = [
        np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        for _ in range(num_resamples)
    ]
    figures: dict[str, Callable[[Any], float | None]] = {
        "spearman": lambda i: spearman(s[i], y[i]),
        "pearson": lambda i: _pearson(s[i], y[i]),
        "mae": lambda i: float(np.abs(s[i] - y[i]).mean()),
        "spearman_given_length": lambda i: partial_spearman(s[i], y[i], n[i]),
        "length_only_spearman": lambda i: spearman(base[i], y[i]),
        "length_only_mae": lambda i: float(np.abs(base[i] - y[i]).mean()),
        "score_with_length": lambda i: spearman(s[i], n[i]),
        "label_with_length": lambda i: spearman(y[i], n[i]),
    }
    whole = np.arange(len(y))
    return {
        "n": len(y),
        "prompts": len(members),
        **{name: _interval(figure(whole), [figure(i) for i in draws]) for name, figure in figures.items()},
    }


def partial_spearman(a: ArrayLike, b: ArrayLike, given: ArrayLike) -> float | None:
    """Rank correlation of a and b with the ranks of `given` held fixed; None where one of the three is constant.

    (r_ab - r_ac r_bc) / sqrt((1 - r_ac^2) (1 - r_bc^2)).
    """
    ab, ac, bc = spearman(a, b), spearman(a, given), spearman(b, given)
    if ab is None or ac is None or bc is None or max(abs(ac), abs(bc)) >= 1:
        return None
    return float((ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2)))


def write(folder: str | Path, card: Mapping[str, Any]) -> None:
    """card.json as it is and card.md for people, each atomically."""
    replace(Path(folder) / "card.json", (to_json(card, indent=1) + "\n").encode())
    replace(Path(folder) / "card.md", markdown(card).encode())


def markdown(card: Mapping[str, Any]) -> str:
    """The card as a page; `jobs/reward.py` says what is in it."""
    features, data = card["features"], card["data"]
    lines = [
        f"# Reward heads: {card['name']}",
        "",
        f"Ridge regression on a frozen backbone, in closed form, by `{card['command']}`.",
        "",
        f"- Backbone: `{card['backbone']}`, hidden states after layer {features['layer']} of "
        f"{card['fingerprint']['num_hidden_layers']}, pooled: {', '.join(features['pooling'])}, float32.",
        f"- Input: the backbone's chat template, at most {features['max_tokens']} tokens, the answer at most "
        f"{features['max_response_tokens']} of them.",
        f"- Share of each feature's dependence on log length that was taken out: {card['length_removed']:g}.",
    ]
    for name, one in data.items():
        lines.append(
            f"- Data: {name}, licence {one['licence']}; answers to fit on {one['train']}, to test on {one['test']}, left out "
            f"because their conversation is tested on {one['dropped']}."
        )
    for split, title in (
        ("test", "Test split"),
        ("held_out", "Training split, each answer predicted without its prompt"),
    ):
        lines += [
            "",
            f"## {title}",
            "",
            "| head | n | alpha | Spearman | at equal length | length only | Pearson | MAE | length-only MAE "
            "| score with length | label with length |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for name, head in card["heads"].items():
            f = head[split]
            if not f["n"]:
                lines.append(f"| {name} | 0 |" + " |" * 9)
                continue
            cells = [_cell(f[key]) for key in _COLUMNS]
            lines.append(f"| {name} | {f['n']} | {head['alpha']:.3g} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Points are of 0-100; brackets are 95% intervals over prompts. *At equal length* is the partial rank correlation",
        "with the answer's tokens held fixed, *length only* a line on log length. Scores are predictions of mean ratings:",
        "narrower than the ratings themselves, and not cut to 0-100.",
        "",
        card["notes"],
        "",
    ]
    return "\n".join(lines)


_COLUMNS = (
    "spearman",
    "spearman_given_length",
    "length_only_spearman",
    "pearson",
    "mae",
    "length_only_mae",
    "score_with_length",
    "label_with_length",
)


def _cell(figure: Mapping[str, float | None]) -> str:
    value, low, high = figure["value"], figure["low"], figure["high"]
    if value is None:
        return "-"
    digits = 2 if abs(value) < 1 else 1
    return f"{value:.{digits}f}" + ("" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]")


def _pearson(a: Array, b: Array) -> float | None:
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0 else None


def _interval(value: float | None, resampled: list[float | None]) -> dict[str, float | None]:
    known = [one for one in resampled if one is not None]
    if value is None or not known:
        return {"value": value, "low": None, "high": None}
    low, high = np.quantile(known, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high)}
