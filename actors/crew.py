"""The actors of one run and what they do together: sample and score, learn and publish, evaluate. Jobs are written in its verbs.

    with Crew(recipe, store, plan) as crew:
        rollout = crew.sample("iterations/t=1", queries, n=16, sampling=recipe.sampling, version=0)
        crew.learn(1, examples, start=None)
        crew.evaluate(1)

Every verb is idempotent: what the run's ledger and marks say is done is read back. New weights are loaded only when something
is left to sample from them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from actors import learner, probes, weights
from actors.accounts import Accounts
from actors.generator import Generator
from actors.measures import Measures, batches, reference_point
from actors.pool import Failed, Pool
from actors.progress import objective_means
from actors.reference import Reference
from actors.rollout import Rollout, rollout
from actors.scorer import Scorer
from rhumbline import config, steering
from rhumbline.codecs import Codec
from rhumbline.data.prompts import turn_id
from rhumbline.errors import ConfigError, StoreError
from rhumbline.evaluation.evaluate import PolicyEvaluation
from rhumbline.evaluation.wins import win_shares
from rhumbline.learning.policy import merge_adapter
from rhumbline.metrics import MetricsLog, reward_metrics
from rhumbline.plan import Plan
from rhumbline.profiles import under_profiles
from rhumbline.queries import ask_all
from rhumbline.records import Completion, Example, Judged, Pair, Query, Scored, Selected
from rhumbline.rewards.model import RewardModel
from rhumbline.rewards.objectives import Calibration
from rhumbline.steering import Steering
from rhumbline.store import RunStore

INITIAL = "initial"


class Crew:
    """Owns the pools; `with` starts and ends them."""

    def __init__(self, recipe: config.Run, store: RunStore, plan: Plan) -> None:
        self.recipe, self.store, self.plan = recipe, store, plan
        self.names = tuple(recipe.rewards.objectives)
        self.initial = _portable(recipe.policy.initial)
        trusted = recipe.policy.trust_remote_code
        # Its heavy parts stay unloaded here.
        self.reward_model = RewardModel.build(recipe.rewards, policy=self.initial, trust_remote_code=trusted)
        self.metrics, self.accounts = MetricsLog(store.path / "metrics.jsonl"), Accounts(store)
        self.measures = Measures(store, self.accounts)
        self.loaded = INITIAL
        self._held_out: dict[str, Rollout] = {}
        generator, threads = recipe.generator, recipe.scorer.threads
        model = {"model": self.initial, "trust_remote_code": trusted}
        self.generators = self._pool(
            Generator,
            {**model, "settings": generator},
            generator,
            generator.env,
        )
        self.scorers = self._pool(
            Scorer,
            {"rewards": recipe.rewards, "policy": self.initial, "threads": threads, "trust_remote_code": trusted},
            recipe.scorer,
        )
        self.references = self._pool(
            Reference,
            {**model, "token_budget": recipe.rewards.token_budget, "threads": threads},
            recipe.scorer,
            replicas=1,
        )

    def _pool(
        self,
        actor: type[Any],
        arguments: Mapping[str, Any],
        settings: config.Generator | config.Scorer,
        env: Mapping[str, str] | None = None,
        replicas: int | None = None,
    ) -> Pool:
        return Pool(
            actor,
            arguments,
            role=actor.__name__.lower(),
            replicas=replicas or settings.replicas,
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus,
            env={**_threads(settings.threads), **(env or {})},
            deadline_s=settings.deadline_s,
            max_attempts=settings.max_attempts,
            on_event=self.event,
        )

    def __enter__(self) -> Self:
        self.scorers.__enter__()
        self.generators.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self.generators, self.scorers, self.references):
            pool.close()

    # --- sample and score ---------------------------------------------------------------------------------------------

    def sample(
        self,
        stage: str,
        queries: Sequence[Query],
        *,
        n: int,
        sampling: config.Sampling,
        version: int | None,
        token_logprobs: bool = False,
        log_as: str | None = None,
    ) -> Rollout:
        """n scored answers to every query from policy `version` (None: the initial one), in the order of the queries.

        token_logprobs: with the engine's log-probability of every token. log_as: what metrics and accounts call the stage,
        for many stages of one kind.
        """
        shards = {q.prompt.id for q in queries}
        complete = len(self.store.done(f"{stage}/scores")) * self.recipe.shard_prompts >= len(shards)
        if not complete:
            self.use(version)
        out = rollout(
            self.store,
            stage,
            queries,
            self.generators,
            self.scorers,
            n=n,
            sampling=sampling,
            prompts_per_shard=self.recipe.shard_prompts,
            token_logprobs=token_logprobs,
        )
        if not out.scored:
            raise StoreError(f"{stage}: not one of {len(queries) * n} samples came back; events.jsonl says why")
        if not complete:
            self.accounts.shards(log_as or stage, f"{stage}/scores", on_top=log_as is not None)
            rewards_NK = np.array([s.rewards for s in out.scored])
            named = (log_as or stage).replace("/", "-")
            self.metrics.log(
                queries[0].iteration if log_as else version or 0, reward_metrics(self.names, rewards_NK, named)
            )
            objective_means(
                self.recipe.name, log_as or stage, dict(zip(self.names, rewards_NK.mean(axis=0).tolist(), strict=True))
            )
        return out

    def score(self, stage: str, completions: Sequence[Completion]) -> list[Scored]:
        """Score answers that nobody sampled here, such as labelled data."""
        began, shards = time.monotonic(), batches(completions, 256)
        done = self.store.done(stage)
        for index, result in self.scorers.map("score", ((i, (b,)) for i, b in enumerate(shards) if i not in done)):
            if isinstance(result, Failed):
                self.store.event("failed", stage=stage, shard=index, reason=result.error, samples=len(shards[index]))
            else:
                tokens = sum(len(one.completion.token_ids) for one in result)
                now = time.monotonic()
                self.store.publish(stage, index, result, {"tokens": tokens, "seconds": now - began})
                began = now
        if len(done) < len(shards):
            self.accounts.shards(stage, stage)
        return list(self.store.read(stage, Scored))

    def kept_before(self, t: int) -> list[Scored]:
        """What earlier iterations over the same half of the prompts kept."""
        earlier = range(t - 2, 0, -2)
        kept = (s.scored for k in earlier for s in self.store.read(f"iterations/t={k}/selected", Selected))
        # One answer may be kept for several directions, and again by a later iteration: it competes once.
        once = {(one.completion.query.iteration, one.completion.id): one for one in kept}
        return list(once.values())

    def use(self, version: int | None) -> None:
        """Load a policy into every generator, and have it proven."""
        name = _label(version)
        if name == self.loaded:
            return
        if version is None:
            raise StoreError("the initial policy is sampled before any other; it cannot be loaded again")
        settings = self.recipe.generator
        synced = weights.sync(
            self.generators,
            name,
            self.store.checkpoint_dir(version).resolve(),
            tolerance=settings.probe_tolerance,
            deadline_s=settings.deadline_s,
        )
        self.loaded = name
        told = {"seconds": synced.seconds, "load_s": synced.load_s, "probe_s": synced.probe_s, "probe_gap": synced.gap}
        self.metrics.log(version, {f"sync/{key}": value for key, value in told.items()})
        self.store.event("loaded", version=name, **told)

    # --- learn and publish --------------------------------------------------------------------------------------------

    def learn(
        self,
        t: int,
        examples: Sequence[Example] | Sequence[Pair] | Sequence[Judged],
        codec: Codec,
        calibration: Calibration,
        *,
        loss: config.PreferenceLoss | None = None,
        trained_on: Iterable[str] = (),
        restart_from: Literal["initial", "t0", "previous"] | None = None,
    ) -> None:
        """Train policy t on `examples` and publish it under checkpoints/t=<t> with its steering.json.

        loss: of pairs and judged answers; None: supervised. trained_on: turn ids of examples about prompts that are not the
        recipe's. restart_from: None takes the recipe's.
        """
        mark = f"iterations/t={t}/learn"
        if self.store.marked(mark) is not None:
            return
        self.store.heartbeat(mark)
        recipe, out = self.recipe, self.store.checkpoint_dir(t)
        begin = restart_from or recipe.policy.restart_from
        start = {"initial": None, "t0": 0, "previous": t - 1}[begin] if t > 0 else None
        policy_dir: str | Path = self.initial
        adapter_dir: Path | None = None
        base: int | None = None  # whose weights the new adapter belongs to; None: the initial policy's
        if start is not None:
            checkpoint = self.store.checkpoint_dir(start).resolve()
            if recipe.learner.lora is not None and (checkpoint / "adapter").is_dir():
                # A second adapter on top of the first would diverge: the first one goes on, from its own base,
                # which is not the initial policy where full weights were trained before it.
                base = (self.store.marked(f"iterations/t={start}/learn") or {}).get("base")
                adapter_dir = checkpoint / "adapter"
            else:
                base = start
            if base is not None:
                policy_dir = self.store.checkpoint_dir(base).resolve()
        print(f"t={t} learn: {len(examples)} samples", flush=True)
        settings = recipe.learner if t > 0 else recipe.learner_for_initial()
        where: dict[str, Any] = {
            "policy_dir": policy_dir,
            "adapter_dir": adapter_dir,
            "out_dir": out,
            "name": f"{recipe.name}-t{t}",
            "storage": self.store.path / "train",
            "seed": recipe.seed + t,
            "trust_remote_code": recipe.policy.trust_remote_code,
            "on_step": self._log_once(t),
        }
        if loss is None:
            supervised = [one for one in examples if isinstance(one, Example)]
            result = learner.learn(supervised, settings, teacher_dir=self.initial, **where)
        else:
            preferred: Any = examples
            result = learner.learn_preferences(preferred, loss, settings, objectives=self.names, **where)
        self.publish(t, codec, calibration, trained_on)
        self.metrics.log(t, {f"learn/{k}": v for k, v in result.items() if isinstance(v, int | float)})
        self.store.mark(mark, {**result, "checkpoint": str(out.relative_to(self.store.path)), "base": base})

    def _log_once(self, t: int) -> Callable[[dict[str, Any]], None]:
        """Logs the steps of a training, each once: after a kill those since the last checkpoint are made again."""
        logged = {row["learn/step"] for row in self.metrics.read() if row["step"] == t and "learn/step" in row}

        def log(figures: dict[str, Any]) -> None:
            if figures["learn/step"] not in logged:
                logged.add(figures["learn/step"])
                self.metrics.log(t, figures)

        return log

    def adopt(self, t: int, folder: Path) -> Steering:
        """Make a finished checkpoint the policy t: full weights, or an adapter that is merged into the initial ones.

        Raises CodecError where it was trained for other objectives, words, rewards or weights than the recipe names, ConfigError
        where an adapter is of other weights than those that policy.initial holds: a name may lead to others by now.
        """
        contract, out = steering.read(folder), self.store.checkpoint_dir(t)
        contract.require(objectives=self.names, codec=self.plan.codec, reward_model=self.reward_model.id)
        contract.require_weights(folder)
        contract.require_initial(folder, self.recipe.policy.initial)
        trusted = self.recipe.policy.trust_remote_code
        if self.store.marked(f"iterations/t={t}/learn") is None:
            shutil.rmtree(out, ignore_errors=True)
            if (folder / "adapter_config.json").is_file():
                try:
                    merge_adapter(self.initial, folder, out, trust_remote_code=trusted)
                except ConfigError as e:
                    raise ConfigError(f"{e} (initial.adapter, policy.initial)") from e
                shutil.copytree(folder, out / "adapter", dirs_exist_ok=True)
            else:
                shutil.copytree(folder, out)
            probes.probe_again(out, self.initial, trusted)
            contract.write(out)
            steering.write_trained_on(out, steering.read_trained_on(folder))
            self.store.mark(f"iterations/t={t}/learn", {"checkpoint": f"checkpoints/t={t}", "adopted": str(folder)})
        return contract

    def publish(self, t: int, codec: Codec, calibration: Calibration, trained_on: Iterable[str] = ()) -> None:
        """Write beside the weights of policy t, and beside its adapter, the steering.json of a policy that heeds directions, and
        which prompts it was trained on: those of the recipe and `trained_on` (turn ids).
        """
        rewards, out = self.recipe.rewards, self.store.checkpoint_dir(t)
        contract = Steering(
            objectives=self.names,
            signs=tuple(o.sign for o in rewards.objectives.values()),
            calibration=calibration.to_dict(),
            codec=codec.to_dict(),
            region=self.plan.cone.to_dict(),
            reward_model=self.reward_model.id,
            iteration=t,
            initial=self.recipe.policy.initial,
            presets=self.recipe.directions.presets,
        )
        before = (self.store.checkpoint_dir(0), Path(self.initial))
        seen = {turn_id(prompt) for prompt in self.plan.splits.train}.union(
            trained_on, *(steering.read_trained_on(folder) for folder in before)
        )
        for folder in (out, out / "adapter"):
            if folder.is_dir():
                if self.recipe.steered:
                    contract.write(folder)
                steering.write_trained_on(folder, seen)

    # --- evaluate -----------------------------------------------------------------------------------------------------

    def held_out(self, t: int | None) -> Rollout:
        """Policy t's answers to the held-out prompts over the grid of directions, without any where none is said, and under the
        profile of a prompt that has one; None: the initial policy, without either.
        """
        if _label(t) in self._held_out:
            return self._held_out[_label(t)]
        settings, asked = self.recipe.evaluation, t is not None and self.recipe.steered
        directions = self.plan.grid() if asked else [None]
        codec = steering.read(self.store.checkpoint_dir(t)).make_codec() if asked and t is not None else self.plan.codec
        # One iteration number for all policies: the same seeds, so that policies differ by their weights alone.
        queries = ask_all(self.plan.splits.evaluation, directions, codec, iteration=0, seed=self.recipe.seed)
        if t is not None:
            queries = under_profiles(queries, self.plan.profiles)
        out = self.sample(f"evaluation/{_label(t)}", queries, n=settings.samples, sampling=settings.sampling, version=t)
        self._held_out[_label(t)] = out  # asked twice for the initial policy, whose weights are gone by then
        return out

    def evaluate(self, t: int | None, calibration: Calibration) -> tuple[PolicyEvaluation, list[Scored]]:
        """What policy t's held-out answers are worth, with intervals over prompts."""
        return self.judge(_label(t), self.held_out(t).scored, calibration, t=t)

    def judge(
        self, label: str, scored: Sequence[Scored], calibration: Calibration, *, t: int | None
    ) -> tuple[PolicyEvaluation, list[Scored]]:
        """The same of answers that were sampled for an evaluation elsewhere; kept as evaluation/<label>.json."""
        settings = self.recipe.evaluation
        evaluation = PolicyEvaluation.from_scored(
            scored,
            t=t,
            label=label,
            signs={name: o.sign for name, o in self.recipe.rewards.objectives.items()},
            reference_point=reference_point(self.recipe, calibration),
            scale=dict(zip(self.names, calibration.std, strict=True)) if self.recipe.rewards.standardise else None,
            kl=self.measures.kl(label, [s.completion for s in scored], self.references) if settings.kl else None,
            wins=None if settings.win_rate is None or t is None else self._wins(label, scored, settings.win_rate.head),
            wins_by=None if settings.win_rate is None else settings.win_rate.head,
            bootstrap=settings.bootstrap,
            seed=self.recipe.seed,
        )
        self.store.mark(f"evaluation/{label}", evaluation.to_json())
        return evaluation, list(scored)

    def _wins(self, label: str, scored: Sequence[Scored], name: str) -> dict[str, float]:
        """Completion id -> its share of wins over the initial policy's answers to its prompt; missing where not scored."""
        head = next(one for one in self.reward_model.heads if one.name == name)
        own = self.measures.scores(label, scored, self.scorers, head)
        initial = self.measures.scores(INITIAL, self.held_out(None).scored, self.scorers, head)
        return win_shares(own, initial)

    def event(self, kind: str, fields: dict[str, Any]) -> None:
        self.store.event(kind, **fields)
        print(f"{kind}: {', '.join(f'{k} {v}' for k, v in fields.items())}", flush=True)


def _portable(name: str) -> str:
    """A folder by its absolute path, any other name as it is: every node finds (or makes) its own copy of that."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def _label(t: int | None) -> str:
    return INITIAL if t is None else f"t={t}"


def _threads(threads: int | None) -> dict[str, str]:
    """Ray sets OMP_NUM_THREADS from num_cpus, and OpenMP reads it once: it must be right before the actor's process starts."""
    return {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
