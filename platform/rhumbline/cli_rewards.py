"""`rhumbline rewards ...`: reward models on files of one's own. Each command imports what it needs when it runs.

rhumbline rewards score answers.jsonl --model embedded --out scores.csv
rhumbline rewards card rewards/mine --data pairs.jsonl.gz --split test --out cards/mine
rhumbline rewards debias rewards/mine --data answers.jsonl.gz --out rewards/mine/length.json
rhumbline rewards card rewards/mine --data pairs.jsonl.gz --length-removed rewards/mine/length.json
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rhumbline.errors import ConfigError

if TYPE_CHECKING:
    from rhumbline.rewards.model import RewardModel

rewards_app = typer.Typer(help="Reward models: score, card, debias.", no_args_is_help=True, rich_markup_mode=None)

CHARACTERS = "none"  # the length of an answer, as cards of jobs/reward.py and length maps have it
RESAMPLES = 1000

DataFile = Annotated[str, typer.Option("--data", help="JSONL(.gz), Parquet or a hub name.")]
Split = Annotated[str | None, typer.Option(help="A split of the file or of the hub data set.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Read at most so many answers or pairs.")]
Model = Annotated[str, typer.Argument(help="A folder of jobs/reward.py, 'embedded', or a recipe that ends in .yaml.")]
Tokenizer = Annotated[
    str, typer.Option(help="What answers are measured by: 'embedded', a folder or hub name; 'none' for characters.")
]
Winner = Annotated[str | None, typer.Option(help="The column of a comparison's winner: a, b or tie.")]
Where = Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE: other comparisons are left out.")]
Output = Annotated[
    str | None, typer.Option(help="Of a preference or an absolute network: logit (the default) or probability.")
]
CardOutput = Annotated[
    str | None,
    typer.Option(
        help="Of a preference or an absolute network: logit or probability. Against ratings an absolute one gives probabilities."
    ),
]
Profile = Annotated[str | None, typer.Option(help="Of a conditional model: who judges.")]
LengthRemoved = Annotated[
    Path | None, typer.Option(help="Length maps of `rhumbline rewards debias` to take off first.")
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]


@rewards_app.command("score")
def rewards_score(
    file: Annotated[str, typer.Argument(help="Answers: JSONL(.gz), Parquet or a hub name.")],
    model: Annotated[str, typer.Option(help="A folder of jobs/reward.py, 'embedded', or a recipe that ends in .yaml.")],
    out: Annotated[Path, typer.Option(help="JSONL, or CSV where the name ends in .csv. What is in it is kept.")],
    split: Split = None,
    limit: Limit = None,
    output: Output = None,
    profile: Profile = None,
    reference: Annotated[str | None, typer.Option(help="Of a comparer: a file of answers to compare with.")] = None,
    length_removed: LengthRemoved = None,
    trust_remote_code: Trust = False,
) -> None:
    """One line per answer with a column per objective; the same command again goes on where it stopped."""
    from rhumbline.rewards.opening import Options, open_model
    from rhumbline.rewards.score_file import score_file

    options = Options(output=output, profile=profile, reference=reference, trust_remote_code=trust_remote_code)
    scorer = _without_length(open_model(model, options), length_removed)
    scorer.setup()
    done = score_file(
        scorer, file, out, split=split, limit=limit, report=lambda n: typer.echo(f"scored {n} answers", err=True)
    )
    typer.echo(f"{out}: {done} answers, {', '.join(scorer.names)}")


@rewards_app.command("card")
def rewards_card(
    model: Model,
    data: DataFile,
    out: Annotated[Path | None, typer.Option(help="A folder for card.md, card.json and figures.")] = None,
    split: Split = None,
    limit: Limit = None,
    label: Annotated[list[str] | None, typer.Option(help="HEAD=RATING, where a rating has another name.")] = None,
    winner: Winner = None,
    where: Where = None,
    output: CardOutput = None,
    profile: Profile = None,
    profile_column: Annotated[
        str | None, typer.Option(help="Of a conditional comparer: the column of who judged.")
    ] = None,
    second: Annotated[str | None, typer.Option(help="Another model, to see how far the two agree.")] = None,
    length_removed: LengthRemoved = None,
    tokenizer: Tokenizer = CHARACTERS,
    resamples: Annotated[int, typer.Option(min=1, help="Of prompts, for intervals.")] = RESAMPLES,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    trust_remote_code: Trust = False,
) -> None:
    """Accuracy or correlation, calibration and errors on rated or compared answers, each beside length alone."""
    from rhumbline.cards import card
    from rhumbline.cards.examination import examine, examine_comparer, holds_ratings
    from rhumbline.rewards.debias import LengthMaps
    from rhumbline.rewards.opening import Options, kind_of, open_comparer, open_model
    from rhumbline.rewards.trained import Schema

    labels = _assignments("--label", label)
    asked = comparing(winner, where) | ({} if profile_column is None else {"profile": profile_column})
    maps = None if length_removed is None else LengthMaps.load(length_removed)
    unit, count = _measure(tokenizer)
    other = (
        None if second is None else (_shown(second), open_model(second, Options(trust_remote_code=trust_remote_code)))
    )
    shared: dict[str, Any] = {"count": count, "split": split, "limit": limit, "comparing": asked, "second": other}
    shared |= {"num_resamples": resamples, "seed": seed}
    facts = {"Model": f"`{_shown(model)}`", "Length": f"in {unit}"}
    comparer = open_comparer(model, trust_remote_code=trust_remote_code)
    if comparer is not None:
        if labels or any(one is not None for one in (maps, output, profile)):
            raise ConfigError(f"{model} is a comparer: a card of it takes no options of scorers of single answers")
        if profile_column is not None and not Schema.load(model).conditional:
            raise ConfigError(
                f"--profile-column {profile_column}: {model} was trained without knowing who judges, leave it out"
            )
        if other is not None:
            other[1].setup()
        told = examine_comparer(comparer, data, **shared)
    else:
        if profile_column is not None:
            raise ConfigError(f"--profile-column is for comparers, {model} is none: say who judges with --profile")
        recipe = model.endswith((".yaml", ".yml"))
        absolute = maps is None and not recipe and kind_of(model) == "absolute"  # maps are of the output that made them
        if output is None and absolute and not asked and holds_ratings(data, split):
            output = "probability"  # what ratings were learned as: a logit has no errors
        scorer = open_model(model, Options(output=output, profile=profile, trust_remote_code=trust_remote_code))
        if maps is not None:
            maps.check([head.name for head in scorer.heads], "--length-removed")
        scorer.setup()
        if other is not None:
            other[1].setup()
        if output is not None:
            facts["Output"] = output
        facts["Id"] = scorer.id + ("" if maps is None else f", without length {maps.id}")
        told = examine(scorer, data, labels=labels, maps=maps, **shared)
    command = _command(
        *("rhumbline", "rewards", "card", _shown(model), "--data", _shown(data)),
        split=split,
        limit=limit,
        label=label,
        winner=winner,
        where=where,
        output=output,
        profile=profile,
        profile_column=profile_column,
        second=None if second is None else _shown(second),
        length_removed=None if length_removed is None else _shown(str(length_removed)),
        tokenizer=None if tokenizer == CHARACTERS else _shown(tokenizer),
        resamples=None if resamples == RESAMPLES else resamples,
        seed=seed or None,
    )
    page = {"name": _shown(model), "command": command, "facts": facts, "notes": "", **told}
    if out is not None:
        card.write(out, page)
    typer.echo(card.markdown(page))


@rewards_app.command("debias")
def rewards_debias(
    model: Model,
    data: DataFile,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")],
    head: Annotated[list[str] | None, typer.Option(help="Heads to take length off; all, if none is named.")] = None,
    split: Split = None,
    limit: Limit = None,
    output: Output = None,
    profile: Profile = None,
    trust_remote_code: Trust = False,
) -> None:
    """Fit what length alone says of each head's score over the answers of a calibration file, so that it can be taken off."""
    from rhumbline.errors import did_you_mean
    from rhumbline.rewards.debias import TARGET, fit
    from rhumbline.rewards.opening import Options, open_model
    from rhumbline.rewards.score_file import answers

    scorer = open_model(model, Options(output=output, profile=profile, trust_remote_code=trust_remote_code))
    known = [one.name for one in scorer.heads]
    for name in head or []:
        if name not in known:
            raise ConfigError(f"--head {name}: no such head.{did_you_mean(name, known)} Heads: {', '.join(known)}")
    wanted = [known.index(name) for name in head or known]
    scorer.setup()
    pairs = list(
        {(one.prompt.id, one.response): (one.prompt, one.response) for one in answers(data, split, limit)}.values()
    )
    scores_NH = scorer.score_heads(pairs)[:, wanted]
    maps = fit(scores_NH, [len(response) for _, response in pairs], [known[h] for h in wanted])
    maps.save(out)
    typer.echo(f"{out}: {maps.n} answers; Spearman of score and length")
    for name, one in maps.maps.items():
        if one.before is None or one.after is None:
            typer.echo(f"{name:<24}never varies")
            continue
        worse = "" if abs(one.after) <= TARGET else f"  above {TARGET}: too few answers, or too many of one length"
        typer.echo(f"{name:<24}{one.before:+.3f} -> {one.after:+.3f}{worse}")


