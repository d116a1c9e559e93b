"""What a recipe will do, before it does it: `--dry-run`. Checks everything that needs neither Ray nor weights.

plan = Plan.make(recipe)
print("\\n".join(plan.lines()))         # prompts, samples, tokens, actors wanted, three rendered training samples
plan.wanted                            # [Want(role='generator', count=1, num_cpus=1.0, num_gpus=0.0), ...]
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rhumbline import codecs, steering
from rhumbline.codecs import Codec
from rhumbline.config import DpoRecipe, OnlineRecipe, Recipe, Run, SoupRecipe
from rhumbline.data.prompts import Splits, load_prompts, prompt_id_of, split_by_hash, turn_id
from rhumbline.data.ratings import Rated, load_ratings
from rhumbline.directions import Cone, angle_deg, from_angle_deg, parse, region, text
from rhumbline.errors import CodecError, ConfigError, DataError, HubError, UserError
from rhumbline.learning import embedded
from rhumbline.learning.policy import load_tokenizer, resolve, weights_of
from rhumbline.lengths import Asked
from rhumbline.losses import check_loss, check_update
from rhumbline.profiles import Profile, profiles_of
from rhumbline.queries import ask, batch_of
from rhumbline.records import Prompt, Query
from rhumbline.rewards.model import RewardModel

logger = logging.getLogger(__name__)

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
    max_tokens: int  # response tokens that are sampled, at most; none where the answers are given


@dataclass(frozen=True, slots=True)
class Plan:
    recipe: Run
    splits: Splits
    cone: Cone
    codec: Codec
    sizes: tuple[Size, ...]
    wanted: tuple[Want, ...]
    rated: tuple[Rated, ...] = ()  # steerlm: all rows of initial.labelled; `labelled` says which are used
    profiles: Mapping[str, Profile] = field(default_factory=dict)  # held-out prompt's id -> who asks; most have none
    dropped: int = 0  # prompts that were too long (prompts.too_long)
    unknown: str = ""  # why the prompts could not be counted; such a plan can be shown, not run

    @classmethod
    def make(cls, recipe: Run, *, dry_run: bool = False) -> Plan:
        """Load the prompts, build region and codec, count. Raises the UserError that the run would end with.

        Prompts that a finished policy to start from was trained on are not held out.
        dry_run: data of a hub that cannot be reached from here are left uncounted: the cluster may reach it.
        """
        cone, codec = check(recipe, dry_run=dry_run)
        steerlm = recipe.initial.strategy == "steerlm"
        try:
            prompts = load_prompts(recipe.prompts.path, recipe.prompts.split, recipe.prompts.limit)
            rated = tuple(load_ratings(str(recipe.initial.labelled))) if steerlm else ()
        except HubError as e:
            if not dry_run:
                raise
            empty = Splits(d1=(), d2=(), evaluation=(), left_out=())
            return cls(recipe, empty, cone, codec, (), tuple(wanted(recipe)), unknown=str(e))
        fitting = _fitting(recipe, prompts, codec, _grid(recipe, cone)[-1], dry_run=dry_run)
        dropped, prompts = len(prompts) - len(fitting), fitting
        started_from = [_adapter(recipe), Path(recipe.policy.initial).expanduser()]
        if isinstance(recipe, SoupRecipe):
            started_from += [Path(folder).expanduser() for folder in recipe.policies.values()]
        trained_on = frozenset[str]().union(*(steering.read_trained_on(f) for f in started_from if f is not None))
        splits = split_by_hash(prompts, recipe.prompts.evaluation, recipe.seed, trained_on)
        _enough(recipe, splits)
        usable = _not_held_out(rated, splits)
        if steerlm and len(usable) < 2:  # the calibration needs two
            raise DataError(
                f"{recipe.initial.labelled}: {len(usable)} of {len(rated)} labelled answers are to prompts that are not held "
                "out for evaluation, t=0 needs 2 (initial.labelled, prompts.evaluation)"
            )
        sizes, profiles = tuple(_sizes(recipe, splits, usable)), profiles_of(recipe, splits.evaluation)
        return cls(recipe, splits, cone, codec, sizes, tuple(wanted(recipe)), rated, profiles, dropped)

    def labelled(self) -> tuple[list[Rated], int]:
        """steerlm: the labelled answers that t=0 learns, and how many were dropped: those to prompts that are held out.

        A prompt counts as held out where its first turn is that of an evaluation prompt or of one that was left out.
        """
        usable = _not_held_out(self.rated, self.splits)
        return usable, len(self.rated) - len(usable)

    def without(self, prompts: Sequence[Prompt]) -> Plan:
        """The same run, but for the training prompts that share their first turn with one of these.

        Raises DataError where a step would ask more prompts than are left.
        """
        held = {turn_id(prompt) for prompt in prompts}
        d1, d2 = (tuple(p for p in half if turn_id(p) not in held) for half in (self.splits.d1, self.splits.d2))
        splits = replace(self.splits, d1=d1, d2=d2)
        _enough(self.recipe, splits)
        sizes = tuple(_sizes(self.recipe, splits, _not_held_out(self.rated, splits)))
        return replace(self, splits=splits, sizes=sizes)

    def inputs(self) -> dict[str, str]:
        """Hashes of what a run reads from elsewhere. One that goes on must find the same.

        Raises ConfigError where policy.initial is not to be had.
        """
        parts = (self.splits.d1, self.splits.d2, self.splits.evaluation)
        prompts = "\n".join(" ".join(prompt_id_of(prompt.messages) for prompt in part) for part in parts)
        model, judge = RewardModel.build(self.recipe.rewards, tokenise=lambda _: []), self.recipe.evaluation.win_rate
        found = {"prompts": hashlib.sha256(prompts.encode()).hexdigest(), "reward model": model.id}
        found["policy (policy.initial)"] = weights_of(self.recipe.policy.initial)
        if judge is not None:
            found["scorer of the win rate (evaluation.win_rate)"] = model.source_of(judge.head).id
        folder = _adapter(self.recipe)
        if folder is not None:
            digest = hashlib.sha256()
            for file in sorted(folder.glob("*.safetensors")):
                digest.update(file.read_bytes())
            found["policy (initial.adapter)"] = digest.hexdigest()
        if self.rated:
            found["labelled answers"] = hashlib.sha256(repr(self.rated).encode()).hexdigest()
        return found

    def check_prompts(self, tokenizer: Any, context: int | None = None) -> None:
        """Raises DataError for a prompt that is longer than prompts.max_prompt_tokens or the context.

        context: what the model itself can read (max_position_embeddings); generator.engine.max_model_len goes before it.
        """
        prompts = (*self.splits.train, *self.splits.evaluation)
        Asked(self.recipe, self.codec, self.grid()[-1], self.profiles).check(prompts, tokenizer, context)

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

    def step_queries(self, step: int, prompts_per_step: int) -> list[Query]:
        """What a step of online training asks, from 1: a batch of the training prompts, under drawn or fixed directions."""
        recipe = self.recipe
        prompts = batch_of(self.splits.train, step, prompts_per_step, seed=recipe.seed)
        return ask(prompts, self.cone, self.codec, recipe.directions, iteration=step, seed=recipe.seed)

    def first_queries(self, n: int) -> list[Query]:
        """Of the first n prompts of t=1 one query each, as it is trained on: no style's words beside the direction."""
        recipe, prompts = self.recipe, self.splits.half(1)[:n]
        queries = ask(prompts, self.cone, self.codec, recipe.directions, iteration=1, seed=recipe.seed)
        return queries[:: recipe.directions.per_prompt]

    def grid(self) -> list[tuple[float, ...]]:
        """The directions that every policy is evaluated on."""
        return _grid(self.recipe, self.cone)

    def lines(self, rendered: Sequence[str] = ()) -> list[str]:
        """For people. `rendered`: training samples with their loss mask, where a tokenizer could be had."""
        recipe, names = self.recipe, self.cone.names
        out = [
            f"recipe      {recipe.name} (seed {recipe.seed})",
            f"objectives  {', '.join(f'{n} ({o.sign:+d})' for n, o in recipe.rewards.objectives.items())}",
            f"region      {self.cone.half_angle_deg:g} degrees around {text(self.cone.axis, names)}, "
            f"said by {self.codec.version} within {self.codec.precision_deg:.1f} degrees",
        ]
        if recipe.directions.fixed is not None:
            where = "in every prompt" if recipe.directions.said else "in no prompt"
            out[-1] = f"direction   {text(parse(recipe.directions.fixed, names), names)}, said {where}"
        if self.unknown:
            out.append(f"prompts     not counted: {self.unknown}")
        else:
            out += self._counts()
        if recipe.steered or isinstance(recipe, SoupRecipe):
            out += ["", "evaluated on " + "; ".join(self._said(v) for v in self.grid())]
        for number, sample in enumerate(rendered, 1):
            out += ["", f"training sample {number} (what carries the loss stands in brackets)", sample]
        return out

    def _counts(self) -> list[str]:
        out = [
            f"prompts     {len(self.splits.d1)} + {len(self.splits.d2)} in two halves, "
            f"{len(self.splits.evaluation)} held out, {len(self.splits.left_out)} left out (same first turn)"
            + (f", {self.dropped} dropped (too long)" if self.dropped else ""),
            "",
            f"{'stage':<16}{'prompts':>9}{'queries':>9}{'samples':>9}{'tokens at most':>16}",
        ]
        out += [f"{s.stage:<16}{s.prompts:>9,}{s.queries:>9,}{s.samples:>9,}{s.max_tokens:>16,}" for s in self.sizes]
        total = [sum(getattr(s, f) for s in self.sizes) for f in ("prompts", "queries", "samples", "max_tokens")]
        return [*out, f"{'total':<16}{total[0]:>9,}{total[1]:>9,}{total[2]:>9,}{total[3]:>16,}"]

    def _said(self, direction: tuple[float, ...]) -> str:
        return f"{angle_deg(direction):.1f}°" if len(direction) == 2 else text(direction, self.cone.names)


