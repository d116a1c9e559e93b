"""Where the pairs of jobs/dpo.py come from: files, another run's samples, or the policy's own.

given = Preferences(recipe)
given.check(plan)                      # another run's samples: finished, and scored by the same reward model
given.elsewhere                        # files or another run: there is nothing to sample
given.samples(plan, standardiser)      # Pair or Judged, as the recipe's loss wants them
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from rhumbline import config, durable
from rhumbline.codecs import Codec
from rhumbline.data.comparisons import Comparison, load_comparisons
from rhumbline.data.dialogues import without_marks
from rhumbline.data.prompts import Splits, turn_id
from rhumbline.directions import Direction
from rhumbline.errors import DataError, RunError
from rhumbline.examples import joint_pairs_from, judged_from, judged_of_people, pairs_from, pairs_of_people
from rhumbline.learning.policy import load_tokenizer
from rhumbline.losses import UNPAIRED_LOSSES, check_loss
from rhumbline.plan import Plan
from rhumbline.queries import ask
from rhumbline.records import Example, Judged, Pair, Query, Scored
from rhumbline.scalarise import Standardiser
from rhumbline.selection import Extremes, asked_under, extremes
from rhumbline.store import RunStore

Samples = list[Pair] | list[Judged]
_ZERO = 1e-9  # a component of a unit vector below this is rounding, such as cos(90 degrees)


class Preferences:
    """The recipe's pairs, and what must be said about them."""

    def __init__(self, recipe: config.DpoRecipe) -> None:
        check_loss(recipe.loss)
        self.recipe = recipe
        self.single = recipe.loss.kind in UNPAIRED_LOSSES
        self.notes: list[str] = []
        self.trained_on: set[str] = set()  # turn ids of prompts that come from elsewhere
        self.source = None if recipe.store is None else _same_objectives(recipe, Path(recipe.store.run))
        self._judged: Samples | None = None  # of people, once they were read

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
            shards = "".join(shard.sha256 for stage in self._stages() for shard in self.source.shards(stage))
            found["samples of the other run"] = hashlib.sha256(shards.encode()).hexdigest()
        return found

    def check(self, plan: Plan) -> None:
        """Raises RunError where the other run is not finished, or was scored by another reward model, and DataError where pairs
        cannot be read, or none is left.
        """
        if self.recipe.pairs is not None:
            self._judged = self._of_people(plan.splits)
        if self.source is None:
            return
        run, state = self.source.path, self.source.status().get("state")
        if state != "done":
            raise RunError(
                f"{run} is {state or 'not begun'}, expected done (store.run): finish it, or name another run"
            )
        file = run / "inputs.json"
        theirs = (durable.parse_json(file.read_bytes()) if file.is_file() else None) or {}
        there, here = theirs.get("reward model"), plan.inputs()["reward model"]
        if there != here:
            raise RunError(
                f"{run} was scored by the reward model {there or '(unknown)'}, the recipe's is {here} (rewards): rewards of two "
                "models are not on one scale. Give the same rewards, or name another run (store.run)"
            )

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
            made = self._of_people(plan.splits) if self._judged is None else self._judged
            if any(data.profile for data in self.recipe.pairs.values()):
                asked, known = len(plan.splits.evaluation), len(plan.profiles)
                self.notes.append(
                    "It was trained under profiles of those who judged, and is evaluated "
                    + (f"under that of {known} of {asked} held-out prompts." if known else "without one: ")
                    + ("" if known else "the held-out prompts name nobody (prompts.path is no file of the pairs).")
                )
            return made
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
        recipe = self.recipe
        found = self._extremes(list(scored), directions, standardiser)
        said = codec if recipe.directions.said else None
        make = judged_from if self.single else joint_pairs_from if recipe.loss.kind == "jpo" else pairs_from
        kept: Samples = make(found, said, gap=recipe.gap)
        if not kept:
            raise DataError(
                f"no pair is left: of {len(found)} rankings none has two answers with different rewards, at least "
                f"{recipe.gap:g} apart (gap): raise samples, or lower gap. {' '.join(self.notes)}".rstrip()
            )
        return kept

    def _extremes(
        self, scored: Sequence[Scored], directions: Mapping[str, Sequence[Direction]], standardiser: Standardiser
    ) -> list[Extremes]:
        """As each direction ranks them; MODPO's pairs as the one objective that they are learned for, in the sense wanted."""
        recipe = self.recipe
        if recipe.loss.kind != "modpo":
            return extremes(scored, directions, standardiser)
        names = list(recipe.rewards.objectives)
        k = names.index(str(recipe.loss.learned))
        out: list[Extremes] = []
        for sign in (1.0, -1.0):
            alike = {prompt: [v for v in several if v[k] * sign > _ZERO] for prompt, several in directions.items()}
            alone = tuple(sign if i == k else 0.0 for i in range(len(names)))
            out += extremes(scored, alike, standardiser, ranked_by=alone)
        silent = sum(abs(v[k]) <= _ZERO for several in directions.values() for v in set(several))
        if silent:
            self.notes.append(f"{silent} directions give {names[k]} (loss.learned) no weight: they made no pair.")
        return out

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
            rows += self._without_marks(usable)
        self.trained_on = {turn_id(one.prompt) for one in rows}
        ties = sum(one.winner == "tie" for one in rows)
        self.notes = [
            f"{len(rows) - ties} judged pairs; {ties} ties and {dropped} about held-out prompts were left out."
        ]
        kept: Samples = judged_of_people(rows) if self.single else pairs_of_people(rows)
        if not kept:
            names = list(self.recipe.pairs or {})
            raise DataError(
                f"no pair is left of {', '.join(names)} (pairs): {self.notes[0]} Look at where, split and limit in pairs."
                f"{names[0] if len(names) == 1 else 'NAME'}, hold fewer prompts out (prompts.evaluation), or give another file"
            )
        return kept

    def _without_marks(self, rows: Sequence[Comparison]) -> list[Comparison]:
        """System turns of the data sanitised where they would open the prompt: `data.chat` takes them for a codec's there."""
        bare = [one for one in rows if not one.profile and any(m.role == "system" for m in one.prompt.messages)]
        if not bare:
            return list(rows)
        policy = self.recipe.policy
        tokenizer = load_tokenizer(policy.initial, policy.trust_remote_code)
        clean = {
            id(one): without_marks(
                Example(id=one.prompt.id, messages=one.prompt.messages, response=one.a), tokenizer
            ).messages
            for one in bare
        }
        return [
            replace(one, prompt=replace(one.prompt, messages=clean[id(one)])) if id(one) in clean else one
            for one in rows
        ]

    def _stages(self) -> list[str]:
        """The other run's scored iterations that are used."""
        assert self.source is not None
        assert self.recipe.store is not None
        wanted = self.recipe.store.iterations
        stages = dict.fromkeys(shard.stage for shard in self.source.all_shards("scores"))
        return [
            stage
            for stage in stages
            if stage.startswith("iterations/") and (wanted is None or int(stage.split("=")[1].split("/")[0]) in wanted)
        ]

    def _of_run(self, plan: Plan, standardiser: Standardiser) -> Samples:
        assert self.source is not None
        assert self.recipe.store is not None
        wanted = self.recipe.store.iterations
        held = {turn_id(prompt) for prompt in (*plan.splits.evaluation, *plan.splits.left_out)}
        scored = [
            one
            for stage in self._stages()
            for one in self.source.read(stage, Scored)
            if turn_id(one.completion.query.prompt) not in held
        ]
        prompts = list({one.completion.query.prompt.id: one.completion.query.prompt for one in scored}.values())
        if not prompts:
            raise DataError(
                f"{self.recipe.store.run} holds no scored samples of the iterations {wanted or 'that it made'} for prompts that "
                "are not held out here (store.run, store.iterations)"
            )
        self.trained_on = {turn_id(prompt) for prompt in prompts}
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
