"""Turns and an answer to token ids and a loss mask, by construction. Training and serving build the prompt here, both.

    tokenizer = prepare(AutoTokenizer.from_pretrained(folder))
    encoded = encode(example.messages, example.response, tokenizer, complete=example.complete)
    encoded.token_ids    # <|im_start|> system ... assistant \\n  Because  of  ...  <|im_end|>
    encoded.loss_mask    #  False       ...                 False True     ...      True
    encode_dialogue(messages, tokenizer)         # every assistant's turn is learned, not the last one alone

The prompt part is what the tokenizer's own chat template gives, id for id; the answer is tokenised on its own and
appended, so no token straddles the border and the mask is exact. The end token is learned, unless the answer was cut.

Three things that go wrong in this trade, and what is done about each:
- two BOS, or none: `prepare` makes the template write the one that the tokenizer expects, `encode` refuses anything
  else;
- a template without a system role drops the direction: the system turn is folded into the first user turn instead;
- a user types `<|im_end|>`: `sanitise` breaks every marker in what people wrote, so that it stays text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, cast

from jinja2 import TemplateError

from rhumbline.errors import DataError
from rhumbline.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKUP = re.compile(r"<[^\s<>]+>|<<[^\s<>]+>>|\[/?[A-Z_]+\]")  # <|user|>, <s>, <<SYS>>, [INST], [/INST]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One training sample as tokens. T tokens."""

    token_ids: tuple[int, ...]  # (T,)
    loss_mask: tuple[bool, ...]  # (T,) True: this token is learned (it is predicted from those before it)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_learned(self) -> int:
        """Tokens that carry the loss."""
        return sum(self.loss_mask)

    @property
    def prompt_length(self) -> int:
        """Tokens before the first learned one."""
        return self.loss_mask.index(True) if True in self.loss_mask else len(self)


