"""How alike two texts are, by any sentence encoder: the cosine of the means of its last hidden states, as sentence-transformers
pools by default.

    SentenceEncoder("minilm")(["The sky is blue."], ["Blue is the sky."])       # [0.97]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from rhumbline.errors import ConfigError
from rhumbline.learning.policy import resolve
from rhumbline.rewards.pretrained import padding_token, quiet

_BATCH = 64  # texts
_MAX_TOKENS = 512  # what is longer is cut: sentence encoders are trained on less


class SentenceEncoder:
    """A model and its tokenizer, in fp32. A decoder will do as well, if worse."""

    def __init__(self, name: str) -> None:
        """`name`: as `learning.policy.resolve` takes it. Raises ConfigError where transformers cannot read it."""
        from transformers import AutoModel, AutoTokenizer

        folder, auto = resolve(name), cast(Any, AutoModel)
        try:
            with quiet():
                self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
                self.model = auto.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
        except (OSError, ValueError) as e:
            raise ConfigError(f"{name}: transformers cannot load this sentence encoder: {e}") from e
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token_id = padding_token(self.tokenizer)
        self.tokenizer.padding_side = "right"
        read = (self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", None))
        self.max_tokens = min(_MAX_TOKENS, *(limit for limit in read if limit is not None))

    def __call__(self, texts: Sequence[str], others: Sequence[str]) -> list[float]:
        """The cosine of each text with the one opposite, -1 to 1, to four places: the same on every machine, or nearly so."""
        # Neighbours in length share a batch, and little of it is padding. Always in one order: a batch decides the rounding.
        distinct = sorted({*texts, *others}, key=lambda text: (len(text), text))
        place = {text: i for i, text in enumerate(distinct)}
        vectors = torch.cat([self._embed(distinct[i : i + _BATCH]) for i in range(0, len(distinct), _BATCH)])
        left, right = (vectors[[place[text] for text in side]] for side in (texts, others))
        cosines: list[float] = torch.nn.functional.cosine_similarity(left, right, dim=1).tolist()
        return [round(one, 4) for one in cosines]

    @torch.no_grad()
    def _embed(self, texts: Sequence[str]) -> torch.Tensor:
        read = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        mask_NT1 = read["attention_mask"][:, :, None].float()
        states_NTD = self.model(read["input_ids"], attention_mask=read["attention_mask"]).last_hidden_state
        means_ND: torch.Tensor = (states_NTD * mask_NT1).sum(1) / mask_NT1.sum(1).clamp(min=1)
        return means_ND
