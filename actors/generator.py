"""Generator: queries in, sampled completions out. Persistent: loads once per run, only weights move.

    generator = Generator(config.Generator(backend="vllm"), model="/cache/smollm2")
    generator.setup()
    generator.load("t=1", "runs/smol/checkpoints/t=1")
    generator.generate(queries, 4, recipe.sampling)      # 4 samples per query share one prefill

Two backends behind one interface: vLLM, and transformers for machines without it. Completions echo the policy version
that made them. Seeds are the queries' own, so a shard that is made again is the same shard: on GPUs by vLLM's batch-invariant
kernels, unless the recipe gives them up for speed (`generator.env: {VLLM_BATCH_INVARIANT: "0"}`). Log-probabilities are raw
(temperature 1), so that they compare with the learner's; token by token for those who ask, since they make shards large.

New weights reach vLLM as generator.sync says: an adapter by its path, all weights read again, or vLLM's weight transfer
(actors/transfer.py). Whichever it is, `switch` has the engine prove that it answers with them (actors/probes.py).
"""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from actors import probes, transfer
from actors.probes import Case
from rhumbline import config
from rhumbline.data.chat import Encoded, prompt_ids
from rhumbline.errors import ConfigError, GenerationError, WeightSyncError, did_you_mean
from rhumbline.learning.policy import load_policy, load_tokenizer, resolve, set_threads
from rhumbline.learning.precision import AUTO, name_of
from rhumbline.records import Completion, Query

UNPROVEN = "unproven"  # the version of an engine whose weights nobody can name


@dataclass(frozen=True, slots=True)
class Sample:
    """What a backend makes of a prompt."""

    text: str  # without special tokens
    token_ids: tuple[int, ...]  # (T,) the end token included
    logprobs: tuple[float, ...]  # (T,) log p of each, nats, at temperature 1
    ended: bool  # by itself


@dataclass(frozen=True, slots=True)
class Switched:
    """How an engine took new weights."""

    gap: float  # mean over the probe's tokens of |log p here - log p of the learner|, nats
    load_s: float  # 0 where it had them already
    probe_s: float  # before and after


class Backend(ABC):
    """An engine that samples from one policy at a time."""

    context: int  # tokens of prompt and response together

    @abstractmethod
    def sample(
        self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int], n: int, sampling: config.Sampling
    ) -> list[list[Sample]]:
        """n samples for every prompt; the same seed gives the same samples whatever is in the batch."""

    @abstractmethod
    def load(self, version: str, folder: Path) -> None:
        """Answer with other weights from now on, with nothing cached from the old ones.

        Raises WeightSyncError for a folder without whole weights, before anything has changed, and for an engine that
        fails to take them, which is of no use afterwards.
        """

    @abstractmethod
    def logprobs(self, encoded: Sequence[Encoded]) -> list[list[float]]:
        """Per learned token, log p under the policy that is loaded."""


