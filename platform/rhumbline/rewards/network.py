"""A language model with outputs on top that reads an answer, or two: what every trained reward model is. Over `reading`.

    network = Network.start(resolve("embedded"), NetworkSpec(kind_of_input="pair", outputs=("helpfulness",)))
    rows = [network.reader.pair(prompt, "Because of scattering."), network.reader.pair(prompt, "No idea.")]
    network.outputs(rows)                     # (2, 1), differentiable
    network.save("rewards/mine")              # transformers' AutoModelForSequenceClassification loads it as it is
    Network.load("rewards/mine").raw(rows)    # (2, 1) float64, in batches, without gradients

It is transformers' own classification model: a decoder is read at the end token of the answer, an encoder at its first token
through its own head. On one row without padding, transformers' forward gives our outputs; pooling `mean` and the logits by
length are ours alone. A decoder computes a prompt once for all its answers (`trees`). An encoder is padded on its right,
whatever is asked: its positions are counted from the left, and padding there would move them.

The known trap: where padding is the end token, transformers takes the token before it for the last one and scores another
position. So another padding token is chosen and saved. N rows, H outputs, B trees, T tokens, D hidden size, V vocabulary,
R tokens of answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from rhumbline import config
from rhumbline.errors import ConfigError, ScoringError
from rhumbline.learning import lora
from rhumbline.learning.policy import resolve, save_adapter
from rhumbline.rewards.features import fingerprint
from rhumbline.rewards.pretrained import (
    HEADS,
    check_length,
    is_decoder,
    load_lm_head,
    load_model,
    padding_token,
    quiet,
    read_settings,
    read_tokenizer,
)
from rhumbline.rewards.reading import NetworkSpec as NetworkSpec
from rhumbline.rewards.reading import Reader
from rhumbline.rewards.trees import PACKED_TOKENS, Row, Side, Span, Tree, batches, lay_out, like_lengths, trees_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPEC = "rhumbline"  # the key of config.json under which the spec is saved
HEAD_STD = 0.01  # times 1 / sqrt(D): fresh outputs are near 0, whatever the backbone is


class Network(nn.Module):
    """A backbone and its outputs. `model` is transformers' own, a `PeftModel` around it after `attach`."""

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, spec: NetworkSpec, lm_head: nn.Linear | None = None
    ) -> None:
        """`lm_head`: of a decoder that also learns language; see `start`. Raises ConfigError for a spec that the model
        cannot serve.
        """
        super().__init__()
        self.model, self.lm_head = model, lm_head
        self.tokenizer, self.spec = tokenizer, spec
        self.decoder = is_decoder(model.config)
        check_length(model.config, tokenizer, spec.max_tokens)
        if self.head is None:
            raise ConfigError(
                f"{type(model).__name__} keeps its outputs in none of {', '.join(HEADS)}: it is not known"
            )
        self.reader = Reader(tokenizer, spec)
        setattr(self.head, "forward", MethodType(_in_own_precision, self.head))  # noqa: B010  mypy takes it for a mistake
        # After loading: given earlier, transformers would never train that token's embedding.
        padding = padding_token(tokenizer, model.get_input_embeddings().weight.shape[0])
        tokenizer.pad_token_id = model.config.pad_token_id = model.config.get_text_config().pad_token_id = padding

    @classmethod
    def start(
        cls,
        folder: str | Path,
        spec: NetworkSpec,
        *,
        lm: bool = False,
        load_in_8bit: bool = False,
        trust_remote_code: bool = False,
        dtype: torch.dtype = torch.float32,
        device: str | None = None,
    ) -> Network:
        """A base model with a fresh head, drawn from torch's global generator. `device` None: the GPU that this process sees.

        lm: also the base model's output embeddings, for `outputs_and_logits`. Raises ConfigError for a folder that
        transformers cannot read, and where the spec or the options do not fit the model.
        """
        path = resolve(folder)
        settings = read_settings(path, trust_remote_code)
        settings.id2label = dict(enumerate(spec.outputs))
        settings.label2id = {name: i for i, name in enumerate(spec.outputs)}
        options: dict[str, Any] = {"dtype": dtype, "device": device, "load_in_8bit": load_in_8bit}
        model = load_model(path, settings, fresh=True, trust_remote_code=trust_remote_code, **options)
        lm_head = load_lm_head(path, model, settings, trust_remote_code) if lm else None
        network = cls(model, read_tokenizer(path, settings, trust_remote_code), spec, lm_head)
        last = [module for module in network.head.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            # Drawn on the CPU, so that the numbers do not depend on the device.
            last.weight.copy_(torch.empty(last.weight.shape).normal_(0, HEAD_STD / last.in_features**0.5))
            if last.bias is not None:
                last.bias.zero_()
        return network

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        load_in_8bit: bool = False,
        trust_remote_code: bool = False,
        dtype: torch.dtype = torch.float32,
        device: str | None = None,
    ) -> Network:
        """What `save` wrote, in evaluation mode. Raises ConfigError for a folder that holds something else."""
        path = Path(folder).expanduser()
        settings = read_settings(path, trust_remote_code)
        said = getattr(settings, SPEC, None)
        if not isinstance(said, Mapping):
            raise ConfigError(
                f"{path}/config.json is not of a reward network that jobs/reward.py wrote: no {SPEC!r} in it"
            )
        try:
            logits = tuple(tuple(one) for one in said["length_logits"])
            spec = NetworkSpec(**{**said, "outputs": tuple(said["outputs"]), "length_logits": logits})
        except (TypeError, KeyError) as e:
            raise ConfigError(f"{path}/config.json: {SPEC!r} cannot be read: {e}") from None
        options: dict[str, Any] = {"dtype": dtype, "device": device, "load_in_8bit": load_in_8bit}
        model = load_model(path, settings, fresh=False, trust_remote_code=trust_remote_code, **options)
        return cls(model, read_tokenizer(path, settings, trust_remote_code), spec).eval()

    @property
    def inner(self) -> Any:
        """transformers' model, without peft around it."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def head(self) -> Any:
        """The module that makes outputs of states."""
        return next((getattr(self.inner, name) for name in HEADS if hasattr(self.inner, name)), None)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells this architecture from others."""
        return fingerprint(self.inner.config)

    def attach(self, adapter: config.Lora) -> None:
        """From here on a LoRA and the head are trained, in fp32, and nothing else."""
        self.model = lora.attach(self.model, adapter, task_type="SEQ_CLS")
        self.head.float()  # peft has trained a copy since, and the original beside it says which precision is read
        if self.lm_head is not None:
            self.lm_head.requires_grad_(False)

    # --- reading ----------------------------------------------------------------------------------------------------

    def outputs(self, rows: Sequence[Row], side: Side = "right") -> torch.Tensor:
        """(N, H) in fp32, differentiable, in the order of `rows`, which are one batch."""
        outputs_NH, _ = self(rows, side)
        return cast(torch.Tensor, outputs_NH)

    def outputs_and_logits(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, H) outputs, and (R, V) logits of the answers' tokens with these tokens (R,), row by row: one pass for both.

        The logits are the base model's, of a network that was started with `lm`.
        """
        outputs_NH, logits_RV = self(rows, lm=True)
        targets_R = torch.tensor([token for row in rows for token in row.answer], device=outputs_NH.device)
        return outputs_NH, logits_RV, targets_R

    def forward(
        self, rows: Sequence[Row], side: Side = "right", lm: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Outputs, and with `lm` the logits of every answer token: what an engine may wrap."""
        if not self.decoder:
            return self._encoded(rows) + self._by_length(rows), None
        layout = lay_out(trees_of(rows, self._limit), self.tokenizer.pad_token_id, side)
        device, spans = self.device, [layout.spans[i] for i in range(len(rows))]
        states_BTD = self.inner.base_model(
            input_ids=layout.ids_BT.to(device),
            attention_mask=layout.seen_BTT[:, None].to(device),
            position_ids=layout.positions_BT.to(device),
            use_cache=False,
        ).last_hidden_state
        outputs_NH = self._on_top(_pooled(states_BTD, spans, self.spec.pooling)) + self._by_length(rows)
        return outputs_NH, self._logits(states_BTD, spans) if lm else None

    def batches(self, rows: Sequence[Row], token_budget: int) -> Iterator[list[int]]:
        """Indices of rows that go together, longest first, at most `token_budget` padded tokens each, one row at least.

        A decoder's batch holds all answers to a prompt where they fit.
        """
        if self.decoder:
            trees = trees_of(rows, min(self._limit, token_budget))
        else:
            trees = [Tree(row.prefix, (i,), (row.answer,)) for i, row in enumerate(rows)]
            trees.sort(key=len, reverse=True)
        for group in batches(trees, token_budget):
            yield [i for tree in group for i in tree.members]

    def raw(self, rows: Sequence[Row], token_budget: int = 4096, side: Side = "right") -> NDArray[np.float64]:
        """(N, H) outputs in the order of `rows`, without gradients, in batches. Raises ScoringError where one is not finite."""
        out_NH = np.empty((len(rows), len(self.spec.outputs)))
        with torch.inference_mode():
            for group in self.batches(rows, token_budget):
                out_NH[group] = self.outputs([rows[i] for i in group], side).double().cpu().numpy()
        broken = np.flatnonzero(~np.isfinite(out_NH).all(axis=1))
        if len(broken):
            raise ScoringError(f"the network gives outputs that are not finite for {len(broken)} of {len(rows)} inputs")
        return out_NH

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def _limit(self) -> int:
        """Tokens of one tree: a few answers to the longest prompt."""
        return max(PACKED_TOKENS, 2 * self.spec.max_tokens)

    def _encoded(self, rows: Sequence[Row]) -> torch.Tensor:
        """(N, H). Rows of like lengths go together: an encoder computes what it is padded with like everything else. Several
        workers read all rows at once: each must make the same number of passes, or those who wait for weights hang.
        """
        alone = not (dist.is_initialized() and dist.get_world_size() > 1)
        groups = like_lengths([len(row) for row in rows]) if alone else [list(range(len(rows)))]
        out_NH = torch.cat([self._padded([rows[i] for i in group]) for group in groups])
        places_N = torch.tensor([i for group in groups for i in group]).argsort()
        return out_NH[places_N.to(out_NH.device)]

    def _padded(self, rows: Sequence[Row]) -> torch.Tensor:
        width = max(map(len, rows))
        ids_NT = torch.full((len(rows), width), cast(int, self.tokenizer.pad_token_id), dtype=torch.long)
        mask_NT, second_NT = torch.zeros_like(ids_NT), torch.zeros_like(ids_NT)
        for n, row in enumerate(rows):
            ids_NT[n, : len(row)] = torch.tensor((*row.prefix, *row.answer))
            mask_NT[n, : len(row)] = 1
            second_NT[n, len(row.prefix) : len(row)] = 1
        given = {"input_ids": ids_NT, "attention_mask": mask_NT}
        if "token_type_ids" in self.tokenizer.model_input_names:
            given["token_type_ids"] = second_NT
        given = {name: tensor.to(self.device) for name, tensor in given.items()}
        if self.spec.pooling == "end":
            return cast(torch.Tensor, self.inner(**given).logits.float())
        states_NTD = self.inner.base_model(**given).last_hidden_state
        spans = [Span(n, len(row.prefix), len(row), 0) for n, row in enumerate(rows)]
        return self._on_top(_pooled(states_NTD, spans, self.spec.pooling))

    def _by_length(self, rows: Sequence[Row]) -> torch.Tensor:
        """(N, H) what the lengths of two answers say before they are read; of one answer, nothing."""
        if not self.spec.length_logits:
            return torch.zeros(len(rows), len(self.spec.outputs), device=self.device)
        d_N = torch.tensor([row.log_ratio for row in rows], device=self.device)
        logits_H3 = torch.tensor(self.spec.length_logits, device=self.device)
        # No matrix product: autocast would round it.
        return (torch.stack([torch.ones_like(d_N), d_N, d_N.abs()], dim=1)[:, None] * logits_H3).sum(dim=2)

    def _on_top(self, states_ND: torch.Tensor) -> torch.Tensor:
        """(N, H) by the head."""
        head = self.head
        plain = isinstance(getattr(head, "original_module", head), nn.Linear)
        # Heads that are more than one layer take the first of several tokens.
        out_NH = head(states_ND) if plain else head(states_ND[:, None])
        return cast(torch.Tensor, out_NH.float())

    def _logits(self, states_BTD: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
        """(R, V): an answer's first token is foretold by the prompt's last one, the others by the one before."""
        if self.lm_head is None:
            raise ConfigError(
                "this network holds no output embeddings: the language-modelling loss needs start(lm=True)"
            )
        trees = [span.tree for span in spans for _ in range(span.begin, span.end)]
        before = [t for span in spans for t in (span.before, *range(span.begin, span.end - 1))]
        logits_RV = self.lm_head(states_BTD[trees, before])
        cap = getattr(self.inner.config, "final_logit_softcapping", None)  # Gemma 2
        return cast(torch.Tensor, logits_RV if cap is None else cap * torch.tanh(logits_RV / cap))

    # --- on disk ----------------------------------------------------------------------------------------------------

    def save(
        self,
        folder: str | Path,
        weights: Mapping[str, torch.Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Path:
        """Hugging Face layout: what transformers loads as it is, and `load`. Under LoRA the merged weights, and the adapter
        with the head in adapter/, as peft has it; merged is what the adapter's file holds, summed in fp32.

        `weights` by this module's names, for engines that shard them (all, or those that are trained); None: its own.
        """
        target, prefix = Path(folder), "model."
        own = self.model.state_dict()
        own |= {k.removeprefix(prefix): v for k, v in (weights or {}).items() if k.startswith(prefix)}
        model = self.inner
        if hasattr(self.model, "peft_config"):
            save_adapter(self.model, target / "adapter", own)
            model = self._merged(own)
            own = model.state_dict()
        state = {k: v.detach().to("cpu", dtype if v.is_floating_point() else v.dtype) for k, v in own.items()}
        with quiet():
            model.save_pretrained(target, state_dict=state)
        settings = deepcopy(model.config)  # written again: transformers has put the live model's dtype into it
        settings.dtype = dtype
        setattr(settings, SPEC, {**asdict(self.spec), "outputs": list(self.spec.outputs)})
        settings.save_pretrained(target)
        self.tokenizer.save_pretrained(target)
        return target

    def _merged(self, own: Mapping[str, torch.Tensor]) -> Any:
        """A copy on the CPU with the adapter merged in fp32, as its file holds it: in bf16."""
        stored = {k: v.to(torch.bfloat16) if ".lora_" in k or ".modules_to_save." in k else v for k, v in own.items()}
        copy = deepcopy(self.model).cpu().float()
        copy.load_state_dict({k: v.detach().cpu().float() for k, v in stored.items()})
        return copy.merge_and_unload()


def _in_own_precision(self: Any, states: torch.Tensor) -> torch.Tensor:
    """A head's forward in the precision of its weights, whatever its states and autocast are in: bf16 would round 50.1 to 50."""
    with torch.autocast(states.device.type, enabled=False):
        out: torch.Tensor = type(self).forward(self, states.to(next(self.parameters()).dtype))
    return out


def _pooled(states_BTD: torch.Tensor, spans: Sequence[Span], pooling: str) -> torch.Tensor:
    """(N, D): the last token of each span, or the mean of those before it; an empty answer has its last token alone."""
    if pooling == "end":
        return states_BTD[[span.tree for span in spans], [span.end - 1 for span in spans]]
    means = [states_BTD[s.tree, s.begin : max(s.end - 1, s.begin + 1)].mean(dim=0) for s in spans]
    return torch.stack(means)
