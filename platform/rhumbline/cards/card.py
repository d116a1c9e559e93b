"""The card of a reward model as files: what it is, and its figures beside those of length alone.

    write(folder, card)          # card.json, card.md, and figures/*.png with data/*.csv where the card has such sections
    markdown(card)

A card is plain data: `name`, `command`, `notes`; `facts` (what -> text) and `data` (data set -> licence and counts); and the
sections that `cards.sections` makes. A ridge model says its backbone, features and heads instead of facts. A section that
a card lacks is not on its page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rhumbline.durable import replace, to_json
from rhumbline.errors import StoreError

JSON = Mapping[str, Any]
DRAWN = ("ratings", "pairs", "classes", "reliability", "by_label", "correlations")


def write(folder: str | Path, card: JSON) -> None:
    """card.json as it is, card.md for people and the card's figures, each file atomically. Raises StoreError."""
    target = Path(folder)
    files = {"card.json": (to_json(card, indent=1) + "\n").encode(), "card.md": markdown(card).encode()}
    if any(card.get(section) for section in DRAWN):
        from rhumbline.cards import figures

        for drawn in figures.draw(card):
            files[f"figures/{drawn.name}.png"] = figures.png(drawn.figure)
            files[f"data/{drawn.name}.csv"] = figures.csv_of(drawn.rows)
    try:
        for name, content in files.items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, content)
    except OSError as e:
        raise StoreError(f"{target} cannot be written: {e.strerror or e}") from e


def markdown(card: JSON) -> str:
    """The card as a page."""
    ridge = "features" in card
    title = f"# Reward {'heads' if ridge else 'model'}: {card['name']}"
    lines = [title, "", *(_ridge(card) if ridge else _facts(card))]
    for section in _SECTIONS:
        lines += section(card)
    return "\n".join([*lines, "", card["notes"], ""])


# --- what it is -------------------------------------------------------------------------------------------------------


def _facts(card: JSON) -> Iterator[str]:
    yield f"Made by `{card['command']}`."
    yield ""
    for what, said in card["facts"].items():
        yield f"- {what}: {said}"
    for name, one in card["data"].items():
        counts = ", ".join(f"{key} {value}" for key, value in one.items() if key != "licence")
        yield f"- Data: {name}, licence {one.get('licence') or 'not known'}; {counts}."


def _ridge(card: JSON) -> Iterator[str]:
    features = card["features"]
    yield from (
        f"Ridge regression on a frozen backbone, in closed form, by `{card['command']}`.",
        "",
        f"- Backbone: `{card['backbone']}`, hidden states after layer {features['layer']} of "
        f"{card['fingerprint']['num_hidden_layers']}, pooled: {', '.join(features['pooling'])}, float32.",
        f"- Input: the backbone's chat template, at most {features['max_tokens']} tokens, the answer at most "
        f"{features['max_response_tokens']} of them.",
        f"- Share of each feature's dependence on log length that was taken out: {card['length_removed']:g}.",
    )
    for name, one in card["data"].items():
        yield (
            f"- Data: {name}, licence {one['licence']}; answers to fit on {one['train']}, to test on {one['test']}, left out "
            f"because their conversation is tested on {one['dropped']}."
        )
    for split, title in (
        ("test", "Test split"),
        ("held_out", "Training split, each answer predicted without its prompt"),
    ):
        yield from ("", f"## {title}", "", *_head("head", "n", "alpha", *_CORRELATED))
        for name, head in card["heads"].items():
            f = head[split]
            if not f["n"]:
                yield f"| {name} | 0 |" + " |" * (1 + len(_CORRELATED))
                continue
            yield _line(name, f["n"], f"{head['alpha']:.3g}", *(_cell(f.get(key)) for key in _CORRELATED.values()))
    yield ""
    yield from _POINTS.splitlines()


# --- sections ---------------------------------------------------------------------------------------------------------

_CORRELATED = {
    "Spearman": "spearman",
    "at equal length": "spearman_given_length",
    "length only": "length_only_spearman",
    "gain": "gain",
    "Pearson": "pearson",
    "MAE": "mae",
    "length-only MAE": "length_only_mae",
    "score with length": "score_with_length",
    "label with length": "label_with_length",
}
_POINTS = """\
Points are of 0-100; brackets are 95% intervals over prompts. *At equal length* is the partial rank correlation
with the answer's tokens held fixed, *length only* a line on log length, *gain* the Spearman less that of length only.
Scores are predictions of mean ratings: narrower than the ratings themselves, and not cut to 0-100."""


