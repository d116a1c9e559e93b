"""Ray Train on the driver's side: workers started, their steps watched, what stopped them raised as they raised it.

with Steps("smol-t1", "train/smol-t1.steps.jsonl", on_step) as watched:
    fit(handed, recipe.learner, "smol-t1", "train", watched.look)
raise_left(failure)
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from actors.progress import Progress, learner_metrics
from actors.workers import COLLECTIVE_TIMEOUT_S, environment, worker
from rhumbline import config, errors
from rhumbline.errors import RhumblineError, TrainingError

_TICK_S = 1.0


def fit(handed: dict[str, Any], learner: config.Learner, name: str, storage: Path, look: Callable[[], None]) -> None:
    """`TorchTrainer.fit` here, where signals arrive, while a thread looks at the steps."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    train: Any = ray.train  # its types are those of the older API
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")  # also how soon a reported checkpoint is committed
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, _controller: Any) -> None:
            """The session's own stays: Ray's would be kept after the training, and end the job with 0."""

        def _create_default_callbacks(self) -> list[Any]:
            """Without Ray's cleaner of placement groups (2.60): it looks for the controller at the dashboard that `auto`
            finds. Where that is another cluster's on this machine, it takes a healthy training's workers away. The groups of
            a job that ends are removed without it.
            """
            base: Any = super()  # typed as the older API's
            return [
                one for one in base._create_default_callbacks() if not isinstance(one, PlacementGroupCleanerCallback)
            ]

    trainer: Any = Trainer(
        worker,
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
            raise_left(Path(handed["failure"]))
            text = str(next(iter(getattr(e, "worker_failures", {}).values()), e)).strip()
            raise TrainingError(
                f"{name}: training failed on every attempt (learner.max_failures): {text[-2000:]}"
            ) from e


class Steps:
    """Reads what rank 0 writes at every step: to the progress line, the metrics and `on_step`."""

    def __init__(self, name: str, path: Path, on_step: Callable[[dict[str, Any]], None] | None) -> None:
        self.name, self.path, self.on_step = name, path, on_step
        self.progress: Progress | None = None
        self._stack = ExitStack()
        self._read = self._tokens = 0

    def __enter__(self) -> Steps:
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


def raise_left(failure: Path) -> None:
    """Raise what `worker` left, as it was raised."""
    if not failure.is_file():
        return
    left = json.loads(failure.read_text(encoding="utf-8"))
    failure.unlink()
    kind: type[RhumblineError] = getattr(errors, left["kind"], TrainingError)
    raise kind(left["message"])


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
        except Exception as e:  # whatever it is, it belongs to the thread that waits
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
