"""Codecs: a direction in the words that a policy was trained on, and back. Kept, with its version, beside the weights.

A model understands only the sentence that it saw, so the words are part of the checkpoint: change one and it is another
version. The direction is read from the first message alone, and only if that is the system's: no turn of a user, and no
system prompt of a client, can change it.

    codec = make("dpa-int100", ["helpfulness", "verbosity"])
    codec.render((0.966, -0.259))          # '... weighted rating = helpfulness*97 + verbosity*-26'
    codec.snap((0.966, -0.259))            # what these words say: (0.9659..., -0.2589...)
    messages = conversation(codec, (0.8, -0.6), prompt.messages)
    direction_of(messages, codec)          # (0.8, -0.6)

Adding one: a class with `name`, `version`, `render`, `parse` and `precision_deg`, and its line in `CODECS`.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rhumbline.directions import Direction, normalise
from rhumbline.errors import CodecError, DirectionError, did_you_mean
from rhumbline.records import Message

Option = str | float | int


@dataclass(frozen=True)
class Codec(ABC):
    """Direction <-> system prompt. `parse(render(v))` is v within `precision_deg`."""

    name: ClassVar[str]
    version: ClassVar[str]  # 'name/number'; a new number whenever a rendered word changes

    objectives: tuple[str, ...]  # (K,) recipe order
    options: Mapping[str, Option] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objectives", tuple(self.objectives))
        object.__setattr__(self, "options", dict(self.options))
        if len(self.objectives) < 2 or any(not name.strip() or "\n" in name for name in self.objectives):
            raise CodecError(f"{self.name} needs two or more objectives with names of one line, got {self.objectives}")
        known = self.known_options()
        for option in self.options:
            if option not in known:
                raise CodecError(
                    f"codec {self.name} has no option {option!r} (directions.codec_options)."
                    f"{did_you_mean(option, known)} Known: {', '.join(known) or 'none'}"
                )

    def known_options(self) -> tuple[str, ...]:
        """Names that `options` may hold."""
        return ()

    @property
    @abstractmethod
    def precision_deg(self) -> float:
        """No direction comes back from `parse(render(v))` farther than this from v, in degrees."""

    @abstractmethod
    def render(self, direction: Sequence[float]) -> str:
        """One line for the system prompt. Any length of vector will do, (K,). Raises DirectionError."""

    @abstractmethod
    def parse(self, text: str) -> Direction:
        """The direction that a rendered line says, as a unit vector (K,). Raises CodecError for any other text."""

    def snap(self, direction: Sequence[float]) -> Direction:
        """The direction that the words for `direction` really say."""
        return self.parse(self.render(direction))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for steering.json; `from_dict` gives the codec back."""
        return {
            "name": self.name,
            "version": self.version,
            "objectives": list(self.objectives),
            "options": dict(self.options),
        }

    def _unit(self, direction: Sequence[float]) -> Direction:
        if len(direction) != len(self.objectives):
            raise DirectionError(
                f"direction has {len(direction)} weights, the codec {self.name} says {len(self.objectives)} objectives "
                f"({', '.join(self.objectives)})"
            )
        return normalise(direction)

    def _read(self, pattern: str, text: str) -> list[str]:
        match = re.fullmatch(pattern, text)
        if match is None:
            raise CodecError(f"not a line of codec {self.version} for {', '.join(self.objectives)}: {text[:200]!r}")
        return list(match.groups())

    def _direction(self, weights: Sequence[float], unit: float, step: float, text: str) -> Direction:
        # Rounding moves each weight by half a step at most, hence the length by half a step times sqrt(K).
        slack = step / 2 * math.sqrt(len(weights)) + 1e-9
        if abs(math.hypot(*weights) - unit) > slack:
            raise CodecError(
                f"weights of length {math.hypot(*weights):g}, a line of {self.version} has {unit:g}: {text[:200]!r}"
            )
        return normalise(weights)