def _ratings(card: JSON) -> Iterator[str]:
    told = card.get("ratings")
    if not told:
        return
    columns = {**_CORRELATED}
    columns = {
        "Spearman": columns.pop("Spearman"),
        "at equal length": columns.pop("at equal length"),
        "length only": columns.pop("length only"),
        "gain": columns.pop("gain"),
        "Pearson": columns.pop("Pearson"),
        "length-only Pearson": "length_only_pearson",
        **columns,
    }
    yield from ("", "## Ratings", "", *_head("head", "n", *columns))
    for label, f in _rows(told):
        yield _line(label, f["n"], *(_cell(f.get(key)) for key in columns.values()))
    points = _POINTS.replace("the answer's tokens", "the answer's length").splitlines()
    if any(f["n"] and f.get("mae") is None for _, f in _rows(told)):
        points.append(
            "A score without MAE is on another scale than the ratings (a logit): only its order can be compared."
        )
    yield from ("", *points, *_image("accuracy", "agreement with people beside length alone"))
    yield from _image("by_label", "scores by label")


def _ranges(card: JSON) -> Iterator[str]:
    told = card.get("ranges")
    if not told:
        return
    columns = {"MSE": "mse", "length-only MSE": "length_only_mse", "MAE": "mae", "length-only MAE": "length_only_mae"}
    yield from ("", "## Error by range of the label", "", *_head("head", "label", "n", *columns))
    for name, ranges in told.items():
        for one in ranges:
            yield _line(name, one["range"], one["n"], *(_cell(one[key], 4) for key in columns.values()))
    yield from (
        "",
        "Labels and errors are on 0-1, from the lowest label that there can be to the highest. The ends are rare: a model that",
        "always says the mean errs there most.",
    )


def _pairs(card: JSON) -> Iterator[str]:
    told = card.get("pairs")
    if not told:
        return
    columns = {
        "accuracy": "accuracy",
        "length only": "length_accuracy",
        "gain": "gain",
        "log loss": "log_loss",
        "length-only log loss": "length_log_loss",
        "with length": "score_with_length",
        "ECE": "ece",
        "length-only ECE": "length_ece",
    }
    yield from ("", "## Pairs", "", *_head("head", "n", "ties", *columns))
    for label, f in _rows(told):
        yield _line(label, f["n"], f["ties"], *(_cell(f.get(key), 3) for key in columns.values()))
    yield from (
        "",
        "Accuracy is the share of pairs in which the better answer has the higher score, equal scores a half; ties by",
        "people are counted and left out. *Length only* prefers the longer answer; *gain* is the difference on the same",
        "pairs. Log losses are in nats, a coin gives 0.693; where no training split set the scale of a score or the",
        "length-only regression, the other prompts of the same file did. *With length* is the rank correlation of the two",
        "differences within a pair, of score and of length.",
        *_image("accuracy", "agreement with people beside length alone"),
    )


def _conflicts(card: JSON) -> Iterator[str]:
    told = card.get("conflicts")
    if not told:
        return
    yield from ("", "## Pairs on which the heads are judged contrarily", "")
    yield from _head("pairs", "judgements", "own head right", "any single score", "all of a pair right")
    cells = (_cell(told["accuracy"], 3), f"{told['one_score']:.3f}", _cell(told["all_right"], 3))
    yield _line(told["pairs"], told["n"], *cells)
    yield from (
        "",
        "The same two answers, of which one is better by one head's judges and the other by another's. *Any single score* is the",
        "most that one score for all heads can reach here.",
    )


def _classes(card: JSON) -> Iterator[str]:
    told = card.get("classes")
    if not told:
        return
    yield from ("", "## Pairs with ties", "", *_table_of_classes(told))
    yield from (
        "",
        "Accuracy is over all classes, *length-only accuracy* that of a multinomial regression on the difference in log length;",
        "*on decided* and *longer wins* are over pairs that people decided. Log losses are in nats: *length-only* of that",
        "regression, *gain* what the comparer is better by on the same pairs, *prior* the shares of the classes, *by place* with",
        "the shares of the first and the second answer kept apart, *one order* the comparer without averaging over both, *swap",
        "gain* what averaging is better by. *With length* is the rank correlation of the difference in chances with that in",
        "length.",
        *_image("accuracy", "agreement with people beside length alone"),
    )


def _cross_validation(card: JSON) -> Iterator[str]:
    told = card.get("cross_validation")
    if not told:
        return
    yield from ("", "## Cross-validation", "", *_table_of_classes(told["classes"]))
    yield from ("", "Each training comparison as the network judges it that was trained without its fold.")


