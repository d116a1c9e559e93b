"""Features of an answer: hidden states of a frozen language model that reads prompt and answer. Under `regression`.

    backbone = Backbone.load(resolve("embedded"), FeatureSpec(layer=15))
    features_ND, lengths_N = backbone.features([(prompt, "Because of scattering."), ...])

Only the layers up to the chosen one are loaded and run. An answer's features do not depend on what else is in the
batch: padding and other answers are masked, positions are given, and everything is computed in float32 (bfloat16 moves
scores by more than the 1e-4 that is allowed). The n samples of a prompt share its computation, which is about half of it.
N answers, D features, B trees of a batch, T tokens of a tree, S tokens of an answer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from rhumbline.data.chat import encode
from rhumbline.errors import ConfigError, ScoringError
from rhumbline.learning.policy import load_tokenizer, resolve, set_threads
from rhumbline.records import Prompt
from rhumbline.rewards.trees import PACKED_TOKENS, Layout, Row, batches, lay_out, trees_of
from rhumbline.rewards.trees import Side as Side

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pair = tuple[Prompt, str]  # what is scored: a prompt and an answer to it
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


class Backbone:
    """The lower layers of a causal language model and its tokenizer, frozen."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: FeatureSpec, fingerprint: dict[str, Any]
    ) -> None:
        """`model` is the bare decoder, already cut to `spec.layer` layers; see `load`."""
        self.model = model.train(False).requires_grad_(False)
        self.tokenizer, self.spec, self.fingerprint = tokenizer, spec, fingerprint

    @classmethod
    def load(
        cls, folder: str | Path, spec: FeatureSpec, *, device: str | None = None, trust_remote_code: bool = False
    ) -> Backbone:
        """The first `spec.layer` layers of the model in `folder`. `device` None: the GPU that this process sees.

        Raises ConfigError for a folder that transformers cannot read and a model with fewer layers.
        """
        from transformers import AutoModel
        from transformers.utils import logging as transformers_logging

        logging: Any = transformers_logging
        settings = _settings(folder, trust_remote_code)
        depth = int(settings.num_hidden_layers)
        if spec.layer > depth:
            raise ConfigError(f"features.layer is {spec.layer}, the backbone in {folder} has {depth} layers")
        known = fingerprint(settings)
        settings.num_hidden_layers = spec.layer
        verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()  # it would list the layers that are left out on purpose
        logging.disable_progress_bar()
        try:
            # Answers that share a prompt need a mask of their own, which flash attention does not take.
            model = AutoModel.from_pretrained(
                folder,
                config=settings,
                dtype=torch.float32,
                use_safetensors=True,
                attn_implementation="sdpa",
                trust_remote_code=trust_remote_code,
            )
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
        tokenizer = load_tokenizer(folder, trust_remote_code)
        return cls(cast("PreTrainedModel", model.to(device)), tokenizer, spec, known)

    def row(self, prompt: Prompt, response: str) -> Row:
        """Tokens of one pair, cut to the limits of the spec: the answer's end first, then the prompt's beginning."""
        encoded = encode(prompt.messages, response, self.tokenizer)
        before, answer = encoded.token_ids[: encoded.prompt_length], encoded.token_ids[encoded.prompt_length : -1]
        kept = answer[: self.spec.max_response_tokens]
        before = before[-max(1, self.spec.max_tokens - len(kept) - 1) :]
        return Row(prefix=before, answer=(*kept, encoded.token_ids[-1]), length=len(answer))

    @torch.inference_mode()
    def features(
        self, pairs: Sequence[Pair], token_budget: int = 4096, side: Side = "right"
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(N, D) features and (N,) lengths of the answers in tokens, in the order of `pairs`.

        Answers to one prompt share its computation; batches are longest first and hold at most `token_budget` padded
        tokens (one answer at least). D = hidden size times the number of poolings, in the order of the spec. An answer
        without tokens is read at its end token. Raises ScoringError where a feature is not finite.
        """
        rows = [self.row(prompt, response) for prompt, response in pairs]
        hidden = int(self.model.config.hidden_size)
        out_ND = np.empty((len(rows), hidden * len(self.spec.pooling)), dtype=np.float32)
        for trees in batches(trees_of(rows, min(PACKED_TOKENS, token_budget)), token_budget):
            layout = lay_out(trees, cast(int, self.tokenizer.eos_token_id), side)
            states_BTD = self._states(layout)
            for i, span in layout.spans.items():
                out_ND[i] = self._pool(states_BTD[span.tree, span.begin : span.end]).cpu().numpy()
        broken = np.flatnonzero(~np.isfinite(out_ND).all(axis=1))
        if len(broken):
            raise ScoringError(
                f"the backbone gives features that are not finite for {len(broken)} of {len(rows)} answers"
            )
        return out_ND, np.array([row.length for row in rows], dtype=np.int64)

    def _states(self, layout: Layout) -> torch.Tensor:
        """Hidden states (B, T, D)."""
        seen_BTT, device = layout.seen_BTT, self.model.device
        mask_B1TT = torch.zeros(seen_BTT.shape).masked_fill_(~seen_BTT, torch.finfo(torch.float32).min)[:, None]
        output = self.model(
            input_ids=layout.ids_BT.to(device),
            attention_mask=mask_B1TT.to(device),
            position_ids=layout.positions_BT.to(device),
            use_cache=False,
        )
        return cast(torch.Tensor, output.last_hidden_state)

    def _pool(self, states_SD: torch.Tensor) -> torch.Tensor:
        """(D,) of one answer from the states of its tokens and of the end token after them."""
        end_D = states_SD[-1]
        answer_SD = states_SD[:-1] if len(states_SD) > 1 else states_SD
        pooled = {"mean": lambda: answer_SD.mean(dim=0), "last": lambda: answer_SD[-1], "end": lambda: end_D}
        return torch.cat([pooled[name]() for name in self.spec.pooling]).float()


class Extractor:
    """A backbone that loads itself: what `jobs/reward.py` makes actors of."""

    def __init__(
        self,
        *,
        folder: str,
        spec: FeatureSpec,
        token_budget: int,
        threads: int | None,
        trust_remote_code: bool = False,
    ) -> None:
        self.folder, self.spec, self.token_budget, self.threads = folder, spec, token_budget, threads
        self.trust_remote_code = trust_remote_code

    def setup(self) -> None:
        set_threads(self.threads)
        folder = resolve(self.folder)
        self.backbone = Backbone.load(folder, self.spec, trust_remote_code=self.trust_remote_code)

    def pid(self) -> int:
        return os.getpid()

    def features(self, pairs: Sequence[Pair]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """`Backbone.features` of one shard."""
        return self.backbone.features(pairs, self.token_budget)


def identity(folder: str | Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """`fingerprint` of the model in a folder, without loading it. Raises ConfigError."""
    return fingerprint(_settings(folder, trust_remote_code))


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


def _settings(folder: str | Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{folder}: transformers cannot read this backbone: {e}") from e