class DpaInt100(Codec):
    """The released DPA-v1-Mistral-7B: 100 v as integers, always joined by `+` (README and model card)."""

    name = "dpa-int100"
    version = "dpa-int100/1"
    prefix: ClassVar[str] = (
        "You are a helpful, respectful, and honest assistant who always responds to the user in a harmless way. "
        "Your response should maximize weighted rating = "
    )

    @property
    def precision_deg(self) -> float:
        return _worst_deg(0.005 * math.sqrt(len(self.objectives)))

    def render(self, direction: Sequence[float]) -> str:
        unit = self._unit(direction)
        return self.prefix + " + ".join(
            f"{name}*{round(100 * w)}" for name, w in zip(self.objectives, unit, strict=True)
        )

    def parse(self, text: str) -> Direction:
        terms = r" \+ ".join(rf"{re.escape(name)}\*(0|-?[1-9][0-9]*)" for name in self.objectives)
        return self._direction([float(w) for w in self._read(re.escape(self.prefix) + terms, text)], 100.0, 1.0, text)


class DpaFloat1(Codec):
    """The paper's figure 1: one decimal, and the sign between the terms."""

    name = "dpa-float1"
    version = "dpa-float1/1"
    prefix: ClassVar[str] = "You are a helpful assistant. Your response should maximize weighted rating = "

    @property
    def precision_deg(self) -> float:
        return _worst_deg(0.05 * math.sqrt(len(self.objectives)))

    def render(self, direction: Sequence[float]) -> str:
        out = ""
        for name, weight in zip(self.objectives, self._unit(direction), strict=True):
            tenths = round(10 * weight)  # an integer, so that there is no '-0.0'
            sign = ("- " if tenths < 0 else "+ ") if out else ("-" if tenths < 0 else "")
            out += f"{' ' if out else ''}{sign}{name}*{abs(tenths) / 10:.1f}"
        return self.prefix + out

    def parse(self, text: str) -> Direction:
        first, *rest = (rf"{re.escape(name)}\*([0-9]+\.[0-9])" for name in self.objectives)
        pattern = re.escape(self.prefix) + "(-?)" + first + "".join(rf" ([+-]) {term}" for term in rest)
        groups = self._read(pattern, text)
        weights = [(-1.0 if sign == "-" else 1.0) * float(w) for sign, w in zip(groups[::2], groups[1::2], strict=True)]
        return self._direction(weights, 1.0, 0.1, text)


