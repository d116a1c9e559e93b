"""Training samples made from what was selected: the direction in the system prompt, the response under the loss.

examples = from_selected(kept.selected, codec)
examples = with_replay(examples, first_examples, fraction=0.15, seed=7)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from rhumbline.codecs import Codec, SteerLM, conversation, in_front
from rhumbline.queries import derive_seed
from rhumbline.records import Example, Prompt, Selected


def from_selected(selected: Iterable[Selected], codec: Codec, *, distil: bool = False) -> list[Example]:
    """One example per kept completion. A response that was cut at max_tokens does not teach its end.

    distil: for t=0's samples, which the initial policy gave when asked in a style's words. It is the frozen teacher of the
    response's distribution, asked in the same words; the student is asked by the direction alone (context distillation,
    arXiv:2209.15189).
    """
    examples = []
    for index, kept in enumerate(selected):
        completion = kept.scored.completion
        query, prompt = completion.query, completion.query.prompt
        examples.append(
            Example(
                id=f"t{query.iteration}/{completion.id}#{index}",
                messages=conversation(codec, kept.direction, prompt.messages),
                response=completion.text,
                complete=completion.finish_reason == "stop",
                direction=kept.direction,
                teacher=query.messages if distil and query.style else None,
            )
        )
    return examples


def from_ratings(rows: Iterable[tuple[Prompt, str, Sequence[float]]], codec: SteerLM) -> list[Example]:
    """SteerLM: a labelled response under the values that it really has, (prompt, response, (K,) objectives on 0-100)."""
    examples = []
    for index, (prompt, response, values_K) in enumerate(rows):
        examples.append(
            Example(
                id=f"t0/{prompt.id}#{index}",
                messages=in_front(codec.render_targets(tuple(values_K)), prompt.messages),
                response=response,
            )
        )
    return examples


def with_replay(examples: Sequence[Example], earlier: Sequence[Example], fraction: float, seed: int) -> list[Example]:
    """`examples` and as many `earlier` ones as make up `fraction` of the whole, drawn without replacement, in random order.

    The paper replays about 15% of the data that the t=0 policy was trained on, against forgetting (section 3.1).
    """
    wanted = math.ceil(len(examples) * fraction / (1 - fraction))
    rng = np.random.default_rng(derive_seed(seed, "replay"))
    picked = rng.permutation(len(earlier))[: min(wanted, len(earlier))]
    mixed = [*examples, *(earlier[int(i)] for i in picked)]
    return [mixed[int(i)] for i in rng.permutation(len(mixed))]
