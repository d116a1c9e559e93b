"""Learner: one training run to completion as a Ray Train `TorchTrainer` around the library's train loop.

    result = learn(examples, recipe.learner, policy_dir=initial, out_dir=checkpoint, name="smol-t1", storage=run/"train", seed=7)
    result.checkpoint                      # Hugging Face layout, with the probe that weight syncs are checked by

Any number of workers (gloo on CPUs, NCCL on GPUs), torch or DeepSpeed. A killed worker restarts the group from its last
committed checkpoint; a killed driver finds the run again by its name and goes on from there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rhumbline import config, durable, tables
from rhumbline.errors import ResourceError, RhumblineError, TrainingError
from rhumbline.records import Example, Message

NUM_PROBES = 4


def learn(
    examples: Sequence[Example],
    learner: config.Learner,
    *,
    policy_dir: str | Path,
    adapter_dir: str | Path | None = None,
    out_dir: str | Path,
    name: str,
    storage: str | Path,
    seed: int,
) -> dict[str, Any]:
    """Train and publish `out_dir` atomically; returns the train loop's figures. Idempotent: a finished run is found again.

    `policy_dir` holds the weights that training starts from, `adapter_dir` a LoRA of them to go on with. Raises
    TrainingError with the worker's own reason.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    out, storage = Path(out_dir).resolve(), Path(storage).resolve()
    if not examples:
        raise TrainingError(f"{name}: nothing was selected, so there is nothing to learn from")
    storage.mkdir(parents=True, exist_ok=True)
    data = storage / f"{name}.examples.parquet"
    durable.replace(data, tables.to_parquet(list(examples)))  # a path, not a pickle: workers read it themselves
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "examples": str(data),
            "learner": learner.model_dump(mode="json"),
            "policy_dir": str(Path(policy_dir).resolve()),
            "adapter_dir": None if adapter_dir is None else str(Path(adapter_dir).resolve()),
            "out_dir": str(out),
            "seed": seed,
        },
        scaling_config=ScalingConfig(
            num_workers=learner.num_workers,
            use_gpu=learner.num_gpus > 0,
            resources_per_worker={"CPU": learner.num_cpus, **({"GPU": learner.num_gpus} if learner.num_gpus else {})},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=learner.max_failures, controller_failure_limit=3),
            worker_runtime_env={"env_vars": _environment(learner)},
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as e:
        raise _reason(e, name) from e
    result: dict[str, Any] = json.loads((out / "training.json").read_text(encoding="utf-8"))
    shutil.rmtree(storage / name, ignore_errors=True)  # the optimiser's state: not needed any more, and large
    data.unlink(missing_ok=True)
    return result


def _environment(learner: config.Learner) -> dict[str, str]:
    env = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TOKENIZERS_PARALLELISM": "false"}
    if learner.threads is not None:
        env["OMP_NUM_THREADS"] = str(learner.threads)  # Ray sets it from num_cpus
    if learner.engine == "deepspeed" and learner.num_gpus == 0:
        env["DS_ACCELERATOR"] = "cpu"
    return env


def _worker(loop: dict[str, Any]) -> None:
    """One rank. Rank 0 writes the checkpoint and the probe under a temporary name and renames them."""
    import ray.train

    from rhumbline.learning.train import fit

    context = ray.train.get_context()
    out = Path(loop["out_dir"])
    rank, finished = context.get_world_rank(), (out / "training.json").is_file()
    if finished:  # an earlier driver got this far and died before it could say so
        return
    learner = config.Learner.model_validate(loop["learner"])
    examples = [row for row in tables.from_parquet(Path(loop["examples"]).read_bytes()) if isinstance(row, Example)]
    unfinished = out.with_name(f".{out.name}{durable.TEMPORARY}")
    resume = ray.train.get_checkpoint()
    result = fit(
        examples,
        learner=learner,
        policy_dir=loop["policy_dir"],
        adapter_dir=loop["adapter_dir"],
        out_dir=unfinished,
        seed=loop["seed"],
        rank=rank,
        world_size=context.get_world_size(),
        resume_from=None if resume is None else Path(resume.path),
        report=_report,
    )
    if rank == 0:
        _probe(unfinished, examples)
        (unfinished / "training.json").write_text(json.dumps(asdict(result), default=str), encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        unfinished.rename(out)


def _report(metrics: dict[str, Any], folder: Path | None) -> None:
    import ray.train

    checkpoint = None if folder is None else ray.train.Checkpoint.from_directory(str(folder))
    ray.train.report(metrics, checkpoint=checkpoint)


def probe_again(folder: Path) -> None:
    """Write the probe of a checkpoint that no learner made here, such as a merged adapter."""
    text = "A rhumb line crosses every meridian at the same angle."
    user = Message(role="user", content="What is a rhumb line?")
    _probe(folder, [Example(id="probe", messages=(user,), response=text)])


def _probe(folder: Path, examples: Sequence[Example]) -> None:
    """Log-probabilities of a few samples under the weights as they were saved: what an engine must answer with."""
    from actors.weights import write_probe
    from rhumbline.data.chat import encode
    from rhumbline.learning.logprobs import token_logprobs
    from rhumbline.learning.policy import load_policy, load_tokenizer

    tokenizer = load_tokenizer(folder)
    chosen = sorted(examples, key=lambda e: (len(e.response), e.id))[-NUM_PROBES:]
    encoded = [encode(e.messages, e.response, tokenizer, e.complete) for e in chosen]
    logprobs = token_logprobs(load_policy(folder).eval(), encoded, token_budget=4096)
    write_probe(folder, [(e, row.tolist()) for e, row in zip(encoded, logprobs, strict=True)])


def _reason(error: Any, name: str) -> RhumblineError:
    """The first worker's own error, where it is one of ours."""
    causes = list(getattr(error, "worker_failures", {}).values()) or [error]
    for cause in causes:
        inner = getattr(cause, "cause", cause)
        if isinstance(inner, RhumblineError):
            return inner
    text = str(causes[0]).strip()
    if "resource" in text.lower() and "worker" not in text.lower():
        return ResourceError(f"{name}: {text[-2000:]}")
    return TrainingError(f"{name}: training failed on every attempt: {text[-2000:]}")
