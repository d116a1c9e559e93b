"""The messages of a request -> the messages that the engine is given: the direction in front, the client's text defused.

    guard = Guard.of(served.codec, served.tokenizer)
    messages = final_messages(resolved.line, body["messages"], guard)
    direction_of(turns(messages), served.codec)              # resolved.effective, whatever the client wrote
    prompt = final_prompt(resolved.line, body["prompt"], guard, served.tokenizer)      # for /v1/completions

    [system: line \\n\\n client's system messages] [user] [assistant] ...

Every system (or developer) message of the client is merged after the line, since most templates take one, at the beginning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from jinja2 import TemplateError

from rhumbline.codecs import in_front
from rhumbline.data.chat import template_turns
from rhumbline.records import Message
from rhumbline.serving.defuse import COMMON_MARKS, Guard, special_tokens
from rhumbline.serving.requests import SteeringRefused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["COMMON_MARKS", "Guard", "final_messages", "final_prompt", "special_tokens", "turns"]

ChatMessage = dict[str, Any]  # as OpenAI writes one
_ROLES = ("system", "developer", "user", "assistant", "tool")
_KEPT = ("name", "tool_calls", "tool_call_id")  # what else of a message templates read; the rest is left out


def final_messages(line: str | None, messages: Sequence[Mapping[str, Any]], guard: Guard) -> list[ChatMessage]:
    """What the engine's chat is given. line: of the codec; None: no prompt says the direction (soups).

    Raises SteeringRefused (invalid_messages, with the message's place) for what no chat template can be given.
    """
    rules, said = list[str](), list[ChatMessage]()
    if not messages:
        raise _invalid("messages", "is empty: give at least a user's")
    for index, message in enumerate(messages):
        role, content = _role(message, index), guard.clean(_content(message, index))
        if role in ("system", "developer"):
            rules += [content] if content.strip() else []
            continue
        extra = {key: guard.clean_all(message[key]) for key in _KEPT if message.get(key) is not None}
        if "tool_calls" in extra:
            extra["tool_calls"] = [_called(call, index, guard) for call in extra["tool_calls"]]
        said.append({"role": role, "content": content} | extra)
    own = guard.clean("\n\n".join(rules))  # again: two messages may be harmless each and not together
    if line is None and not own:
        return said
    if line is None:
        front = own
    else:
        system = (Message(role="system", content=own),) if own else ()
        front = in_front(line, system)[0].content
    return [{"role": "system", "content": front}, *said] if guard.system_role else _folded(front, said)


def final_prompt(line: str | None, prompt: str, guard: Guard, tokenizer: PreTrainedTokenizerBase) -> str:
    """A raw prompt as one user's turn under the direction, through the chat template: the only form that the policy learned.

    The template writes the BOS itself, so the engine must be asked with `add_special_tokens` false. Raises SteeringRefused.
    """
    asked = turns(final_messages(line, [{"role": "user", "content": prompt}], guard))
    try:
        text = tokenizer.apply_chat_template(
            template_turns(asked, tokenizer), add_generation_prompt=True, tokenize=False
        )
    except TemplateError as e:
        raise _invalid("prompt", f"is refused by the chat template: {e}") from None
    return cast(str, text)


def turns(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Chat messages as records, for scoring and for codecs.direction_of. A tool's result counts as the user's turn.

    Raises SteeringRefused as `final_messages` does.
    """
    roles: dict[str, Literal["system", "user", "assistant"]] = {"system": "system", "developer": "system"}
    roles |= {"assistant": "assistant"}
    return tuple(
        Message(role=roles.get(_role(message, index), "user"), content=_content(message, index))
        for index, message in enumerate(messages)
    )


def _role(message: Mapping[str, Any], index: int) -> str:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in _ROLES:
        raise _invalid(f"messages.{index}.role", f"must be one of {', '.join(_ROLES)}")
    return str(role)


def _content(message: Mapping[str, Any], index: int) -> str:
    """The text of a message; several text parts as one, so that nothing hides in the seams."""
    content, where = message.get("content"), f"messages.{index}.content"
    if isinstance(content, str):
        return content
    if content is None and message.get("role") == "assistant":
        return ""  # it called a tool
    if not isinstance(content, Sequence):
        raise _invalid(where, "must be a string or a list of text parts")
    for number, part in enumerate(content):
        is_text = isinstance(part, Mapping) and part.get("type") in ("text", "input_text")
        if not is_text or not isinstance(part.get("text"), str):
            raise _invalid(f"{where}.{number}", "must be a text part: this model reads text alone")
    return "\n".join(part["text"] for part in content)


def _called(call: Any, index: int, guard: Guard) -> Any:
    """A tool's call, its arguments cleaned as the values that the engine reads out of their JSON: an escape hides a mark."""
    function: Any = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or function.get("arguments") is None:
        return call
    said = function["arguments"]
    try:
        values = json.loads(said) if isinstance(said, str) else said
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise _invalid(f"messages.{index}.tool_calls", "must have a JSON object as the arguments of every function")
    cleaned = json.dumps(guard.clean_all(values), ensure_ascii=False)
    return {**call, "function": {**function, "arguments": cleaned}}


def _folded(front: str, said: list[ChatMessage]) -> list[ChatMessage]:
    """For templates without a system role: in front of the first user's turn, as in training (data.chat.template_turns)."""
    first = next((i for i, message in enumerate(said) if message["role"] == "user"), None)
    if first is None:
        raise _invalid(
            "messages", "has no user's turn, and the chat template has no system role to say the direction in"
        )
    whole = {**said[first], "content": f"{front}\n\n{said[first]['content']}"}
    return [*said[:first], whole, *said[first + 1 :]]


def _invalid(param: str, what: str) -> SteeringRefused:
    return SteeringRefused(f"{param} {what}.", param, "invalid_messages")
