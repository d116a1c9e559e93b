"""The messages of a request -> the messages that the engine is given: the direction in front, the client's text defused.

    guard = Guard.of(served.codec, served.tokenizer)
    messages = final_messages(resolved.line, body["messages"], guard)
    direction_of(turns(messages), served.codec)              # resolved.effective, whatever the client wrote
    prompt = final_prompt(resolved.line, Defused.of([{"role": "user", ...}], guard), served.tokenizer)   # for /v1/completions

    [system: line \\n\\n client's system messages] [user] [assistant] ...

Every system (or developer) message of the client is merged after the line, since most templates take one, at the beginning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from jinja2 import TemplateError

from rhumbline.codecs import in_front
from rhumbline.data.chat import template_turns
from rhumbline.records import Message
from rhumbline.serving import strict_json
from rhumbline.serving.defuse import COMMON_MARKS, Guard, special_tokens
from rhumbline.serving.errors import ApiError
from rhumbline.serving.requests import SteeringRefused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["COMMON_MARKS", "Defused", "Guard", "final_messages", "final_prompt", "special_tokens", "turns"]

ChatMessage = dict[str, Any]  # as OpenAI writes one
_ROLES = ("system", "developer", "user", "assistant", "tool")
_DEPTH, _VALUES = 24, 20_000  # of a tool's arguments, JSON in a string: what a body may hold by default
_KEPT = ("name", "tool_calls", "tool_call_id")  # what else of a message templates read; the rest is left out


@dataclass(frozen=True, slots=True)
class Defused:
    """A conversation of a client, made harmless once, to be said under any direction."""

    rules: str  # its system messages
    said: list[ChatMessage]  # the others
    system_role: bool  # whether the chat template renders a system turn

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], guard: Guard) -> Self:
        """Time grows with the text: about 0.1 s for the longest one allowed. Raises SteeringRefused as `final_messages` does."""
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
        # Again: two messages may be harmless each and not together.
        return cls(guard.clean("\n\n".join(rules)), said, guard.system_role)

    def under(self, line: str | None) -> list[ChatMessage]:
        """What the engine's chat is given. line: of the codec; None: no prompt says the direction (soups)."""
        if line is None and not self.rules:
            return list(self.said)
        front = self.rules
        if line is not None:
            system = (Message(role="system", content=self.rules),) if self.rules else ()
            front = in_front(line, system)[0].content
        return [{"role": "system", "content": front}, *self.said] if self.system_role else _folded(front, self.said)


def final_messages(line: str | None, messages: Sequence[Mapping[str, Any]], guard: Guard) -> list[ChatMessage]:
    """A conversation under one direction. Raises SteeringRefused (invalid_messages, with the message's place) for what no chat
    template can be given.
    """
    return Defused.of(messages, guard).under(line)


def final_prompt(line: str | None, asked: Defused, tokenizer: PreTrainedTokenizerBase) -> str:
    """A raw prompt, one user's turn, under a direction, through the chat template: the only form that the policy learned.

    The template writes the BOS itself, so the engine must be asked with `add_special_tokens` false. Raises SteeringRefused.
    """
    said = turns(asked.under(line))
    try:
        text = tokenizer.apply_chat_template(
            template_turns(said, tokenizer), add_generation_prompt=True, tokenize=False
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
    where = f"messages.{index}.tool_calls"
    try:
        values = (
            strict_json.parse(said.encode(), max_depth=_DEPTH, max_values=_VALUES) if isinstance(said, str) else said
        )
    except ApiError as e:
        raise _invalid(where, f"has arguments that cannot be read: {e.detail}") from None
    if not isinstance(values, dict):
        raise _invalid(where, "must have a JSON object as the arguments of every function")
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
