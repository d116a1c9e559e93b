"""Turns of a chat out of a cell: plain text, a transcript with marks, or a list of messages.

turns("Why?")                                        # one user turn
turns("\\n\\nHuman: Hi\\n\\nAssistant: Hello\\n\\nHuman: Why?\\n\\nAssistant:")     # three turns
turns([{"role": "user", "content": "Why?"}])         # as it is; ShareGPT's from/value are read too
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rhumbline.errors import DataError, did_you_mean
from rhumbline.records import Message, Role

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_MARK = re.compile(r"(?:\A|\n\n)(Human|Assistant|System):")


def turns(cell: Any, where: str) -> tuple[Message, ...]:
    """The turns that a cell holds; none for None or blank text. `where` begins the message of a DataError."""
    if cell is None:
        return ()
    if isinstance(cell, str):
        _storable(cell, where)
        return transcript(cell) or ((Message(role="user", content=cell),) if cell.strip() else ())
    if isinstance(cell, list):
        return tuple(_message(item, f"{where}: turn {i}") for i, item in enumerate(cell, start=1))
    raise DataError(f"{where}: expected a text or a list of {{role, content}}, found {type(cell).__name__}")


def transcript(text: str) -> tuple[Message, ...]:
    """The turns of a text with `\\n\\nHuman:` and `\\n\\nAssistant:` marks; none where the text is no transcript.

    A transcript begins with a person's or a system mark (the two newlines before it may be missing) and has an
    assistant's; or its first turn has lost its mark, the assistant's follows, and the last mark is a person's or a
    cue to answer. Any other text that merely mentions such marks is left whole. An open `Assistant:` at the end is a
    cue, not a turn.
    """
    pieces = _MARK.split(text)  # what precedes the first mark, then mark, text, mark, text, ...
    lead, marks, bodies = pieces[0].strip(), pieces[1::2], [body.strip() for body in pieces[2::2]]
    if "Assistant" not in marks:
        return ()
    if lead:
        if marks[0] != "Assistant" or "Human" not in marks:
            return ()
        marks, bodies = ["Human", *marks], [lead, *bodies]
    elif marks[0] == "Assistant":
        return ()
    if marks[-1] == "Assistant" and not bodies[-1]:
        marks, bodies = marks[:-1], bodies[:-1]
    return tuple(Message(role=_ROLES[mark.lower()], content=body) for mark, body in zip(marks, bodies, strict=True))


def answer(cell: Any, where: str) -> str | None:
    """An answer: text, or the last turn of a conversation, which must then be the assistant's. None for None."""
    if cell is None:
        return None
    if isinstance(cell, str):
        _storable(cell, where)
        marked = transcript(cell)
        return marked[-1].content if marked and marked[-1].role == "assistant" else cell
    found = turns(cell, where)
    if not found or found[-1].role != "assistant":
        raise DataError(
            f"{where}: expected the assistant's turn at the end, found {found[-1].role if found else 'nothing'}"
        )
    return found[-1].content


def until_last_user(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Turns up to the last one of the user: what can be answered. None where there is no user turn."""
    end = max((i for i, m in enumerate(messages, start=1) if m.role == "user"), default=0)
    return messages[:end]


def _storable(text: str, where: str) -> None:
    """Raises DataError for half of a surrogate pair, which JSON can say (`\\ud83d`) and no file of records can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise DataError(
            f"{where}: {text[e.start]!a} at character {e.start} is half of a character: the text was cut or decoded wrongly. "
            "Write the file again from its source, or drop the character"
        ) from None


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: expected {{role, content}}, found {type(item).__name__}")
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if role not in _ROLES:
        raise DataError(f"{where}: unknown role {role!r}.{did_you_mean(str(role), _ROLES)} Known: {', '.join(_ROLES)}")
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise DataError(f"{where}: expected content as text, found {type(content).__name__}")
    _storable(content, where)
    return Message(role=_ROLES[role], content=content)
