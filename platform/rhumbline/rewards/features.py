"""Features of an answer: hidden states of a frozen language model that reads prompt and answer. Under `regression`.

    backbone = Backbone.load(resolve("embedded"), FeatureSpec(layer=15))
    features_ND, lengths_N = backbone.features([(prompt, "Because of scattering."), ...])

Only the layers up to the chosen one are loaded and run. An answer's features do not depend on what else is in the
batch: padding is masked, positions are given, and everything is computed in float32 (bfloat16 moves scores by more than
the 1e-4 that is allowed). N answers, D features, B rows of a batch, T tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from rhumbline.data.chat import encode
from rhumbline.errors import ConfigError, ScoringError
from rhumbline.learning.policy import load_tokenizer, set_threads
from rhumbline.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pair = tuple[Prompt, str]  # what is scored: a prompt and an answer to it
Side = Literal["right", "left"]
Pooling = Literal["mean", "last", "end"]
POOLINGS: tuple[Pooling, ...] = ("mean", "last", "end")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """What is read off the backbone; part of a head's schema, since coefficients mean nothing without it."""

    layer: int  # hidden states after this many layers; after the last one they are normalised, as the model has it
    pooling: tuple[Pooling, ...] = ("mean",)  # mean over the answer's tokens, its last token, the end token after it
    max_tokens: int = 384  # of prompt and answer together; a longer prompt loses its beginning
    max_response_tokens: int = 256  # a longer answer loses its end
    template: Literal["chat"] = "chat"  # the backbone's own chat template, through rhumbline.data.chat.encode

    def __post_init__(self) -> None:
        if self.layer < 1 or not self.pooling or not set(self.pooling) <= set(POOLINGS):
            raise ConfigError(
                f"features: expected layer >= 1 and pooling from {', '.join(POOLINGS)}, "
                f"got {self.layer} and {self.pooling}"
            )
        if not 1 <= self.max_response_tokens < self.max_tokens:
            raise ConfigError(
                f"features.max_response_tokens must leave room for the prompt: expected 1 to {self.max_tokens - 1} "
                f"(max_tokens - 1), got {self.max_response_tokens}"
            )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "pooling": list(self.pooling)}


@dataclass(frozen=True, slots=True)
class Row:
    """One answer as tokens: prompt, answer, end token."""

    token_ids: tuple[int, ...]  # (T,)
    start: int  # of the answer; its last position is T - 1, the end token
    length: int  # tokens of the whole answer, before anything was cut