def _enough(recipe: Run, splits: Splits) -> None:
    if isinstance(recipe, OnlineRecipe) and recipe.prompts_per_step > len(splits.train):
        raise DataError(
            f"{recipe.prompts.path}: {len(splits.train)} prompts to train on, a step asks {recipe.prompts_per_step} "
            "(prompts_per_step): lower it, or give more prompts (prompts.path, prompts.limit)"
        )


def _fitting(
    recipe: Run, prompts: list[Prompt], codec: Codec, direction: tuple[float, ...], *, dry_run: bool
) -> list[Prompt]:
    """The prompts of a run: without those that are too long, where it drops them.

    dry_run: where there is no tokenizer of the policy here, all of them.
    """
    if recipe.prompts.too_long == "refuse":  # that is found before a run is made (`check_prompts`)
        return prompts
    try:
        tokenizer = load_tokenizer(resolve(recipe.policy.initial), recipe.policy.trust_remote_code)
    except (UserError, OSError) as e:
        if not dry_run:
            raise
        logger.warning("prompts that are too long are not left out: no tokenizer here (policy.initial): %s", e)
        return prompts
    kept = Asked(recipe, codec, direction, profiles_of(recipe, prompts)).fitting(prompts, tokenizer)
    if not kept:
        raise DataError(
            f"{recipe.prompts.path}: all {len(prompts)} prompts have more than {recipe.prompts.max_prompt_tokens} tokens with "
            "their direction and words (prompts.max_prompt_tokens): raise the limit"
        )
    if len(kept) < len(prompts):
        told = "%s: %d of %d prompts left out, with more than %d tokens (prompts.max_prompt_tokens)"
        logger.info(told, recipe.prompts.path, len(prompts) - len(kept), len(prompts), recipe.prompts.max_prompt_tokens)
    return kept