class SteerLM(Codec):
    """Target values instead of weights (SteerLM, arXiv:2310.05344): `helpfulness:96,verbosity:20`.

    Over the attainable range [low_k, high_k] of an objective,
    target_k = (high_k + low_k) / 2 + v_k (high_k - low_k) / 2, rounded to an integer: v_k = 1 asks for the most, -1 for
    the least, 0 for the middle. The way back is the same line. Options: `scale` is '0-100' (default) or '0-4';
    `low.<objective>` and `high.<objective>` are the range where it is narrower, or elsewhere, as a map of heads with a
    negative coefficient may be. Few points are coarse: on 0-4 two objectives come back within 21 degrees.
    """

    name = "steerlm"
    version = "steerlm/1"
    prefix: ClassVar[str] = "You are a helpful assistant. Your response should be rated "
    scales: ClassVar[dict[str, float]] = {"0-100": 100.0, "0-4": 4.0}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.options.get("scale", "0-100") not in self.scales:
            raise CodecError(
                f"steerlm option scale must be one of {', '.join(self.scales)}, got {self.options['scale']!r}"
            )
        for name, (low, high) in zip(self.objectives, self._ranges, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise CodecError(f"steerlm range of {name} must rise, got {low:g}..{high:g} (directions.codec_options)")
        if self._error >= 1:
            raise CodecError(
                f"steerlm cannot say {len(self.objectives)} objectives in integers on ranges this narrow: "
                "widen low and high, or use scale 0-100 (directions.codec_options)"
            )

    def known_options(self) -> tuple[str, ...]:
        return ("scale", *(f"{end}.{name}" for name in self.objectives for end in ("low", "high")))

    @property
    def precision_deg(self) -> float:
        return _worst_deg(self._error)

    def targets(self, direction: Sequence[float]) -> tuple[float, ...]:
        """(K,) target values of a direction on the scale, before rounding."""
        return tuple(
            (high + low) / 2 + v * (high - low) / 2
            for v, (low, high) in zip(self._unit(direction), self._ranges, strict=True)
        )

    def render_targets(self, targets_K: Sequence[float]) -> str:
        """The line for given values, such as a response's own ratings (attribute-conditioned SFT)."""
        if len(targets_K) != len(self.objectives) or not all(math.isfinite(t) for t in targets_K):
            raise CodecError(f"steerlm needs {len(self.objectives)} finite target values, got {list(targets_K)}")
        whole = [
            min(top, max(bottom, math.floor(t + 0.5))) for t, (bottom, top) in zip(targets_K, self._ends, strict=True)
        ]
        return self.prefix + ",".join(f"{name}:{t}" for name, t in zip(self.objectives, whole, strict=True))

    def render(self, direction: Sequence[float]) -> str:
        return self.render_targets(self.targets(direction))

    def parse(self, text: str) -> Direction:
        pattern = re.escape(self.prefix) + ",".join(rf"{re.escape(name)}:(-?[0-9]+)" for name in self.objectives)
        values = [float(value) for value in self._read(pattern, text)]
        for name, value, (bottom, top) in zip(self.objectives, values, self._ends, strict=True):
            if not bottom <= value <= top:
                raise CodecError(f"target values of {name} run from {bottom} to {top}, got {text[:200]!r}")
        weights = [(2 * t - high - low) / (high - low) for t, (low, high) in zip(values, self._ranges, strict=True)]
        try:
            return normalise(weights)
        except DirectionError:
            raise CodecError(
                f"every target is the middle of its range, which is no direction: {text[:200]!r}"
            ) from None

    @property
    def _top(self) -> float:
        return self.scales[str(self.options.get("scale", "0-100"))]

    @property
    def _ranges(self) -> list[tuple[float, float]]:
        try:
            return [
                (float(self.options.get(f"low.{name}", 0.0)), float(self.options.get(f"high.{name}", self._top)))
                for name in self.objectives
            ]
        except ValueError as e:
            raise CodecError(f"steerlm ranges must be numbers (directions.codec_options): {e}") from None

    @property
    def _ends(self) -> list[tuple[int, int]]:
        """(K,) whole numbers that are said at most: the scale, and the range where it is elsewhere."""
        return [(min(0, math.floor(low)), max(int(self._top), math.ceil(high))) for low, high in self._ranges]

    @property
    def _error(self) -> float:
        """Largest error of parse(render(v)) before it is normalised: half a point each, in units of half the range."""
        return math.hypot(*(1.0 / (high - low) for low, high in self._ranges))


class Signs(Codec):
    """Weights as rows of signs, for models too small to read numbers: `helpfulness + + - - verbosity - - - -`.

    Over a weight's range [low_k, high_k] a row of `width` signs shows the share of the way by its number of `+`, which stand
    first. Every sign is a token that says the same thing, so a model reads a row by attending to it at large: a 135M model
    needs a few hundred samples where digits take thousands. Options: `width` (default 10), `low.<objective>` and
    `high.<objective>` (default -1 and 1) narrow a range to the trained cone, so that its ends are all `-` and all `+`.
    Directions whose weights lie outside the ranges cannot be said: project them onto the cone first.
    """

    name = "signs"
    version = "signs/1"

    def __post_init__(self) -> None:
        super().__post_init__()
        width = self.options.get("width", 10)
        if not isinstance(width, int) or not 2 <= width <= 64:
            raise CodecError(
                f"signs option width must be an integer from 2 to 64, got {width!r} (directions.codec_options)"
            )
        for name, (low, high) in zip(self.objectives, self._ranges, strict=True):
            if not -1 <= low < high <= 1:
                raise CodecError(f"signs range of {name} must rise within -1..1, got {low:g}..{high:g}")
        if self._error >= 1:
            raise CodecError(
                f"signs of width {width} cannot say a direction of {len(self.objectives)} objectives: widen them"
            )

    def known_options(self) -> tuple[str, ...]:
        return ("width", *(f"{end}.{name}" for name in self.objectives for end in ("low", "high")))

    @property
    def precision_deg(self) -> float:
        return _worst_deg(self._error)

    def render(self, direction: Sequence[float]) -> str:
        rows = []
        for name, weight, (low, high) in zip(self.objectives, self._unit(direction), self._ranges, strict=True):
            if not low - 1e-3 <= weight <= high + 1e-3:
                raise CodecError(
                    f"the weight {weight:.3f} of {name} lies outside {low:g}..{high:g}, which codec {self.version} can say: "
                    "project the direction onto the trained cone first"
                )
            plus = min(self._width, max(0, math.floor(self._width * (weight - low) / (high - low) + 0.5)))
            rows.append(" ".join([name, *"+" * plus, *"-" * (self._width - plus)]))
        return " ".join(rows)

    def parse(self, text: str) -> Direction:
        signs = r"((?: \+)*(?: -)*)"
        pattern = " ".join(rf"{re.escape(name)}{signs}" for name in self.objectives)
        rows = self._read(pattern, text)
        if any(len(row) != 2 * self._width for row in rows):
            raise CodecError(
                f"not a line of codec {self.version}: every objective has {self._width} signs, got {text[:200]!r}"
            )
        weights = [
            low + row.count("+") / self._width * (high - low)
            for row, (low, high) in zip(rows, self._ranges, strict=True)
        ]
        if abs(math.hypot(*weights) - 1) > self._error + 1e-3:
            raise CodecError(
                f"weights of length {math.hypot(*weights):g}, a line of {self.version} has 1: {text[:200]!r}"
            )
        return normalise(weights)

    @property
    def _width(self) -> int:
        return int(self.options.get("width", 10))

    @property
    def _ranges(self) -> list[tuple[float, float]]:
        try:
            return [
                (float(self.options.get(f"low.{name}", -1.0)), float(self.options.get(f"high.{name}", 1.0)))
                for name in self.objectives
            ]
        except ValueError as e:
            raise CodecError(f"signs ranges must be numbers (directions.codec_options): {e}") from None

    @property
    def _error(self) -> float:
        """Largest |parse(render(v)) - v| before it is normalised: half a sign per objective."""
        return math.hypot(*((high - low) / self._width / 2 for low, high in self._ranges))


CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (DpaInt100, DpaFloat1, Signs, SteerLM)}


