"""Learner: one training run to completion as a Ray Train `TorchTrainer` around a train loop of the library.

    figures = learn(examples, recipe.learner, policy_dir=initial, out_dir="checkpoints/t=1", name="smol-t1",
                    storage="train", seed=7)
    figures["final_loss"]                  # out_dir is in Hugging Face layout, with the probe that weight syncs ask for
    learn_rewards(task, recipe, out_dir="rewards/mine", name="mine", storage="train", seed=0)    # a reward network

Any number of workers (gloo on CPUs, NCCL on GPUs), torch or DeepSpeed. A killed worker restarts the group from its last
committed checkpoint; a killed driver finds the run again by its name and goes on from there. Ray Train commits a
checkpoint a moment after it was reported, so steps may be made twice: they come out the same.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.progress import Progress, learner_metrics
from rhumbline import config, durable, errors, tables
from rhumbline.errors import RhumblineError, TrainingError, UserError
from rhumbline.records import Example, Judged, Message, Pair

if TYPE_CHECKING:
    from rhumbline.fitting.recipe import RewardRecipe
    from rhumbline.fitting.task import Task

NUM_PROBES, PROBE_TOKENS = 4, 64
RESULT = "training.json"
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's
COLLECTIVE_TIMEOUT_S = 600  # torch waits 1800 s for a rank that is dead
_TICK_S = 1.0


def learn(
    examples: Sequence[Example],
    learner: config.Learner,
    *,
    policy_dir: str | Path,
    out_dir: str | Path,
    name: str,
    storage: str | Path,
    seed: int,
    adapter_dir: str | Path | None = None,
    teacher_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train and publish `out_dir` atomically; returns `TrainResult` as a dict. Idempotent: a finished run is found again.

    `policy_dir` holds the weights that training starts from, `adapter_dir` a LoRA of them to go on with, `teacher_dir`
    the frozen teacher: names that every node resolves, or absolute paths on storage that they share. `name` and
    `storage` are how a run finds its state again: never use them for another run.
    `on_step` gets every step's figures as they come. Raises the worker's own error, where it is one of ours, else
    TrainingError.
    """
    if not examples:
        raise TrainingError(f"{name}: nothing was selected, so there is nothing to learn from")
    settings = {
        "policy_dir": str(policy_dir),
        "adapter_dir": None if adapter_dir is None else str(Path(adapter_dir).resolve()),
        "teacher_dir": None if teacher_dir is None else str(teacher_dir),
        "trust_remote_code": trust_remote_code,
    }
    return _complete(
        "policy",
        settings,
        learner,
        lambda file: durable.replace(file, tables.to_parquet(list(examples))),
        out_dir=out_dir,
        name=name,
        storage=storage,
        seed=seed,
        on_step=on_step,
    )