def _assignments(option: str, given: list[str] | None) -> dict[str, str]:
    """['a=b', ...] as a mapping. Raises ConfigError."""
    out = {}
    for one in given or []:
        name, equals, value = one.partition("=")
        if not equals or not name or not value:
            raise ConfigError(f"{option} {one!r}: expected NAME=VALUE")
        out[name] = value
    return out


def comparing(winner: str | None, where: list[str] | None) -> dict[str, Any]:
    """Options of `load_comparisons` that were given; values of --where are read as YAML, so that 3 and true are themselves."""
    import yaml

    chosen = {}
    for column, value in _assignments("--where", where).items():
        try:
            chosen[column] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(
                f"--where {column}={value}: the value is no YAML, expected a text, a number or true"
            ) from None
    return ({} if winner is None else {"winner": winner}) | ({"where": chosen} if chosen else {})


def _measure(tokenizer: str) -> tuple[str, Callable[[str], int]]:
    """What lengths are counted in, and how long a text is."""
    if tokenizer == CHARACTERS:
        return "characters", len
    from rhumbline.learning.policy import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    return f"tokens of `{_shown(tokenizer)}`", lambda text: len(loaded(text, add_special_tokens=False)["input_ids"])


def _command(*words: str, **options: Any) -> str:
    """A command as one types it: options that are None are left out, those with several values come several times."""
    import shlex

    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            words += () if one is None else (f"--{name.replace('_', '-')}", str(one))
    return shlex.join(words)


def _without_length(model: RewardModel, maps: Path | None) -> RewardModel:
    """The model with length maps taken off its sources' heads; each source has those of its own heads."""
    if maps is None:
        return model
    from rhumbline.rewards.debias import LengthMaps, LengthRemoved
    from rhumbline.rewards.model import RewardModel

    loaded = LengthMaps.load(maps)
    loaded.check([head.name for head in model.heads], "--length-removed")
    sources = [LengthRemoved(one, loaded.of([head.name for head in one.heads])) for one in model.sources]
    return RewardModel(sources, model.objectives)


def _shown(name: str) -> str:
    """A model or a tokenizer by name: no folder of this machine goes into a card."""
    return Path(name).name if Path(name).is_absolute() else name
