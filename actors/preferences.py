"""Where the pairs of jobs/dpo.py come from: files, another run's samples, or the policy's own.

given = Preferences(recipe)
given.elsewhere                        # files or another run: there is nothing to sample
given.samples(plan, standardiser)      # Pair or Judged, as the recipe's loss wants them
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from rhumbline import config
from rhumbline.codecs import Codec
from rhumbline.data.comparisons import Comparison, load_comparisons
from rhumbline.data.prompts import Splits, turn_id
from rhumbline.directions import Direction
from rhumbline.errors import ConfigError, DataError, RunError, did_you_mean
from rhumbline.examples import judged_from, judged_of_people, pairs_from, pairs_of_people
from rhumbline.losses import PAIRED_LOSSES, UNPAIRED_LOSSES
from rhumbline.plan import Plan
from rhumbline.queries import ask
from rhumbline.records import Judged, Pair, Query, Scored
from rhumbline.scalarise import Standardiser
from rhumbline.selection import asked_under, extremes
from rhumbline.store import RunStore

Samples = list[Pair] | list[Judged]


class Preferences:
    """The recipe's pairs, and what must be said about them."""

    def __init__(self, recipe: config.DpoRecipe) -> None:
        known = [*PAIRED_LOSSES, *UNPAIRED_LOSSES]
        if recipe.loss.kind not in known:
            near = did_you_mean(recipe.loss.kind, known)
            raise ConfigError(f"unknown loss {recipe.loss.kind!r} (loss.kind).{near} Known: {', '.join(known)}")
        self.recipe = recipe
        self.single = recipe.loss.kind in UNPAIRED_LOSSES
        self.notes: list[str] = []
        self.source = None if recipe.store is None else _same_objectives(recipe, Path(recipe.store.run))

    @property
    def elsewhere(self) -> bool:
        return self.recipe.pairs is not None or self.recipe.store is not None

    def inputs(self) -> dict[str, str]:
        """Hashes of what is read from elsewhere: a run that goes on must find the same."""
        found = {}
        for name, data in (self.recipe.pairs or {}).items():
            path = Path(data.path).expanduser()
            if path.is_file():
                found[f"pairs {name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        if self.source is not None:
            shards = "".join(shard.sha256 for shard in self.source.all_shards("scores"))
            found["samples of the other run"] = hashlib.sha256(shards.encode()).hexdigest()
        return found

    def calibrate(self, store: RunStore) -> None:
        """Take the other run's calibration over, so that its rewards weigh here as they did there."""
        if self.source is None or store.marked("rewards/calibration") is not None:
            return
        known = self.source.marked("rewards/calibration")
        if known is not None and self.recipe.initial.strategy == "none":
            store.mark("rewards/calibration", known)

    def samples(self, plan: Plan, standardiser: Standardiser) -> Samples:
        """From files, or from the other run's store."""
        if self.recipe.pairs is not None:
            return self._of_people(plan.splits)
        assert self.source is not None
        return self._of_run(plan, standardiser)

    def ranked(
        self, scored: Sequence[Scored], queries: Sequence[Query], codec: Codec, standardiser: Standardiser
    ) -> Samples:
        """From the policy's own samples, for the directions that their prompts were asked under."""
        return self._ranked(scored, asked_under(queries), codec, standardiser)

    def _ranked(
        self,
        scored: Iterable[Scored],
        directions: Mapping[str, Sequence[Direction]],
        codec: Codec,
        standardiser: Standardiser,
    ) -> Samples:
        found = extremes(scored, directions, standardiser)
        make = judged_from if self.single else pairs_from
        kept: Samples = make(found, codec, gap=self.recipe.gap)
        if not kept:
            raise DataError(
                f"no pair is left: of {len(found)} rankings none has two answers with different rewards, at least "
                f"{self.recipe.gap:g} apart (gap): raise samples, or lower gap"
            )
        return kept

    def _of_people(self, splits: Splits) -> Samples:
        """Judgements about prompts that are held out for evaluation are left out."""
        held = {turn_id(prompt) for prompt in (*splits.evaluation, *splits.left_out)}
        rows: list[Comparison] = []
        dropped = 0
        for data in (self.recipe.pairs or {}).values():
            options = data.model_dump(exclude={"path", "split", "limit"})
            found = load_comparisons(data.path, data.split, data.limit, **options)
            usable = [one for one in found.rows if turn_id(one.prompt) not in held]
            dropped += len(found.rows) - len(usable)
            rows += usable
        ties = sum(one.winner == "tie" for one in rows)
        self.notes = [
            f"{len(rows) - ties} judged pairs; {ties} ties and {dropped} about held-out prompts were left out."
        ]
        kept: Samples = judged_of_people(rows) if self.single else pairs_of_people(rows)
        if not kept:
            raise DataError(f"no pair is left of {', '.join(self.recipe.pairs or {})} (pairs): {self.notes[0]}")
        return kept

    def _of_run(self, plan: Plan, standardiser: Standardiser) -> Samples:
        assert self.source is not None
        assert self.recipe.store is not None
        wanted = self.recipe.store.iterations
        stages = dict.fromkeys(shard.stage for shard in self.source.all_shards("scores"))
        stages = {s: None for s in stages if s.startswith("iterations/")}
        if wanted is not None:
            stages = {stage: None for stage in stages if int(stage.split("=")[1].split("/")[0]) in wanted}
        held = {turn_id(prompt) for prompt in (*plan.splits.evaluation, *plan.splits.left_out)}
        scored = [
            one
            for stage in stages
            for one in self.source.read(stage, Scored)
            if turn_id(one.completion.query.prompt) not in held
        ]
        prompts = list({one.completion.query.prompt.id: one.completion.query.prompt for one in scored}.values())
        if not prompts:
            raise DataError(
                f"{self.recipe.store.run} holds no scored samples of the iterations {wanted or 'that it made'} for prompts that "
                "are not held out here (store.run, store.iterations)"
            )
        queries = ask(prompts, plan.cone, plan.codec, self.recipe.directions, iteration=1, seed=self.recipe.seed)
        self.notes = [f"{len(scored)} samples of {len(prompts)} prompts come from {self.source.path.name}."]
        return self._ranked(scored, asked_under(queries), plan.codec, standardiser)


def _same_objectives(recipe: config.DpoRecipe, run: Path) -> RunStore:
    """The other run, opened for reading. Raises RunError where its rewards are of other objectives."""
    store = RunStore.open(run)
    raw = yaml.safe_load((store.path / "recipe.resolved.yaml").read_text(encoding="utf-8"))
    theirs = raw.get("rewards", {}).get("objectives", {})
    ours = recipe.model_dump(mode="json")["rewards"]["objectives"]
    if theirs != ours:
        raise RunError(
            f"{run} was scored for the objectives {', '.join(theirs)}, the recipe names {', '.join(ours)} "
            "(rewards.objectives): they must be the same, in heads and order"
        )
    return store
