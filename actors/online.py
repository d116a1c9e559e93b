"""Online training: a policy that is sampled, scored, updated and put back into the generators, step after step.

    with Online(recipe, recipe.grpo, plan, store, crew, first) as online:
        for t in online.steps():                          # goes on after the last state
            online.sample(t)
            online.update(t)
            online.publish(t)

Version t is the policy after step t. Rollouts are in the store and seeds are the queries' own, so a driver that goes on
gives a step the same batch, and the learners make the same of it. A shard that was given up is asked for again by the next
driver, but never once the step has been learned from.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from actors.crew import Crew
from actors.first import First
from actors.probes import NUM_PROBES, Case, cut
from actors.progress import learner_metrics
from actors.ranks import Ranks
from actors.rollout import Rollout
from actors.weights import FILE, read_probe, write_probe
from rhumbline import config
from rhumbline.data.chat import Encoded, prompt_ids
from rhumbline.evaluation.health import Watch
from rhumbline.learning.policy import load_tokenizer
from rhumbline.learning.trajectories import Trajectory
from rhumbline.plan import Plan
from rhumbline.records import Scored
from rhumbline.runs import curve
from rhumbline.store import RunStore


class Online:
    """The learners of a run, and what they and the crew do together."""

    def __init__(
        self,
        recipe: config.OnlineRecipe,
        settings: config.Ppo | config.Grpo,
        plan: Plan,
        store: RunStore,
        crew: Crew,
        first: First,
    ) -> None:
        self.recipe, self.plan, self.store, self.crew, self.first = recipe, plan, store, crew, first
        self._answers: dict[int, Rollout] = {}  # of the last steps
        self._cases: list[Encoded] = []
        self._watch = Watch(
            curve(store.path),
            objectives=crew.names,
            kl_target=settings.kl.target,
            section=recipe.section,
            overlap=recipe.overlap,
        )
        # Steps whose line was written by a driver that died before it could say so in the store.
        self._logged = {row["step"] for row in crew.metrics.read() if "learn/loss" in row}
        self._update_s: dict[int, float] = {}
        self.tokenizer = load_tokenizer(crew.initial, recipe.policy.trust_remote_code)
        policy_dir, adapter_dir = self._start()
        self.ranks = Ranks(
            {
                "settings": settings,
                "total_steps": recipe.steps,
                "answers_per_step": recipe.answers_per_step,
                "policy_dir": policy_dir,
                "adapter_dir": adapter_dir,
                "seed": recipe.seed,
                "trust_remote_code": recipe.policy.trust_remote_code,
                "max_tokens": recipe.sampling.max_tokens,
            },
            recipe.learner,
            batch_of=self.batch,
            states=store.path / "train" / "online",
            failed_batch=(store.path / "train" / "failed-batch.parquet").resolve(),
            deadline_s=recipe.deadline_s,
            on_event=crew.event,
        )

    def __enter__(self) -> Self:
        self.ranks.__enter__()
        try:
            if self.ranks.at > 0:  # a driver that was killed may have saved the state and not the checkpoint
                self.publish(self.ranks.at)
        except BaseException:
            self.ranks.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ranks.__exit__(kind, error, trace)

    def steps(self) -> Iterator[int]:
        """Steps that are left, from 1."""
        return iter(range(self.ranks.at + 1, self.recipe.steps + 1))

    def version(self, t: int) -> int | None:
        """Which policy samples for step t: the one before it, with overlap the one before that."""
        last = t - 2 if self.recipe.overlap else t - 1
        return self.first.version if last <= 0 else last

    def sample(self, t: int) -> Rollout:
        """The scored answers of step t; read back where they are in the store."""
        if t in self._answers:
            return self._answers[t]
        self._answers = {k: out for k, out in self._answers.items() if k >= t - 1}
        if (learned := self._learned_from(t)) is not None:
            self._answers[t] = learned
            return learned
        queries = self.plan.step_queries(t, self.recipe.prompts_per_step)
        self._answers[t] = self.crew.sample(
            f"iterations/t={t}",
            queries,
            n=self.recipe.samples,
            sampling=self.recipe.sampling,
            version=self.version(t),
            token_logprobs=True,
            log_as="rollout",
        )
        return self._answers[t]

    def batch(self, t: int) -> list[Trajectory]:
        """Those that can be learned from, as the learners read them, who will learn from nothing else from now on."""
        answers, mark = self.sample(t), f"iterations/t={t}/batch"
        if self.store.marked(mark) is None:
            self.store.mark(mark, {"samples": len(answers.scored), "failed": answers.failed})
        return self._trajectories(self._learnable(answers)[0])

    def update(self, t: int) -> dict[str, float]:
        """Step t: advantages, epochs of updates, the KL controller. The state is saved before anything follows from it."""
        ahead = (lambda: self.sample(t + 1)) if self.recipe.overlap and t < self.recipe.steps else None
        began = time.monotonic()
        metrics = self.ranks.update(t, ahead)
        self._update_s[t] = time.monotonic() - began
        if t % self.recipe.save_every == 0 or t == self.recipe.steps:
            self.ranks.save()
        return metrics

    def publish(self, t: int) -> None:
        """Weights of version t for the generators, which load them when they are next asked; full ones where they are kept."""
        mark = f"iterations/t={t}/learn"
        if self.store.marked(mark) is None:
            metrics = self.ranks.metrics | self._learnable(self.sample(t))[1]
            out, sync = self.store.checkpoint_dir(t), self.recipe.generator.sync
            stored = sync != "adapter"
            began = time.monotonic()
            rounding = self.ranks.publish(out, full=stored or self.kept(t), stored=stored, cases=self._probe())
            metrics |= {"learn/rounding": rounding}
            publish_s = time.monotonic() - began
            self.crew.publish(t, self.plan.codec, self.first.calibration)
            if t not in self._logged:
                self.crew.metrics.log(t, metrics | {"sync/publish_s": publish_s})
            for found in self._watch.look(metrics):
                self.store.event("health", step=t, message=found)
                print(f"t={t} health: {found}", flush=True)
            learner_metrics(self.recipe.name, {k.removeprefix("learn/"): v for k, v in metrics.items()})
            self.store.mark(mark, {"checkpoint": f"checkpoints/t={t}", "metrics": metrics})
            self._account(t, publish_s)
        for old in range(max(1, t - 2 * self.recipe.keep_checkpoints), t - self.recipe.keep_checkpoints + 1):
            if not self.kept(old):
                shutil.rmtree(self.store.checkpoint_dir(old), ignore_errors=True)

    def _account(self, t: int, publish_s: float) -> None:
        """For the report; of an update that another driver made nobody knows how long it took."""
        scored = self.sample(t).scored
        if (update_s := self._update_s.pop(t, None)) is not None:
            tokens = sum(len(one.completion.token_ids) for one in scored)
            self.crew.accounts.add("updates", update_s, len(scored), tokens, on_top=True)
        self.crew.accounts.add("publishing weights", publish_s, 1, 0, on_top=True)

    def kept(self, t: int) -> bool:
        """Whether version t is evaluated: every `evaluate_every` steps and at the end."""
        every = self.recipe.evaluate_every
        return t == self.recipe.steps or (every > 0 and t % every == 0)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _start(self) -> tuple[str, str | None]:
        """Weights that training starts from, and an adapter of them to go on with."""
        if self.first.version is None:
            return self.crew.initial, None
        checkpoint = self.store.checkpoint_dir(self.first.version).resolve()
        if self.recipe.learner.lora is not None and (checkpoint / "adapter").is_dir():
            return self.crew.initial, str(checkpoint / "adapter")
        return str(checkpoint), None

    def _learned_from(self, t: int) -> Rollout | None:
        """The answers of a step that was learned from, as they were then; None: it was not yet.

        What was given up then is not asked for again: the batch would be another one than the weights come from, and the
        version that was asked may be gone.
        """
        mark = self.store.marked(f"iterations/t={t}/batch")
        if mark is None and t > self.ranks.at:
            return None
        scored = tuple(self.store.read(f"iterations/t={t}/scores", Scored))
        if mark is not None and len(scored) != mark["samples"] and t > self.ranks.at:
            return None  # shards were lost since: made again they are the same
        return Rollout(scored=scored, failed=0 if mark is None else int(mark["failed"]))

    def _learnable(self, answers: Rollout) -> tuple[list[Scored], dict[str, float]]:
        return learnable(answers.scored, grouped=isinstance(self.recipe, config.GrpoRecipe))

    def _trajectories(self, scored: Sequence[Scored]) -> list[Trajectory]:
        if not scored:
            return []
        rewards_NK = self.first.standardiser([one.rewards for one in scored])
        out = []
        for one, rewards_K in zip(scored, rewards_NK.tolist(), strict=True):
            completion = one.completion
            direction = completion.query.direction
            assert direction is not None, "online training weighs rewards by a direction"
            out.append(
                Trajectory(
                    id=completion.id,
                    group=completion.query.id,
                    prompt_ids=prompt_ids(completion.query.messages, self.tokenizer),
                    response_ids=completion.token_ids,
                    engine_logprobs=completion.token_logprobs,
                    rewards=tuple(rewards_K),
                    direction=direction,
                    truncated=completion.finish_reason == "length",
                )
            )
        return out

    def _probe(self) -> list[Encoded]:
        """Fixed tokens for the proof of a weight sync: the shortest samples of the first step, cut; chosen once in a run."""
        folder = self.store.path / "train" / "online"
        if not self._cases and (folder / FILE).is_file():
            self._cases = [case.encoded for case in read_probe(folder)]
        if not self._cases:
            by_length = sorted(self.batch(1), key=lambda one: (len(one.prompt_ids), one.response_ids))
            self._cases = [cut(one.encoded) for one in by_length[:NUM_PROBES]]
            folder.mkdir(parents=True, exist_ok=True)
            write_probe(folder, [Case(encoded=encoded, logprobs=()) for encoded in self._cases])
        return self._cases


def learnable(scored: Sequence[Scored], *, grouped: bool) -> tuple[list[Scored], dict[str, float]]:
    """The answers of a step that something can be learned from; how many were left out for which reason, as metrics.

    An answer without a token teaches nothing. `grouped`: nor does one whose siblings are all missing, which has nothing to be
    compared with.
    """
    spoken = [one for one in scored if one.completion.token_ids]
    counted = {"learn/without_tokens": float(len(scored) - len(spoken))}
    if not grouped:
        return spoken, counted
    members = Counter(one.completion.query.id for one in spoken)
    kept = [one for one in spoken if members[one.completion.query.id] > 1]
    return kept, counted | {"learn/without_siblings": float(len(spoken) - len(kept))}
