"""Ranks: the learners of online training as one group. They live across steps; the driver interleaves them with generation.

    with Ranks({"settings": recipe.grpo, ...}, recipe.learner, batch_of=batch_of, states=folder, deadline_s=3600) as ranks:
        metrics = ranks.update(ranks.at + 1)              # `at` is the step of the state that was found; 0: none
        ranks.save()
        ranks.publish("checkpoints/t=1", full=False, stored=False, cases=probe)

Every rank gets every call, and answers within a deadline. Where one dies, the others wait for it within a collective, or fail
with whatever their backend makes of a closed connection, maybe before Ray knows of the death. Either way the whole group is
started anew from its last state, and the updates since then are made again from the same batches, so they come out the same.
State is written by all ranks into a temporary folder, which the driver renames once it is complete.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError

from actors import probes
from actors.failures import LOST, once, one_line, ours
from actors.probes import Case
from actors.weights import write_probe
from actors.workers import COLLECTIVE_TIMEOUT_S, environment
from cluster.slots import slot
from rhumbline import config, durable
from rhumbline.data.chat import Encoded
from rhumbline.errors import ResourceError, TrainingError
from rhumbline.learning.trajectories import Trajectory, write

STATE = "ranks.json"
SETUP_DEADLINE_S = 900.0
PATIENCE_S = 30.0  # for the news of a rank's death, after another one has failed


class _LateError(ResourceError):
    """A call outlived its deadline."""


_LOST = (*LOST, _LateError)


class Rank:
    """One of them: `learning.online.OnlineLearner` in a process of its own."""

    def __init__(self, rank: int, size: int, arguments: Mapping[str, Any]) -> None:
        self.rank, self.size, self.arguments = rank, size, dict(arguments)
        # What the policy that training started from says of the probe's tokens, which stay the same in a run.
        self._began: tuple[list[Encoded], list[list[float]] | None] | None = None

    def address(self) -> str:
        """Where the others find rank 0; the port is free now."""
        with socket.socket() as free:
            free.bind(("", 0))
            find: Any = ray.util  # untyped
            return f"tcp://{find.get_node_ip_address()}:{free.getsockname()[1]}"

    def setup(self, address: str, state: str | None, patience_s: float = COLLECTIVE_TIMEOUT_S) -> None:
        """Meet the other ranks, load the weights, go on with a state. patience_s: how long a collective waits for the others."""
        import torch
        import torch.distributed as dist

        from rhumbline.learning.online import OnlineLearner

        learner: config.Learner = self.arguments["learner"]
        # DeepSpeed wants them, and sets the GPU by the last one: Ray shows an actor its own alone.
        os.environ |= {"RANK": str(self.rank), "WORLD_SIZE": str(self.size), "LOCAL_RANK": "0"}
        if self.size > 1 or learner.engine == "deepspeed":
            dist.init_process_group(
                "nccl" if learner.num_gpus > 0 and torch.cuda.is_available() else "gloo",
                init_method=address,
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=patience_s),
            )
        self.learner = OnlineLearner(**self.arguments, rank=self.rank, world_size=self.size)
        if state is not None:
            self.learner.load(Path(state))

    def pid(self) -> int:
        return os.getpid()

    def update(self, step: int, batch: Sequence[Trajectory]) -> dict[str, float]:
        return self.learner.update(step, batch)

    def save(self, folder: str) -> None:
        self.learner.save(Path(folder))

    def publish(self, folder: str, full: bool, stored: bool, cases: Sequence[Encoded]) -> float:
        """Rank 0 writes the weights and, beside them, what an engine that has them says of the probe's tokens.

        stored: engines read the full weights. Where the learner has more digits than bf16 keeps, the figures are of those in the
        folder, so that the proof is about what was to arrive. Returns how far they are from the learner's, nats per token: an
        update that is small beside the weights is partly lost.
        """
        self.learner.publish(Path(folder), full=full)
        logprobs = self.learner.probe(cases)
        stored = stored and self.learner.rounded
        start = None if stored else self.learner.probe_start(cases)
        if self.rank != 0:
            return 0.0
        rounding = 0.0
        if stored:
            exact, logprobs = logprobs, self._said(folder, cases)
            rounding = probes.distance(exact, logprobs)
            if self._began is None or self._began[0] != cases:
                policy = probes.started_from(self.arguments["policy_dir"], self.arguments["adapter_dir"])
                self._began = (list(cases), None if policy is None else self._said(policy, cases))
            start = self._began[1]
        began = [None] * len(cases) if start is None else start
        told = zip(cases, logprobs, began, strict=True)
        write_probe(folder, [Case(encoded=e, logprobs=now, start=then) for e, now, then in told])
        return rounding

    def _said(self, policy: str | Path, cases: Sequence[Encoded]) -> list[list[float]]:
        # On the CPU: a GPU that trains has no room for the weights once more.
        return probes.stored(policy, cases, self.arguments["trust_remote_code"], device="cpu")


class Ranks:
    """The group as one thing: calls go to all ranks, metrics are those of rank 0, which are those of all."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        learner: config.Learner,
        *,
        batch_of: Callable[[int], Sequence[Trajectory]],
        states: str | Path,
        deadline_s: float,
        failed_batch: str | Path | None = None,
        on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _fields: None,
    ) -> None:
        """`arguments` are those of `OnlineLearner`, without learner, rank and world_size; `batch_of(step)` gives a step's
        trajectories, the same whenever it is asked; `states` is where states are kept; failed_batch: where a batch is written
        that an update failed on.
        """
        self.arguments, self.learner, self.states = {**arguments, "learner": learner}, learner, Path(states).resolve()
        self.batch_of, self.deadline_s, self.on_event = batch_of, deadline_s, on_event
        self.failed_batch = failed_batch
        self.at = 0  # the step that the weights are of
        self.metrics: dict[str, float] = {}  # of that step
        self._actors: list[Any] = []
        self._failures = 0

    def __enter__(self) -> Self:
        try:
            try:
                self._start()
            except _LateError:
                raise  # the first time it is the cluster that has no room for them: to wait for it again does not help
            except _LOST as e:
                self._again(e, "setup")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def pids(self) -> list[int]:
        """Process ids, by rank."""
        return list(self._all("pid", deadline_s=60.0))

    def update(self, step: int, meanwhile: Callable[[], object] | None = None) -> dict[str, float]:
        """Make step `step`, and those before it that a new group has lost; `meanwhile` runs here while the ranks work.

        Raises what a rank raised, and TrainingError where the group was lost more than learner.max_failures times.
        """
        while self.at < step:
            batch = list(self.batch_of(self.at + 1))
            try:
                refs = self._send("update", self.at + 1, ray.put(batch))
                if self.at + 1 == step and meanwhile is not None:
                    work, meanwhile = meanwhile, None  # once, whatever happens to the ranks
                    work()
                self.metrics = self._learned(refs, batch)
                self.at += 1
            except _LOST as e:
                self._again(e, "update")
        return self.metrics

    def save(self) -> None:
        """Write the state of the step that was made last; older ones go."""
        folder = self.states / f"{self.at:06d}"
        if (folder / STATE).is_file():
            return
        with _unfinished(folder) as unfinished:
            self._surely("save", str(unfinished))
            durable.replace(unfinished / STATE, durable.to_json({"step": self.at, "metrics": self.metrics}).encode())
        for old in self._found()[:-1]:
            shutil.rmtree(old, ignore_errors=True)

    def publish(self, out: str | Path, *, full: bool, stored: bool, cases: Sequence[Encoded]) -> float:
        """The weights of this step in Hugging Face layout with probe.json; `full`: merged, not the adapter alone.

        stored: engines read the merged ones. Returns how far those are from the learner's own, nats per token of the probe.
        """
        with _unfinished(Path(out).resolve()) as unfinished:
            rounding: float = self._surely("publish", str(unfinished), full, stored, list(cases))[0]
        return rounding

    # --- inside -------------------------------------------------------------------------------------------------------

    def _learned(self, refs: list[Any], batch: Sequence[Trajectory]) -> dict[str, float]:
        """Rank 0's metrics of an update. A batch that it failed on is written here: ranks may be on other machines."""
        try:
            metrics: dict[str, float] = self._receive(refs, "update", self.deadline_s)[0]
        except TrainingError as e:
            if self.failed_batch is None or not batch:
                raise
            try:
                path = write(batch, self.failed_batch)
            except OSError:  # the first error says more
                raise e from None
            raise TrainingError(f"{e}. The batch is in {path}") from e
        return metrics

    def _found(self) -> list[Path]:
        return sorted(file.parent for file in self.states.glob(f"[0-9]*/{STATE}"))

    def _start(self) -> None:
        found = self._found()
        size, settings = self.learner.num_workers, self.learner
        held = once(num_cpus=settings.num_cpus, num_gpus=settings.num_gpus, env=environment(settings))
        make = ray.remote(Rank)
        self._actors = [
            make.options(**held, **slot("learner", rank)).remote(rank, size, self.arguments) for rank in range(size)
        ]
        address = self._receive([self._actors[0].address.remote()], "address", SETUP_DEADLINE_S)[0]
        state = str(found[-1]) if found else None
        # Longer than a call may take: where a rank hangs, the deadline has the group started anew, and a collective that gave
        # up before it would end the run.
        patience_s = max(COLLECTIVE_TIMEOUT_S, self.deadline_s + PATIENCE_S)
        self._all("setup", address, state, patience_s, deadline_s=SETUP_DEADLINE_S)
        told = durable.parse_json((found[-1] / STATE).read_bytes()) if found else None
        self.at, self.metrics = (0, {}) if told is None else (int(told["step"]), told["metrics"])

    def _end(self) -> None:
        for actor in self._actors:
            with contextlib.suppress(RayError):
                ray.kill(actor)
        self._actors = []

    def _again(self, error: BaseException, method: str) -> None:
        """Start the group anew, as often as the recipe allows."""
        reason = one_line(error)
        self._failures += 1
        self._end()
        if self._failures > self.learner.max_failures:
            raise TrainingError(
                f"the learners died or were late {self._failures} times (learner.max_failures is "
                f"{self.learner.max_failures}), last in {method}: {reason}"
            ) from error
        self.on_event("replaced", {"role": "learner", "method": method, "reason": reason})
        try:
            self._start()
        except _LOST as e:
            self._again(e, "setup")

    def _surely(self, method: str, *args: Any) -> list[Any]:
        """The replies of all ranks; where one dies, of the group that is started for them, brought to the same step."""
        step = self.at
        while True:
            try:
                return self._all(method, *args, deadline_s=self.deadline_s)
            except _LOST as e:
                self._again(e, method)
                self.update(step)

    def _send(self, method: str, *args: Any) -> list[Any]:
        return [getattr(actor, method).remote(*args) for actor in self._actors]

    def _all(self, method: str, *args: Any, deadline_s: float) -> list[Any]:
        return self._receive(self._send(method, *args), method, deadline_s)

    def _receive(self, refs: list[Any], method: str, deadline_s: float) -> list[Any]:
        """The replies, in order. One that fails ends the wait: the others may wait for it within a collective."""
        pending, until = list(refs), time.monotonic() + deadline_s
        try:
            while pending:
                ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, until - time.monotonic()))
                if not ready:
                    raise _LateError(_late(method, deadline_s, self.learner))
                ray.get(ready)
            return list(ray.get(refs))
        except RayTaskError as e:
            cause = culprit(e, _failures(pending, PATIENCE_S))
            if cause is e:
                raise
            raise cause from e


