"""One request's sources -> one direction: who wins, what it is as a unit vector, in the trained cone, in the codec's words.

    resolved = resolve(Sources(body=body, header="concise"), served, people.profile)
    resolved.requested, resolved.effective      # (0.8, -0.6), (0.8, -0.6): unit vectors in the order of served.names
    resolved.source, resolved.overruled         # 'body', ('header',)
    resolved.line, resolved.model               # what stands in front of the prompt, and which of the engine's models is asked

body > header > metadata > verbosity > alias > the profile bound to the key > default. Every source that is given must make
sense, the overruled ones too: a typing error that is ignored today is a wrong answer on the day the other source goes.

    asked -> normalise -> project onto the cone (or refuse) -> snap to the codec's grid, or to the nearest mixture
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

import numpy as np

from rhumbline.directions import Direction, angle_between_deg, from_angle_deg, normalise, parse
from rhumbline.errors import CodecError, DirectionError, did_you_mean
from rhumbline.serving.protocols import Mixtures
from rhumbline.serving.requests import (
    MAX_NAME,
    MAX_TEXT,
    MAX_WEIGHTS,
    Sources,
    SteeringBody,
    SteeringRefused,
    read_body,
)
from rhumbline.serving.served import Served

__all__ = ["ProfileLookup", "Resolved", "Said", "Source", "SteeringRefused", "read_body", "resolve", "say"]

Source = Literal["body", "header", "metadata", "verbosity", "alias", "profile", "default"]
ProfileLookup = Callable[
    [str], Mapping[str, float] | None
]  # name -> objective weights; None: the caller has no such profile
VERBOSITY = "verbosity"  # the objective that OpenAI's parameter of that name moves
_TURNS = {"low": -1.0, "medium": 0.0, "high": 1.0}
_SAME_DEG = 1e-6
# Where a text source stands in a request: the `param` of its errors.
_PARAMS = {"header": "X-Steering", "metadata": "metadata.steering", "alias": "model"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A direction as the policy can be told it."""

    effective: Direction  # (K,) what the words, or the merged weights, really mean
    line: str | None  # opens the system message; None: no prompt says it
    model: str  # of the engine: the served one, or a mixture


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a request's steering came to. Vectors are (K,), unit, in the order of `names`."""

    names: tuple[str, ...]  # (K,)
    requested: Direction  # as the winner asked for it
    effective: Direction  # what the policy is told
    projected: bool  # it lay outside the trained cone
    snapped: bool  # the words, or the mixtures, are coarser than what was asked
    source: Source
    overruled: tuple[Source, ...]  # explicit sources that asked for something else
    notes: tuple[str, ...]  # what a client should know besides, such as a profile of other objectives
    method: str
    template_version: str | None
    line: str | None
    model: str
    options: SteeringBody  # best_of, return_rewards, neighbours_deg: those of the body, or the defaults


def resolve(
    sources: Sources, served: Served, profile_lookup: ProfileLookup | None = None, *, mixtures: Mixtures | None = None
) -> Resolved:
    """Settle a request's direction. Raises SteeringRefused, with `param` and `code` of requests.CODES.

    profile_lookup: profiles of this caller; None: there are none. mixtures: the engine's, where steering is by weights; None:
    those of `served`.
    """
    options = sources.body or SteeringBody()
    wishes, notes = _wishes(sources, served, profile_lookup or (lambda _: None))
    source, requested = wishes[0]
    inside, projected = served.cone.project(requested)
    if projected and options.out_of_range == "error":
        nearest = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(served.names, inside, strict=True))
        raise SteeringRefused(
            f"The direction lies {angle_between_deg(requested, inside):.1f} degrees outside the trained cone of "
            f"{served.cone.half_angle_deg:g} degrees. The nearest trained direction is {nearest}: ask for it, or leave "
            "steering.out_of_range as project.",
            "steering",
            "out_of_range",
        )
    said = say(served, inside, mixtures)
    overruled = tuple(
        other
        for other, direction in wishes[1:]
        if other not in ("profile", "default")
        and _differ(say(served, served.cone.project(direction)[0], mixtures).effective, said.effective)
    )
    return Resolved(
        names=served.names,
        requested=requested,
        effective=said.effective,
        projected=projected,
        snapped=_differ(inside, said.effective),
        source=source,
        overruled=overruled,
        notes=notes,
        method=served.method,
        template_version=served.template_version,
        line=said.line,
        model=said.model,
        options=options,
    )


