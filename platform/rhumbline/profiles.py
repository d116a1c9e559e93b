"""What a policy is told about the person it answers: whoever judged a pair, and for held-out prompts the same people.

    profiles = profiles_of(recipe, prompts)        # {prompt id: {'user_id': 'judge 3'}}; empty where no prompt has one
    queries = under_profiles(queries, profiles)    # 'You answer this person.' and what is known, before the prompt

A prompt has a profile where prompts.path is a file of pairs that names them: the first that judged it. Other prompts have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rhumbline.codecs import in_front
from rhumbline.config import DpoRecipe, Run
from rhumbline.data.comparisons import load_comparisons
from rhumbline.data.prompts import prompt_id_of
from rhumbline.records import Message, Prompt, Query

PERSON = "You answer this person."  # a paragraph of its own: `data.chat` sanitises what follows it
Profile = Mapping[str, str]


def profiles_of(recipe: Run, prompts: Sequence[Prompt]) -> dict[str, Profile]:
    """Prompt id -> what is known about the first one who judged it; without prompts of which nothing is."""
    known: dict[str, Profile] = {}
    for data in (recipe.pairs or {}).values() if isinstance(recipe, DpoRecipe) else ():
        if data.profile is None or (data.path, data.split) != (recipe.prompts.path, recipe.prompts.split):
            continue
        options = data.model_dump(exclude={"path", "split", "limit"})
        for one in load_comparisons(data.path, data.split, data.limit, **options).rows:
            if one.profile:
                known.setdefault(prompt_id_of(one.prompt.messages), one.profile)
    by_turns = {prompt.id: prompt_id_of(prompt.messages) for prompt in prompts}
    return {id_: known[turns] for id_, turns in by_turns.items() if turns in known}


def told(profile: Profile | None, messages: Sequence[Message]) -> tuple[Message, ...]:
    """Turns under a profile, in training and in evaluation; without one, as they are."""
    if not profile:
        return tuple(messages)
    facts = "\n".join(f"{name}: {fact}" for name, fact in profile.items())
    return in_front(f"{PERSON}\n\n{facts}", messages)


def under_profiles(queries: Sequence[Query], profiles: Mapping[str, Profile]) -> list[Query]:
    """Each query as it is asked for its prompt's person."""
    return [replace(query, messages=told(profiles.get(query.prompt.id), query.messages)) for query in queries]
