"""What a client may say about steering, and how it is told that it cannot be done. The first stop of every request.

    body = read_body({"weights": {"helpfulness": 0.8, "verbosity": -0.6}, "best_of": 4})
    sources = Sources(body=body, header="concise", alias=None)
    read_body({"weights": {"helpfulness": True}})      # SteeringRefused, param steering.weights.helpfulness

Nothing is coerced: a bool, a string or NaN is no weight. Whether an objective or a preset exists is for resolve.py to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rhumbline.errors import UserError, did_you_mean

MAX_WEIGHTS = 64  # objectives that a request may name
MAX_TEXT = 512  # characters of a direction as text; what OpenAI allows a metadata value
MAX_NAME = 128  # characters of the name of an objective, a preset or a profile
MAX_BEST_OF = 64  # settings may allow fewer
NEIGHBOURS_DEG = 30.0  # how far RPS looks (arXiv:2510.20498 samples five neighbours within 30 degrees)
MAX_NEIGHBOURS_DEG = 45.0

# code -> what it says; every refusal has one of them, and status 400.
CODES = {
    "unknown_field": "`steering` has a field that does not exist",
    "invalid_value": "a value of another type, or outside its bounds",
    "invalid_weights": "weights that are no direction: not numbers, not finite, all zero, too many",
    "ambiguous_direction": "more than one of weights, preset, degrees and profile in one body",
    "unknown_objective": "an objective that this model does not have",
    "unknown_preset": "a preset that this model does not have",
    "unknown_profile": "a profile that the caller does not have, or one for other objectives",
    "out_of_range": "a direction outside the trained cone, with out_of_range=error",
    "too_long": "a text that is longer than any direction",
    "invalid_messages": "messages or a prompt that no chat template can be given",
}

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class SteeringRefused(UserError):  # noqa: N818  it is no fault of ours: the request is refused
    """A request that cannot be steered as asked: status 400, in OpenAI's error shape with `param` and `code` (of CODES)."""

    def __init__(self, message: str, param: str, code: str) -> None:
        super().__init__(message, param, code)  # all in args, so that it pickles

    @property
    def message(self) -> str:
        return str(self.args[0])

    @property
    def param(self) -> str:
        return str(self.args[1])

    @property
    def code(self) -> str:
        return str(self.args[2])

    def __str__(self) -> str:
        return self.message


class SteeringBody(BaseModel):
    """The field `steering` of a request's body: at most one way to say a direction, and what to do with it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    weights: dict[Name, float] | None = Field(
        None,
        max_length=MAX_WEIGHTS,
        description="Objective -> weight; those left out weigh 0. Only the ratio counts: v and 3v are one direction.",
        examples=[{"helpfulness": 0.8, "verbosity": -0.6}],
    )
    preset: Name | None = Field(None, description="A name of /v1/steering/presets.")
    degrees: float | dict[Name, float] | None = Field(
        None,
        description="Two objectives: one angle, atan2(second, first). Any number of them: objective -> its angle above the "
        "others, so that its weight is sin(angle); the others keep the proportions of the trained region's axis.",
        examples=[{"verbosity": -37}],
    )
    profile: Name | None = Field(None, description="A profile of the caller, as the quiz saves them.")
    out_of_range: Literal["project", "error"] = Field(
        "project", description="Outside the trained cone: take the nearest trained direction, or refuse."
    )
    best_of: int = Field(
        1,
        ge=1,
        le=MAX_BEST_OF,
        description="Answers to sample; the one with the largest v.r by the reward model is returned.",
    )
    return_rewards: bool = Field(False, description="Score the answer with the run's reward model.")
    neighbours_deg: float = Field(
        0.0,
        ge=0,
        le=MAX_NEIGHBOURS_DEG,
        description="Above 0 (30 is usual): sample best_of answers under directions up to so far from the asked one (RPS). "
        "0: all of them under the asked one.",
    )

    @property
    def said(self) -> list[str]:
        """Which of its fields say a direction."""
        return [name for name in _WAYS if getattr(self, name) is not None]

    @property
    def needs_rewards(self) -> bool:
        """Whether it can only be done with a reward model."""
        return self.best_of > 1 or self.return_rewards


_WAYS = ("weights", "preset", "degrees", "profile")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Every place where a request may say a direction, as it came; None where it does not. Highest precedence first."""

    body: SteeringBody | None = None
    header: str | None = None  # X-Steering
    metadata: str | None = None  # metadata.steering
    verbosity: str | None = None  # OpenAI's own: low, medium or high
    alias: str | None = None  # what follows the @ of `model`
    profile: str | None = None  # name of the profile that is bound to the key


