"""A head without its preference for long answers: what length alone says of its score is taken off, head by head.

    maps = fit(scores_NH, lengths_N, ("helpfulness", "quality"))    # on the calibration split
    maps.save("rewards/mine/length.json")
    source = LengthRemoved(source, LengthMaps.load("rewards/mine/length.json"))
    source.score(pairs)                                             # as before, less the map at each answer's length

In a recipe: sources: [{kind: network, path: rewards/mine, length_removed: rewards/mine/length.json}].

For a head with scores s and lengths n, f is the isotonic regression of s on log(1 + n), rising or falling as their rank
correlation is, and c the number for which s - c f(n) has no rank correlation with n. Such a c is found by bisection: f is
monotone, so raising c can only turn pairs of answers towards the shorter one, and the correlation never comes back. A
relation that rises and falls (the longest answers score like the shortest) has a rank correlation near 0 and stays.

It wraps a source, not an objective: a score is biased where it was learned, the map belongs to that model and to its
calibration answers, and objectives stay linear maps of heads, so that one of them may still be `verbosity` itself. Length
is counted in characters: a score must not change with the tokenizer of whoever asks. N answers, H heads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.isotonic import IsotonicRegression

from rhumbline.durable import replace, to_json
from rhumbline.errors import ConfigError, DataError, did_you_mean
from rhumbline.rewards.objectives import Head, spearman

if TYPE_CHECKING:
    from rhumbline.rewards.features import Pair
    from rhumbline.rewards.model import Source

Array = NDArray[np.float64]
FORMAT = 1
KNOTS = 33
TARGET = 0.05  # |Spearman| with length that is small enough on the calibration split
_DOUBLINGS, _HALVINGS = 20, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthMap:
    """What is taken off one head's score: straight lines between knots, level beyond them, 0 on average."""

    knots: tuple[float, ...]  # log(1 + characters), rising
    values: tuple[float, ...]  # points of 0-100, one per knot
    before: float | None  # Spearman of score and length over the calibration answers; None: the score never varies
    after: float | None

    def __post_init__(self) -> None:
        # Of a file that was changed by hand: interpolation would take knots in any order, and NaN, for an answer.
        if not len(self.knots) == len(self.values) > 0 or not np.isfinite([*self.knots, *self.values]).all():
            raise ValueError(f"expected a number for each of {len(self.knots)} knots, found {len(self.values)} values")
        if (np.diff(self.knots) <= 0).any():
            raise ValueError(f"expected knots that rise, got {list(self.knots)}")

    def __call__(self, lengths_N: ArrayLike) -> Array:
        """(N,) points to take off answers of these lengths."""
        removed_N: Array = np.interp(np.log1p(np.asarray(lengths_N, dtype=np.float64)), self.knots, self.values)
        return removed_N


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthMaps:
    """One map per head, and how many answers they were fitted on."""

    maps: dict[str, LengthMap]  # head name -> map; other heads stay as they are
    n: int

    def remove(self, scores_NH: ArrayLike, lengths_N: ArrayLike, names: Sequence[str]) -> Array:
        """(N, H) scores of the heads `names` without what length says of them."""
        out_NH = np.array(scores_NH, dtype=np.float64)
        for h, name in enumerate(names):
            if name in self.maps:
                out_NH[:, h] -= self.maps[name](lengths_N)
        return out_NH

    def check(self, heads: Sequence[str], where: str) -> None:
        """Raises ConfigError for a map of a head that is none of these."""
        for name in self.maps:
            if name not in heads:
                raise ConfigError(
                    f"{where}: a length map is for the head {name!r}, and there is none.{did_you_mean(name, heads)} "
                    f"Heads: {', '.join(heads)}"
                )

    def of(self, heads: Sequence[str]) -> LengthMaps:
        """The maps of these heads alone."""
        return LengthMaps(maps={name: one for name, one in self.maps.items() if name in heads}, n=self.n)

    @property
    def id(self) -> str:
        return hashlib.sha256(to_json(self.to_dict()).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "unit": "characters",
            "n": self.n,
            "heads": {name: asdict(one) for name, one in self.maps.items()},
        }

    def save(self, path: str | Path) -> Path:
        """Write the maps as JSON, atomically."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        replace(target, (to_json(self.to_dict(), indent=1) + "\n").encode())
        return target

    @classmethod
    def load(cls, path: str | Path) -> LengthMaps:
        """Raises ConfigError for a file that is missing or was not written by `save`."""
        try:
            raw = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
            if raw["format"] != FORMAT or raw["unit"] != "characters":
                raise ConfigError(
                    f"{path}: format {raw['format']} in {raw['unit']}, expected {FORMAT} in characters: fit it again"
                )
            maps = {
                name: LengthMap(**{**one, "knots": tuple(one["knots"]), "values": tuple(one["values"])})
                for name, one in raw["heads"].items()
            }
            return cls(maps=maps, n=int(raw["n"]))
        except FileNotFoundError:
            raise ConfigError(f"no length maps at {path}: `rhumbline rewards debias` makes them") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise ConfigError(f"{path} cannot be read as length maps: {type(e).__name__}: {e}") from None


def fit(scores_NH: ArrayLike, lengths_N: ArrayLike, names: Sequence[str]) -> LengthMaps:
    """One map per head. Raises DataError where there are fewer than 20 answers or all are equally long."""
    scores, lengths = np.asarray(scores_NH, dtype=np.float64), np.asarray(lengths_N, dtype=np.float64)
    if len(lengths) < 20 or np.ptp(lengths) == 0:
        raise DataError(
            f"{len(lengths)} answers of {len(np.unique(lengths))} lengths: removing length needs at least 20 answers, and "
            "not all of one length"
        )
    return LengthMaps(
        maps={name: _fit(s_N, lengths) for name, s_N in zip(names, scores.T, strict=True)}, n=len(lengths)
    )


def _fit(scores_N: Array, lengths_N: Array) -> LengthMap:
    x_N = np.log1p(lengths_N)
    knots = np.unique(np.quantile(x_N, np.linspace(0, 1, KNOTS)))
    before = spearman(scores_N, lengths_N)
    if before is None or before == 0:
        return LengthMap(
            knots=tuple(knots.tolist()), values=tuple(np.zeros_like(knots).tolist()), before=before, after=before
        )
    way = 1 if before > 0 else -1
    isotonic = IsotonicRegression(increasing=way > 0, out_of_bounds="clip").fit(x_N, scores_N).predict(knots)
    line = way * scores_N.std() * (knots - knots[0]) / np.ptp(knots)
    # A few wild scores can flatten the regression, and on a level stretch nothing can be taken off: then the line does it.
    for curve in (isotonic, line):
        values = _scaled(curve - np.interp(x_N, knots, curve).mean(), knots, x_N, scores_N, way)
        after = spearman(scores_N - np.interp(x_N, knots, values), lengths_N)
        if abs(after or 0.0) <= TARGET:
            break
    return LengthMap(knots=tuple(knots.tolist()), values=tuple(values.tolist()), before=before, after=after)


def _scaled(curve: Array, knots: Array, x_N: Array, scores_N: Array, way: int) -> Array:
    """c times the curve, c by bisection: where the rank correlation of what is left with length crosses 0."""
    removed_N = np.interp(x_N, knots, curve)

    def left(c: float) -> float:
        """With the sign turned so that it starts above 0."""
        return (spearman(scores_N - c * removed_N, x_N) or 0.0) * way

    low, high = 0.0, 1.0
    for _ in range(_DOUBLINGS):
        if left(high) <= 0:
            break
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) > 0 else (low, middle)
    return min((low, high), key=lambda c: abs(left(c))) * curve


class LengthRemoved:
    """A reward source: another one, less its length maps."""

    def __init__(self, source: Source, maps: LengthMaps, where: str = "rewards.sources[].length_removed") -> None:
        """Raises ConfigError for a map of a head that the source does not have."""
        maps.check([head.name for head in source.heads], where)
        self.source, self.maps = source, maps

    @property
    def heads(self) -> tuple[Head, ...]:
        return self.source.heads

    @property
    def id(self) -> str:
        return f"{self.source.id} without length {self.maps.id}"

    def setup(self) -> None:
        self.source.setup()

    def score(self, pairs: Sequence[Pair]) -> Array:
        """(N, H) on 0-100, in the order of `pairs`."""
        lengths = [len(response) for _, response in pairs]
        return self.maps.remove(self.source.score(pairs), lengths, [head.name for head in self.heads])
