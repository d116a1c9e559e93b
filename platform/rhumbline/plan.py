"""What a recipe will do, before it does it: `--dry-run`. Checks everything that needs neither Ray nor weights.

plan = Plan.make(recipe)
print("\\n".join(plan.lines()))         # prompts, samples, tokens, actors wanted, three rendered training samples
plan.wanted                            # [Want(role='generator', count=1, num_cpus=1.0, num_gpus=0.0), ...]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhumbline import codecs, steering
from rhumbline.codecs import Codec, conversation
from rhumbline.config import Recipe, Style
from rhumbline.data.chat import prompt_ids
from rhumbline.data.prompts import Splits, load_prompts, split_by_hash
from rhumbline.directions import Cone, angle_deg, from_angle_deg, region, text
from rhumbline.errors import ConfigError, DataError, HubError
from rhumbline.learning import embedded
from rhumbline.queries import ask, said_in
from rhumbline.records import Query
from rhumbline.rewards.model import RewardModel

RESPONSE = "(the response that is sampled, scored and kept)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """Actors of one role and what each needs of the cluster."""

    role: str
    count: int
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One stage: what is asked, and at most how much comes back."""

    stage: str
    prompts: int
    queries: int
    samples: int
    max_tokens: int  # response tokens at most


@dataclass(frozen=True, slots=True)
class Plan:
    recipe: Recipe
    splits: Splits
    cone: Cone
    codec: Codec
    sizes: tuple[Size, ...]
    wanted: tuple[Want, ...]
    unknown: str = ""  # why the prompts could not be counted; such a plan can be shown, not run

    @classmethod
    def make(cls, recipe: Recipe, *, policy: Path | None = None, dry_run: bool = False) -> Plan:
        """Load the prompts, build region and codec, count. Raises the UserError that the run would end with.

        policy: a finished checkpoint that is to be judged; prompts that it, or t=0's adapter, was trained on are not held out.
        dry_run: prompts of a hub that cannot be reached from here are left uncounted: the cluster may reach it.
        """
        names = list(recipe.rewards.objectives)
        cone = region(recipe.directions, names)
        codec = codecs.make(recipe.directions.codec, names, recipe.directions.codec_options)
        for direction_K in cone.grid(9):  # a codec that cannot say the region fails here, not after an hour
            codec.render(tuple(direction_K.tolist()))
        check_first(recipe, codec, dry_run=dry_run)
        try:
            prompts = load_prompts(recipe.prompts.path, recipe.prompts.split, recipe.prompts.limit)
        except HubError as e:
            if not dry_run:
                raise
            empty = Splits(d1=(), d2=(), evaluation=(), left_out=())
            return cls(recipe, empty, cone, codec, (), tuple(wanted(recipe)), str(e))
        trained_on = steering.read_trained_on(policy if policy is not None else _adapter(recipe) or "")
        splits = split_by_hash(prompts, recipe.prompts.evaluation, recipe.seed, trained_on)
        return cls(recipe, splits, cone, codec, tuple(_sizes(recipe, splits)), tuple(wanted(recipe)))

    def check_prompts(self, tokenizer: Any) -> None:
        """Raises DataError for a prompt that is longer than prompts.max_prompt_tokens or the generator's context."""
        settings, context = self.recipe.prompts, self.recipe.generator.engine.get("max_model_len")
        longest = max(self.recipe.sampling.max_tokens, self.recipe.evaluation.sampling.max_tokens)
        direction = tuple(self.cone.grid(2)[-1].tolist())
        wordiest = max(self.recipe.initial.styles.values(), key=lambda style: len(style.words), default=Style())
        for prompt in (*self.splits.train, *self.splits.evaluation):
            asked = conversation(self.codec, direction, said_in(wordiest, prompt.messages))
            tokens = len(prompt_ids(asked, tokenizer))
            if tokens > settings.max_prompt_tokens:
                raise DataError(
                    f"{settings.path}: prompt {prompt.id} has {tokens} tokens with its direction and words, more than "
                    f"{settings.max_prompt_tokens} (prompts.max_prompt_tokens): shorten or drop it, or raise the limit"
                )
            if context is not None and tokens + longest > int(context):
                raise DataError(
                    f"{settings.path}: prompt {prompt.id} has {tokens} tokens with its direction and words, which with "
                    f"{longest} sampled ones exceeds the context of {context} (generator.engine.max_model_len)"
                )

    def queries(self, t: int, codec: Codec) -> list[Query]:
        """What iteration t asks, in the codec that policy t - 1 understands."""
        recipe, initial = self.recipe, self.recipe.initial
        return ask(
            self.splits.half(t),
            self.cone,
            codec,
            recipe.directions,
            iteration=t,
            seed=recipe.seed,
            styles=initial.styles,
            styled_share=initial.fade**t,
        )

    def first_queries(self, n: int) -> list[Query]:
        """Of the first n prompts of t=1 one query each, as it will be asked."""
        return self.queries(1, self.codec)[:: self.recipe.directions.per_prompt][:n]

    def grid(self) -> list[tuple[float, ...]]:
        """The directions that every policy is evaluated on."""
        evaluation = self.recipe.evaluation
        if evaluation.angles_deg is not None:
            return [from_angle_deg(a) for a in evaluation.angles_deg]
        return [tuple(v_K.tolist()) for v_K in self.cone.grid(evaluation.grid)]

    def lines(self, rendered: Sequence[str] = ()) -> list[str]:
        """For people. `rendered`: training samples with their loss mask, where a tokenizer could be had."""
        recipe, names = self.recipe, self.cone.names
        out = [
            f"recipe      {recipe.name} (seed {recipe.seed})",
            f"objectives  {', '.join(f'{n} ({o.sign:+d})' for n, o in recipe.rewards.objectives.items())}",
            f"region      {self.cone.half_angle_deg:g} degrees around {text(self.cone.axis, names)}, "
            f"said by {self.codec.version} within {self.codec.precision_deg:.1f} degrees",
        ]
        if self.unknown:
            out.append(f"prompts     not counted: {self.unknown}")
        else:
            out += self._counts()
        out += ["", "evaluated on " + "; ".join(self._said(v) for v in self.grid())]
        for number, sample in enumerate(rendered, 1):
            out += ["", f"training sample {number} (what carries the loss stands in brackets)", sample]
        return out

    def _counts(self) -> list[str]:
        out = [
            f"prompts     {len(self.splits.d1)} + {len(self.splits.d2)} in two halves, "
            f"{len(self.splits.evaluation)} held out, {len(self.splits.left_out)} left out (same first turn)",
            "",
            f"{'stage':<16}{'prompts':>9}{'queries':>9}{'samples':>9}{'tokens at most':>16}",
        ]
        out += [f"{s.stage:<16}{s.prompts:>9,}{s.queries:>9,}{s.samples:>9,}{s.max_tokens:>16,}" for s in self.sizes]
        total = [sum(getattr(s, f) for s in self.sizes) for f in ("prompts", "queries", "samples", "max_tokens")]
        return [*out, f"{'total':<16}{total[0]:>9,}{total[1]:>9,}{total[2]:>9,}{total[3]:>16,}"]

    def _said(self, direction: tuple[float, ...]) -> str:
        return f"{angle_deg(direction):.1f}°" if len(direction) == 2 else text(direction, self.cone.names)


