"""How long prompts are as a policy reads them: with the longest of what stands beside them.

asked = Asked(recipe, codec, direction, profiles_of(recipe, prompts))
asked.tokens(prompts, tokenizer)                # [41, 57, ...], one per prompt
kept = asked.fitting(prompts, tokenizer)        # those of at most prompts.max_prompt_tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rhumbline.codecs import Codec, conversation
from rhumbline.config import Run, Style
from rhumbline.data.chat import prompt_ids
from rhumbline.errors import DataError
from rhumbline.profiles import Profile, told
from rhumbline.queries import said_in
from rhumbline.records import Prompt


@dataclass(frozen=True, slots=True)
class Asked:
    """What a recipe says beside its prompts."""

    recipe: Run
    codec: Codec
    direction: tuple[float, ...]  # any: all are said in about as many words
    profiles: Mapping[str, Profile]  # prompt id -> who asks

    def tokens(self, prompts: Sequence[Prompt], tokenizer: Any) -> list[int]:
        """Tokens of each prompt up to where the answer begins."""
        direction = self.direction if self.recipe.steered else None
        wordiest = max(self.recipe.initial.styles.values(), key=lambda style: len(style.words), default=Style())
        counts = []
        for prompt in prompts:
            said = conversation(self.codec, direction, said_in(wordiest, prompt.messages))
            counts.append(len(prompt_ids(told(self.profiles.get(prompt.id), said), tokenizer)))
        return counts

    def fitting(self, prompts: Sequence[Prompt], tokenizer: Any) -> list[Prompt]:
        """Those of at most prompts.max_prompt_tokens, in their order."""
        most = self.recipe.prompts.max_prompt_tokens
        return [one for one, tokens in zip(prompts, self.tokens(prompts, tokenizer), strict=True) if tokens <= most]

    def check(self, prompts: Sequence[Prompt], tokenizer: Any, context: int | None = None) -> None:
        """Raises DataError for a prompt that is longer than prompts.max_prompt_tokens or the context.

        context: what the model itself can read (max_position_embeddings); generator.engine.max_model_len goes before it.
        """
        recipe, settings = self.recipe, self.recipe.prompts
        asked_for = recipe.generator.engine.get("max_model_len")
        limit = "of the model" if asked_for is None else "(generator.engine.max_model_len)"
        context = context if asked_for is None else int(asked_for)
        longest = max(recipe.sampling.max_tokens, recipe.evaluation.sampling.max_tokens)
        counts = self.tokens(prompts, tokenizer)
        most = max(counts, default=0)

        def seen(allowed: int) -> str:
            over, worst = sum(tokens > allowed for tokens in counts), prompts[counts.index(most)].id
            return (
                f"{settings.path}: {over} of {len(prompts)} prompts, the longest {worst} with {most} tokens with its "
                "direction and words"
            )

        if most > settings.max_prompt_tokens:
            raise DataError(
                f"{seen(settings.max_prompt_tokens)}, have more than {settings.max_prompt_tokens} "
                "(prompts.max_prompt_tokens): leave them out with prompts.too_long=drop, or raise the limit"
            )
        if context is not None and most + longest > context:
            raise DataError(
                f"{seen(context - longest)}, exceed with {longest} sampled ones the context of {context} {limit}: leave them "
                f"out with prompts.too_long=drop prompts.max_prompt_tokens={max(1, context - longest)}, or lower "
                "sampling.max_tokens and evaluation.sampling.max_tokens"
            )