def culprit(error: BaseException, others: Iterable[BaseException]) -> BaseException:
    """Which of the ranks' errors to raise: what a rank raised on purpose, and of anything else the death that it comes from.

    `others` are waited for only as far as they are needed.
    """
    for one in itertools.chain([error], others):
        if (raised := ours(one)) is not None:
            return raised
        if isinstance(one, _LOST):
            return one
    return error


def _failures(refs: list[Any], patience_s: float) -> Iterator[BaseException]:
    """Errors of calls, as they come in."""
    until = time.monotonic() + patience_s
    while refs:
        ready, refs = ray.wait(refs, num_returns=1, timeout=max(0.0, until - time.monotonic()))
        if not ready:
            return
        try:
            ray.get(ready)
        except RayError as e:
            yield e


def _late(method: str, deadline_s: float, learner: config.Learner) -> str:
    said = f"{method} gave no answer within {deadline_s:g} s"
    if method in ("address", "setup"):
        return (
            f"the learners' {said}. Are {learner.num_workers} x {learner.num_cpus:g} CPUs and {learner.num_gpus:g} GPUs free on "
            "the cluster (`ray status`)? See learner.num_workers, num_cpus and num_gpus"
        )
    return f"the learners' {said} (deadline_s): raise it, or make steps smaller"


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `folder` once it is complete."""
    unfinished = folder.with_name(f".{folder.name}{durable.TEMPORARY}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