def say(served: Served, direction: Sequence[float], mixtures: Mixtures | None = None) -> Said:
    """The words, or the mixture, of a direction inside the cone. Raises SteeringRefused where the codec lacks them."""
    if served.mechanism == "weights":
        name, merged_for = (served.nearest if mixtures is None else mixtures).nearest(direction)
        return Said(effective=normalise(merged_for), line=None, model=name)
    try:
        line = served.codec.render(direction)
        return Said(effective=served.codec.parse(line), line=line, model=served.name)
    except CodecError as e:  # a cone of many objectives may hold corners that the codec's ranges do not
        raise SteeringRefused(f"This model has no words for that direction: {e}", "steering", "out_of_range") from None


# --- reading each source ----------------------------------------------------------------------------------------------


def _wishes(
    sources: Sources, served: Served, lookup: ProfileLookup
) -> tuple[list[tuple[Source, Direction]], tuple[str, ...]]:
    """Every source that says a direction, highest precedence first; the default is always the last."""
    found: list[tuple[Source, Direction]] = [("default", served.default)]
    notes: tuple[str, ...] = ()
    if sources.profile is not None:
        try:
            found.append(("profile", _profile(sources.profile, served, lookup, "model")))
        except SteeringRefused as e:
            # The client may not know of it: an unmodified one must go on working when its model or its profile changes.
            notes = (f"The profile that is bound to this key was not used: {e}",)
    if sources.alias is not None:
        found.append(("alias", _text(sources.alias, "alias", served)))
    if sources.verbosity is not None and VERBOSITY in served.names:
        found.append(("verbosity", _turned(sources.verbosity, found[-1][1], served)))
    elif sources.verbosity is not None:
        notes = (
            *notes,
            f"verbosity was not used: this model has no objective of that name ({', '.join(served.names)}).",
        )
    if sources.metadata is not None:
        found.append(("metadata", _text(sources.metadata, "metadata", served)))
    if sources.header is not None:
        found.append(("header", _text(sources.header, "header", served)))
    if sources.body is not None and sources.body.said:
        found.append(("body", _body(sources.body, served, lookup)))
    return found[::-1], notes


def _body(body: SteeringBody, served: Served, lookup: ProfileLookup) -> Direction:
    if body.weights is not None:
        return _weights(body.weights, served, "steering.weights")
    if body.preset is not None:
        return _preset(body.preset, served, "steering.preset")
    if body.profile is not None:
        return _profile(body.profile, served, lookup, "steering.profile")
    assert body.degrees is not None, "resolve reads a body that says a direction"
    return _degrees(body.degrees, served)


def _weights(weights: Mapping[str, float], served: Served, param: str) -> Direction:
    for name in weights:
        _known(name, served, f"{param}.{name}")
    try:
        return parse(weights, served.names)
    except DirectionError as e:
        raise SteeringRefused(f"{param}: {e}.", param, "invalid_weights") from None


def _known(name: str, served: Served, param: str) -> None:
    if name not in served.names:
        raise SteeringRefused(
            f"Unknown objective {name!r}.{did_you_mean(name, served.names)} Known: {', '.join(served.names)}.",
            param,
            "unknown_objective",
        )


def _preset(name: str, served: Served, param: str) -> Direction:
    if name not in served.presets:
        known = ", ".join(served.presets) or "none"
        raise SteeringRefused(
            f"Unknown preset {name!r}.{did_you_mean(name, served.presets)} Known: {known}.", param, "unknown_preset"
        )
    return parse(served.presets[name], served.names)


def _profile(name: str, served: Served, lookup: ProfileLookup, param: str) -> Direction:
    weights = lookup(name)
    if weights is None:
        raise SteeringRefused(f"Unknown profile {name!r}: save one by the quiz, or PUT it.", param, "unknown_profile")
    try:
        return parse(dict(weights), served.names)
    except DirectionError as e:
        raise SteeringRefused(f"The profile {name!r} is not for this model: {e}.", param, "unknown_profile") from None