class Generator:
    """Plain Python: tests construct it directly, `Pool` makes it a Ray actor."""

    def __init__(self, settings: config.Generator, *, model: str, trust_remote_code: bool = False) -> None:
        self.settings, self.model, self.trust_remote_code = settings, model, trust_remote_code
        self.version = "initial"
        self._accepted: dict[Encoded, Sequence[float]] = {}  # what the learner said of the probe that was passed last

    def setup(self) -> None:
        """Load tokenizer and engine; a failure reaches the driver with its reason."""
        self.tokenizer = load_tokenizer(self.model, self.trust_remote_code)
        backend = {"vllm": VLLM, "transformers": Transformers}[self.settings.backend]
        self.backend: Backend = backend(self.settings, str(resolve(self.model)), self.tokenizer, self.trust_remote_code)

    def pid(self) -> int:
        return os.getpid()

    def load(self, version: str, folder: str) -> str:
        """Take the checkpoint in `folder`, without a proof; every version needs a folder of its own."""
        if version != self.version:
            self.backend.load(version, Path(folder))
            self.version, self._accepted = version, {}
        return self.version

    def generate(
        self, queries: Sequence[Query], n: int, sampling: config.Sampling, token_logprobs: bool = False
    ) -> list[Completion]:
        """n completions per query, in order. Raises GenerationError for a prompt that does not fit the context."""
        prompts = [prompt_ids(query.messages, self.tokenizer) for query in queries]
        for query, prompt in zip(queries, prompts, strict=True):
            if len(prompt) + sampling.max_tokens > self.backend.context:
                raise GenerationError(
                    f"prompt {query.prompt.id} has {len(prompt)} tokens, which with sampling.max_tokens "
                    f"{sampling.max_tokens} exceeds the context of {self.backend.context}: raise "
                    "generator.engine.max_model_len or lower prompts.max_prompt_tokens"
                )
        sampled = self.backend.sample(prompts, [query.seed for query in queries], n, sampling)
        return [
            Completion(
                query=query,
                sample_index=index,
                text=sample.text,
                token_ids=sample.token_ids,
                logprob=math.fsum(sample.logprobs),
                finish_reason="stop" if sample.ended else "length",
                policy_version=self.version,
                token_logprobs=sample.logprobs if token_logprobs else (),
            )
            for query, samples in zip(queries, sampled, strict=True)
            for index, sample in enumerate(samples)
        ]

    def switch(self, version: str, folder: str, cases: Sequence[Case], tolerance: float) -> Switched:
        """`load`, proven by the learner's log-probabilities of fixed tokens; a version that is here already is proven again.

        Raises WeightSyncError with the figures for what `probes.prove` refuses. Until the proof is made the version is
        `UNPROVEN`: a switch that is tried again loads and proves again.
        """
        clock = time.monotonic
        encoded, began, here = [case.encoded for case in cases], clock(), version == self.version
        accepted = self._accepted
        before = None if self.version == UNPROVEN or here else self.backend.logprobs(encoded)
        probed = clock()
        if not here:
            self.load(version, folder)
            self.version = UNPROVEN
        loaded = clock()
        after = self.backend.logprobs(encoded)
        try:
            gap = probes.prove(after, cases, before=before, accepted=accepted, tolerance=tolerance)
        except WeightSyncError as e:
            self.version = UNPROVEN
            raise WeightSyncError(f"{version} from {folder}, {'loaded before' if here else 'just loaded'}: {e}") from e
        self.version, self._accepted = version, {case.encoded: case.logprobs for case in cases}
        load_s = 0.0 if here else loaded - probed
        return Switched(gap=gap, load_s=load_s, probe_s=clock() - began - load_s)

    def probe(self, cases: Sequence[Case]) -> float:
        """Mean over tokens of |log p here - log p of the learner|, nats. WeightSyncError where nothing compares."""
        said = self.backend.logprobs([case.encoded for case in cases])
        return probes.distance(said, [case.logprobs for case in cases])


