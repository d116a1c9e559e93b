"""From YAML to a recipe: `extends`, overrides, and every fault by its path.

YAML 1.1 takes 1e-5 for text. Where a key is a number, it becomes one; in mappings that are passed on as they are
(generator.engine, learner.deepspeed) text stays text: write 1.0e-5 there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from rhumbline.config.sections import Section
from rhumbline.errors import ConfigError, did_you_mean
from rhumbline.faults import explain


def read(
    path: str | Path, overrides: list[str] | tuple[str, ...] = (), example: str = "learner.lr=1e-5"
) -> dict[str, Any]:
    """Plain data of any kind of recipe, what it `extends` and the overrides laid in; not yet validated. Raises ConfigError."""
    return laid_over(_read(Path(path), ()), overrides, example)


def laid_over(
    raw: dict[str, Any], overrides: list[str] | tuple[str, ...], example: str = "learner.lr=1e-5"
) -> dict[str, Any]:
    """The overrides over plain data that was read before, which stays as it is. Raises ConfigError."""
    laid = [parsed(override, example) for override in overrides]
    for over in laid:  # first, so that options given before the codec stand as well as those after it
        raw = _without_options(raw, over)
    for over in laid:
        raw = merge(raw, over, whole=frozenset())
    return raw


def parsed(override: str, example: str) -> dict[str, Any]:
    """`a.b=1` as {"a": {"b": 1}}. Raises ConfigError."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: expected key.sub=value, for example {example}")
    try:
        laid = yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise ConfigError(f"override {override!r}: the value is not YAML: {e}") from None
    for part in reversed(key.strip().split(".")):
        laid = {part: laid}
    return dict(laid)


S = TypeVar("S", bound=Section)


def build(schema: type[S], raw: dict[str, Any], origin: str) -> S:
    """`raw` as a `schema`, named after the file `origin` unless it says otherwise. Raises ConfigError."""
    raw.setdefault("name", Path(origin).stem)
    try:
        return schema.model_validate(raw)
    except ValidationError as e:
        raise ConfigError("\n".join(f"{origin}: {explain(fault, schema)}" for fault in e.errors())) from None


def dump(recipe: Section) -> str:
    """The resolved recipe as YAML; for a Recipe, `validate(yaml.safe_load(dump(r)))` gives it back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(a: Section, b: Section) -> list[str]:
    """Dotted keys in which two recipes differ, with both values: what `--resume` shows when it refuses."""
    left, right = _flatten(a.model_dump(mode="json")), _flatten(b.model_dump(mode="json"))
    return [f"{k}: {left.get(k)!r} -> {right.get(k)!r}" for k in sorted(left | right) if left.get(k) != right.get(k)]


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `extends` leads back to itself")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise ConfigError(f"recipe not found: {path}.{near} `rhumbline recipes ls` lists the shipped ones") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"{path}: cannot be read as YAML: {e}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(raw).__name__}")
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends must name one recipe file, found {base!r}")
    raw.setdefault("name", path.stem)
    return merge(_without_options(_read(path.parent / base, (*seen, path.resolve())), raw), raw)


def _without_options(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` without its directions.codec_options where `over` names another codec: they are that codec's own."""
    old, new = base.get("directions"), over.get("directions")
    if not isinstance(old, dict) or not isinstance(new, dict) or new.get("codec") in (None, old.get("codec")):
        return base
    return base | {"directions": {key: value for key, value in old.items() if key != "codec_options"}}


# Maps whose keys are the user's own names: a recipe that extends another replaces them whole, it does not add to them.
_WHOLE = frozenset({"objectives", "styles", "axis", "fixed", "reference_point"})


def merge(base: dict[str, Any], over: dict[str, Any], whole: frozenset[str] = _WHOLE) -> dict[str, Any]:
    """`over` laid over `base`, mapping by mapping; an empty one in `over` replaces what it lies on."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and value and isinstance(out.get(key), dict) and key not in whole:
            out[key] = merge(out[key], value, whole)
        else:
            out[key] = value
    return out


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    out: dict[str, Any] = {} if value or not prefix else {prefix: {}}
    for key, sub in value.items():
        out |= _flatten(sub, f"{prefix}.{key}" if prefix else str(key))
    return out
