"""Served models for tests, made from a steering.json alone: two objectives in the paper's arc, three in a cone, soups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rhumbline.codecs import make
from rhumbline.directions import Cone, from_angle_deg, normalise
from rhumbline.serving.mixtures import Mixture
from rhumbline.serving.served import Served
from rhumbline.steering import Steering

NAMES = ("helpfulness", "verbosity")
PRESETS = {"concise": {"helpfulness": 1.0, "verbosity": -1.0}, "detailed": {"helpfulness": 1.0}}
ARC = Cone(NAMES, from_angle_deg(-22.5), 22.5)


def contract(
    names: tuple[str, ...] = NAMES,
    cone: Cone = ARC,
    codec: str = "dpa-int100",
    options: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Steering:
    K = len(names)
    calibration = {
        "names": list(names),
        "n": 10,
        "mean": [50.0] * K,
        "std": [10.0] * K,
        "length_correlation": [None] * K,
    }
    calibration |= {
        "minimum": [0.0] * K,
        "maximum": [100.0] * K,
        "p10": [40.0] * K,
        "p50": [50.0] * K,
        "p90": [60.0] * K,
    }
    values: dict[str, Any] = {
        "objectives": names,
        "signs": (1, -1, *[1] * (K - 2)),
        "calibration": calibration,
        "codec": make(codec, names, options).to_dict(),
        "region": cone.to_dict(),
        "reward_model": "abc",
        "iteration": 1,
        "initial": "embedded",
        "presets": PRESETS if names == NAMES else {},
    }
    return Steering(**values | changes)


def served(**changes: Any) -> Served:
    """Helpfulness and verbosity from -45 to 0 degrees, said by dpa-int100."""
    of = {key: changes.pop(key) for key in ("codec", "options", "presets") if key in changes}
    return Served.of(contract(**of), name="smol", folder=Path("nowhere"), **changes)


def served_3(half_angle_deg: float = 45.0, axis: tuple[float, ...] = (1.0, 0.0, 1.0), **changes: Any) -> Served:
    names = ("helpfulness", "verbosity", "safety")
    given = contract(names, Cone(names, normalise(axis), half_angle_deg))
    return Served.of(given, name="smol", folder=Path("nowhere"), **changes)


def soups() -> Served:
    """Mixtures at 0, -15, -30 and -45 degrees."""
    mixtures = tuple(
        Mixture(name=f"smol-mix-{i}", direction=from_angle_deg(angle), folder=Path(f"t={i}"))
        for i, angle in enumerate((0, -15, -30, -45), 1)
    )
    return served(mechanism="weights", mixtures=mixtures, method="soups", template_version=None)