class VLLM(Backend):
    """vLLM. On a CPU it runs inside this process: nearly twice the throughput, and no orphans when the process dies."""

    def __init__(self, settings: config.Generator, model: str, _tokenizer: Any, trust_remote_code: bool) -> None:
        if settings.num_gpus == 0:
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # without it vLLM asks for most of the memory
        else:
            # Else a sample depends on what happens to be in its batch. On CPUs it never does.
            os.environ.setdefault("VLLM_BATCH_INVARIANT", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        if settings.threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(settings.threads)  # Ray sets it from num_cpus
            set_threads(settings.threads)  # torch has read the variable already
        from vllm import LLM, EngineArgs

        known = {field.name for field in fields(EngineArgs)}
        for key in settings.engine.keys() - known:
            raise ConfigError(f"generator.engine.{key}: vLLM has no such setting.{did_you_mean(key, known)}")
        engine: dict[str, Any] = {"dtype": name_of(AUTO), "disable_log_stats": True, **settings.engine}
        if settings.num_gpus == 0:
            # Per-request seeds crash vLLM's CPU engine when a prompt is chunked: the batch must hold the longest one.
            engine.setdefault("enable_chunked_prefill", False)
            engine.setdefault("max_model_len", min(_context(model, trust_remote_code), 4096))
            engine.setdefault("max_num_batched_tokens", max(2048, int(engine["max_model_len"])))
        elif settings.num_gpus > 1:
            engine.setdefault("tensor_parallel_size", int(settings.num_gpus))
        if settings.sync == "adapter":
            engine.setdefault("enable_lora", True)
            engine.setdefault("max_lora_rank", 64)
            # Not the head: around it vLLM 0.32 fails on the log-probabilities of prompts, which the probe asks for.
            engine.setdefault("lora_target_modules", _linear(model, trust_remote_code))
        elif settings.sync == "transfer":
            engine |= transfer.session_settings(engine)
        self.sync = settings.sync
        self.llm: Any = LLM(model=model, trust_remote_code=trust_remote_code, **engine)
        self.context = int(self.llm.model_config.max_model_len)
        if settings.sync == "transfer":
            transfer.begin(self.llm)
        self.adapter: Any = None
        self.loads = 0

    def sample(
        self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int], n: int, sampling: config.Sampling
    ) -> list[list[Sample]]:
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                n=n,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=seed,
                logprobs=0,
            )
            for seed in seeds
        ]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.llm.generate(requests, parameters, use_tqdm=False, lora_request=self.adapter)
        return [
            [
                Sample(
                    text=o.text,
                    token_ids=tuple(o.token_ids),
                    logprobs=tuple(float(p[i].logprob) for i, p in zip(o.token_ids, o.logprobs, strict=True)),
                    ended=o.finish_reason == "stop",
                )
                for o in sorted(output.outputs, key=lambda o: o.index)
            ]
            for output in outputs
        ]

    def load(self, version: str, folder: Path) -> None:
        self.loads += 1
        if self.sync == "adapter":
            adapter = transfer.adapter_folder(folder)
        else:
            transfer.weight_files(folder)
        try:
            if self.sync == "adapter":
                self._adapt(version, adapter)
            elif self.sync == "full":
                self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            else:
                transfer.send(self.llm, version, folder)
        except Exception as e:  # of many kinds, and from child processes of none
            raise WeightSyncError(
                f"vLLM could not take {version} from {folder} (generator.sync: {self.sync}): {type(e).__name__}: {e}"
            ) from e
        if not self.llm.reset_prefix_cache():  # no load does this for us
            raise WeightSyncError(f"vLLM kept its prefix cache after loading {version}: requests are still under way")

    def _adapt(self, version: str, folder: Path) -> None:
        from vllm.lora.request import LoRARequest

        # A new name, id and path for every version: vLLM keeps answering with the old adapter otherwise.
        old, self.adapter = self.adapter, LoRARequest(version, self.loads, str(folder))
        self.llm.llm_engine.add_lora(self.adapter)  # now, and not with the first request
        if old is not None:
            self.llm.llm_engine.remove_lora(old.lora_int_id)

    def logprobs(self, encoded: Sequence[Encoded]) -> list[list[float]]:
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        requests = [{"prompt_token_ids": list(one.token_ids)} for one in encoded]
        outputs = self.llm.generate(requests, parameters, use_tqdm=False, lora_request=self.adapter)
        return [
            [
                float(given[token].logprob)
                for token, given, learned in zip(one.token_ids, output.prompt_logprobs, one.loss_mask, strict=True)
                if learned
            ]
            for one, output in zip(encoded, outputs, strict=True)
        ]


# Settings of `generate` that a recipe has a key of its own for.
_SAID = {
    "temperature": "sampling.temperature",
    "top_p": "sampling.top_p",
    "do_sample": "sampling.temperature",
    "max_new_tokens": "sampling.max_tokens",
    "num_return_sequences": "samples",
    "eos_token_id": "generation_config.json of the policy",
    "pad_token_id": "generation_config.json of the policy",
}


