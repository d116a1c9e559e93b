"""Queries: who is asked what, under which direction. The first step of every iteration.

Every query has its own seed, derived from (run seed, iteration, prompt id, direction index), so a shard that is generated
again after a crash is the same shard.

    queries = ask(prompts, cone, codec, recipe.directions, iteration=1, seed=7)
    queries[0].messages[0].content         # '... weighted rating = helpfulness*97 + verbosity*-26'
    shards = in_shards(queries, prompts_per_shard=32)
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rhumbline.codecs import Codec, conversation
from rhumbline.config import Directions, Style
from rhumbline.directions import Cone, Direction, angle_deg, from_angle_deg, parse
from rhumbline.records import Message, Prompt, Query


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2^31) from anything that prints: the same parts give the same seed on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def ask(
    prompts: Iterable[Prompt],
    cone: Cone,
    codec: Codec,
    directions: Directions,
    *,
    iteration: int,
    seed: int,
    styles: Mapping[str, Style] | None = None,
    styled_share: float = 0.0,
) -> list[Query]:
    """`directions.per_prompt` directions per prompt, drawn by its law, each said by the codec.

    `styled_share` of the queries, drawn by lot, are asked in the words of one of `styles` instead; their direction is then one
    that the prompt's samples are ranked for, not one that is said. A prompt's styles differ as long as there are enough.
    """
    queries = []
    for prompt in prompts:
        rng = np.random.default_rng(derive_seed(seed, iteration, prompt.id, "directions"))
        if directions.fixed is not None:
            drawn = [parse(directions.fixed, cone.names)] * directions.per_prompt
        else:
            drawn_NK = cone.sample(
                rng, directions.per_prompt, directions.law, concentration=directions.concentration, grid=directions.grid
            )
            drawn = [tuple(v_K.tolist()) for v_K in drawn_NK]
        told: list[Direction | None] = [v if directions.said else None for v in drawn]
        asked = ask_all([prompt], told, codec, iteration=iteration, seed=seed)
        if not directions.said:  # what the answers are rewarded by, all the same
            asked = [dataclasses.replace(query, direction=v) for query, v in zip(asked, drawn, strict=True)]
        names: list[str] = []
        for query in asked:
            if styles and rng.uniform() < styled_share:
                names = names or [str(name) for name in rng.permutation(list(styles))]
                name = names.pop()
                query = dataclasses.replace(query, style=name, messages=said_in(styles[name], prompt.messages))
            queries.append(query)
    return queries


def batch_of(prompts: Sequence[Prompt], step: int, size: int, *, seed: int) -> list[Prompt]:
    """The prompts of a step, counted from 1, of online training: a seeded permutation per epoch, laid end to end and cut.

    No prompt comes twice in a step; there must be `size` of them at least.
    """
    assert 0 < size <= len(prompts), f"{size} prompts of {len(prompts)}"
    taken: list[Prompt] = []
    for place in range((step - 1) * size, step * size):
        epoch, index = divmod(place, len(prompts))
        order = np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(len(prompts))
        taken.append(prompts[int(order[index])])
    if len({prompt.id for prompt in taken}) == size:
        return taken
    # Two permutations meet in this step: what the second repeats makes room for the next of it that are new.
    first = list({prompt.id: prompt for prompt in taken}.values())
    seen = {prompt.id for prompt in first}
    epoch = (step * size - 1) // len(prompts)
    order = np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(len(prompts))
    rest = [prompts[int(i)] for i in order if prompts[int(i)].id not in seen]
    return [*first, *rest[: size - len(first)]]


def said_in(style: Style, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The style's words after the user's last turn."""
    *earlier, last = messages
    return (
        *earlier,
        Message(role=last.role, content=f"{last.content}\n\n{style.words}" if style.words else last.content),
    )


def ask_all(
    prompts: Iterable[Prompt], directions: Sequence[Direction | None], codec: Codec, *, iteration: int, seed: int
) -> list[Query]:
    """Every prompt under every one of `directions`; None asks without a direction, as the initial policy is asked."""
    return [
        Query(
            prompt=prompt,
            iteration=iteration,
            direction=direction,
            direction_index=index,
            style="",
            messages=conversation(codec, direction, prompt.messages),
            seed=derive_seed(seed, iteration, prompt.id, index),
        )
        for prompt in prompts
        for index, direction in enumerate(directions)
    ]


def ask_in_styles(prompts: Iterable[Prompt], styles: Mapping[str, Style], *, iteration: int, seed: int) -> list[Query]:
    """Every prompt in every style, without a direction: the contrast that t=0 learns from.

    `Style.samples` queries of each style, because styles may be sampled unequally.
    """
    queries = []
    for prompt in prompts:
        index = 0
        for name, style in styles.items():
            for _ in range(style.samples):
                queries.append(
                    Query(
                        prompt=prompt,
                        iteration=iteration,
                        direction=None,
                        direction_index=index,
                        style=name,
                        messages=said_in(style, prompt.messages),
                        seed=derive_seed(seed, iteration, prompt.id, index),
                    )
                )
                index += 1
    return queries


def in_shards(queries: Sequence[Query], prompts_per_shard: int) -> list[list[Query]]:
    """Consecutive queries in shards that hold whole prompts: shard i is the same list on every run."""
    shards: list[list[Query]] = []
    seen: set[str] = set()
    for query in queries:
        if query.prompt.id not in seen and len(seen) % prompts_per_shard == 0:
            shards.append([])
        seen.add(query.prompt.id)
        shards[-1].append(query)
    return shards


def spread_directions(
    prompts: Iterable[Prompt], cone: Cone, per_prompt: int, *, seed: int
) -> dict[str, list[Direction]]:
    """For pooled selection: `per_prompt` directions of each prompt, spread over the cone instead of left to chance.

    K=2: both ends of the arc, the high one first and the low one last, where the contrast is, and between them stratified
    angles, one uniform draw in each of `per_prompt` - 2 equal arcs; a full circle has no ends, only strata. K>2: uniform on
    the cap.
    """
    out: dict[str, list[Direction]] = {}
    for prompt in prompts:
        rng = np.random.default_rng(derive_seed(seed, "spread", prompt.id))
        if len(cone.names) == 2:
            middle, half = angle_deg(cone.axis), cone.half_angle_deg
            ends = per_prompt > 1 and half < 180
            between = per_prompt - 2 if ends else per_prompt
            share_N = (np.arange(between) + rng.uniform(size=between)) / max(between, 1)
            if ends:
                share_N = np.array([0.0, *share_N, 1.0])
            drawn_NK = np.array([from_angle_deg(round(middle + half * (1 - 2 * share), 9)) for share in share_N])
        else:
            drawn_NK = cone.sample(rng, per_prompt)
        out[prompt.id] = [tuple(v_K.tolist()) for v_K in drawn_NK]
    return out
