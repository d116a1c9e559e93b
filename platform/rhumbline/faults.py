"""Pydantic's faults in our words: the key's path as it is written in the recipe, and a did-you-mean. Used by config.

explain(error, Recipe)                 # "unknown key learner.lrr. Did you mean 'lr'? Known here: engine, ..."
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from rhumbline.errors import did_you_mean


def explain(fault: Mapping[str, Any], root: type[BaseModel], prefix: str = "") -> str:
    """One entry of `ValidationError.errors()` for `root`, which sits at `prefix` in the recipe."""
    model, keys = _follow(root, fault["loc"])
    path = prefix + ".".join(keys)
    if fault["type"] == "extra_forbidden":
        known = list(model.model_fields) if model is not None else []
        return f"unknown key {path}.{did_you_mean(keys[-1], known)} Known here: {', '.join(known)}"
    if fault["type"] == "missing":
        return f"{path} is required and missing"
    if fault["type"] == "value_error" and not keys:
        return str(fault["ctx"]["error"])
    return f"{path}: {fault['msg']}, got {fault['input']!r}"


def _follow(root: type[BaseModel], loc: tuple[str | int, ...]) -> tuple[type[BaseModel] | None, list[str]]:
    """The model that holds the last key of `loc`, and `loc` as people write it: without pydantic's tags of unions."""
    hint: Any = root
    holder: type[BaseModel] | None = None
    path: list[str] = []
    for part in map(str, loc):
        kinds = _alternatives(hint)
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        tagged = [
            model for model in models if "kind" in model.model_fields and model.model_fields["kind"].default == part
        ]
        values = [get_args(kind)[-1] for kind in kinds if get_origin(kind) in (dict, list)]
        if tagged:
            hint = tagged[0]
        elif models or values:
            holder = next((model for model in models if part in model.model_fields), models[0]) if models else None
            field = holder.model_fields.get(part) if holder is not None else None
            hint = field.annotation if field is not None else values[0] if values else None
            path.append(part)
    return holder, path


def _alternatives(hint: Any) -> list[Any]:
    """The members of unions and of Annotated unions, one by one."""
    if get_origin(hint) in (Union, types.UnionType):
        return [kind for member in get_args(hint) for kind in _alternatives(member)]
    return _alternatives(get_args(hint)[0]) if get_origin(hint) is Annotated else [hint]
