"""The answers that a report shows side by side: one prompt, every direction. From scored answers to plain data.

Nothing is chosen by hand or by reward: the first prompts by id, the first sample of each direction.

    samples = pick(scored, label="t=2", objectives=["helpfulness", "verbosity"], num_prompts=24)
    browser([*samples_t0, *samples_t2])    # nested by prompt and label, as the page's script reads it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rhumbline.evaluation.grouping import angle_deg
from rhumbline.records import Scored


def pick(
    scored: Sequence[Scored], *, label: str, objectives: Sequence[str], num_prompts: int = 24
) -> list[dict[str, Any]]:
    """The first sample of every direction for the first prompts by id: the same prompts for every label, nothing
    chosen."""
    shown = set(sorted({s.completion.query.prompt.id for s in scored})[:num_prompts])
    first: dict[tuple[str, Any], Scored] = {}
    for s in sorted(scored, key=lambda s: (s.completion.query.direction_index, s.completion.sample_index)):
        query = s.completion.query
        if query.prompt.id in shown:
            first.setdefault((query.prompt.id, query.direction), s)
    return [
        {
            "label": label,
            "prompt_id": prompt_id,
            "prompt": "\n\n".join(
                message.content
                if len(s.completion.query.prompt.messages) == 1
                else f"{message.role}: {message.content}"
                for message in s.completion.query.prompt.messages
            ),
            "vector": None if vector is None else [round(float(weight), 6) + 0.0 for weight in vector],
            "angle_deg": angle_deg(vector),
            "text": s.completion.text,
            "rewards": dict(zip(objectives, map(float, s.rewards), strict=True)),
            "length": len(s.completion.token_ids),
            "finished": s.completion.finish_reason == "stop",
        }
        for (prompt_id, vector), s in sorted(first.items(), key=lambda item: item[0][0])
    ]


def browser(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{labels, prompts: [{id, text}], answers: {label: {prompt id: [answer, ...]}}}, directions by falling angle."""
    answers: dict[str, dict[str, list[dict[str, Any]]]] = {}
    prompts: dict[str, str] = {}
    for sample in samples:
        prompts.setdefault(sample["prompt_id"], sample["prompt"])
        shown = {key: sample[key] for key in ("vector", "angle_deg", "text", "rewards", "length", "finished")}
        answers.setdefault(sample["label"], {}).setdefault(sample["prompt_id"], []).append(shown)
    for by_prompt in answers.values():
        for columns in by_prompt.values():
            columns.sort(key=lambda answer: (answer["vector"] is None, -(answer["angle_deg"] or 0.0)))
    return {
        "labels": list(answers),
        "prompts": [{"id": id_, "text": text} for id_, text in prompts.items()],
        "answers": answers,
    }
