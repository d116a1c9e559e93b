"""The front as a plotly figure that the page draws: hover shows the direction, what it achieved and one answer.

    spec = front([t0, t1, t2], initial, samples)     # {'data': [...], 'layout': {...}}, plain data for Plotly.newPlot

Two objectives give the plane of the paper's figures, more give parallel coordinates (all objectives share the 0-100
scale). Only SVG traces are used, so the page needs no WebGL and no `eval`. Colours of text and grid are the page's,
set when it draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rhumbline.evaluation.plots import COLOURS, NEUTRAL

JSON = Mapping[str, Any]
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross")
SNIPPET = 140  # characters of an answer in a hover


def front(evaluations: Sequence[JSON], initial: JSON | None, samples: Sequence[JSON] = ()) -> dict[str, Any]:
    """Traces and layout, one trace per iteration and one for the initial policy."""
    everyone = [*([] if initial is None else [initial]), *evaluations]
    names = everyone[0]["objectives"]
    draw = _plane if len(names) == 2 else _parallel
    traces: list[dict[str, Any]] = []
    for evaluation in everyone:
        place = -1 if evaluation is initial else list(evaluations).index(evaluation)
        colour = NEUTRAL if place < 0 else COLOURS[place % len(COLOURS)]
        symbol = "x" if place < 0 else SYMBOLS[place % len(SYMBOLS)]
        traces += draw(evaluation, names, colour, symbol, samples)
    layout: dict[str, Any] = {
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 56, "r": 12, "t": 40, "b": 52},
    }
    if len(names) == 2:
        layout["xaxis"] = _axis(names[1], everyone[0]["signs"])
        layout["yaxis"] = _axis(names[0], everyone[0]["signs"])
    else:
        layout["xaxis"] = {"type": "category"}
        layout["yaxis"] = {"title": {"text": "mean reward, 0-100"}}
    return {"data": traces, "layout": layout}


def _plane(
    evaluation: JSON, names: Sequence[str], colour: str, symbol: str, samples: Sequence[JSON]
) -> list[dict[str, Any]]:
    entries = evaluation["directions"]
    y, x = ([entry["rewards"][name] for entry in entries] for name in names)
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": evaluation["label"],
            "x": [interval["value"] for interval in x],
            "y": [interval["value"] for interval in y],
            "error_x": _bars(x),
            "error_y": _bars(y),
            "line": {"color": colour, "width": 1.5},
            "marker": {
                "color": colour,
                "size": 9,
                "symbol": [symbol if entry["pareto"] else f"{symbol}-open" for entry in entries],
            },
            "text": [_hover(evaluation, entry, samples) for entry in entries],
            "hovertemplate": "%{text}<extra></extra>",
        }
    ]


def _parallel(
    evaluation: JSON, names: Sequence[str], colour: str, symbol: str, samples: Sequence[JSON]
) -> list[dict[str, Any]]:
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": evaluation["label"],
            "legendgroup": evaluation["label"],
            "showlegend": place == 0,
            "x": [_say(name, evaluation["signs"]) for name in names],
            "y": [entry["rewards"][name]["value"] for name in names],
            "error_y": _bars([entry["rewards"][name] for name in names]),
            "line": {"color": colour, "width": 1.5},
            "marker": {"color": colour, "size": 8, "symbol": symbol if entry["pareto"] else f"{symbol}-open"},
            "opacity": 0.8,
            "text": [_hover(evaluation, entry, samples)] * len(names),
            "hovertemplate": "%{text}<extra></extra>",
        }
        for place, entry in enumerate(evaluation["directions"])
    ]


def _axis(name: str, signs: Mapping[str, int]) -> dict[str, Any]:
    """Up and right are better: an objective of which less is better runs backwards."""
    title = {"title": {"text": f"{_say(name, signs)} \N{RIGHTWARDS ARROW}"}}
    return title if signs[name] > 0 else title | {"autorange": "reversed"}


def _say(name: str, signs: Mapping[str, int]) -> str:
    return escape(name) if signs[name] > 0 else f"{escape(name)} (less is better)"


def _bars(intervals: Sequence[JSON]) -> dict[str, Any]:
    known = [(i["low"], i["value"], i["high"]) if i["low"] is not None else (0.0, 0.0, 0.0) for i in intervals]
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for _, value, high in known],
        "arrayminus": [value - low for low, value, _ in known],
        "thickness": 1,
        "width": 3,
    }


def _hover(evaluation: JSON, entry: JSON, samples: Sequence[JSON]) -> str:
    """Plotly reads a little HTML in hovers, so everything that came from a model or a person is escaped."""
    lines = [f"<b>{escape(evaluation['label'])}</b>"]
    if entry["vector"] is not None:
        if entry["angle_deg"] is not None:
            lines[0] += f" at {entry['angle_deg']:g}°"
        weights = zip(evaluation["objectives"], entry["vector"], strict=True)
        lines.append("asked " + ", ".join(f"{escape(name)} {weight:.2f}" for name, weight in weights))
    got = ((name, entry["rewards"][name]["value"]) for name in evaluation["objectives"])
    lines.append("got " + ", ".join(f"{escape(name)} {value:.1f}" for name, value in got if value is not None))
    lines.append(f"{entry['length']['value']:.0f} tokens, {entry['n']} answers")
    for sample in samples:
        if sample["label"] == evaluation["label"] and sample["vector"] == entry["vector"]:
            text = sample["text"][:SNIPPET] + ("…" if len(sample["text"]) > SNIPPET else "")
            half = text.find(" ", len(text) // 2)
            pieces = [text] if half < 0 else [text[:half], text[half + 1 :]]
            lines.append("<i>" + "<br>".join(escape(" ".join(piece.split())) for piece in pieces) + "</i>")
            break
    return "<br>".join(lines)