def _table_of_classes(told: JSON) -> Iterator[str]:
    columns = {
        "accuracy": "accuracy",
        "length-only accuracy": "length_only_accuracy",
        "on decided": "decided_accuracy",
        "longer wins": "length_accuracy",
        "log loss": "log_loss",
        "length-only": "length_log_loss",
        "gain": "gain",
        "prior": "prior_log_loss",
        "prior by place": "placed_prior_log_loss",
        "one order": "one_order_log_loss",
        "swap gain": "swap_gain",
        "with length": "score_with_length",
        "ECE": "ece",
        "length-only ECE": "length_ece",
    }
    yield from _head("data", "n", "a / b / tie", *columns, "uniform")
    for label, f in _rows({"all": told}):
        winners = " / ".join(str(n) for n in f["winners"].values())
        uniform = f"{f['uniform_log_loss']:.4f}" if f["n"] else "-"
        yield _line(label, f["n"], winners, *(_cell(f.get(key), 3) for key in columns.values()), uniform)


def _reliability(card: JSON) -> Iterator[str]:
    told = card.get("reliability")
    if not told:
        return
    yield from ("", "## Calibration", "", *_head("head", "expected calibration error", "length only"))
    for name, one in told.items():
        yield _line(name, _cell(one["ece"], 3), _cell(one.get("length_ece"), 3))
    yield from (
        "",
        "On 0-1, ten bins of equal width. For pairs: confidence in the answer that was preferred, and how often people did",
        "so too. For ratings: score and label. *Length only* promises little, and what promises little is easily calibrated.",
        *_image("reliability", "predicted against observed"),
    )


def _debias(card: JSON) -> Iterator[str]:
    told = card.get("debias")
    if not told:
        return
    columns = ("calibration: before", "after", "here: before", "after", "figure", "before", "after", "cost")
    yield from ("", "## Length taken off", "", *_head("head", *columns))
    for name, one in told.items():
        spearmans = [_cell({"value": one[split][key]}) for split in ("calibration", "with_length") for key in _BEFORE]
        yield _line(name, *spearmans, one["figure"], *(_cell(one[key], 3) for key in (*_BEFORE, "change")))
    yield from (
        "",
        "Spearman of score and length over the calibration answers and over these, before and after what length says of a",
        "score was taken off it; then what that changed in the agreement with people.",
    )


def _agreement(card: JSON) -> Iterator[str]:
    told = card.get("agreement")
    if not told:
        return
    yield from ("", "## Agreement with a second scorer", "")
    yield from _head("scorer", "second", "n", "percent", "length only", "kappa", "length only")
    for one in told:
        second = one["second"] if one["source"] == "all" else f"{one['second']}: {one['source']}"
        cells = (_cell(one[key]) for key in ("percent", "length_percent", "kappa", "length_kappa"))
        yield _line(one["first"], second, one["n"], *cells)
    yield from (
        "",
        "On the same pairs of answers: which is better, or the same. Cohen's kappa is 0 for chance and 1 for always. *Length",
        "only* is how far 'the longer one' agrees with the second scorer.",
    )


def _correlations(card: JSON) -> Iterator[str]:
    told = card.get("correlations")
    if not told:
        return
    yield from ("", "## Correlations", "", *_head("Spearman", *told["names"]))
    for name, values in zip(told["names"], told["spearman"], strict=True):
        yield _line(name, *(_cell({"value": value}) for value in values))
    said = (
        "Of the differences between the two answers of a pair."
        if told.get("of") == "pairs"
        else "Of scores, over answers."
    )
    yield from ("", said, *_image("correlations", "rank correlations"))


_SECTIONS = (
    _ratings,
    _ranges,
    _pairs,
    _conflicts,
    _classes,
    _cross_validation,
    _reliability,
    _debias,
    _agreement,
    _correlations,
)
_BEFORE = ("before", "after")


def _rows(section: JSON) -> Iterator[tuple[str, JSON]]:
    """Each head with all data, then with each data set."""
    for name, told in section.items():
        yield name, told["all"]
        for source, one in told["sources"].items():
            yield f"{name}: {source}", one


def _head(*columns: str) -> tuple[str, str]:
    return _line(*columns), "|" + "---|" * len(columns)


def _line(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _image(name: str, alt: str) -> Sequence[str]:
    return "", f"![{alt}](figures/{name}.png)"


def _cell(figure: Mapping[str, float | None] | None, digits: int | None = None) -> str:
    """A figure with its interval; `digits` None: two below 1, one above."""
    value, low, high = (None, None, None) if figure is None else (figure.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "-"
    places = digits if digits is not None else 2 if abs(value) < 1 else 1
    return f"{value:.{places}f}" + ("" if low is None or high is None else f" [{low:.{places}f}, {high:.{places}f}]")
