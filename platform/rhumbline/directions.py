"""Directions: unit vectors over named objectives, and the cone of them that a policy is trained for.

Everything a person prefers is a direction: a job draws them from a cone, the codec says them to the model, the
server reads them from a request and pulls them back into the trained cone.

    cone = region(recipe.directions, ["helpfulness", "verbosity"])       # -45 to 0 degrees
    cone.sample(np.random.default_rng(0), 5)                             # (5, 2) unit vectors
    parse("helpfulness=0.8,verbosity=-0.6", cone.names)                  # (0.8, -0.6)
    cone.project((0.0, 1.0))                                             # ((1.0, 0.0), True)

K objectives in recipe order; N directions. Angles are degrees at the surface, radians inside.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rhumbline import config
from rhumbline.errors import DirectionError, did_you_mean

Direction = tuple[float, ...]  # (K,) unit vector
Law = Literal["uniform", "dirichlet", "grid"]
Array = NDArray[np.float64]

FIXED_DEG = (
    1.0  # half-angle of the region of a policy that was trained for one direction: the words of codecs are coarse
)
_DEGREES = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))\s*(?:°|deg|degrees)")
_EXAMPLES = "expected weights ('helpfulness=0.8,verbosity=-0.6'), an angle for two objectives ('-37deg') or a preset"


def normalise(weights: Sequence[float] | Array) -> Direction:
    """v / |v|: a direction has no length, so v and 3v are one. Raises DirectionError for NaN, infinity or all zeros."""
    values = np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise DirectionError(f"a direction needs at least 2 weights in a row, got shape {values.shape}")
    if not np.all(np.isfinite(values)):
        raise DirectionError(f"direction weights must be finite numbers, got {values.tolist()}")
    if not np.any(values):
        raise DirectionError("direction weights are all zero: at least one objective must count")
    values = values / np.max(np.abs(values))  # first, so that no square overflows or vanishes
    return tuple((values / np.linalg.norm(values) + 0.0).tolist())  # + 0.0: no negative zero


def angle_deg(v: Sequence[float]) -> float:
    """arctan(v2 / v1) in degrees in (-180, 180], as the DPA paper counts it; K=2."""
    if len(v) != 2:
        raise DirectionError(f"an angle needs 2 objectives, the direction has {len(v)}")
    return math.degrees(math.atan2(v[1], v[0]))


def from_angle_deg(degrees: float) -> Direction:
    """(cos, sin) of an angle in degrees; K=2. Exact at multiples of 90."""
    if not math.isfinite(degrees):
        raise DirectionError(f"an angle must be a finite number of degrees, got {degrees}")
    exact = {0.0: (1.0, 0.0), 90.0: (0.0, 1.0), 180.0: (-1.0, 0.0), 270.0: (0.0, -1.0)}
    radians = math.radians(degrees)
    return exact.get(degrees % 360, (math.cos(radians), math.sin(radians)))


def angle_between_deg(a: Sequence[float] | Array, b: Sequence[float] | Array) -> float:
    """Angle between two unit vectors in degrees, accurate for small angles too (Kahan)."""
    a_K, b_K = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return math.degrees(2 * math.atan2(float(np.linalg.norm(a_K - b_K)), float(np.linalg.norm(a_K + b_K))))


@dataclass(frozen=True)
class Cone:
    """All directions within `half_angle_deg` of `axis`: the region that a policy is trained for."""

    names: tuple[str, ...]  # (K,) objectives, recipe order
    axis: Direction  # (K,) unit vector; normalised on the way in
    half_angle_deg: float  # 0 < half angle <= 180; 180 is the whole sphere

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "axis", normalise(self.axis))
        if len(self.axis) != len(self.names):
            raise DirectionError(_wrong_length(len(self.axis), self.names))
        if not 0 < self.half_angle_deg <= 180:
            raise DirectionError(f"half_angle_deg must lie in (0, 180], got {self.half_angle_deg}")

    def project(self, v: Sequence[float] | Array) -> tuple[Direction, bool]:
        """`v` as a unit vector, pulled back to the nearest direction of the cone; True where it had to be.

        Exactly opposite to the axis every edge is equally near: the answer is the axis. Raises DirectionError.
        """
        if len(v) != len(self.names):
            raise DirectionError(_wrong_length(len(v), self.names))
        unit = normalise(v)
        u_K, c_K, t = np.asarray(unit), np.asarray(self.axis), math.radians(self.half_angle_deg)
        across_K = u_K - (u_K @ c_K) * c_K
        sine = float(np.linalg.norm(across_K))
        if math.atan2(sine, float(u_K @ c_K)) <= t + 1e-9:
            return unit, False
        if sine < 1e-9:
            return self.axis, True
        return normalise(math.cos(t) * c_K + math.sin(t) * across_K / sine), True

    def contains(self, v: Sequence[float] | Array) -> bool:
        """True where `project` leaves `v` alone."""
        return not self.project(v)[1]

    def sample(
        self,
        rng: np.random.Generator,
        n: int,
        law: Law = "uniform",
        *,
        concentration: float | Sequence[float] = 1.0,
        grid: int = 7,
    ) -> Array:
        """Draw n directions, (n, K).

        uniform: uniform on the spherical cap; for K=2 that is the paper's law, a uniform angle on the arc.
        dirichlet: weights from Dirichlet(concentration) on the simplex, each with the sign that the axis has for its
            objective, normalised and projected into the cone. `concentration` is one number or one per objective.
        grid: the points of `grid(grid)` in random order, each once before any comes again.
        """
        if law == "uniform":
            return self._uniform(rng, n)
        if law == "dirichlet":
            alpha_K = np.broadcast_to(np.asarray(concentration, dtype=np.float64), (len(self.names),))
            signs_K = np.where(np.asarray(self.axis) < -1e-12, -1.0, 1.0)
            return np.array([self.project(w_K * signs_K)[0] for w_K in rng.dirichlet(alpha_K, n)]).reshape(
                n, len(signs_K)
            )
        order = [i for _ in range(-(-n // grid)) for i in rng.permutation(grid).tolist()]
        points: Array = self.grid(grid)[order[:n]]
        return points

    def grid(self, n: int) -> Array:
        """n well-spread directions, (n, K), the same ones on every call.

        K=2: evenly spaced angles from the highest to the lowest (0 to -45 degrees for the paper's region). K>2: the
        axis, then always the direction farthest from those before it, so that `grid(5)` begins `grid(9)`.
        """
        if n < 1:
            raise DirectionError(f"a grid needs at least one direction, got {n}")
        if n == 1:
            return np.array([self.axis])
        if len(self.names) == 2:
            middle, half = angle_deg(self.axis), self.half_angle_deg
            # The two ends of a full circle are one direction: leave the second out.
            angles = np.linspace(middle + half, middle - half, n, endpoint=half < 180)
            return np.array([from_angle_deg(round(float(a), 9)) for a in angles])
        candidates_MK = self._uniform(np.random.default_rng(0), max(4096, 64 * n))
        chosen = [np.asarray(self.axis)]
        nearest_M = candidates_MK @ chosen[0]  # cosine to the nearest chosen one
        while len(chosen) < n:
            chosen.append(candidates_MK[int(np.argmin(nearest_M))])
            nearest_M = np.maximum(nearest_M, candidates_MK @ chosen[-1])
        return np.array(chosen)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for steering.json; `from_dict` gives the cone back."""
        return {"objectives": list(self.names), "axis": list(self.axis), "half_angle_deg": self.half_angle_deg}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cone:
        try:
            return cls(tuple(data["objectives"]), tuple(data["axis"]), float(data["half_angle_deg"]))
        except (KeyError, TypeError, ValueError) as e:
            raise DirectionError(f"not a trained region (objectives, axis, half_angle_deg): {data!r}") from e

    def _uniform(self, rng: np.random.Generator, n: int) -> Array:
        K, t = len(self.names), math.radians(self.half_angle_deg)
        c_K = np.asarray(self.axis)
        if K == 2:
            angle_N = math.atan2(c_K[1], c_K[0]) + rng.uniform(-t, t, n)
            return np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1)
        polar_N = _polar(rng.uniform(0.0, _cap_share(t, K), n), K)
        across_NK = rng.standard_normal((n, K))
        across_NK -= np.outer(across_NK @ c_K, c_K)
        across_NK /= np.linalg.norm(across_NK, axis=1, keepdims=True)
        out_NK: Array = np.outer(np.cos(polar_N), c_K) + np.sin(polar_N)[:, None] * across_NK
        return out_NK