def make(name: str, objectives: Sequence[str], options: Mapping[str, Option] | None = None) -> Codec:
    """A codec by name. Raises CodecError for an unknown name or option."""
    if name not in CODECS:
        raise CodecError(
            f"unknown codec {name!r} (directions.codec).{did_you_mean(name, CODECS)} Known: {', '.join(CODECS)}"
        )
    return CODECS[name](tuple(objectives), options or {})


def from_dict(data: Mapping[str, Any]) -> Codec:
    """The codec that a checkpoint's steering.json names. Raises CodecError where other words would be used now."""
    try:
        codec = make(data["name"], data["objectives"], data.get("options"))
        version = data["version"]
    except (KeyError, TypeError) as e:
        raise CodecError(
            f"steering.json does not describe a codec (name, version, objectives, options): {data!r}"
        ) from e
    if version != codec.version:
        raise CodecError(
            f"the checkpoint was trained with the words of {version}, this Rhumbline speaks {codec.version}"
        )
    return codec


def conversation(codec: Codec, direction: Sequence[float] | None, messages: Sequence[Message]) -> tuple[Message, ...]:
    """`messages` with the direction in front: the rendered line, then the prompt's own system message in the same turn.

    Without a direction the messages are returned as they are.
    """
    if direction is None:
        return tuple(messages)
    return in_front(codec.render(direction), messages)


def in_front(line: str, messages: Sequence[Message]) -> tuple[Message, ...]:
    """`messages` under a rendered line: it opens the system message, which the prompt's own one continues."""
    own = messages[0].content if messages and messages[0].role == "system" else None
    rest = messages if own is None else messages[1:]
    return (Message(role="system", content=f"{line}\n\n{own}" if own and own.strip() else line), *rest)


def direction_of(messages: Sequence[Message], codec: Codec) -> Direction:
    """The direction of a conversation: the first paragraph of its first message, if that is the system's; nothing else.

    Raises CodecError where there is none.
    """
    if not messages or messages[0].role != "system":
        raise CodecError("the conversation starts without a system message, so it carries no direction")
    return codec.parse(messages[0].content.partition("\n\n")[0])


def _worst_deg(error: float) -> float:
    # A unit vector moved by `error` < 1 turns by arcsin(error) at most.
    return math.degrees(math.asin(min(1.0, error)))