def prepare(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Check a tokenizer once, on loading, and put right what its author left open; returns the same object.

    Where the tokenizer begins every text with a BOS and its chat template does not write it, the template is changed
    to do so: the change is saved with the checkpoint, and every server that applies the template gives the trained
    prompt. Raises DataError for a tokenizer without a chat template or an end token, and a template that writes BOS
    twice.
    """
    name = _name(tokenizer)
    if tokenizer.chat_template is None:
        raise DataError(f"{name} has no chat template: use an instruction-tuned model, or set tokenizer.chat_template")
    if tokenizer.eos_token_id is None:
        raise DataError(f"{name} has no end token: set tokenizer.eos_token to the one that ends a turn")
    probe = (Message(role="user", content="a"),)
    if _adds_bos(tokenizer) and _leading_bos(_ids(_render(probe, tokenizer), tokenizer), tokenizer) == 0:
        if not isinstance(tokenizer.chat_template, str):
            raise DataError(
                f"{name} has several chat templates and none writes BOS first: set tokenizer.chat_template to one"
            )
        tokenizer.chat_template = "{{- bos_token -}}" + tokenizer.chat_template
    prompt_ids(probe, tokenizer)
    return tokenizer


def encode(
    messages: Sequence[Message], response: str, tokenizer: PreTrainedTokenizerBase, complete: bool = True
) -> Encoded:
    """Tokens of a prompt and its answer, with the mask of what is learned.

    Nothing is ever cut: callers compare the length with theirs, and drop and count. The end token is
    `tokenizer.eos_token`, where generation stops; it is appended and learned when `complete`. Raises DataError where
    the template cannot render the turns, or BOS is doubled or missing.
    """
    prompt = prompt_ids(messages, tokenizer)
    answer = _ids(sanitise(response, tokenizer), tokenizer)
    if complete:
        if tokenizer.eos_token_id is None:
            raise DataError(f"{_name(tokenizer)} has no end token: set tokenizer.eos_token")
        answer.append(cast(int, tokenizer.eos_token_id))
    return Encoded(token_ids=(*prompt, *answer), loss_mask=(False,) * len(prompt) + (True,) * len(answer))


def encode_dialogue(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, complete: bool = True) -> Encoded:
    """Tokens of a conversation that the assistant ends, with the mask of what is learned: each of its turns and its end.

    Turn by turn it learns what `encode` learns of it, after the same words; with one turn it is `encode`. What lies between
    two answers is the template's own, as the later prompt has it. `complete` is about the last turn: the others have ended.
    Raises DataError, besides `encode`'s reasons, where the last turn is not the assistant's and where the template does not
    keep an answer as it was said once the conversation goes on (some drop earlier thinking).
    """
    if not messages or messages[-1].role != "assistant":
        raise DataError(f"the last turn is {messages[-1].role if messages else 'missing'}, expected the assistant's")
    ids: list[int] = []
    mask: list[bool] = []
    before: Sequence[Message] = ()
    for index, turn in enumerate(messages):
        if turn.role != "assistant":
            continue
        asked = messages[:index]
        between = _since(before, messages[len(before)], asked, tokenizer) if ids else prompt_ids(asked, tokenizer)
        learned = encode(asked, turn.content, tokenizer, complete or index + 1 < len(messages))
        answer = learned.token_ids[learned.prompt_length :]
        ids += (*between, *answer)
        mask += (False,) * len(between) + (True,) * len(answer)
        before = asked
    return Encoded(token_ids=tuple(ids), loss_mask=tuple(mask))


def prompt_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The prompt that a model is trained on and served with, ending where the assistant begins to speak.

    Equal to `tokenizer.apply_chat_template(template_turns(messages, tokenizer), add_generation_prompt=True,
    tokenize=True)`.
    """
    ids = _ids(_render(messages, tokenizer), tokenizer)
    # Only the beginning counts: in ChatML of SmolLM2 the BOS is <|im_start|>, which opens every later turn as well.
    found, wanted = _leading_bos(ids, tokenizer), 1 if _adds_bos(tokenizer) else 0
    if found > 1 or found < wanted:
        raise DataError(
            f"the chat template of {_name(tokenizer)} gives a prompt that begins with {found} BOS "
            f"tokens ({tokenizer.bos_token!r}), expected one: correct its chat_template, or pass it through "
            "rhumbline.data.chat.prepare after loading"
        )
    return tuple(ids)


def template_turns(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
    """The turns as `apply_chat_template` (or a chat endpoint) must be given them: sanitised, maybe folded.

    The first paragraph of the system turn is ours: a codec writes it, maybe with direction tokens, and it is left as it
    is. What follows it is the prompt's own system message (`rhumbline.codecs.conversation`) and is sanitised too.
    """
    clean = [{"role": m.role, "content": _sanitised(m, tokenizer)} for m in messages]
    if clean and clean[0]["role"] == "system" and not _has_system_role(tokenizer):
        return _folded(clean)
    return clean


def _sanitised(message: Message, tokenizer: PreTrainedTokenizerBase) -> str:
    if message.role != "system":
        return sanitise(message.content, tokenizer)
    ours, blank_line, theirs = message.content.partition("\n\n")
    return ours + blank_line + sanitise(theirs, tokenizer)


def sanitise(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """`text` with a space inside everything that a chat could take for a control mark: `<|im_end|>` -> `< |im_end|>`.

    Marks are the special tokens (direction tokens included, where they were added as special) and what the chat
    template itself writes between angle or square brackets, such as `[INST]`, which in some vocabularies are no
    tokens at all. Idempotent; text without marks is returned as it is. A space, since normalisers keep it: they drop
    invisible characters.
    """
    text = text.encode("utf-8", "replace").decode() if any("\ud800" <= c <= "\udfff" for c in text) else text
    pattern = _marks(tokenizer)
    while pattern.search(text):
        # More than one pass only where breaking one mark completes another.
        text = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    return text


def render(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, max_characters: int | None = None) -> str:
    """For people: the text of a sample, block by block, each headed `[masked, 31 tokens]` or `[learned, 12 tokens]`.

    A block longer than `max_characters` is cut in its middle.
    """
    blocks = []
    for learned, run in groupby(zip(encoded.token_ids, encoded.loss_mask, strict=True), key=lambda pair: pair[1]):
        ids = [token for token, _ in run]
        text = cast(str, tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        blocks.append(f"[{'learned' if learned else 'masked'}, {len(ids)} tokens]\n{cut(text, max_characters)}")
    return "\n".join(blocks)


def cut(text: str, max_characters: int | None) -> str:
    """`text` with its middle left out where it is longer than that, and how much was."""
    if max_characters is None or len(text) <= max_characters:
        return text
    head = max_characters - max_characters // 2
    tail = text[len(text) - max_characters // 2 :]
    return f"{text[:head]} [... {len(text) - max_characters} characters ...] {tail}"


# --- the template -----------------------------------------------------------------------------------------------------


def _render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    if not messages:
        raise DataError("cannot render a prompt without turns, expected at least a user's")
    given = template_turns(messages, tokenizer)
    try:
        text = _template(given, tokenizer)
    except TemplateError as e:
        roles = ", ".join(m.role for m in messages)
        raise DataError(f"the chat template of {_name(tokenizer)} refuses the turns {roles}: {e}") from None
    if messages[0].role == "system" and _sanitised(messages[0], tokenizer).strip() not in text:
        raise DataError(
            f"the chat template of {_name(tokenizer)} leaves out or changes the system turn, "
            f"so the direction would be lost: {messages[0].content[:80]!r}"
        )
    return text


def _template(given: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, reply: bool = True) -> str:
    return cast(str, tokenizer.apply_chat_template(given, add_generation_prompt=reply, tokenize=False))


def _since(
    before: Sequence[Message], answer: Message, asked: Sequence[Message], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """The part of the prompt `asked` that follows the end of `answer`, which was given to the prompt `before`."""
    earlier, later = _render(before, tokenizer), _render(asked, tokenizer)
    said, end, _ = later[len(earlier) :].partition(str(tokenizer.eos_token))
    if not (later.startswith(earlier) and end and said.strip() == sanitise(answer.content, tokenizer).strip()):
        raise DataError(
            f"the chat template of {_name(tokenizer)} does not keep what the assistant said once the conversation goes on: "
            f"{cut(answer.content.strip(), 60)!r}, to be ended by {tokenizer.eos_token!r}, became {cut(said.strip(), 60)!r}. "
            "Learn the last turn of each conversation alone (turns: last)"
        )
    wanted = prompt_ids(before, tokenizer).count(cast(int, tokenizer.eos_token_id)) + 1
    later_ids = prompt_ids(asked, tokenizer)
    ends = [i for i, token in enumerate(later_ids) if token == tokenizer.eos_token_id]
    return later_ids[ends[wanted - 1] + 1 :]


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or "the tokenizer"


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"])


def _leading_bos(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    return next((i for i, token in enumerate(ids) if token != tokenizer.bos_token_id), len(ids))


def _folded(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    system, *rest = turns
    first = next((i for i, turn in enumerate(rest) if turn["role"] == "user"), None)
    if first is None:
        raise DataError("the chat template has no system role and there is no user turn to fold the system turn into")
    rest[first] = {"role": "user", "content": f"{system['content']}\n\n{rest[first]['content']}"}
    return rest


# --- what is learned about a tokenizer once ---------------------------------------------------------------------------


class _Key:
    """A tokenizer as a cache key: the same object with the same template and vocabulary size."""

    __slots__ = ("identity", "tokenizer")

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.identity = (id(tokenizer), str(tokenizer.chat_template), len(tokenizer))

    def __hash__(self) -> int:
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.identity == other.identity


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself begins every text with a BOS."""
    return _facts(_Key(tokenizer))[0]


def _has_system_role(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template renders a system turn at all: some raise, some leave it out without a word."""
    return _facts(_Key(tokenizer))[1]


def _marks(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    return _facts(_Key(tokenizer))[2]


@lru_cache(maxsize=16)
def _facts(key: _Key) -> tuple[bool, bool, re.Pattern[str]]:
    tokenizer = key.tokenizer
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]

    user = {"role": "user", "content": "USERTURN"}
    system = {"role": "system", "content": "SYSTEMTURN"}
    try:
        has_system = "SYSTEMTURN" in _template([system, user], tokenizer)
    except TemplateError:
        has_system = False
    dialogue = [user, {"role": "assistant", "content": "ASSISTANTTURN"}, user]
    try:
        scaffold = _template([system, *dialogue] if has_system else dialogue, tokenizer)
    except TemplateError as e:
        raise DataError(f"the chat template of {_name(tokenizer)} cannot render a plain dialogue: {e}") from None

    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    marks = {m.strip() for m in special | set(tokenizer.all_special_tokens) | set(_MARKUP.findall(scaffold))}
    # Stripped, so that the space always lands inside; a single character has no inside.
    longest_first = sorted((m for m in marks if len(m) > 1), key=lambda m: (-len(m), m))
    # Any case: a normaliser may lower it before the vocabulary is consulted. (?!) matches nothing.
    pattern = "|".join(re.escape(m) for m in longest_first) or r"(?!)"
    return adds_bos, has_system, re.compile(pattern, re.IGNORECASE)
