"""New weights into a running vLLM engine by vLLM's own weight-transfer session, and the files that they come from.

    llm = LLM(model, **session_settings({}))
    begin(llm)                                           # once
    send(llm, "t=1", Path("runs/smol/checkpoints/t=1"))  # start_weight_update -> update_weights -> finish_weight_update

What carries weights in a session is a backend of vLLM's, here one of ours (`actors/file_engine.py`): every worker reads the
checkpoint's safetensors. vLLM's own need the trainer in the session (docs/decisions.md). Tried with vLLM 0.32 on CPUs, in one
process and with child processes. Not tried: any of it on a GPU, tensor parallelism, quantised engines.

Nothing here imports vLLM: the checks of files serve every backend of the generator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rhumbline.errors import ConfigError, WeightSyncError

FILES = "rhumbline_file"  # the backend's name in vLLM's registry
EXTENSION = "actors.file_engine.Extension"  # vLLM imports it in every worker, which registers the backend there
INDEX = "model.safetensors.index.json"


def session_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `LLM` has to be made with, beside the recipe's own generator.engine. Raises ConfigError where that disagrees."""
    settings = {"weight_transfer_config": {"backend": FILES}, "worker_extension_cls": EXTENSION}
    for key in settings.keys() & given.keys():
        raise ConfigError(f"generator.engine.{key}: generator.sync: transfer sets it itself; remove one of the two")
    return settings


def begin(llm: Any) -> None:
    """Once per engine. A file engine meets nobody, so there is nothing to say."""
    llm.init_weight_transfer_engine({"init_info": {}})


def send(llm: Any, version: str, folder: Path) -> None:
    """One session: all weights of `folder` under the name `version`. The caller resets the prefix cache.

    An engine in which this fails is left with layers of both versions: it must be made again.
    """
    llm.start_weight_update()
    llm.update_weights({"update_info": {"path": str(folder)}})
    llm.finish_weight_update(version)


# --- files ------------------------------------------------------------------------------------------------------------


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a checkpoint's full weights, each of them whole: model.safetensors, or what the index of
    a sharded one names.

    Asked before an engine is touched. Raises WeightSyncError for a folder without them, an adapter alone included, for a torn
    file, and for an index that does not tell the truth.
    """
    named = _indexed(folder) if (folder / INDEX).is_file() else {}
    files = [folder / name for name in named] or sorted(folder.glob("model*.safetensors"))
    if not files and (folder / "adapter").is_dir():
        raise WeightSyncError(
            f"{folder} holds an adapter and no full weights, which every generator.sync but 'adapter' reads: set "
            "generator.sync: adapter, or publish merged weights"
        )
    if not files:
        raise WeightSyncError(
            f"{folder} holds no model*.safetensors: expected the full weights of a checkpoint, and pickles are not read"
        )
    for file in files:
        missing = named.get(file.name, set()) - tensors(file)
        if missing:
            raise WeightSyncError(
                f"{file} lacks {len(missing)} tensors that {INDEX} says it holds, such as {min(missing)}: shard and index are "
                "of different checkpoints"
            )
    return files


def adapter_folder(folder: Path) -> Path:
    """Where a checkpoint keeps its LoRA, whose file is whole. Raises WeightSyncError."""
    adapter = folder / "adapter"
    if not (adapter / "adapter_model.safetensors").is_file():
        raise WeightSyncError(
            f"{folder} holds no adapter/adapter_model.safetensors, which generator.sync: adapter reads: set generator.sync: "
            "full where the learner trains full weights (learner.lora)"
        )
    tensors(adapter / "adapter_model.safetensors")
    return adapter


def tensors(file: Path) -> set[str]:
    """The names in a safetensors file. Raises WeightSyncError where its size is not what its header says."""
    try:
        with safe_open(file, framework="pt") as opened:
            return set(opened.keys())
    except (OSError, SafetensorError) as e:
        raise WeightSyncError(f"{file} cannot be read: {e}. Was it copied whole?") from e


def _indexed(folder: Path) -> dict[str, set[str]]:
    """Tensors by file, as the index has them."""
    try:
        where: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise WeightSyncError(f"{folder / INDEX} is no index of a sharded checkpoint: {e!r}") from e
    named: dict[str, set[str]] = {}
    for tensor, name in sorted(where.items()):
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise WeightSyncError(f"{folder / INDEX} names {name!r}: expected a .safetensors file in the same folder")
        named.setdefault(name, set()).add(tensor)
    return named