def region(directions: config.Directions, names: Sequence[str]) -> Cone:
    """The trained cone of a recipe: an arc of angles (K=2) or an axis with a half-angle; around one fixed direction as narrow as
    the codecs' words are exact, whatever region the recipe inherits. Raises DirectionError.
    """
    if directions.fixed is not None:
        return Cone(tuple(names), parse(directions.fixed, names), FIXED_DEG)
    if directions.angle_deg is not None:
        low, high = directions.angle_deg
        if len(names) != 2:
            raise DirectionError(
                f"directions.angle_deg needs 2 objectives, the recipe names {len(names)}: give directions.axis"
            )
        return Cone(tuple(names), from_angle_deg((low + high) / 2), (high - low) / 2)
    return Cone(tuple(names), parse(directions.axis or {}, names), directions.half_angle_deg)


def parse(
    wish: str | Mapping[str, float] | Sequence[float],
    names: Sequence[str],
    presets: Mapping[str, Mapping[str, float]] | None = None,
) -> Direction:
    """Read a direction as people write it: weights by name (others are 0), an angle, a preset, or K numbers in order.

    Raises DirectionError with what was seen, what is known and a did-you-mean.
    """
    if isinstance(wish, Mapping):
        return _from_mapping(wish, names)
    if not isinstance(wish, str):
        if len(wish) != len(names):
            raise DirectionError(_wrong_length(len(wish), names))
        return _from_mapping(dict(zip(names, wish, strict=True)), names)
    text, presets = wish.strip().replace("−", "-"), presets or {}
    if text in presets:
        return _from_mapping(presets[text], names)
    if degrees := _DEGREES.fullmatch(text):
        if len(names) != 2:
            raise DirectionError(
                f"direction {wish!r}: an angle needs 2 objectives, there are {len(names)} ({', '.join(names)})"
            )
        return from_angle_deg(float(degrees[1]))
    parts = [part.strip() for part in text.split(",")]
    if "=" in text:
        weights: dict[str, float] = {}
        for part in parts:
            name, _, number = (piece.strip() for piece in part.partition("="))
            if name in weights:
                raise DirectionError(f"direction {wish!r} names {name!r} twice")
            weights[name] = _number(number, f"direction {wish!r}: {name}")
        return _from_mapping(weights, names)
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        known = f" Presets: {', '.join(presets)}." if presets else ""
        raise DirectionError(
            f"direction {wish!r} cannot be read: {_EXAMPLES}.{did_you_mean(text, presets)}{known}"
        ) from None
    return parse(numbers, names)


