"""What jobs/sft.py asks of machines: stages trained and measured, by Ray or in this process alone; and what they came to.

    with learning(recipe, local=False) as (train, measure):          # Ray is started, and asked for room, once
        before_N = measure(stage, "embedded")                        # (nats, tokens) of every held-out sample
        trained, result = train(stage, "embedded", work, which)      # full weights, the adapter merged in
        publish(trained, out / stage.name, describe(stage, ...))

A stage that was finished is found again by the hash of all that it depends on; one that was not goes on, by the same name.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.fitting import keep_steps, log_to
from actors.workers import RESULT
from rhumbline import durable, lease, steering
from rhumbline.cards.resampling import Resamples
from rhumbline.config import SftRecipe, dump
from rhumbline.data.dialogues import conversation
from rhumbline.data.prompts import turn_id
from rhumbline.errors import ConfigError, ResourceError, TrainingError
from rhumbline.learning.policy import weights_of
from rhumbline.learning.stages import HeldOut, Stage
from rhumbline.records import Prompt

RECIPE, CARD = "sft.yaml", "stage.json"
WORK = ".training"  # within the job's folder; gone when all stages are done
_BATCH = 64  # held-out samples in one call

Nats = list[tuple[float, int]]  # per held-out sample: -log p of its learned tokens, and how many they are
Measure = Callable[[Stage, str], Nats]  # stage, policy
Train = Callable[
    [Stage, str, Path, str], tuple[Path, dict[str, Any]]
]  # stage, policy, work, identity -> weights, result


# --- trained and measured ---------------------------------------------------------------------------------------------


@contextmanager
def learning(recipe: SftRecipe, stages: Sequence[Stage], local: bool) -> Iterator[tuple[Train, Measure]]:
    """The functions that train a stage and measure a policy: in this process, or on Ray, which is started once."""
    if local:
        if any(stage.learner.num_workers > 1 for stage in stages):
            raise ConfigError("--local is one worker: set learner.num_workers=1, or leave --local out")
        yield partial(_train_here, recipe), partial(_measure_here, recipe)
        return
    from cluster import placement
    from cluster.session import nodes, session

    with session() as have:
        for stage in stages:
            rows = [("learner", stage.learner.num_workers, stage.learner.num_cpus, stage.learner.num_gpus)]
            missing = [*placement.lacking(have, placement.totals(rows)), *placement.too_large(nodes(), rows)]
            if missing:
                raise ResourceError(
                    f"the cluster lacks what stage {stage.name} asks for (learner): {'; '.join(missing)}"
                )
        yield partial(_train_on_ray, recipe), partial(_measure_on_ray, recipe)


def _train_on_ray(recipe: SftRecipe, stage: Stage, policy: str, work: Path, which: str) -> tuple[Path, dict[str, Any]]:
    """By Ray Train. The identity is in the run's name: other data or another recipe starts afresh."""
    from actors.learner import learn

    run = _run(recipe, stage, which)
    work.mkdir(parents=True, exist_ok=True)
    result = learn(
        stage.examples,
        stage.learner,
        policy_dir=_portable(policy),
        out_dir=work / f"{run}-model",
        name=run,
        storage=work,
        seed=stage.seed,
        trust_remote_code=recipe.policy.trust_remote_code,
        on_step=log_to(steps_of(work, which)),
    )
    return work / f"{run}-model", result


def _train_here(recipe: SftRecipe, stage: Stage, policy: str, work: Path, which: str) -> tuple[Path, dict[str, Any]]:
    """The same by this process alone."""
    from dataclasses import asdict

    from rhumbline.learning.checkpoints import latest
    from rhumbline.learning.train import fit

    folder = work / f"{_run(recipe, stage, which)}-model"
    if not (folder / RESULT).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        log, said = log_to(steps_of(work, which)), [time.monotonic()]

        def report(figures: dict[str, Any], checkpoint: Path | None) -> None:  # noqa: ARG001  a session that goes on finds it itself
            log(figures)
            step, steps = figures["learn/step"], figures["learn/steps"]
            if step == steps or time.monotonic() - said[0] > 5:
                said[0] = time.monotonic()
                print(f"{stage.name} learn  {step}/{steps} steps  loss {figures['learn/loss']:.3f}", flush=True)

        result = fit(
            stage.examples,
            learner=stage.learner,
            policy_dir=policy,
            out_dir=folder,
            seed=stage.seed,
            resume_from=latest(folder / "steps"),
            report=report,
            trust_remote_code=recipe.policy.trust_remote_code,
        )
        durable.replace(folder / RESULT, durable.to_json(asdict(result)).encode())
    return folder, json.loads((folder / RESULT).read_text(encoding="utf-8"))