def check_first(recipe: Recipe, codec: Codec, *, dry_run: bool = False) -> None:
    """Rewards and t=0, as far as they can be judged without weights. Raises ConfigError or CodecError.

    dry_run: a reward model that is not on this machine is left to the cluster.
    """
    names = tuple(recipe.rewards.objectives)
    try:
        model = RewardModel.build(recipe.rewards, tokenise=lambda _: [])
    except ConfigError:
        if dry_run and any(s.kind == "regression" and not Path(s.path).exists() for s in recipe.rewards.sources):
            return
        raise
    folder = _adapter(recipe)
    if folder is not None:
        steering.read(folder).require(objectives=names, codec=codec, reward_model=model.id)


def _adapter(recipe: Recipe) -> Path | None:
    """The finished policy that t=0 is, where the recipe says so."""
    if recipe.initial.strategy != "adapter":
        return None
    return embedded.adapter() if recipe.initial.adapter == "embedded" else Path(str(recipe.initial.adapter))


def wanted(recipe: Recipe) -> list[Want]:
    """Actors of a run, as `actors.crew` starts them. Generators, scorers and learner hold their resources side by side."""
    generator, scorer, learner = recipe.generator, recipe.scorer, recipe.learner
    out = [
        Want(role="generator", count=generator.replicas, num_cpus=generator.num_cpus, num_gpus=generator.num_gpus),
        Want(role="scorer", count=scorer.replicas, num_cpus=scorer.num_cpus, num_gpus=scorer.num_gpus),
        Want(role="learner", count=learner.num_workers, num_cpus=learner.num_cpus, num_gpus=learner.num_gpus),
    ]
    if recipe.evaluation.kl:
        out.append(Want(role="reference", count=1, num_cpus=scorer.num_cpus, num_gpus=scorer.num_gpus))
    return out


def _sizes(recipe: Recipe, splits: Splits) -> list[Size]:
    def size(stage: str, prompts: int, queries_each: int, samples_each: int, max_tokens: int) -> Size:
        queries = prompts * queries_each
        samples = queries * samples_each
        return Size(stage=stage, prompts=prompts, queries=queries, samples=samples, max_tokens=samples * max_tokens)

    out, longest = [], recipe.sampling.max_tokens
    if recipe.initial.strategy == "relabel":
        if not splits.d2:
            raise DataError("no prompts are left for t=0 (prompts.limit, prompts.evaluation)")
        each = sum(style.samples for style in recipe.initial.styles.values())
        out.append(size("t=0", len(splits.d2), each, 1, longest))
    for t in range(1, recipe.iterations + 1):
        out.append(size(f"t={t}", len(splits.half(t)), recipe.directions.per_prompt, recipe.samples, longest))
    evaluation = recipe.evaluation
    grid = len(evaluation.angles_deg) if evaluation.angles_deg is not None else evaluation.grid
    policies = recipe.iterations + 1
    held = len(splits.evaluation)
    if evaluation.initial_policy:
        out.append(size("evaluation, t=-", held, 1, evaluation.samples, evaluation.sampling.max_tokens))
    out.append(size("evaluation", held, grid * policies, evaluation.samples, evaluation.sampling.max_tokens))
    return out