def learn_preferences(
    samples: Sequence[Pair] | Sequence[Judged],
    loss: config.PreferenceLoss,
    learner: config.Learner,
    *,
    objectives: Sequence[str],
    policy_dir: str | Path,
    out_dir: str | Path,
    name: str,
    storage: str | Path,
    seed: int,
    adapter_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The same for DPO and its kin on pairs, KTO and BCO on judged answers. The reference is what training starts from."""
    if not samples:
        raise TrainingError(f"{name}: no pair is left to learn from")
    return _complete(
        "preferences",
        {
            "policy_dir": str(policy_dir),
            "adapter_dir": None if adapter_dir is None else str(Path(adapter_dir).resolve()),
            "trust_remote_code": trust_remote_code,
            "loss": loss.model_dump(mode="json"),
            "objectives": list(objectives),
        },
        learner,
        lambda file: durable.replace(file, tables.to_parquet(list(samples))),
        out_dir=out_dir,
        name=name,
        storage=storage,
        seed=seed,
        on_step=on_step,
    )


def learn_rewards(
    task: Task,
    recipe: RewardRecipe,
    *,
    out_dir: str | Path,
    name: str,
    storage: str | Path,
    seed: int,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The same for a reward network: returns `fitting.training.FitResult` as a dict, without its paths; `out_dir` has its
    schema, and what it gives to held-out inputs (`fitting.results.finish`). The backbone is a name that every node resolves.
    """
    from rhumbline.fitting.task import save

    return _complete(
        "rewards",
        {"recipe": recipe.model_dump(mode="json")},
        recipe.learner,
        lambda file: save(task, file),
        out_dir=out_dir,
        name=name,
        storage=storage,
        seed=seed,
        on_step=on_step,
    )


def _complete(
    loop: str,
    settings: dict[str, Any],
    learner: config.Learner,
    write_data: Callable[[Path], None],
    *,
    out_dir: str | Path,
    name: str,
    storage: str | Path,
    seed: int,
    on_step: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:
    """Run one of `LOOPS` to its end, or find that an earlier driver has; see `learn`."""
    out, storage = Path(out_dir).resolve(), Path(storage).resolve()
    data, steps, failure = (storage / f"{name}.{end}" for end in ("data", "steps.jsonl", "failure.json"))
    if not (out / RESULT).is_file():
        storage.mkdir(parents=True, exist_ok=True)
        write_data(data)  # a path, not a pickle: workers read it themselves
        for stale in (steps, failure):
            stale.unlink(missing_ok=True)
        handed = {
            "loop": loop,
            "settings": settings,
            "data": str(data),
            "steps": str(steps),
            "failure": str(failure),
            "learner": learner.model_dump(mode="json"),
            "out_dir": str(out),
            "seed": seed,
        }
        snapshot = storage / name / SNAPSHOT
        if snapshot.is_file() and durable.parse_json(snapshot.read_bytes()) is None:
            # Ray Train rewrites it in place: torn by a kill or a full disk, it would refuse every attempt to go on.
            shutil.rmtree(storage / name, ignore_errors=True)
        with _Steps(name, steps, on_step) as watched:
            _fit(handed, learner, name, storage, watched.look)
        _raise(failure)
    result: dict[str, Any] = json.loads((out / RESULT).read_text(encoding="utf-8"))
    shutil.rmtree(storage / name, ignore_errors=True)  # the optimiser's state: not needed any more, and large
    for file in (data, steps):
        file.unlink(missing_ok=True)
    return result


def probe_again(folder: Path, trust_remote_code: bool = False) -> None:
    """Write the probe of a checkpoint that no learner made here, such as a merged adapter."""
    text = "A rhumb line crosses every meridian at the same angle."
    user = Message(role="user", content="What is a rhumb line?")
    _probe(folder, [Example(id="probe", messages=(user,), response=text)], trust_remote_code)


# --- the driver's side ------------------------------------------------------------------------------------------------


def _fit(handed: dict[str, Any], learner: config.Learner, name: str, storage: Path, look: Callable[[], None]) -> None:
    """`TorchTrainer.fit` here, where signals arrive, while a thread looks at the steps."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    train: Any = ray.train  # its types are those of the older API
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")  # also how soon a reported checkpoint is committed
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, _controller: Any) -> None:
            """The session's own stays: Ray's would be kept after the training, and end the job with 0."""

    trainer: Any = Trainer(
        _worker,
        train_loop_config=handed,
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=train.ScalingConfig(
            num_workers=learner.num_workers,
            use_gpu=learner.num_gpus > 0,
            resources_per_worker={"CPU": learner.num_cpus, **({"GPU": learner.num_gpus} if learner.num_gpus else {})},
        ),
        run_config=train.RunConfig(
            name=name,
            storage_path=str(storage),
            # By default the controller tries for ever to start workers that fit nowhere, which looks like a hang.
            failure_config=train.FailureConfig(max_failures=learner.max_failures, controller_failure_limit=3),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": environment(learner)},
        ),
    )
    with _beside(look, f"steps-{name}"):
        try:
            trainer.fit()
        except train.TrainingFailedError as e:
            _raise(Path(handed["failure"]))
            text = str(next(iter(getattr(e, "worker_failures", {}).values()), e)).strip()
            raise TrainingError(
                f"{name}: training failed on every attempt (learner.max_failures): {text[-2000:]}"
            ) from e


@contextmanager
def _beside(look: Callable[[], None], name: str) -> Iterator[None]:
    """Call `look` again and again in a thread. It has ended when this returns, whatever happened within: a thread that
    speaks to Ray after its shutdown ends the process, with Ray's exit code. What `look` raised is raised here.
    """
    over, raised = threading.Event(), []

    def run() -> None:
        try:
            while not over.wait(_TICK_S):
                look()
        except Exception as e:
            raised.append(e)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if raised:
        raise raised[0]


class _Steps:
    """Reads what rank 0 writes at every step: to the progress line, the metrics and `on_step`."""

    def __init__(self, name: str, path: Path, on_step: Callable[[dict[str, Any]], None] | None) -> None:
        self.name, self.path, self.on_step = name, path, on_step
        self.progress: Progress | None = None
        self._stack = ExitStack()
        self._read = self._tokens = 0

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *exception: object) -> None:
        self.look()
        self._stack.close()

    def look(self) -> None:
        """Read the lines that are new."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # the last line may be half written
        self._read += len(whole)
        for line in whole.splitlines():
            self._show(json.loads(line))

    def _show(self, figures: dict[str, Any]) -> None:
        step, tokens = int(figures["learn/step"]), int(figures["learn/tokens"])
        if self.progress is None:
            progress = Progress(
                f"{self.name} learn", int(figures["learn/steps"]), run=self.name, unit="steps", done=step - 1
            )
            self.progress, self._tokens = self._stack.enter_context(progress), tokens
        # After a restart, steps come a second time.
        ahead = max(step - self.progress.done, 0)
        self.progress.advance(ahead, tokens=max(tokens - self._tokens, 0), note=f"loss {figures['learn/loss']:.3f}")
        self._tokens = max(tokens, self._tokens)
        known = {key.removeprefix("learn/"): value for key, value in figures.items() if value is not None}
        learner_metrics(self.name, known)
        if self.on_step is not None:
            self.on_step(figures)


def environment(learner: config.Learner) -> dict[str, str]:
    """Of a worker's process, before torch is imported."""
    env = {"TOKENIZERS_PARALLELISM": "false"}
    if learner.threads is not None:
        env["OMP_NUM_THREADS"] = str(learner.threads)  # Ray sets it from num_cpus
    if learner.engine == "deepspeed" and learner.num_gpus == 0:
        env["DS_ACCELERATOR"] = "cpu"
    return env


def _raise(failure: Path) -> None:
    """Raise what `_worker` left, as it was raised."""
    if not failure.is_file():
        return
    left = json.loads(failure.read_text(encoding="utf-8"))
    failure.unlink()
    kind: type[RhumblineError] = getattr(errors, left["kind"], TrainingError)
    raise kind(left["message"])


# --- the workers' side ------------------------------------------------------------------------------------------------


def _worker(handed: dict[str, Any]) -> None:
    """One rank. A fault of the recipe, the data or a node would meet every attempt: it is left for the driver."""
    import ray.train

    context, failure = ray.train.get_context(), Path(handed["failure"])
    if failure.is_file():  # an attempt before this one left it: end, so that the driver reads it
        return
    try:
        _train(handed, context.get_world_rank())
    except (UserError, TrainingError) as e:
        durable.replace(failure, json.dumps({"kind": type(e).__name__, "message": str(e)}).encode())
        if context.get_world_size() > 1:  # the others may wait for this rank within a collective
            raise


def _train(handed: dict[str, Any], rank: int) -> None:
    """Rank 0 writes the checkpoint, and what its loop adds to it, under a temporary name and renames it."""
    import ray.train

    out = Path(handed["out_dir"])
    if (out / RESULT).is_file():  # an earlier driver got this far and died before it could say so
        return
    unfinished = out.with_name(f".{out.name}{durable.TEMPORARY}")
    resume = ray.train.get_checkpoint()
    learner = config.Learner.model_validate(handed["learner"])
    with ExitStack() as stack:
        where = {
            "out_dir": unfinished,
            "seed": handed["seed"],
            "rank": rank,
            "world_size": ray.train.get_context().get_world_size(),
            "resume_from": None if resume is None else stack.enter_context(resume.as_directory()),
            "report": _report(Path(handed["steps"]) if rank == 0 else None, learner.checkpoint_every),
        }
        result = LOOPS[handed["loop"]](handed["settings"], Path(handed["data"]), learner, where)
    if rank == 0:
        shutil.rmtree(unfinished / "steps", ignore_errors=True)
        (unfinished / RESULT).write_text(json.dumps(result, default=str), encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        unfinished.rename(out)


def _policy(settings: dict[str, Any], data: Path, learner: config.Learner, where: dict[str, Any]) -> dict[str, Any]:
    from rhumbline.learning.train import fit

    examples = [row for row in tables.from_parquet(data.read_bytes()) if isinstance(row, Example)]
    result = fit(examples, learner=learner, **settings, **where)
    if where["rank"] == 0:
        _probe(where["out_dir"], examples, trust_remote_code=settings["trust_remote_code"])
    return asdict(result)


def _preferences(
    settings: dict[str, Any], data: Path, learner: config.Learner, where: dict[str, Any]
) -> dict[str, Any]:
    from rhumbline.learning.preferences import fit_preferences

    rows = tables.from_parquet(data.read_bytes())
    pairs, judged = [r for r in rows if isinstance(r, Pair)], [r for r in rows if isinstance(r, Judged)]
    loss = config.PreferenceLoss.model_validate(settings.pop("loss"))
    result = fit_preferences(pairs or judged, learner=learner, loss=loss, **settings, **where)
    if where["rank"] == 0:
        told = [(pair.id, pair.messages, pair.chosen, pair.chosen_complete) for pair in pairs]
        told += [(one.id, one.messages, one.response, one.complete) for one in judged]
        examples = [Example(id=i, messages=m, response=text, complete=whole) for i, m, text, whole in told]
        _probe(where["out_dir"], examples, trust_remote_code=settings["trust_remote_code"])
    return asdict(result)


def _rewards(
    settings: dict[str, Any],
    data: Path,
    learner: config.Learner,  # noqa: ARG001  the recipe holds it
    where: dict[str, Any],
) -> dict[str, Any]:
    from rhumbline.fitting.recipe import RewardRecipe
    from rhumbline.fitting.results import finish
    from rhumbline.fitting.task import load
    from rhumbline.fitting.training import fit, told

    task, recipe = load(data), RewardRecipe.model_validate(settings["recipe"])
    result = fit(task, recipe=recipe, **where)
    if where["rank"] == 0:
        finish(task, recipe, where["out_dir"])
    return told(result)


LOOPS: dict[str, Callable[[dict[str, Any], Path, config.Learner, dict[str, Any]], dict[str, Any]]] = {
    "policy": _policy,
    "preferences": _preferences,
    "rewards": _rewards,
}


def _report(steps: Path | None, checkpoint_every: int) -> Callable[[dict[str, Any], Path | None], None]:
    """Every step goes to a file that the driver reads, only checkpoints to Ray Train.

    `ray.train.report` returns when the controller has looked, about once a second: at every step it would be a brake.
    """

    def report(figures: dict[str, Any], folder: Path | None) -> None:
        import ray.train

        step, total = figures["learn/step"], figures["learn/steps"]
        if steps is not None:
            with steps.open("a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")
        if step % checkpoint_every == 0 and step < total:
            # A barrier: every rank has to be here, also one that wrote nothing.
            checkpoint = None if folder is None else ray.train.Checkpoint.from_directory(str(folder))
            ray.train.report(figures, checkpoint=checkpoint)

    return report


def _probe(folder: Path, examples: Sequence[Example], trust_remote_code: bool = False) -> None:
    """Log-probabilities of a few samples under the weights as they were saved: what an engine must answer with."""
    import torch

    from actors.weights import write_probe
    from rhumbline.data.chat import Encoded, encode
    from rhumbline.learning.logprobs import token_logprobs
    from rhumbline.learning.policy import load_policy, load_tokenizer

    tokenizer = load_tokenizer(folder, trust_remote_code)
    encoded = [encode(e.messages, e.response, tokenizer, e.complete) for e in examples]
    # Short ones, so that they fit every engine's context.
    chosen = sorted((e for e in encoded if e.num_learned > 0), key=lambda e: (e.prompt_length, e.token_ids))[
        :NUM_PROBES
    ]
    ends = [e.prompt_length + PROBE_TOKENS for e in chosen]
    cut = [
        Encoded(token_ids=e.token_ids[:end], loss_mask=e.loss_mask[:end]) for e, end in zip(chosen, ends, strict=True)
    ]
    # In fp32 where that is cheap: the comparison then carries the rounding of one engine, not of two.
    dtype = None if torch.cuda.is_available() else torch.float32
    rows = token_logprobs(load_policy(folder, dtype, trust_remote_code), cut)
    write_probe(folder, [(e, row.tolist()) for e, row in zip(cut, rows, strict=True)])
