"""A prompt with one answer, or with two side by side, as the tokens that a reward network reads. Under `network`.

    reader = Reader(tokenizer, NetworkSpec(kind_of_input="pair", outputs=("helpfulness",)))
    reader.pair(prompt, "Because of scattering.")       # Row: the prompt's tokens; the answer's, then the end token
    reader.triple(prompt, "Because.", "No idea.", {"age": "9"})      # one turn that shows both answers and asks

A tokenizer with a chat template is a decoder's: the prompt is what the policy is asked, through `data.chat`, and an answer
ends with the end token. One without is an encoder's: `[CLS] prompt [SEP] answer [SEP]`, in its own marks. Who judges, if
it is known, stands before the prompt and is never cut away with it. What people wrote never becomes a mark.

How much of a prompt is read depends on the prompt alone, never on the length of the answer: answers to one prompt are
compared after the same words, and share their computation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any, Literal, cast

from rhumbline.data.chat import encode, prompt_ids, sanitise, template_turns
from rhumbline.errors import ConfigError
from rhumbline.records import Message, Prompt
from rhumbline.rewards.trees import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]
Profile = Mapping[str, str] | str | None  # who judges: some named facts, or a text
Input = Literal["pair", "triple"]
Pool = Literal["end", "mean"]

# Of a system turn `data.chat` leaves the first paragraph as it is and sanitises the rest, which is the profile.
JUDGE = "The person who judges the answers:"
QUESTION = (
    "Which response to the prompt is better?\n\nPrompt:\n{prompt}\n\nResponse A:\n{a}\n\nResponse B:\n{b}\n\n"
    "Answer with A, B or tie."
)
PROFILE_SHARE = 4  # a profile may fill one part in so many of max_tokens; a longer one loses its end
SYSTEM_SHARE = 8  # and so may the system message of a prompt that is too long: something must be left for the question


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """What a network reads and gives. It is saved with the network: weights mean nothing without it."""

    kind_of_input: Input
    outputs: tuple[str, ...]  # (H,) names of heads, or a comparer's classes
    pooling: Pool = "end"  # a decoder's end token or an encoder's first one; mean: over the answer's tokens
    max_tokens: int = 512  # of all that is read, marks included
    max_response_tokens: int = 256  # pair: a longer answer loses its end; the prompt has what this leaves of max_tokens
    # triple: (C,) logits by length alone, each bias, times d, times |d| with d = log((1 + chars a) / (1 + chars b)). The
    # network's own are added to them: cut as they are, it cannot see how long the answers were.
    length_logits: tuple[tuple[float, float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.kind_of_input not in ("pair", "triple") or self.pooling not in ("end", "mean"):
            raise ConfigError(
                f"network: expected input pair or triple and pooling end or mean, got {self.kind_of_input!r} and "
                f"{self.pooling!r}"
            )
        if self.length_logits and (self.kind_of_input, len(self.length_logits)) != ("triple", len(self.outputs)):
            raise ConfigError(
                f"network: logits by length are of two answers and {len(self.outputs)} outputs, got "
                f"{len(self.length_logits)} for a {self.kind_of_input}"
            )
        if any(len(weights) != 3 for weights in self.length_logits):
            raise ConfigError(f"network: logits by length have three numbers per output, got {self.length_logits}")
        if not self.outputs or len(set(self.outputs)) != len(self.outputs):
            raise ConfigError(f"network: expected outputs of different names, got {', '.join(self.outputs) or 'none'}")
        if self.kind_of_input == "pair" and not 1 <= self.max_response_tokens < self.max_tokens:
            raise ConfigError(
                f"network.max_response_tokens must leave room for the prompt: expected 1 to {self.max_tokens - 1} "
                f"(max_tokens - 1), got {self.max_response_tokens}"
            )


class Reader:
    """Texts to rows, by one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: NetworkSpec) -> None:
        """Raises ConfigError for a tokenizer that has neither a chat template nor marks of its own between two texts."""
        self.tokenizer, self.spec = tokenizer, spec
        self.chat = tokenizer.chat_template is not None
        self._marks: tuple[Ids, Ids, Ids] = ((), (), ()) if self.chat else pair_marks(tokenizer)
        self._special = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self._frames: dict[str | None, tuple[Ids, Ids, Ids, Ids]] = {}

    def pair(self, prompt: Prompt, response: str, profile: Profile = None) -> Row:
        """A prompt and an answer to it. Raises ConfigError where `max_tokens` leaves no room for the prompt."""
        known = self._known(profile)
        answer, (opening, asked, end) = self._ids(response), self._asked(prompt, known)
        room = self.spec.max_tokens - self.spec.max_response_tokens - len(end)
        if len(opening) + len(asked) > room:
            if self.chat:
                prompt = self._with_short_system(prompt)
                _, asked, _ = self._asked(prompt, known)
                opening = self._opening(prompt, known, asked)
                asked = asked[len(opening) :]
            asked = asked[-self._left(room, len(opening)) :]
        return Row(
            prefix=(*opening, *asked), answer=(*answer[: self.spec.max_response_tokens], *end), length=len(answer)
        )

    def triple(self, prompt: Prompt, a: str, b: str, profile: Profile = None) -> Row:
        """A prompt and two answers to it, in this order. `length` is that of both.

        What `max_tokens` leaves for texts is spread over the three; a text that is too long loses its middle.
        """
        frame = self._frame(self._known(profile))
        texts = [self._ids(text) for text in (transcript(prompt.messages), a, b)]
        room = self._left(self.spec.max_tokens, sum(map(len, frame)), least=3)
        kept = spread([len(text) for text in texts], room)
        asked, first, second = (without_middle(text, n) for text, n in zip(texts, kept, strict=True))
        return Row(
            prefix=(*frame[0], *asked, *frame[1]),
            answer=(*first, *frame[2], *second, *frame[3]),
            length=len(texts[1]) + len(texts[2]),
            log_ratio=math.log((1 + len(a)) / (1 + len(b))),
        )

    def _ids(self, text: str) -> Ids:
        """Tokens of what people wrote, without marks."""
        if self.chat:
            return self._plain(sanitise(text, self.tokenizer))
        # An encoder has no template that `sanitise` could ask for its marks: its tokenizer is told to see none.
        tokenizer: Any = self.tokenizer
        text = text.encode("utf-8", "replace").decode()
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return tuple(i for i in ids if i not in self._special)

    def _plain(self, text: str) -> Ids:
        tokenizer: Any = self.tokenizer
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    def _known(self, profile: Profile) -> str | None:
        """A profile as text, of a length that leaves room for the rest; None for none."""
        text = profile_text(profile)
        return None if text is None else self._beginning(text, self.spec.max_tokens // PROFILE_SHARE)

    def _beginning(self, text: str, limit: int) -> str:
        """At most `limit` tokens of a text; a longer one loses its end."""
        ids = self._ids(text)
        return text if len(ids) <= limit else cast(str, self.tokenizer.decode(list(ids[:limit]))).strip()

    def _with_short_system(self, prompt: Prompt) -> Prompt:
        first, *rest = prompt.messages
        if first.role != "system":
            return prompt
        said = self._beginning(first.content, self.spec.max_tokens // SYSTEM_SHARE)
        return replace(prompt, messages=(replace(first, content=said), *rest))

    def _left(self, room: int, used: int, least: int = 1) -> int:
        if room - used < least:
            raise ConfigError(
                f"network.max_tokens leaves no room for the prompt: {used} of {room} tokens are the template's marks, "
                "the judge's profile and the system message, raise it"
            )
        return room - used

    # --- one answer -------------------------------------------------------------------------------------------------

    def _asked(self, prompt: Prompt, known: str | None) -> tuple[Ids, Ids, Ids]:
        """What opens the row whatever the prompt is (an encoder's; a decoder's is found where needed), the prompt, the
        end.
        """
        if not self.chat:
            first, between, after = self._marks
            return (*first, *self._judge(known)), (*self._ids(transcript(prompt.messages)), *between), after
        end = cast(int, self.tokenizer.eos_token_id)
        encoded = encode(self._turns(prompt, known), "", self.tokenizer)
        return (), encoded.token_ids[: encoded.prompt_length], (end,)

    def _opening(self, prompt: Prompt, known: str | None, asked: Ids) -> Ids:
        """What a decoder's prompt begins with whatever is asked: BOS, system turn, the opening of the user's."""
        turns = self._turns(prompt, known)
        blank = [turn if turn.role == "system" else Message(role=turn.role, content=".") for turn in turns]
        both = zip(asked, prompt_ids(blank, self.tokenizer), strict=False)
        return tuple(token for token, _ in takewhile(lambda pair: pair[0] == pair[1], both))

    def _turns(self, prompt: Prompt, known: str | None) -> list[Message]:
        """The prompt's turns, the profile before its own system message, which is sanitised here: chat.py trusts it."""
        first, *rest = prompt.messages
        said = [sanitise(first.content, self.tokenizer)] if first.role == "system" else []
        turns = list(rest if said else prompt.messages)
        if known is not None:
            said = [JUDGE, known, *said]
        return [Message(role="system", content="\n\n".join(said)), *turns] if said else turns

    def _judge(self, known: str | None) -> Ids:
        return () if known is None else self._ids(f"{JUDGE}\n\n{known}\n\n")

    # --- two answers ------------------------------------------------------------------------------------------------

    def _frame(self, known: str | None) -> tuple[Ids, Ids, Ids, Ids]:
        """What stands before the prompt, between it and a, between a and b, and after b."""
        if not self.chat:
            first, between, after = self._marks
            return (*first, *self._judge(known)), between, between, after
        if known not in self._frames:
            self._frames[known] = self._rendered(known)
        return self._frames[known]

    def _rendered(self, known: str | None) -> tuple[Ids, Ids, Ids, Ids]:
        """The template around the question, cut where the texts go: so no text changes the tokens of another."""
        places = ("PLACEOFPROMPT", "PLACEOFA", "PLACEOFB")
        asked = QUESTION.format(prompt=places[0], a=places[1], b=places[2])
        turns = self._turns(Prompt(id="", messages=(Message(role="user", content=asked),)), known)
        tokenizer: Any = self.tokenizer
        text = tokenizer.apply_chat_template(
            template_turns(turns, self.tokenizer), add_generation_prompt=True, tokenize=False
        )
        pieces = []
        for place in places:
            piece, _, text = text.rpartition(place) if place == places[0] else text.partition(place)
            pieces.append(self._plain(piece))
        return pieces[0], pieces[1], pieces[2], (*self._plain(text), tokenizer.eos_token_id)


def profile_text(profile: Profile) -> str | None:
    """Named facts as lines in the order given, a text as it is; None where nothing is known."""
    text = "\n".join(f"{name}: {fact}" for name, fact in profile.items()) if isinstance(profile, Mapping) else profile
    return text.strip() or None if text is not None else None


def transcript(messages: Sequence[Message]) -> str:
    """A conversation as one text; a lone turn is left as it is."""
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in messages)


def spread(lengths: Sequence[int], budget: int) -> tuple[int, ...]:
    """How much of each part is kept: an equal share, and what short parts leave goes to the others in equal shares.

    spread([900, 10, 500], 300) == (145, 10, 145)
    """
    kept = [0] * len(lengths)
    for done, i in enumerate(sorted(range(len(lengths)), key=lambda i: lengths[i])):
        kept[i] = min(lengths[i], budget // (len(lengths) - done))
        budget -= kept[i]
    return tuple(kept)


def without_middle(ids: Ids, size: int) -> Ids:
    """At most `size` tokens: the beginning and the end, where an answer says what it does and what it comes to."""
    return ids if len(ids) <= size else (*ids[: size - size // 2], *ids[len(ids) - size // 2 :])


def pair_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, Ids, Ids]:
    """What an encoder's tokenizer writes before, between and after two texts; [CLS], [SEP] and [SEP] for BERT.

    Read off a pair that it encodes: its own methods for this differ from version to version. Raises ConfigError.
    """
    joined = cast(Any, tokenizer)("a", "a", return_special_tokens_mask=True)
    ids, special = joined["input_ids"], joined["special_tokens_mask"]
    runs = [[i for i, _ in run] for mark, run in groupby(enumerate(special), key=lambda pair: pair[1]) if not mark]
    if len(runs) != 2:
        raise ConfigError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no chat template and puts no mark between two texts: use an "
            "instruction-tuned decoder, or an encoder with its own tokenizer"
        )
    (first, second) = runs
    return tuple(ids[: first[0]]), tuple(ids[first[-1] + 1 : second[0]]), tuple(ids[second[-1] + 1 :])
