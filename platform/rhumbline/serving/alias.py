"""The model's name as a channel: `smol@concise` steers where a client has a model box and nothing else.

    split("smol@helpfulness=0.8,verbosity=-0.6")      # ('smol', 'helpfulness=0.8,verbosity=-0.6')
    model_cards(served, created=1_790_000_000)        # GET /v1/models: the model and its presets

`@`, not `:`: the colon is the separator of adapters in Ray Serve and SGLang, and stands in `ft:` ids.
"""

from __future__ import annotations

from typing import Any

from rhumbline.serving.served import Served

SEPARATOR = "@"
Card = dict[str, Any]  # an OpenAI `model` object; further keys are legal, its SDK keeps them


def split(model: str) -> tuple[str, str | None]:
    """A request's `model` -> (base, what it says of a direction); None where there is no @.

    `smol@` -> ('smol', ''), which resolve refuses: whoever writes an @ means something by it.
    """
    base, separator, said = model.partition(SEPARATOR)
    return base, said if separator else None


def model_cards(served: Served, created: int) -> list[Card]:
    """The base model first, then one card per preset. Inline forms are not listed: there is no end of them.

    created: seconds since 1970.
    """
    return [model_card(served, served.name, created)] + [
        model_card(served, f"{served.name}{SEPARATOR}{preset}", created) for preset in served.presets
    ]


def model_card(served: Served, model: str, created: int) -> Card:
    """GET /v1/models/{model}, for the base, a preset, or an inline form that the caller has resolved before."""
    base, said = split(model)
    card: Card = {"id": model, "object": "model", "created": created, "owned_by": "local"}
    ranges = served.ranges or {}
    metadata: Card = {
        "objectives": list(served.names),
        "range": {name: list(ranges[name]) for name in served.names if name in ranges},
        "trained_region": {"axis": list(served.cone.axis), "half_angle_deg": served.cone.half_angle_deg},
        "default": dict(zip(served.names, served.default, strict=True)),
        "template_version": served.template_version,
        "method": served.method,
    }
    if said is not None:
        card["parent"] = base
        if said in served.presets:
            metadata["preset"] = dict(served.presets[said])
    return card | {"metadata": metadata}