def _measure_here(recipe: SftRecipe, stage: Stage, policy: str) -> Nats:
    if not stage.held_out:
        return []
    held_out = HeldOut(policy, **_options(recipe, stage))
    held_out.setup()
    return held_out.nats(stage.held_out)


def _measure_on_ray(recipe: SftRecipe, stage: Stage, policy: str) -> Nats:
    """The same by as many actors as the learner has workers, on the devices that these free."""
    from actors.pool import Failed, Pool

    batches = [stage.held_out[i : i + _BATCH] for i in range(0, len(stage.held_out), _BATCH)]
    if not batches:
        return []
    pool = Pool(
        HeldOut,
        {"model": _portable(policy), **_options(recipe, stage)},
        role="learner",
        replicas=min(stage.learner.num_workers, len(batches)),
        num_cpus=stage.learner.num_cpus,
        num_gpus=stage.learner.num_gpus,
    )
    out: Nats = []
    with pool:
        for i, result in pool.map("nats", ((i, (batch,)) for i, batch in enumerate(batches))):
            if isinstance(result, Failed):
                raise TrainingError(
                    f"{stage.name}: held-out batch {i} could not be measured in {result.attempts} attempts: {result.error}"
                )
            out += result
    return out


def _portable(policy: str) -> str:
    """A folder by its absolute path, any other name as it is: every node finds its own copy of that."""
    folder = Path(policy).expanduser()
    return str(folder.resolve()) if folder.is_dir() else policy


def _options(recipe: SftRecipe, stage: Stage) -> dict[str, Any]:
    learner = stage.learner
    return {
        "token_budget": learner.micro_batch_tokens,
        "threads": learner.threads,
        "trust_remote_code": recipe.policy.trust_remote_code,
    }


def _run(recipe: SftRecipe, stage: Stage, which: str) -> str:
    return f"{recipe.name}-{stage.name}-{which[:12]}"


def steps_of(work: Path, which: str) -> Path:
    """Where the steps of a stage go while it is under way."""
    return work / f"metrics-{which[:12]}.jsonl"


# --- the job's folder -------------------------------------------------------------------------------------------------


@contextmanager
def working(out: Path, recipe: SftRecipe, stages: Sequence[Stage], which: Sequence[str]) -> Iterator[Path]:
    """Own the job's folder, made or found as an earlier job of this recipe left it; gives where to work in it.

    Raises ConfigError where it is anything else, RunError while another driver lives.
    """
    _check(out, recipe, stages, which)
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    with lease.held(out, "--out"):
        durable.replace(out / RECIPE, dump(recipe).encode())
        yield work
        shutil.rmtree(work, ignore_errors=True)  # only a job under way needs it


def _check(out: Path, recipe: SftRecipe, stages: Sequence[Stage], which: Sequence[str]) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, expected a folder for the stages (--out)")
    own = {lease.GUARD, lease.STATUS, WORK}
    if out.is_dir() and any(entry.name not in own for entry in out.iterdir()) and not (out / RECIPE).is_file():
        raise ConfigError(f"{out} holds other files and no {RECIPE}: give an empty or a new folder (--out)")
    initial = weights_of(recipe.policy.initial)
    for stage, one in zip(stages, which, strict=True):
        if (out / stage.name).exists() and not finished(out / stage.name, one):
            if _card(out / stage.name).get("initial", initial) != initial:
                raise ConfigError(
                    f"{out / stage.name} was trained from other weights than {recipe.policy.initial} has now "
                    "(policy.initial): put them back, or give another folder (--out)"
                )
            raise ConfigError(
                f"{out / stage.name} was trained by another recipe, on other data, or after another stage: give another "
                "folder (--out), or take that one away to have it trained again"
            )


def finished(folder: Path, which: str) -> bool:
    """Is the policy in `folder` the one that would come out?"""
    return bool(_card(folder).get("identity") == which)


