"""Soups at serving time: the merged checkpoints that a run of jobs/soups.py left, and which one a direction is nearest to.

    mixtures = read_mixtures(run, names=("helpfulness", "verbosity"), signs=(1, -1), base="smol")
    [(m.name, m.direction, m.folder) for m in mixtures]     # what a deployment loads
    NearestMixtures(mixtures).nearest((0.8, -0.6))          # ('smol-mix-3', (0.79..., -0.60...))

K objectives, M mixtures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rhumbline import durable
from rhumbline.directions import Direction, normalise
from rhumbline.errors import CodecError
from rhumbline.store import RunStore

FILE = "soup.json"  # beside the merged weights: {"weights": {objective: share}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Weights that were merged for one direction."""

    name: str  # of the engine's model
    direction: Direction  # (K,) unit vector
    folder: Path


class NearestMixtures:
    """`protocols.Mixtures` by the angle: the merged model whose direction has the largest cosine with the asked one."""

    def __init__(self, mixtures: Sequence[Mixture]) -> None:
        if not mixtures:
            raise CodecError("steering by weights needs at least one merged model, got none")
        self._mixtures = tuple(mixtures)
        self._directions_MK = np.array([m.direction for m in mixtures])

    def nearest(self, direction: Sequence[float]) -> tuple[str, Direction]:
        """Name and direction (K,) of the nearest mixture; of equally near ones the first."""
        cosine_M = (self._directions_MK * np.asarray(direction, dtype=np.float64)).sum(axis=1)
        found = self._mixtures[int(np.argmax(np.round(cosine_M, 12)))]
        return found.name, found.direction


def read_mixtures(run: Path, names: Sequence[str], signs: Sequence[int], base: str) -> tuple[Mixture, ...]:
    """Every finished mixture of a run, by t. A share w_k of policy k, trained for sign_k, is the direction sign_k w_k.

    Raises CodecError where there is none, where one lacks its weights, and where its shares are not of these objectives.
    """
    store, found = RunStore.open(run), list[Mixture]()
    for mark in store.marks("iterations", "learn"):
        t = int(mark.split("/")[1].removeprefix("t="))
        folder = run / "checkpoints" / f"t={t}"
        if not (folder / FILE).is_file():
            continue
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise CodecError(f"{folder} has {FILE} and no weights (config.json, *.safetensors): copy the whole folder")
        shares = (durable.parse_json((folder / FILE).read_bytes()) or {}).get("weights")
        if not isinstance(shares, Mapping) or set(shares) != set(names):
            raise CodecError(f"{folder / FILE} mixes {shares!r}, the run's objectives are {', '.join(names)}")
        direction = normalise([sign * float(shares[name]) for name, sign in zip(names, signs, strict=True)])
        found.append(Mixture(name=f"{base}-mix-{t}", direction=direction, folder=folder))
    if not found:
        raise CodecError(f"{run} holds no finished mixture (checkpoints/t=1/{FILE}): finish it with --resume first")
    return tuple(found)