class Backbone:
    """The lower layers of a causal language model and its tokenizer, frozen."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: FeatureSpec, fingerprint: dict[str, Any]
    ) -> None:
        """`model` is the bare decoder, already cut to `spec.layer` layers; see `load`."""
        self.model = model.train(False).requires_grad_(False)
        self.tokenizer, self.spec, self.fingerprint = tokenizer, spec, fingerprint

    @classmethod
    def load(cls, folder: str | Path, spec: FeatureSpec, *, device: str | None = None) -> Backbone:
        """The first `spec.layer` layers of the model in `folder`. `device` None: the GPU that this process sees.

        Raises ConfigError for a folder that transformers cannot read and a model with fewer layers.
        """
        from transformers import AutoModel
        from transformers.utils import logging as transformers_logging

        logging: Any = transformers_logging
        settings = _settings(folder)
        depth = int(settings.num_hidden_layers)
        if spec.layer > depth:
            raise ConfigError(f"features.layer is {spec.layer}, the backbone in {folder} has {depth} layers")
        known = fingerprint(settings)
        settings.num_hidden_layers = spec.layer
        verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()  # it would list the layers that are left out on purpose
        logging.disable_progress_bar()
        try:
            model = AutoModel.from_pretrained(folder, config=settings, dtype=torch.float32, use_safetensors=True)
        except (OSError, ValueError) as e:
            raise ConfigError(f"{folder}: transformers cannot load this backbone: {e}") from e
        finally:
            logging.set_verbosity(verbosity)
            if shown:
                logging.enable_progress_bar()
        if spec.layer < depth:
            if not hasattr(model, "norm"):
                raise ConfigError(
                    f"{folder}: {type(model).__name__} has no final `norm`, so only its last layer can be read"
                )
            model.norm = torch.nn.Identity()  # it belongs to the last layer's states, which these are not
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(cast("PreTrainedModel", model.to(device)), load_tokenizer(folder), spec, known)

    def row(self, prompt: Prompt, response: str) -> Row:
        """Tokens of one pair, cut to the limits of the spec: the answer's end first, then the prompt's beginning."""
        encoded = encode(prompt.messages, response, self.tokenizer)
        before, answer = encoded.token_ids[: encoded.prompt_length], encoded.token_ids[encoded.prompt_length : -1]
        kept = answer[: self.spec.max_response_tokens]
        before = before[-max(1, self.spec.max_tokens - len(kept) - 1) :]
        return Row(token_ids=(*before, *kept, encoded.token_ids[-1]), start=len(before), length=len(answer))

    @torch.inference_mode()
    def features(
        self, pairs: Sequence[Pair], token_budget: int = 4096, side: Side = "right"
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(N, D) features and (N,) lengths of the answers in tokens, in the order of `pairs`.

        Longest first, so a batch holds rows of like length and at most `token_budget` padded tokens (one row at least).
        D = hidden size times the number of poolings, in the order of the spec. An answer without tokens is read at its
        end token. Raises ScoringError where a feature is not finite.
        """
        rows = [self.row(prompt, response) for prompt, response in pairs]
        hidden = int(self.model.config.hidden_size)
        out_ND = np.empty((len(rows), hidden * len(self.spec.pooling)), dtype=np.float32)
        for members in _batches([len(row.token_ids) for row in rows], token_budget):
            batch = [rows[i] for i in members]
            states_BTD, offsets_B = self._states(batch, side)
            for i, row, states_TD, offset in zip(members, batch, states_BTD, offsets_B, strict=True):
                out_ND[i] = self._pool(states_TD[offset : offset + len(row.token_ids)], row).cpu().numpy()
        broken = np.flatnonzero(~np.isfinite(out_ND).all(axis=1))
        if len(broken):
            raise ScoringError(
                f"the backbone gives features that are not finite for {len(broken)} of {len(rows)} answers"
            )
        return out_ND, np.array([row.length for row in rows], dtype=np.int64)

    def _states(self, batch: Sequence[Row], side: Side) -> tuple[torch.Tensor, list[int]]:
        """Hidden states (B, T, D) and where each row begins."""
        width = max(len(row.token_ids) for row in batch)
        offsets = [0 if side == "right" else width - len(row.token_ids) for row in batch]
        ids_BT = torch.full((len(batch), width), cast(int, self.tokenizer.eos_token_id), dtype=torch.long)
        mask_BT = torch.zeros((len(batch), width), dtype=torch.long)
        for ids_T, mask_T, row, offset in zip(ids_BT, mask_BT, batch, offsets, strict=True):
            ids_T[offset : offset + len(row.token_ids)] = torch.tensor(row.token_ids)
            mask_T[offset : offset + len(row.token_ids)] = 1
        device = self.model.device
        output = self.model(
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT.to(device),
            position_ids=(mask_BT.cumsum(dim=1) - 1).clamp(min=0).to(device),
            use_cache=False,
        )
        return output.last_hidden_state, offsets

    def _pool(self, states_TD: torch.Tensor, row: Row) -> torch.Tensor:
        end_D = states_TD[-1]
        answer_SD = states_TD[row.start : -1] if row.start < len(states_TD) - 1 else end_D[None]
        pooled = {"mean": lambda: answer_SD.mean(dim=0), "last": lambda: answer_SD[-1], "end": lambda: end_D}
        return torch.cat([pooled[name]() for name in self.spec.pooling]).float()


class Extractor:
    """A backbone that loads itself: what `jobs/reward.py` makes actors of."""

    def __init__(self, *, folder: str, spec: FeatureSpec, token_budget: int, threads: int | None) -> None:
        self.folder, self.spec, self.token_budget, self.threads = folder, spec, token_budget, threads

    def setup(self) -> None:
        set_threads(self.threads)
        self.backbone = Backbone.load(self.folder, self.spec)

    def pid(self) -> int:
        return os.getpid()

    def features(self, pairs: Sequence[Pair]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """`Backbone.features` of one shard."""
        return self.backbone.features(pairs, self.token_budget)


def identity(folder: str | Path) -> dict[str, Any]:
    """`fingerprint` of the model in a folder, without loading it. Raises ConfigError."""
    return fingerprint(_settings(folder))


_IDENTITY = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


def fingerprint(settings: Any) -> dict[str, Any]:
    """What a backbone must have in common with the one that heads were fitted on."""
    return {key: getattr(settings, key, None) for key in _IDENTITY}


def _settings(folder: str | Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{folder}: transformers cannot read this backbone: {e}") from e


def _batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices in batches of at most `token_budget` padded tokens, longest first; every index once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        size = max(1, token_budget // lengths[order[0]])
        yield order[:size]
        del order[:size]
