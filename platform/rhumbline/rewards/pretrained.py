"""What transformers gives a reward network: configuration, tokenizer, a model with outputs on top. Under `network`.

    settings = read_settings(folder, trust_remote_code=False)
    model = load_model(folder, settings, fresh=True, ...)     # AutoModelForSequenceClassification
    tokenizer = read_tokenizer(folder, settings, False)       # a decoder's with its chat template checked
    lm_head = load_lm_head(folder, model, settings, False)    # for the language-modelling loss

Weights are safetensors, and code that a model brings along runs only with `trust_remote_code`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from rhumbline.errors import ConfigError
from rhumbline.learning.policy import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEADS = ("score", "classifier")  # transformers' names of a decoder's and an encoder's head


def is_decoder(settings: Any) -> bool:
    """Whether a model of this configuration writes text, and so reads from left to right; the others are encoders."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    own = getattr(settings, "auto_map", None) or {}  # of models that bring their own code
    causal = type(settings) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in own
    masked = type(settings) in MODEL_FOR_MASKED_LM_MAPPING or "AutoModelForMaskedLM" in own
    return causal and not masked


def padding_token(tokenizer: PreTrainedTokenizerBase, num_embeddings: int | None = None) -> int:
    """A token to pad with that no row ends in: the tokenizer's own, unless it is the end token; then another special one.

    It may occur within a row: transformers looks for the last token that is another. `num_embeddings`: of the model, which
    has none for a token that was added to the tokenizer alone. Raises ConfigError where there is none.
    """
    end = tokenizer.eos_token_id
    wanted = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *tokenizer.added_tokens_decoder)
    for token in wanted:
        if token is not None and token != end and (num_embeddings is None or token < num_embeddings):
            return cast(int, token)
    raise ConfigError(
        f"{tokenizer.name_or_path or 'the tokenizer'} has no token to pad with but the end token: add one"
    )


def read_settings(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{folder}: transformers cannot read this model: {e}") from e


def read_tokenizer(folder: Path, settings: Any, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """A decoder's with its chat template checked, an encoder's as it is."""
    from transformers import AutoTokenizer

    if is_decoder(settings):
        return load_tokenizer(folder, trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{folder}: transformers cannot load this tokenizer: {e}") from e
    tokenizer.chat_template = None  # some carry one over; an encoder reads pairs of texts
    return cast("PreTrainedTokenizerBase", tokenizer)


def load_model(
    folder: Path,
    settings: Any,
    *,
    fresh: bool,
    dtype: torch.dtype,
    device: str | None,
    load_in_8bit: bool,
    trust_remote_code: bool,
) -> Any:
    """The model with the outputs that `settings` names. `fresh`: its head (and an encoder's pooler, which language models
    lack) may be new; without it every weight must be there.

    Raises ConfigError for a folder that transformers cannot read, and for weights that are missing.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForSequenceClassification

    options: dict[str, Any] = {}
    if is_decoder(settings):
        # Answers that share a prompt need a mask of their own, which flash attention does not take.
        options["attn_implementation"] = "sdpa"
    if load_in_8bit:
        options["quantization_config"] = _eight_bits()
    auto: Any = AutoModelForSequenceClassification
    try:
        with quiet():
            model, found = auto.from_pretrained(
                folder,
                config=settings,
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=fresh,  # a head of other outputs
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, RuntimeError, StrictDataclassError, SafetensorError) as e:
        raise ConfigError(f"{folder}: transformers cannot load this model with outputs on top: {e}") from e
    # Those of another size too, which transformers draws anew, and without a word since `quiet`.
    lost = found["missing_keys"] | {name for name, *_ in found["mismatched_keys"]}
    lost = {name for name in lost if not fresh or _of_backbone(name)}
    if lost:
        raise ConfigError(
            f"{folder}: its weights lack {', '.join(sorted(lost)[:3])} ({len(lost)} in all), or have them in another size "
            "than its config.json says: copy it again"
        )
    if load_in_8bit:
        return model  # it lies on the GPU already, and such weights cannot be moved
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device)


def _of_backbone(weight: str) -> bool:
    """Whether a weight, by its name, belongs to the layers, which are numbered, or to the embeddings."""
    first, *_ = parts = weight.split(".")
    return first not in HEADS and any(part.isdigit() or "embed" in part for part in parts)


def _eight_bits() -> Any:
    """LLM.int8 (arXiv:2208.07339) for everything but the head."""
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None or not torch.cuda.is_available():
        raise ConfigError(
            "load_in_8bit needs a GPU and the package bitsandbytes on it (pip install bitsandbytes): set it to false here"
        )
    settings: Any = BitsAndBytesConfig
    return settings(load_in_8bit=True, llm_int8_skip_modules=list(HEADS))


def load_lm_head(folder: Path, model: Any, settings: Any, trust_remote_code: bool) -> nn.Linear:
    """The base model's output embeddings: the input ones where the two are tied, else read from its files.

    Raises ConfigError for an encoder, and where the files do not hold them.
    """
    from transformers import AutoModelForCausalLM

    if not is_decoder(settings):
        raise ConfigError("network.lm_weight needs a model that writes text, this one is an encoder: set it to 0")
    weight = model.get_input_embeddings().weight
    if not getattr(settings, "tie_word_embeddings", False):
        auto: Any = AutoModelForCausalLM
        with torch.device("meta"):
            causal = auto.from_config(settings, trust_remote_code=trust_remote_code)
        head = causal.get_output_embeddings()
        name = next(name for name, module in causal.named_modules() if module is head)
        weight = nn.Parameter(_tensor(folder, f"{name}.weight").to(weight.device, weight.dtype))
    lm_head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    lm_head.weight = weight
    return lm_head


def _tensor(folder: Path, name: str) -> torch.Tensor:
    """One tensor of a model's safetensors."""
    index, opened = folder / "model.safetensors.index.json", cast(Any, safe_open)
    try:
        file = json.loads(index.read_text())["weight_map"][name] if index.is_file() else "model.safetensors"
        with opened(folder / file, framework="pt") as stored:
            return cast(torch.Tensor, stored.get_tensor(name))
    except (OSError, KeyError, SafetensorError) as e:
        raise ConfigError(f"{folder} holds no {name}, which network.lm_weight needs: {e}") from e


def check_length(settings: Any, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
    """Raises ConfigError where rows would be longer than the model can read."""
    limits = [tokenizer.model_max_length, getattr(settings, "max_position_embeddings", None)]
    if is_decoder(settings) and getattr(settings, "use_sliding_window", True):
        limits.append(getattr(settings, "sliding_window", None))  # our masks have no window
    limit = min(number for number in limits if number is not None)
    if max_tokens > limit:
        raise ConfigError(f"network.max_tokens is {max_tokens}, this model reads at most {limit} tokens: lower it")


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and its list of weights that are fresh on purpose."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