def text(direction: Sequence[float], names: Sequence[str]) -> str:
    """`helpfulness=0.8,verbosity=-0.6`: what `parse` reads, with three decimals at most."""
    return ",".join(f"{name}={round(weight, 3) + 0.0:g}" for name, weight in zip(names, direction, strict=True))


def _from_mapping(weights: Mapping[str, float], names: Sequence[str]) -> Direction:
    for name in weights:
        if name not in names:
            raise DirectionError(
                f"unknown objective {name!r}.{did_you_mean(str(name), names)} Known: {', '.join(names)}"
            )
    return normalise([_number(weights.get(name, 0.0), f"weight of {name}") for name in names])


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise DirectionError(f"{where}: expected a number, got {value!r}") from None
    if not math.isfinite(number):
        raise DirectionError(f"{where}: expected a finite number, got {value!r}")
    return number


def _wrong_length(seen: int, names: Sequence[str]) -> str:
    known = ", ".join(names)
    return f"direction has {seen} weights, the recipe names {len(names)} objectives (rewards.objectives: {known})"


# The polar angle of a uniform point on the sphere in R^K has density ~ sin(t)^(K-2); its distribution function is
# I_{sin^2 t}((K-1)/2, 1/2) / 2 up to the equator and mirrored below it (S. Li, Asian J. Math. Stat. 4, 2011).


def _cap_share(t: float, K: int) -> float:
    """Share of the sphere's surface within the polar angle t."""
    from scipy.special import betainc  # here, because scipy would slow the command line's start

    half = float(betainc((K - 1) / 2, 0.5, math.sin(t) ** 2)) / 2
    return half if t <= math.pi / 2 else 1 - half


def _polar(share_N: Array, K: int) -> Array:
    """Inverse of `_cap_share`, elementwise."""
    from scipy.special import betaincinv

    sine_N = np.sqrt(betaincinv((K - 1) / 2, 0.5, 2 * np.minimum(share_N, 1 - share_N)))
    polar_N: Array = np.arcsin(np.clip(sine_N, 0.0, 1.0))
    return np.where(share_N <= 0.5, polar_N, math.pi - polar_N)