def check(recipe: Run, *, dry_run: bool = False) -> tuple[Cone, Codec]:
    """Region and codec of a recipe, and whether the two, the rewards and t=0 go together. Reads no prompts.

    dry_run: a reward model that is not on this machine is left to the cluster. Raises the UserError of what does not fit.
    """
    names = list(recipe.rewards.objectives)
    if isinstance(recipe, DpoRecipe):
        check_loss(recipe.loss)
    if isinstance(recipe, OnlineRecipe):
        check_update(recipe.update(), recipe.section)
    if isinstance(recipe, SoupRecipe):
        for name, child in recipe.children().items():
            try:
                check(child, dry_run=dry_run)
            except UserError as e:
                raise ConfigError(f"{recipe.train}, for {name} alone: {e} (train)") from None
    cone = region(recipe.directions, names)
    codec = codecs.make(recipe.directions.codec, names, recipe.directions.codec_options)
    if not recipe.steered:
        check_first(recipe, codec, dry_run=dry_run)
        return cone, codec
    for direction_K in cone.grid(9):  # a codec that cannot say the region fails here, not after an hour
        codec.render(tuple(direction_K.tolist()))
    if recipe.directions.fixed is not None:
        try:
            codec.render(parse(recipe.directions.fixed, names))
        except CodecError as e:
            raise CodecError(f"directions.fixed: {e}. With directions.said: false it stands in no prompt") from None
    for direction in _grid(recipe, cone):
        try:
            codec.render(direction)
        except CodecError as e:
            key = "grid" if recipe.evaluation.angles_deg is None else "angles_deg"
            raise CodecError(f"evaluation.{key}: {e}") from None
    check_first(recipe, codec, dry_run=dry_run)
    return cone, codec


def check_first(recipe: Run, codec: Codec, *, dry_run: bool = False) -> None:
    """Rewards and t=0, as far as they can be judged without weights. Raises ConfigError or CodecError.

    dry_run: a reward model that is not on this machine is left to the cluster.
    """
    names = tuple(recipe.rewards.objectives)
    try:
        model = RewardModel.build(recipe.rewards, tokenise=lambda _: [])
    except ConfigError:
        if dry_run and elsewhere(recipe):
            return
        raise
    if recipe.evaluation.win_rate is not None:
        model.source_of(recipe.evaluation.win_rate.head, "evaluation.win_rate.head")
    folder = _adapter(recipe)
    if folder is not None:
        contract = steering.read(folder)
        contract.require(objectives=names, codec=codec, reward_model=model.id)
        contract.require_weights(folder)
        contract.require_initial(folder, recipe.policy.initial)


