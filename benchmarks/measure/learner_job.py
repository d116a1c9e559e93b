"""What a run of benchmarks/learner.py trains on, and the training by `learning.train.fit` and `fit_preferences`.

job = Job.make("sft", steps=4, threads=2, seed=0)
alone(fitted, job, 1).seconds
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar
from unittest.mock import patch

import torch

from benchmarks.measure.inputs import answers, first_queries, smol
from rhumbline import config
from rhumbline.codecs import conversation
from rhumbline.data.chat import Encoded
from rhumbline.learning import lora, preferences, train
from rhumbline.learning.policy import load_policy, load_tokenizer, resolve, save_adapter
from rhumbline.learning.units import encode_pairs
from rhumbline.records import Example, Pair

Method = Literal["sft", "dpo"]
Result = TypeVar("Result")
FEW = 4  # examples or pairs of the warm-up, and of the steps in float32
SCALE = 0.02  # standard deviation of B in the adapter that those steps start from
LOSS = config.PreferenceLoss(kind="dpo", beta=0.1)  # beta is TRL's default too


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a run trains on, by which settings."""

    method: Method
    learner: config.Learner
    samples: tuple[Any, ...]  # Example or Pair
    adapter: Path | None = None  # to start from, with the policy without it as the reference; None: a new one

    @classmethod
    def make(cls, method: Method, steps: int, threads: int, seed: int) -> Job:
        """The first queries of the smol recipe, with stretches of real text for answers."""
        plan, per_sample = smol(), 1 if method == "sft" else 2
        size = plan.recipe.learner.batch_size // per_sample  # so that steps of both methods read about as many tokens
        # No warm-up: TRL's begins at 0, ours does not.
        settings = {"epochs": 1, "threads": threads, "batch_size": size, "warmup_steps": 0}
        queries = first_queries(plan, steps * size)
        said = iter(answers(plan, load_tokenizer("embedded"), len(queries) * per_sample, seed))
        samples: list[Example | Pair] = []
        for query in queries:
            turns = conversation(plan.codec, query.direction, query.prompt.messages)
            if method == "sft":
                samples.append(Example(id=query.id, messages=turns, response=next(said)))
            else:
                samples.append(Pair(id=query.id, messages=turns, chosen=next(said), rejected=next(said)))
        return cls(method=method, learner=plan.recipe.learner.model_copy(update=settings), samples=tuple(samples))

    def few(self) -> Job:
        """One step of a few samples."""
        return replace(self, samples=self.samples[:FEW], learner=self.learner.model_copy(update={"batch_size": FEW}))

    def exact(self, adapter: Path) -> Job:
        """Two epochs in float32, where rounding hides nothing, from this adapter."""
        settings = {"dtype": "float32", "weights_dtype": "float32", "epochs": 2}
        return replace(self, adapter=adapter, learner=self.learner.model_copy(update=settings))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run came to."""

    tokens: int
    seconds: float
    losses: tuple[float, ...]  # of each step
    peak_mib: float


def encoded(job: Job, tokenizer: Any) -> list[tuple[Encoded, ...]]:
    """An example, or both sides of a pair, as both trainers read them."""
    if job.method == "sft":
        rows = [
            (sample.student,) for sample in train.encode_examples(job.samples, tokenizer, job.learner.max_length)[0]
        ]
    else:
        rows = [unit.sides for unit in encode_pairs(job.samples, tokenizer, job.learner.max_length)[0]]
    assert len(rows) == len(job.samples)
    return rows


def make_adapter(folder: Path, seed: int) -> None:
    """A LoRA of the smol recipe that changes what the policy says."""
    settings = smol().recipe.learner.lora
    assert settings is not None
    torch.manual_seed(seed)
    model = lora.attach(load_policy("embedded", torch.float32), settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=SCALE)
    save_adapter(model, folder)


def alone(work: Callable[..., Result], *args: Any) -> Result:
    """What `work` returns, from a process in which nothing else was done."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def peak_mib() -> float:
    """What this process held at most so far. Linux begins with what its parent held, which is less: it loads no policy."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- ours -------------------------------------------------------------------------------------------------------------


def fitted(job: Job, seed: int) -> Trained:
    """From the engine, when all is loaded, to the last step: what the reference says is between the two."""
    policy = resolve("embedded")
    shared: dict[str, Any] = {"learner": job.learner, "policy_dir": policy, "adapter_dir": job.adapter, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        if job.method == "sft":
            with watched(train) as watch:
                result = train.fit(job.samples, **shared, out_dir=folder, report=watch.step)
        else:
            reference = None if job.adapter is None else policy
            with watched(preferences) as watch:
                result = preferences.fit_preferences(
                    job.samples, **shared, loss=LOSS, reference_dir=reference, out_dir=folder, report=watch.step
                )
    assert result.num_examples == len(job.samples)
    return Trained(tokens=result.tokens, seconds=watch.seconds, losses=tuple(watch.losses), peak_mib=watch.peak_mib)


@dataclass(slots=True)
class Watch:
    """Of a training: its clock, which starts with the engine, and what its steps report."""

    began: float = 0.0
    seconds: float = 0.0
    peak_mib: float = 0.0
    losses: list[float] = field(default_factory=list)

    def step(self, figures: dict[str, Any], _folder: Path | None) -> None:
        self.seconds = time.perf_counter() - self.began
        self.peak_mib = peak_mib()
        self.losses.append(float(figures["learn/loss"]))


@contextmanager
def watched(module: ModuleType) -> Iterator[Watch]:
    """Within it, the clock starts when `module` has made its engine."""
    watch, make_engine = Watch(), module.make_engine

    def clocked(*args: Any) -> Any:
        engine = make_engine(*args)
        watch.began = time.perf_counter()
        return engine

    with patch.object(module, "make_engine", clocked):
        yield watch