def _degrees(degrees: float | Mapping[str, float], served: Served) -> Direction:
    """An angle, K=2; or sin(angle) as the weight of each named objective, the rest of the length along the axis's others."""
    param, names = "steering.degrees", served.names
    if not isinstance(degrees, Mapping):
        if len(names) != 2:
            raise SteeringRefused(
                f"One angle needs two objectives, this model has {len(names)} ({', '.join(names)}): give {param} by objective.",
                param,
                "invalid_weights",
            )
        return from_angle_deg(degrees)
    for name, angle in degrees.items():
        _known(name, served, f"{param}.{name}")
        if abs(angle) > 90:
            raise SteeringRefused(
                f"{param}.{name} must lie in -90..90, got {angle:g}.", f"{param}.{name}", "invalid_weights"
            )
    sines = {name: math.sin(math.radians(angle)) for name, angle in degrees.items()}
    left = 1.0 - sum(sine**2 for sine in sines.values())
    others = [k for k, name in enumerate(names) if name not in sines]
    if not sines or not others or left < -1e-12:
        raise SteeringRefused(
            f"{param} must name at least one objective and leave one out, and the squares of their sines must not exceed 1.",
            param,
            "invalid_weights",
        )
    axis_K, signs_K = np.asarray(served.cone.axis), np.asarray(served.steering.signs, dtype=np.float64)
    base = axis_K[others]
    if np.linalg.norm(base) < 1e-9:  # the axis has none of the others: each the way that is better without a direction
        base = signs_K[others]
    out = np.array([sines.get(name, 0.0) for name in names])
    out[others] = base / np.linalg.norm(base) * math.sqrt(max(0.0, left))
    return normalise(out)


def _text(said: str, source: Literal["header", "metadata", "alias"], served: Served) -> Direction:
    """A direction as text: weights by name, an angle, a preset, or K numbers in order."""
    param, wish = _PARAMS[source], said.strip()
    if source == "header":  # as X-Steering-Effective writes names that a header cannot hold
        wish = unquote(wish)
    if len(said) > MAX_TEXT:
        raise SteeringRefused(
            f"{param}: a direction as text has at most {MAX_TEXT} characters, got {len(said)}.", param, "too_long"
        )
    if wish in served.presets:
        return _preset(wish, served, param)
    parts = [part.partition("=") for part in wish.split(",")]
    if len(parts) > MAX_WEIGHTS:
        raise SteeringRefused(f"{param} names too many objectives, at most {MAX_WEIGHTS}.", param, "invalid_weights")
    if "=" in wish:
        for name, equals, _ in parts:
            if equals:
                _known(name.strip()[:MAX_NAME], served, f"{param}.{name.strip()[:MAX_NAME]}")
    elif wish and not any(character.isdigit() for character in wish):
        _preset(wish[:MAX_NAME], served, param)
    try:
        return parse(wish, served.names, served.presets)
    except DirectionError as e:
        raise SteeringRefused(f"{param}: {e}.", param, "invalid_weights") from None


def _turned(level: str, base: Direction, served: Served) -> Direction:
    """What lower sources ask for, turned towards more or less verbosity by the configured angle, and never past it."""
    if level not in _TURNS:
        raise SteeringRefused(
            f"verbosity must be one of {', '.join(_TURNS)}, got {level[:MAX_NAME]!r}.", VERBOSITY, "invalid_value"
        )
    pole_K = np.array([_TURNS[level] if name == VERBOSITY else 0.0 for name in served.names])
    if not pole_K.any():
        return base
    base_K = np.asarray(base)
    distance = math.radians(angle_between_deg(base_K, pole_K))
    across_K = pole_K - (pole_K @ base_K) * base_K
    if distance < 1e-9 or np.linalg.norm(across_K) < 1e-9:  # there already, or at its opposite, where no way is shorter
        return base
    turn = min(math.radians(served.verbosity_deg), distance)
    return normalise(math.cos(turn) * base_K + math.sin(turn) * across_K / np.linalg.norm(across_K))


def _differ(a: Direction, b: Direction) -> bool:
    return angle_between_deg(a, b) > _SAME_DEG