def elsewhere(recipe: Run) -> list[str]:
    """Files that the sources of rewards read and that are not on this machine; the embedded model always is."""
    keys = ("path", "reference", "length_removed")
    named = [getattr(source, key, None) for source in recipe.rewards.sources for key in keys]
    return [str(path) for path in named if path not in (None, "embedded") and not Path(path).expanduser().exists()]


def _grid(recipe: Run, cone: Cone) -> list[tuple[float, ...]]:
    if recipe.directions.fixed is not None:  # the one direction that is trained
        return [parse(recipe.directions.fixed, cone.names)]
    if recipe.evaluation.angles_deg is not None:
        return [from_angle_deg(a) for a in recipe.evaluation.angles_deg]
    return [tuple(v_K.tolist()) for v_K in cone.grid(recipe.evaluation.grid)]


def _not_held_out(rated: Sequence[Rated], splits: Splits) -> list[Rated]:
    held = {turn_id(prompt) for prompt in (*splits.evaluation, *splits.left_out)}
    return [row for row in rated if turn_id(row.prompt) not in held]


def _adapter(recipe: Run) -> Path | None:
    """The finished policy that t=0 is, where the recipe says so."""
    if recipe.initial.strategy != "adapter":
        return None
    return embedded.adapter() if recipe.initial.adapter == "embedded" else Path(str(recipe.initial.adapter))


def wanted(recipe: Run) -> list[Want]:
    """Actors of a run, as `actors.crew` starts them. Generators, scorers and learner hold their resources side by side."""
    generator, scorer, learner = recipe.generator, recipe.scorer, recipe.learner
    out = [
        Want(role="generator", count=generator.replicas, num_cpus=generator.num_cpus, num_gpus=generator.num_gpus),
        Want(role="scorer", count=scorer.replicas, num_cpus=scorer.num_cpus, num_gpus=scorer.num_gpus),
        Want(role="learner", count=learner.num_workers, num_cpus=learner.num_cpus, num_gpus=learner.num_gpus),
    ]
    if isinstance(recipe, SoupRecipe):  # policies are trained before, by runs that are checked by themselves
        out.pop()
    if recipe.evaluation.kl:
        out.append(Want(role="reference", count=1, num_cpus=scorer.num_cpus, num_gpus=scorer.num_gpus))
    return out


def _sizes(recipe: Run, splits: Splits, labelled: Sequence[Rated]) -> list[Size]:
    def size(stage: str, prompts: int, queries_each: int, samples_each: int, max_tokens: int) -> Size:
        queries = prompts * queries_each
        samples = queries * samples_each
        return Size(stage=stage, prompts=prompts, queries=queries, samples=samples, max_tokens=samples * max_tokens)

    out, longest = [], recipe.sampling.max_tokens
    if labelled:
        asked = len({row.prompt.id for row in labelled})
        out.append(Size(stage="t=0, labelled", prompts=asked, queries=asked, samples=len(labelled), max_tokens=0))
    if recipe.initial.strategy in ("relabel", "none"):
        each = sum(style.samples for style in recipe.initial.styles.values())
        out.append(size("t=0", len(splits.half(2)[: recipe.initial.prompts]), each, 1, longest))
    each = recipe.directions.per_prompt
    if isinstance(recipe, OnlineRecipe):
        out.append(size(f"{recipe.steps} steps", recipe.steps * recipe.prompts_per_step, each, recipe.samples, longest))
        policies = 1 + (recipe.steps - 1) // recipe.evaluate_every if recipe.evaluate_every else 1
        policies += recipe.initial.strategy != "none"  # the policy of t=0 too
    else:
        iterations = recipe.iterations if isinstance(recipe, Recipe | DpoRecipe) else 0
        if isinstance(recipe, DpoRecipe) and (recipe.pairs is not None or recipe.store is not None):
            iterations = 0  # nothing is sampled to learn from
        for t in range(1, iterations + 1):
            out.append(size(f"t={t}", len(splits.half(t)), each, recipe.samples, longest))
        policies = iterations + 1
    evaluation = recipe.evaluation
    grid = len(evaluation.angles_deg) if evaluation.angles_deg is not None else evaluation.grid
    if not recipe.steered and not isinstance(recipe, SoupRecipe):
        grid = 1
    held = len(splits.evaluation)
    if evaluation.initial_policy:
        out.append(size("evaluation, t=-", held, 1, evaluation.samples, evaluation.sampling.max_tokens))
    out.append(size("evaluation", held, grid * policies, evaluation.samples, evaluation.sampling.max_tokens))
    return out
