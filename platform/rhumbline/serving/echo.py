"""What a response says about its direction: the field `steering`, the header, and the last chunk of a stream.

body["steering"] = steering(resolved, rewards=(71.3, 38.0))
headers["X-Steering-Effective"] = header(resolved)            # 'helpfulness=0.8,verbosity=-0.6'
last = with_steering(chunk, steering(resolved))               # the chunk with the usage; the others stay as they are
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from rhumbline.directions import text
from rhumbline.serving.choose import Choice
from rhumbline.serving.resolve import Resolved

HEADER = "X-Steering-Effective"
FIELD = "steering"
JSON = dict[str, Any]


def steering(resolved: Resolved, *, rewards: Sequence[float] | None = None, choice: Choice | None = None) -> JSON:
    """The object `steering` of a response, plain JSON.

    rewards: (K,) of the answer, 0-100; None leaves them out. choice: how the answer was selected; None: there was one. With
    neighbours the effective direction stays the asked one, by which the choice was made; the words that the chosen answer was
    sampled under are `sampled_under`.
    """
    out: JSON = {
        "requested": weights(resolved.names, resolved.requested),
        "effective": weights(resolved.names, resolved.effective),
        "projected": resolved.projected,
        "snapped": resolved.snapped,
        "source": resolved.source,
        "method": resolved.method,
        "template_version": resolved.template_version,
    }
    if resolved.overruled:
        out["overruled"] = list(resolved.overruled)
    if resolved.notes:
        out["notes"] = list(resolved.notes)
    if resolved.line is None:
        out["mixture"] = resolved.model
    if choice is not None:
        out["selection"] = choice.to_json(resolved.names)
        rewards = choice.rewards if rewards is None else rewards
    if rewards is not None:
        out["rewards"] = weights(resolved.names, rewards)
    return out


def header(resolved: Resolved) -> str:
    """The effective direction as the header X-Steering reads it, in ASCII: what a header cannot hold is percent-encoded."""
    names = [quote(name, safe=" ") for name in resolved.names]
    return text(resolved.effective, names)


def with_steering(body: Mapping[str, Any], said: Mapping[str, Any]) -> JSON:
    """A response or the last chunk of a stream with the field `steering`; `body` is left as it is."""
    return {**body, FIELD: dict(said)}


def weights(names: Sequence[str], vector_K: Sequence[float]) -> dict[str, float]:
    """Objective -> number with four decimals at most: a direction, or rewards."""
    return {name: round(float(value), 4) + 0.0 for name, value in zip(names, vector_K, strict=True)}