def _card(folder: Path) -> dict[str, Any]:
    """What a finished stage came to; empty where there is none."""
    try:
        known = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def describe(
    recipe: SftRecipe, stage: Stage, which: str, policy: str, before_N: Nats, after_N: Nats, result: Mapping[str, Any]
) -> dict[str, Any]:
    """What a stage came to, as data. `policy`: what it started from."""
    return {
        "name": stage.name,
        "identity": which,
        "initial": weights_of(recipe.policy.initial),
        "from": policy if policy == recipe.policy.initial else Path(policy).name,  # no path of this machine
        "data": stage.counts,
        "learned_tokens": stage.learned_tokens,
        "learner": stage.learner.model_dump(mode="json"),
        "held_out": held_out_loss(stage, before_N, after_N, recipe.bootstrap) if stage.held_out else None,
        "training": {key: value for key, value in result.items() if key not in ("checkpoint", "adapter")},
    }


def held_out_loss(stage: Stage, before_N: Nats, after_N: Nats, bootstrap: int) -> dict[str, Any]:
    """Nats per learned token before, after and their difference, each with a 95% interval over conversations.

    sum over samples of -log p / sum over samples of learned tokens; the same draws serve all three, so they are paired.
    """
    before, tokens = (np.array(column, dtype=np.float64) for column in zip(*before_N, strict=True))
    after = np.array([nats for nats, _ in after_N])
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        which = "trained" if np.isfinite(before).all() else "first"
        raise TrainingError(
            f"{stage.name}: the held-out loss of the {which} policy is no number: its weights are broken"
        )
    draws = Resamples([conversation(one) for one in stage.held_out], bootstrap, stage.seed)
    nats = {"before": before, "after": after, "change": after - before}

    def per_token(nats_N: NDArray[np.float64], rows: NDArray[np.int64]) -> float:
        return float(nats_N[rows].sum() / tokens[rows].sum())

    return {
        "samples": len(tokens),
        "tokens": int(tokens.sum()),
        **{name: draws.interval(partial(per_token, nats_N)) for name, nats_N in nats.items()},
    }


def publish(
    trained: Path, folder: Path, told: Mapping[str, Any], steps: Path, stage: Stage, policy: str | Path
) -> None:
    """Make `trained` the stage's folder in one rename, with its figures, its steps and the prompts that it was trained on, those
    of the `policy` that it started from included: no later run may judge it by them.
    """
    seen = {turn_id(Prompt(id=one.id, messages=one.messages)) for one in stage.examples}
    steering.write_trained_on(trained, seen | steering.read_trained_on(policy))
    keep_steps(steps, trained / "metrics.jsonl")
    durable.replace(trained / CARD, durable.to_json(told, indent=1).encode())
    trained.rename(folder)
    (folder / RESULT).unlink(missing_ok=True)  # the figures have it


def card(out: Path, recipe: SftRecipe, command: str) -> str:
    """README.md of the job's folder, written and returned."""
    told = [json.loads((out / name / CARD).read_text(encoding="utf-8")) for name in recipe.stages]
    lines = [
        f"# {recipe.name}",
        "",
        f"Supervised fine-tuning of {recipe.policy.initial} in {len(told)} stages by `{command}`. Each stage starts from the "
        "merged weights of the one before; `adapter/` in its folder is what it added. Only the assistant's turns are learned.",
        "",
        "| stage | samples | learned tokens | steps | held-out loss before | after | change |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in told:
        held = one["held_out"] or {}
        losses = " | ".join(_said(held.get(key)) for key in ("before", "after", "change"))
        made = one["training"]
        lines.append(
            f"| {one['name']} | {made['num_examples']} | {one['learned_tokens']} | {made['steps']} | {losses} |"
        )
    lines += ["", "Losses are nats per learned token, with 95% intervals over held-out conversations.", "", "Data:", ""]
    for one in told:
        for source, numbers in one["data"].items():
            counted = ", ".join(f"{number} {what}" for what, number in numbers.items() if number)
            lines.append(f"- {one['name']}, {source}: {counted}")
    text = "\n".join([*lines, ""])
    durable.replace(out / "README.md", text.encode())
    return text


def _said(interval: Mapping[str, float | None] | None) -> str:
    if not interval or interval["value"] is None or not math.isfinite(interval["value"]):
        return "not measured"
    if interval["low"] is None or interval["high"] is None:
        return f"{interval['value']:.3f}"
    return f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"
