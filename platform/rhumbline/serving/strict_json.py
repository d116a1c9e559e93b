"""JSON from strangers: bounded in depth, in values and in digits, and with one reading only.

parse(b'{"n": 1}', max_depth=24, max_values=20_000)      # {'n': 1}
parse(b'{"n": NaN}', ...)                                # ApiError 400, param 'n'

Python's reader takes what the standard does not (NaN, 1e999, a key twice, half a surrogate pair). Each of these means one
thing to us and another to the next reader, or to nobody: all are refused, by their place.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from rhumbline.serving.errors import ApiError

_SURROGATE = re.compile("[\ud800-\udfff]")
_DIGITS = 19  # of a 64-bit integer


def parse(data: bytes, *, max_depth: int, max_values: int) -> Any:
    """The value in `data`. Raises ApiError (400) with the place of what is wrong."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ApiError(400, f"the body is not UTF-8: byte {e.start} cannot be read", code="invalid_encoding") from None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except json.JSONDecodeError as e:
        raise ApiError(400, f"the body is not JSON: {e.msg} at character {e.pos}", code="invalid_json") from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    _walk(value, max_depth, max_values)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add returns None
        raise ApiError(400, f"the body names {twice[:100]!a} twice", param=_name(twice), code="duplicate_key")
    return found


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > _DIGITS or abs(int(digits)) >= 2**63:
        raise ApiError(400, f"the body holds an integer beyond 64 bits: {digits[:24]}", code="invalid_number")
    return int(digits)


def _walk(root: Any, max_depth: int, max_values: int) -> None:
    """Refuse what is too deep, too much, not finite or not text. Without recursion: the depth is the stranger's choice."""
    pending: list[tuple[Any, int, tuple[Any, ...]]] = [(root, 0, ())]
    values = 0
    while pending:
        value, depth, path = pending.pop()  # path: (path of the parent, key), built only as deep as it goes
        values += 1
        if isinstance(value, str):
            if _SURROGATE.search(value):
                raise ApiError(
                    400, f"{_said(path)} holds half a surrogate pair", param=_dotted(path), code="invalid_text"
                )
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise ApiError(
                    400, f"{_said(path)} must be a finite number", param=_dotted(path), code="invalid_number"
                )
        elif isinstance(value, dict | list):
            if depth >= max_depth:
                raise _too_deep(max_depth)
            if values + len(pending) + len(value) > max_values:
                raise ApiError(400, f"the body holds more than {max_values} values", code="too_many_values")
            if isinstance(value, dict):
                for key in value:
                    if _SURROGATE.search(key):
                        raise ApiError(400, "a key of the body holds half a surrogate pair", code="invalid_text")
                pending.extend((item, depth + 1, (path, key)) for key, item in value.items())
            else:
                pending.extend((item, depth + 1, (path, i)) for i, item in enumerate(value))


def _too_deep(max_depth: int) -> ApiError:
    return ApiError(400, f"the body is nested deeper than {max_depth} levels", code="too_deep")


def _dotted(path: tuple[Any, ...]) -> str | None:
    keys = []
    while path:
        path, key = path
        keys.append(_name(key))
    return ".".join(reversed(keys)) or None


def _name(key: Any) -> str:
    return str(key)[:100]


def _said(path: tuple[Any, ...]) -> str:
    return _dotted(path) or "the body"
