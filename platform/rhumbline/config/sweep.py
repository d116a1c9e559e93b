"""The recipe of jobs/sweep.py: which keys of another recipe are searched, over what, and by which figures.

    sweep = load_sweep("jobs/recipes/sweeps/thesis-mini.yaml")
    sweep.points()                       # [{'directions.fixed': 0.0, 'ppo.kl.coefficient': 0.02}, ...]
    sweep.trial_overrides(point)         # ['directions.fixed={}', 'directions.fixed={...}', 'ppo.kl.coefficient=0.02']
    sweep.trial(point, "t-1")            # the recipe of that trial, built as its job builds it

A point gives every dimension of the space one plain value; of a simplex it is the weight of the first of two objectives, the
second has the rest. `grid` and `random` know their points before they start; `tpe` and `nsga2` choose the next one by what came
back.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, PrivateAttr, field_validator, model_validator

from rhumbline.config.online import OnlineRecipe
from rhumbline.config.reading import build, laid_over, read
from rhumbline.config.run import Run
from rhumbline.config.sections import Section
from rhumbline.config.soups import SoupRecipe
from rhumbline.errors import ConfigError, UserError, did_you_mean

Point = dict[str, Any]  # dotted key -> value
Reals = tuple[float, float]
Whole = tuple[int, int]
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
FORMS = ("values", "uniform", "loguniform", "int")
# Of trials, beside objective/<name>: `actors.summary.figures`. win_rate: where evaluation.win_rate is given.
FIGURES = ("reward", "kl", "length", "hypervolume", "win_rate")


class Dimension(Section):
    """What one key is drawn from: one of four forms. With `simplex`, the values are the weight of its first objective."""

    values: list[Any] | None = Field(None, min_length=1)
    uniform: Reals | None = None
    loguniform: Reals | None = None
    int: Whole | None = None  # both ends belong to it
    simplex: tuple[str, str] | None = None  # the key takes {first: w, second: 1 - w}

    @field_validator("values", mode="before")
    @classmethod
    def _numbers(cls, values: Any) -> Any:
        """1e-4 is text in YAML 1.1, and a number wherever a recipe has one: here, where anything may stand, it is that too."""
        if not isinstance(values, list):
            return values
        return [float(one) if isinstance(one, str) and _FLOAT.fullmatch(one) else one for one in values]

    @model_validator(mode="after")
    def _one_form(self) -> Dimension:
        given = [form for form in FORMS if getattr(self, form) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of {', '.join(FORMS)}, found {' and '.join(given) or 'none'}")
        form = given[0]
        if form != "values":
            low, high = getattr(self, form)
            if low >= high:
                raise ValueError(f"{form} must rise from low to high, got {[low, high]}")
            if form == "loguniform" and low <= 0:
                raise ValueError(f"loguniform needs a low end above 0, got {low}")
        elif len({_yaml(value) for value in self.values or []}) < len(self.values or []):
            raise ValueError(f"values has one twice: {self.values}")
        if self.simplex is not None:
            self._weighs(form)
        return self

    def _weighs(self, form: str) -> None:
        if self.simplex is not None and self.simplex[0] == self.simplex[1]:
            raise ValueError(f"simplex needs two objectives, got {list(self.simplex)}")
        if form not in ("values", "uniform"):
            raise ValueError(f"simplex takes values or uniform, found {form}")
        for weight in self.probes():
            if isinstance(weight, bool) or not isinstance(weight, float | int) or not 0 <= weight <= 1:
                raise ValueError(f"simplex: a weight lies in 0..1, got {weight!r}")

    @property
    def finite(self) -> bool:
        return self.values is not None or self.int is not None

    def listed(self) -> list[Any]:
        """Every value, in order; of a finite dimension."""
        if self.values is not None:
            return list(self.values)
        assert self.int is not None, "a continuous dimension has no list"
        return list(range(self.int[0], self.int[1] + 1))

    def probes(self) -> list[Any]:
        """Values to try whether a recipe takes them: all that are listed, or both ends."""
        return self.listed() if self.values is not None else list(self.int or self.uniform or self.loguniform or ())

    def draw(self, rng: random.Random) -> Any:
        if self.values is not None:
            return rng.choice(self.values)
        if self.int is not None:
            return rng.randint(*self.int)
        if self.uniform is not None:
            return rng.uniform(*self.uniform)
        assert self.loguniform is not None
        return math.exp(rng.uniform(*(math.log(end) for end in self.loguniform)))

    def settings(self, key: str, value: Any) -> list[str]:
        """The overrides that set `key` to a value of this dimension."""
        if self.simplex is not None:
            value = {self.simplex[0]: float(value), self.simplex[1]: round(1.0 - float(value), 12)}
        emptied = [f"{key}={{}}"] if isinstance(value, dict) else []  # first: a mapping adds to the one it lies on
        return [*emptied, f"{key}={_yaml(value)}"]


class Search(Section):
    algorithm: Literal["grid", "random", "tpe", "nsga2"] = "grid"
    trials: int = Field(20, gt=0)  # not of a grid, which tries every point
    seed: int = 0


class Tune(Section):
    """Other settings, passed on under their own names."""

    sampler: dict[str, Any] = Field(default={})  # optuna.samplers.TPESampler or NSGAIISampler
    scheduler: dict[str, Any] = Field(default={})  # ray.tune.schedulers.ASHAScheduler
    config: dict[str, Any] = Field(default={})  # ray.tune.TuneConfig


def _leaves(key: str, value: Any) -> list[str]:
    """Dotted keys of what an override sets."""
    if not isinstance(value, Mapping) or not value:
        return [key]
    return [leaf for name, one in value.items() for leaf in _leaves(f"{key}.{name}", one)]


class SweepRecipe(Section):
    """Of jobs/sweep.py."""

    job: Literal["sweep"] = "sweep"
    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$")
    recipe: str  # what the trials run; its path from the sweep's file
    overrides: dict[str, Any] = Field(default={})  # of every trial, by dotted key
    search: Search = Search()
    space: dict[str, Dimension] = Field(min_length=1)  # by dotted key
    metrics: dict[str, Literal["max", "min"]] = Field(
        {"reward": "max", "kl": "min"}, min_length=1
    )  # figures of a trial
    scheduler: Literal["none", "asha"] = "none"
    max_concurrent: int = Field(1, gt=0)  # trials at a time; each holds its actors' resources
    tune: Tune = Tune()
    # What `recipe` held when it was read first: a search takes hours, and whoever edits the file meanwhile means the next one.
    _read: dict[str, Any] | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _consistent(self) -> SweepRecipe:
        if self.search.algorithm == "grid":
            endless = [key for key, dimension in self.space.items() if not dimension.finite]
            if endless:
                raise ValueError(
                    f"search.algorithm grid needs values or int in every dimension, space.{endless[0]} is continuous: list "
                    "values, or take random, tpe or nsga2"
                )
        if self.scheduler == "asha" and len(self.metrics) != 1:
            raise ValueError(
                f"scheduler asha compares trials by one figure, metrics names {len(self.metrics)} ({', '.join(self.metrics)}): "
                "give one, for example hypervolume, or scheduler: none"
            )
        leaves = [leaf for key, value in self.overrides.items() for leaf in _leaves(key, value)]
        for key in self.space:
            for other in (*leaves, *(one for one in self.space if one != key)):
                if f"{other}.".startswith(f"{key}."):
                    raise ValueError(
                        f"{key} stands in overrides and in space: give it once"
                        if key == other
                        else f"{key} in space holds {other}: one would undo the other, give it once"
                    )
                if f"{key}.".startswith(f"{other}."):
                    raise ValueError(f"{other} holds {key} in space: one would undo the other, give it once")
        for key in (*self.space, *self.overrides):
            if key in ("name", "job"):
                raise ValueError(
                    f"{key} is no key to search or override: the sweep gives each trial its name and its job"
                )
        return self

    @property
    def adaptive(self) -> bool:
        """Whether the next point depends on what came back."""
        return self.search.algorithm in ("tpe", "nsga2")

    def grid(self) -> list[Point]:
        """Every point of a finite space; the last dimension changes fastest."""
        listed = [dimension.listed() for dimension in self.space.values()]
        return [dict(zip(self.space, values, strict=True)) for values in itertools.product(*listed)]

    def points(self) -> list[Point]:
        """The points of a grid or random search, the same for the same seed and each once. Of an adaptive one: none yet."""
        if self.adaptive:
            return []
        if self.search.algorithm == "grid":
            return self.grid()
        rng = random.Random(self.search.seed)
        if all(dimension.finite for dimension in self.space.values()):
            sizes = [_size(dimension) for dimension in self.space.values()]  # their product may be beyond any list
            count = math.prod(sizes)
            return [self._at(place, sizes) for place in rng.sample(range(count), min(self.search.trials, count))]
        return [{key: d.draw(rng) for key, d in self.space.items()} for _ in range(self.search.trials)]

    def _at(self, place: int, sizes: list[int]) -> Point:
        """A point of the grid by its place in it."""
        point: Point = {}
        for (key, dimension), size in zip(reversed(self.space.items()), reversed(sizes), strict=True):
            place, own = divmod(place, size)
            point[key] = _value(dimension, own)
        return {key: point[key] for key in self.space}

    def largest(self) -> Point:
        """The last value of a list, the upper end of a range, and of numbers the largest: what may ask for most."""
        return {
            key: max(probes) if all(isinstance(one, int | float) for one in probes) else probes[-1]
            for key, probes in ((key, dimension.probes()) for key, dimension in self.space.items())
        }

    def probes(self) -> list[Point]:
        """Points at which a fault of the space shows: listed values and both ends of ranges, one dimension at a time."""
        first = {key: dimension.probes()[0] for key, dimension in self.space.items()}
        return [first | {key: value} for key, dimension in self.space.items() for value in dimension.probes()]

    def headings(self) -> dict[str, str]:
        """Keys of the space as a table calls them: a simplex by the objective whose weight its values are."""
        return {
            key: f"weight of {dimension.simplex[0]}" if dimension.simplex is not None else key
            for key, dimension in self.space.items()
        }

    def trial_overrides(self, point: Mapping[str, Any]) -> list[str]:
        """`key=value` for everything in which a trial differs from the recipe that it runs."""
        common = [f"{key}={_yaml(value)}" for key, value in self.overrides.items()]
        return common + [line for key, dimension in self.space.items() for line in dimension.settings(key, point[key])]

    def trial(self, point: Mapping[str, Any], name: str) -> Run:
        """The recipe of one trial. Raises ConfigError."""
        return self._load([*self.trial_overrides(point), f"name={_yaml(name)}"])

    def base(self) -> Run:
        """The recipe that trials run, with `overrides`, before the space. Raises ConfigError."""
        return self._load([f"{key}={_yaml(value)}" for key, value in self.overrides.items()])

    def _load(self, overrides: list[str]) -> Run:
        from rhumbline.config import JOBS, validate

        if self._read is None:
            self._read = read(self.recipe)
        job = str(self._read.get("job", "dpa"))
        if job not in JOBS:
            raise ConfigError(
                f"{self.recipe} is of jobs/{job}.py (its key job), which trials cannot run.{did_you_mean(job, JOBS)} "
                f"They run {', '.join(JOBS)}"
            )
        return validate(laid_over(deepcopy(self._read), overrides), self.recipe, kind=JOBS[job])


def _size(dimension: Dimension) -> int:
    """How many values a finite dimension has."""
    if dimension.values is not None:
        return len(dimension.values)
    assert dimension.int is not None, "a continuous dimension has no list"
    return dimension.int[1] - dimension.int[0] + 1


def _value(dimension: Dimension, place: int) -> Any:
    """One of them."""
    if dimension.values is not None:
        return dimension.values[place]
    assert dimension.int is not None, "a continuous dimension has no list"
    return dimension.int[0] + place


def load_sweep(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> SweepRecipe:
    """Read the recipe of a search and try its space on the recipe that trials run. Raises ConfigError.

    Names of losses, advantages and estimators are tried by `try_space`, with `plan.check`. `recipe` comes back as a path from
    where one stands. An override of the sweep is `search.trials=40`; one of its trials is `overrides={learner.lr: 1e-4}`.
    """
    raw = read(path, overrides, example="search.trials=40")
    if raw.get("job", "sweep") != "sweep":
        raise ConfigError(f"{path} is a recipe of jobs/{raw['job']}.py (its key job), not of jobs/sweep.py")
    sweep = build(SweepRecipe, raw, str(path))
    sweep = sweep.model_copy(update={"recipe": os.path.normpath(Path(path).parent / sweep.recipe)})
    _try(sweep, str(path))
    return sweep


def try_space(sweep: SweepRecipe, look: Callable[[Run], object], origin: str) -> None:
    """Show `look` the recipe at every probe of the space. Raises ConfigError, with the point, for a UserError of it.

    Whether names of losses and estimators are known and inputs are there, no recipe says by itself: `plan.check` and `Plan.make`
    are what else to look with.
    """
    for point in sweep.probes():
        try:
            look(sweep.trial(point, "probe"))
        except UserError as e:
            shown = ", ".join(f"{name}: {point[name]!r}" for name in sweep.space)
            raise ConfigError(f"{origin}: space, at {{{shown}}}: {e}") from None


def _try(sweep: SweepRecipe, origin: str) -> None:
    """The base and every probe make a recipe that can be a trial. Raises ConfigError."""
    try:
        base = sweep.base()
    except ConfigError as e:
        raise ConfigError(f"{origin}: recipe, with overrides: {e}") from None
    _check_metrics(sweep, base, origin)
    try_space(sweep, lambda trial: _check_trial(sweep, trial), origin)


def _check_metrics(sweep: SweepRecipe, base: Run, origin: str) -> None:
    """Raises ConfigError for a figure that no trial reports."""
    known = [*FIGURES, *(f"objective/{name}" for name in base.rewards.objectives)]
    for name in sweep.metrics:
        if name not in known:
            raise ConfigError(
                f"{origin}: metrics.{name}: no trial reports that figure.{did_you_mean(name, known)} Known: {', '.join(known)}"
            )


def _check_trial(sweep: SweepRecipe, trial: Run) -> None:
    """Raises ConfigError for a recipe that runs by itself, and not as a trial of this search."""
    if sweep.scheduler == "asha" and isinstance(trial, OnlineRecipe) and trial.evaluate_every == 0:
        raise ConfigError(
            "scheduler asha stops trials by figures on the way, and evaluate_every is 0: the last policy alone is evaluated. "
            "Give evaluate_every, for example in overrides, or scheduler: none"
        )
    if "kl" in sweep.metrics and not trial.evaluation.kl:
        raise ConfigError("metrics names kl, and evaluation.kl is false: set it to true, or leave kl out of metrics")
    if "win_rate" in sweep.metrics and trial.evaluation.win_rate is None:
        raise ConfigError(
            "metrics names win_rate, and the recipe has no evaluation.win_rate: give the head of a scorer, for example "
            "overrides={evaluation.win_rate.head: helpfulness}, or leave win_rate out of metrics"
        )
    if isinstance(trial, SoupRecipe) and trial.train is not None:
        raise ConfigError(
            f"train is {trial.train}: the runs that train a soup's policies ask for resources that no trial holds. Train them "
            "before, and name them in policies"
        )


def _yaml(value: Any) -> str:
    """A value as an override spells it: on one line, and 1e-05 as the number 1.0e-05, which YAML 1.1 reads as one."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()
