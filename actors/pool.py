"""An ordered, streaming map over replicas of an actor: back-pressure, deadlines, replacement of the dead.

    with Pool(Scorer, {"rewards": recipe.rewards, ...}, role="scorer", replicas=2, num_cpus=1) as scorers:
        for key, scored in scorers.map("score", ((i, (batch,)) for i, batch in enumerate(batches))):
            ...                            # in the order of the units; later units are under way meanwhile

`units` is pulled only as results are taken, so pools chain: `scorers.map("score", generators.map("generate", units))`
scores one shard while the next is generated. Ray retries nothing here (`max_task_retries=0`): a unit whose actor dies,
or that outlives its deadline, is tried again on a fresh replica, and after `max_attempts` it comes back as `Failed`.
Where `max_attempts` units in a row end like that, it is no unit's fault: the run stops with the reason.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from actors.failures import LOST, once, one_line, ours
from cluster.slots import slot
from rhumbline.errors import GenerationError, ResourceError, RhumblineError, ScoringError

_QUARANTINE = (GenerationError, ScoringError)  # a unit's own fault; anything else stops the run
_TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Failed:
    """A unit that was given up: counted by whoever reads it, never silent."""

    error: str
    attempts: int


@dataclass(slots=True)
class _Unit:
    index: int
    key: Any
    args: tuple[Any, ...]
    attempts: int = 0


@dataclass(slots=True)
class _Replica:
    handle: Any
    index: int  # its place among the replicas
    queue: deque[tuple[Any, _Unit, float]] = field(default_factory=deque)  # (ref, unit, deadline), oldest first


class Pool:
    """Replicas of one actor class that set themselves up, are reloaded together and are replaced when they die."""

    def __init__(
        self,
        actor: type[Any],
        arguments: Mapping[str, Any],
        *,
        role: str,
        replicas: int = 1,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
        env: Mapping[str, str] | None = None,
        deadline_s: float = 900.0,
        setup_deadline_s: float = 600.0,
        max_attempts: int = 3,
        queue_length: int = 2,
        on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _fields: None,
    ) -> None:
        """`queue_length` units wait at a replica, so that it never idles; `on_event` hears of replacements."""
        held = once(num_cpus=num_cpus, num_gpus=num_gpus, env=env or {})
        self._spawn: Callable[[int], Any] = lambda index: (
            ray.remote(actor).options(**held, **slot(role, index)).remote(**arguments)
        )
        self.role, self.num_replicas, self.deadline_s = role, replicas, deadline_s
        self.setup_deadline_s, self.max_attempts, self.queue_length = setup_deadline_s, max_attempts, queue_length
        self._on_event = on_event
        self._given_up = 0  # units in a row
        self._replicas: list[_Replica] = []
        self._replay: dict[str, tuple[Any, ...]] = {}  # the last call of each broadcast method, for newcomers

    def __enter__(self) -> Self:
        self._replicas = [_Replica(self._spawn(index), index) for index in range(self.num_replicas)]
        refs = [replica.handle.setup.remote() for replica in self._replicas]
        try:
            for replica, ref in zip(self._replicas, refs, strict=True):
                try:
                    self._get(ref, self.setup_deadline_s, "setup")
                except LOST as e:
                    self._on_event("replaced", {"role": self.role, "method": "setup", "reason": one_line(e)})
                    self._renew(replica)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def started(self) -> bool:
        return bool(self._replicas)

    def close(self) -> None:
        """End the replicas: Ray does not drain actors when a driver ends."""
        for replica in self._replicas:
            with contextlib.suppress(RayError):
                ray.kill(replica.handle)
        self._replicas = []

    def broadcast(self, method: str, *args: Any, deadline_s: float | None = None) -> list[Any]:
        """Call a method on every replica and wait; newcomers hear the last call of each method too."""
        self._replay[method] = args
        refs = [getattr(replica.handle, method).remote(*args) for replica in self._replicas]
        results = []
        for replica, ref in zip(self._replicas, refs, strict=True):
            try:
                results.append(self._get(ref, deadline_s or self.deadline_s, method))
            except LOST as e:
                self._on_event("replaced", {"role": self.role, "method": method, "reason": one_line(e)})
                results.append(self._renew(replica)[method])
        return results

    def pids(self) -> list[int]:
        """Process ids of the replicas."""
        return [self._get(replica.handle.pid.remote(), 60.0, "pid") for replica in self._replicas]

    def map(self, method: str, units: Iterable[tuple[Any, tuple[Any, ...]]]) -> Iterator[tuple[Any, Any]]:
        """`method(*args)` for every (key, args); yields (key, result or Failed) in the order of the units.

        Raises UserError and anything that is not a unit's own fault (GenerationError, ScoringError) as it is.
        """
        source = enumerate(units)
        retries: deque[_Unit] = deque()
        results: dict[int, tuple[Any, Any]] = {}
        next_index, exhausted = 0, False
        window = self.num_replicas * (self.queue_length + 1)
        try:
            while True:
                while next_index in results:
                    yield results.pop(next_index)
                    next_index += 1
                under_way = sum(len(replica.queue) for replica in self._replicas)
                replica = min(self._replicas, key=lambda r: len(r.queue))
                free = len(replica.queue) < self.queue_length
                if free and retries:
                    self._submit(replica, method, retries.popleft())
                elif free and not exhausted and under_way + len(results) < window:
                    try:
                        index, (key, args) = next(source)
                    except StopIteration:
                        exhausted = True
                        continue
                    if isinstance(args, Failed):  # a unit that failed in the pool before this one passes through
                        results[index] = (key, args)
                    else:
                        self._submit(replica, method, _Unit(index, key, args))
                elif under_way:
                    self._collect(retries, results)
                elif exhausted and not retries:
                    return
        finally:
            for replica in self._replicas:  # the reader stopped early: what is under way is not wanted any more
                for ref, _, _ in replica.queue:
                    with contextlib.suppress(RayError):
                        ray.cancel(ref)
                replica.queue.clear()

    def _submit(self, replica: _Replica, method: str, unit: _Unit) -> None:
        # Units at a replica run one after the other, so the second waits for the first's whole time as well.
        deadline = time.monotonic() + self.deadline_s * (len(replica.queue) + 1)
        replica.queue.append((getattr(replica.handle, method).remote(*unit.args), unit, deadline))

    def _collect(self, retries: deque[_Unit], results: dict[int, tuple[Any, Any]]) -> None:
        """Wait up to a tick for one reply; sort what came, what died and what is late."""
        # The oldest call of each replica alone: when an actor dies all of its calls are ready, and of several ready ones
        # ray.wait may return any.
        heads = [replica.queue[0][0] for replica in self._replicas if replica.queue]
        ready, _ = ray.wait(heads, num_returns=1, timeout=_TICK_S)
        now = time.monotonic()
        for replica in self._replicas:
            while replica.queue:
                ref, unit, deadline = replica.queue[0]
                if ref not in ready:
                    if now <= deadline:
                        break
                    # ray.wait names one of several ready calls, and who reads the results may have been away for long.
                    if not ray.wait([ref], timeout=0, fetch_local=False)[0]:
                        self._lost(replica, retries, results, f"no answer within {self.deadline_s:g} s")
                        break
                try:
                    value = ray.get(ref)
                except LOST as e:
                    self._lost(replica, retries, results, one_line(e))
                    break
                except RayTaskError as e:
                    replica.queue.popleft()
                    cause = ours(e) or e
                    if not isinstance(cause, _QUARANTINE):
                        raise cause from e
                    self._again(unit, retries, results, str(cause), type(cause))
                else:
                    replica.queue.popleft()
                    self._given_up = 0
                    results[unit.index] = (unit.key, value)

    def _lost(self, replica: _Replica, retries: deque[_Unit], results: dict[int, tuple[Any, Any]], reason: str) -> None:
        """Replace a replica. The unit that it was working on has failed once; those behind it have not begun."""
        (_, culprit, _), *waiting = replica.queue
        replica.queue.clear()
        self._on_event("replaced", {"role": self.role, "unit": str(culprit.key), "reason": reason})
        self._renew(replica)
        for _, unit, _ in reversed(waiting):
            retries.appendleft(unit)
        self._again(culprit, retries, results, reason, GenerationError)

    def _again(
        self,
        unit: _Unit,
        retries: deque[_Unit],
        results: dict[int, tuple[Any, Any]],
        reason: str,
        kind: type[RhumblineError],
    ) -> None:
        unit.attempts += 1
        if unit.attempts < self.max_attempts:
            retries.appendleft(unit)
            return
        self._on_event("quarantined", {"role": self.role, "unit": str(unit.key), "reason": reason})
        self._given_up += 1
        if self._given_up >= self.max_attempts:
            raise kind(
                f"{self.role}: {self._given_up} units in a row failed {unit.attempts} times each, last: {reason}"
            )
        results[unit.index] = (unit.key, Failed(error=reason, attempts=unit.attempts))

    def _renew(self, replica: _Replica) -> dict[str, Any]:
        """Spawn a fresh actor in a replica's place, set up and loaded as the others are; replies by method."""
        reason = ""
        for _ in range(self.max_attempts):
            with contextlib.suppress(RayError):
                ray.kill(replica.handle)
            replica.handle = self._spawn(replica.index)
            try:
                self._get(replica.handle.setup.remote(), self.setup_deadline_s, "setup")
                return {
                    method: self._get(getattr(replica.handle, method).remote(*args), self.deadline_s, method)
                    for method, args in self._replay.items()
                }
            except LOST as e:
                reason = one_line(e)
        raise GenerationError(f"{self.role}: {self.max_attempts} fresh replicas died while starting: {reason}")

    def _get(self, ref: Any, deadline_s: float, method: str) -> Any:
        try:
            return ray.get(ref, timeout=deadline_s)
        except GetTimeoutError:
            raise ResourceError(
                f"{self.role}: {method} gave no answer within {deadline_s:g} s. Are {self.num_replicas} x its CPUs and "
                f"GPUs free on the cluster (`ray status`)? See {self.role}.replicas, num_cpus and num_gpus"
            ) from None
        except RayTaskError as e:
            raise (ours(e) or e) from e