def read_body(raw: object, param: str = "steering") -> SteeringBody:
    """The field `steering` as JSON gave it. Raises SteeringRefused with the path of what is wrong below `param`."""
    if not isinstance(raw, Mapping):
        raise SteeringRefused(f"{param} must be an object such as {_EXAMPLE}, got {_kind(raw)}", param, "invalid_value")
    try:
        body = SteeringBody.model_validate(dict(raw))
    except ValidationError as e:
        raise refusal(e, raw, param) from None
    if len(body.said) > 1:
        raise SteeringRefused(
            f"{param} says its direction in {len(body.said)} ways ({', '.join(body.said)}): give one of them",
            param,
            "ambiguous_direction",
        )
    if body.neighbours_deg > 0 and body.best_of < 2:
        raise SteeringRefused(
            f"{param}.neighbours_deg samples several answers: give {param}.best_of of 2 or more",
            f"{param}.neighbours_deg",
            "invalid_value",
        )
    return body


def refusal(error: ValidationError, raw: object, param: str = "steering") -> SteeringRefused:
    """The first fault that pydantic found in `raw`, as this API says it. Never repeats more of the input than a name."""
    faults = error.errors(include_url=False, include_context=True, include_input=False)
    first = faults[0]
    path, value = _path(first["loc"], raw)
    where = ".".join([param, *path])
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])[:MAX_NAME]
        known = list(SteeringBody.model_fields)
        return SteeringRefused(
            f"Unknown field {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.",
            f"{param}.{name}",
            "unknown_field",
        )
    code = "invalid_weights" if path[:1] in (["weights"], ["degrees"]) else "invalid_value"
    if first["type"] == "too_long":
        return SteeringRefused(f"{where} names too many objectives, at most {MAX_WEIGHTS}.", where, "invalid_weights")
    if first["type"] == "string_too_long" or any(len(part) > MAX_NAME for part in path):
        return SteeringRefused(
            f"A name in {where[:MAX_NAME]} is longer than {MAX_NAME} characters.", where[:MAX_NAME], "too_long"
        )
    if first["type"] in _NUMBERS or isinstance(value, bool):
        wanted = "true or false" if first["type"].startswith("bool") else "a finite number"
        return SteeringRefused(f"{where} must be {wanted}, got {_kind(value)}.", where, code)
    return SteeringRefused(f"{where}: {first['msg']}.", where, code)


_EXAMPLE = '{"weights": {"helpfulness": 0.8, "verbosity": -0.6}}'
_NUMBERS = {"float_type", "finite_number", "float_parsing", "bool_type", "dict_type"}


def _path(loc: tuple[int | str, ...], raw: object) -> tuple[list[str], object]:
    """The part of a location that is in the input (pydantic adds names of union members), and the value there."""
    path, value = list[str](), raw
    for part in loc:
        if isinstance(value, Mapping) and part in value:
            path.append(str(part))
            value = value[part]
    return path, value


def _kind(value: object) -> str:
    """What JSON calls it, without repeating it; a number that is not finite by its name."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "a number" if abs(value) < float("inf") else str(value)
    kinds: dict[type[Any], str] = {
        int: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
        type(None): "null",
    }
    return kinds.get(type(value), type(value).__name__)