class Transformers(Backend):
    """`model.generate`, one query at a time: slow, and its samples depend on nothing but the query's seed."""

    def __init__(self, settings: config.Generator, model: str, tokenizer: Any, trust_remote_code: bool) -> None:
        from transformers import GenerationConfig

        set_threads(settings.threads)
        self.tokenizer, self.engine = tokenizer, dict(settings.engine)
        self.context = int(self.engine.pop("max_model_len", 0))
        self.trust_remote_code = trust_remote_code
        self.policy: Any = load_policy(model, trust_remote_code=trust_remote_code)
        self.context = self.context or _context(model, trust_remote_code)
        make: Any = GenerationConfig  # untyped
        known = set(make().to_dict())
        for key in self.engine.keys() - known:
            raise ConfigError(f"generator.engine.{key}: generate has no such setting.{did_you_mean(key, known)}")
        for key in self.engine.keys() & _SAID:
            raise ConfigError(f"generator.engine.{key}: the recipe says that elsewhere ({_SAID[key]}); leave it out")
        self._bare()

    def sample(
        self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int], n: int, sampling: config.Sampling
    ) -> list[list[Sample]]:
        return [self._one(prompt, seed, n, sampling) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _one(self, prompt: tuple[int, ...], seed: int, n: int, sampling: config.Sampling) -> list[Sample]:
        import torch

        from rhumbline.learning.logprobs import token_logprobs

        random = sampling.temperature > 0
        options: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        options = {**(options if random else {}), **self.engine}
        ids = torch.tensor([prompt], device=self.policy.device)
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            out = self.policy.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=random,
                num_return_sequences=n if random else 1,
                max_new_tokens=sampling.max_tokens,
                eos_token_id=self.ends,
                pad_token_id=self.ends[0],
                **options,
            )
        rows = [row[len(prompt) :].tolist() for row in out]
        stops = [next((i for i, token in enumerate(row) if token in self.ends), None) for row in rows]
        ended = [stop is not None for stop in stops]
        rows = [row if stop is None else row[: stop + 1] for row, stop in zip(rows, stops, strict=True)]
        if not random:
            rows, ended = rows * n, ended * n
        logprobs = token_logprobs(self.policy, [_encoded(prompt, tuple(row)) for row in rows], token_budget=8192)
        return [
            Sample(
                text=self.tokenizer.decode(row, skip_special_tokens=True),
                token_ids=tuple(row),
                logprobs=tuple(logprobs_T.tolist()),
                ended=end,
            )
            for row, logprobs_T, end in zip(rows, logprobs, ended, strict=True)
        ]

    def load(self, version: str, folder: Path) -> None:  # noqa: ARG002  (nothing is cached by version here)
        transfer.weight_files(folder)
        self.policy = load_policy(folder, trust_remote_code=self.trust_remote_code)
        self._bare()

    def _bare(self) -> None:
        """Of what a checkpoint says about sampling, only where an answer ends: a penalty, say, would make it another policy."""
        from transformers import GenerationConfig

        make: Any = GenerationConfig  # untyped
        said = self.policy.generation_config.eos_token_id
        own = [] if said is None else [said] if isinstance(said, int) else list(said)
        self.ends = list(dict.fromkeys([int(self.tokenizer.eos_token_id), *own]))
        self.policy.generation_config = make()

    def logprobs(self, encoded: Sequence[Encoded]) -> list[list[float]]:
        from rhumbline.learning.logprobs import token_logprobs

        return [one.tolist() for one in token_logprobs(self.policy, encoded, token_budget=8192)]


def _encoded(prompt: tuple[int, ...], response: tuple[int, ...]) -> Encoded:
    return Encoded(token_ids=prompt + response, loss_mask=(False,) * len(prompt) + (True,) * len(response))


def _context(model: str, trust_remote_code: bool) -> int:
    """Tokens that the policy was made for."""
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    return int(settings.max_position_embeddings)


def _linear(model: str, trust_remote_code: bool) -> list[str]:
    """Last names of the policy's linear layers, without its head: ['down_proj', 'gate_proj', ...]."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):  # the names alone
        empty = auto.from_config(settings, trust_remote_code=trust_remote_code)
    head = empty.get_output_embeddings()
    linear = (name for name, layer in empty.named_modules() if isinstance(layer, torch.nn.Linear) and layer is not head)
    return sorted({name.rpartition(".")[-1] for name in linear})
